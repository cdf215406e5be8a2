# SPDX-License-Identifier: Apache-2.0
"""Making and judging vocabularies. The only part of the package that knows MeCab; models never import it."""

# SPDX-License-Identifier: Apache-2.0
"""Making corpora: download, cleaning, exclusion, preparing, inspecting."""

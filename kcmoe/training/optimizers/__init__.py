# SPDX-License-Identifier: Apache-2.0
"""Optimizers: the interface (`base`), one file for each, and the names they are chosen by (`registry`)."""

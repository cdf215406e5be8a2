# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders: what `transformers` reads and writes, written and read here without it."""

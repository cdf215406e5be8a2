# SPDX-License-Identifier: Apache-2.0
"""From files of Korean text to batches. Import what you need from the modules; nothing heavy here."""

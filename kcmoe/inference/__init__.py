# SPDX-License-Identifier: Apache-2.0
"""Using a checkpoint: search, scoring, buckets of like length, and the Python interface."""

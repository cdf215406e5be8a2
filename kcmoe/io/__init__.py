# SPDX-License-Identifier: Apache-2.0
"""Files, and what is printed about them: durable writing, buckets, digests, sizes, tables."""

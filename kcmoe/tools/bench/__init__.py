# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: each prints a table that anyone can repeat. `kcmoe bench --help` lists them."""

# SPDX-License-Identifier: Apache-2.0
"""Metrics of a task, the two protocols of answering, and their report."""

# SPDX-License-Identifier: Apache-2.0
"""Every task as data, and what a task is."""

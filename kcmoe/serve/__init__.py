# SPDX-License-Identifier: Apache-2.0
"""A model over HTTP: an interface for programs and a page for people, in one process."""

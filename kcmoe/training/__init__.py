# SPDX-License-Identifier: Apache-2.0
"""Training: `loop` reads from top to bottom, `step` is the update, `command` is `kcmoe train`."""

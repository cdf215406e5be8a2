# SPDX-License-Identifier: Apache-2.0
"""Settings: gin files read, checked, and handed out as dataclasses; nothing here knows JAX."""

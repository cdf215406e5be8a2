# SPDX-License-Identifier: Apache-2.0
"""Settings: gin files read, checked, and handed out as dataclasses; nothing here knows JAX.

The modules of settings are imported here, so that whoever checks a name knows all of them.
"""

from kcmoe.config import data, inference, model, task, tokenizer, training

__all__ = ["data", "inference", "model", "task", "tokenizer", "training"]

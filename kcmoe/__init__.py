# SPDX-License-Identifier: Apache-2.0
"""Kc-MoE: a Korean Mixture-of-Experts encoder-decoder language model.

Importing this package is free: no JAX, tokenizer, network or device is touched before `load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kcmoe.inference.predict import LanguageModel

__version__ = "0.2.0"
__all__ = ["__version__", "load"]


def load(path: str, config: str | None = None, **settings: object) -> LanguageModel:
    """Loads a checkpoint for use.

    Args:
      path: "dir/checkpoint_1000", a model directory for its newest checkpoint, or "tiny", the
        model that ships.
      config: a gin file with the sizes, for checkpoints with no `config.gin` beside them.
      **settings: macros to override, e.g. `ROUTING="capacity"`.

    Returns:
      A `LanguageModel` with `classify`, `generate` and `score`.

    Raises:
      kcmoe.errors.UserError: if the checkpoint or its config cannot be used.
    """
    from kcmoe.inference.predict import LanguageModel

    return LanguageModel.load(path, config=config, **settings)

# SPDX-License-Identifier: Apache-2.0
"""Settings of prediction and evaluation."""

from __future__ import annotations

import dataclasses

from kcmoe.config.fields import GinConfig, macro
from kcmoe.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceConfig(GinConfig):
    """How prediction and evaluation compute and where they write, never what."""

    checkpoint_path: str | None = macro(
        "CHECKPOINT_PATH",
        default=None,
        help="checkpoint to evaluate: dir/checkpoint_N, or tiny, the model that ships",
    )
    eval_output_dir: str | None = macro(
        "EVAL_OUTPUT_DIR",
        default=None,
        help="folder of evaluation reports; None is evaluation/ beside the checkpoint (tiny: here)",
    )
    tokens: int | None = macro(
        "PREDICT_TOKENS", default=None, help="tokens computed at once; None suits the device"
    )

    def check(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise UserError(f"PREDICT_TOKENS = {self.tokens}, but it must be at least 1")

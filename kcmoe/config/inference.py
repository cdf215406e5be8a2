# SPDX-License-Identifier: Apache-2.0
"""Settings of prediction and evaluation."""

from __future__ import annotations

import dataclasses
import typing

from kcmoe.config.fields import GinConfig, macro


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
    weights: typing.Literal["float32", "bfloat16"] = macro(
        "PREDICT_WEIGHTS",
        default="float32",
        help="bfloat16 multiplies with half the bits: faster on processors that can, answers differ a little",
    )
    tokens: int | None = macro(
        "PREDICT_TOKENS",
        least=1,
        most=2**31 - 1,
        default=None,
        help="tokens computed at once; None suits the device",
    )

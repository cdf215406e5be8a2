# SPDX-License-Identifier: Apache-2.0
"""Which dispatch `DISPATCH = 'auto'` means, per device.

From measurements, never from belief: `kcmoe bench dispatch` prints them for the machine it runs on, and
benchmarks/README.md keeps ours. Devices without a line here get what is never far off, and the bench says
whether something else is better there. Override with `--gin.DISPATCH='"ragged"'`.
"""

from __future__ import annotations

# Platform -> (tokens from which a dropless layer is grouped, how). Below that many tokens most of a
# group's blocks would be empty, and one product per expert over all tokens is quicker.
MEASURED: dict[str, tuple[int, str]] = {"cpu": (128, "grouped")}
UNMEASURED = (512, "grouped")


def resolve(dispatch: str, routing: str, tokens: int, platform: str) -> str:
    """The concrete dispatch for a layer of `tokens` tokens on `platform` ("cpu", "gpu", "tpu").

    `grouped` and `ragged` cannot drop tokens, so under `capacity` routing they mean `gather`.
    """
    if routing == "capacity":
        return dispatch if dispatch == "einsum" else "gather"
    if dispatch != "auto":
        return dispatch
    enough_tokens, how = MEASURED.get(platform, UNMEASURED)
    return how if tokens >= enough_tokens else "gather"


def grouped_block(choices: int, experts: int) -> int:
    """Rows per block of the grouped product: about half an even share, 16 to 256, a multiple of 16."""
    share = choices // (2 * experts)
    return max(16, min(256, share // 16 * 16))

# SPDX-License-Identifier: Apache-2.0
"""Which dispatch `DISPATCH = 'auto'` means on this machine.

Chosen from measurements, never from belief: `benchmarks/README.md` has the figures behind each line and
`kcmoe bench dispatch` repeats them. Override with `--gin.DISPATCH='"gather"'`.
"""

from __future__ import annotations

# Below this many tokens a block of the grouped product is mostly empty and per-expert products win.
GROUPED_FROM_TOKENS = 512


def resolve(dispatch: str, routing: str, tokens: int) -> str:
    """The concrete dispatch for a layer of `tokens` tokens.

    `grouped` cannot drop tokens, so under `capacity` routing it means `gather`.
    """
    if routing == "capacity":
        return "gather" if dispatch in ("auto", "grouped") else dispatch
    if dispatch == "auto":
        return "grouped" if tokens >= GROUPED_FROM_TOKENS else "gather"
    return dispatch


def grouped_block(choices: int, experts: int) -> int:
    """Rows per block of the grouped product: about half an even share, 16 to 256, a multiple of 16."""
    share = choices // (2 * experts)
    return max(16, min(256, share // 16 * 16))

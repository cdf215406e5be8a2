# SPDX-License-Identifier: Apache-2.0
"""Which dispatch `DISPATCH = 'auto'` means, per device.

The numbers for CPUs are measured: `kcmoe bench dispatch` prints them for the machine it runs on, and
benchmarks/README.md keeps ours. TPUs go by their compiler's estimates (`kcmoe plan --compile`), also there.
Devices without a line here get what is never far from the fastest, and the bench says whether another way is
better there. Override with `--gin.DISPATCH='"ragged"'`.
"""

from __future__ import annotations

import dataclasses
import math
import typing

Way = typing.Literal["gather", "exchange", "einsum", "grouped", "ragged", "used"]
_USED_ROWS = 8, 32  # products of 32 rows already run as fast as large ones, and little is empty


@dataclasses.dataclass(frozen=True)
class Threshold:
    """From where on the grouped product wins on a device, which one, and what else is best.

    Attributes:
      way: "grouped" or "ragged".
      dropless_tokens: dropless routing of at least so many tokens. With fewer most blocks would be empty, and
        one product per expert over all tokens is quicker.
      capacity_slots: capacity routing with at least so many slots for each row of the grouped product.
        Four slots per expert and group is Flaxformer's least, so that with many experts and few tokens
        nearly all of them are empty.
      otherwise: the way where the grouped product does not win.
    """

    way: Way
    dropless_tokens: int
    capacity_slots: float
    otherwise: Way = "gather"


MEASURED: dict[str, Threshold] = {
    "cpu": Threshold("grouped", 128, 4.0),
    # One device of a slice has groups and experts of its own, and what `gather` looks up is everywhere.
    "tpu": Threshold("ragged", 512, math.inf, otherwise="exchange"),
}
UNMEASURED = Threshold("grouped", 512, math.inf)


def resolve(
    dispatch: Way | typing.Literal["auto"],
    routing: str,
    tokens: int,
    slots: int,
    choices: int,
    experts: int,
    platform: str,
) -> Way:
    """The concrete way of a layer on `platform` ("cpu", "gpu", "tpu").

    Args:
      dispatch: a concrete way stays as it is; "auto" is decided.
      routing: "capacity" or "dropless".
      tokens: N, of the whole batch.
      slots: M of `gather`: experts * groups * capacity.
      choices: N * A.
      experts: E.
      platform: what the model runs on, or is planned for.
    """
    if dispatch != "auto":
        return dispatch
    measured = MEASURED.get(platform, UNMEASURED)
    if routing == "capacity":
        rows = grouped_rows(choices, experts, grouped_block(choices, experts))
        grouped = slots >= measured.capacity_slots * rows
    else:
        grouped = tokens >= measured.dropless_tokens
    return measured.way if grouped else measured.otherwise


def grouped_block(choices: int, experts: int) -> int:
    """Rows per block of the grouped product: about half an even share, 16 to 256, a multiple of 16."""
    share = choices // (2 * experts)
    return max(16, min(256, share // 16 * 16))


def used_block(choices: int, experts: int) -> int:
    """Rows per block of `used`: a power of two above one and a half even shares, 8 to 32."""
    least, most = _USED_ROWS
    return min(most, max(least, 1 << (3 * choices // (2 * experts)).bit_length()))


def grouped_rows(choices: int, experts: int, block: int) -> int:
    """Rows of the grouped product at most: each expert's last block may hold one choice only."""
    return choices + experts * (block - 1)

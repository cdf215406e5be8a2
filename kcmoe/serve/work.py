# SPDX-License-Identifier: Apache-2.0
"""What the queue holds: lines of ids, each with the program that computes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Key:
    """Which program computes a line, and which lines may share a batch.

    Attributes:
      kind: "classify", "generate", "score", "embed", "experts" or "sample".
      options: what else decides the program.
      lengths: tokens per row of each kind of sequence.
      values: what one program takes as numbers, but one batch has once.
    """

    kind: str
    options: tuple[Any, ...]
    lengths: tuple[int, ...]
    values: tuple[float, ...] = ()

    @property
    def program(self) -> tuple[Any, ...]:
        """Equal for keys that one compiled program computes."""
        return self.kind, self.options, self.lengths


@dataclasses.dataclass(frozen=True)
class Work:
    """One line to compute.

    Attributes:
      key: its program.
      ids: ids of each kind of sequence, with EOS.
      cost: how much of the queue it takes.
      notes: what is said about the line beside its answer: `tokens`, and `cut` where it was cut.
    """

    key: Key
    ids: tuple[Sequence[int], ...]
    cost: int = 1
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

# SPDX-License-Identifier: Apache-2.0
"""What the queue holds: lines of ids, each with the program that computes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Key:
    """Which program computes a line.

    Attributes:
      kind: "classify", "generate", "score", "embed", "experts" or "sample".
      options: what else decides the program or must be equal in a batch.
      lengths: tokens per row of each kind of sequence.
    """

    kind: str
    options: tuple[Any, ...]
    lengths: tuple[int, ...]


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

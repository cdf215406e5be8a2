# SPDX-License-Identifier: Apache-2.0
"""Whether the hosts read and tokenize as fast as the devices compute.

The engine tokenizes once and keeps the ids, so it only reads them. T5X reads text and tokenizes in every
epoch, on the hosts, unless its task is cached.
"""

from __future__ import annotations

import dataclasses
import math

from kcmoe.tools.plan.hardware import Hardware

# What one second of a core's time prepares of the pretraining task: SeqIO 1,120 rows of 512 + 114 tokens, the
# engine, which reads ids, 14 M tokens (benchmarks/README.md, "Input pipeline").
_TOKENS_PER_CORE = {"t5x": 1120 * 626, "engine": 14.0e6}
# SeqIO where 16 hosts had fewer files than hosts, so that each read all of them.
_SHARED_FILES = 956 / 1216


@dataclasses.dataclass(frozen=True)
class Pace:
    """What the input asks of one host.

    Attributes:
      rows_per_s: rows a second that all devices take together.
      hosts: machines that share them.
      host_cores: cores of one; 0 where that is not known.
      rows_per_core: rows a second that one core prepares.
      cores: cores of one host that this keeps busy, if more cores do proportionally more.
    """

    rows_per_s: float
    hosts: int
    host_cores: int
    rows_per_core: float
    cores: float

    @property
    def slowdown(self) -> float:
        """How much longer a step takes because of the input; 1 where the devices set the pace."""
        return max(1.0, self.cores / self.host_cores) if self.host_cores else 1.0


def of(hardware: Hardware, stack: str, batch_size: int, row_tokens: int, step_s: float) -> Pace:
    """The pace of a run whose devices take `step_s` for a batch of rows of `row_tokens` tokens."""
    rows_per_s = batch_size / step_s
    per_core = _TOKENS_PER_CORE[stack] / row_tokens
    cores = rows_per_s / hardware.hosts / per_core
    return Pace(rows_per_s, hardware.hosts, hardware.kind.host_cores, per_core, cores)


def lines(pace: Pace, stack: str) -> list[str]:
    """What there is to say, a line each."""
    each = (
        f", {pace.rows_per_s / pace.hosts:,.0f} on each of {pace.hosts} hosts"
        if pace.hosts > 1
        else ""
    )
    has = f" of the {pace.host_cores}" if pace.host_cores else ""
    doing = "the engine reads ids" if stack == "engine" else "SeqIO reads and tokenizes"
    said = [
        f"{pace.rows_per_s:,.0f} rows/s{each}: {doing} on {math.ceil(pace.cores)}{has} cores of a host, "
        f"at {pace.rows_per_core:,.0f} rows/s a core (measured)"
    ]
    if pace.slowdown > 1:
        said.append(
            f"the hosts set the pace, not the devices: a step takes {pace.slowdown:.2f} times as long"
        )
    if stack == "t5x" and pace.hosts > 1:
        said.append(
            f"with fewer than {pace.hosts} training files every host reads all of them and prepares "
            f"{_SHARED_FILES:.0%} as many rows"
        )
    return said

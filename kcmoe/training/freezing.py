# SPDX-License-Identifier: Apache-2.0
"""Freezing parameters by path, and the rule that tells expert parameters from the rest.

Patterns are regular expressions that match from the start of the path, as T5X's do
(`encoder/.*` freezes the encoder, `.*router.*` the routers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from kcmoe.errors import UserError, near_misses

# t5x@cc342d4:t5x/contrib/moe/trainer.py: the parameters whose gradients MoeTrainer scales.
EXPERT_PATTERN = re.compile(r".*expert.*")


def is_expert(path: str) -> bool:
    """Whether the parameter at `path` belongs to an expert."""
    return EXPERT_PATTERN.match(path) is not None


def frozen_paths(patterns: Sequence[str], paths: Iterable[str]) -> frozenset[str]:
    """The `paths` that some of `patterns` matches.

    Raises:
      UserError: for a pattern that is no regular expression or matches nothing, or if nothing is
        left to train.
    """
    paths = list(paths)
    frozen: set[str] = set()
    for pattern in patterns:
        try:
            regex = re.compile(pattern)
        except re.error as error:
            raise UserError(f"FREEZE: {pattern!r} is no regular expression ({error})") from None
        matched = {path for path in paths if regex.match(path)}
        if not matched:
            raise UserError(f"FREEZE: {pattern!r} matches no parameter.{_nearest(pattern, paths)}")
        frozen |= matched
    if len(frozen) == len(paths):
        raise UserError(f"FREEZE = {list(patterns)!r} freezes every parameter; nothing would train")
    return frozenset(frozen)


def _nearest(pattern: str, paths: Sequence[str]) -> str:
    """A hint from the paths, whole and cut at each slash, so that `enc/.*` finds `encoder/.*`."""
    candidates = set(paths)
    for path in paths:
        parts = path.split("/")
        candidates.update("/".join(parts[:n]) + "/.*" for n in range(1, len(parts)))
        candidates.update(f".*{part}.*" for part in parts)
    return near_misses(pattern, sorted(candidates))

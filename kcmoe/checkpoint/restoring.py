# SPDX-License-Identifier: Apache-2.0
"""Restores a state after checking every leaf of it against what the model expects.

All or nothing: missing, extra, misshapen, damaged and non-finite leaves are gathered into one
error, and nothing is returned. Loading only a part is possible, but only of what a pattern names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kcmoe.checkpoint.leaves import ShapeDtype, count_non_finite, shape_dtype
from kcmoe.checkpoint.reader import Reader, describe_problems, open_checkpoint
from kcmoe.checkpoint.sizes import explain_difference
from kcmoe.checkpoint.storage import Damaged
from kcmoe.errors import UserError

Placer = Callable[[str, np.ndarray], Any]


def restore(
    checkpoint: str | os.PathLike[str] | Reader,
    expected: Mapping[str, Any],
    patterns: Sequence[str] | None = None,
    sharding: Mapping[str, Any] | Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Returns path -> array for every path of `expected`, or raises one `UserError` of all faults.

    `expected`: path -> anything with shape and dtype (`jax.ShapeDtypeStruct`, an array).
    `patterns`: regular expressions; only paths that one of them matches from their beginning are
    loaded and compared, on both sides. `sharding`: path -> `jax.sharding.Sharding`, or a function
    of the path; without it a leaf goes where its `expected.sharding` says, and stays a NumPy array
    if that is None.
    """
    reader = checkpoint if isinstance(checkpoint, Reader) else open_checkpoint(checkpoint)
    wanted = {path: shape_dtype(leaf) for path, leaf in expected.items()}
    here, problems = reader.scan()
    problems = dict(problems)
    if patterns is not None:
        _require_matches(patterns, wanted, reader)
        wanted, here, problems = (
            _matching(patterns, leaves) for leaves in (wanted, here, problems)
        )
    problems = compare(here, wanted, problems)
    place = _placer(expected, sharding)
    restored = {}
    for path, values in checked_leaves(
        reader, [path for path in wanted if path not in problems], problems
    ):
        if not problems:
            restored[path] = place(path, values)
    if problems:
        reason = explain_difference(here, wanted)
        raise UserError(describe_problems(f"{reader.path} cannot be restored{reason}", problems))
    return restored


def compare(
    here: Mapping[str, ShapeDtype], wanted: Mapping[str, ShapeDtype], damaged: Mapping[str, str]
) -> dict[str, str]:
    """Returns path -> fault for all leaves that differ; `damaged` are faults already known."""
    problems = {}
    for path, leaf in wanted.items():
        if path in damaged:
            problems[path] = damaged[path]
        elif path not in here:
            problems[path] = f"missing ({leaf} expected)"
        elif here[path] != leaf:
            problems[path] = f"{here[path]} here, {leaf} expected"
    for path in here.keys() - wanted.keys():
        problems[path] = f"{here[path]} here, not expected"
    problems.update({path: text for path, text in damaged.items() if path not in wanted})
    return dict(sorted(problems.items()))


def checked_leaves(
    reader: Reader, paths: Sequence[str], problems: dict[str, str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the leaves that are readable and finite; others' faults go into `problems`."""
    for path, values in reader.read_all(paths):
        if isinstance(values, Damaged):
            problems[path] = str(values)
        elif bad := count_non_finite(values):
            problems[path] = (
                f"{bad:,} of {values.size:,} values of {shape_dtype(values)} are not finite"
            )
        else:
            yield path, values


def _matching(patterns: Sequence[str], leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {path: leaf for path, leaf in leaves.items() if any(re.match(p, path) for p in patterns)}


def _require_matches(
    patterns: Sequence[str], wanted: Mapping[str, ShapeDtype], reader: Reader
) -> None:
    for pattern in patterns:
        try:
            matched = any(re.match(pattern, path) for path in wanted)
        except re.error as error:
            raise UserError(f"{pattern!r} is not a regular expression: {error}") from error
        if not matched:
            raise UserError(
                f"the pattern {pattern!r} matches no leaf of the model; `kcmoe checkpoint inspect "
                f"{reader.path}` lists the paths that a checkpoint holds"
            )


def _placer(
    expected: Mapping[str, Any], sharding: Mapping[str, Any] | Callable[[str], Any] | None
) -> Placer:
    def place(path: str, values: np.ndarray) -> Any:
        if callable(sharding):
            target = sharding(path)
        elif sharding is not None:
            target = sharding.get(path)
        else:
            target = getattr(expected[path], "sharding", None)
        if target is None:
            return values
        import jax

        return jax.make_array_from_callback(values.shape, target, lambda index: values[index])

    return place

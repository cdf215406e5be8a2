# SPDX-License-Identifier: Apache-2.0
"""Opens a checkpoint of any format, and restores a state after checking every leaf of it.

`open_checkpoint(path)` looks at the files and returns the `Reader` of their format. `restore`
compares each leaf with what the model expects and returns all of them or none: missing, extra,
misshapen, damaged and non-finite leaves are gathered into one error. A part can be loaded if
patterns name it.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kcmoe.checkpoint import checksums, formats, manage, shipped
from kcmoe.checkpoint.base import Reader, describe_problems
from kcmoe.checkpoint.checksums import count_non_finite
from kcmoe.checkpoint.run_config import CONFIG_FILE, explain_difference
from kcmoe.checkpoint.storage import Damaged, Folder
from kcmoe.errors import UserError
from kcmoe.io.remote import is_remote
from kcmoe.tree import (
    AVERAGE,
    AVERAGED,
    PARAMETERS,
    ShapeDtype,
    is_parameter,
    parameter_of,
    shape_dtype,
    slot,
)

_log = logging.getLogger(__name__)
_UNFINISHED = re.compile(r"\.orbax-checkpoint-tmp|\.tmp-")

Placer = Callable[[str, np.ndarray], Any]


def open_checkpoint(path: str | os.PathLike[str]) -> Reader:
    """Opens a checkpoint of any of the formats, here or in a bucket.

    `path` is the checkpoint's folder (`dir/checkpoint_1000`), its `checkpoint` or `.safetensors` file,
    or the name of a model that ships. Raises `UserError` if there is none, it is half-finished, or its
    format is unknown.
    """
    text = shipped.resolve(path).rstrip("/")
    if not is_remote(text) and os.path.lexists(text) and not os.path.isdir(text):
        name = os.path.basename(text)
        if not os.path.isfile(text) or not (name == "checkpoint" or name.endswith(".safetensors")):
            raise UserError(
                f"{path} is a file and no checkpoint, which is a folder (checkpoint_<step>)"
            )
        text = os.path.dirname(os.path.abspath(text))
    _require_folder(text)
    folder = Folder(text)
    found = formats.of(folder)
    if found is None:
        raise UserError(_unknown(folder))
    reader = found.reader(folder)
    if reader.saved is None and not found.foreign and (sign := checksums.lost(folder)):
        _say_unchecked(folder.path, sign)
    return reader


@functools.cache
def _say_unchecked(path: str, sign: str) -> None:
    _log.warning(
        "%s has lost its checksums, %s (%s), so values that were damaged since would not show",
        path,
        checksums.NAME,
        sign,
    )


def _require_folder(path: str) -> None:
    if _UNFINISHED.search(os.path.basename(path)):
        raise UserError(
            f"{path} is a half-finished save: take a finished checkpoint (checkpoint_<step>)"
        )
    if is_remote(path) or os.path.isdir(path):
        return
    parent = os.path.dirname(os.path.abspath(path))
    raise UserError(f"there is no checkpoint {path}.{_neighbours(parent)}{shipped.hint(path)}")


def _neighbours(folder: str) -> str:
    found = [checkpoint.name for checkpoint in manage.all_checkpoints(folder)]
    return f" There are {', '.join(found[-5:])} in {folder}." if found else ""


def _unknown(folder: Folder) -> str:
    below = {name.split("/")[0] for name in folder.names()}
    inside = sorted(name for name in below if re.fullmatch(r"checkpoint_\d+", name))
    if inside:
        return (
            f"{folder.path} is a model directory: name one of its checkpoints, such as "
            f"{folder.path}/{inside[-1]}"
        )
    names = sorted(folder.names())
    if CONFIG_FILE in names:
        return (
            f"{folder.path} has no finished checkpoint yet (checkpoint_<step>): wait for the first save "
            "of its run"
        )
    if not names:
        return f"{folder.path} is empty or does not exist"
    if any(name.endswith("/.zarray") for name in names):
        return f"{folder.path} is a half-finished save (arrays without an index): take another one"
    *others, last = (each.title for each in formats.FORMATS.values())
    more = ", ..." if len(names) > 5 else ""
    return (
        f"{folder.path} is in no format known here (it holds {', '.join(names[:5])}{more}); "
        f"known are {', '.join(others)} and {last}"
    )


def restore(
    checkpoint: str | os.PathLike[str] | Reader,
    expected: Mapping[str, Any],
    patterns: Sequence[str] | None = None,
    sharding: Mapping[str, Any] | Callable[[str], Any] | None = None,
    widen: bool = False,
) -> dict[str, Any]:
    """Returns path -> array for every path of `expected`, or raises one `UserError` of all faults.

    `expected`: path -> anything with shape and dtype (`jax.ShapeDtypeStruct`, an array).
    `patterns`: regular expressions; only paths that one of them matches from their beginning are
    loaded and compared, on both sides. `sharding`: path -> `jax.sharding.Sharding`, or a function
    of the path; without it a leaf goes where its `expected.sharding` says, and stays a NumPy array
    if that is None. `widen`: a leaf saved in 16-bit floats may fill one of float32.
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
    if widen:
        wanted |= {path: here[path] for path in wanted if _may_widen(path, here, wanted)}
    problems = compare(here, wanted, problems)
    place = _placer(expected, sharding)
    restored = {}
    for path, values in checked_leaves(
        reader, [path for path in wanted if path not in problems], problems
    ):
        if not problems:
            dtype = shape_dtype(expected[path]).dtype
            restored[path] = place(path, values.astype(dtype, copy=False))
    if problems:
        reason = explain_difference(here, wanted)
        raise UserError(describe_problems(f"{reader.path} cannot be restored{reason}", problems))
    return restored


def parameter_sources(reader: Reader) -> dict[str, str]:
    """Returns path of a parameter -> path of what is used for it: its average where the run kept one.

    So whoever takes the parameters alone takes what validation saw; see `training.optimizers.averaged`.
    """
    here = reader.scan()[0]
    sources = {}
    for path in filter(is_parameter, here):
        name = parameter_of(path) or ""
        average, taken = slot(name, AVERAGE), slot(name, AVERAGED)
        kept = average in here and taken in here and reader.read(taken).item() > 0
        sources[path] = average if kept else path
    return sources


def restore_parameters(
    reader: Reader,
    expected: Mapping[str, Any],
    sharding: Mapping[str, Any] | Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """As `restore` for the parameters alone, which may be averages; 16-bit floats are widened."""
    restored = restore(reader, expected, [PARAMETERS], sharding, widen=True)
    averages = {path: at for path, at in parameter_sources(reader).items() if at != path}
    place = _placer(expected, sharding)
    for path, at in averages.items():
        values = reader.read(at)
        if values.shape != restored[path].shape or count_non_finite(values):
            raise UserError(f"{reader.path} cannot be restored: {at} does not fit {path}")
        restored[path] = place(path, values.astype(shape_dtype(expected[path]).dtype, copy=False))
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


def _may_widen(path: str, here: Mapping[str, ShapeDtype], wanted: Mapping[str, ShapeDtype]) -> bool:
    leaf, ours = here.get(path), wanted[path]
    return (
        leaf is not None
        and leaf.shape == ours.shape
        and leaf.dtype.name in ("bfloat16", "float16")
        and ours.dtype.name == "float32"
    )


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

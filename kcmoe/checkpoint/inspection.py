# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint holds, as numbers and as a text: format, step, sizes, tree, finite or not.

Reads every value once if asked whether they are finite; raises nothing for values that are not, as
showing them is the purpose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from kcmoe.checkpoint.base import Reader
from kcmoe.checkpoint.reading import checked_leaves
from kcmoe.checkpoint.run_config import sizes_of
from kcmoe.io.wording import aligned, human_bytes
from kcmoe.tree import OPTIMIZER, PARAMETERS, ShapeDtype, total_bytes, total_values


@dataclasses.dataclass(frozen=True)
class Inspection:
    """All that `kcmoe checkpoint inspect` shows. `faults` is None if values were not read."""

    path: str
    format: str
    step: int
    tree: dict[str, ShapeDtype]
    extras: dict[str, int]
    has_checksums: bool
    faults: dict[str, str] | None

    def part(self, prefix: str) -> dict[str, ShapeDtype]:
        """Returns the leaves whose path begins with `prefix`."""
        return {path: leaf for path, leaf in self.tree.items() if path.startswith(prefix)}

    def to_json(self) -> dict[str, Any]:
        """Returns the same as plain JSON values."""
        parameters, optimizer = self.part(PARAMETERS), self.part(OPTIMIZER)
        return {
            "path": self.path,
            "format": self.format,
            "step": self.step,
            "parameters": total_values(parameters.values()),
            "parameter_bytes": total_bytes(parameters.values()),
            "optimizer_values": total_values(optimizer.values()),
            "optimizer_bytes": total_bytes(optimizer.values()),
            "total_bytes": total_bytes(self.tree.values()),
            "finite": None if self.faults is None else not self.faults,
            "faults": self.faults or {},
            "sizes": sizes_of(self.tree),
            "extras": self.extras,
            "checksums": self.has_checksums,
            "leaves": {
                path: {"shape": list(leaf.shape), "dtype": leaf.dtype.name, "bytes": leaf.nbytes}
                for path, leaf in self.tree.items()
            },
        }


def inspect(
    reader: Reader,
    finite: bool = True,
    progress: Callable[[int], Callable[[int], object]] | None = None,
) -> Inspection:
    """Looks at a checkpoint, at its values too if `finite`. Raises `UserError` if it is damaged."""
    tree = reader.tree()
    faults: dict[str, str] | None = None
    if finite:
        faults = {}
        advance = progress(total_bytes(tree.values())) if progress else None
        for _, values in checked_leaves(reader, list(tree), faults):
            if advance is not None:
                advance(values.nbytes)
    return Inspection(
        path=reader.path,
        format=reader.format,
        step=reader.step,
        tree=tree,
        extras={name: len(content) for name, content in reader.extras().items()},
        has_checksums=reader.saved is not None,
        faults=faults,
    )


def render(found: Inspection) -> str:
    """Returns the text that `kcmoe checkpoint inspect` prints."""
    rows = [
        ("checkpoint", found.path),
        ("format", found.format),
        ("step", f"{found.step:,}"),
        ("parameters", _amount(found.part(PARAMETERS))),
        ("optimizer", _amount(found.part(OPTIMIZER))),
        ("total", human_bytes(total_bytes(found.tree.values()))),
    ]
    sizes = sizes_of(found.tree)
    if sizes:
        rows.append(("sizes", "  ".join(f"{name}={value}" for name, value in sizes.items())))
    for name, length in found.extras.items():
        rows.append(("extra file", f"{name} ({human_bytes(length)})"))
    checks = "of every leaf, in kcmoe.json" if found.has_checksums else "none"
    rows += [("checksums", checks), ("finite", _finite(found.faults))]
    faults = found.faults or {}
    leaves = [
        (path, str(leaf), human_bytes(leaf.nbytes), f"<- {faults[path]}" if path in faults else "")
        for path, leaf in found.tree.items()
    ]
    return "\n".join([*aligned(rows, "<"), "", *aligned(leaves, "<<><")])


def _amount(leaves: dict[str, ShapeDtype]) -> str:
    values = total_values(leaves.values())
    return f"{values:,} in {len(leaves)} leaves ({human_bytes(total_bytes(leaves.values()))})"


def _finite(faults: dict[str, str] | None) -> str:
    if faults is None:
        return "not looked at (--no-finite)"
    return "yes" if not faults else f"no: {len(faults)} leaves, marked below"

# SPDX-License-Identifier: Apache-2.0
"""Sets ours beside theirs: largest error per quantity, its tolerance, and whether it holds.

Errors are relative to the largest magnitude of the expected array (absolute where that is zero). Token ids
count as many errors as ids differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from kcmoe import tree
from kcmoe.errors import UserError
from kcmoe.tools.parity import quantities
from kcmoe.tools.parity.case import Arrays, Case
from kcmoe.training.state import state_shapes, to_flat

# quantity -> (largest error allowed, which keys of outputs.npz it covers)
OUTPUTS: dict[str, tuple[float, Callable[[str], bool]]] = {
    "logits, train capacity": (1e-5, lambda key: key == "logits_train"),
    "logits, eval capacity": (1e-5, lambda key: key == "logits_eval"),
    "router metrics per layer": (1e-5, lambda key: key.startswith("intermediates/")),
    "reported metrics": (1e-5, lambda key: key.startswith("metrics/")),
    "loss": (1e-6, lambda key: key in ("loss", "eval_loss")),
    "gradients": (1e-4, lambda key: key.startswith("grads/")),
    "scores": (1e-5, lambda key: key == "scores"),
    "greedy token ids": (0, lambda key: key == "decode1/tokens"),
    "greedy scores": (1e-5, lambda key: key == "decode1/scores"),
    "4-beam token ids": (0, lambda key: key == "decode4/tokens"),
    "4-beam scores": (1e-5, lambda key: key == "decode4/scores"),
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the report.

    Attributes:
      quantity: what is compared.
      arrays: how many arrays.
      error: the largest error among them.
      worst: the array with that error.
      tolerance: the largest error allowed.
    """

    quantity: str
    arrays: int
    error: float
    worst: str
    tolerance: float

    @property
    def holds(self) -> bool:
        """False for an error beyond the tolerance, and for NaN."""
        return self.error <= self.tolerance


def run(case: Case) -> list[Line]:
    """Computes and compares everything.

    Raises:
      UserError: if the case lacks a quantity, or has one that is unknown here.
    """
    _check_complete(case)
    lines = of_outputs(case.outputs, quantities.outputs(case))
    losses, state = quantities.trajectory(case)
    expected = {f"step {i}": np.asarray(loss) for i, loss in enumerate(case.losses)}
    computed = {f"step {i}": np.asarray(loss) for i, loss in enumerate(losses)}
    lines.append(_line("losses of the trajectory", expected, computed, 1e-5))
    params = tree.parameters(state)
    lines.append(_line("parameters after it", case.final_params, params, 1e-4))
    for kind, theirs in case.final_states.items():
        target = tree.as_state(tree.parameters(theirs))
        optimizer = {path: x for path, x in theirs.items() if path not in target}
        lines.append(_line(f"optimizer state in {kind}", optimizer, state, 1e-4))
        lines.append(_line(f"parameters in {kind}", target, state, 1e-4))
    return lines


def of_outputs(theirs: Arrays, ours: Arrays) -> list[Line]:
    """One line per quantity of `OUTPUTS` that they have; a dense model has no router metrics."""
    lines = []
    for quantity, (tolerance, covers) in OUTPUTS.items():
        covered = {key: value for key, value in theirs.items() if covers(key)}
        if covered:
            lines.append(_line(quantity, covered, ours, tolerance))
    return lines


def _check_complete(case: Case) -> None:
    """Refuses a case before anything is computed: what it must hold follows from its sizes."""
    shapes = to_flat(state_shapes(case.model))
    params = list(tree.parameters(shapes))
    _same_keys(case.params, params, f"{case.name}/params.npz")
    _same_keys(case.final_params, params, f"{case.name}/trajectory.npz")
    for kind, theirs in case.final_states.items():
        _same_keys(theirs, shapes, f"{case.name}/{kind}")
    _same_keys(case.outputs, quantities.output_names(case), f"{case.name}/outputs.npz")


def _same_keys(theirs: Iterable[str], ours: Iterable[str], where: str) -> None:
    missing, unknown = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    problems = []
    if missing:
        problems.append(f"lacks {_some(missing)}")
    if unknown:
        problems.append(f"has {_some(unknown)}, which nothing here computes")
    if problems:
        raise UserError(f"{where} {' and '.join(problems)}; nothing was compared")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _line(quantity: str, theirs: Arrays, ours: Arrays, tolerance: float) -> Line:
    errors = {key: error(ours[key], expected) for key, expected in theirs.items()}
    # NaN compares false with everything; let it win.
    worst = max(errors, key=lambda key: np.inf if np.isnan(errors[key]) else errors[key])
    return Line(quantity, len(theirs), errors[worst], worst, tolerance)


def error(ours: np.ndarray, expected: np.ndarray) -> float:
    """Largest |ours - expected| over the largest |expected|; for ids, how many differ.

    A difference in shape is an infinite error.
    """
    if ours.shape != expected.shape:
        return float("inf")
    if ours.ndim > 1 and np.issubdtype(expected.dtype, np.integer):
        return float(np.sum(ours != expected))
    difference = np.abs(ours.astype(np.float64) - expected.astype(np.float64))
    magnitude = float(np.max(np.abs(expected))) or 1.0
    return float(np.max(difference)) / magnitude

# SPDX-License-Identifier: Apache-2.0
"""Signs that a run is going wrong: a loss that is no number, and routers that collapse.

A router collapses when it sends nearly all tokens to a few experts; the rest then get no gradient
and never come back. The measure is the effective number of experts, exp(entropy of the load): E for
an even load, k when all choices fall on the same k experts. This file only looks at numbers.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

WINDOW_STEPS = 50  # a load is noisy, and routers wander in the first steps


class NonFiniteError(Exception):
    """The loss, the gradients or the parameters are no finite numbers any more."""


def check_finite(step: int, values: Mapping[str, Any]) -> None:
    """Raises `NonFiniteError`, naming the step and what first went wrong, unless all is finite."""
    for name in ("loss", "grad_norm", "param_norm"):
        if name in values and not math.isfinite(float(values[name])):
            raise NonFiniteError(f"{name} is {float(values[name])} at step {step}")


def effective_experts(load: np.ndarray) -> float:
    """exp(entropy) of `load` [E], shares of the assignments; between 1 and E."""
    share = np.asarray(load, np.float64)
    share = share / max(share.sum(), 1e-30)
    return float(np.exp(-np.sum(share * np.log(np.where(share > 0, share, 1.0)))))


def dead_experts(load: np.ndarray) -> int:
    """How many experts no token asked for."""
    return int(np.sum(np.asarray(load) <= 0))


class CollapseAlarm:
    """Watches the load of each sparse layer over `WINDOW_STEPS` and speaks once per layer."""

    def __init__(self, num_experts: int, num_selected_experts: int):
        lowest = 1.1 * num_selected_experts
        # Where nearly all experts are chosen anyway, even an even load is close to the lowest number.
        self._threshold = max(lowest, num_experts / 4) if lowest < num_experts else 0.0
        self._num_experts = num_experts
        self._recent: dict[str, collections.deque[np.ndarray]] = {}
        self._told: set[str] = set()

    def observe(self, step: int, loads: Mapping[str, np.ndarray]) -> list[str]:
        """Takes the loads [E] of one step by layer; returns warnings, one line each, usually
        none."""
        warnings = []
        for layer, load in loads.items():
            recent = self._recent.setdefault(layer, collections.deque(maxlen=WINDOW_STEPS))
            recent.append(np.asarray(load))
            if layer in self._told or len(recent) < WINDOW_STEPS or self._num_experts < 3:
                continue
            mean = np.mean(recent, axis=0)
            effective = effective_experts(mean)
            if effective < self._threshold:
                self._told.add(layer)
                warnings.append(
                    f"warning: step {step}: the router of {layer} is collapsing: over the last "
                    f"{WINDOW_STEPS} steps {effective:.1f} of {self._num_experts} experts carry "
                    f"the load (expert {int(np.argmax(mean))} alone {mean.max():.0%}); raise "
                    "AUX_LOSS_FACTOR or lower LEARNING_RATE"
                )
        return warnings

# SPDX-License-Identifier: Apache-2.0
"""Evaluation during training: loss on held-out data, and a task's own metric where there is one.

The seam to `kcmoe.evaluation` is one callable: parameters in, metrics by name out. So the loop
knows no text and no labels, and evaluation knows no loop. The metric that chooses the best
checkpoint is the first of the task's metrics, or the cross-entropy per target token where a task
has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kcmoe.model.interface import Flat

# flat parameters -> metric name -> value
TaskMetric = Callable[[Flat], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Chooser:
    """Which validation metric names the best checkpoint."""

    metric: str
    higher_is_better: bool

    def better(self, new: float, old: float) -> bool:
        """Whether `new` beats `old`; equal values do not, so the earlier checkpoint stays."""
        return new > old if self.higher_is_better else new < old


class Validation:
    """Held-out batches, fixed for the whole run.

    Args:
      evaluate: (params, batch) -> metrics, compiled; `weights`, their target tokens, weighs them.
      batches: features [B, …] on the devices.
      task_metric: further metrics; the first one chooses the best checkpoint.
      task_metric_names: what `task_metric` returns, in order.
    """

    def __init__(
        self,
        evaluate: Callable[[Flat, Mapping[str, jax.Array]], Mapping[str, jax.Array]],
        batches: Sequence[Mapping[str, jax.Array]],
        task_metric: TaskMetric | None = None,
        task_metric_names: Sequence[str] = (),
    ):
        self._evaluate = evaluate
        self._batches = batches
        self._task_metric = task_metric
        names = tuple(task_metric_names)
        # Every task metric (accuracy, F1, correlations) is better when higher.
        self.chooser = Chooser("cross_ent_loss", False)
        if task_metric is not None and names:
            self.chooser = Chooser(names[0], True)

    def run(self, params: Flat) -> dict[str, Any]:
        """Metrics by name: means over real target tokens, and the task's own."""
        gathered = [jax.device_get(self._evaluate(params, batch)) for batch in self._batches]
        weights = np.array([float(metrics["weights"]) for metrics in gathered])
        values: dict[str, Any] = {
            name: np.average([np.asarray(m[name], np.float64) for m in gathered], 0, weights)
            for name in gathered[0]
            if name not in ("correct", "weights")
        }
        values["token_accuracy"] = sum(float(m["correct"]) for m in gathered) / weights.sum()
        values["target_tokens"] = weights.sum()
        if self._task_metric is not None:
            values |= self._task_metric(params)
        return values

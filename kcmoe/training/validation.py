# SPDX-License-Identifier: Apache-2.0
"""Evaluation during training: loss on held-out data, and a task's own metric where there is one.

A task's own metric is a callable that `kcmoe.train` hands in: parameters in, metrics by name out. So nothing
here knows text or labels. The metric that chooses the best checkpoint is the first of
the task's metrics, or the cross-entropy per target token where a task has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kcmoe.model.interface import Flat
from kcmoe.training import sharding
from kcmoe.training.inputs import Inputs
from kcmoe.training.run_folder import BY_LOSS, Chooser
from kcmoe.training.settings import Settings


@dataclasses.dataclass(frozen=True)
class TaskMetric:
    """A task's own metrics.

    Attributes:
      measure: flat parameters -> metric name -> value, a fraction.
      names: the names it gives, in order; the first one chooses the best checkpoint.
    """

    measure: Callable[[Flat], Mapping[str, float]]
    names: tuple[str, ...]


# (settings, inputs) -> the task's own metrics, None where it has none
MakeTaskMetric = Callable[[Settings, Inputs], TaskMetric | None]


class Validation:
    """Held-out batches, fixed for the whole run.

    Args:
      evaluate: (params, batch) -> metrics, compiled; `weights`, their target tokens, weighs them.
      batches: features [B, …] on the devices.
      task_metric: further metrics, which then choose the best checkpoint.
    """

    def __init__(
        self,
        evaluate: Callable[[Flat, Mapping[str, jax.Array]], Mapping[str, jax.Array]],
        batches: Sequence[Mapping[str, jax.Array]],
        task_metric: TaskMetric | None = None,
    ):
        self._evaluate = evaluate
        self._batches = batches
        self._task_metric = task_metric
        self.chooser = BY_LOSS
        if task_metric is not None:
            # Every task metric (accuracy, F1, correlations) is better when higher.
            self.chooser = Chooser(task_metric.names[0], higher_is_better=True)

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
            values |= self._task_metric.measure(params)
        return values


def open_validation(
    settings: Settings,
    inputs: Inputs,
    mesh: Mesh,
    evaluate: Any,
    make_task_metric: MakeTaskMetric | None,
) -> Validation | None:
    """Puts the held-out batches on the devices; None where nothing is held out."""
    if not inputs.held_out:
        return None
    batches = [sharding.put_everywhere(mesh, features) for features in inputs.held_out]
    task_metric = make_task_metric(settings, inputs) if make_task_metric else None
    return Validation(evaluate, batches, task_metric)

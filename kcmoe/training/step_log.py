# SPDX-License-Identifier: Apache-2.0
"""Takes the metrics of each step off the devices one step late, and tells everybody who listens.

Fetching the metrics of step N-1 after step N was dispatched keeps the devices busy meanwhile. What
is fetched is recorded, shown, and watched for signs of trouble.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax

from kcmoe.training import metrics as metrics_lib
from kcmoe.training.flops import train_step_flops
from kcmoe.training.health import CollapseAlarm, check_finite
from kcmoe.training.progress import Progress
from kcmoe.training.records import Recorder
from kcmoe.training.settings import Settings


class StepLog:
    """Holds the metrics of the last step dispatched until somebody asks for them."""

    def __init__(self, settings: Settings, recorder: Recorder, progress: Progress):
        run = settings.run
        self._settings = settings
        self._recorder = recorder
        self._progress = progress
        self._flops = train_step_flops(
            settings.model, run.batch_size, run.lengths["inputs"], run.lengths["targets"]
        )
        self._alarm = CollapseAlarm(settings.model.num_experts, settings.model.num_selected_experts)
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._clock_s = time.monotonic()
        self._typical_step_s = 0.0
        self._steps_shown = 0
        self.last: Mapping[str, Any] = {}

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of `step`, just dispatched, and handles those of the step before; its own too if
        it is done already, as where steps are computed in turn."""
        self.flush()
        self._pending = step, metrics
        if metrics["loss"].is_ready():  # type: ignore[attr-defined]
            self.flush()

    def flush(self) -> None:
        """Waits for the step that is pending, records and shows it.

        Raises:
          NonFiniteError: if its loss, gradients or new parameters are not finite; the record stays.
        """
        if self._pending is None:
            return
        step, on_devices = self._pending
        self._pending = None
        metrics = jax.device_get(dict(on_devices))
        values = metrics_lib.summarise(
            metrics, self._settings.losses, self._settings.run.microbatches
        )
        now_s = time.monotonic()
        speed = metrics_lib.speed(
            now_s - self._clock_s, self._settings.run.tokens_per_step, self._flops
        )
        self._clock_s = now_s
        self._recorder.write("train", step, {**values, **speed})
        self._show(step, values, speed)
        check_finite(step, metrics)
        for warning in self._alarm.observe(step, metrics_lib.loads(metrics)):
            self._progress.say(warning)
        self.last = values

    def _show(self, step: int, values: Mapping[str, Any], speed: Mapping[str, float]) -> None:
        # A moving average, so that the time left does not jump; a first step tells nothing.
        step_s, old_s = speed["step_s"], self._typical_step_s
        self._typical_step_s = 0.9 * old_s + 0.1 * step_s if self._steps_shown > 1 else step_s
        self._steps_shown += 1
        self._progress.update(
            step,
            float(values["loss"]),
            speed["tokens_per_s"],
            speed["model_flops_per_s"],
            self._typical_step_s,
        )

    def restart_clock(self) -> None:
        """Keeps the time of an evaluation or a save out of the next step's time."""
        self._clock_s = time.monotonic()

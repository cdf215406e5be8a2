# SPDX-License-Identifier: Apache-2.0
"""What is seen of a run: metrics of each step, recorded, shown, and watched for signs of trouble.

Per sparse layer, under `router/<layer path>/`, a record holds `expert_load` [E] (share of assignments asked
for per expert), `router_entropy` (nats, mean over tokens), `effective_experts` (exp of the load's entropy),
`dead_experts`, `first_choice_dropped` and `second_choice_dropped` (shares), `auxiliary_loss` and
`router_z_loss` raw, and `…_weighted`: the layer's part of the loss, so that the parts add up to it.

A router collapses when it sends nearly all tokens to a few experts; the rest then get no gradient and never
come back. The measure is the effective number of experts, exp(entropy of the load): E for an even load, k
when all choices fall on the same k experts.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kcmoe.config.training import LossConfig
from kcmoe.model.flops import train_step_flops
from kcmoe.training import report
from kcmoe.training.records import Recorder
from kcmoe.training.report import Progress
from kcmoe.training.settings import Settings

Values = dict[str, Any]


class Observer:
    """Takes what a run computes off the devices, one step late, records it, shows it and watches it.

    Fetching the metrics of step N-1 after step N was dispatched keeps the devices busy meanwhile.
    """

    def __init__(self, settings: Settings, model_dir: Path, start_step: int, quiet: bool = False):
        """Where `quiet`, as on all hosts but the first, nothing is recorded or shown, only checked."""
        run = settings.run
        self._settings = settings
        self._recorder = None if quiet else Recorder(model_dir)
        self._progress = Progress(start_step, run.train_steps, quiet)
        self._flops = train_step_flops(
            settings.model, run.batch_size, run.lengths["inputs"], run.lengths["targets"]
        )
        self._alarm = CollapseAlarm(settings.model.num_experts, settings.model.num_selected_experts)
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._clock_s = time.monotonic()
        self._typical_step_s = 0.0
        self._steps_shown = 0

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of `step`, just dispatched, and handles those of the step before.

        Its own are handled at once if they are there already, as where steps are computed in turn.
        """
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
        if self._recorder is None:
            check_finite(step, metrics)
            return
        values = summarise(metrics, self._settings.losses, self._settings.run.microbatches)
        now_s = time.monotonic()
        speed = speed_of(now_s - self._clock_s, self._settings.run.tokens_per_step, self._flops)
        self._clock_s = now_s
        self._recorder.write("train", step, {**values, **speed})
        self._show(step, values, speed)
        check_finite(step, metrics)
        for warning in self._alarm.observe(step, loads(metrics)):
            self._progress.say(warning)

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

    def validated(self, step: int, values: Mapping[str, Any], metric: str) -> None:
        """Records and shows what validation gave at `step`; `metric` chooses the best checkpoint."""
        if self._recorder is None:
            return
        self._recorder.write("eval", step, values)
        self._progress.say(report.validation(step, values, metric))

    def sync(self) -> None:
        """Returns when all records so far have reached the disk, as before a checkpoint they must."""
        if self._recorder is not None:
            self._recorder.sync()

    def close(self) -> None:
        """Ends the records and the display."""
        self._progress.close()
        if self._recorder is not None:
            self._recorder.close()


_ROUTER = "router/"
_LOAD = "/expert_load"


def loads(metrics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Layer path -> share of the assignments per expert [E]."""
    return {
        name.removeprefix(_ROUTER).removesuffix(_LOAD): np.asarray(value)
        for name, value in metrics.items()
        if name.startswith(_ROUTER) and name.endswith(_LOAD)
    }


def summarise(metrics: Mapping[str, Any], losses: LossConfig, num_microbatches: int) -> Values:
    """What to record of one step, given the metrics of `update.make_update` on the host."""
    values: Values = {k: v for k, v in metrics.items() if k not in ("correct", "weights")}
    tokens = float(metrics["weights"]) * num_microbatches
    values["token_accuracy"] = float(metrics["correct"]) / max(float(metrics["weights"]), 1.0)
    values["target_tokens"] = tokens
    layers = loads(metrics)
    for layer, load in layers.items():
        at = f"{_ROUTER}{layer}"
        values[f"{at}/dead_experts"] = dead_experts(load)
        values[f"{at}/effective_experts"] = effective_experts(load)
        for name, factor in (
            ("auxiliary_loss", losses.aux_loss_factor),
            ("router_z_loss", losses.router_z_loss_factor),
        ):
            raw = float(metrics[f"{at}/{name}"])
            values[f"{at}/{name}_weighted"] = factor * raw / len(layers)
    return values


def speed_of(step_s: float, tokens: int, flops: float) -> Values:
    """Speed of a step of `step_s` seconds; `tokens` are positions, padding included (`kcmoe.model.flops`)."""
    return {
        "step_s": step_s,
        "tokens_per_s": tokens / step_s,
        "model_flops_per_s": flops / step_s,
    }


WINDOW_STEPS = 50  # a load is noisy, and routers wander in the first steps


class NonFiniteError(Exception):
    """Says that the loss, the gradients or the parameters are not finite any more."""


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


def collapse_threshold(num_experts: int, num_selected_experts: int) -> float:
    """Effective experts below which a router is collapsing; 0 where that cannot be told."""
    lowest = 1.1 * num_selected_experts
    # Where nearly all experts are chosen anyway, even an even load is close to the lowest number.
    if num_experts < 3 or lowest >= num_experts:
        return 0.0
    return max(lowest, num_experts / 4)


class CollapseAlarm:
    """Watches the load of each sparse layer over `WINDOW_STEPS` and speaks once per layer."""

    def __init__(self, num_experts: int, num_selected_experts: int):
        self._threshold = collapse_threshold(num_experts, num_selected_experts)
        self._num_experts = num_experts
        self._recent: dict[str, collections.deque[np.ndarray]] = {}
        self._told: set[str] = set()

    def observe(self, step: int, loads: Mapping[str, np.ndarray]) -> list[str]:
        """Takes the loads [E] of one step by layer; returns warnings, one line each, usually none."""
        warnings = []
        for layer, load in loads.items():
            recent = self._recent.setdefault(layer, collections.deque(maxlen=WINDOW_STEPS))
            recent.append(np.asarray(load))
            if layer in self._told or len(recent) < WINDOW_STEPS:
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

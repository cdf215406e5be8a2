# SPDX-License-Identifier: Apache-2.0
"""From what a step computes to what is recorded: shares instead of sums, and the routers' derived
numbers.

Per sparse layer, under `router/<layer path>/`: `expert_load` [E] (share of assignments asked for
per expert), `router_entropy` (nats, mean over tokens), `effective_experts` (exp of the load's
entropy), `dead_experts`, `first_choice_dropped` and `second_choice_dropped` (shares),
`auxiliary_loss` and `router_z_loss` raw, and `…_weighted`: the layer's part of the loss, so that
the parts add up to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kcmoe.config.training import LossConfig
from kcmoe.training.health import dead_experts, effective_experts

Values = dict[str, Any]

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
    """What to record of one step, given the metrics of `step.make_update` on the host."""
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


def speed(step_s: float, tokens: int, flops: float) -> Values:
    """Speed of a step of `step_s` seconds; `tokens` are positions, padding included (see
    flops.py)."""
    return {
        "step_s": step_s,
        "tokens_per_s": tokens / step_s,
        "model_flops_per_s": flops / step_s,
    }

# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules as products of named factors, as T5X writes them.

t5x@cc342d4:t5x/utils.py::create_learning_rate_scheduler. "constant * rsqrt_decay" is pretraining,
"constant" fine-tuning. WARMUP_STEPS only has an effect in the factors that name it: with plain "constant",
as in T5X's own MoE fine-tuning, there is no warm-up whatever it is set to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from kcmoe.config.training import ScheduleConfig

MIN_LEARNING_RATE = 1e-8

# name, as in `config.training.FACTORS` -> factor(step, config), what the learning rate is multiplied by.
FACTORS: dict[str, Callable[[Array, Any], Array | float]] = {
    "constant": lambda step, c: c.learning_rate,
    "linear_warmup": lambda step, c: jnp.minimum(1.0, step / c.warmup_steps),
    "linear_decay": lambda step, c: (
        c.learning_rate
        * jnp.minimum(step / c.warmup_steps, 1.0 + c.decay_factor * (c.warmup_steps - step))
    ),
    "rsqrt_decay": lambda step, c: 1.0 / jnp.sqrt(jnp.maximum(step, c.warmup_steps)),
    "rsqrt_normalized_decay": lambda step, c: (
        jnp.sqrt(c.warmup_steps) / jnp.sqrt(jnp.maximum(step, c.warmup_steps))
    ),
    "decay_every": lambda step, c: c.decay_factor ** (step // c.steps_per_decay),
    "cosine_decay": lambda step, c: _cosine(
        jnp.maximum(0.0, step - c.warmup_steps) / c.steps_per_cycle
    ),
    # Ours, not T5X's: it ends at zero wherever the run ends.
    "linear_cooldown": lambda step, c: jnp.clip(
        (c.train_steps - step) / c.cooldown_steps, 0.0, 1.0
    ),
}


def _cosine(cycles: Array) -> Array:
    """From 1 to 0 in each cycle, then 1 again."""
    return jnp.maximum(0.0, 0.5 * (1.0 + jnp.cos(jnp.pi * (cycles % 1.0))))


def learning_rate(step: Array | int, config: ScheduleConfig) -> Array:
    """float32 scalar: the product of the factors at `step`, at least 1e-8."""
    at = jnp.maximum(0, jnp.asarray(step)).astype(jnp.float32)
    rate = jnp.ones((), jnp.float32)
    for name in config.names:
        rate = rate * FACTORS[name](at, config)
    return jnp.maximum(rate, MIN_LEARNING_RATE)

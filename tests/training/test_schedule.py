# SPDX-License-Identifier: Apache-2.0
"""Learning rates at steps that matter."""

from __future__ import annotations

import math

import pytest

from kcmoe.config import gin_files
from kcmoe.config.training import FACTORS, ScheduleConfig
from kcmoe.errors import UserError
from kcmoe.training.schedule import learning_rate


@pytest.mark.parametrize(
    ("factors", "step", "expected"),
    [
        ("constant * rsqrt_decay", 0, 0.01),
        ("constant * rsqrt_decay", 10_000, 0.01),
        ("constant * rsqrt_decay", 1_000_000, 0.001),
        ("constant", 7, 1.0),
        ("constant * linear_warmup", 2_500, 0.25),
        ("constant * linear_warmup", 0, 1e-8),  # never exactly zero
        ("constant * rsqrt_normalized_decay", 40_000, 0.5),
        ("linear_decay", 2_500, 0.25),
        ("linear_decay", 10_010, 0.95),
        ("linear_decay", 90_000, 1e-8),
        ("constant * decay_every", 19_999, 0.5**0),
        ("constant * decay_every", 45_000, 0.005**2),
        ("constant * cosine_decay", 10_000, 1.0),
        ("constant * cosine_decay", 35_000, 0.5),
        ("constant * cosine_decay", 59_000, 0.5 * (1 + math.cos(math.pi * 0.98))),
        ("constant * cosine_decay", 60_000, 1.0),  # the next cycle
        ("constant * linear_cooldown", 60_000, 1.0),
        ("constant * linear_cooldown", 85_000, 0.375),
        ("constant * linear_cooldown", 99_999, 1 / 40_000),
    ],
)
def test_rates(factors, step, expected):
    config = ScheduleConfig(
        factors=factors,
        learning_rate=1.0,
        warmup_steps=10_000,
        decay_factor=0.005,
        steps_per_decay=20_000,
        steps_per_cycle=50_000,
        cooldown_steps=40_000,
        train_steps=100_000,
    )
    config.check()
    assert float(learning_rate(step, config)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.t5x
@pytest.mark.parametrize(
    "factors",
    [
        f if f == "linear_decay" else f"constant * {f}"
        for f in FACTORS
        if f != "linear_cooldown"  # ours alone
    ],
)
def test_every_factor_is_that_of_t5x(factors):
    utils = pytest.importorskip("t5x.utils", reason="T5X is not installed")
    theirs = utils.create_learning_rate_scheduler(
        factors=factors,
        base_learning_rate=0.3,
        warmup_steps=100,
        decay_factor=0.005,
        steps_per_decay=70,
        steps_per_cycle=150,
    )
    config = ScheduleConfig(
        factors=factors,
        learning_rate=0.3,
        warmup_steps=100,
        decay_factor=0.005,
        steps_per_decay=70,
        steps_per_cycle=150,
    )
    for step in (0, 1, 69, 70, 99, 100, 101, 175, 249, 250, 1_000):
        assert float(learning_rate(step, config)) == pytest.approx(float(theirs(step)), rel=1e-6)


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ("constant * cosine_decay", "'cosine_decay', which needs STEPS_PER_CYCLE"),
        ("constant * linear_decay", "leave those out"),
    ],
)
def test_factors_that_lack_something_or_do_not_go_together(factors, words):
    text = [
        f"LEARNING_RATE_FACTORS={factors!r}",
        "LEARNING_RATE=1",
        "WARMUP_STEPS=5",
        "DECAY_FACTOR=0.5",
    ]
    with pytest.raises(UserError, match=words):
        ScheduleConfig.from_macros(gin_files.parse([], text))


def test_unknown_factor_names_the_nearest():
    text = ["LEARNING_RATE_FACTORS='constant * rsqrt_decey'", "LEARNING_RATE=1", "WARMUP_STEPS=5"]
    with pytest.raises(UserError, match="rsqrt_decay"):
        ScheduleConfig.from_macros(gin_files.parse([], text))

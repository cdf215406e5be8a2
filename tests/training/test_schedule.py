# SPDX-License-Identifier: Apache-2.0
"""Learning rates at steps that matter."""

from __future__ import annotations

import pytest

from kcmoe.config import gin_files
from kcmoe.config.training import ScheduleConfig
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
    ],
)
def test_rates(factors, step, expected):
    config = ScheduleConfig(factors=factors, learning_rate=1.0, warmup_steps=10_000)
    assert float(learning_rate(step, config)) == pytest.approx(expected, rel=1e-6)


def test_unknown_factor_names_the_nearest():
    text = ["LEARNING_RATE_FACTORS='constant * rsqrt_decey'", "LEARNING_RATE=1", "WARMUP_STEPS=5"]
    with pytest.raises(UserError, match="rsqrt_decay"):
        ScheduleConfig.from_macros(gin_files.parse([], text))

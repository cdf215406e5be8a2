# SPDX-License-Identifier: Apache-2.0
"""T5X casts the step to float32 where it restores with a dtype, so checkpoints hold it both ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kcmoe import checkpoint
from kcmoe.checkpoint import checksums
from kcmoe.errors import UserError


@pytest.fixture
def as_t5x_writes_it(
    write: Callable[..., Path], new_state: Callable[..., dict[str, np.ndarray]]
) -> Callable[[float, str], Path]:
    def writer(step: float, format: str) -> Path:
        path = write({**new_state(), "state/step": np.asarray(step, np.float32)}, format)
        (path / checksums.NAME).unlink()  # T5X leaves none
        return path

    return writer


@pytest.mark.parametrize("format", ["t5x_orbax", "t5x_legacy"])
def test_a_step_in_float32_is_read_as_a_whole_number(
    format: str,
    as_t5x_writes_it: Callable[[float, str], Path],
    new_state: Callable[..., dict[str, np.ndarray]],
) -> None:
    path = as_t5x_writes_it(1_000_003.0, format)
    assert checkpoint.open_checkpoint(path).step == 1_000_003
    step = checkpoint.restore(path, new_state())["state/step"]
    assert (step.dtype, int(step)) == (np.int32, 1_000_003)


@pytest.mark.parametrize("step", [7.5, np.inf, np.nan])
def test_what_is_no_whole_number_is_damage(
    step: float, as_t5x_writes_it: Callable[[float, str], Path]
) -> None:
    path = as_t5x_writes_it(step, "t5x_orbax")
    with pytest.raises(UserError, match=rf"state/step: {step} is no whole number of steps"):
        checkpoint.open_checkpoint(path).read("state/step")

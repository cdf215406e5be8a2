# SPDX-License-Identifier: Apache-2.0
"""Saves that are killed, meet a full disk or follow an earlier one; and the removal of old ones."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kcmoe import checkpoint
from kcmoe.checkpoint.storage import step_of
from kcmoe.errors import UserError
from kcmoe.io import durable

State = dict[str, np.ndarray]

# Saves one step after another; every value of step N's state is N.
SAVER = """
import resource, sys
import numpy as np
from kcmoe.checkpoint.writing import save
from kcmoe.errors import UserError

def state(step):
    return {
        "state/step": np.asarray(step, np.int32),
        **{f"target/layers_{i}": np.full((64, 512), step, np.float32) for i in range(10)},
        "target/noise": np.random.default_rng(step).normal(size=(64, 1024)).astype(np.float32),
    }

folder, first, last, limit = sys.argv[1], *map(int, sys.argv[2:5])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for step in range(first, last):
    try:
        save(folder, step, state(step), {"position.json": str(step).encode()})
    except UserError as error:
        sys.exit(str(error))
    print(step, flush=True)
"""


def start_saver(folder: Path, first: int, last: int, limit: int = 0) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    arguments = [str(folder), str(first), str(last), str(limit)]
    return subprocess.Popen(
        [sys.executable, "-c", SAVER, *arguments],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_kill_at_any_moment_leaves_the_last_finished_save(tmp_path: Path) -> None:
    rng, announced = random.Random(0), 0
    for _ in range(6):
        process = start_saver(tmp_path, announced + 1, announced + 1000)
        assert process.stdout is not None
        announced = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        announced = int(rest.split("\n")[-2]) if "\n" in rest else announced
        newest = checkpoint.latest(tmp_path)
        assert newest is not None
        reader = checkpoint.open_checkpoint(newest)
        # Saved, and killed before it could say so: one step further than announced at most.
        assert announced <= reader.step <= announced + 1
        announced = reader.step
        assert reader.extras() == {"position.json": str(announced).encode()}
        for path, values in reader.read_all(reader.tree()):
            assert isinstance(values, np.ndarray), path
            assert path == "target/noise" or np.all(values == announced)
        for older in checkpoint.all_checkpoints(tmp_path):
            checkpoint.open_checkpoint(older).tree()
    checkpoint.clean(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        p.name for p in checkpoint.all_checkpoints(tmp_path)
    }


def test_a_full_disk_is_one_clear_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = start_saver(tmp_path, 1, 2)
    assert done.communicate()[0] == "1\n"
    # A limit on the size of a file refuses a write just as a full disk does, and needs no mount.
    process = start_saver(tmp_path, 2, 3, limit=100_000)
    output, errors = process.communicate()
    assert (output, process.returncode) == ("", 1)
    assert errors.startswith(f"no space left to write {tmp_path}/checkpoint_2")
    assert len(errors.strip().split("\n")) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_1"]
    assert checkpoint.open_checkpoint(tmp_path / "checkpoint_1").step == 1


def test_a_folder_that_cannot_be_written(state: State, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint.save(tmp_path / "file/run", 7, state)


def test_a_failure_of_ours_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        with durable.staged(tmp_path / "new/run/checkpoint_1") as folder:
            (folder / "part").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_names_that_only_a_disk_understands(
    state: State, tmp_path: Path, same: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "내 모델 100% #1?").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    path = checkpoint.save("내 모델 100% #1?", 7, state)
    reader = checkpoint.open_checkpoint(path)
    same(state, dict(reader.read_all(reader.tree())))
    assert checkpoint.latest(tmp_path / "real") == tmp_path / "real/checkpoint_7"


@pytest.mark.parametrize("exchange", [True, False])
def test_a_save_of_the_same_step_replaces_the_earlier_one(
    exchange: bool,
    new_state: Callable[..., State],
    tmp_path: Path,
    same: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not exchange:  # as on a file system without it
        monkeypatch.setattr(durable, "_exchanged", lambda first, second: False)
    checkpoint.save(tmp_path, 7, new_state(seed=1), {"a.json": b"1"})
    checkpoint.save(tmp_path, 7, new_state(seed=2), {"b.json": b"2"})
    reader = checkpoint.open_checkpoint(tmp_path / "checkpoint_7")
    same(new_state(seed=2), dict(reader.read_all(reader.tree())))
    assert reader.extras() == {"b.json": b"2"}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_7"]


@pytest.mark.parametrize("name", ["state", "checkpoint", "../x", "kcmoe.json", "model.safetensors"])
def test_extras_cannot_take_the_place_of_other_files(
    name: str, state: State, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="cannot be an extra file"):
        checkpoint.save(tmp_path, 7, state, {name: b""})
    assert list(tmp_path.iterdir()) == []


def test_newest_and_removal_of_old_ones(new_state: Callable[..., State], tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "absent") is None
    for step in (2, 10, 9, 100):
        checkpoint.save(tmp_path, step, new_state(step))
    (tmp_path / "checkpoint_200").mkdir()
    (tmp_path / "checkpoint_300.orbax-checkpoint-tmp-5").mkdir()
    (tmp_path / "checkpoint_best").mkdir()
    steps = [step_of(path) for path in checkpoint.all_checkpoints(tmp_path)]
    assert steps == [2, 9, 10, 100]
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoint_100"
    assert checkpoint.remove_old(tmp_path, None) == []
    removed = checkpoint.remove_old(tmp_path, 1, protect=["checkpoint_9"])
    assert [path.name for path in removed] == ["checkpoint_2", "checkpoint_10"]
    (tmp_path / "checkpoint_9/PINNED").symlink_to("nowhere")
    assert checkpoint.remove_old(tmp_path, 1) == []
    assert [p.name for p in checkpoint.clean(tmp_path)] == ["checkpoint_300.orbax-checkpoint-tmp-5"]
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoint_100"
    with pytest.raises(ValueError, match="at least one"):
        checkpoint.remove_old(tmp_path, 0)


def test_saving_and_restoring_tiny_takes_about_a_second(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state: State = {"state/step": np.asarray(1, np.int32)}
    for layer in range(40):
        state[f"target/layers_{layer}/kernel"] = rng.normal(size=(300, 1200)).astype(np.float32)
        state[f"state/param_states/layers_{layer}/kernel/m"] = np.zeros(1, np.float32)
    assert sum(a.size for a in state.values()) > 14_000_000
    started_s = time.process_time()
    path = checkpoint.save(tmp_path, 1, state)
    saved_s = time.process_time() - started_s
    checkpoint.restore(path, state)
    restored_s = time.process_time() - started_s - saved_s
    assert saved_s < 5, saved_s
    assert restored_s < 3, restored_s

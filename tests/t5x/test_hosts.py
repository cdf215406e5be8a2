# SPDX-License-Identifier: Apache-2.0
"""T5X on two hosts, with real processes: one is lost, all go on, and the engine after them.

Each process is a host of two CPU devices that SLURM's variables tell of the other.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [("정말 재밌어요", 1), ("시간이 아까웠다", 0), ("배우들이 좋다", 1), ("지루하다", 0)] * 4
Load = Callable[[str], ModuleType]


def test_without_a_cluster_one_line_says_what_to_do(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kcmoe.errors import UserError

    monkeypatch.setattr(load("hosts").joining, "place", lambda *asked: None)
    with pytest.raises(UserError, match=r"neither a TPU pod nor SLURM here.*KCMOE_COORDINATOR"):
        load("hosts").join()


def test_the_others_are_told_of_an_error_and_of_an_end(load: Load) -> None:
    hosts = load("hosts")
    told: list[object] = []
    for error in (ValueError("no"), None):
        hosts._run.push(lambda kind, error, trace: told.append(error))
        hosts.fail(error) if error else hosts._run.close()
        hosts._run.close()
    assert [str(one) for one in told] == ["no", "None"]


class Pair:
    """Two processes of `python -m MODULE`, as two hosts."""

    def __init__(self, module: str, arguments: Sequence[str], macros: dict[str, Any], logs: Path):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        bindings = [f"--gin.{name}={value!r}" for name, value in macros.items()]
        logs.mkdir(exist_ok=True)
        self.logs = [logs / f"{module}-{host}.log" for host in range(2)]
        self.processes = []
        for host in range(2):
            slurm = {"NTASKS": 2, "PROCID": host, "LOCALID": host, "STEP_NUM_NODES": 2}
            environment = {
                **os.environ,
                **{f"SLURM_{name}": str(value) for name, value in slurm.items()},
                "SLURM_JOB_ID": "7",
                "SLURM_STEP_NODELIST": "localhost",
                "KCMOE_DISTRIBUTED": "1",
                "KCMOE_HOST_TIMEOUT": "20",
                "JAX_COORDINATOR_PORT": str(port),
                "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
                "JAX_NUMPY_DTYPE_PROMOTION": "standard",
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                "TF_CPP_MIN_LOG_LEVEL": "3",
            }
            with self.logs[host].open("w") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", module, *arguments, *bindings],
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            self.processes.append(process)

    def wait(self) -> list[int]:
        return [process.wait(timeout=900) for process in self.processes]

    def text(self, host: int) -> str:
        return self.logs[host].read_text("utf-8", "replace")

    def succeeded(self) -> None:
        assert self.wait() == [0, 0], self.text(0)[-2000:] + self.text(1)[-2000:]

    def end(self) -> None:
        for process in self.processes:
            process.kill()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    started: list[Pair] = []

    def starter(module: str, *arguments: str, **macros: Any) -> Pair:
        started.append(Pair(module, arguments, macros, tmp_path / "logs"))
        return started[-1]

    yield starter
    for one in started:
        one.end()


def await_file(path: Path, pair: Pair) -> None:
    end = time.monotonic() + 600
    while not path.exists():
        assert all(process.poll() is None for process in pair.processes), pair.text(0)[-2000:]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.mark.t5x
@pytest.mark.slow
def test_two_hosts_train_are_killed_go_on_evaluate_infer_and_the_engine_goes_on(
    pair: Callable[..., Pair], python_m: Callable[..., Any], small: dict[str, int], tmp_path: Path
) -> None:
    rows = [f"{text} {i}\t{label}" for i, (text, label) in enumerate(ROWS)]
    (tmp_path / "reviews.tsv").write_text("\n".join(["document\tlabel", *rows]) + "\n", "utf-8")
    run = "--gin_file=configs/runs/finetune_sample_reviews.gin"
    macros = {
        **small,
        "BATCH_SIZE": 8,
        "EVAL_PERIOD": 3,
        "EVAL_STEPS": 1,
        "CHECKPOINT_PERIOD": 3,
        "TASK_VALIDATION_FILES": str(tmp_path / "reviews.tsv"),
        "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 4},
    }
    train = {
        **macros,
        "MODEL_DIR": str(tmp_path / "run"),
        "INITIAL_CHECKPOINT_PATH": None,
    }

    # One is killed: the other ends by itself, and says which.
    first = pair("t5x.train", run, "--gin_file=configs/t5x/train.gin", **train, TRAIN_STEPS=3000)
    await_file(tmp_path / "run/checkpoint_3", first)
    first.processes[1].send_signal(signal.SIGKILL)
    killed_s = time.monotonic()
    assert first.processes[0].wait(timeout=300) != 0
    assert time.monotonic() - killed_s < 90
    assert "kcmoe: host 1 (" in first.text(0)
    assert "goes on from the newest checkpoint" in first.text(0)

    # Started again, both go on from the newest checkpoint.
    saved = max(
        int(p.name[11:]) for p in (tmp_path / "run").glob("checkpoint_*") if p.name[11:].isdigit()
    )
    again = pair(
        "t5x.train", run, "--gin_file=configs/t5x/train.gin", **train, TRAIN_STEPS=saved + 3
    )
    again.succeeded()
    assert f"checkpoint_{saved}" in again.text(0)
    newest = tmp_path / f"run/checkpoint_{saved + 3}"
    assert newest.is_dir()

    # Both evaluate and infer.
    place = {**macros, "CHECKPOINT_PATH": str(newest), "EVAL_SPLIT": "validation"}
    scored = pair(
        "t5x.eval",
        *(run, "--gin_file=configs/t5x/evaluate.gin"),
        **place,
        EVAL_OUTPUT_DIR=str(tmp_path / "eval"),
    )
    scored.succeeded()
    (answers,) = (tmp_path / "eval/inference_eval").glob("sample_reviews-[0-9]*.jsonl")
    targets = [json.loads(line)["target"] for line in answers.read_text("utf-8").splitlines()]
    assert targets == [label for _, label in ROWS]
    inferred = pair(
        "t5x.infer",
        *(run, "--gin_file=configs/t5x/infer.gin"),
        **place,
        INFER_OUTPUT_DIR=str(tmp_path / "infer"),
    )
    inferred.succeeded()
    (answers,) = (tmp_path / "infer").glob("sample_reviews-predict.jsonl-00000-of-00001")
    prompts = [json.loads(line)["inputs"] for line in answers.read_text("utf-8").splitlines()]
    assert len(prompts) == len(ROWS)

    # And the engine goes on alone from what both saved.
    ours = {"MODEL_DIR": str(tmp_path / "ours"), "INITIAL_CHECKPOINT_PATH": str(newest)}
    done = python_m("kcmoe", "train", run, **macros, **ours, TRAIN_STEPS=saved + 4)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"step {saved + 4}" in done.stderr + done.stdout

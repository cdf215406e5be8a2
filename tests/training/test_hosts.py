# SPDX-License-Identifier: Apache-2.0
"""The toy run on two processes of one device: the numbers of one process of two, one stop for both.

`benchmarks/hosts.py` does the same with the real command, in more ways, and kills processes at random.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

from kcmoe import checkpoint as checkpoints
from kcmoe.training.loop import train

# Little to compile. Dropout is there to draw its numbers alike on any number of processes.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
SMALL = {
    **{"NUM_DECODER_SPARSE_LAYERS": 0, "NUM_EXPERT_PARTITIONS": 2},
    **{"CHECKPOINT_PERIOD": 3, "EVAL_PERIOD": 0},
}

PROGRAM = """
import dataclasses, importlib.util, json, os, signal, sys
from pathlib import Path
index, port, base, small = int(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
spec = importlib.util.spec_from_file_location("toy", sys.argv[5])
toy = importlib.util.module_from_spec(spec)
sys.modules["toy"] = toy
spec.loader.exec_module(toy)

import jax
jax.config.update("jax_compilation_cache_dir", f"{sys.argv[6]}/compiled{index}")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
from kcmoe.hosts import joining
from kcmoe.training.loop import train

class Watched(toy.ToyBatches):
    def iterate(self, start_step, stop_step, workers):
        for step in range(start_step, stop_step):
            if step == 2 and index == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            batch = self.at(step)
            assert len(batch["encoder_input_tokens"]) == 4  # of 8: one's own rows only
            yield batch

with joining.joined(joining.Member(f"127.0.0.1:{port}", 2, index)) as hosts:
    inputs = dataclasses.replace(toy.inputs(), held_out=())
    watched = dataclasses.replace(inputs, batches=Watched(8))
    settings = toy.settings(base + "/stopped", **small)
    stopped = train(settings, watched, hosts=hosts)
    print("stopped", stopped.step, stopped.stopped_by, flush=True)
    resumed = train(settings, inputs, hosts=hosts)
    print("resumed", resumed.step, resumed.stopped_by, flush=True)
    whole = train(toy.settings(base + "/whole", **small), inputs, hosts=hosts)
    print("whole", whole.step, flush=True)
"""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["disk", "bucket"])
def base(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bucket: Path
) -> Path:
    """What two processes left, on a disk or in a bucket, and what each printed in 0.txt and 1.txt."""
    import json

    compiled = tmp_path_factory.mktemp("hosts")
    folder, address = compiled, str(compiled)
    if request.param == "bucket":
        folder, address = bucket / "hosts", "gs://bucket/hosts"
        folder.mkdir()
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    toy_file = str(Path(__file__).with_name("conftest.py"))
    processes = []
    for index in range(2):
        command = [sys.executable, "-c", PROGRAM, str(index), str(port), address]
        processes.append(
            subprocess.Popen(
                [*command, json.dumps(SMALL), toy_file, str(compiled)],
                env={
                    **os.environ,
                    "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count=1",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    for index, process in enumerate(processes):
        text = process.communicate(timeout=600)[0]
        assert process.returncode == 0, text
        (folder / f"{index}.txt").write_text(text, "utf-8")
    return folder


def leaves(checkpoint: Path) -> dict[str, np.ndarray]:
    reader = checkpoints.open_checkpoint(checkpoint)
    return {path: reader.read(path) for path in reader.tree()}


def test_a_signal_at_one_host_stops_all_at_the_same_step(base: Path) -> None:
    for index in range(2):
        lines = (base / f"{index}.txt").read_text("utf-8").splitlines()
        said = next(line for line in lines if line.startswith("stopped "))
        assert said.startswith("stopped 4 SIGTERM"), (
            said
        )  # the votes of a step are read at the next
        assert ("at host 1 (" in said) == (index == 0)
        assert "resumed 6 " in lines
        assert "whole 6" in lines
    first, second = ((base / f"{index}.txt").read_text("utf-8") for index in range(2))
    assert "data 1 x expert 2" in first
    assert "step 6/6" in first
    assert "step 6/6" not in second  # one of them records and shows


def test_stopped_and_resumed_is_never_stopped(base: Path, toy: ModuleType) -> None:
    stopped, whole = (leaves(base / name / "checkpoint_6") for name in ("stopped", "whole"))
    assert stopped.keys() == whole.keys()
    assert all(stopped[path].tobytes() == whole[path].tobytes() for path in whole)
    losses = [[r["loss"] for r in toy.records(base / name)] for name in ("stopped", "whole")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_one_process_has_the_same_losses_and_goes_on_from_there(
    base: Path, toy: ModuleType, tmp_path: Path
) -> None:
    """From the checkpoint that two processes wrote at step 3."""
    import shutil

    shutil.copytree(base / "whole" / "checkpoint_3", tmp_path / "checkpoint_3")
    inputs = dataclasses.replace(toy.inputs(), held_out=())
    outcome = train(toy.settings(tmp_path, **SMALL), inputs, say=lambda line: None)
    assert outcome.step == 6
    assert outcome.state.step.sharding.num_devices == jax.local_device_count() == 2
    both = [{r["step"]: r["loss"] for r in toy.records(f)} for f in (base / "whole", tmp_path)]
    for step in (4, 5, 6):
        assert both[1][step] == pytest.approx(both[0][step], rel=1e-6)

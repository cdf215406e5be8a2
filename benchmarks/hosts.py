# SPDX-License-Identifier: Apache-2.0
"""Training on many hosts, played by processes of this machine: the same numbers, and hosts that die.

  python benchmarks/hosts.py same                 # 1 x 4, 2 x 2 and 4 x 1 devices: losses and checkpoints
  python benchmarks/hosts.py kills --rounds=20    # one of two processes is killed at a random moment
  python benchmarks/hosts.py kills --rounds=5 --layout=4x1 --signal=TERM

A round of `kills` starts a run, sends one process of it the signal, and starts it again. It fails if the
others do not end in time, if a checkpoint that has its name is not whole, or if the last one or a record
differs in a bit from those of a run that nobody disturbed. A tiny model on the sample comments; CPU
only, gloo over the loopback interface.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from kcmoe import checkpoint as checkpoints

HOST_TIMEOUT_S = 30  # a busy machine may keep a process waiting for some seconds
SETTINGS = {
    **{"NUM_ENCODER_LAYERS": 1, "NUM_DECODER_LAYERS": 1, "NUM_ENCODER_SPARSE_LAYERS": 1},
    **{"NUM_DECODER_SPARSE_LAYERS": 0, "NUM_HEADS": 2, "HEAD_DIM": 8, "EMBED_DIM": 16},
    **{"MLP_DIM": 32, "EXPERT_MLP_DIM": 32, "NUM_EXPERTS": 4, "NUM_EXPERT_PARTITIONS": 2},
    **{"GROUP_SIZE": 64, "TASK_FEATURE_LENGTHS": {"inputs": 24, "targets": 10}},
    **{"BATCH_SIZE": 8, "DROPOUT_RATE": 0.1, "CHECKPOINTS_TO_KEEP": None},
    **{"TRAIN_STEPS": 60, "CHECKPOINT_PERIOD": 4, "EVAL_PERIOD": 12, "EVAL_STEPS": 1},
}
# What XLA does to make steps fast takes most of the time here.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
TIMES = ("step_s", "tokens_per_s", "model_flops_per_s")


class Fault(Exception):
    """What a round found."""


def start(folder: Path, layout: str, **changes: Any) -> list[subprocess.Popen[bytes]]:
    """Begins a run of "processes x devices"; what each prints goes to a file beside `folder`."""
    count, devices = map(int, layout.split("x"))
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{one.getsockname()[1]}"
    command = [
        sys.executable,
        "-m",
        "kcmoe",
        "train",
        "--gin_file=configs/runs/pretrain_sample.gin",
    ]
    settings = {**SETTINGS, "MODEL_DIR": str(folder), **changes}
    command += [f"--gin.{name}={value!r}" for name, value in settings.items()]
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
        "KCMOE_CACHE_DIR": str(folder.parent / "cache"),
        "KCMOE_HOST_TIMEOUT": str(HOST_TIMEOUT_S),
    }
    processes = []
    for index in range(count):
        place = ["--coordinator", coordinator, "--num_processes", str(count), "--process_id"]
        with open(printed(folder, index), "wb") as output:
            processes.append(
                subprocess.Popen(
                    [*command, *([*place, str(index)] if count > 1 else [])],
                    env=env,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def printed(folder: Path, index: int) -> Path:
    """Where process `index` prints to."""
    return folder.with_name(f"{folder.name}.{index}.txt")


def finish(folder: Path, processes: list[subprocess.Popen[bytes]], expected: int = 0) -> None:
    """Waits for all, and raises `Fault` unless each ends with status `expected`."""
    for index, process in enumerate(processes):
        status = process.wait(600)
        if status != expected:
            text = printed(folder, index).read_text("utf-8", errors="replace")
            raise Fault(f"process {index} ended with status {status}:\n{text[-3000:]}")


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, without times."""
    return [
        {name: value for name, value in json.loads(line).items() if name not in TIMES}
        for line in lines_of(folder)
    ]


def lines_of(folder: Path) -> list[str]:
    """Lines of the records, none where there is no file yet."""
    file = folder / "metrics.jsonl"
    return file.read_text("utf-8").splitlines() if file.exists() else []


def leaves(checkpoint: Path) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint, their checksums compared."""
    reader = checkpoints.open_checkpoint(checkpoint)
    return {path: reader.read(path) for path in reader.tree()}


def compare(folder: Path, whole: Path) -> None:
    """Raises `Fault` unless both runs ended with the same bits and left the same records."""
    one, other = (leaves(checkpoints.latest(each)) for each in (folder, whole))  # type: ignore[arg-type]
    differing = [path for path in other if one[path].tobytes() != other[path].tobytes()]
    if differing or one.keys() != other.keys():
        raise Fault(f"{len(differing)} leaves differ, {differing[:3]}")
    if records(folder) != records(whole):
        raise Fault("the records differ")


def same(base: Path) -> None:
    """Runs the same training on the same four devices of one, two and four processes."""
    found = {}
    for layout in ("1x4", "2x2", "4x1"):
        folder, begun_s = base / layout, time.monotonic()
        finish(folder, start(folder, layout, TRAIN_STEPS=12, NUM_EXPERT_PARTITIONS=4))
        found[layout] = records(folder), leaves(checkpoints.latest(folder))  # type: ignore[arg-type]
        print(f"{layout}: {time.monotonic() - begun_s:.0f} s", flush=True)
    first_records, first_leaves = found["1x4"]
    for layout, (these, arrays) in found.items():
        far = max(
            abs(float(value) / float(record[name]) - 1)
            for record, this in zip(first_records, these, strict=True)
            for name, value in this.items()
            if name in ("loss", "cross_ent_loss")
        )
        equal = sum(arrays[path].tobytes() == x.tobytes() for path, x in first_leaves.items())
        print(
            f"{layout} against 1x4: losses differ by {far:.1e} at most; {equal} of {len(arrays)} "
            "leaves are equal bit for bit",
            flush=True,
        )
        if far > 1e-6:
            raise Fault("losses differ")


def kills(base: Path, rounds: int, layout: str, name: str, seed: int) -> None:
    """Sends one process of a run a signal at a random moment, again and again."""
    rng, number = random.Random(seed), getattr(signal, f"SIG{name}")
    whole, longest_s = base / "whole", 0.0
    if not (whole / f"checkpoint_{SETTINGS['TRAIN_STEPS']}").exists():
        finish(whole, start(whole, layout))
    for turn in range(rounds):
        folder = base / f"turn{turn}"
        processes = start(folder, layout)
        victim, after = rng.randrange(len(processes)), rng.randrange(-1, len(records(whole)))
        while len(lines_of(folder)) <= after and processes[victim].poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 5 if after < 0 else 0.3))
        processes[victim].send_signal(number)
        sent_s = time.monotonic()
        limit_s = HOST_TIMEOUT_S + 20 if name == "KILL" else 600
        others = [process for i, process in enumerate(processes) if i != victim]
        try:
            statuses = [process.wait(limit_s) for process in others]
        except subprocess.TimeoutExpired:
            raise Fault(f"turn {turn}: still running {limit_s} s after process {victim}") from None
        took_s = time.monotonic() - sent_s
        processes[victim].wait()
        longest_s = max(longest_s, took_s)
        begun = bool(lines_of(folder))  # before, they may not have met yet
        texts = [
            printed(folder, i).read_text("utf-8") for i in range(len(processes)) if i != victim
        ]
        if processes[victim].returncode != -number and any(statuses):
            text = printed(folder, victim).read_text("utf-8")
            raise Fault(
                f"turn {turn}: process {victim} had ended before:\n{text[-3000:]}\n{texts[0][-3000:]}"
            )
        kept = (
            [path.name for path in checkpoints.all_checkpoints(folder)] if folder.exists() else []
        )
        for checkpoint in kept:
            leaves(folder / checkpoint)  # whole, or this raises
        said = sum(f"host {victim} (" in text and "was lost" in text for text in texts)
        if name == "KILL" and any(statuses) and said < sum(map(bool, statuses)) and begun:
            raise Fault(f"turn {turn}: nobody named process {victim}:\n{texts[0][-3000:]}")
        print(
            f"turn {turn}: SIG{name} to process {victim} after record {after}; the others ended with "
            f"{statuses} {took_s:.1f} s later, {said} named it; newest {(kept or ['none'])[-1]}",
            flush=True,
        )
        finish(folder, start(folder, layout))
        compare(folder, whole)
        shutil.rmtree(folder)
    print(
        f"{rounds} rounds, each ended like the run nobody disturbed; longest end {longest_s:.1f} s"
    )


def main() -> int:
    """Returns 0 where all is as it should be, 1 otherwise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("same", "kills"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layout", default="2x2", help="processes x devices of each")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept afterwards; default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        base = args.folder or Path(temporary)
        base.mkdir(parents=True, exist_ok=True)
        try:
            if args.what == "same":
                same(base)
            else:
                kills(base, args.rounds, args.layout, args.signal, args.seed)
        except Fault as fault:
            print(f"FAULT: {fault}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

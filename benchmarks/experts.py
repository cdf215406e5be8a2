# SPDX-License-Identifier: Apache-2.0
"""Experts against none at equal FLOPs per step: pretraining loss and NSMC, several seeds.

    python benchmarks/experts.py --data=DATA_DIR --output=FOLDER [--seeds=3] [--steps=7000]
    python benchmarks/experts.py --data=DATA_DIR --output=FOLDER --trunk=tiny --steps=1500

The dense arm's feed-forward layers are wider, by what each token's two experts compute, so that a step
multiplies as much in every arm; routers cost the sparse ones less than a hundredth more. Every run is
`kcmoe train` at size tiny, first on the comments, then on NSMC from there. A run that is there is not made
again, and one that was cut off goes on, so the command may be stopped and repeated. Two cores take about
three quarters of an hour for a run, its fine-tuning included.

From nothing a model of this size learns words alone for its first 5,000 steps, whatever its feed-forward
layers are. With --trunk embeddings, attention, norms and head begin as in that checkpoint, every feed-forward
layer and router of every arm at random: what is compared is then learnt within some hundred steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kcmoe.checkpoint import shipped
from kcmoe.checkpoint.reading import open_checkpoint, parameter_sources
from kcmoe.checkpoint.writing import write_derived
from kcmoe.io import resources

ARMS = {
    "16 experts": (),
    # 2 of 8 layers have 2 experts of 352 beside their own 352: 12 x 352 = 8 x 528.
    "dense": ("NUM_ENCODER_SPARSE_LAYERS=0", "NUM_DECODER_SPARSE_LAYERS=0", "MLP_DIM=528"),
    "64 experts": ("NUM_EXPERTS=64",),
    "4 experts": ("NUM_EXPERTS=4",),
}


def _train(run: Path, recipe: str, settings: Sequence[str]) -> list[dict]:
    """Runs `kcmoe train` unless it is done, and returns its records."""
    metrics = run / "metrics.jsonl"
    done = run / "done"
    if not done.exists():
        command = [sys.executable, "-m", "kcmoe", "train"]
        command += [f"--gin_file={resources.find(f'configs/runs/{recipe}')}"]
        command += [f"--gin.MODEL_DIR='{run}'", *(f"--gin.{each}" for each in settings)]
        run.mkdir(parents=True, exist_ok=True)
        with open(run / "train.log", "ab") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
        done.touch()
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def _begin(fresh: Path, trunk: str) -> str:
    """Writes `fresh` with all of `trunk` but feed-forward layers and routers, and returns where."""
    begun = fresh.parent / "begun" / fresh.name
    if begun.exists():
        return str(begun)
    reader, other = open_checkpoint(str(fresh)), open_checkpoint(shipped.resolve(trunk))
    here, there = parameter_sources(reader), parameter_sources(other)
    taken = [name for name in here if "mlp/" not in name and name in there]
    shapes = {name: reader.tree()[at] for name, at in here.items()}
    values = {
        name: np.asarray(other.read(there[name]) if name in taken else reader.read(here[name]))
        for name in here
    }
    leaves = ((name, value.astype(shapes[name].dtype)) for name, value in values.items())
    return str(write_derived(reader, begun, "safetensors", shapes, leaves, reader.recorded()))


def _last(records: list[dict], split: str, name: str) -> float:
    return next(each[name] for each in reversed(records) if each["split"] == split and name in each)


def measure(
    arm: str, seed: int, numbers: tuple[int, int], data: Path, output: Path, trunk: str | None
) -> dict[str, float]:
    """Pretrains and fine-tunes one model, for these `numbers` of steps.

    Returns:
      `pretraining`: cross-entropy of held-out comments (nats per target token) after the last step;
      `nsmc`: percent of held-out reviews labelled right; `dead`: the most experts of any layer that took less
      than a tenth of their share in the last records.
    """
    run = output / f"{arm.replace(' ', '_')}_{seed}"
    common = (f"DATA_DIR='{data}'", f"RANDOM_SEED={seed}", *ARMS[arm])
    steps, tuning_steps = numbers
    begun: tuple[str, ...] = ()
    if trunk:
        fresh = output / f"{run.name}_fresh"
        _train(fresh, "pretrain_tiny.gin", (*common, "TRAIN_STEPS=1", "EVAL_PERIOD=0"))
        begun = (f"INITIAL_CHECKPOINT_PATH='{_begin(fresh / 'checkpoint_1', trunk)}'",)
    pretraining = _train(
        run,
        "pretrain_tiny.gin",
        (
            *common,
            *begun,
            f"TRAIN_STEPS={steps}",
            "LEARNING_RATE_FACTORS='constant * rsqrt_decay * linear_cooldown'",
            f"COOLDOWN_STEPS={steps // 3}",
            "EVAL_STEPS=100",
        ),
    )
    tuning = _train(
        output / f"{run.name}_nsmc",
        "finetune_nsmc_tiny.gin",
        (
            *common,
            f"INITIAL_CHECKPOINT_PATH='{run}/checkpoint_{steps}'",
            f"FINETUNE_STEPS={tuning_steps}",
            "LEARNING_RATE_FACTORS='constant * linear_cooldown'",
            f"COOLDOWN_STEPS={7 * tuning_steps // 10}",
            "EVAL_STEPS=187",
        ),
    )
    loads = [
        value
        for record in pretraining[-50:]
        for name, value in record.items()
        if name.endswith("expert_load")
    ]
    return {
        "pretraining": _last(pretraining, "eval", "cross_ent_loss"),
        "nsmc": 100 * _last(tuning, "eval", "accuracy"),
        "dead": max((sum(x < 0.1 / len(load) for x in load) for load in loads), default=0),
    }


def main() -> None:
    """Trains what is missing and prints the table, after each seed again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, required=True, help="with comments/ and nsmc/")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7000, help="of pretraining")
    parser.add_argument("--tuning_steps", type=int, default=1000, help="of fine-tuning")
    parser.add_argument("--trunk", help="checkpoint that all but feed-forward layers begin from")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM")
    args = parser.parse_args()
    data, output = args.data.resolve(), args.output.resolve()
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in args.arms}
    for seed in range(args.seeds):
        for arm, found in results.items():
            found.append(
                measure(arm, seed, (args.steps, args.tuning_steps), data, output, args.trunk)
            )
            print(f"{arm}, seed {seed}: {found[-1]}", flush=True)
        print(
            "\n| model | pretraining, cross-entropy | NSMC, held-out accuracy | starved experts |"
        )
        print("|---|---|---|---|")
        for arm, found in results.items():
            cells = [arm]
            for name, digits in (("pretraining", 3), ("nsmc", 2)):
                values = [each[name] for each in found]
                spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
            cells.append(f"{max(each['dead'] for each in found)}")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

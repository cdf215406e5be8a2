# SPDX-License-Identifier: Apache-2.0
"""Experts against none at equal FLOPs per step: pretraining loss and NSMC, several seeds.

    python benchmarks/experts.py --data=DATA_DIR --output=FOLDER [--seeds=3] [--steps=7000]

The dense arm's feed-forward layers are wider, by what each token's two experts compute, so that a step
multiplies as much in every arm; routers cost the sparse ones less than a hundredth more. Every run is
`kcmoe train` at size tiny, first on the comments, then on NSMC from there. A run that is there is not made
again, and one that was cut off goes on, so the command may be stopped and repeated. Two cores take about
three quarters of an hour for a run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

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


def _last(records: list[dict], split: str, name: str) -> float:
    return next(each[name] for each in reversed(records) if each["split"] == split and name in each)


def measure(arm: str, seed: int, steps: int, data: Path, output: Path) -> dict[str, float]:
    """Pretrains and fine-tunes one model.

    Returns:
      `pretraining`: cross-entropy of held-out comments (nats per target token) after the last step;
      `nsmc`: percent of held-out reviews labelled right; `dead`: the most experts of any layer that took less
      than a tenth of their share in the last records.
    """
    run = output / f"{arm.replace(' ', '_')}_{seed}"
    common = (f"DATA_DIR='{data}'", f"RANDOM_SEED={seed}", *ARMS[arm])
    pretraining = _train(
        run,
        "pretrain_tiny.gin",
        (
            *common,
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
            "FINETUNE_STEPS=1000",
            "LEARNING_RATE_FACTORS='constant * linear_cooldown'",
            "COOLDOWN_STEPS=700",
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
    args = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(args.seeds):
        for arm, found in results.items():
            found.append(measure(arm, seed, args.steps, args.data.resolve(), args.output.resolve()))
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

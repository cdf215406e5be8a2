# SPDX-License-Identifier: Apache-2.0
"""`kcmoe bench train`: a training step of this engine, beside T5X + Flaxformer's where they are installed.

Each engine runs in a process of its own, compiles, warms up, and then waits; rounds of a few steps alternate
between them, so that a machine whose speed drifts is fair to both. The matrix-product peak of the machine is
measured between the rounds of the same run. T5X + Flaxformer run twice: as their own launcher starts them,
and with the memory settings of `kcmoe train`, so that those are not taken for the engine's merit.
"""

from __future__ import annotations

import functools
import statistics
import sys
from typing import TYPE_CHECKING, Any

from kcmoe.config.arguments import Parser, between
from kcmoe.model.cpu.memory import environments
from kcmoe.tools.bench import figures

if TYPE_CHECKING:
    from kcmoe.config.model import ModelConfig
    from kcmoe.tools.bench.worker import StepShape, Worker

_EPILOG = """\
examples:
  kcmoe bench train --size=tiny
  kcmoe bench train --size=mini --against=t5x --rounds=5
  kcmoe bench train --size=base --batch=8 --inputs=512 --targets=114 --rounds=2 --steps=1
"""


def main(argv: list[str]) -> int:
    """Runs `kcmoe bench train`; returns the exit status."""
    parser = Parser(
        prog="kcmoe bench train",
        description="speed of a training step on random packed batches",
        epilog=_EPILOG,
    )
    parser.add_argument("--size", default="tiny", help="a file of configs/sizes (default: tiny)")
    parser.add_argument(
        "--against",
        choices=("t5x",),
        help="measure T5X + Flaxformer in turn, as launched and with our memory settings "
        "(KCMOE_HUGE_PAGES=0 KCMOE_KEEP_MEMORY=0: only as launched)",
    )
    some = between(int, 1, 10**6)
    parser.add_argument("--rounds", type=some, default=5, help="rounds per engine (default: 5)")
    parser.add_argument("--steps", type=some, default=3, help="steps per round (default: 3)")
    parser.add_argument("--batch", type=some, default=32, help="rows (default: 32)")
    parser.add_argument("--inputs", type=some, default=128, help="input positions (default: 128)")
    parser.add_argument("--targets", type=some, default=32, help="target positions (default: 32)")
    parser.add_argument("--gin", action="append", default=[], metavar="NAME=VALUE", help="a macro")
    figures.add_outputs(parser)
    args = parser.parse_args(argv)
    if args.against == "t5x":
        from kcmoe.t5x import requirements

        requirements.check_t5x_is_here()

    from tqdm import tqdm

    from kcmoe.tools.bench.worker import StepShape, Worker, model_config

    shape = StepShape(args.size, args.batch, args.inputs, args.targets, tuple(args.gin))
    config = model_config(shape)  # refuses a bad size before any process starts
    say = functools.partial(print, file=sys.stderr, flush=True)
    say("compiling this engine's step")
    plain, ours = environments(training=True)
    workers = [Worker("kcmoe", "kcmoe", shape, ours)]
    if args.against == "t5x":
        say("compiling T5X + Flaxformer's step")
        as_launched = {**plain, "KCMOE_KEEP_MEMORY": "0"}
        workers.append(Worker("t5x", "t5x", shape, as_launched))
        if ours != as_launched:
            workers.append(Worker("t5x, our memory", "t5x", shape, ours))
    for worker in workers:
        for _ in range(2):  # warm-up: memory finds its place, the peak's product is compiled
            worker.run(1)
        worker.seconds.clear()
    for _ in tqdm(range(args.rounds), desc="rounds", disable=None):
        for worker in workers:
            worker.run(args.steps)
    for worker in workers:
        worker.stop()

    peak = statistics.median(workers[0].peaks)
    rows = [_row(worker, config, shape, peak) for worker in workers]
    print(f"{args.size}: {_described(shape)}; {workers[0].facts['device']}")
    print(f"matrix products of this machine in this run: {peak / 1e9:.0f} GFLOP/s (float32)")
    print(figures.table(rows))
    for other in workers[1:]:
        ratios = [b / a for a, b in zip(workers[0].seconds, other.seconds, strict=True)]
        print(f"{other.name} takes {statistics.median(ratios):.2f} times as long per step")
    figures.write(
        args,
        {"peak_flops": peak, "rows": rows},
        lambda: figures.bars(
            "train", f"Training {args.size}: tokens/s", rows, "engine", "tokens/s"
        ),
    )
    return 0


def _described(shape: StepShape) -> str:
    """One line about the work of a step."""
    tokens = shape.batch * (shape.inputs + shape.targets)
    return f"batch {shape.batch} x ({shape.inputs} inputs + {shape.targets} targets) = {tokens:,} tokens"


def _row(worker: Worker, config: ModelConfig, shape: StepShape, peak: float) -> dict[str, Any]:
    """Figures of one engine; both are credited with the same useful FLOPs."""
    from kcmoe.model.flops import train_step_flops

    seconds = statistics.median(worker.seconds)
    flops = train_step_flops(config, shape.batch, shape.inputs, shape.targets)
    return {
        "engine": worker.name,
        "s/step": seconds,
        "min": min(worker.seconds),
        "max": max(worker.seconds),
        "tokens/s": shape.batch * (shape.inputs + shape.targets) / seconds,
        "GFLOP/s": flops / seconds / 1e9,
        "of peak %": 100 * flops / seconds / peak,
        "compile s": worker.facts["compile_s"],
        "GiB": worker.memory_gib,
    }

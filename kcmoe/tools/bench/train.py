# SPDX-License-Identifier: Apache-2.0
"""`kcmoe bench train`: a training step of this engine, beside T5X + Flaxformer's where they are installed.

Each engine runs in a process of its own, compiles, warms up, and then waits; rounds of a few steps alternate
between them, so that a machine whose speed drifts is fair to both. The matrix-product peak of the machine is
measured between the rounds of the same run. T5X + Flaxformer run twice: as their own launcher starts them,
and with the memory settings of `kcmoe train`, so that those are not taken for the engine's merit.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from kcmoe.config.arguments import Parser
from kcmoe.errors import UserError
from kcmoe.model.cpu.memory import environments

_EPILOG = """\
examples:
  kcmoe bench train --size=tiny
  kcmoe bench train --size=mini --against=t5x --rounds=5
  kcmoe bench train --size=base --batch=8 --inputs=512 --targets=114 --rounds=2 --steps=1
"""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a step works on: `batch` packed rows of `inputs` and `targets` positions."""

    size: str
    batch: int
    inputs: int
    targets: int
    gin: tuple[str, ...] = ()


class Worker:
    """An engine in a process of its own. Speaks JSON lines over its pipes."""

    def __init__(self, name: str, module: str, shape: Shape, env: Mapping[str, str]):
        self.name = name
        self.seconds: list[float] = []
        self.peaks: list[float] = []
        self.memory_gib = 0.0
        # T5X fills pages with warnings: shown only if it fails.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed by `stop`
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(dataclasses.asdict(shape))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=env,
        )
        self.facts = self._receive()

    def run(self, steps: int) -> None:
        """Runs `steps` steps and keeps their seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        answer = self._receive()
        self.seconds += answer["seconds"]
        self.memory_gib = answer["memory_gib"]
        if "peak_flops" in answer:
            self.peaks.append(answer["peak_flops"])

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # T5X logs to stdout as well
                return json.loads(line)
        status = self._process.wait()
        self._log.seek(0)
        tail = self._log.read().decode(errors="replace").splitlines()[-20:]
        raise UserError("\n".join([f"the {self.name} process ended (status {status}):", *tail]))

    def stop(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


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
    parser.add_argument("--rounds", type=int, default=5, help="rounds per engine (default: 5)")
    parser.add_argument("--steps", type=int, default=3, help="steps per round (default: 3)")
    parser.add_argument("--batch", type=int, default=32, help="rows (default: 32)")
    parser.add_argument("--inputs", type=int, default=128, help="input positions (default: 128)")
    parser.add_argument("--targets", type=int, default=32, help="target positions (default: 32)")
    parser.add_argument("--gin", action="append", default=[], metavar="NAME=VALUE", help="a macro")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    args = parser.parse_args(argv)
    if min(args.rounds, args.steps, args.batch, args.inputs, args.targets) < 1:
        raise UserError("--rounds, --steps, --batch, --inputs and --targets must be at least 1")
    if args.against == "t5x":
        from kcmoe.t5x import requirements

        requirements.check_t5x_is_here()

    from tqdm import tqdm

    from kcmoe.tools.bench import figures, step_worker

    shape = Shape(args.size, args.batch, args.inputs, args.targets, tuple(args.gin))
    config = step_worker.model_config(shape)  # refuses a bad size before any process starts
    say = functools.partial(print, file=sys.stderr, flush=True)
    say("compiling this engine's step")
    plain, ours = environments(training=True)
    workers = [Worker("kcmoe", "kcmoe.tools.bench.step_worker", shape, ours)]
    if args.against == "t5x":
        say("compiling T5X + Flaxformer's step")
        as_launched = {**plain, "KCMOE_KEEP_MEMORY": "0"}
        workers.append(Worker("t5x", "kcmoe.t5x.step_speed", shape, as_launched))
        if ours != as_launched:
            workers.append(Worker("t5x, our memory", "kcmoe.t5x.step_speed", shape, ours))
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
    rows = [figures.train_row(worker, config, shape, peak) for worker in workers]
    print(f"{args.size}: {figures.describe(shape)}; {workers[0].facts['device']}")
    print(f"matrix products of this machine in this run: {peak / 1e9:.0f} GFLOP/s (float32)")
    print(figures.table(rows))
    for other in workers[1:]:
        ratios = [b / a for a, b in zip(workers[0].seconds, other.seconds, strict=True)]
        print(f"{other.name} takes {statistics.median(ratios):.2f} times as long per step")
    if args.json:
        figures.write_json(args.json, {"peak_flops": peak, "rows": rows})
    return 0

# SPDX-License-Identifier: Apache-2.0
"""`kcmoe bench train|predict|data`: the table of benchmarks; each lives in its own module."""

from __future__ import annotations

import importlib

from kcmoe.errors import UserError, near_misses

BENCHMARKS = {
    "train": ("kcmoe.tools.bench.train", "seconds, tokens/s and model FLOP/s of a training step"),
    "predict": (
        "kcmoe.tools.bench.predict",
        "sentences/s and latency of rank classification and generation",
    ),
    "dispatch": ("kcmoe.tools.bench.dispatch", "the ways tokens travel to experts, on this device"),
    "data": ("kcmoe.tools.bench.data", "tokens/s of the input pipeline, beside SeqIO's"),
}


def main(argv: list[str]) -> int:
    """Runs one benchmark; returns its exit status."""
    if not argv:
        raise UserError(f"say what to measure: {', '.join(BENCHMARKS)}")
    if argv[0] in ("-h", "--help"):
        lines = ["usage: kcmoe bench <what> [options]", ""]
        lines += [f"  {name:<10}{line}" for name, (_, line) in BENCHMARKS.items()]
        lines += ["", "example:", "  kcmoe bench train --size=tiny --against=t5x"]
        print("\n".join(lines))
        return 0
    if argv[0] not in BENCHMARKS:
        raise UserError(f"no benchmark {argv[0]}.{near_misses(argv[0], BENCHMARKS)}")
    return importlib.import_module(BENCHMARKS[argv[0]][0]).main(argv[1:])

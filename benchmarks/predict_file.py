# SPDX-License-Identifier: Apache-2.0
"""Lines per second and memory of `kcmoe predict FILE --output=OUT`, and what kills do to its output.

    python benchmarks/predict_file.py --data=data --lines=100000 --kills=3 --processes=1

Writes so many reviews of NSMC's test split (again and again from the start) to a CSV file, labels it, then
labels it once more with SIGKILL at random moments, and compares the two outputs. Ends with status 1 where
they differ. Memory is read from /proc, so this runs on Linux.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kcmoe.data import tables
from kcmoe.inference.progress import duration

_LOOK_S = 0.5
_PLANNED = 10_000_000


def write_lines(path: Path, source: str, lines: int) -> None:
    """A CSV file of `lines` rows with the documents of `source` over and over."""
    chunks = tables.read_chunks(source, ["document"])
    texts = [text for chunk in chunks for text in chunk["document"]]
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["number", "document"])
        out.writerows(enumerate(itertools.islice(itertools.cycle(texts), lines)))


def rss(process: int) -> int:
    """Bytes that a process and its children hold, now."""
    held = 0
    for each in (process, *_children(process)):
        try:
            held += int(Path(f"/proc/{each}/statm").read_text().split()[1])
        except OSError:
            continue
    return held * os.sysconf("SC_PAGE_SIZE")


def _children(process: int) -> list[int]:
    try:
        return [
            int(x) for x in Path(f"/proc/{process}/task/{process}/children").read_text().split()
        ]
    except OSError:
        return []


def answered(output: Path) -> int:
    """Lines in the log beside an output, without its first."""
    log = output.with_name(f"{output.name}.part")
    return max(0, log.read_bytes().count(b"\n") - 1) if log.exists() else 0


def start(source: Path, output: Path, args: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Begins to label `source`."""
    flags = [f"--checkpoint={args.checkpoint}", "--task=nsmc", f"--processes={args.processes}"]
    command = [sys.executable, "-m", "kcmoe", "predict", str(source), f"--output={output}", *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def measured(source: Path, output: Path, args: argparse.Namespace) -> tuple[float, list[int]]:
    """Seconds of a run without kills, and the most memory in each fifth of its lines."""
    most = [0] * 5
    began = time.monotonic()
    process = start(source, output, args)
    while process.poll() is None:
        fifth = min(4, answered(output) * 5 // args.lines)
        most[fifth] = max(most[fifth], rss(process.pid))
        time.sleep(_LOOK_S)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.monotonic() - began, most


def killed(source: Path, output: Path, args: argparse.Namespace, seconds: float) -> list[int]:
    """Lines that were kept at each of the kills; afterwards the output is complete."""
    kept = []
    draw = random.Random(args.seed)
    for _ in range(args.kills):
        process = start(source, output, args)
        time.sleep(draw.uniform(0.1, 0.9) * seconds / max(1, args.kills))
        process.kill()
        process.wait()
        kept.append(answered(output))
    while not output.exists():
        start(source, output, args).wait()
    return kept


def main() -> int:
    """Measures and compares; see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data", help="folder with nsmc/test.parquet")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = ("few.csv", "warm.csv", "in.csv", "whole.csv", "parts.csv")
        few, warm, source, whole, parts = (Path(folder, name) for name in names)
        write_lines(few, f"{args.data}/nsmc/test.parquet", min(args.lines, 3000))
        start(few, warm, args).wait()  # compiles what is not compiled yet
        write_lines(source, f"{args.data}/nsmc/test.parquet", args.lines)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds, most = measured(source, whole, args)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        speed = args.lines / seconds
        print(
            f"{args.lines:,} lines, {args.processes} processes: {seconds:.0f} s, {speed:,.0f} lines/s"
        )
        cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        print(f"CPU time: {cpu:.0f} s")
        print("most memory by fifths, MB: " + ", ".join(f"{each / 1e6:.0f}" for each in most))
        print(f"{_PLANNED:,} lines at this speed: {duration(_PLANNED / speed)}")
        if not args.kills:
            return 0
        kept = killed(source, parts, args, seconds)
        same = whole.read_bytes() == parts.read_bytes()
        print(f"kept at the kills: {', '.join(f'{each:,}' for each in kept)}; same bytes: {same}")
        return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""How long a vocabulary takes, how much memory it holds, and what a second MeCab process brings.

    python benchmarks/vocabulary_speed.py --data=data --output=DIR

Runs `kcmoe tokenizer train` on all comments as anybody would, watches the memory of its processes
(each shared page counted once), compares the bytes with the vocabulary that ships, and times MeCab on
the same lines with one process and two. Linux only, since it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kcmoe.data import tables  # noqa: E402
from kcmoe.tokenizer import corpus, morphemes, normalization  # noqa: E402

_CONFIG = "configs/tokenizer/unigram_32k.gin"
_CORPUS = "comments/train-*.parquet"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one row per measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data", help="folder of comments/")
    parser.add_argument("--output", required=True, help="folder of the vocabulary")
    parser.add_argument("--mecab_lines", type=int, default=40_000, help="lines for timing MeCab")
    args = parser.parse_args(argv)
    one, two = (_marking_seconds(args.data, args.mecab_lines, workers) for workers in (1, 2))
    print(f"MeCab, {args.mecab_lines:,} lines: {one:.1f} s with one process, {two:.1f} s with two")
    print(f"two processes are {one / two:.2f} times as fast as one")
    output = Path(args.output) / "kcmoe_32k.model"
    seconds, busy, peak = _watch(
        [sys.executable, "-m", "kcmoe", "tokenizer", "train", f"--gin_file={_CONFIG}",
         f'--gin.DATA_DIR="{args.data}"', f'--gin.TOKENIZER_OUTPUT="{output}"', "--overwrite"]
    )  # fmt: skip
    print(
        f"kcmoe tokenizer train: {seconds / 60:.1f} minutes, {busy:.0f} s of processor time, "
        f"{peak / 1e9:.2f} GB at most"
    )
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    made, shipped = (
        json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["models"]
        for path in (output, ROOT / "vocab/kcmoe_32k.model")
    )
    print("the bytes are those that ship" if made == shipped else f"other bytes: {made}")
    return 0


def _marking_seconds(data: str, count: int, workers: int) -> float:
    """Seconds of marking `count` lines, the start of the processes aside."""
    paths = tables.expand([_CORPUS], data)
    lines = [line for line, _ in zip(corpus.lines(paths, "text", 1024), range(count), strict=False)]
    with tempfile.TemporaryDirectory() as folder:
        options = normalization.trainer_options("comments", Path(folder))
        marked = morphemes.prepare_all(lines, options, workers, marked=True)
        next(marked)  # the first chunk is done, so every process has its dictionary
        started = time.monotonic()
        rest = sum(1 for _ in marked)
    assert rest == count - 1
    return time.monotonic() - started


def _watch(command: Sequence[str]) -> tuple[float, float, int]:
    """Wall and processor seconds of a command, and the most memory that it and its children held."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    peak = 0
    with subprocess.Popen(command, cwd=ROOT) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(_memory, _family(process.pid))))
            time.sleep(0.5)
    if process.returncode:
        sys.exit(process.returncode)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, busy, peak


def _family(pid: int) -> list[int]:
    found = [pid]
    for member in found:
        try:
            for task in Path(f"/proc/{member}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue  # it has just ended
    return found


def _memory(pid: int) -> int:
    """Bytes of a process, a page shared by n processes counting as one nth."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it has just ended
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""`kcmoe bench data`: how fast batches come, beside SeqIO on the same files where it is installed.

Counts the tokens a model reads (inputs and targets, padding left out) per second, for both in the same
way. Ours is timed with the token cache in place, as after the first epoch; building it is timed apart.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from kcmoe.config.arguments import Parser, add_run_arguments, between, parse_with_gin
from kcmoe.errors import UserError
from kcmoe.io.drawing import Picture
from kcmoe.tools.bench import figures

_EPILOG = """\
example:
  kcmoe bench data --task=sample_pretrain --seqio
  kcmoe bench data --task=pretrain --gin.DATA_DIR='"data"' --json=speed.json
"""


def main(argv: Sequence[str]) -> int:
    """Runs `kcmoe bench data`; returns the exit status."""
    parser = Parser(
        prog="kcmoe bench data",
        description="speed and memory of the input pipeline",
        epilog=_EPILOG,
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--steps", type=between(int, 20, 10**9), default=200, help="batches to time (default 200)"
    )
    parser.add_argument(
        "--batch_size", type=between(int, 1, 10**6), default=64, help="rows per batch (default 64)"
    )
    parser.add_argument(
        "--workers",
        type=between(int, 0, 1024),
        default=1,
        help="worker processes to try (default 1)",
    )
    parser.add_argument(
        "--seqio", action="store_true", help="time SeqIO as well; needs kcmoe[seqio]"
    )
    figures.add_outputs(parser)
    args, macros = parse_with_gin(parser, argv)
    if args.seqio and importlib.util.find_spec("seqio") is None:
        raise UserError("--seqio needs SeqIO and t5: pip install 'kcmoe[seqio]'")
    if "MIXTURE_OR_TASK_NAME" not in macros:
        raise UserError("say which task, e.g. --task=sample_pretrain")
    # A cache of its own, so that building it is timed and nothing of the user's is touched.
    cache_dir = tempfile.mkdtemp(prefix="kcmoe-bench-")
    try:
        macros = macros.replace(CACHE_DIR=cache_dir, BATCH_SIZE=args.batch_size)
        if "RANDOM_SEED" not in macros:
            macros = macros.replace(RANDOM_SEED=0)
        results = measure(macros, args.steps, args.workers, args.seqio)
    finally:
        shutil.rmtree(cache_dir, ignore_errors=True)
    for name, value in results.items():
        print(
            f"{name:<48}{value:>16,.2f}" if isinstance(value, float) else f"{name:<48}{value:>16}"
        )
    figures.write(args, results, lambda: _picture(results))
    return 0


def measure(macros: Any, steps: int, workers: int, seqio: bool) -> dict[str, Any]:
    """Times every part; names carry the unit."""
    from kcmoe.config.data import DataConfig
    from kcmoe.data.settings import training_batches
    from kcmoe.tasks.registry import get_task
    from kcmoe.vocabulary import Vocabulary

    config = DataConfig.from_macros(macros)
    vocabulary, task = Vocabulary(config.vocabulary_file), get_task(macros)
    results: dict[str, Any] = {"task": task.name, "CPU cores": os.cpu_count()}
    start = time.perf_counter()
    batches = training_batches(macros, vocabulary)
    results["reading and tokenizing, once (s)"] = time.perf_counter() - start
    tokens = sum(real_tokens(batches.at(step)) for step in range(5)) / 5
    results["SentencePiece alone, one thread (tokens/s)"] = _sentencepiece_speed(
        vocabulary, batches
    )
    results["tokens in a batch"] = round(tokens)
    epoch = tokens * batches.steps_per_epoch
    results["reading and tokenizing, once (tokens/s)"] = (
        epoch / results["reading and tokenizing, once (s)"]
    )
    for number in dict.fromkeys((0, workers)):
        name = f"batches, {number} workers" if number else "batches, by a thread"
        with contextlib.closing(batches.iterate(0, steps + 20, number)) as iterator:
            for _ in itertools.islice(iterator, 10):  # imports and buffers are not growth
                pass
            before = resident_bytes()
            results[f"{name} (tokens/s)"] = speed(iterator, steps)
            results[f"{name}, memory grown by (MB)"] = (resident_bytes() - before) / 1e6
    ours = max(
        v for name, v in results.items() if name.startswith("batches") and "tokens/s" in name
    )
    results["one batch takes (ms)"] = 1e3 * tokens / ours
    if seqio:
        from kcmoe.t5x import speed as t5x_speed

        theirs = t5x_speed.batches(
            task,
            config.vocabulary_file,
            macros.require("TASK_FEATURE_LENGTHS"),
            macros.require("BATCH_SIZE"),
            config.data_dir,
            config.pack,
        )
        results["SeqIO and t5, same files (tokens/s)"] = speed(theirs, max(steps // 4, 10))
        results["ours / SeqIO"] = ours / results["SeqIO and t5, same files (tokens/s)"]
    return results


def _picture(results: dict[str, Any]) -> Picture:
    unit = " (tokens/s)"
    rows = [
        {"what": name.removesuffix(unit), "tokens/s": value}
        for name, value in results.items()
        if name.endswith(unit)
    ]
    return figures.bars("data", f"Reading {results['task']}: tokens/s", rows, "what", "tokens/s")


def speed(batches: Iterable[dict[str, np.ndarray]], steps: int, warm_up: int = 5) -> float:
    """Tokens per second over `steps` batches after `warm_up` of them."""
    iterator: Iterator[dict[str, np.ndarray]] = iter(batches)
    for _ in itertools.islice(iterator, warm_up):
        pass
    start, tokens = time.perf_counter(), 0
    for batch in itertools.islice(iterator, steps):
        tokens += real_tokens(batch)
    return tokens / (time.perf_counter() - start)


def real_tokens(batch: dict[str, np.ndarray]) -> int:
    """Tokens of a batch that are not padding."""
    return sum(
        int(np.count_nonzero(batch[name]))
        for name in ("encoder_input_tokens", "decoder_target_tokens")
    )


def resident_bytes() -> int:
    """Memory of this process now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _sentencepiece_speed(vocabulary: Any, batches: Any) -> float:
    texts = [
        re.sub(r"<extra_id_\d+>", "", vocabulary.decode(row))
        for step in range(4)
        for row in batches.at(step)["encoder_input_tokens"].astype(int)
    ]
    vocabulary.encode_batch(texts[:8])
    start = time.perf_counter()
    ids = vocabulary.encode_batch(texts)
    return sum(map(len, ids)) / (time.perf_counter() - start)

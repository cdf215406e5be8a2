# SPDX-License-Identifier: Apache-2.0
"""Lines per second of this engine and of the exported model under PyTorch, on the same machine in turn.

    python benchmarks/huggingface.py --size=tiny

Lines are the bundled comments (or `--file`) in the prompt of the nsmc task, weights random. `rank` is the
log-likelihood of both label words for each line; `greedy` and `beam` (4 of them) generate 32 tokens, all of
which random weights fill, for a third of the lines, `alone` greedily for a few lines one after the other.
Otherwise both engines sort lines by length, and PyTorch generates in the quickest of several batch sizes.
Both compute in float32 and, for generation, with bfloat16 weights (PyTorch in bfloat16 altogether). Each
engine has a process of its own, and the processes take turns, so that no round of one meets the other.
Needs the extra [huggingface].
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GENERATED = 32  # tokens
BEAMS = 4
ALONE = 10  # lines
SIZES = (0.5, 1.0, 2.0)  # of PyTorch's batches, to as many tokens as ours have
Ids = Sequence[Sequence[int]]


def main() -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="tiny", help="a file of configs/sizes (default: tiny)")
    parser.add_argument("--file", help="text, one line per example (default: bundled comments)")
    parser.add_argument("--lines", type=int, default=2000, help="lines of rank (default: 2000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--engine", choices=("kcmoe", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        return _serve(args.engine, args.folder)
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder), args.size, args.file, args.lines)
        for row in _measure(Path(folder), args.rounds):
            print(row)
    return 0


def _prepare(folder: Path, size: str, file: str | None, lines: int) -> None:
    """A checkpoint of `size`, the same exported, and the ids of lines and labels."""
    import jax

    from kcmoe import checkpoint
    from kcmoe.checkpoint.writing import convert
    from kcmoe.config import gin_files
    from kcmoe.config.model import ModelConfig
    from kcmoe.io import resources
    from kcmoe.tasks.registry import get_task
    from kcmoe.training.state import init_params
    from kcmoe.vocabulary import Vocabulary

    macros = gin_files.parse(["configs/engine/engine.gin", f"configs/sizes/{size}.gin"])
    macros = macros.replace(ACTIVATION_DTYPE="float32", MOE_TRUNCATED_DTYPE="float32")
    (folder / "config.gin").write_text(gin_files.dump(macros), encoding="utf-8")
    params = jax.jit(lambda: init_params(ModelConfig.from_macros(macros), 0))()
    state = {f"target/{name}": value for name, value in params.items()}
    path = checkpoint.save(folder, 0, {**state, "state/step": np.zeros((), np.int32)})
    convert(path, folder / "exported", "huggingface")
    source = Path(file) if file else resources.find("kcmoe/samples/comments.txt")
    texts = [line for line in source.read_text("utf-8").splitlines() if line.strip()]
    texts = (texts * (lines // max(len(texts), 1) + 1))[:lines]
    task, vocabulary = get_task("nsmc"), Vocabulary()
    prompts = [task.inputs({"document": text}) for text in texts]
    ids = {
        "inputs": [[*one[:511], 1] for one in vocabulary.encode_batch(prompts)],
        "labels": [[*vocabulary.encode(word), 1] for word in task.label_words],
    }
    (folder / "ids.json").write_text(json.dumps(ids), encoding="utf-8")


def _measure(folder: Path, rounds: int) -> Iterator[str]:
    count = len(json.loads((folder / "ids.json").read_text("utf-8"))["inputs"])
    workers = {name: _Worker(name, folder) for name in ("kcmoe", "torch")}
    try:
        yield "| what | engine | lines/s (median, min-max) |"
        yield "|---|---|---|"
        few = len(_few(range(count)))
        ways = (("rank", count), ("greedy", few), ("beam", few), ("alone", ALONE))
        ways += (("greedy, bfloat16", few), ("beam, bfloat16", few))
        for what, lines in ways:
            for worker in workers.values():
                worker.seconds(what)  # compiles, warms up
            taken: dict[str, list[float]] = {name: [] for name in workers}
            for _ in range(rounds):
                for name, worker in workers.items():
                    taken[name].append(lines / worker.seconds(what))
            for name, found in taken.items():
                middle = statistics.median(found)
                yield f"| {what} | {name} | {middle:,.1f} ({min(found):,.1f}-{max(found):,.1f}) |"
    finally:
        for worker in workers.values():
            worker.close()


class _Worker:
    """A process that computes with one engine when it is asked to, and waits otherwise."""

    def __init__(self, engine: str, folder: Path):
        command = [sys.executable, __file__, f"--engine={engine}", f"--folder={folder}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, what: str) -> float:
        """Time of one pass over the lines."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("a worker stopped; its error stands above")
        return float(answer)

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


def _serve(engine: str, folder: Path) -> int:
    ids = json.loads((folder / "ids.json").read_text("utf-8"))
    make = {"kcmoe": _kcmoe, "torch": _torch}[engine]
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    passes = make(folder, ids["inputs"], ids["labels"])
    for line in sys.stdin:
        start = time.perf_counter()
        passes[line.strip()]()
        print(time.perf_counter() - start, file=answers, flush=True)
    return 0


def _kcmoe(folder: Path, inputs: Ids, labels: Ids) -> dict[str, Callable[[], Any]]:
    from kcmoe.inference.predict import LanguageModel

    def load(**settings: Any) -> Any:
        batched = LanguageModel.load(folder / "checkpoint_0", **settings).batched
        # Programs of few rows are tried in the pass that warms up.
        return dataclasses.replace(batched, patience=0)

    lm, narrow = load(), load(PREDICT_WEIGHTS="bfloat16")
    few = _few(inputs)
    return {
        "rank": lambda: lm.rank(inputs, labels),
        "greedy": lambda: lm.generate(few, GENERATED),
        "beam": lambda: lm.generate(few, GENERATED, beam_size=BEAMS),
        "alone": lambda: [lm.generate([line], GENERATED) for line in inputs[:ALONE]],
        "greedy, bfloat16": lambda: narrow.generate(few, GENERATED),
        "beam, bfloat16": lambda: narrow.generate(few, GENERATED, beam_size=BEAMS),
    }


def _few(lines: Sequence[Any]) -> Sequence[Any]:
    """Those for which texts are generated: a third, evenly spread."""
    return lines[::3]


def _torch(folder: Path, inputs: Ids, labels: Ids) -> dict[str, Callable[[], Any]]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForSeq2SeqLM

    from kcmoe.inference.batching import default_tokens

    model = AutoModelForSeq2SeqLM.from_pretrained(
        folder / "exported", trust_remote_code=True
    ).eval()
    tokens = default_tokens(sum(value.numel() for value in model.parameters()), "cpu")

    narrow = copy.deepcopy(model).to(torch.bfloat16)

    def batches(lines: Ids, times: float = 1) -> Iterator[dict[str, Any]]:
        ordered = sorted(lines, key=len)
        while ordered:
            rows = 1
            while rows < len(ordered) and (rows + 1) * len(ordered[rows]) <= times * tokens:
                rows += 1
            part, ordered = ordered[:rows], ordered[rows:]
            padded = torch.zeros((rows, len(part[-1])), dtype=torch.long)
            for row, line in enumerate(part):
                padded[row, : len(line)] = torch.tensor(line)
            yield {"input_ids": padded, "attention_mask": (padded != 0).long()}

    def rank() -> None:
        for batch in batches(inputs):
            encoded = model.encoder(**batch)
            for label in labels:
                wanted = torch.tensor([label]).expand(len(batch["input_ids"]), -1)
                logits = model(
                    attention_mask=batch["attention_mask"],
                    encoder_outputs=encoded,
                    decoder_input_ids=torch.nn.functional.pad(wanted[:, :-1], (1, 0)),
                    use_cache=False,
                ).logits
                logits.log_softmax(-1).gather(-1, wanted[..., None]).sum(1).tolist()

    few = _few(inputs)

    def generate(lines: Ids, beams: int = 1, times: float = 1, model: Any = model) -> None:
        for batch in batches(lines, times):
            model.generate(**batch, max_new_tokens=GENERATED, num_beams=beams)

    def quickest(**settings: Any) -> Callable[[], None]:
        """Generation for `few`, in the batches that take least time for some of them."""

        def took(times: float) -> float:
            started = time.perf_counter()
            generate(few[::4], times=times, **settings)
            return time.perf_counter() - started

        @functools.cache
        def chosen() -> float:  # in the pass that warms up
            return min(SIZES, key=took)

        return lambda: generate(few, times=chosen(), **settings)

    def without_gradients(compute: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                compute()

        return run

    passes = {
        "rank": rank,
        "greedy": quickest(),
        "beam": quickest(beams=BEAMS),
        "alone": lambda: [generate([line]) for line in inputs[:ALONE]],
        "greedy, bfloat16": quickest(model=narrow),
        "beam, bfloat16": quickest(model=narrow, beams=BEAMS),
    }
    return {name: without_gradients(compute) for name, compute in passes.items()}


if __name__ == "__main__":
    sys.exit(main())

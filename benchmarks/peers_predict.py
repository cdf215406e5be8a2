# SPDX-License-Identifier: Apache-2.0
"""Lines per second of `rank` beside encoders with a classification head under PyTorch, in turn.

    python benchmarks/peers_predict.py --file=reviews.txt --lines=1500

Ours is the model that ships (or `--size=mini` with random weights), asked for the nsmc task. Theirs are an
ELECTRA-small of 14 M parameters and a BERT-base, random weights, two labels. They get ids of exactly the
lengths that our prompts have; a second row gives them the lengths without our prompt, which they would not
need. PyTorch runs in `inference_mode` on all cores, batches sorted by length and padded to their longest, in
the fastest of several batch sizes, in float32 and with bfloat16 weights. Tokenizing is left out on both
sides. Needs torch and transformers (extra [huggingface]); without them only ours is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Ids = Sequence[Sequence[int]]
BATCHES = (8, 16, 32, 64)


def main() -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("tiny", "mini"), default="tiny")
    parser.add_argument("--file", help="text, one line per example (default: bundled reviews)")
    parser.add_argument("--lines", type=int, default=1500, help="at most so many (default: 1500)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    args = parser.parse_args()

    prompts, plain, ranks = _ours(args.size, args.file, args.lines)
    ways: dict[str, tuple[Callable[[], Any], int]] = {
        f"kcmoe {args.size}, rank, {kind} weights": (rank, len(prompts))
        for kind, rank in ranks.items()
    }
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        for name, model in _peers():
            for title, ids in (("", prompts), (", without our prompt", plain)):
                few = ids if name.startswith("ELECTRA") else ids[:: max(1, len(ids) // 100)]
                ways[name + title] = (_classifier(model, few), len(few))
    else:
        print(
            "torch or transformers is not here, so no peer is measured: pip install '.[huggingface]'"
        )
    for run, _ in ways.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, (run, lines) in ways.items():
            started = time.perf_counter()
            run()
            rates[name].append(lines / (time.perf_counter() - started))
    ours = [statistics.median(found) for found in list(rates.values())[: len(ranks)]]
    tokens = [float(np.mean([len(one) for one in ids])) for ids in (prompts, plain)]
    print(
        f"{len(prompts):,} lines, {tokens[0]:.1f} tokens on average, {tokens[1]:.1f} without our prompt"
    )
    print(f"{'':45} {'lines/s':>8} {'min':>8} {'max':>8} {'ours to it: ' + ', '.join(ranks):>31}")
    for name, found in rates.items():
        median = statistics.median(found)
        row = f"{name:45} {median:8,.0f} {min(found):8,.0f} {max(found):8,.0f}"
        print(row + "".join(f" {one / median:14.2f}x" for one in ours))
    return 0


def _ours(size: str, file: str | None, lines: int) -> tuple[Ids, Ids, dict[str, Callable[[], Any]]]:
    """Ids of the prompts, ids of the lines alone, and the ranking of all lines by kind of weights."""
    import kcmoe
    from kcmoe.inference import texts
    from kcmoe.io import resources

    if file is None:
        table = texts.read_lines(str(resources.find("kcmoe/samples/reviews_train.tsv")))
        found = [line.split("\t")[0] for line in table[1:]]
    else:
        found = texts.read_lines(file)
    found = [text for text in found if text.strip()][:lines]
    lm = kcmoe.load("tiny")
    task = lm.task("nsmc")
    prompts, plain = lm.encode(texts.prompts(task, found)), lm.encode(found)
    labels = lm.encode(task.label_answers)
    if size == "tiny":
        models = [lm.batched, kcmoe.load("tiny", PREDICT_WEIGHTS="bfloat16").batched]
    else:
        models = _random(size, max(map(len, prompts)))
    # Nobody waits for a line alone here, so no time goes into trying programs of few rows.
    models = [dataclasses.replace(model, patience=None) for model in models]
    ranks = [functools.partial(model.rank, prompts, labels) for model in models]
    return prompts, plain, dict(zip(("float32", "bfloat16"), ranks, strict=True))


def _random(size: str, longest: int) -> list[Any]:
    """A model of `size` with random weights, in float32 and in bfloat16."""
    import jax

    from kcmoe.inference import loading
    from kcmoe.inference.batching import BatchedModel, default_tokens, inference_config
    from kcmoe.model.interface import init_params
    from kcmoe.tools.bench.worker import StepShape, model_config

    config = inference_config(model_config(StepShape(size, 1, 1, 1)), platform="cpu")
    params = jax.jit(init_params, static_argnums=(0, 1))(config, 0)
    weights = {path: np.asarray(leaf) for path, leaf in params.items()}
    tokens = default_tokens(sum(x.size for x in weights.values()), "cpu")
    kinds = [loading.narrowed(weights, kind) for kind in ("float32", "bfloat16")]
    return [BatchedModel(loading.compute_of(config, kind), longest, tokens) for kind in kinds]


def _peers() -> list[tuple[str, Any]]:
    """Name and model, in float32 and in bfloat16."""
    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        ElectraConfig,
        ElectraForSequenceClassification,
    )

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    small = ElectraConfig(
        vocab_size=32000, embedding_size=128, hidden_size=256, num_hidden_layers=12,
        num_attention_heads=4, intermediate_size=1024, num_labels=2,
    )  # fmt: skip
    base = BertConfig(vocab_size=32000, num_labels=2)
    found = []
    for name, kind, config in (
        ("ELECTRA-small", ElectraForSequenceClassification, small),
        ("BERT-base", BertForSequenceClassification, base),
    ):
        model = kind(config).eval()
        millions = sum(value.numel() for value in model.parameters()) / 1e6
        found.append((f"{name} ({millions:.0f} M)", model))
        narrow = kind(config).eval().to(torch.bfloat16)
        found.append((f"{name} bfloat16", narrow))
    return found


def _classifier(model: Any, ids: Ids) -> Callable[[], Any]:
    """All lines through the model, in the batch size that was fastest on some of them."""
    import torch

    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))

    def run(rows: int, among: Sequence[int]) -> None:
        with torch.inference_mode():
            for start in range(0, len(among), rows):
                lines = [ids[i] for i in among[start : start + rows]]
                longest = max(map(len, lines))
                batch = torch.zeros(len(lines), longest, dtype=torch.long)
                mask = torch.zeros(len(lines), longest, dtype=torch.long)
                for row, one in enumerate(lines):
                    batch[row, : len(one)] = torch.tensor(one) % 32000
                    mask[row, : len(one)] = 1
                model(input_ids=batch, attention_mask=mask).logits.float().numpy()

    def seconds(rows: int) -> float:
        some = order[:: max(1, len(order) // 128)]
        run(rows, some[:rows])
        started = time.perf_counter()
        run(rows, some)
        return time.perf_counter() - started

    best = min(BATCHES, key=seconds)
    return lambda: run(best, order)


if __name__ == "__main__":
    raise SystemExit(main())

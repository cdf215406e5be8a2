# SPDX-License-Identifier: Apache-2.0
"""`kcmoe prune CHECKPOINT OUT --experts=N`: measures which experts are used, keeps N of each layer."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kcmoe.config import arguments
from kcmoe.errors import UserError
from kcmoe.io import outputs

if TYPE_CHECKING:
    import numpy as np

    from kcmoe.inference.loading import Loaded
    from kcmoe.tasks.types import Task

_EPILOG = """\
examples:
  kcmoe prune tiny smaller --experts=8
  kcmoe prune tiny smaller --experts=4 --task=nsmc --gin.DATA_DIR='"data"'
  kcmoe prune tiny dense --experts=0
  kcmoe train --size=tiny_dense --task=nsmc --gin_file=configs/runs/finetune.gin \\
    --gin.INITIAL_CHECKPOINT_PATH='"dense"' --gin.TEACHER='"tiny"' \\
    --gin.DATA_DIR='"data"' --gin.MODEL_DIR='"runs/dense_nsmc"'

An expert counts by the router probabilities of the tokens that chose it, over the rows of the tasks named
(held-out rows; by default the samples that ship, so that no data are needed). With --experts=0 the MoE blocks
go and a plain T5 v1.1 remains. What is lost comes back by training on with the whole model as TEACHER.
"""
_SAMPLES = ("sample_pretrain", "sample_reviews", "sample_nli")
_ROWS, _BATCH = 2048, 16  # rows of each task at most, and at once


def main(argv: list[str]) -> int:
    """Runs the verb; returns 0."""
    parser = arguments.Parser(
        prog="kcmoe prune",
        description="Writes a smaller model: the experts that are used most, or none of them.",
        epilog=_EPILOG,
    )
    parser.add_argument("checkpoint", help="checkpoint or model directory, or tiny, which ships")
    parser.add_argument("output", help="the new folder")
    parser.add_argument(
        "--experts",
        type=arguments.between(int, 0, 1 << 16),
        required=True,
        help="experts that each sparse layer keeps; 0 leaves a dense model",
    )
    parser.add_argument(
        "--task",
        action="append",
        help=f"whose rows count; repeatable (default: {', '.join(_SAMPLES)})",
    )
    parser.add_argument("--format", default="safetensors", help="as in `kcmoe checkpoint convert`")
    arguments.add_gin_arguments(parser)
    args, given = arguments.parse_with_gin(parser, argv)

    from kcmoe.checkpoint import formats
    from kcmoe.inference import loading
    from kcmoe.tasks.registry import named_task

    if os.path.lexists(args.output):
        raise UserError(f"{args.output} exists already: choose another place, or remove it first")
    outputs.check_folder(args.output)
    formats.named(args.format)
    tasks = [named_task(name) for name in args.task or _SAMPLES]
    for task in tasks:
        if "validation" not in task.splits:
            raise UserError(
                f"task {task.name} has no held-out rows to measure on; name another --task"
            )
    loaded = loading.load(loading.find(args.checkpoint, given=given))
    config = loaded.config
    if not config.is_sparse:
        raise UserError(f"{args.checkpoint} has no experts: there is nothing to prune")
    if args.experts >= config.num_experts:
        raise UserError(
            f"--experts={args.experts}, but {args.checkpoint} has {config.num_experts} in each sparse layer: "
            "fewer must stay"
        )
    experts = _choose(loaded, tasks, args.experts)
    path, left = _write(args, loaded, experts)
    before = sum(leaf.size for leaf in loaded.weights.values())
    print(f"wrote {path} ({args.format}), {left:,} parameters of {before:,}")
    return 0


def _choose(loaded: Loaded, tasks: Sequence[Task], count: int) -> dict[str, np.ndarray]:
    """Measures and prints how the experts are used; sparse layer -> those that stay."""
    from kcmoe.model.encoder_decoder import EncoderDecoder
    from kcmoe.tools.prune import usage

    if count == 0:
        import numpy as np

        return {
            f"{stack}/layers_{index}": np.zeros(0, np.int64)
            for stack in ("encoder", "decoder")
            for index in loaded.config.sparse_layers(stack)
        }
    model = EncoderDecoder(loaded.config)
    shares = usage.measure(model, loaded.params, _batches(loaded, tasks))
    chosen = usage.most_used(shares, count)
    for layer, share in shares.items():
        stays = share[chosen[layer]].sum()
        listed = ", ".join(str(number) for number in chosen[layer])
        print(f"{layer}: experts {listed} stay, which had {stays:.1%} of the routers' trust")
    return chosen


def _batches(loaded: Loaded, tasks: Sequence[Task]) -> Iterator[Mapping[str, np.ndarray]]:
    from tqdm import tqdm

    from kcmoe.data.pipeline import noise_of
    from kcmoe.data.settings import DataConfig, evaluation_batches
    from kcmoe.data.span_corruption import segment_counts

    # Targets of a task with labels are shorter than those of gaps filled, which the samples have.
    inputs = loaded.lengths["inputs"]
    gaps = segment_counts(inputs, noise_of(DataConfig.from_macros(loaded.macros))).targets + 1
    lengths = {"inputs": inputs, "targets": max(loaded.lengths["targets"], gaps)}
    macros = loaded.macros.replace(TASK_FEATURE_LENGTHS=lengths)
    splits = [
        evaluation_batches(macros, task, "validation", _BATCH, loaded.vocabulary, _ROWS // _BATCH)
        for task in tasks
    ]
    for task, split in zip(tasks, splits, strict=True):
        yield from tqdm(split, desc=task.name, unit="batch", disable=None, leave=False)


def _write(
    args: argparse.Namespace, loaded: Loaded, experts: Mapping[str, np.ndarray]
) -> tuple[Path, int]:
    """Writes the parameters that stay, each leaf as it was stored; returns where, and how many they are."""
    from kcmoe import tree
    from kcmoe.checkpoint.reading import open_checkpoint, parameter_sources
    from kcmoe.checkpoint.run_config import sizes_of
    from kcmoe.checkpoint.writing import write_derived
    from kcmoe.tools.prune.cut import after, cut

    reader = open_checkpoint(loaded.checkpoint)
    stored = parameter_sources(reader)
    whole = tree.parameters({path: reader.tree()[at] for path, at in stored.items()})
    plan = list(after(whole, experts))
    shapes = tree.as_state({name: leaf for _, name, leaf in plan})
    leaves = (
        (tree.PARAMETERS + name, cut(path, reader.read(stored[tree.PARAMETERS + path]), experts))
        for path, name, _ in plan
    )
    macros = {**reader.recorded(), **sizes_of(shapes)}
    if args.experts:
        macros["NUM_SELECTED_EXPERTS"] = min(loaded.config.num_selected_experts, args.experts)
    path = write_derived(reader, args.output, args.format, shapes, leaves, macros)
    return path, tree.total_values(shapes.values())

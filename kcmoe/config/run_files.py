# SPDX-License-Identifier: Apache-2.0
"""Short names of gin files, `--size=tiny` and `--task=nsmc`, and what became of files that are gone."""

from __future__ import annotations

import os
from collections.abc import Iterator

from kcmoe.errors import UserError, near_misses
from kcmoe.io import resources

_FINETUNE, _EVALUATE = "configs/runs/finetune.gin", "configs/runs/evaluate.gin"
# Steps of run files that are gone, where they were not the FINETUNE_STEPS of the task.
_OTHER_STEPS = {("nsmc", "mini"): 4000, ("hate_speech", "base"): 1000, ("korsts", "base"): 1000}


def _gone() -> Iterator[tuple[str, str]]:
    """Files that only combined a size, a task and a run, and what to write in their place."""
    yield "configs/runs/eval.gin", _EVALUATE
    for size in ("tiny", "mini", "base"):
        for task in ("nsmc", "kornli", "korsts", "hate_speech"):
            both, steps = f"--size={size} --task={task} with", _OTHER_STEPS.get((task, size))
            more = f" and --gin.FINETUNE_STEPS={steps}" if steps else ""
            yield f"configs/runs/eval_{task}_{size}.gin", f"{both} {_EVALUATE}"
            if (task, size) != ("nsmc", "tiny"):  # stays, as a measured recipe
                yield f"configs/runs/finetune_{task}_{size}.gin", f"{both} {_FINETUNE}{more}"
    base = "--size=base --task=pretrain with configs/runs/pretrain.gin"
    yield "configs/runs/pretrain_base.gin", base
    for name in ("pretrain_base", "continue_base"):
        yield (
            f"configs/t5x/{name}.gin",
            f"{_t5x('base', 'pretrain', 'pretrain')} configs/t5x/train.gin",
        )
    for recipe in ("pretrain_sample", "pretrain_tiny", "finetune_sample_reviews"):
        last = "finetune" if recipe.startswith("finetune") else "train"
        yield f"configs/t5x/{recipe}.gin", f"configs/runs/{recipe}.gin then configs/t5x/{last}.gin"
    for kind, run in (("finetune", "finetune"), ("evaluate", "evaluate"), ("infer", "evaluate")):
        for task in ("nsmc", "kornli"):
            files = f"{_t5x('base', task, run)} configs/t5x/{kind}.gin"
            yield f"configs/t5x/{kind}_{task}_base.gin", files


def _t5x(size: str, task: str, run: str) -> str:
    """The files of a run for T5X, which has no short names."""
    return f"configs/sizes/{size}.gin, configs/tasks/{task}.gin, configs/runs/{run}.gin, then"


def successor(path: str) -> str:
    """What a file that the package once had is now, as a sentence; "" for any other path."""
    words = dict(_gone()).get(path)
    return f"{path} is now {words}" if words else ""


def named(kind: str, name: str) -> str:
    """The gin file that `--size=NAME` or `--task=NAME` stands for.

    Args:
      kind: "size" or "task".
      name: a file of `configs/sizes` or `configs/tasks`, without its ending.

    Raises:
      UserError: naming the files there are.
    """
    folder = f"configs/{kind}s"
    found = names(kind)
    if name in found:
        return f"{folder}/{name}.gin"
    raise UserError(
        f"--{kind}={name}: {folder} has no {name}.gin.{near_misses(name, found)} There are "
        f"{', '.join(found)}; a file of your own is --gin_file=FILE"
        + ("; the task that a checkpoint was tuned for needs no --task" if kind == "task" else "")
    )


def names(kind: str) -> list[str]:
    """What `--size` or `--task` may be: the gin files of the current folder's and the shipped configs."""
    folders = (
        os.path.join(root, "configs", f"{kind}s") for root in (".", *map(str, resources.roots()))
    )
    files = {file for folder in folders if os.path.isdir(folder) for file in os.listdir(folder)}
    return sorted(file.removesuffix(".gin") for file in files if file.endswith(".gin"))

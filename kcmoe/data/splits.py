# SPDX-License-Identifier: Apache-2.0
"""Which files and rows belong to train, validation and test.

Where a task has no validation files, a fixed share of train is held out by the hash of the text, so that
equal texts are on one side and the choice does not depend on their order.
"""

from __future__ import annotations

import hashlib

from kcmoe.data import tables
from kcmoe.errors import UserError
from kcmoe.tasks.registry import Task


def held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out share of its corpus; a function of the text alone."""
    bits = hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"kcmoe-holdout"
    )
    return int.from_bytes(bits.digest(), "little") < share * 2**64


def split_files(task: Task, split: str, data_dir: str) -> list[str]:
    """Files that hold `split`: its own, or those of train where it is held out.

    Raises:
      UserError: if the task has no such split or its files are absent.
    """
    if split not in task.splits:
        raise UserError(f"task {task.name} has no {split} split; it has {', '.join(task.splits)}")
    return tables.expand(task.files["train" if task.is_held_out(split) else split], data_dir)


def is_divided(task: Task, split: str) -> bool:
    """Whether the files of `split` also hold rows of another split: train with a held-out share."""
    return split in ("train", "validation") and task.is_held_out("validation")


def in_split(task: Task, split: str, text: str) -> bool:
    """Whether a row of `split_files` with these inputs belongs to `split`."""
    if not is_divided(task, split):
        return True
    return held_out(text, task.holdout) == (split == "validation")

# SPDX-License-Identifier: Apache-2.0
"""Lengths that the files of configs/tasks name, measured with the shipped vocabulary on the sets at hand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from kcmoe.config import gin_files
from kcmoe.data import labelled
from kcmoe.errors import UserError
from kcmoe.tasks.registry import Task, get_task
from kcmoe.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared/data"
LABELLED = sorted(
    path
    for path in (ROOT / "configs/tasks").glob("*.gin")
    if "# Inputs: " in path.read_text("utf-8")
)


def said(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """The longest inputs that a file names, and how many it says are cut; both by split."""
    (line,) = re.findall(r"^# Inputs: (.*)", path.read_text("utf-8"), re.MULTILINE)
    found = re.fullmatch(r"longest ((?:\w+ \d+(?:, )?)+) tokens; cut (none|.*? of \w+)\b.*", line)
    assert found, line
    longest = {split: int(tokens) for split, tokens in re.findall(r"(\w+) (\d+)", found[1])}
    cut = {s: int(n.replace(",", "")) for n, s in re.findall(r"([\d,]+) of [\d,]+ of (\w+)", line)}
    return longest, cut


@pytest.mark.slow
@pytest.mark.parametrize("path", LABELLED, ids=lambda path: path.stem)
def test_lengths_are_those_measured(path: Path) -> None:
    macros = gin_files.parse([str(path.relative_to(ROOT))])
    task, vocabulary, (longest, cut) = get_task(macros), Vocabulary(), said(path)
    assert isinstance(task, Task)
    limits = macros["TASK_FEATURE_LENGTHS"]
    assert longest
    assert set(longest) <= set(task.splits)
    if not path.stem.startswith("sample") and not DATA.is_dir():
        pytest.skip("the labelled sets are not beside this repository")
    measured = []
    for split, tokens in longest.items():
        try:
            examples = labelled.labelled_examples(task, split, str(DATA))
        except UserError:
            continue  # not at hand
        both = ([e.inputs_text for e in examples], [e.target_text for e in examples])
        inputs, targets = (
            np.array([len(ids) + 1 for ids in vocabulary.encode_batch(texts, 2)]) for texts in both
        )
        assert inputs.max() == tokens, split
        assert (inputs > limits["inputs"]).sum() == cut.get(split, 0), split
        assert (inputs > limits["inputs"]).mean() < 0.0025, "next to nothing is cut"
        assert targets.max() <= limits["targets"], split
        measured.append(split)
    assert measured, "a file says nothing that could be measured here"

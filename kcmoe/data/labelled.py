# SPDX-License-Identifier: Apache-2.0
"""Labelled sets as examples: a prompt, the word to generate, and the row they came from.

Rows in which a value is missing are left out and counted. Whether an empty text is missing the task says
(`Task.keep_empty`): CSV knows no other null, and the same table in any format is to give the same examples,
but the official NSMC test has three empty documents, and all of its rows are scored. Ids are made elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kcmoe.data import manifest, tables
from kcmoe.data.splits import in_split, is_divided, split_files
from kcmoe.errors import UserError
from kcmoe.tasks.registry import Task, format_number
from kcmoe.vocabulary import Vocabulary

_log = logging.getLogger(__name__)
_MEND = "mend the row, or set DATA_STRICT = False to leave such rows out"


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One row of a labelled set.

    Attributes:
      id: from the task's id column, else "<split>-<row>"; a repeated id gets "#2", "#3".
      inputs_text: the prompt.
      target_text: the answer; "" where the file has none.
      fields: the columns read.
    """

    id: str
    inputs_text: str
    target_text: str
    fields: Mapping[str, Any]


def iter_examples(
    task: Task, split: str, data_dir: str = "data", *, strict: bool = True
) -> Iterator[Example]:
    """Yields the examples of `split` in file order.

    Raises:
      UserError: missing files or columns; in strict reading a row that has no valid label.
    """
    tally = tables.Tally()
    ids: Counter[str] = Counter()
    columns = list(dict.fromkeys((*task.input_columns, task.target, task.id_column)))
    columns = [name for name in columns if name]
    row_number = 0
    files = split_files(task, split, data_dir)
    manifest.check(files, strict)
    for path in files:
        manifest.check_content(path, strict)
        row_in_file = 0
        for chunk in tables.read_chunks(
            path,
            columns,
            strict=strict,
            encoding=task.encoding,
            tally=tally,
            lists=[task.target] if task.multi_label else [],
        ):
            for values in zip(*chunk.values(), strict=True):
                row_number, row_in_file = row_number + 1, row_in_file + 1
                row = dict(zip(chunk, values, strict=True))
                place = f"{path}, row {row_in_file}"
                missing = [name for name in task.input_columns if task.lacks_input(row[name])]
                if not missing and task.lacks_answer(row[task.target]):
                    missing = [task.target]
                if missing:
                    tally.drop(f"missing {missing[0]}", place)
                    continue
                if wrong := task.wrong_input(row):
                    if strict:
                        raise UserError(f"{place}: {wrong}; {_MEND}")
                    tally.drop("not text", place)
                    continue
                inputs = task.inputs(row)
                if not in_split(task, split, inputs):
                    continue
                answer = _answer(task, row[task.target], place, strict, tally)
                if answer is None:
                    continue
                given = row.get(task.id_column)
                name = f"{split}-{row_number - 1}" if given in (None, "") else str(given)
                ids[name] += 1
                repeated = f"#{ids[name]}" if ids[name] > 1 else ""
                yield Example(name + repeated, inputs, answer, row)
    if tally.dropped:
        _warn_once(data_dir, f"{task.name} {split}: {tally.summary()}")
    if repeated_ids := sum(n - 1 for n in ids.values()):
        _warn_once(data_dir, f"{task.name} {split}: {repeated_ids:,} repeated ids were numbered")


def _answer(task: Task, value: Any, place: str, strict: bool, tally: tables.Tally) -> str | None:
    try:
        return task.answer(value)
    except (ValueError, OverflowError) as error:
        if strict:
            raise UserError(f"{place}: column {task.target}: {error}; {_MEND}") from None
        tally.drop(f"no valid {task.target}", place)
        return None


@functools.lru_cache(maxsize=1000)
def _warn_once(data_dir: str, line: str) -> None:
    """A split of a folder may be read several times; it need not be said each time."""
    del data_dir
    _log.warning(line)


def check_answers(task: Task, vocabulary: Vocabulary, length: int = 0) -> None:
    """Checks that the answers of a task can be learned and recognised, before any row is read.

    Args:
      task: any; only label words and numbers are known beforehand.
      vocabulary: turns them into ids.
      length: tokens of a target, EOS included; 0 if nothing is cut.

    Raises:
      UserError: for an answer that does not come back from its ids, or is cut.
    """
    words = task.label_answers
    if task.target_step and task.target_range:
        low, high = task.target_range
        count = round((high - low) / task.target_step)
        steps = (low + number * task.target_step for number in range(min(count, 1000) + 1))
        words = tuple(format_number(number, task.target_step) for number in steps)
    for word in words:
        ids = vocabulary.encode(word)
        back = vocabulary.decode(ids)
        if back != word:
            raise UserError(
                f"TASK_LABELS of {task.name}: {word!r} comes back from the vocabulary as {back!r}, so no "
                "answer would ever equal it; choose a word that it keeps"
            )
        if length and len(ids) >= length and word in task.label_words:
            raise UserError(
                f"TASK_LABELS of {task.name}: {word!r} has {len(ids)} tokens and an end, which are cut to "
                f"{length}; set 'targets' of TASK_FEATURE_LENGTHS to at least {len(ids) + 1}"
            )


def labelled_examples(
    task: Task, split: str, data_dir: str = "data", *, strict: bool = True
) -> list[Example]:
    """All examples of `split` in file order; see `iter_examples`.

    Raises:
      UserError: also if there is none.
    """
    if task.kind != "labelled":
        raise UserError(f"task {task.name} has no labels; it is plain text for pretraining")
    examples = list(iter_examples(task, split, data_dir, strict=strict))
    if not examples:
        raise UserError(no_rows(task, split))
    return examples


def no_rows(task: Task, split: str) -> str:
    """What to say of a split without rows."""
    if not is_divided(task, split):
        return f"task {task.name}: the {split} split has no rows"
    does = "holds out" if split == "validation" else "leaves"
    return (
        f"task {task.name}: the {split} split has no rows; it is what TASK_HOLDOUT = {task.holdout:g} {does} "
        "of the training rows: set another share, or TASK_VALIDATION_FILES"
    )


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples from all over `examples`, in order: files are often ordered by label."""
    count = min(count, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]

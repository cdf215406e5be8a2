# SPDX-License-Identifier: Apache-2.0
"""What a task's answer may be: the words or numbers among which rank evaluation chooses."""

from __future__ import annotations

from collections.abc import Mapping

from kcmoe.errors import UserError
from kcmoe.tasks.registry import Task, format_number


def answers(task: Task) -> tuple[str, ...]:
    """The label words, or sets of them; for a number task the numbers of its range; () for free text.

    Raises:
      UserError: for a range that is not two numbers, the lower one first.
    """
    if not task.target_step or not task.target_range:
        return task.label_answers
    try:
        lowest, highest = map(float, task.target_range)
    except (TypeError, ValueError):
        lowest, highest = 1.0, 0.0
    if not lowest < highest:
        raise UserError(
            f"TASK_TARGET_RANGE = {task.target_range!r} of {task.name} must be two numbers, "
            "the lower one first"
        )
    per_unit = round(1 / task.target_step)
    numbers = range(round(lowest * per_unit), round(highest * per_unit) + 1)
    return tuple(format_number(number / per_unit, task.target_step) for number in numbers)


def per_label(task: Task, probabilities: Mapping[str, float]) -> dict[str, float]:
    """How likely each label is among the right ones, where several may be.

    Args:
      task: its labels.
      probabilities: of each of `answers(task)`.

    Returns:
      Label word -> sum of the probabilities of the answers that name it, at most 1; together they may be
      above it. {} for a task whose answers are one label each.
    """
    if not task.multi_label:
        return {}
    found = dict.fromkeys(task.label_words, 0.0)
    for answer, probability in probabilities.items():
        for position in task.labels_in(answer):
            found[task.label_words[position]] += probability
    return {word: min(1.0, probability) for word, probability in found.items()}

# SPDX-License-Identifier: Apache-2.0
"""What a task's answer may be: the words or numbers among which rank evaluation chooses."""

from __future__ import annotations

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

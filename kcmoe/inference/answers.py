# SPDX-License-Identifier: Apache-2.0
"""What a task's answer may be: the words or numbers among which rank evaluation chooses."""

from __future__ import annotations

from kcmoe.errors import UserError
from kcmoe.tasks import Task, format_number


def answers(task: Task) -> tuple[str, ...]:
    """The label words; for a number task the numbers of its range; () for free text.

    Raises:
      UserError: for a range that is not two numbers, the lower one first.
    """
    if not task.target_step or not task.target_range:
        return task.label_words
    try:
        lowest, highest = map(float, task.target_range)
    except (TypeError, ValueError):
        lowest, highest = 1.0, 0.0
    if not lowest < highest:
        raise UserError(
            f"TASK_TARGET_RANGE = {task.target_range!r} of {task.name} must be two numbers, "
            "the lower one first"
        )
    count = round((highest - lowest) / task.target_step) + 1
    return tuple(
        format_number(lowest + i * task.target_step, task.target_step) for i in range(count)
    )

# SPDX-License-Identifier: Apache-2.0
"""What `kcmoe bench predict` times is what `kcmoe predict` would compute."""

from __future__ import annotations

import pytest

from kcmoe.errors import UserError
from kcmoe.tasks.registry import named_task
from kcmoe.tools.bench import predict
from kcmoe.vocabulary import Vocabulary


def test_lines_stand_in_the_prompt_of_the_task(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("재밌어요\n\n한 줄\u2028같은 줄\n셋째\n", encoding="utf-8")
    ids, labels = predict._encoded(str(file), 2)
    task, vocabulary = named_task("nsmc"), Vocabulary()
    assert [vocabulary.decode(one[:-1]) for one in labels] == list(task.label_words)
    assert len(ids) == 2
    assert vocabulary.decode(ids[0][:-1]) == task.inputs({"document": "재밌어요"})
    assert all(one[-1] == vocabulary.eos_id for one in ids + labels)


def test_a_file_without_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(UserError, match="no line of text"):
        predict._encoded(str(tmp_path / "empty.txt"), 5)

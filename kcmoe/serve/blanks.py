# SPDX-License-Identifier: Apache-2.0
"""Blanks of a text, written as sentinels, and what a model fills them with."""

from __future__ import annotations

import re

from kcmoe.vocabulary import Vocabulary

_SENTINEL = re.compile(r"<(?:extra_id_|unused)(\d+)>")


def end(vocabulary: Vocabulary, text: str) -> int:
    """Id of the sentinel that follows those of a text: behind it nothing fills a blank of the text.

    EOS where a text has no blank, or already the last sentinel there is.
    """
    numbers = [int(number) for number in _SENTINEL.findall(text)]
    after = max(numbers, default=-1) + 1
    if not numbers or after >= vocabulary.num_sentinels:
        return vocabulary.eos_id
    return vocabulary.sentinel_id(after)


def fills(answer: str) -> dict[str, str]:
    """What each sentinel stands for: "<extra_id_0> 날씨가" -> {"<extra_id_0>": "날씨가"}."""
    marks = list(_SENTINEL.finditer(answer))
    ends = [mark.start() for mark in marks[1:]] + [len(answer)]
    found: dict[str, str] = {}
    for mark, end in zip(marks, ends, strict=False):
        found.setdefault(f"<extra_id_{mark[1]}>", answer[mark.end() : end].strip())
    return found

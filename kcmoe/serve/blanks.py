# SPDX-License-Identifier: Apache-2.0
"""Blanks of a text, written as sentinels, and what a model fills them with."""

from __future__ import annotations

import re

from kcmoe.serve.errors import refused
from kcmoe.vocabulary import Vocabulary

_SENTINEL = re.compile(r"<(?:extra_id_|unused)(\d+)>")


def end(vocabulary: Vocabulary, text: str, place: str = "text") -> int:
    """Id of the sentinel that follows those of a text: behind it nothing fills a blank of the text.

    EOS where a text has no blank, or already the last sentinel there is.

    Raises:
      ApiError: for a sentinel that the vocabulary lacks; `place` says where it stands.
    """
    numbers = [int(number[:9]) for number in _SENTINEL.findall(text)]
    last, count = max(numbers, default=-1), vocabulary.num_sentinels
    if last >= count:
        mend = f"use <extra_id_0> to <extra_id_{count - 1}>" if count else "write no sentinel"
        raise refused(f"there is no <extra_id_{last}>: this model has {count}", place, mend)
    return vocabulary.eos_id if last in (-1, count - 1) else vocabulary.sentinel_id(last + 1)


def fills(answer: str) -> dict[str, str]:
    """What each sentinel stands for: "<extra_id_0> 날씨가" -> {"<extra_id_0>": "날씨가"}."""
    marks = list(_SENTINEL.finditer(answer))
    ends = [mark.start() for mark in marks[1:]] + [len(answer)]
    found: dict[str, str] = {}
    for mark, end in zip(marks, ends, strict=False):
        found.setdefault(f"<extra_id_{mark[1]}>", answer[mark.end() : end].strip())
    return found

# SPDX-License-Identifier: Apache-2.0
"""Blanks of a text, written as sentinels, and what the beams of one search fill them with."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kcmoe.errors import UserError
from kcmoe.vocabulary import Vocabulary

SENTINEL = re.compile(r"<(?:extra_id_|unused)(\d+)>")
_NO_BEAM = -5e6  # the search gives places that no beam took far less


@dataclasses.dataclass(frozen=True)
class Beam:
    """One answer of a search.

    Attributes:
      text: the answer, with its sentinels.
      fills: sentinel -> what it stands for, "<extra_id_0>" -> "날씨가".
      log_likelihood: of the whole answer, given the input; exp of it is its probability.
      finished: whether it ended by itself.
    """

    text: str
    fills: dict[str, str]
    log_likelihood: float
    finished: bool


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A text with its blanks filled.

    Attributes:
      text: the whole text; a blank that the model left out stays a sentinel.
      fills: sentinel -> what stands in its place.
      probability: of these fills, among everything that the model might write.
    """

    text: str
    fills: dict[str, str]
    probability: float

    def as_json(self) -> dict[str, Any]:
        """As `kcmoe predict` prints it."""
        return {**dataclasses.asdict(self), "probability": round(self.probability, 6)}


def end(vocabulary: Vocabulary, text: str) -> int:
    """Id of the sentinel that follows those of a text: behind it nothing fills a blank of the text.

    EOS where a text has no blank, or already the last sentinel there is.

    Raises:
      UserError: for a sentinel that the vocabulary lacks.
    """
    numbers = [int(number[:9]) for number in SENTINEL.findall(text)]
    last, count = max(numbers, default=-1), vocabulary.num_sentinels
    if last >= count:
        raise UserError(f"there is no <extra_id_{last}>: the vocabulary has {count} sentinels")
    return vocabulary.eos_id if last in (-1, count - 1) else vocabulary.sentinel_id(last + 1)


def problem(vocabulary: Vocabulary, text: str) -> str:
    """Why a text cannot be filled, "" if it can."""
    if not SENTINEL.search(text):
        return "it has no blank; write <extra_id_0> where words are missing"
    try:
        end(vocabulary, text)
    except UserError as error:
        return str(error)
    return ""


def fills(answer: str) -> dict[str, str]:
    """What each sentinel stands for: "<extra_id_0> 날씨가" -> {"<extra_id_0>": "날씨가"}."""
    marks = list(SENTINEL.finditer(answer))
    ends = [mark.start() for mark in marks[1:]] + [len(answer)]
    found: dict[str, str] = {}
    for mark, behind in zip(marks, ends, strict=False):
        found.setdefault(f"<extra_id_{mark[1]}>", answer[mark.end() : behind].strip())
    return found


def filled(text: str, stands_for: Mapping[str, str]) -> str:
    """`text` with its sentinels replaced; where one stands for nothing, the space before it goes too."""

    def replaced(match: re.Match[str]) -> str:
        words = stands_for.get(f"<extra_id_{match[2]}>", match[0].strip())
        return match[1] + words if words else ""

    return re.sub(f"( ?){SENTINEL.pattern}", replaced, text)


def beams(
    vocabulary: Vocabulary, tokens: np.ndarray, scores: np.ndarray, alpha: float, end_id: int
) -> list[Beam]:
    """The beams of one input, the best first.

    Args:
      vocabulary: turns ids into text.
      tokens: int32 [beams, length] as `BatchedModel.search` gives them, the best last.
      scores: float32 [beams].
      alpha: strength of the brevity penalty of the search.
      end_id: what ended an answer beside EOS.
    """
    pairs = zip(tokens[::-1], scores[::-1], strict=True)
    ends = np.array([vocabulary.eos_id, end_id], np.int32)
    return [
        _beam(vocabulary, ids, float(score), alpha, ends)
        for ids, score in pairs
        if score > _NO_BEAM
    ]


def candidates(text: str, answers: Sequence[Beam]) -> list[Candidate]:
    """`text` filled as each beam says, the likeliest first; those that come out the same are one."""
    found: dict[str, Candidate] = {}
    for beam in answers:
        whole = filled(text, beam.fills)
        before = found[whole].probability if whole in found else 0.0
        stands_for = {name: words for name, words in beam.fills.items() if name in _names(text)}
        found[whole] = Candidate(whole, stands_for, before + math.exp(beam.log_likelihood))
    return sorted(found.values(), key=lambda one: -one.probability)


def _names(text: str) -> set[str]:
    return {f"<extra_id_{number}>" for number in SENTINEL.findall(text)}


def _beam(
    vocabulary: Vocabulary, ids: np.ndarray, score: float, alpha: float, ends: np.ndarray
) -> Beam:
    ended = np.flatnonzero(np.isin(ids, ends))
    # The search divides by the brevity penalty; an unfinished beam has its plain log-probability.
    length = int(ended[0]) + 1 if len(ended) else None
    log_likelihood = score if length is None else score * ((5.0 + length) / 6.0) ** alpha
    if length is not None and ids[length - 1] != vocabulary.eos_id:
        ids = ids[: length - 1]  # the sentinel that ended it stands for nothing
    text = vocabulary.decode(ids)
    return Beam(text, fills(text), log_likelihood, length is not None)

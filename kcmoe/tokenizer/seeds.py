# SPDX-License-Identifier: Apache-2.0
"""Which strings may become pieces at all: those that stay inside one morpheme where they occur.

SentencePiece's own seeding takes every repeated string that lies inside some morpheme once or twice.
MeCab reads an unknown run such as 볼만한드라마 as one morpheme, so 볼만한 would be a seed, and because it
is frequent in plain text it would win a place although MeCab nearly always cuts it. Here a string is a
seed only if at least a given share of all its occurrences lie inside one morpheme. Strings without a
Hangul syllable are let through: MeCab cuts "..." and "!!" now one way, now the other.
Memory is bounded by the candidates and one chunk of lines, not by the corpus.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from kcmoe.tokenizer.normalization import DELIMITER

SPACE_MARK = "\u2581"  # how SentencePiece writes a space: a piece that begins a word begins with it

_LINES_PER_CHUNK = 200_000
_MIN_COUNT = 2
_MAX_SEEDS = 1_000_000


def find(
    lines: Callable[[], Iterable[str]], min_inside_share: float, max_chars: int
) -> list[tuple[str, int]]:
    """Seeds and how often each lies inside one morpheme, the ones that cover most text first.

    Args:
      lines: gives the marked lines from the start; called twice.
      min_inside_share: least share of a string's occurrences that must lie inside one morpheme.
      max_chars: longest piece in characters, the space mark included.
    """
    morphemes: collections.Counter[str] = collections.Counter()
    for words in _word_counts(lines()):
        for word, count in words.items():
            for morpheme in word.split(DELIMITER):
                morphemes[morpheme] += count
    inside = _substrings(morphemes, max_chars)
    anywhere = dict.fromkeys(inside, 0)
    for words in _word_counts(lines()):
        for word, count in words.items():
            _count_known(word.replace(DELIMITER, ""), count, max_chars, anywhere)
    seeds = [
        (text, count)
        for text, count in inside.items()
        if count >= min_inside_share * anywhere[text] or not has_syllable(text)
    ]
    seeds.sort(key=lambda seed: (-seed[1] * len(seed[0]), seed[0]))
    return seeds[:_MAX_SEEDS]


def has_syllable(text: str) -> bool:
    """Whether any character is a Hangul syllable (jamo such as ㅋ are not)."""
    return any("가" <= char <= "힣" for char in text)


def write(seeds: Iterable[tuple[str, int]], path: Path) -> None:
    """Writes SentencePiece's `seed_sentencepieces_file`: piece, tab, count."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{text}\t{count}\n" for text, count in seeds)


def _word_counts(lines: Iterable[str]) -> Iterator[collections.Counter[str]]:
    """Counts of marked words, each begun with the space mark, chunk by chunk."""
    source = iter(lines)
    while chunk := list(itertools.islice(source, _LINES_PER_CHUNK)):
        yield collections.Counter(SPACE_MARK + word for line in chunk for word in line.split(" "))


def _substrings(morphemes: Mapping[str, int], max_chars: int) -> dict[str, int]:
    """Strings of 2 to `max_chars` characters inside morphemes that occur `_MIN_COUNT` times or more.

    Length by length: a string can only be frequent if both its ends, one character shorter, are.
    """
    frequent: dict[str, int] = {}
    last: Mapping[str, int] = {}
    texts = list(morphemes.items())
    for length in range(2, max_chars + 1):
        texts = [(text, count) for text, count in texts if len(text) >= length]
        counts: collections.Counter[str] = collections.Counter()
        for text, count in texts:
            for start in range(len(text) - length + 1):
                part = text[start : start + length]
                if length == 2 or (part[:-1] in last and part[1:] in last):
                    counts[part] += count
        last = {part: count for part, count in counts.items() if count >= _MIN_COUNT}
        frequent |= last
    return frequent


def _count_known(word: str, count: int, max_chars: int, known: dict[str, int]) -> None:
    """Adds `count` for each string of `word` that is a key of `known`.

    Every prefix of a key of two or more characters is a key, so the first miss ends a start.
    """
    for start in range(len(word) - 1):
        for end in range(start + 2, min(len(word), start + max_chars) + 1):
            part = word[start:end]
            if part not in known:
                break
            known[part] += count

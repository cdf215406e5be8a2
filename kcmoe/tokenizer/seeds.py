# SPDX-License-Identifier: Apache-2.0
"""What SentencePiece is given to learn from: morphemes with their counts, and the strings that may be pieces.

A unigram model needs no running text, only distinct strings and how often they occur. Given morphemes
instead of lines, every piece is weighed by its use inside morphemes, and fitting takes seconds
and little memory. Seeds are counted here because SentencePiece's own seeding passes over
strings that only occur at the end of a morpheme (▁이, 재미있), the most useful ones.

MeCab reads an unknown run such as 볼만한드라마 as one morpheme, so 볼만한 occurs inside one, although it is
nearly always cut. A string is a seed only if at least a given share of all its occurrences
lie inside one morpheme. Strings without a Hangul syllable are let through: MeCab cuts "..." and "!!"
now one way, now the other. Memory is bounded by what is distinct and one chunk of lines.
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


def count_morphemes(lines: Iterable[str]) -> collections.Counter[str]:
    """How often each morpheme occurs in marked lines; one that begins a word begins with the space mark."""
    morphemes: collections.Counter[str] = collections.Counter()
    for words in _word_counts(lines):
        for word, count in words.items():
            for morpheme in word.split(DELIMITER):
                morphemes[morpheme] += count
    return morphemes


def find(
    morphemes: Mapping[str, int], lines: Iterable[str], min_inside_share: float, max_chars: int
) -> list[tuple[str, int]]:
    """Seeds and how often each lies inside one morpheme, the ones that cover most text first.

    Args:
      morphemes: counts of `count_morphemes`.
      lines: the same marked lines again.
      min_inside_share: least share of a string's occurrences that must lie inside one morpheme.
      max_chars: longest piece in characters, the space mark included.
    """
    inside = _substrings(morphemes, max_chars)
    anywhere = dict.fromkeys(inside, 0)
    for words in _word_counts(lines):
        for word, count in words.items():
            _count_known(word.replace(DELIMITER, ""), count, max_chars, anywhere)
    seeds = [
        (text, count)
        for text, count in inside.items()
        if count >= min_inside_share * anywhere[text] or not has_syllable(text)
    ]
    return in_order(seeds, weigh=len)[:_MAX_SEEDS]


def in_order(
    counts: Iterable[tuple[str, int]], weigh: Callable[[str], int] = lambda text: 1
) -> list[tuple[str, int]]:
    """Sorted by count x weight, then text, so that equal corpora give equal files."""
    return sorted(counts, key=lambda item: (-item[1] * weigh(item[0]), item[0]))


def has_syllable(text: str) -> bool:
    """Whether any character is a Hangul syllable (jamo such as ㅋ are not)."""
    return any("가" <= char <= "힣" for char in text)


def write(counts: Iterable[tuple[str, int]], path: Path) -> None:
    """Writes text, tab, count: SentencePiece's form of both seeds and counted input."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{text}\t{count}\n" for text, count in counts)


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

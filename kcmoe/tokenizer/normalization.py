# SPDX-License-Identifier: Apache-2.0
"""Which characters the vocabulary folds together before it looks for pieces.

SentencePiece's default `nmt_nfkc` turns the ㅋ of ㅋㅋㅋ into a syllable-initial ᄏ that displays badly
and never comes back. The rules here keep what people typed (compatibility jamo, emoji with their
joiners, ~, …, full-width forms) and fold only noise: decomposed Hangul becomes composed (NFC), stray
conjoining and half-width jamo become the letters of the keyboard, odd spaces a space, and invisible
control characters nothing. They are compiled into the model, so inference needs nothing from here.
Every range is one that Unicode has not changed since 6.1, so every Python gives the same rules.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from kcmoe.config.tokenizer import Normalization

if TYPE_CHECKING:
    import sentencepiece

# Marks morpheme boundaries while a vocabulary is trained. A noncharacter: Unicode reserves it for a
# program's own use, so a text that holds it is damaged and loses it.
DELIMITER = "\ufdd0"

_LEADS = range(0x1100, 0x1113)
_VOWELS = range(0x1161, 0x1176)
_TAILS = range(0x11A8, 0x11C3)
_SYLLABLES = range(0xAC00, 0xD7A4)
_HALF_WIDTH_JAMO = tuple(c for c in range(0xFFA1, 0xFFDD) if unicodedata.decomposition(chr(c)))

_SPACES = (
    *range(0x09, 0x0E),
    0x85,
    0xA0,
    0x1680,
    *range(0x2000, 0x200B),
    0x2028,
    0x2029,
    0x202F,
    0x205F,
    0x2581,  # SentencePiece's own mark of a space
    0x3000,
    *(0x115F, 0x1160, 0x3164, 0xFFA0),  # Hangul fillers: blanks that pass for letters
)
# U+0000 is missing here because SentencePiece's table cannot hold it; `clean` removes it.
_INVISIBLE = (
    *range(0x01, 0x09),
    *range(0x0E, 0x20),
    *range(0x7F, 0x85),
    *range(0x86, 0xA0),
    0xAD,
    0x200B,
    0x200C,
    0x200E,
    0x200F,
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2070),
    0xFEFF,
    *range(0xFFF9, 0xFFFC),
)
_ALPHABETS = (*range(0xC0, 0x250), *range(0x1E00, 0x1F00), *range(0x3041, 0x3100))
_COMPATIBILITY_HANJA = range(0xF900, 0xFADA)


def rules() -> Mapping[str, str]:
    """The "comments" normalisation: source sequence -> target. The longest source that fits wins."""
    table = dict.fromkeys(map(chr, _SPACES), " ") | dict.fromkeys(map(chr, _INVISIBLE), "")
    for code in chain(_LEADS, _VOWELS, _TAILS):
        table[chr(code)] = _keyboard_letter(chr(code))
    for code in _HALF_WIDTH_JAMO:
        table[chr(code)] = chr(int(unicodedata.decomposition(chr(code)).split()[1], 16))
    for code in chain(_SYLLABLES, _ALPHABETS):
        for sequence in _spellings(chr(code)):
            table[sequence] = chr(code)
    for code in _COMPATIBILITY_HANJA:
        composed = unicodedata.normalize("NFC", chr(code))
        if composed != chr(code):
            table[chr(code)] = composed
    return table


def _keyboard_letter(jamo: str) -> str:
    """ᄏ, ᅲ or ᆫ alone -> ㅋ, ㅠ, ㄴ, by Unicode's names of the two."""
    return unicodedata.lookup("HANGUL LETTER " + unicodedata.name(jamo).split(maxsplit=2)[2])


def _spellings(char: str) -> Iterator[str]:
    """The canonical spellings of a composed character other than itself, such as 한 as 하 + ᆫ."""
    parts = unicodedata.normalize("NFD", char)
    if len(parts) > 1 and unicodedata.normalize("NFC", parts) == char:
        for cut in range(1, len(parts)):
            yield unicodedata.normalize("NFC", parts[:cut]) + parts[cut:]


def write_rules(table: Mapping[str, str], path: Path) -> None:
    """Writes rules in the format of SentencePiece's `normalization_rule_tsv`: code points in hex."""

    def codes(text: str) -> str:
        return " ".join(f"{ord(char):X}" for char in text)

    lines = sorted(f"{codes(source)}\t{codes(target)}\n" for source, target in table.items())
    path.write_text("".join(lines), encoding="ascii")


def trainer_options(name: Normalization, folder: Path) -> dict[str, str]:
    """The options of SentencePiece's trainer that select `name`; rule files are written to `folder`."""
    if name != "comments":
        return {"normalization_rule_name": name}
    path = folder / "normalization.tsv"
    write_rules(rules(), path)
    return {"normalization_rule_tsv": str(path)}


def normalizer(options: Mapping[str, str]) -> sentencepiece.SentencePieceNormalizer:
    """What a model trained with `options` will do to a text, spaces shown as spaces."""
    import sentencepiece

    sentencepiece.set_min_log_level(1)
    return sentencepiece.SentencePieceNormalizer(
        rule_tsv=options.get("normalization_rule_tsv"),
        rule_name=options.get("normalization_rule_name"),
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=True,
    )


def clean(text: str) -> str:
    """One line that can be marked: no line breaks, nulls, surrogates or delimiters."""
    return " ".join(text.translate(_UNMARKABLE).split())


def _deletions(codes: Iterable[int]) -> dict[int, str]:
    return dict.fromkeys(codes, "")


_UNMARKABLE = _deletions([0x00, ord(DELIMITER), *range(0xD800, 0xE000)])

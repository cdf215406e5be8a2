# SPDX-License-Identifier: Apache-2.0
"""KcBERT's published cleaning of comments, one switchable rule at a time.

Rules and their order follow the cleaning function in the README of Beomi/KcBERT (2020): everything but
Hangul, ASCII, some punctuation and emoji becomes a space, URLs go, runs of one letter are cut to two
(soynlp's repeat_normalize), texts of ten characters or fewer are dropped. KcBERT leaves ASCII control
characters alone; here they become spaces (rule "control"). It erases decomposed Hangul, as macOS
writes it; here that is composed first (rule "compose"). Emoji are Unicode's own list.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata

from kcmoe.data.tokenizing import MAX_CHARACTERS
from kcmoe.errors import UserError, near_misses

# Code points with the property Emoji in the basic plane, digits and # * aside, and what joins them.
_EMOJI = (
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u23cf\u23e9-\u23f3"
    "\u23f8-\u23fa\u24c2\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2604\u260e\u2611\u2614\u2615\u2618"
    "\u261d\u2620\u2622\u2623\u2626\u262a\u262e\u262f\u2638-\u263a\u2640\u2642\u2648-\u2653\u265f\u2660"
    "\u2663\u2665\u2666\u2668\u267b\u267e\u267f\u2692-\u2697\u2699\u269b\u269c\u26a0\u26a1\u26a7\u26aa"
    "\u26ab\u26b0\u26b1\u26bd\u26be\u26c4\u26c5\u26c8\u26ce\u26cf\u26d1\u26d3\u26d4\u26e9\u26ea"
    "\u26f0-\u26f5\u26f7-\u26fa\u26fd\u2702\u2705\u2708-\u270d\u270f\u2712\u2714\u2716\u271d\u2721\u2728"
    "\u2733\u2734\u2744\u2747\u274c\u274e\u2753-\u2755\u2757\u2763\u2764\u2795-\u2797\u27a1\u27b0\u27bf"
    "\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u3030\u303d\u3297\u3299"
    "\U0001f000-\U0001faff"
    "\u200d\ufe0f\u20e3\U000e0020-\U000e007f"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufeff\u2028\u2029]+")
_DECOMPOSED = re.compile(r"[가-힣]?[\u1100-\u11ff]+")
_FOREIGN = re.compile(rf"[^ .,?!/@$%~％·∼()\x00-\x7Fㄱ-힣{_EMOJI}]+")
_URL = re.compile(
    r"https?://(www\.)?[-a-zA-Z0-9@:%._+~#=]{1,256}\.[a-zA-Z0-9()]{1,6}\b([-a-zA-Z0-9()@:%_+.~#?&/=]*)"
)
_REPEATS = re.compile(r"(\w)\1{2,}")

RULES = {
    "control": "control characters and line separators become a space",
    "compose": "decomposed Hangul becomes syllables, which charset keeps",
    "charset": "all but Hangul, Hanja, ASCII, some punctuation and emoji becomes a space",
    "urls": "http and https addresses are removed",
    "repeats": "three or more of the same letter or digit in a row become two",
    "spaces": "runs of white space become one space, none at the ends",
    "short": "texts of ten characters or fewer are dropped",
    "duplicates": "of equal texts the first is kept",
}
MIN_CHARACTERS = 11


@dataclasses.dataclass(frozen=True)
class Cleaner:
    """The rules in force.

    Attributes:
      rules: names from `RULES`.
      min_characters: under the rule "short".
      max_characters: longer texts are dropped, whatever the rules.
    """

    rules: frozenset[str] = frozenset(RULES)
    min_characters: int = MIN_CHARACTERS
    max_characters: int = MAX_CHARACTERS

    @classmethod
    def without(cls, rules: list[str], **limits: int) -> Cleaner:
        """All rules but these; `UserError` for a name that is none."""
        for rule in rules:
            if rule not in RULES:
                hint = near_misses(rule, RULES)
                raise UserError(f"--without: no rule {rule}.{hint} Rules: {', '.join(RULES)}")
        return cls(frozenset(RULES) - frozenset(rules), **limits)

    def clean(self, text: str) -> str:
        """The text after the rules that change texts."""
        rules = self.rules
        if "control" in rules:
            text = _CONTROL.sub(" ", text)
        # Asking first is ten times as fast as searching, and nearly every text is composed.
        if "compose" in rules and not unicodedata.is_normalized("NFC", text):
            text = _DECOMPOSED.sub(lambda run: unicodedata.normalize("NFC", run[0]), text)
        if "charset" in rules:
            text = _FOREIGN.sub(" ", text)
        if "urls" in rules and "://" in text:
            text = _URL.sub("", text)
        if "repeats" in rules:
            text = _REPEATS.sub(r"\1\1", text)
        if "spaces" in rules:
            text = " ".join(text.split())
        return text

    def reason_to_drop(self, cleaned: str) -> str | None:
        """Why a cleaned text is left out, or None."""
        if not cleaned or cleaned.isspace():
            return "empty"
        if "short" in self.rules and len(cleaned) < self.min_characters:
            return "short"
        if len(cleaned) > self.max_characters:
            return "too long"
        return None

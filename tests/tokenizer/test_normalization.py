# SPDX-License-Identifier: Apache-2.0
"""The characters of informal Korean come back; only noise is folded."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from kcmoe.tokenizer import normalization


@pytest.fixture(scope="module")
def normalize(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("rules")
    return normalization.normalizer(normalization.trainer_options("comments", folder)).Normalize


@pytest.mark.parametrize(
    "text",
    [
        "ㅋㅋㅋ ㅎㅎ ㅠㅠ ㅜㅜ ㄷㄷ ㅇㅇ ㄱㄱ ㅗ",
        "재밌어요~~ ♥ … ‥ ‼ ！？ ～ Ａ１ ①  ㉠".replace("  ", " "),
        "👍🏻 👨‍👩‍👧 ❤️ ☺ 🇰🇷",
        "“인용” ‘인용’ ·  「책」 ㎏ ½".replace("  ", " "),
        "아ᆢ 그래요",  # U+11A2, typed as an ellipsis on some keyboards
        "<unused3> <extra_id_3> </s> <pad>",
    ],
)
def test_what_people_type_stays(normalize: Any, text: str) -> None:
    assert normalize(text) == text


def test_the_default_of_sentencepiece_would_not_keep_it(tmp_path: Path) -> None:
    options = normalization.trainer_options("nmt_nfkc", tmp_path)
    assert normalization.normalizer(options).Normalize("ㅋㅋㅋ…") != "ㅋㅋㅋ…"


def test_decomposed_hangul_is_composed(normalize: Any) -> None:
    syllables = "".join(map(chr, range(0xAC00, 0xD7A4)))
    assert normalize(unicodedata.normalize("NFD", syllables)) == syllables
    assert normalize("하" + "\u11ab" + "국") == "한국"  # half composed
    assert normalize(unicodedata.normalize("NFD", "Café が")) == "Café が"


@pytest.mark.parametrize(
    ("noise", "clean"),
    [
        ("\u110f\u110f\u110f", "ㅋㅋㅋ"),
        ("\u1172\u1172", "ㅠㅠ"),
        ("ﾡﾡ", "ㄱㄱ"),
        ("\uf933", "\u76e7"),  # a compatibility ideograph, canonically equal
        ("가\u200b나\ufeff다\u00ad", "가나다"),
        ("가\u3000나\u00a0다\u3164라", "가 나 다 라"),
        ("  가 \t나\n", "가 나"),
        ("가\x01\x7f나", "가나"),
        ("가\u2581나", "가 나"),
        ("\u202e가", "가"),
    ],
)
def test_noise_is_folded(normalize: Any, noise: str, clean: str) -> None:
    assert noise != clean
    assert normalize(noise) == clean


def test_normalising_twice_is_normalising_once(normalize: Any) -> None:
    table = normalization.rules()
    for target in set(table.values()):
        assert normalize(f"가{target}나") == f"가{target}나"


def test_rules_do_not_wear_out() -> None:
    first, second = normalization.rules(), normalization.rules()
    assert first == second
    assert len(first) > 20_000


def test_clean_leaves_one_line_without_marks() -> None:
    assert normalization.clean(" 가\n나\r\n\x00다\ufdd0라\ud800 ") == "가 나 다라"
    assert normalization.clean("\n \x00") == ""

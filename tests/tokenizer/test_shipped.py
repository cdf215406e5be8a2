# SPDX-License-Identifier: Apache-2.0
"""The vocabulary that ships: its ids, its record, what it keeps of comments, and SeqIO's view of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import sentencepiece

from kcmoe.config import gin_files
from kcmoe.config.tokenizer import TokenizerConfig
from kcmoe.io import resources
from kcmoe.tokenizer import report

BASE = resources.find("vocab/kcmoe_32k.model")
TWIN = resources.find("vocab/kcmoe_32k.100extra.model")
DATA = Path(__file__).resolve().parents[2] / "../shared/data"

TEXTS = [
    "재밌어요ㅋㅋㅋ ㅠㅠ ㅎㅎ ~~ … ！ ♥ 👍🏻 👨‍👩‍👧",
    "<unused3> <extra_id_3> <unused0>좋다<unused99>",
    "</s><pad><unk> 뷁 쀓 龘",
    "  앞뒤 공백  ",
]


@pytest.fixture(scope="module")
def processors() -> list[sentencepiece.SentencePieceProcessor]:
    return [report.load(BASE), report.load(TWIN)]


def test_sizes_and_ids(processors: list[sentencepiece.SentencePieceProcessor]) -> None:
    assert [p.vocab_size() for p in processors] == [32_000, 32_100]
    for p in processors:
        assert (p.pad_id(), p.eos_id(), p.unk_id(), p.bos_id()) == (0, 1, 2, -1)
    base, twin = processors
    assert all(base.id_to_piece(i) == twin.id_to_piece(i) for i in range(32_000))
    assert [twin.id_to_piece(32_099 - n) for n in range(100)] == [
        f"<unused{n}>" for n in range(100)
    ]


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_text(processors: list[sentencepiece.SentencePieceProcessor], text: str) -> None:
    base, twin = processors
    assert base.encode(text) == twin.encode(text)
    assert min(twin.encode(text)) > 2
    assert max(twin.encode(text)) < 32_000
    assert twin.decode(twin.encode(text)) == " ".join(text.split())


def test_the_record_names_these_files_and_the_shipped_settings() -> None:
    record = json.loads(BASE.with_suffix(".json").read_text(encoding="utf-8"))
    for file in (BASE, TWIN):
        assert record["models"][file.name] == hashlib.sha256(file.read_bytes()).hexdigest()
    macros = gin_files.parse(["configs/tokenizer/unigram_32k.gin"])
    TokenizerConfig.from_macros(macros)  # every setting is valid
    assert not Path(macros["TOKENIZER_OUTPUT"]).exists()  # a run by default overwrites nothing
    for name, value in record["settings"].items():
        assert macros.get(name) == value, name


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the comments of ../shared/data")
def test_comments_come_back() -> None:
    text = report.read_text(str(DATA / "comments/validation.parquet"), 2000)
    assert len(text.lines) == 2000
    measures = report.measure(TWIN, text)
    assert measures.round_trip >= 0.999
    assert measures.unknown_tokens == 0.0
    assert measures.tokens_per_char < 0.54
    if measures.across_hangul is not None:
        assert measures.across_hangul < 0.01


def test_seqio_sees_the_same() -> None:
    seqio = pytest.importorskip("seqio", reason="SeqIO is not installed: kcmoe[seqio]")
    base, twin = (seqio.SentencePieceVocabulary(str(file)) for file in (BASE, TWIN))
    assert (base.vocab_size, twin.vocab_size) == (32_000, 32_100)
    for vocabulary in (base, twin):
        assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
        assert vocabulary.bos_id in (None, -1)
    plain = report.load(BASE)
    for text in TEXTS:
        assert twin.encode(text) == base.encode(text) == plain.encode(text)
        assert twin.encode_tf(text).numpy().tolist() == plain.encode(text)
    assert twin.decode([32_099, *plain.encode("좋아"), 32_098]).split() == [
        "<unused0>",
        "좋아<unused1>",
    ]

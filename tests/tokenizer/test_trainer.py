# SPDX-License-Identifier: Apache-2.0
"""A vocabulary from corpus to files: what it holds, that it repeats, and every way it can go wrong."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece

from kcmoe.config import gin_files
from kcmoe.config.tokenizer import Segmentation, TokenizerConfig
from kcmoe.errors import UserError
from kcmoe.io import resources
from kcmoe.tokenizer import fit, morphemes, report, trainer

_SAMPLES = resources.find("kcmoe/samples/comments.txt").read_text(encoding="utf-8").splitlines()
TRAIN, UNSEEN = _SAMPLES[:1500], _SAMPLES[1500:1800]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TokenizerConfig:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(3):
        table = pa.table({"text": TRAIN[number * 500 : number * 500 + 500]})
        pq.write_table(table, folder / f"train-{number}.parquet")
    macros = gin_files.parse(["configs/tokenizer/unigram_32k.gin"]).replace(
        DATA_DIR=str(folder),
        TOKENIZER_CORPUS=["train-*.parquet"],
        TOKENIZER_OUTPUT=str(folder / "out" / "small.model"),
        TOKENIZER_VOCAB_SIZE=1500,
        TOKENIZER_BYTE_FALLBACK=False,
        TOKENIZER_WORKERS=1,
    )
    return TokenizerConfig.from_macros(macros)


def _changed(settings: TokenizerConfig, folder: Path, **changes: object) -> TokenizerConfig:
    return dataclasses.replace(settings, output=str(folder / "small.model"), **changes)  # type: ignore[arg-type]


def _quiet(line: str) -> None:
    pass


needs_mecab = pytest.mark.skipif(not report.has_mecab(), reason="MeCab is not installed")


@needs_mecab
def test_no_piece_is_larger_than_a_morpheme(settings: TokenizerConfig, tmp_path: Path) -> None:
    result = trainer.train(_changed(settings, tmp_path, min_inside_share=1.0), _quiet)
    processor = report.load(result.model)
    assert processor.vocab_size() == 1500
    unseen = report.measure(result.model, report.Text("unseen", UNSEEN))
    assert unseen.across_hangul is not None
    assert unseen.across_hangul < 0.002  # MeCab may cut an unseen line in a way it never cut before
    assert unseen.round_trip == 1.0
    plain = trainer.train(_changed(settings, tmp_path / "plain", segmentation="none"), _quiet)
    crossing = report.measure(plain.model, report.Text("unseen", UNSEEN))
    assert crossing.across_hangul is not None
    assert crossing.across_hangul > 0.02  # ten times the bound above


@needs_mecab
def test_the_same_corpus_gives_the_same_bytes(settings: TokenizerConfig, tmp_path: Path) -> None:
    first = trainer.train(_changed(settings, tmp_path / "a"), _quiet)
    second = trainer.train(_changed(settings, tmp_path / "b", workers=2), _quiet)
    for name in ("model", "twin", "record"):
        assert getattr(first, name).read_bytes() == getattr(second, name).read_bytes(), name
    other = trainer.train(_changed(settings, tmp_path / "c", sample_lines=900, seed=1), _quiet)
    assert other.lines == 900
    assert other.model.read_bytes() != first.model.read_bytes()
    assert str(tmp_path).encode() not in first.model.read_bytes()


@pytest.mark.parametrize("segmentation", ["delimiter", "spaces", "none"])
@needs_mecab
def test_other_ways_train_too(
    settings: TokenizerConfig, tmp_path: Path, segmentation: Segmentation
) -> None:
    result = trainer.train(_changed(settings, tmp_path, segmentation=segmentation), _quiet)
    processor = report.load(result.model)
    assert processor.vocab_size() == 1500
    line = TRAIN[0]
    assert processor.decode(processor.encode(line)) == line
    assert not any("\ufdd0" in processor.id_to_piece(i) for i in range(1500))


def test_without_morphemes_mecab_is_not_asked_for(
    settings: TokenizerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise UserError("MeCab is not installed")

    monkeypatch.setattr(morphemes, "require", absent)
    assert trainer.train(_changed(settings, tmp_path, segmentation="none"), _quiet).model.exists()
    with pytest.raises(UserError, match="MeCab is not installed"):
        trainer.train(_changed(settings, tmp_path), _quiet)


def test_the_files_and_their_record(settings: TokenizerConfig, tmp_path: Path) -> None:
    config = _changed(settings, tmp_path, segmentation="none", byte_fallback=True)
    said: list[str] = []
    result = trainer.train(config, said.append)
    assert said[0].startswith("corpus: 3 files, about 1,500 lines")
    assert "GB of memory" in said[1]
    base, twin = (
        sentencepiece.SentencePieceProcessor(model_file=str(f)) for f in (result.model, result.twin)
    )
    assert result.twin.name == "small.100extra.model"
    assert (base.vocab_size(), twin.vocab_size()) == (1500, 1600)
    for text in ("ㅋㅋㅋ ㅠㅠ…", "\u1112\u1161\u11ab", "뷁 👍"):
        assert base.encode(text) == twin.encode(text)
    assert base.decode(base.encode("ㅋㅋㅋ ㅠㅠ… 뷁 👍")) == "ㅋㅋㅋ ㅠㅠ… 뷁 👍"
    record = json.loads(result.record.read_text(encoding="utf-8"))
    assert record["lines"] == 1500
    assert record["files"] == [f"train-{n}.parquet" for n in range(3)]
    assert record["settings"]["TOKENIZER_VOCAB_SIZE"] == 1500
    assert set(record["models"]) == {"small.model", "small.100extra.model"}
    assert str(tmp_path) not in result.record.read_text(encoding="utf-8")


def test_too_large_a_vocabulary_names_the_largest(
    settings: TokenizerConfig, tmp_path: Path
) -> None:
    config = _changed(settings, tmp_path, segmentation="none", vocab_size=32_000)
    with pytest.raises(fit.VocabularySizeError, match="the largest size that works is") as caught:
        trainer.train(config, _quiet)
    assert list(tmp_path.iterdir()) == []
    smaller = dataclasses.replace(config, vocab_size=caught.value.nearest)
    assert trainer.train(smaller, _quiet).model.exists()


def test_too_small_a_vocabulary_names_the_smallest(
    settings: TokenizerConfig, tmp_path: Path
) -> None:
    config = _changed(settings, tmp_path, segmentation="none", vocab_size=20)
    with pytest.raises(fit.VocabularySizeError, match="single characters and reserved pieces"):
        trainer.train(config, _quiet)


def test_a_killed_trainer_is_explained(
    settings: TokenizerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = tmp_path / "killed"
    shell.write_text("#!/bin/sh\nkill -9 $$\n")
    shell.chmod(0o755)
    config = _changed(settings, tmp_path / "out", segmentation="none")
    monkeypatch.setattr(sys, "executable", str(shell))
    with pytest.raises(UserError, match="memory ran out"):
        trainer.train(config, _quiet)


def test_an_empty_corpus(settings: TokenizerConfig, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    config = _changed(settings, tmp_path, data_dir=str(tmp_path), corpus=("*.txt",))
    with pytest.raises(UserError, match="the corpus is empty"):
        trainer.train(dataclasses.replace(config, segmentation="none"), _quiet)


def test_hostile_lines_are_learned_from(settings: TokenizerConfig, tmp_path: Path) -> None:
    lines = [
        *TRAIN,
        "가" * 3_000_000,
        "영화\x00\ufdd0는\x07 좋다",
        "\ufdd0",
        "\t▁\t",
        "👍" * 5000,
    ]
    table = pa.table({"text": pa.array([*lines, None], pa.string())})
    pq.write_table(table, tmp_path / "hostile.parquet")
    config = _changed(
        settings, tmp_path, data_dir=str(tmp_path), corpus=("hostile.parquet",), segmentation="none"
    )
    processor = report.load(trainer.train(config, _quiet).model)
    pieces = {processor.id_to_piece(i) for i in range(processor.vocab_size())}
    assert not any(char in piece for piece in pieces for char in "\x00\x07\ufdd0\t")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 3}, "TOKENIZER_VOCAB_SIZE = 3"),
        ({"character_coverage": 1.5}, "must be at most 1"),
        ({"output": "a.bin"}, r"must end in \.model"),
        ({"output": "gs://bucket/a.model"}, "is in a bucket"),
        ({"sample_lines": 0}, "TOKENIZER_SAMPLE_LINES = 0"),
    ],
)
def test_settings_that_cannot_work(
    settings: TokenizerConfig, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        values = dataclasses.asdict(settings) | changes
        names = {field.name: field.metadata["macro"] for field in dataclasses.fields(settings)}
        macros = gin_files.parse().replace(**{names[name]: values[name] for name in names})
        TokenizerConfig.from_macros(macros)

# SPDX-License-Identifier: Apache-2.0
"""Measures of a vocabulary small enough to check by hand, in every form they are printed."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece

from kcmoe.errors import UserError
from kcmoe.tokenizer import morphemes, report, report_output

CORPUS = ["영화는 재미있다", "영화가 재미없다", "정말 재미있는 영화", "ㅋㅋㅋ 정말"] * 20


def _model(path: Path, **options: object) -> Path:
    written = io.BytesIO()
    settings = {
        "vocab_size": 40,
        "hard_vocab_limit": False,
        "normalization_rule_name": "identity",
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "bos_id": -1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=written, **{**settings, **options}
    )
    path.write_bytes(written.getvalue())
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    plain = _model(folder / "plain.model")
    return plain, _model(folder / "bytes.model", byte_fallback=True, vocab_size=300)


@pytest.mark.parametrize(
    ("char", "kind"),
    [
        ("가", "Hangul"),
        ("ㅋ", "jamo"),
        ("\u110f", "jamo"),
        ("盧", "Hanja"),
        ("👍", "emoji"),
        ("❤", "emoji"),
        ("a", "other"),
        ("…", "other"),
        (" ", "other"),
    ],
)
def test_kinds(char: str, kind: str) -> None:
    assert report.kind_of(char) == kind


def test_surfaces_lie_end_to_end(models: Sequence[Path]) -> None:
    text = "정말 재미있는 뷁 영화👍🏻 ㅋㅋ"
    for model in models:
        processor = report.load(model)
        found = report.surfaces(processor, text)
        assert "".join(part for _, part in found) == f" {text}"
        assert [token for token, _ in found] == processor.encode(text)
    spelled = [part for token, part in found if processor.is_byte(token)]
    assert [part for part in spelled if part] == ["뷁", "👍", "🏻"]
    assert len(spelled) == 3 + 4 + 4


def test_measures_by_hand(models: Sequence[Path]) -> None:
    text = report.Text("hand", ["영화", "뷁 ㅋ"])
    plain, in_bytes = (report.measure(model, text) for model in models)
    processor = report.load(models[0])
    tokens = [len(processor.encode(line)) for line in text.lines]
    assert (plain.lines, plain.chars) == (2, 5)
    assert plain.tokens_per_char == pytest.approx(sum(tokens) / 5)
    assert plain.tokens_per_line == pytest.approx(sum(tokens) / 2)
    assert plain.unknown == {
        "Hangul": pytest.approx(1 / 3),
        "jamo": 0,
        "Hanja": 0,
        "emoji": 0,
        "other": 0,
    }
    assert (plain.round_trip, plain.round_trip_all) == (1.0, 0.5)
    assert (in_bytes.unknown_tokens, in_bytes.round_trip_all) == (0.0, 1.0)
    assert in_bytes.in_bytes["Hangul"] == pytest.approx(1 / 3)
    used = {token for line in text.lines for token in processor.encode(line)} - {processor.unk_id()}
    assert plain.never_used == pytest.approx(1 - len(used) / (processor.vocab_size() - 3))


def test_a_normalisation_that_changes_the_text_shows(tmp_path: Path) -> None:
    model = _model(tmp_path / "nmt.model", normalization_rule_name="nmt_nfkc")
    text = report.Text("jamo", ["ㅋㅋㅋ", "영화"])
    assert report.measure(model, text).round_trip == 0.5


def test_boundaries_by_hand(models: Sequence[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    text = report.Text("one", ["영화는"])
    pieces = report.load(models[0]).encode("영화는", out_type=str)
    assert pieces == ["▁영화", "는"]
    monkeypatch.setattr(report, "has_mecab", lambda: True)
    # As the model sees it the text is " 영화는".
    monkeypatch.setattr(morphemes, "spans", lambda seen: [(1, 3), (3, 4)])
    agreeing = report.measure(models[0], text)
    assert (agreeing.across, agreeing.across_hangul, agreeing.boundaries_agree) == (0.0, 0.0, 1.0)
    monkeypatch.setattr(morphemes, "spans", lambda seen: [(1, 2), (2, 4)])
    crossing = report.measure(models[0], text)
    assert (crossing.across, crossing.across_hangul, crossing.boundaries_agree) == (0.5, 0.5, 0.0)


def test_without_mecab_the_rest_is_measured(
    models: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise UserError("not installed")

    monkeypatch.setattr(morphemes, "require", absent)
    measures = report.measure(models[0], report.Text("one", ["영화"]))
    assert measures.across is None
    assert "no MeCab" in report_output.tables([measures])


def test_read_text(tmp_path: Path) -> None:
    path = tmp_path / "reviews.parquet"
    pq.write_table(pa.table({"document": ["하나", None, " ", "둘", "셋"]}), path)
    text = report.read_text(f"{path}:document")
    assert list(text.lines) == ["하나", "둘", "셋"]
    assert text.name == f"{tmp_path.name}/reviews"
    assert list(report.read_text(f"{path}:document", 2).lines) == ["하나", "둘"]
    with pytest.raises(UserError, match="no column text"):
        report.read_text(str(path))
    pq.write_table(pa.table({"text": pa.array([None, ""], pa.string())}), path)
    with pytest.raises(UserError, match="holds no text"):
        report.read_text(str(path))


def test_models_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there"):
        report.load(tmp_path / "absent.model")
    (tmp_path / "bad.model").write_bytes(b"bad")
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        report.load(tmp_path / "bad.model")


def test_tables_json_and_plot(models: Sequence[Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    texts = [report.Text("one", ["영화는 정말 재미있다 그래서 좋다"]), report.Text("two", ["ㅋㅋ"])]
    measures = [report.measure(model, text) for text in texts for model in models]
    printed = report_output.tables(measures)
    assert printed.count("| tokens per character") == 2
    header = printed.splitlines()[0].split("|")
    assert [cell.strip() for cell in header[2:4]] == ["plain", "bytes"]
    assert "  bytes: ▁영화" in printed
    report_output.write_json(measures, tmp_path / "new" / "m.json")
    assert len(json.loads((tmp_path / "new" / "m.json").read_text())) == 4
    report_output.write_plot(measures, tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="--plot="):
        report_output.write_plot(measures, tmp_path / "m.nothing")


def test_models_called_alike_are_told_apart(models: Sequence[Path]) -> None:
    text = report.Text("one", ["영화"])
    first = report.measure(models[0], text)
    other = dataclasses.replace(first, model="elsewhere/plain.model")
    assert report_output.names([first, other]) == [
        f"{models[0].parent.name}/plain",
        "elsewhere/plain",
    ]

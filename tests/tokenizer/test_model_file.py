# SPDX-License-Identifier: Apache-2.0
"""The twin's sentinels have T5's ids and no text reaches them; files are whole or absent."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import sentencepiece

from kcmoe.errors import UserError
from kcmoe.io import durable
from kcmoe.tokenizer import model_file

INJECTIONS = [
    "<unused3>",
    "<extra_id_3>",
    "영화 <unused0>는 <unused99> 좋다",
    "▁<unused3>",
    " <unused3> ",
    "<unused3><unused4>",
    "<pad></s><unk>",
    "＜unused3＞",
]


@pytest.fixture(scope="module")
def base() -> bytes:
    # Text full of sentinels' names, so that every character of theirs has a piece.
    lines = [
        f"<unused{n}> <extra_id_{n}> 재미있는 영화 {n} <pad></s><unk>＜＞" for n in range(100)
    ] * 3
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=80,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return written.getvalue()


def _load(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def test_sentinels_count_down_from_the_last_id(base: bytes) -> None:
    twin = _load(model_file.add_sentinels(base, 100))
    size = _load(base).vocab_size()
    assert twin.vocab_size() == size + 100
    assert [twin.id_to_piece(size + 99 - n) for n in range(100)] == [
        f"<unused{n}>" for n in range(100)
    ]
    assert [twin.piece_to_id(f"<unused{n}>") for n in (0, 99)] == [size + 99, size]
    assert (twin.pad_id(), twin.eos_id(), twin.unk_id(), twin.bos_id()) == (0, 1, 2, -1)


@pytest.mark.parametrize("text", INJECTIONS)
def test_no_text_becomes_a_sentinel(base: bytes, text: str) -> None:
    plain, twin = _load(base), _load(model_file.add_sentinels(base, 100))
    assert twin.encode(text) == plain.encode(text)
    for size, alpha in ((-1, 0.1), (64, 0.1), (64, 0.0)):
        for _ in range(20):
            sampled = twin.encode(text, enable_sampling=True, nbest_size=size, alpha=alpha)
            assert max(sampled) < plain.vocab_size()
    assert max(max(ids) for ids in twin.nbest_encode_as_ids(text, 20)) < plain.vocab_size()


def test_user_defined_symbols_would_be_injected(base: bytes) -> None:
    # What the type UNUSED protects from; without this the test above could not fail.
    proto = model_file.parse(model_file.add_sentinels(base, 100))
    for piece in proto.pieces[-100:]:
        piece.type = type(piece).USER_DEFINED
    assert (
        max(_load(proto.SerializeToString()).encode("영화 <unused3>")) >= _load(base).vocab_size()
    )


def test_decoding_shows_sentinels(base: bytes) -> None:
    twin = _load(model_file.add_sentinels(base, 100))
    ids = [twin.piece_to_id("<unused0>"), *twin.encode("영화"), twin.piece_to_id("<unused1>")]
    assert twin.decode(ids).split() == ["<unused0>", "영화<unused1>"]


def test_a_vocabulary_takes_sentinels_once(base: bytes) -> None:
    with pytest.raises(UserError, match="already has a piece <unused"):
        model_file.add_sentinels(model_file.add_sentinels(base, 3), 3)


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x00" * 64])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="not a SentencePiece model"):
        model_file.parse(data)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.model"
    durable.write_file(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"no space left to write .*a\.model"):
        durable.write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["a.model"]

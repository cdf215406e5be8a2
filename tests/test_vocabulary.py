# SPDX-License-Identifier: Apache-2.0
"""The vocabulary: layout, sentinels that text cannot spell, worker copies."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from kcmoe.errors import UserError
from kcmoe.tokenizer import report
from kcmoe.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary()


def test_the_shipped_file_has_the_published_layout(vocabulary):
    assert vocabulary.size == 32_100
    assert vocabulary.num_sentinels == 100
    assert (vocabulary.sentinel_id(0), vocabulary.sentinel_id(99)) == (32_099, 32_000)
    assert [vocabulary.piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]


@pytest.mark.parametrize(
    "text", ["<unused3>", "<extra_id_3>", "정말 <unused0><extra_id_99> 좋아요"]
)
def test_sentinels_in_a_comment_stay_text(vocabulary, text):
    ids = vocabulary.encode(text)
    assert max(ids) < vocabulary.sentinel_id(99)
    assert vocabulary.encode_batch([text]) == [ids]
    assert vocabulary.decode(ids) == text


def test_typed_sentinels_become_ids_in_either_spelling(vocabulary):
    ids = vocabulary.encode_with_sentinels("오늘 <extra_id_0> 좋다 <unused1>")
    assert ids == vocabulary.encode_with_sentinels("오늘 <unused0> 좋다 <extra_id_1>")
    assert [i for i in ids if i >= 32_000] == [32_099, 32_098]
    assert ids[: ids.index(32_099)] == vocabulary.encode("오늘")
    with pytest.raises(UserError, match="extra_id_100"):
        vocabulary.encode_with_sentinels("<extra_id_100>")


def test_decode_stops_at_eos_and_skips_padding(vocabulary):
    ids = vocabulary.encode("재밌어요")
    assert vocabulary.decode([0, *ids, 1, *ids]) == "재밌어요"
    assert vocabulary.decode([*ids, 32_127]) == "재밌어요"
    assert vocabulary.decode([]) == ""


def test_a_worker_gets_the_same_vocabulary(vocabulary):
    copy = pickle.loads(pickle.dumps(vocabulary))
    assert copy.digest == vocabulary.digest
    assert copy.encode("안녕하세요") == vocabulary.encode("안녕하세요")


def test_sentinels_that_text_could_spell_are_disarmed(tmp_path):
    """A file whose sentinels are user-defined symbols, as the published vocabulary's are."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["오늘 날씨 정말 좋다", "영화 정말 재밌다"] * 20),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    for number in (2, 1, 0):  # last number first
        proto.pieces.add(piece=f"▁<extra_id_{number}>", score=0.0, type=4)
    path = tmp_path / "m.model"
    path.write_bytes(proto.SerializeToString())

    raw = sentencepiece.SentencePieceProcessor(model_file=str(path))
    vocabulary = Vocabulary(path)
    assert vocabulary.num_sentinels == 3
    assert vocabulary.sentinel_id(0) == vocabulary.size - 1
    text = "좋다 <extra_id_1>"
    assert max(raw.EncodeAsIds(text)) >= vocabulary.size - 3, "the danger is real"
    assert max(vocabulary.encode(text)) < vocabulary.size - 3
    assert vocabulary.encode_with_sentinels(text)[-1] == vocabulary.size - 2


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match=r"VOCABULARY_FILE.*nowhere"):
        Vocabulary(tmp_path / "nowhere.model")
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        Vocabulary(broken)


@pytest.mark.parametrize(
    "place", [170, 310_334]
)  # SentencePiece hears of the one, of the other nobody
def test_a_damaged_byte_in_a_piece_is_said(vocabulary, tmp_path, place):
    content = bytearray(Path(vocabulary.path).read_bytes())
    content[place] = 0xF3
    path = tmp_path / "damaged.model"
    path.write_bytes(content)
    for reader in (Vocabulary, report.load):
        with pytest.raises(UserError, match=r"damaged\.model is damaged: a piece .* is not UTF-8"):
            reader(path)

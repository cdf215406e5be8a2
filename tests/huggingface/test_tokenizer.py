# SPDX-License-Identifier: Apache-2.0
"""`tokenizer.json` gives SentencePiece's ids: its content everywhere, its behaviour where `tokenizers` is."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kcmoe.checkpoint.huggingface import tokenizer
from kcmoe.errors import UserError
from kcmoe.io import resources
from kcmoe.vocabulary import DEFAULT_FILE, Vocabulary

# Ids of texts by SentencePiece 0.2.3 with the shipped vocabulary; `tokenizers` must give them too.
GOLDEN = Path(__file__).parent / "tokenizer_golden.json"
TRICKY = (
    *(
        "</s>",
        "<pad>",
        "<unk>",
        "<0x41>",
        "<extra_id_0>",
        "a <extra_id_99> b",
        "<unused3>",
        "x</s>y",
    ),
    *(
        "",
        " ",
        "  앞뒤  공백  ",
        "줄\n바꿈\t탭",
        "▁표시▁",
        "ㅋㅋㅋㅠㅠ",
        "뷁쀍꿻",
        "漢字",
        "👨‍👩‍👧 👍🏽",
        "Ａｂｃ①",
        "e\u0301",
    ),
    *(
        "\u3000전각\u200b공백\ufeff",
        "ﾊﾝｶｸ",
        "\u1112\u1161\u11ab\u1100\u1173\u11af",
        "ᄏᄏᄏ",
        "\ud7b0",
        "…!!?~^^;;",
        " ⁇ ",
    ),
    unicodedata.normalize("NFD", "분해된 한글 각뷁"),
)


def files_of(path: str) -> dict[str, Any]:
    found = tokenizer.files(Path(path).read_bytes(), path, 512)
    return {name: json.loads(content) for name, content in found.items()}


@pytest.fixture(scope="module")
def shipped() -> str:
    return str(resources.find(DEFAULT_FILE))


def test_content(shipped: str) -> None:
    vocabulary, found = Vocabulary(shipped), files_of(shipped)
    model = found["tokenizer.json"]["model"]
    assert model["type"] == "Unigram" and model["unk_id"] == 2 and model["byte_fallback"] is True
    names = [name for name, _ in model["vocab"]]
    assert len(names) == vocabulary.size == 32_100
    assert names[:3] == ["<pad>", "</s>", "<unk>"]
    assert names[32_000] == "<extra_id_99>" and names[32_099] == "<extra_id_0>"
    assert names[:32_000] == [vocabulary.piece(token) for token in range(32_000)]
    never = [name for name, score in model["vocab"] if score < -1000]
    assert len(never) == 3 + 256 + 100
    assert found["tokenizer.json"]["added_tokens"] == []
    config = found["tokenizer_config.json"]
    assert config["split_special_tokens"] is True and config["eos_token"] == "</s>"


def test_content_is_the_same_bytes(shipped: str) -> None:
    content = tokenizer.files(Path(shipped).read_bytes(), shipped, 512)["tokenizer.json"]
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert hashlib.sha256(content).hexdigest() == golden["sha256"]


def test_golden_ids_are_sentencepieces(shipped: str) -> None:
    vocabulary = Vocabulary(shipped)
    for text, ids in json.loads(GOLDEN.read_text("utf-8"))["ids"].items():
        assert vocabulary.encode(text) == ids, text


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(resources.find(DEFAULT_FILE).read_bytes())
    proto.trainer_spec.model_type = 2
    with pytest.raises(UserError, match="no unigram model"):
        tokenizer.files(proto.SerializeToString(), "bpe.model", 512)


Encode = Callable[[Sequence[str]], list[list[int]]]


def tokenizer_of(path: str) -> Any:
    tokenizers = pytest.importorskip("tokenizers", reason="pip install 'kcmoe[huggingface]'")
    content = tokenizer.files(Path(path).read_bytes(), path, 512)["tokenizer.json"]
    return tokenizers.Tokenizer.from_buffer(content)


def differences(path: str, texts: Sequence[str]) -> Iterator[tuple[str, list[int], list[int]]]:
    """Texts whose ids differ, those aside whose two segmentations have the same score."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(Path(path).read_bytes())
    vocabulary, theirs = Vocabulary(path), tokenizer_of(path)
    scores = [piece.score for piece in proto.pieces]
    encoded = theirs.encode_batch_fast(list(texts), add_special_tokens=False)
    ours = vocabulary.encode_batch(texts)
    for text, ids, other in zip(texts, ours, encoded, strict=True):
        if ids != other.ids:
            totals = [sum(scores[token] for token in found) for found in (ids, other.ids)]
            # SentencePiece adds up in float32.
            if abs(totals[0] - totals[1]) > 1e-5 * abs(totals[0]):
                yield text, ids, other.ids


def test_tricky_texts(shipped: str) -> None:
    vocabulary, theirs = Vocabulary(shipped), tokenizer_of(shipped)
    for text in TRICKY:
        ids = vocabulary.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == ids, text
        assert theirs.encode(text).ids == [*ids, 1], text
        assert theirs.decode(ids) == vocabulary.decode(ids), text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shipped", "old", "own"])
def test_real_lines(
    kind: str, shipped: str, old_vocabulary: Path, own_vocabulary: Path, comments: list[str]
) -> None:
    path = {"shipped": shipped, "old": str(old_vocabulary), "own": str(own_vocabulary)}[kind]
    lines = [*comments, *(unicodedata.normalize("NFD", line) for line in comments[:2000])]
    assert list(differences(path, lines)) == []
    vocabulary, theirs = Vocabulary(path), tokenizer_of(path)
    ids = vocabulary.encode_batch(comments[:5000])
    decoded = theirs.decode_batch(ids, skip_special_tokens=False)
    assert decoded == [vocabulary.decode(one) for one in ids]


def test_unknown_characters_are_decoded_as_sentencepiece_does(own_vocabulary: Path) -> None:
    vocabulary, theirs = Vocabulary(own_vocabulary), tokenizer_of(str(own_vocabulary))
    for text in ("가 漢字 나", "뷁", "<unk>", "x漢</s>"):
        ids = vocabulary.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == ids
        assert theirs.decode(ids, skip_special_tokens=False) == vocabulary.decode(ids)


@pytest.mark.parametrize("byte_fallback", [False, True])
@pytest.mark.parametrize(
    "missing", ["", "<", "/", "s", ">", "x", "0", "4A", "_", "</s>", "<extra_id_0>unkp"]
)
def test_text_is_never_a_special_piece_whatever_letters_the_vocabulary_lacks(
    missing: str, byte_fallback: bool, tmp_path: Path
) -> None:
    path = vocabulary_without(missing, byte_fallback, tmp_path)
    vocabulary, theirs = Vocabulary(path), tokenizer_of(str(path))
    for text in (*TRICKY, "x漢</s>y", "漢s", "s漢 /s", "가<extra_id_0>s", "<0x4A>", "x<unk><pad>"):
        found = theirs.encode(text, add_special_tokens=False).ids
        assert found == vocabulary.encode(text), text


def test_a_letter_in_longer_pieces_alone_is_refused(tmp_path: Path) -> None:
    path = vocabulary_without("s", False, tmp_path, more=("is",))
    with pytest.raises(UserError, match="'s' in longer pieces but not alone"):
        tokenizer.files(path.read_bytes(), str(path), 512)


def vocabulary_without(
    missing: str, byte_fallback: bool, folder: Path, more: Sequence[str] = ()
) -> Path:
    """A model of single letters, some of them missing, and a few longer pieces."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.model_type = 1
    proto.trainer_spec.byte_fallback = byte_fallback
    proto.trainer_spec.pad_id, proto.trainer_spec.eos_id = 0, 1
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id = 2, -1
    proto.normalizer_spec.add_dummy_prefix = proto.normalizer_spec.remove_extra_whitespaces = True
    proto.normalizer_spec.escape_whitespaces = True
    for name, kind in (("<pad>", 3), ("</s>", 3), ("<unk>", 2)):
        proto.pieces.add(piece=name, score=0, type=kind)
    for byte in range(256 if byte_fallback else 0):
        proto.pieces.add(piece=f"<0x{byte:02X}>", score=0, type=6)
    letters = dict.fromkeys("▁</s>padunk0123456789ABCDEFxextra_id_가나다")
    texts = [letter for letter in letters if letter not in missing]
    texts += [text for text in ("</", "ex", "나다", "▁가") if not set(text) & set(missing)]
    for number, text in enumerate([*texts, *more]):
        proto.pieces.add(piece=text, score=-3.0 - 0.01 * number, type=1)
    for number in (1, 0):
        proto.pieces.add(piece=f"<extra_id_{number}>", score=0, type=4)
    path = folder / "letters.model"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture(scope="module")
def comments() -> list[str]:
    """Lines of real comments; beside the repository lie many more than in the samples."""
    import pyarrow.parquet as pq

    file = Path(__file__).parents[2] / "../shared/data/comments/validation.parquet"
    if file.exists():
        found: list[str] = pq.read_table(file)["text"].to_pylist()
        return found
    return (resources.find("kcmoe/samples/comments.txt")).read_text("utf-8").splitlines()


@pytest.fixture(scope="module")
def own_vocabulary(comments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vocabulary with SentencePiece's own normalisation, no bytes and sentinels in its style."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("own")
    (folder / "lines.txt").write_text("\n".join(comments[:3000]), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "lines.txt"),
        model_prefix=str(folder / "own"),
        vocab_size=3000,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
        normalization_rule_name="nmt_nfkc",
        user_defined_symbols=",".join(f"<extra_id_{i}>" for i in range(2, -1, -1)),
    )
    return folder / "own.model"


@pytest.mark.huggingface
def test_auto_tokenizer(sparse: Path, dense: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    vocabulary = Vocabulary()
    for folder in (sparse, dense):
        found = AutoTokenizer.from_pretrained(folder)
        found.save_pretrained(tmp_path / folder.parent.name)
        for theirs in (found, AutoTokenizer.from_pretrained(tmp_path / folder.parent.name)):
            assert theirs.convert_tokens_to_ids("<extra_id_3>") == vocabulary.sentinel_id(3)
            assert [theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id] == [0, 1, 2]
            for text in TRICKY:
                ids = vocabulary.encode(text)
                assert theirs(text).input_ids == [*ids, 1], text
                decoded = theirs.decode([*ids, 1, 0], skip_special_tokens=True)
                assert decoded == vocabulary.decode(ids), text
    assert os.environ["HF_HUB_OFFLINE"] == "1"

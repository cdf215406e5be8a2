# SPDX-License-Identifier: Apache-2.0
"""What is done to a SentencePiece model after training: the twin with sentinels.

A model file is a protocol buffer, read with the definition that SentencePiece ships.
"""

from __future__ import annotations

from typing import Any

from kcmoe.errors import UserError

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2


def parse(model: bytes) -> Any:
    """The `ModelProto` in `model`.

    Raises:
      UserError: if protobuf is missing or the bytes are no SentencePiece model.
    """
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise UserError(
            f"reading a vocabulary's parts needs {error.name}: pip install 'kcmoe[tokenizer]'"
        ) from None
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    except DecodeError:
        proto = sentencepiece_model_pb2.ModelProto()
    if not proto.pieces:
        raise UserError("not a SentencePiece model")
    return proto


def finish(model: bytes, normalizer_spec: bytes, normalization: str) -> bytes:
    """`model` with the normalisation its text went through, and without the names of temporary files.

    Training may see text that is normalised already; inference does not. Equal runs give equal bytes.
    """
    proto = parse(model)
    for field in ("input", "model_prefix", "seed_sentencepieces_file"):
        proto.trainer_spec.ClearField(field)
    proto.normalizer_spec.Clear()
    proto.normalizer_spec.MergeFromString(normalizer_spec)
    proto.normalizer_spec.ClearField("normalization_rule_tsv")
    proto.normalizer_spec.name = normalization
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = True
    proto.normalizer_spec.escape_whitespaces = True
    return proto.SerializeToString(deterministic=True)


def add_sentinels(model: bytes, count: int) -> bytes:
    """`model` with `<unused{count-1}>` … `<unused0>` appended, so that sentinel 0 has the last id.

    The order is T5's, whose span corruption counts sentinels down from the last id. The pieces have the
    type UNUSED: SentencePiece never finds them in a text, so a comment that says "<unused3>" stays
    plain text, but decoding shows them (CONTROL would hide them, USER_DEFINED would let a text inject them).

    Raises:
      UserError: if the model already has such a piece.
    """
    proto = parse(model)
    kind = type(proto.pieces[0]).UNUSED
    present = {piece.piece for piece in proto.pieces}
    for number in reversed(range(count)):
        name = f"<unused{number}>"
        if name in present:
            raise UserError(
                f"the vocabulary already has a piece {name}, so it can take no sentinels"
            )
        proto.pieces.add(piece=name, score=0.0, type=kind)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString(deterministic=True)

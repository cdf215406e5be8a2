# SPDX-License-Identifier: Apache-2.0
"""A SentencePiece unigram model as `tokenizer.json` and its config, which need no code of ours.

The parts are those of the `tokenizers` library (tested with 0.23). What SentencePiece does to a text is
spelt out as steps: normalisation table, spaces, dummy prefix, best segmentation, bytes for what is unknown.

Differences from SentencePiece:
- NFC goes first where the model composes letters: the library's table cannot match the three-letter
  spellings of decomposed Hangul.
- No piece that is not text can be typed: control, byte and sentinel pieces have so low a score that no
  segmentation takes them, and no token is added that would be looked for before segmentation. An unknown
  character costs even more there, so where a name has one, such characters are cut out of a text first.
- Where two segmentations have the same score, either may be taken.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kcmoe.errors import UserError

FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
_NORMAL, _USER_DEFINED = 1, 4  # ModelProto.SentencePiece.Type
_UNIGRAM = 1  # TrainerSpec.ModelType
# Far below what the letters of such a piece cost one by one, so that no segmentation takes it.
_NEVER = -100_000.0
_SENTINEL = re.compile(r"▁?<(?:extra_id_|unused)(\d+)>")
_SPACE, _UNKNOWN = "▁", "\U0010ffff"  # the last character of all, which stands for none


def files(model: bytes, path: str, max_length: int) -> dict[str, bytes]:
    """The content of `tokenizer.json` and `tokenizer_config.json` by name.

    Args:
      model: a serialized SentencePiece model, from the file `path`.
      path: named in errors.
      max_length: longest input in tokens, EOS included.

    Raises:
      UserError: if the model is of a kind that the library cannot express.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    if proto.trainer_spec.model_type != _UNIGRAM:
        raise UserError(
            f"{path} is no unigram model, so it has no tokenizer.json with the same ids"
        )
    if proto.trainer_spec.treat_whitespace_as_suffix:
        raise UserError(
            f"{path} marks the end of words, not their beginning, which is not exported"
        )
    pieces = list(_pieces(proto, path))
    return {
        FILE: _json(_tokenizer(proto, pieces, path)),
        CONFIG_FILE: _json(_config(pieces, max_length)),
    }


def _json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, indent=1).encode() + b"\n"


def _pieces(proto: Any, path: str) -> Iterator[tuple[str, float]]:
    """Name and score of each id; sentinels under T5's names."""
    last = len(proto.pieces) - 1
    sentinels = {}
    for number in range(len(proto.pieces)):
        found = _SENTINEL.fullmatch(proto.pieces[last - number].piece)
        if not found:
            break
        sentinels[last - number] = f"<extra_id_{number}>"
    best = max(piece.score for piece in proto.pieces if piece.type == _NORMAL)
    seen = set()
    for token, piece in enumerate(proto.pieces):
        name = sentinels.get(token, piece.piece)
        if name in seen:
            raise UserError(f"{path} has two pieces {name}, so it cannot become a tokenizer.json")
        seen.add(name)
        yield name, _NEVER if token in sentinels else _score(piece, best)


def _score(piece: Any, best: float) -> float:
    if piece.type == _USER_DEFINED:  # unigram_model.cc: always better than its parts
        return len(piece.piece.encode()) * best - 0.1
    return float(piece.score) if piece.type == _NORMAL else _NEVER


def _tokenizer(proto: Any, pieces: list[tuple[str, float]], path: str) -> dict[str, Any]:
    eos, in_bytes = pieces[1][0], bool(proto.trainer_spec.byte_fallback)
    normalizers, unknown = _normalizers(proto), _unknown(proto, pieces, path)
    if unknown and not in_bytes:  # many together are one unknown piece in SentencePiece, too
        normalizers.append(_replace({"Regex": f"{unknown}+"}, _UNKNOWN))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": _pre_tokenizer(unknown if in_bytes else ""),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_sequence("A", 0), _special(eos, 0)],
            "pair": [_sequence("A", 0), _special(eos, 0), _sequence("B", 0), _special(eos, 0)],
            "special_tokens": {eos: {"id": eos, "ids": [1], "tokens": [eos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                _replace(
                    {"Regex": rf"\A{re.escape(pieces[2][0])}\z"}, proto.trainer_spec.unk_surface
                ),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                _replace({"String": _SPACE}, " "),
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [[name, score] for name, score in pieces],
            "byte_fallback": in_bytes,
        },
    }


def _normalizers(proto: Any) -> list[dict[str, Any]]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(proto.SerializeToString())
    spec = proto.normalizer_spec
    steps: list[dict[str, Any]] = []
    if "가" in processor.Normalize("\u1100\u1161"):  # else decomposed letters stay so
        steps.append({"type": "NFC"})
    if spec.precompiled_charsmap:
        table = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
        if "게" in processor.Normalize("ㄱㅔ"):  # a rule of two letters, which the library splits
            steps.append({"type": "NFC"})
    if spec.remove_extra_whitespaces:
        space = "[ ▁]" if "▁▁" not in processor.Normalize("a▁▁b") else " "
        steps.append(_replace({"Regex": rf"\A{space}+|[ ▁]+\z"}, ""))
        steps.append(_replace({"Regex": f"{space}{{2,}}"}, " "))
    steps.append(_replace({"String": " "}, _SPACE))
    if spec.add_dummy_prefix:
        # Metaspace puts a mark only where there is none yet; SentencePiece puts one always.
        steps.append(_replace({"Regex": rf"\A{_SPACE}"}, _SPACE * 2))
    return steps


def _replace(pattern: Mapping[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": dict(pattern), "content": content}


def _unknown(proto: Any, pieces: list[tuple[str, float]], path: str) -> str:
    """A pattern of the characters that no piece has, if a special piece's name has one of them, else ""."""
    texts = [piece.piece for piece in proto.pieces if piece.type == _NORMAL]
    alone, known = {text for text in texts if len(text) == 1}, {*_SPACE, *"".join(texts)}
    names = set("".join(name for name, score in pieces if score == _NEVER))
    if within := (names & known) - alone - {_SPACE}:
        raise UserError(
            f"{path} has {min(within)!r} in longer pieces but not alone, so text could become a special "
            "piece; train it with required_chars"
        )
    return f"[^{''.join(_ranges(known))}]" if names - known else ""


def _ranges(characters: set[str]) -> Iterator[str]:
    """The characters as ranges of a regular expression's class."""
    codes = sorted(map(ord, characters))
    first = codes[0]
    for code, following in zip(codes, [*codes[1:], -1], strict=True):
        if following != code + 1:
            yield rf"\x{{{first:X}}}-\x{{{code:X}}}"
            first = following


def _pre_tokenizer(cut: str) -> dict[str, Any]:
    space = {
        "type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": False
    }  # fmt: skip
    if not cut:
        return space
    pattern = {"Regex": cut}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [space, split]}


def _sequence(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


def _special(name: str, type_id: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": type_id}}


def _config(pieces: list[tuple[str, float]], max_length: int) -> dict[str, Any]:
    """`split_special_tokens` keeps the names of pad, EOS and unk plain text, as everywhere in Kc-MoE."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "pad_token": pieces[0][0],
        "eos_token": pieces[1][0],
        "unk_token": pieces[2][0],
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
    }

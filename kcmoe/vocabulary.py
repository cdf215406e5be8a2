# SPDX-License-Identifier: Apache-2.0
"""The only place that knows the vocabulary: which file, which ids, where the sentinels are.

Text becomes ids here and nowhere else. Sentinels stand at the end of the vocabulary and count
downwards as in T5: sentinel 0 is the last id. A comment that happens to contain `<extra_id_3>` or
`<unused3>` stays plain text in `encode`, whatever piece type the file gives its sentinels; only
`encode_with_sentinels`, meant for what a person types, turns them into ids.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kcmoe.errors import UserError
from kcmoe.io import compilation_cache, given, hashing, remote, resources

if TYPE_CHECKING:
    import sentencepiece

DEFAULT_FILE = "vocab/kcmoe_32k.100extra.model"
# Vocabularies differ in how they spell a sentinel; the published one puts a space mark before it.
_SENTINEL_PIECE = re.compile(r"▁?<(?:extra_id_|unused)(\d+)>")
_SENTINEL_TEXT = re.compile(r"<(?:extra_id_|unused)(\d+)>")
_CONTROL = 3  # sentencepiece_model.proto: ModelProto.SentencePiece.Type.CONTROL


class Vocabulary:
    """A SentencePiece model whose last pieces are sentinels.

    Attributes:
      path: the file it was read from.
      size: number of pieces, sentinels included; 32,100 for the shipped one.
      num_sentinels: 100 for the shipped one, 0 for a model without.
      digest: sha256 of the file, the name under which token caches are kept.
    """

    pad_id = 0
    eos_id = 1
    unk_id = 2

    def __init__(self, path: str | os.PathLike[str] | None = None):
        """Reads `path` (local or `gs://`), by default the shipped vocabulary.

        Raises:
          UserError: if the file is missing, is not a SentencePiece model, or its pad, eos and unk are
            not 0, 1 and 2.
        """
        self.path = str(resources.find(DEFAULT_FILE)) if path is None else given.path(path)
        self._load(_read(self.path))

    def _load(self, model: bytes) -> None:
        self.digest = hashing.sha256(model)
        # Changing the sentinels takes the longest, so the changed model is kept.
        kept, facts = compilation_cache.kept(), {"what": "control pieces", "of": self.digest}
        changed = kept.find(facts)
        model = changed or model
        self._processor = processor(model, self.path)
        self.size: int = self._processor.GetPieceSize()
        found = [self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id()]
        if found != [self.pad_id, self.eos_id, self.unk_id]:
            names = (("pad", found[0], 0), ("eos", found[1], 1), ("unk", found[2], 2))
            flags = " ".join(f"--{name}_id={id}" for name, is_, id in names if is_ != id)
            raise UserError(
                f"{self.path}: pad, eos and unk have the ids {found}, but the model needs [0, 1, 2]: "
                f"SentencePiece has to train it with {flags} --bos_id=-1"
            )
        self.num_sentinels = self._count_sentinels()
        sentinels = range(self.size - self.num_sentinels, self.size)
        if not all(self._processor.IsControl(i) for i in sentinels):
            # Otherwise SentencePiece would find them inside ordinary text.
            changed = _with_control_pieces(model, sentinels)
            self._processor.LoadFromSerializedProto(changed)
            kept.keep(facts, changed)

    def _count_sentinels(self) -> int:
        count = 0
        while count < self.size and _SENTINEL_PIECE.fullmatch(
            self._processor.IdToPiece(self.size - 1 - count)
        ):
            count += 1
        return count

    def __reduce__(self) -> tuple[Any, ...]:
        return (Vocabulary, (self.path,))  # worker processes read the file themselves

    def sentinel_id(self, number: int) -> int:
        """Id of sentinel `number`; 0 is the last id of the vocabulary.

        Raises:
          UserError: if the vocabulary has no such sentinel.
        """
        if not 0 <= number < self.num_sentinels:
            raise UserError(
                f"{self.path} has {self.num_sentinels} sentinels, so there is no <extra_id_{number}>; "
                f"`kcmoe tokenizer add-sentinels {self.path} OUTPUT.model` appends some to one without"
            )
        return self.size - 1 - number

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without EOS."""
        return self._processor.EncodeAsIds(text)

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Ids of each of `texts`, without EOS; `threads` SentencePiece threads share the work."""
        return self._processor.Encode(list(texts), out_type=int, num_threads=threads)

    def encode_with_sentinels(self, text: str) -> list[int]:
        """Ids of text in which `<extra_id_N>` and `<unusedN>` are sentinel N."""
        ids: list[int] = []
        end = 0
        for match in _SENTINEL_TEXT.finditer(text):
            ids += self.encode(text[end : match.start()])
            ids.append(self.sentinel_id(int(match[1])))
            end = match.end()
        return ids + self.encode(text[end:])

    def surfaces(self, text: str, sentinels: bool = False) -> list[tuple[int, str]]:
        """Each id of `encode`, or of `encode_with_sentinels`, with the part of `text` it stands for.

        The parts joined are `text`. Of a character spelt in several bytes the last id has the character.
        """
        from sentencepiece import sentencepiece_pb2

        found: list[tuple[int, str]] = []
        end = 0
        for match in _SENTINEL_TEXT.finditer(text) if sentinels else ():
            found += self.surfaces(text[end : match.start()])
            found.append((self.sentinel_id(int(match[1])), match[0]))
            end = match.end()
        proto = self._processor.Encode(text[end:], out_type="serialized_proto")
        pieces = sentencepiece_pb2.SentencePieceText.FromString(proto).pieces
        return found + [(piece.id, piece.surface) for piece in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` up to the first EOS; padding is left out, sentinels print as `<extra_id_N>`."""
        first_sentinel = self.size - self.num_sentinels
        parts: list[str] = []
        run: list[int] = []
        for token in map(int, ids):
            if token == self.eos_id:
                break
            if first_sentinel <= token < self.size:
                parts += [self._processor.DecodeIds(run), f"<extra_id_{self.size - 1 - token}>"]
                run = []
            elif 0 < token < first_sentinel:
                run.append(token)  # ids beyond the vocabulary are padding of the embedding
        parts.append(self._processor.DecodeIds(run))
        return " ".join(part for part in parts if part)

    def piece(self, token: int) -> str:
        """How the file spells one id."""
        return self._processor.IdToPiece(int(token))


def processor(model: bytes, path: str) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece with a serialized model.

    Raises:
      UserError: naming `path`, if it is no such model, or one whose pieces are not UTF-8.
    """
    import sentencepiece

    try:
        found = sentencepiece.SentencePieceProcessor(model_proto=model)
        found.IdToPiece(list(range(found.GetPieceSize())))
    except UnicodeDecodeError:  # from the pieces, or from the message that names one of them
        raise UserError(
            f"{path} is damaged: a piece of this vocabulary is not UTF-8; fetch the file again"
        ) from None
    except (RuntimeError, OSError):
        raise UserError(f"{path} is not a SentencePiece model") from None
    return found


def _read(path: str) -> bytes:
    try:
        return remote.read_bytes(path)
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"VOCABULARY_FILE {path} cannot be read: {reason}") from None


def _with_control_pieces(model: bytes, ids: range) -> bytes:
    """The serialized model with the pieces `ids` made control symbols, which text cannot spell."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    for token in ids:
        proto.pieces[token].type = _CONTROL
    return proto.SerializeToString()

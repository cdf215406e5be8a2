# SPDX-License-Identifier: Apache-2.0
"""What a vocabulary does to text it has not seen: length, unknowns, round trip, morphemes.

Works for any SentencePiece model with whatever normalisation and byte fallback it has: pieces are laid
end to end to get the text as the model sees it, and MeCab reads that same text.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kcmoe.data import tables
from kcmoe.errors import UserError
from kcmoe.io import given, remote
from kcmoe.tokenizer import morphemes
from kcmoe.vocabulary import processor

if TYPE_CHECKING:
    import sentencepiece

KINDS = ("Hangul", "jamo", "Hanja", "emoji", "other")
_EXAMPLES = 3
WAYS = tables.Ways(
    "give --lenient", "give --encoding={0} (for this file alone --encoding='{1}={0}')"
)
_SPACE = "\u2581"

_RANGES = {
    "Hangul": [(0xAC00, 0xD7A3)],
    "jamo": [(0x1100, 0x11FF), (0x3131, 0x318E), (0xA960, 0xA97F), (0xD7B0, 0xD7FF), (0xFFA1, 0xFFDC)],
    "Hanja": [(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)],
    "emoji": [(0x2600, 0x27BF), (0x2B00, 0x2BFF), (0xFE0E, 0xFE0F), (0x200D, 0x200D),
              (0x20E3, 0x20E3), (0x1F000, 0x1FAFF), (0xE0020, 0xE007F)],
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Text:
    """Held-out lines and what to call them."""

    name: str
    lines: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Measures:
    """One vocabulary on one text. Shares are in [0, 1]; None where MeCab is not installed.

    Attributes:
      tokens_per_char: tokens / characters of the text, spaces included.
      unknown: kind -> share of its characters that become `<unk>`.
      in_bytes: kind -> share of its characters that are spelled in bytes.
      round_trip: lines without `<unk>` that come back identical up to spaces.
      round_trip_all: the same of all lines.
      never_used: pieces of the vocabulary, reserved and byte pieces aside, that no line uses.
      across: tokens that lie across a morpheme boundary, so are larger than a morpheme.
      across_hangul: the same among tokens with a Hangul syllable, where MeCab's cuts have a meaning.
      boundaries_agree: starts of tokens, that of the line aside, where a morpheme starts too.
    """

    model: str
    text: str
    pieces: int
    lines: int
    chars: int
    tokens_per_char: float
    tokens_per_line: float
    unknown_tokens: float
    unknown: dict[str, float]
    in_bytes: dict[str, float]
    round_trip: float
    round_trip_all: float
    never_used: float
    across: float | None
    across_hangul: float | None
    boundaries_agree: float | None
    examples: tuple[str, ...]


def kind_of(char: str) -> str:
    """The kind of a character, one of `KINDS`."""
    code = ord(char)
    for kind, ranges in _RANGES.items():
        if any(low <= code <= high for low, high in ranges):
            return kind
    return "other"


def read_text(
    spec: str,
    lines: int = 0,
    encoding: str = "utf-8",
    strict: bool = True,
    tally: tables.Tally | None = None,
) -> Text:
    """Reads "FILE" or "FILE:COLUMN"; the column is "text" unless given.

    Args:
      spec: as above.
      lines: most lines, 0 for all.
      encoding: of text files.
      strict: refuse places that cannot be read, which are left out and counted in `tally` otherwise.
      tally: what was left out.

    Raises:
      UserError: if the file cannot be read, lacks the column, or holds no text.
    """
    path, columns = given.with_columns(spec)
    if len(columns) > 1:
        raise UserError(f"--text={spec} names {len(columns)} columns, but one at a time is read")
    column = columns[0] if columns else "text"
    found: list[str] = []
    tally = tables.Tally() if tally is None else tally
    for file in tables.expand([path]):
        for chunk in tables.read_chunks(
            file, [column], strict=strict, encoding=encoding, tally=tally, ways=WAYS
        ):
            for text in chunk[column]:
                if text is not None and not isinstance(text, str):
                    if not strict:
                        tally.drop("not text", file)
                        continue
                    raise UserError(f"{file}: column {column} holds {text!r}, not text")
                if text and text.strip():
                    found.append(text)
            if lines and len(found) >= lines:
                break
    if not found:
        raise UserError(f"{path} holds no text in column {column}")
    name = f"{Path(path).parent.name}/{Path(path).stem}".lstrip("/")
    return Text(name, found[:lines] if lines else found)


def load(model: str | os.PathLike[str]) -> sentencepiece.SentencePieceProcessor:
    """Opens a SentencePiece model.

    Raises:
      UserError: if it is missing or no such model.
    """
    try:
        content = remote.read_bytes(os.fspath(model))
    except FileNotFoundError:
        raise UserError(f"{model} is not there; a SentencePiece .model file is needed") from None
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{model} cannot be read: {reason}; a SentencePiece .model file is needed"
        ) from None
    return processor(content, os.fspath(model))


def has_mecab() -> bool:
    """Whether boundaries can be compared."""
    try:
        morphemes.require()
    except UserError:
        return False
    return True


def surfaces(processor: sentencepiece.SentencePieceProcessor, text: str) -> list[tuple[int, str]]:
    """Each token of `text` with the stretch it stands for, spaces as spaces.

    A character spelled in bytes belongs to its first byte; the others stand for "".
    """
    found: list[tuple[int, str]] = []
    spelled, first = b"", 0
    # As text, an unknown piece is what stood there rather than "<unk>".
    for token, piece in zip(
        processor.encode(text), processor.encode(text, out_type=str), strict=True
    ):
        if not processor.is_byte(token):
            found.append((token, piece.replace(_SPACE, " ")))
            continue
        byte = bytes([int(piece[3:-1], 16)])
        if byte[0] & 0xC0 != 0x80:  # not a continuation: a character begins
            spelled, first = b"", len(found)
        spelled += byte
        found.append((token, ""))
        found[first] = (found[first][0], spelled.decode(errors="ignore"))
    return found


class _Counts:
    """Sums over lines, from which the shares come."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, boundaries: bool):
        self.processor = processor
        self.boundaries = boundaries
        self.total: collections.Counter[str] = collections.Counter()
        self.used: set[int] = set()

    def add(self, line: str) -> None:
        """Counts one line."""
        tokens = surfaces(self.processor, line)
        ids = [token for token, _ in tokens]
        unknown = self.processor.unk_id() in ids
        same = "".join(self.processor.decode(ids).split()) == "".join(line.split())
        self.used.update(ids)
        self.total.update(
            {
                "lines": 1,
                "chars": len(line),
                "tokens": len(tokens),
                "unknown tokens": ids.count(self.processor.unk_id()),
                "known lines": not unknown,
                "same": same,
                "known and same": same and not unknown,
            }
        )
        for token, surface in tokens:
            self._add_characters(token, surface)
        if self.boundaries:
            self._add_boundaries([surface for _, surface in tokens])

    def _add_characters(self, token: int, surface: str) -> None:
        for char in surface:
            kind = kind_of(char)
            self.total[kind] += 1
            self.total[f"unknown {kind}"] += token == self.processor.unk_id()
            self.total[f"bytes {kind}"] += self.processor.is_byte(token)

    def _add_boundaries(self, parts: Sequence[str]) -> None:
        text = "".join(parts)
        inside, starts = set[int](), set[int]()
        for start, end in morphemes.spans(text):
            starts.add(start)
            inside.update(range(start + 1, end))
        edges = itertools.pairwise(itertools.accumulate(map(len, parts), initial=0))
        for number, ((start, end), part) in enumerate(zip(edges, parts, strict=True)):
            start += len(part) - len(part.lstrip())
            if start == end:
                continue
            across = any(middle in starts for middle in range(start + 1, end))
            hangul = any(kind_of(char) == "Hangul" for char in part)
            self.total.update({"visible": 1, "across": across})
            self.total.update({"hangul tokens": hangul, "hangul across": hangul and across})
            if number:
                self.total.update({"boundaries": 1, "agreed": start not in inside})

    def share(self, part: str, whole: str) -> float:
        """`part` / `whole`, 0 of nothing."""
        return self.total[part] / self.total[whole] if self.total[whole] else 0.0


def measure(model: str | os.PathLike[str], text: Text) -> Measures:
    """Encodes and decodes every line of `text` with `model` and counts.

    Raises:
      UserError: if `model` is missing or no SentencePiece model.
    """
    from tqdm import tqdm

    processor = load(model)
    boundaries = has_mecab()
    counts = _Counts(processor, boundaries)
    for line in tqdm(
        text.lines, desc=f"{Path(model).stem} on {text.name}", disable=None, leave=False
    ):
        counts.add(line)
    normal = [piece for piece in range(processor.vocab_size()) if _is_normal(processor, piece)]
    return Measures(
        model=os.fspath(model),
        text=text.name,
        pieces=processor.vocab_size(),
        lines=counts.total["lines"],
        chars=counts.total["chars"],
        tokens_per_char=counts.share("tokens", "chars"),
        tokens_per_line=counts.share("tokens", "lines"),
        unknown_tokens=counts.share("unknown tokens", "tokens"),
        unknown={kind: counts.share(f"unknown {kind}", kind) for kind in KINDS},
        in_bytes={kind: counts.share(f"bytes {kind}", kind) for kind in KINDS},
        round_trip=counts.share("known and same", "known lines"),
        round_trip_all=counts.share("same", "lines"),
        never_used=1 - len(counts.used.intersection(normal)) / max(len(normal), 1),
        across=counts.share("across", "visible") if boundaries else None,
        across_hangul=counts.share("hangul across", "hangul tokens") if boundaries else None,
        boundaries_agree=counts.share("agreed", "boundaries") if boundaries else None,
        examples=tuple(_shown(processor, line) for line in _typical(text.lines)),
    )


def _is_normal(processor: sentencepiece.SentencePieceProcessor, piece: int) -> bool:
    return not (
        processor.is_control(piece)
        or processor.is_unknown(piece)
        or processor.is_unused(piece)
        or processor.is_byte(piece)
    )


def _typical(lines: Sequence[str]) -> Iterable[str]:
    """The first lines of moderate length."""
    return itertools.islice((line for line in lines if 15 <= len(line) <= 45), _EXAMPLES)


def _shown(processor: sentencepiece.SentencePieceProcessor, line: str) -> str:
    return " ".join(processor.encode(line, out_type=str))

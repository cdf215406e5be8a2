# SPDX-License-Identifier: Apache-2.0
"""The lines a vocabulary learns from: out of any corpus, a sample that fits in memory.

`kcmoe.data.tables` reads the formats. Here texts become clean lines of bounded length, and reservoir
sampling (Li 1994, algorithm L) keeps a fixed number of them, each line of the corpus with the same chance,
whatever the size of the corpus.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import random
from collections.abc import Iterable, Iterator, Sequence

from kcmoe.data import encodings, formats, parquet, tables
from kcmoe.errors import UserError
from kcmoe.io import remote
from kcmoe.tokenizer import normalization

_BYTES_PER_TEXT_LINE = 90  # of the comments; only for forecasts about text files
# Settings alone say how a corpus is read there.
WAYS = tables.Ways(
    "set DATA_STRICT = False", "give --encoding={0} (for this file alone --encoding='{1}={0}')"
)
_EXPANSION = 3  # plain text / compressed text


@dataclasses.dataclass(frozen=True)
class Size:
    """What file sizes and footers say about a corpus before it is read."""

    files: int
    lines: int
    text_bytes: int


def measure(paths: Sequence[str], column: str, encoding: str = "utf-8") -> Size:
    """Opens every file, so that one that cannot be read is named before hours of work, and adds up.

    Lines of parquet files are exact, of text files a guess from their size.

    Raises:
      UserError: naming the file that cannot be read or lacks the column.
    """
    lines = text_bytes = 0
    for path in paths:
        if tables.format_of(path) == ".parquet":
            with parquet.open_file(path) as file:
                footer = file.metadata
                lines += footer.num_rows
                text_bytes += sum(
                    footer.row_group(group).column(index).total_uncompressed_size
                    for group in range(footer.num_row_groups)
                    for index in range(footer.num_columns)
                    if footer.row_group(group).column(index).path_in_schema == column
                )
        else:
            size = _bytes_of(path)
            text_bytes += size
            lines += size // _BYTES_PER_TEXT_LINE + 1
        first = tables.read_chunks(path, [column], strict=False, encoding=encoding, ways=WAYS)
        with contextlib.closing(first) as chunks:  # type: ignore[type-var]
            next(chunks, None)
    return Size(len(paths), lines, text_bytes)


def _bytes_of(path: str) -> int:
    """Size of a text file once unpacked, roughly."""
    encodings.open_text(path, "utf-8").close()  # says what is wrong with a file that does not open
    if remote.is_remote(path):
        filesystem, name = remote.fsspec().core.url_to_fs(path)
        size = int(filesystem.size(name) or 0)
    else:
        size = os.path.getsize(path)
    return size * (_EXPANSION if formats.packing_of(path) else 1)


def lines(
    paths: Iterable[str],
    column: str,
    max_chars: int,
    *,
    strict: bool = True,
    encoding: str = "utf-8",
    tally: tables.Tally | None = None,
) -> Iterator[str]:
    """Every text of the files as one clean line, long ones cut; nulls and empty texts are left out.

    Raises:
      UserError: naming the file, and the place in it, that cannot be read.
    """
    tally = tables.Tally() if tally is None else tally
    for path in paths:
        for chunk in tables.read_chunks(
            path, [column], strict=strict, encoding=encoding, tally=tally, ways=WAYS
        ):
            for text in chunk[column]:
                if text is None:
                    tally.nulls += 1
                    continue
                if not isinstance(text, str):
                    if strict:
                        raise UserError(f"{path}: column {column} holds {text!r}, not text")
                    tally.drop("not text", path)
                    continue
                yield from cut(normalization.clean(text), max_chars)


def cut(line: str, max_chars: int) -> Iterator[str]:
    """`line` in parts of at most `max_chars` characters, cut at spaces where there are any."""
    start = 0
    while len(line) - start > max_chars:
        space = line.rfind(" ", start, start + max_chars + 1)
        end = space if space > start else start + max_chars
        yield line[start:end]
        start = end + (line[end] == " ")
    if start < len(line):
        yield line[start:]


def reservoir(source: Iterable[str], size: int, seed: int) -> tuple[list[str], int]:
    """A sample of `size` lines in their order, and how many there were. The same seed, the same sample.

    Algorithm L draws how many lines to pass over, so a long corpus costs few random numbers.
    """
    kept: list[tuple[int, str]] = []
    rng = random.Random(seed)
    weight, following, seen = 1.0, size, 0
    for number, line in enumerate(source):
        seen += 1
        if number < size:
            kept.append((number, line))
            if len(kept) < size:
                continue
        elif number == following:
            kept[rng.randrange(size)] = (number, line)
        else:
            continue
        # 1 - random() is in (0, 1], so the logarithms are finite.
        weight *= math.exp(math.log(1.0 - rng.random()) / size)
        skipped = math.log(1.0 - rng.random()) / math.log1p(-weight) if weight < 1.0 else 0.0
        following = number + 1 + int(min(skipped, 2**60))
    kept.sort()
    return [line for _, line in kept], seen


def require_text(sample: Sequence[str], paths: Sequence[str]) -> None:
    """Raises `UserError` if there is nothing to learn from."""
    if not sample:
        shown = ", ".join(paths[:3]) + (" …" if len(paths) > 3 else "")
        raise UserError(
            f"the corpus is empty: no text in {shown}; check TOKENIZER_CORPUS and TOKENIZER_TEXT_COLUMN"
        )

# SPDX-License-Identifier: Apache-2.0
"""What people hand in: texts checked, prompts made, files of lines read.

Everything wrong with an input is said here, with its place, before any model sees it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kcmoe.errors import UserError, near_misses
from kcmoe.io import remote
from kcmoe.tasks.registry import Task

# One text, or one text per input column of the task: in its order, or by name.
Row = str | Sequence[str] | Mapping[str, str]

_MOST_BYTES = 1 << 30  # of standard input, which is held in memory


def checked(texts: Iterable[Any], name: str = "texts") -> list[str]:
    """`texts` as a list.

    Raises:
      UserError: if it is one text rather than several, or holds anything but valid Unicode texts.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise UserError(
            f"{name} must be a list of texts, not one {type(texts).__name__}; write [text]"
        )
    listed = list(texts)
    for number, text in enumerate(listed):
        check(text, f"{name}[{number}]")
    return listed


def check(text: Any, place: str) -> None:
    """Raises `UserError` naming `place` unless `text` is a valid Unicode text."""
    if not isinstance(text, str):
        shown = repr(text) if len(repr(text)) < 40 else f"a {type(text).__name__}"
        raise UserError(f'{place} is {shown}, not a text; give a str, "" for nothing')
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{place} has half a surrogate pair at character {error.start}, so it is no valid "
                "text; decode the bytes it came from as UTF-8"
            ) from None


def prompts(task: Task, rows: Iterable[Row], name: str = "texts") -> list[str]:
    """The model's inputs for `rows` of `task`.

    Raises:
      UserError: for a row that lacks a column or is no text.
    """
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise UserError(f"{name} must be a list, not one {type(rows).__name__}; write [text]")
    return [task.inputs(_columns(task, row, f"{name}[{i}]")) for i, row in enumerate(rows)]


def _columns(task: Task, row: Any, place: str) -> dict[str, str]:
    wanted = task.input_columns
    if isinstance(row, Mapping):
        missing = [column for column in wanted if column not in row]
        if missing:
            hint = near_misses(missing[0], map(str, row))
            raise UserError(f"{place} has no {missing[0]}, which {task.name} needs.{hint}")
        columns = {column: row[column] for column in wanted}
    elif len(wanted) == 1:
        columns = {wanted[0]: row}
    elif isinstance(row, list | tuple) and len(row) == len(wanted):
        columns = dict(zip(wanted, row, strict=True))
    else:
        found = f"{len(row)} texts" if isinstance(row, list | tuple) else "one text"
        raise UserError(
            f"{place} has {found}, but {task.name} needs {len(wanted)}: {', '.join(wanted)}"
        )
    for column, text in columns.items():
        check(text, place if len(wanted) == 1 else f"{place}, {column}")
    return columns


def read_lines(path: str) -> list[str]:
    """Lines of the UTF-8 file `path`, "-" for standard input, without their ends.

    Only line feeds end a line: other separators that Unicode knows occur inside comments.

    Raises:
      UserError: if the file cannot be read, or naming the lines that are not UTF-8.
    """
    place = "standard input" if path == "-" else path
    try:
        if path == "-":
            content = sys.stdin.buffer.read(_MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:  # a device, perhaps, which has no end
                raise UserError(
                    f"{place} has more than {_MOST_BYTES >> 20:,} MiB; write it to a file and give that with "
                    "--output, which takes files of any size"
                )
        else:
            content = remote.read_bytes(path)
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{place} cannot be read: {reason}") from None
    content = content.removeprefix(b"\xef\xbb\xbf")
    raw = content.split(b"\n")
    if not raw[-1]:
        raw.pop()  # the last line feed ends the last line
    try:
        return [line.decode().removesuffix("\r") for line in raw]
    except UnicodeDecodeError:
        raise UserError(_undecodable(raw, place)) from None


def _undecodable(raw: Sequence[bytes], place: str) -> str:
    bad = [number for number, line in enumerate(raw, 1) if not _is_utf8(line)]
    listed = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
    lines = "line" if len(bad) == 1 else "lines"
    guess = ""
    if all(_decodes(raw[number - 1], "cp949") for number in bad):
        guess = "; they look like CP949 (EUC-KR): iconv -f CP949 -t UTF-8"
    return f"{place}: {len(bad):,} {lines} not in UTF-8 ({lines} {listed}){guess}"


def _is_utf8(line: bytes) -> bool:
    return _decodes(line, "utf-8")


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True

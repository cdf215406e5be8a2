# SPDX-License-Identifier: Apache-2.0
"""Bytes of a text file as characters: its encoding, its line ends, and what is no text at all.

What cannot be decoded stays in the text as a mark, so that whoever knows rows and lines can name the place.
"""

from __future__ import annotations

import codecs
import io
import os
import re

from kcmoe.data.formats import UNREADABLE, open_unpacked
from kcmoe.errors import UserError
from kcmoe.io import given

_SAMPLE_BYTES = 1 << 16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"\x84\x31\x95\x33", "gb18030"),
)
# How files begin that are no text, whatever they are called: what they are, and what to do.
_NO_TEXT = (
    (b"PK\x03\x04", "a zip archive, as .xlsx is", "call it .zip, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file", "save the sheet as CSV"),
    (b"\x1f\x8b\x08", "compressed with gzip", "call it {name}.gz"),
    (b"\xfd7zXZ\0", "compressed with xz", "call it {name}.xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "call it {name}.zst"),
    (b"PAR1", "parquet", "call it .parquet"),
    (b"ARROW1\0\0", "Arrow", "call it .arrow"),
    (b"%PDF-", "PDF", "take the text out of it"),
    (b"SQLite format 3\0", "a SQLite database", "write the table as CSV"),
    (b"\x93NUMPY", "a NumPy array", "write it as text"),
)
# Bytes that are not in the encoding, as `_mark` leaves them in the text; no decoder gives these signs.
_UNDECODED = re.compile("[\udc00-\udcff]")


class BadRow(Exception):
    """One row that cannot be read; becomes `UserError` in strict reading."""


class BadByte(BadRow):
    """A row with a byte that is not in the file's encoding."""


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return chr(0xDC00 + error.object[error.start]), error.end


codecs.register_error("kcmoe-mark", _mark)


def bad_byte(text: str) -> BadByte | None:
    """The first byte in `text`, as `open_text` gives it, that was not in the encoding; None if all were."""
    found = None if text.isascii() else _UNDECODED.search(text)
    return BadByte(f"{ord(found[0]) - 0xDC00:#04x}") if found else None


def open_text(path: str, encoding: str) -> io.TextIOWrapper:
    """Opens a text file, decompressing by ending; lines end at \\n alone, never at other separators.

    Only where there is no \\n in the whole file they end at \\r, as Excel for Mac can write them. A byte
    order mark wins over `encoding`, which is as `given.encoding` takes it. What cannot be decoded is left for
    `bad_byte` to find.

    Raises:
      UserError: if the file cannot be opened, holds no text, or no encoding of files is called so.
    """
    name = given.encoding(encoding, path)
    start = _start(path)
    for begin, what, mend in _NO_TEXT:
        if start.startswith(begin):
            mend = mend.format(name=os.path.basename(path))
            raise UserError(f"{path} holds no text: it is {what}; {mend}")
    mark = next((found for bom, found in _MARKS if start.startswith(bom)), "")
    if not mark and (other := _surely(start, name)):
        raise UserError(
            f"{path} is not {name} text but {other}; set TASK_ENCODING, or give --encoding={other}"
        )
    newline = "\r" if b"\r" in start and b"\n" not in start and not _has_newline(path) else "\n"
    return io.TextIOWrapper(
        open_unpacked(path), encoding=mark or name, errors="kcmoe-mark", newline=newline
    )


def _surely(start: bytes, name: str) -> str:
    """The encoding that a file is in, where another one would take any bytes for text; "" if not known."""
    if not name.startswith(("utf-16", "utf-32")):
        zeros = [number for number, byte in enumerate(start[:4]) if byte == 0]
        if zeros in ([1, 3], [0, 2]):
            return "utf-16-le" if zeros[0] else "utf-16-be"
    if name != "utf-8" and not given.holds_hangul(name):
        text = _decoded(start, "utf-8")
        if "\ufffd" not in text and any("가" <= sign <= "힣" for sign in text):
            return "utf-8"
    return ""


def _start(path: str) -> bytes:
    try:
        with open_unpacked(path) as raw:
            start: bytes = raw.read(_SAMPLE_BYTES)
            return start
    except (*UNREADABLE, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None


def _has_newline(path: str) -> bool:
    with open_unpacked(path) as raw:
        try:
            return any(b"\n" in block for block in iter(lambda: raw.read(1 << 20), b""))
        except UNREADABLE:
            return True  # a reader of rows names the place


def likely_encoding(path: str, tried: str) -> str:
    """The encoding that the beginning of a file is in, where it is clearly another than `tried`, else ""."""
    sample = _start(path)
    tried_text = _decoded(sample, tried)
    errors = tried_text.count("\ufffd")
    if not errors:
        return ""
    for name in ("utf-8", "cp949", "utf-16-le", "utf-16-be"):
        if name in tried.replace("_", "-") or (name.startswith("utf-16") and b"\0" not in sample):
            continue
        text = _decoded(sample, name)
        hangul = sum("가" <= c <= "힣" for c in text)
        other = sum(not c.isascii() for c in text)
        if text.count("\ufffd") * 10 < errors and hangul > other * 0.5:
            return name
    return ""


def not_text(path: str, encoding: str, error: UnicodeError, recode: str) -> UserError:
    """What is said of a file that `encoding` cannot even begin, as UTF-16 without its mark.

    `recode` is what a person does to say that the encoding is {0}, of the file {1} alone; "" if nothing.
    """
    likely = likely_encoding(path, "ascii")
    way = recode.format(likely or "…", os.path.basename(path))
    if likely:
        found = f". It looks like {spelled(likely)}{'; ' if way else ''}{way}"
    else:
        found = f"; {way}" if way else ""
    return UserError(f"{path} is not {encoding} text ({error}){found}")


def spelled(encoding: str) -> str:
    """An encoding of `likely_encoding` as people write it."""
    return {"cp949": "CP949 (EUC-KR)"}.get(encoding, encoding.upper())


def _decoded(sample: bytes, encoding: str) -> str:
    # The sample may end inside a character.
    return codecs.getincrementaldecoder(encoding)("replace").decode(sample)

# SPDX-License-Identifier: Apache-2.0
"""Rows out of JSON as people have it: JSON lines, one list, or one object that holds the rows.

An object may hold a list under one name (KLUE and KorQuAD write `{"data": [...]}`), or be what
`DataFrame.to_json` writes. A column "a.b" is b of the object a, unless a column is called so.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kcmoe.data.encodings import BadRow, bad_byte
from kcmoe.data.text_formats import Row, column_places
from kcmoe.errors import UserError, near_misses
from kcmoe.io.given import composed

_ABSENT = object()
_ENOUGH_ROWS = 100_000  # a sorted file can begin with many rows that lack a label
_BLANK = re.compile(r"\s*")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {twice} twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def jsonl(
    file: Iterable[str], path: str, columns: Sequence[str], lists: Sequence[str]
) -> Iterator[Row]:
    """Yields rows of a JSON file; only the columns `lists` may hold lists.

    NaN, which Python and pandas write though JSON has none, is null. So is a field that is not there, as
    Spark leaves out null; but one that none of the first `_ENOUGH_ROWS` has, or for which a row has another
    that is spelt much like it, is another name.
    """
    unseen, known = set(columns), set(columns)
    first: dict[str, Any] | None = None
    rows = 0
    for place, row in _values(file, path, columns):
        if isinstance(row, BadRow):
            yield place, row
            continue
        if not isinstance(row, dict):
            yield place, BadRow("not a JSON object")
            continue
        cells = [_cell(row, name) for name in columns]
        first = first if first is not None else row
        rows += 1
        absent = [n for n, cell in zip(columns, cells, strict=True) if cell is _ABSENT]
        unseen &= set(absent)
        strangers = [name for name in row if name not in known] if absent else []
        alike = [name for name in absent if near_misses(name, strangers)]
        if unseen and (rows >= _ENOUGH_ROWS or unseen & set(alike)):
            column_places(list(row), path, sorted(unseen))
        if not absent and len(known) < 1000:
            known |= row.keys()
        cells = [None if cell is _ABSENT else cell for cell in cells]
        if alike:
            yield place, BadRow(f"no column {alike[0]}")
        elif bad := _wrong(columns, cells, lists):
            yield place, bad
        else:
            yield place, [None if cell != cell else cell for cell in cells]
    if unseen and first is not None:
        column_places(list(first), path, sorted(unseen))


def objects(file: Iterable[str], path: str, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yields places and whole rows: a dict, or a `BadRow`. `columns` helps to find the list of rows."""
    for place, row in _values(file, path, columns):
        if isinstance(row, BadRow):
            yield place, row
        elif not isinstance(row, dict):
            yield place, BadRow("not a JSON object")
        elif broken := [name for name, value in row.items() if _any_broken((name, value))]:
            yield place, BadRow(f"half a surrogate pair in {broken[0]!a}")
        else:
            yield place, row


def cells(row: Mapping[str, Any], columns: Sequence[str]) -> list[Any] | BadRow:
    """Values of some columns of a row; None where one is absent, null or NaN."""
    found = [_cell(row, name) for name in columns]
    if bad := _wrong(columns, found, ()):
        return bad
    return [None if cell is _ABSENT or cell != cell else cell for cell in found]


def lacking(row: Mapping[str, Any], columns: Iterable[str]) -> list[str]:
    """Those among some columns that a row does not have, null or not."""
    return [name for name in columns if _cell(row, name) is _ABSENT]


def _any_broken(value: Any) -> bool:
    if isinstance(value, str):
        return not value.isascii() and _broken(value)
    if isinstance(value, dict):
        return any(map(_any_broken, value.items()))
    return isinstance(value, list | tuple) and any(map(_any_broken, value))


def _cell(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, whatever the spelling of its name; `_ABSENT` where there is none."""
    if name in row:
        return row[name]
    alike = [each for each in row if composed(each) == composed(name)]
    if len(alike) == 1:
        return row[alike[0]]
    first, dot, rest = name.partition(".")
    while dot:
        inner = row.get(first)
        if isinstance(inner, dict):
            return _cell(inner, rest)
        more, dot, rest = rest.partition(".")
        first = f"{first}.{more}"
    return _ABSENT


def _is_nested(value: Any, list_allowed: bool) -> bool:
    if isinstance(value, list) and list_allowed:
        return any(isinstance(each, list | dict) for each in value)
    return isinstance(value, list | dict)


def _wrong(columns: Sequence[str], cells: Sequence[Any], lists: Sequence[str]) -> BadRow | None:
    """What is wrong with the first cell that is neither a text, a number nor missing; None if all are."""
    for name, cell in zip(columns, cells, strict=True):
        if _is_nested(cell, name in lists):
            what = "a list" if isinstance(cell, list) else "an object"
            inside = next(iter(cell), "") if isinstance(cell, dict) else ""
            hint = f" (a field of it is named with a dot, as {name}.{inside})" if inside else ""
            return BadRow(f"column {name} holds {what} where a text is needed{hint}")
        if isinstance(cell, str) and not cell.isascii() and _broken(cell):
            return BadRow(f"half a surrogate pair in column {name}")
    return None


def _broken(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def _values(file: Iterable[str], path: str, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    lines: Iterator[tuple[int, str]] = enumerate(file, 1)
    blank, first = 0, (0, "")
    for first in lines:
        if first[1].strip():
            break
        blank += 1
    if first[1].lstrip().startswith("["):
        yield from _list(first[1] + "".join(line for _, line in lines), blank)
        return
    if first[1].lstrip().startswith("{"):
        second = next(((n, line) for n, line in lines if line.strip()), None)
        if second is None or _is_cut(first[1]):
            rest = [] if second is None else [second[1], *(line for _, line in lines)]
            whole = first[1] + "".join(rest)
            try:
                value = _DECODER.decode(whole.strip())
            except (ValueError, RecursionError):
                kept = [first[1], *rest]  # JSON lines whose first is damaged
                lines = iter(list(enumerate(kept, first[0]))[1:])
            else:
                if bad := bad_byte(whole):
                    yield "as a whole", bad
                else:
                    yield from _of_object(value, path, columns)
                return
        elif second:
            lines = itertools.chain([second], lines)
    for number, line in itertools.chain([first], lines):
        if not line.strip():
            continue
        place = f"line {number}"
        if bad := bad_byte(line):
            yield place, bad
            continue
        try:
            yield place, _DECODER.decode(line.strip())
        except (ValueError, RecursionError) as error:
            yield place, BadRow(f"not JSON ({_reason(error)})")


def _is_cut(line: str) -> bool:
    """Whether a line is the beginning of a JSON object that goes on in the next."""
    try:
        _DECODER.decode(line.strip())
    except json.JSONDecodeError as error:
        return error.pos >= len(line.strip()) or "Unterminated" in error.msg
    except (ValueError, RecursionError):
        return False
    return False


def _of_object(
    value: dict[str, Any], path: str, columns: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """Rows of an object that is the whole file."""
    alike = {composed(name): each for name, each in value.items()}
    asked = [alike.get(composed(name), _ABSENT) for name in columns]
    if all(isinstance(each, dict) for each in asked):  # DataFrame.to_json()
        keys = dict.fromkeys(key for each in asked for key in each)
        rows: list[Any] = [
            dict(zip(columns, [each.get(key) for each in asked], strict=True)) for key in keys
        ]
    elif all(isinstance(each, list) for each in asked) and len({len(x) for x in asked}) == 1:
        rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*asked, strict=True)]
    elif _is_split(value):  # DataFrame.to_json(orient="split")
        names = [composed(name) for name in value["columns"]]
        column_places(names, path, [name for name in columns if names.count(composed(name)) > 1])
        rows = [dict(zip(value["columns"], cells, strict=False)) for cells in value["data"]]
    elif value.keys() == {"schema", "data"} and value["data"] == []:  # an empty one, orient="table"
        rows = []
    elif all(_cell(value, name) is not _ABSENT for name in columns):
        rows = [value]
    else:
        listed = [name for name, each in value.items() if _is_rows(each)]
        if len(listed) > 1:
            raise UserError(
                f"{path} holds several lists of rows ({', '.join(listed[:5])}); write one to a file"
            )
        if listed:
            rows = value[listed[0]]
        elif value and all(isinstance(each, dict) for each in value.values()):  # orient="index"
            rows = list(value.values())
        else:
            rows = [value]
    for number, row in enumerate(rows, 1):
        yield f"element {number}", row


def _is_split(value: Mapping[str, Any]) -> bool:
    names, rows = value.get("columns"), value.get("data")
    if not isinstance(names, list) or not isinstance(rows, list):
        return False
    if not all(isinstance(name, str) for name in names):
        return False
    return all(isinstance(row, list) and len(row) == len(names) for row in rows)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _list(text: str, blank_lines: int) -> Iterator[tuple[str, Any]]:
    """The elements of one list; those that are damaged are passed over where lines show the next one."""
    if bad_byte(text) is None:
        try:
            rows = _DECODER.decode(text.strip())
        except (ValueError, RecursionError):
            pass
        else:
            for number, value in enumerate(rows, 1):
                yield f"element {number}", value
            return
    starts = re.search(r"^[ \t]*(?=\{)", text, re.MULTILINE)
    following = re.compile(rf"\n{re.escape(starts[0]) if starts else ''}(?=\{{)")
    place, number = text.index("[") + 1, 0
    while True:
        number += 1
        place = _skip(text, place)
        if text.startswith("]", place):
            end = _skip(text, place + 1)
            if end < len(text):
                yield _line(text, end, blank_lines), BadRow("not JSON (text after the list)")
            return
        bad: BadRow | None
        try:
            value, end = _DECODER.raw_decode(text, place)
            bad = bad_byte(text[place:end])
            end = _skip(text, end)
            if text.startswith(",", end):
                end += 1
            elif not text.startswith("]", end):
                bad = BadRow("not JSON (no comma or end of the list after it)")
                raise ValueError
        except (ValueError, RecursionError) as error:
            reason = bad if str(error) == "" and bad else BadRow(f"not JSON ({_reason(error)})")
            yield _line(text, place, blank_lines), reason
            again = following.search(text, place + 1)
            if not again:
                return
            place = again.end()
            continue
        yield (_line(text, place, blank_lines), bad) if bad else (f"element {number}", value)
        place = end


def _skip(text: str, place: int) -> int:
    match = _BLANK.match(text, place)
    assert match is not None
    return match.end()


def _line(text: str, place: int, before: int) -> str:
    text_before = text[:place]
    return f"line {before + 1 + text_before.count(chr(10))}"


def _reason(error: ValueError | RecursionError) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)

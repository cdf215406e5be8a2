# SPDX-License-Identifier: Apache-2.0
"""The operations of the HTTP interface as data: their fields, from which requests are checked and described.

A field stands here once: `parse` checks a request by it, and `openapi.py` documents it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from kcmoe.errors import near_misses
from kcmoe.serve.errors import ApiError, refused
from kcmoe.serve.limits import Limits

LARGEST_NUMBER = 1000
Kind = Literal["texts", "rows", "row", "text", "whole", "number", "flag"]


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a request.

    Attributes:
      kind: "texts" is a list of strings; "rows" a list of texts or of rows of columns; "row" one of these.
      help: what it means.
      required: whether a request must have it.
      default: its value otherwise.
    """

    kind: Kind
    help: str
    required: bool = False
    default: Any = None


_TASK = Field("text", "name of a task with labels; by default what the model was trained for")
_TEXTS = "texts; `<extra_id_0>` is a sentinel"
OPERATIONS: Mapping[str, Mapping[str, Field]] = {
    "classify": {
        "texts": Field(
            "rows", "texts; for a task with several columns lists in their order, or objects", True
        ),
        "task": _TASK,
        "exact": Field("flag", "all digits, as `lm.classify`; else six as `kcmoe predict`", default=False),
    },
    "generate": {
        "texts": Field("texts", _TEXTS, True),
        "beams": Field("whole", "beams of the search; 1 is greedy", default=1),
        "max_tokens": Field("whole", "longest answer; by default that of training"),
        "alpha": Field("number", "strength of the brevity penalty", default=0.6),
        "fill": Field("flag", "end where the text's last blank is filled, and write no more", default=False),
    },
    "score": {
        "inputs": Field("texts", _TEXTS, True),
        "targets": Field("texts", "as many texts, whose log-likelihoods are computed", True),
    },
    "embed": {"texts": Field("texts", "texts", True)},
    "experts": {
        "text": Field("row", "one text, or one row of the task", True),
        "task": Field("text", "a task whose prompt is put around the text; by default none"),
    },
}  # fmt: skip


def parse(operation: str, body: bytes, limits: Limits) -> dict[str, Any]:
    """The checked fields of a request.

    Raises:
      ApiError: 400 for what is no JSON in UTF-8, 413 for too many or too long texts, 422 for wrong fields.
    """
    fields = OPERATIONS[operation]
    given = _json(body)
    if not isinstance(given, dict):
        raise refused(
            f"the body is {_named(given)}, not an object", "request body",
            f'send an object such as {{"{next(iter(fields))}": …}}',
        )  # fmt: skip
    for name in given:
        if name not in fields:
            hint = near_misses(str(name), fields).strip()
            raise refused(
                f"there is no field {str(name)[:40]!r}", "request body",
                f"{hint} Fields: {', '.join(fields)}".strip(),
            )  # fmt: skip
    found = {}
    for name, field in fields.items():
        value = given.get(name)
        if value is None:
            if field.required:
                raise refused(f"{name} is missing", "request body", f"add {name}: {field.help}")
            value = field.default
        else:
            _check(name, field, value, limits)
        found[name] = value
    return found


def _json(body: bytes) -> Any:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = "encode the body as UTF-8"
        try:
            body.decode("cp949")
            hint += "; it looks like CP949 (EUC-KR)"
        except UnicodeDecodeError:
            pass
        raise ApiError(
            400, f"the body is not in UTF-8: byte {error.start}", "request body", hint
        ) from None
    if not text.strip():
        raise ApiError(400, "the body is empty", "request body", "send a JSON object")
    try:
        return json.loads(text, parse_constant=_constant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ApiError(
            400,
            f"the body is no JSON: {error.msg}",
            f"request body, {place}",
            "mend the JSON there",
        ) from None
    except (RecursionError, ValueError) as error:
        why = "too deep" if isinstance(error, RecursionError) else str(error)[:80]
        raise ApiError(
            400, f"the body is no JSON that can be read: {why}", "request body", "send plain JSON"
        ) from None


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _check(name: str, field: Field, value: Any, limits: Limits) -> None:
    if field.kind in ("texts", "rows"):
        if not isinstance(value, list):
            raise refused(f"{name} is {_named(value)}, not a list", name, "write [text, …]")
        if len(value) > limits.lines:
            raise ApiError(
                413, f"{name} has {len(value):,} lines, more than {limits.lines:,}", name,
                "send them in several requests",
            )  # fmt: skip
        for number, item in enumerate(value):
            _check_text(f"{name}[{number}]", item, limits, columns=field.kind == "rows")
    elif field.kind in ("text", "row"):
        _check_text(name, value, limits, columns=field.kind == "row")
    elif field.kind == "flag":
        if not isinstance(value, bool):
            raise refused(f"{name} is {_named(value)}", name, "write true or false")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise refused(f"{name} is {_named(value)}, not a number", name, "write a number")
    elif field.kind == "whole" and not isinstance(value, int):
        raise refused(f"{name} is {value}, not a whole number", name, "write a whole number")
    elif not (math.isfinite(value) and 0 <= value <= LARGEST_NUMBER):
        raise refused(
            f"{name} is out of range", name, f"write a number from 0 to {LARGEST_NUMBER:,}"
        )


def _check_text(place: str, value: Any, limits: Limits, *, columns: bool) -> None:
    if columns and isinstance(value, list | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for column, item in items:
            _check_text(
                f"{place}[{json.dumps(column, ensure_ascii=False)[:40]}]",
                item,
                limits,
                columns=False,
            )
        return
    if not isinstance(value, str):
        raise refused(f"{place} is {_named(value)}, not a text", place, "give a string")
    if len(value) > limits.characters:
        raise ApiError(
            413, f"{place} has {len(value):,} characters, more than {limits.characters:,}", place,
            "cut it: the model reads a few hundred tokens only",
        )  # fmt: skip
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise refused(
            f"{place} has half a surrogate pair at character {error.start}", place,
            "decode the bytes that it came from as UTF-8",
        ) from None  # fmt: skip


def _named(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false",
             int: "a number", float: "a number", type(None): "null"}  # fmt: skip
    return names.get(type(value), "something else")

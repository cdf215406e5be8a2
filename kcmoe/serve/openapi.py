# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 description of the interface, made from the fields in `operations.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kcmoe import __version__
from kcmoe.serve.limits import Limits
from kcmoe.serve.operations import LARGEST_NUMBER, OPERATIONS, Field

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_WHOLE: Schema = {"type": "integer"}
_FLAG: Schema = {"type": "boolean"}
_CUT: Schema = {
    "type": "object",
    "description": "only where a text was longer than the model reads: how many tokens it has and how many "
    "were read, and the character of the text from which on it was not, with what stands around it",
    "properties": {
        "tokens": _WHOLE, "kept_tokens": _WHOLE, "character": _WHOLE, "characters": _WHOLE,
        "before": _TEXT, "after": _TEXT,
    },
}  # fmt: skip
_NOTES: Schema = {"tokens": _WHOLE, "cut": _CUT}
_SUMMARIES = {
    "classify": "Labels with the probability of each label",
    "generate": "Filled sentinels, by beam search",
    "score": "Log-likelihoods of targets given inputs, end of sequence included",
    "embed": "One vector per text: the mean of the encoder's output over its real tokens",
    "experts": "Which experts each piece of a text is sent to, per sparse encoder layer",
}
_ERRORS = {
    400: "no JSON in UTF-8",
    408: "the body did not arrive in time",
    413: "too large, too many texts, or too long a text",
    415: "not application/json",
    422: "a field that is wrong, or what the model cannot do",
    429: "the queue is full; Retry-After says when to try again",
    503: "stopping, overloaded, or too late",
}


def describe(limits: Limits, about: Mapping[str, Any]) -> dict[str, Any]:
    """The whole description; `about` is `Engine.describe` of the model that is served."""
    paths: dict[str, Any] = {}
    for name, fields in OPERATIONS.items():
        request = _request(name, fields, limits, about)
        paths[f"/v1/{name}"] = {
            "post": {
                "operationId": name,
                "summary": _SUMMARIES[name],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": request}},
                },
                "responses": {
                    "200": _content(_ANSWERS[name], "the answers, in order"),
                    **_errors(),
                },
            }
        }
    for path, (summary, media_type) in _READ.items():
        content: Schema = {media_type: {"schema": {}}}
        paths[path] = {"get": {"summary": summary, "responses": {
            "200": {"description": "as the summary says", "content": content}}}}  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": "Kc-MoE", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR}},
    }


def _request(
    operation: str, fields: Mapping[str, Field], limits: Limits, about: Mapping[str, Any]
) -> Schema:
    """An object; where rows are of a task, one for each set of tasks with the same columns."""
    enums = {"beams": about["beams"], "max_tokens": about["new_tokens"]}
    if "task" not in fields:
        return _body(
            {name: _schema(one, limits, enums.get(name)) for name, one in fields.items()}, fields
        )
    tasks: dict[tuple[str, ...], list[str | None]] = {}
    for task in about["tasks"]:
        tasks.setdefault(tuple(task["columns"]), []).append(task["name"])
        if operation == "classify" and task["name"] == about["default_task"]:
            tasks[tuple(task["columns"])].append(None)
    if operation == "experts":
        tasks[()] = [None]
    bodies = [
        _body(
            {
                name: _schema(one, limits, names if name == "task" else None, columns)
                for name, one in fields.items()
            },
            fields,
            required=["task"] * (None not in names),
        )
        for columns, names in tasks.items()
    ]
    return {"anyOf": bodies}


def _body(
    properties: Mapping[str, Schema], fields: Mapping[str, Field], required: Sequence[str] = ()
) -> Schema:
    needed = [name for name, field in fields.items() if field.required]
    return {"type": "object", "properties": properties, "required": [*needed, *required],
            "additionalProperties": False}  # fmt: skip


def _schema(
    field: Field, limits: Limits, enum: Sequence[Any] | None = None, columns: Sequence[str] = ()
) -> Schema:
    row = _row(columns)
    # Bounds are said in words: what is beyond them is answered with 413, as too large, not as wrong.
    bounds = {
        "texts": f" (at most {limits.lines:,}, each of at most {limits.characters:,} characters)",
        "row": f" (at most {limits.characters:,} characters)",
    }
    bounds["rows"] = bounds["texts"]
    kinds: Mapping[str, Schema] = {
        "texts": {"type": "array", "items": _TEXT},
        "rows": {"type": "array", "items": row},
        "row": row, "text": _TEXT, "whole": _WHOLE, "flag": _FLAG,
        "number": {**_NUMBER, "minimum": 0, "maximum": LARGEST_NUMBER},
    }  # fmt: skip
    schema = {**kinds[field.kind], "description": field.help + bounds.get(field.kind, "")}
    if not field.required:  # null is as good as nothing
        schema["type"] = [schema["type"], "null"]
    if field.default is not None:
        schema["default"] = field.default
    if enum is not None:
        schema["enum"] = [*enum, *([None] if field.kind != "text" and not field.required else ())]
    return schema


def _row(columns: Sequence[str]) -> Schema:
    """A row of a task with these columns; a text where there are none."""
    named = {
        "type": "object",
        "properties": dict.fromkeys(columns, _TEXT),
        "required": [*columns],
        "additionalProperties": _TEXT,
    }
    if len(columns) > 1:
        size = len(columns)
        return {
            "anyOf": [{"type": "array", "items": _TEXT, "minItems": size, "maxItems": size}, named]
        }
    return {"anyOf": [_TEXT, named]} if columns else _TEXT


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _content(schema: Schema, description: str) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _errors() -> Schema:
    reference = {"$ref": "#/components/schemas/Error"}
    return {str(status): _content(reference, why) for status, why in _ERRORS.items()}


_ERROR = _object(
    error=_object(status=_WHOLE, what=_TEXT, where=_TEXT, mend=_TEXT, retry_after_s=_WHOLE)
)
_FILLS: Schema = {"type": "object", "additionalProperties": _TEXT}
_BEAM = _object(
    text=_TEXT,
    fills=_FILLS,
    log_likelihood={**_NUMBER, "description": "of the whole answer; exp of it is its probability"},
    finished={**_FLAG, "description": "whether it ended before max_tokens"},
)
_SECONDS = {**_NUMBER, "description": "from the last byte of the request to the answer"}
_SHARES: Schema = {"type": "object", "additionalProperties": _NUMBER}
_ANSWERS: Mapping[str, Schema] = {
    "classify": _object(
        task=_TEXT,
        predictions=_list(
            _object(
                label=_TEXT,
                probabilities=_SHARES,
                per_label={**_SHARES, "description": "where several labels may be right, of each of them"},
                **_NOTES,
            )
        ),
        seconds=_SECONDS,
    ),
    "generate": _object(
        beams=_WHOLE,
        results=_list(
            _object(
                generated=_TEXT,
                fills=_FILLS,
                candidates={
                    **_list(_object(text=_TEXT, fills=_FILLS, probability=_NUMBER)),
                    "description": "with `fill`: the text with its blanks filled, the likeliest first",
                },
                beams=_list(_BEAM),
                **_NOTES,
            )
        ),
        seconds=_SECONDS,
    ),
    "score": _object(
        scores=_list(_object(log_likelihood=_NUMBER, target_tokens=_WHOLE, **_NOTES)), seconds=_SECONDS
    ),
    "embed": _object(
        size=_WHOLE, pooling=_TEXT,
        embeddings=_list(_object(embedding=_list(_NUMBER), **_NOTES)), seconds=_SECONDS,
    ),
    "experts": _object(
        task={"type": ["string", "null"]},
        num_experts=_WHOLE,
        pieces=_list(_object(piece=_TEXT, text=_TEXT, prompt=_FLAG)),
        layers=_list(
            _object(
                layer=_TEXT, chosen=_list(_list(_WHOLE)), weights=_list(_list(_NUMBER)),
                entropy=_list(_NUMBER), dropped=_list(_list(_FLAG)),
            )
        ),
        capacity=_object(
            rows=_WHOLE, tokens=_WHOLE, groups=_WHOLE, tokens_per_group=_WHOLE,
            places_per_expert=_WHOLE, factor=_NUMBER,
        ),
        seconds=_SECONDS,
        **_NOTES,
    ),
}  # fmt: skip
_READ = {
    "/v1/model": ("What is served: tasks, sizes, limits", "application/json"),
    "/v1/experts/preferences": (
        "Pieces of the shipped comments that each expert gets more often than its share",
        "application/json",
    ),
    "/healthz": ("The process is alive", "application/json"),
    "/readyz": (
        "200 once the first answer was computed; 503 before, and when stopping",
        "application/json",
    ),
    "/metrics": ("Counters in Prometheus' text format", "text/plain"),
}

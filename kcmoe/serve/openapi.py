# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 description of the interface, made from the fields in `operations.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kcmoe import __version__
from kcmoe.serve.limits import Limits
from kcmoe.serve.operations import OPERATIONS, Field

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_WHOLE: Schema = {"type": "integer"}
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


def describe(limits: Limits) -> dict[str, Any]:
    """The whole description."""
    paths: dict[str, Any] = {}
    for name, fields in OPERATIONS.items():
        properties = {field: _schema(one, limits) for field, one in fields.items()}
        required = [field for field, one in fields.items() if one.required]
        request = {"type": "object", "properties": properties, "required": required,
                   "additionalProperties": False}  # fmt: skip
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


def _schema(field: Field, limits: Limits) -> Schema:
    text = {"type": "string", "maxLength": limits.characters}
    row = {"anyOf": [text, {"type": "array", "items": text},
                     {"type": "object", "additionalProperties": text}]}  # fmt: skip
    kinds: Mapping[str, Schema] = {
        "texts": {"type": "array", "items": text, "maxItems": limits.lines},
        "rows": {"type": "array", "items": row, "maxItems": limits.lines},
        "row": row, "text": text, "whole": _WHOLE, "number": _NUMBER, "flag": {"type": "boolean"},
    }  # fmt: skip
    default = {} if field.default is None else {"default": field.default}
    return {**kinds[field.kind], "description": field.help, **default}


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
_BEAM = _object(
    text=_TEXT,
    fills={"type": "object", "additionalProperties": _TEXT},
    log_likelihood={**_NUMBER, "description": "of the whole answer; exp of it is its probability"},
    finished={"type": "boolean", "description": "whether it ended before max_tokens"},
)
_SECONDS = {**_NUMBER, "description": "from the last byte of the request to the answer"}
_SHARES: Schema = {"type": "object", "additionalProperties": _NUMBER}
_PAIRS = _list(_list({"type": "array", "items": {}}))
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
                fills={"type": "object", "additionalProperties": _TEXT},
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
        pieces=_list(_object(piece=_TEXT, text=_TEXT, prompt={"type": "boolean"})),
        layers=_list(
            _object(layer=_TEXT, chosen=_PAIRS, weights=_PAIRS, entropy=_list(_NUMBER), dropped=_PAIRS)
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

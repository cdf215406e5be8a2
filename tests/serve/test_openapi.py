# SPDX-License-Identifier: Apache-2.0
"""The description of the interface is true: what fits it is accepted, and answers fit it."""

from __future__ import annotations

from typing import Any

import pytest

TYPES = {"object": dict, "array": list, "string": str, "number": int | float, "integer": int,
         "boolean": bool, "null": type(None)}  # fmt: skip
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("classify", {"texts": ["가", {"document": "나"}], "exact": True}),
    ("classify", {"texts": [], "task": None, "exact": None}),
    ("classify", {"texts": [["가", "나"], {"sentence1": "가", "sentence2": "나", "idx": "3"}],
                  "task": "klue_sts"}),
    ("generate", {"texts": ["가 <extra_id_0>"], "beams": 2, "max_tokens": None, "alpha": 0}),
    ("score", {"inputs": ["가"], "targets": ["나"]}),
    ("embed", {"texts": ["가", "나" * 300]}),
    ("experts", {"text": "가 <extra_id_0>", "task": None}),
    ("experts", {"text": {"document": "가"}, "task": "nsmc"}),
]  # fmt: skip
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("classify", {"texts": [{"text": "가"}]}),
    ("classify", {"texts": [], "task": ""}),
    ("classify", {"texts": ["가"], "task": "klue_sts"}),
    ("generate", {"texts": ["가"], "beams": 3}),
    ("generate", {"texts": ["가"], "alpha": -1}),
    ("embed", {"texts": None}),
    ("experts", {"text": {"document": "가"}}),
]  # fmt: skip


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """As much of JSON Schema as the description uses."""
    if "anyOf" in schema and not any(fits(value, one) for one in schema["anyOf"]):
        return False
    types = schema.get("type", [])
    kinds = [TYPES[name] for name in ([types] if isinstance(types, str) else types)]
    if kinds and not any(isinstance(value, kind) for kind in kinds):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties", {})
        return set(schema.get("required", ())) <= value.keys() and all(
            other is not False or name in known for name in value
        ) and all(fits(one, known.get(name, other or {})) for name, one in value.items())  # fmt: skip
    if isinstance(value, list):
        sizes = range(schema.get("minItems", 0), schema.get("maxItems", len(value)) + 1)
        return len(value) in sizes and all(fits(one, schema.get("items", {})) for one in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return True


def described(server: Any, operation: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Schemas of request and answer."""
    post = server.get("/openapi.json")[1]["paths"][f"/v1/{operation}"]["post"]
    content = post["requestBody"], post["responses"]["200"]
    request, answer = (one["content"]["application/json"]["schema"] for one in content)
    return request, answer


@pytest.mark.parametrize(("operation", "body"), REQUESTS)
def test_what_fits_is_accepted_and_answers_fit(server: Any, operation: str, body: Any) -> None:
    request, answer = described(server, operation)
    assert fits(body, request)
    found = server.post(f"/v1/{operation}", body)
    assert fits(found, answer)
    assert found.keys() <= answer["properties"].keys()


@pytest.mark.parametrize(("operation", "body"), WRONG)
def test_what_is_refused_does_not_fit(server: Any, operation: str, body: Any) -> None:
    assert server.ask("POST", f"/v1/{operation}", body)[0] == 422
    assert not fits(body, described(server, operation)[0])

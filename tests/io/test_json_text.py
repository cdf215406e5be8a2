# SPDX-License-Identifier: Apache-2.0
"""JSON of others raises one kind of error, and is read in one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcmoe.io import json_text

# They read what this program wrote itself: its caches, results, and answers of its processes.
OWN = {
    "corpus/staging.py", "corpus/download.py", "evaluation/suite.py", "evaluation/suite_tasks.py",
    "t5x/requirements.py", "inference/programs.py", "inference/expected.py", "hosts/watching.py",
    "hosts/joining.py", "hosts/agreeing.py", "hosts/group.py", "tokenizer/fit.py", "tools/plan/compiled.py",
    "tools/plan/compiler.py", "tools/bench/worker.py", "io/kept.py", "io/json_text.py",
    # And these two see to all errors themselves, with messages of their own.
    "serve/operations.py", "data/formats.py",
}  # fmt: skip


@pytest.mark.parametrize(
    "text", ["{", b"[", "[" * 100_000, '{"a":' * 100_000, b"\xff", "", "9" * 5000]
)
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        json_text.parse(text)


def test_json_is() -> None:
    assert json_text.parse('{"가": [1, null]}') == {"가": [1, None]}


def test_files_of_others_are_read_here() -> None:
    package = Path(json_text.__file__).parents[1]
    users = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "json.load" in path.read_text("utf-8")
    }
    assert users == OWN

# SPDX-License-Identifier: Apache-2.0
"""Preparing a corpus: cleaning rules, counts, order, interruption."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kcmoe.data import staging
from kcmoe.data.cleaning import RULES, Cleaner
from kcmoe.data.prepare import MIN_MEMORY_BYTES, Plan, prepare
from kcmoe.data.staging import Reading
from kcmoe.errors import UserError


@pytest.mark.parametrize(
    ("rule", "text", "cleaned"),
    [
        ("control", "가\x00나\t다\u2028라", "가 나 다 라"),
        ("charset", "좋아요★…“최고”漢字ひ", "좋아요 최고 漢字"),
        ("charset", "최고예요😀👍🏽❤️👨‍👩‍👧", "최고예요😀👍🏽❤️👨‍👩‍👧"),
        ("urls", "보세요 https://www.example.com/a?b=1 지금", "보세요 지금"),
        ("repeats", "ㅋㅋㅋㅋㅋ 와아아아 ㅠㅠ !!!!", "ㅋㅋ 와아아 ㅠㅠ !!!!"),
        ("spaces", "  가   나 ", "가 나"),
    ],
)
def test_each_rule_changes_what_it_says_and_can_be_switched_off(rule, text, cleaned):
    assert Cleaner().clean(text) == cleaned
    if cleaned != text:
        assert Cleaner.without([rule]).clean(text) != cleaned


def test_texts_of_ten_characters_are_dropped_and_rules_are_checked():
    assert Cleaner().reason_to_drop("열글자입니다정말임") == "short"
    assert Cleaner.without(["short"]).reason_to_drop("짧다") is None
    assert Cleaner.without(["short"]).reason_to_drop(" ") == "empty"
    assert Cleaner(max_characters=20).reason_to_drop("가" * 21) == "too long"
    with pytest.raises(UserError, match=r"no rule url. Did you mean urls"):
        Cleaner.without(["url"])


def text_number(n: int) -> str:
    return f"{n // 10}-{n % 10}번째 댓글입니다 아주 좋은 글이네요"  # no digit three times in a row


@pytest.fixture
def inputs(tmp_path) -> list[str]:
    """Two files with 1,000 distinct texts, 300 of them in both, and some to drop."""
    texts = [text_number(n) for n in range(1000)]
    first = tmp_path / "a.jsonl"
    first.write_text(
        "\n".join(json.dumps({"text": t}) for t in [*texts[:650], "짧다", None, texts[0]]),
        encoding="utf-8",
    )
    second = tmp_path / "b.parquet"
    pq.write_table(pa.table({"text": [*texts[350:], "   ", None]}), second)
    return [str(first), str(second)]


def plan(inputs, output, **changes) -> Plan:
    fields = {
        "files": inputs,
        "output": Path(output),
        "reading": Reading(Cleaner()),
        "shard_rows": 300,
        "validation_rows": 100,
        "memory_bytes": MIN_MEMORY_BYTES,
    }
    return Plan(**{**fields, **changes})


def shards(folder) -> dict[str, list[str]]:
    return {
        path.name: pq.read_table(path)["text"].to_pylist()
        for path in sorted(Path(folder).glob("*.parquet"))
    }


def test_every_text_once_in_a_shuffled_order_with_every_count(inputs, tmp_path):
    manifest = prepare(plan(inputs, tmp_path / "out"))
    found = shards(tmp_path / "out")
    assert {name: len(texts) for name, texts in found.items()} == {
        "train-00000-of-00003.parquet": 300,
        "train-00001-of-00003.parquet": 300,
        "train-00002-of-00003.parquet": 300,
        "validation.parquet": 100,
    }
    texts = [text for each in found.values() for text in each]
    assert len(set(texts)) == 1000
    numbers = [int(text.partition("번째")[0].replace("-", "")) for text in texts]
    assert numbers != sorted(numbers)
    assert manifest["rows_read"] == 653 + 652
    assert manifest["rows_kept"] == 1000
    assert manifest["dropped"] == {"duplicate": 301, "empty": 1, "null": 2, "short": 1}
    assert not (tmp_path / "out" / ".prepare").exists()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8")) == manifest


def test_the_result_depends_on_texts_and_seed_alone(inputs, tmp_path):
    prepare(plan(inputs, tmp_path / "one"))
    prepare(plan(inputs[::-1], tmp_path / "two", memory_bytes=2 << 30))
    assert shards(tmp_path / "one") == shards(tmp_path / "two")
    prepare(plan(inputs, tmp_path / "three", reading=Reading(Cleaner(), seed=1)))
    assert shards(tmp_path / "one") != shards(tmp_path / "three")


@pytest.mark.slow
def test_worker_processes_change_nothing(inputs, tmp_path):
    prepare(plan(inputs, tmp_path / "one"))
    prepare(plan(inputs, tmp_path / "two", workers=2))
    assert shards(tmp_path / "one") == shards(tmp_path / "two")


@pytest.mark.parametrize("stops_in", ["staging", "shards"])
def test_an_interrupted_run_goes_on(inputs, tmp_path, monkeypatch, stops_in):
    from kcmoe.data import prepare as module

    prepare(plan(inputs, tmp_path / "whole"))
    cleaned, real = [], staging.clean_chunk

    def counting(reading, texts):
        cleaned.append(len(texts))
        if stops_in == "staging" and len(cleaned) == 2:
            raise KeyboardInterrupt
        return real(reading, texts)

    def interrupted(self, texts, keep):
        raise KeyboardInterrupt

    monkeypatch.setattr(staging, "clean_chunk", counting)
    with monkeypatch.context() as patch:
        if stops_in == "shards":
            patch.setattr(module._Shards, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(plan(inputs, tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.parquet"))
    assert not (tmp_path / "out" / "manifest.json").exists()
    prepare(plan(inputs, tmp_path / "out"))
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")
    # Each input was cleaned once, the interrupted one twice.
    assert len(cleaned) == (3 if stops_in == "staging" else 2)


def test_done_is_done_and_other_settings_need_another_folder(inputs, tmp_path):
    manifest = prepare(plan(inputs, tmp_path / "out"))
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    assert prepare(plan(inputs, tmp_path / "out")) == manifest
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="already holds a prepared corpus"):
        prepare(plan(inputs, tmp_path / "out", shard_rows=500))


def test_excluded_texts_and_kept_duplicates(inputs, tmp_path):
    held = tmp_path / "held.txt"
    texts = "\n".join([text_number(1).replace(" ", "   "), text_number(2), "없는 글"])
    held.write_text(texts, encoding="utf-8")
    manifest = prepare(plan(inputs, tmp_path / "out", exclude=[str(held)]))
    assert manifest["dropped"]["excluded"] == 2
    assert manifest["rows_kept"] == 998
    keeping = Reading(Cleaner.without(["duplicates"]))
    assert prepare(plan(inputs, tmp_path / "two", reading=keeping))["rows_kept"] == 1301


def test_equal_keys_are_told_apart_by_their_text(inputs, tmp_path, monkeypatch):
    """All texts in four keys: what counts as a duplicate is the text, not its hash."""
    from kcmoe.data import prepare as module

    monkeypatch.setattr(staging, "text_key", lambda text, seed: len(text) % 4)
    monkeypatch.setattr(module, "text_key", lambda text, seed: len(text) % 4)
    manifest = prepare(plan(inputs, tmp_path / "out"))
    assert manifest["rows_kept"] == 1000
    assert manifest["dropped"]["duplicate"] == 301


def test_mistakes(inputs, tmp_path):
    with pytest.raises(UserError, match="--memory must be at least"):
        prepare(plan(inputs, tmp_path / "out", memory_bytes=1 << 20))
    with pytest.raises(UserError, match="no column body"):
        prepare(plan(inputs, tmp_path / "out", reading=Reading(Cleaner(), column="body")))
    (tmp_path / "n.jsonl").write_text('{"text": "글"}\n{"text": 5}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"n.jsonl: column text holds 5, not text"):
        prepare(plan([str(tmp_path / "n.jsonl")], tmp_path / "out"))
    lenient = Reading(Cleaner.without(["short"]), strict=False)
    with pytest.raises(UserError, match="nothing is left to train on"):
        prepare(plan([str(tmp_path / "n.jsonl")], tmp_path / "out", reading=lenient))
    one = plan([str(tmp_path / "n.jsonl")], tmp_path / "out", reading=lenient)
    manifest = prepare(dataclasses.replace(one, validation_rows=0))
    assert manifest["dropped"] == {"not text": 1}


def test_rules_are_all_documented():
    assert set(Cleaner().rules) == set(RULES)

# SPDX-License-Identifier: Apache-2.0
"""Preparing a corpus: cleaning rules, counts, order, interruption."""

from __future__ import annotations

import dataclasses
import json
import os
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kcmoe.corpus import exclusion, staging
from kcmoe.corpus.cleaning import RULES, Cleaner
from kcmoe.corpus.prepare import MIN_MEMORY_BYTES, Preparation, prepare
from kcmoe.corpus.staging import Reading
from kcmoe.errors import UserError


@pytest.mark.parametrize(
    ("rule", "text", "cleaned"),
    [
        ("control", "가\x00나\t다\u2028라", "가 나 다 라"),
        ("compose", unicodedata.normalize("NFD", "값진 영화, café ㅋㅋ"), "값진 영화, cafe ㅋㅋ"),
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
    assert Cleaner().reason_to_drop("가나다라마바사아자차") == "short"
    assert Cleaner().reason_to_drop("가나다라마바사아자차카") is None
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


def plan(inputs, output, **changes) -> Preparation:
    fields = {
        "files": inputs,
        "output": Path(output),
        "reading": Reading(Cleaner()),
        "shard_rows": 300,
        "validation_rows": 100,
        "memory_bytes": MIN_MEMORY_BYTES,
    }
    return Preparation(**{**fields, **changes})


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
    from kcmoe.corpus import prepare as module

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


def test_a_run_killed_before_its_manifest_leaves_nothing_for_the_next(
    inputs, tmp_path, monkeypatch
):
    real = os.replace

    def killed(source, target):
        if str(target).endswith("out/manifest.json"):
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(plan(inputs, tmp_path / "out"))
    assert "train-00002-of-00003.parquet" in shards(tmp_path / "out"), "the danger is real"
    prepare(plan(inputs, tmp_path / "out", shard_rows=500, validation_rows=0))
    prepare(plan(inputs, tmp_path / "whole", shard_rows=500, validation_rows=0))
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")
    assert len(shards(tmp_path / "out")) == 2


@pytest.mark.parametrize("name", ["train-00000-of-00007.parquet", "validation.parquet"])
def test_files_of_others_stay_and_are_not_mixed_in(inputs, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"theirs")
    with pytest.raises(UserError, match=rf"{name}: not listed by a manifest.json.*--output"):
        prepare(plan(inputs, tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_excluded_texts_and_kept_duplicates(inputs, tmp_path):
    held = tmp_path / "held.txt"
    texts = "\n".join([text_number(1).replace(" ", "   "), text_number(2), "없는 글"])
    held.write_text(texts, encoding="utf-8")
    manifest = prepare(plan(inputs, tmp_path / "out", exclude=exclusion.parse(str(held))))
    assert manifest["dropped"]["excluded"] == 2
    assert manifest["rows_kept"] == 998
    keeping = Reading(Cleaner.without(["duplicates"]))
    assert prepare(plan(inputs, tmp_path / "two", reading=keeping))["rows_kept"] == 1301


@pytest.mark.parametrize(
    ("argument", "pattern", "columns"),
    [
        ("data/nsmc/test.parquet:document", "data/nsmc/test.parquet", ("document",)),
        ("gs://b/kornli/*:premise,hypothesis", "gs://b/kornli/*", ("premise", "hypothesis")),
        ("b.tsv.gz:text", "b.tsv.gz", ("text",)),
        ("gs://b/test.parquet", "gs://b/test.parquet", ()),
        ("C:\\sets\\nsmc.v1\\test.parquet", "C:\\sets\\nsmc.v1\\test.parquet", ()),
        ("samples:comments.txt", "samples:comments.txt", ()),
        ("2024-01-01T10:20:00.jsonl", "2024-01-01T10:20:00.jsonl", ()),
    ],
)
def test_columns_of_excluded_files(argument, pattern, columns, monkeypatch):
    monkeypatch.setattr(exclusion.tables, "expand", lambda patterns: patterns)
    assert exclusion.parse(argument) == [exclusion.Excluded(pattern, columns)]


def test_downloaded_sets_are_excluded_by_their_own_columns(inputs, tmp_path):
    pairs = {"premise": [text_number(1), None], "hypothesis": [text_number(2), text_number(3)]}
    pq.write_table(pa.table(pairs), tmp_path / "test.parquet")
    excluded = exclusion.parse(f"{tmp_path}/test.parquet:premise,hypothesis")
    assert prepare(plan(inputs, tmp_path / "out", exclude=excluded))["dropped"]["excluded"] == 3
    with pytest.raises(UserError, match="has no column text"):
        prepare(plan(inputs, tmp_path / "two", exclude=exclusion.parse(f"{tmp_path}/test.parquet")))
    (tmp_path / "ratings.txt").write_text("id\tdocument\n1\t글\n", encoding="utf-8")
    excluded = exclusion.parse(f"{tmp_path}/ratings.txt:document")
    assert exclusion.keys(excluded, plan(inputs, tmp_path / "three").reading)[1] == 1
    with pytest.raises(UserError, match="has no column body"):
        exclusion.keys(
            exclusion.parse(f"{tmp_path}/ratings.txt:body"), plan(inputs, tmp_path / "x").reading
        )


def test_lenient_reading_reaches_excluded_files(inputs, tmp_path):
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text(json.dumps({"text": text_number(1)}) + "\n{\n", encoding="utf-8")
    excluded = exclusion.parse(str(damaged))
    with pytest.raises(UserError, match=r"line 2: not JSON.*--lenient"):
        prepare(plan(inputs, tmp_path / "out", exclude=excluded))
    lenient = Reading(Cleaner(), strict=False)
    manifest = prepare(plan(inputs, tmp_path / "two", exclude=excluded, reading=lenient))
    assert manifest["dropped"]["excluded"] == 1


def test_equal_keys_are_told_apart_by_their_text(inputs, tmp_path, monkeypatch):
    """All texts in four keys: what counts as a duplicate is the text, not its hash."""
    monkeypatch.setattr(staging, "text_key", lambda text, seed: len(text) % 4)
    manifest = prepare(plan(inputs, tmp_path / "out"))
    assert manifest["rows_kept"] == 1000
    assert manifest["dropped"]["duplicate"] == 301


def test_mistakes(inputs, tmp_path):
    with pytest.raises(UserError, match="--memory must be at least"):
        prepare(plan(inputs, tmp_path / "out", memory_bytes=1 << 20))
    with pytest.raises(UserError, match="no column body"):
        prepare(plan(inputs, tmp_path / "out", reading=Reading(Cleaner(), column="body")))
    (tmp_path / "n.jsonl").write_text('{"text": "글"}\n{"text": 5}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"n.jsonl: column text holds 5, not text.*--lenient"):
        prepare(plan([str(tmp_path / "n.jsonl")], tmp_path / "out"))
    lenient = Reading(Cleaner.without(["short"]), strict=False)
    with pytest.raises(UserError, match="nothing is left to train on"):
        prepare(plan([str(tmp_path / "n.jsonl")], tmp_path / "out", reading=lenient))
    one = plan([str(tmp_path / "n.jsonl")], tmp_path / "out", reading=lenient)
    manifest = prepare(dataclasses.replace(one, validation_rows=0))
    assert manifest["dropped"] == {"not text": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv is empty"),
        ("a.jsonl", '{"text": "글"}\n{"txt": 5}\n', "line 2: no column text.*--lenient"),
        ("a.txt", "짧다\n", "nothing is left"),
    ],
)
def test_a_run_that_wrote_nothing_leaves_no_folders(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "mine").mkdir()
    for output in (tmp_path / "new" / "out", tmp_path / "mine"):
        with pytest.raises(UserError, match=message):
            prepare(plan([str(tmp_path / name)], output))
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "mine"]
    assert not list((tmp_path / "mine").iterdir())


def test_a_damaged_row_group_names_the_option(inputs, tmp_path):
    data = bytearray(Path(inputs[1]).read_bytes())
    data[40:400] = bytes(360)
    Path(inputs[1]).write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged.*give --lenient to leave such row groups out"):
        prepare(plan(inputs[1:], tmp_path / "out"))


def test_rules_are_all_documented():
    assert set(Cleaner().rules) == set(RULES)

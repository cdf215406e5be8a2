# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all; folders are tested with the checkpoints they hold."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from kcmoe.errors import UserError
from kcmoe.io import durable
from kcmoe.io.remote import Address


def test_small_files_are_replaced_whole(tmp_path: Path) -> None:
    durable.write_file(tmp_path / "best.json", b"1")
    durable.write_file(tmp_path / "best.json", b"22")
    assert (tmp_path / "best.json").read_bytes() == b"22"
    assert [p.name for p in tmp_path.iterdir()] == ["best.json"]


def test_a_written_file_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    partial, final = tmp_path / "shard.part", tmp_path / "shard"
    final.write_text("earlier")
    partial.write_text("later")
    durable.finish_file(partial, final)
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]
    assert final.read_text() == "later"


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    left = tmp_path / f"checkpoint_3{durable.TEMPORARY}12-34"
    (left / "state").mkdir(parents=True)
    (tmp_path / "checkpoint_2").mkdir()
    (tmp_path / "notes.tmp").touch()
    assert durable.remove_leftovers(tmp_path) == [left]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_2", "notes.tmp"]
    assert durable.remove_leftovers(tmp_path / "not there") == []


def test_what_a_device_refuses_is_not_the_buckets_refusal() -> None:
    refused = "RESOURCE_EXHAUSTED: Out of memory allocating 17 bytes"
    with pytest.raises(jax.errors.JaxRuntimeError), durable.user_errors(Address("gs://bucket/run")):
        raise jax.errors.JaxRuntimeError(refused)
    with (
        pytest.raises(UserError, match="gs://bucket/run cannot be written: RESOURCE"),
        durable.user_errors(Address("gs://bucket/run")),
    ):
        raise RuntimeError(refused)

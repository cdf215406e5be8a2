# SPDX-License-Identifier: Apache-2.0
"""What is kept comes back under its own facts only, and no fault of the folder is more than a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kcmoe.io.kept import Kept

FACTS = {"version": "1", "shape": (3, 4)}


def test_it_comes_back_under_the_same_facts_and_no_others(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "programs")
    assert kept.find(FACTS) is None
    assert kept.keep(FACTS, b"code\n\0")
    assert Kept(tmp_path / "programs").find({"shape": [3, 4], "version": "1"}) == b"code\n\0"
    assert kept.find({**FACTS, "version": "2"}) is None
    (file,) = (tmp_path / "programs").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    # A file under the name of other facts, e.g. copied there, tells that it is not theirs.
    kept.keep({**FACTS, "version": "2"}, b"other")
    other = next(path for path in (tmp_path / "programs").iterdir() if path != file)
    file.write_bytes(other.read_bytes())
    assert kept.find(FACTS) is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another program's"])
def test_a_damaged_file_is_nothing_and_is_made_anew(tmp_path: Path, damage: str) -> None:
    kept = Kept(tmp_path / "programs")
    kept.keep(FACTS, b"code" * 100)
    (file,) = (tmp_path / "programs").iterdir()
    whole = file.read_bytes()
    flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
    damaged = {
        "cut": whole[:-5],
        "flipped": flipped,
        "empty": b"",
        "another program's": b"\x80\x04.",
    }
    file.write_bytes(damaged[damage])
    assert kept.find(FACTS) is None
    assert kept.keep(FACTS, b"code" * 100)
    assert kept.find(FACTS) == b"code" * 100


def test_what_others_may_write_is_not_read(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "programs")
    kept.keep(FACTS, b"code")
    (file,) = (tmp_path / "programs").iterdir()
    file.chmod(0o666)
    assert kept.find(FACTS) is None
    assert "others may write" in kept.fault
    file.chmod(0o600)
    assert kept.find(FACTS) == b"code"
    (tmp_path / "programs").chmod(0o777)
    assert kept.find(FACTS) is None
    assert not kept.keep(FACTS, b"code")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_another_user_wrote_is_not_read(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "programs")
    kept.keep(FACTS, b"code")
    (file,) = (tmp_path / "programs").iterdir()
    os.chown(file, 12345, -1)
    assert kept.find(FACTS) is None


def test_a_folder_that_cannot_be_written_to_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    kept = Kept(tmp_path / "file" / "programs")
    assert kept.find(FACTS) is None
    assert not kept.keep(FACTS, b"code")
    assert "cannot be written to" in kept.fault

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    kept = Kept(tmp_path / "programs")
    monkeypatch.setattr(os, "replace", full)
    assert not kept.keep(FACTS, b"code")
    assert "No space left" in kept.fault
    assert list((tmp_path / "programs").iterdir()) == []


def test_the_oldest_go_when_there_is_too_much(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "programs", most_bytes=3000)
    for version in range(4):
        kept.keep({"version": version}, b"x" * 1000)
        for path in (tmp_path / "programs").iterdir():
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
    found = [kept.find({"version": version}) is not None for version in range(4)]
    assert found == [False, False, True, True]


def test_no_folder_keeps_nothing() -> None:
    assert not Kept(None).keep(FACTS, b"code")
    assert Kept(None).find(FACTS) is None

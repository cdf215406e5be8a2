# SPDX-License-Identifier: Apache-2.0
"""Processes that agree, disagree, fail and die, without a model."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kcmoe.hosts.group import ALONE

Run = Callable[..., list[tuple[int, str]]]


def test_alone_nobody_is_asked() -> None:
    assert ALONE.each(lambda: "a") == ["a"]
    assert ALONE.first_does(lambda: None) == ""
    assert ALONE.devices() is None


def test_all_hear_what_each_says_and_a_difference_is_refused_by_name(
    hosts: Run, tmp_path: Path
) -> None:
    ends = hosts(
        f"""
        from pathlib import Path
        from kcmoe.training.places import OnDisk
        print("gave", hosts.each(lambda: f"v{{index}}"), hosts.first_does(lambda: f"w{{index}}"))
        agreeing.check_shared(hosts, OnDisk({str(tmp_path)!r}))
        own = Path({str(tmp_path)!r}, f"own{{index}}")
        own.mkdir()
        agreeing._SEEN_WITHIN_S = 0.5
        def full():
            if index == 1:
                raise UserError("the disk is full")
        tries = [
            lambda: agreeing.agree(hosts, lambda: {{"BATCH_SIZE": str(8 * (index + 1)), "PACK": "1"}}),
            lambda: agreeing.check_shared(hosts, OnDisk(str(own))),
            lambda: hosts.each(full),
        ]
        for one in tries:
            try:
                one()
            except UserError as error:
                print("told", error)
        assert hosts.each(lambda: "still") == ["still", "still"]
        assert len(hosts.devices()) == 2
        """
    )
    assert [status for status, _ in ends] == [0, 0], ends
    for index, (_, text) in enumerate(ends):
        assert "gave ['v0', 'v1'] w0" in text
        told = [line for line in text.splitlines() if line.startswith("told ")]
        assert "host 1 (" in told[0]
        assert "differs: BATCH_SIZE is 16 there and 8 on host 0 (" in told[0]
        assert "is not the folder that host 0 (" in told[1]
        assert told[2].startswith("told the disk is full" if index else "told host 1 (")
    assert not list(tmp_path.glob(".probe*"))  # what was written to look is gone again


def test_a_host_that_fails_says_why_on_all(hosts: Run) -> None:
    (one, first), (other, second) = hosts(
        """
        if index == 1:
            raise UserError("no data here")
        time.sleep(600)
        """
    )
    assert (one, other) == (2, 2)
    assert "kcmoe: host 1 (" in first
    assert first.rstrip().endswith("ended: no data here")
    assert second.rstrip().endswith("refused: no data here")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_is_killed_is_named_by_the_others(hosts: Run, victim: int) -> None:
    ends = hosts(
        f"""
        hosts.wait()
        if index == {victim}:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
        """
    )
    assert ends[victim][0] == -signal.SIGKILL
    status, text = ends[1 - victim]
    assert status == 1
    last = text.rstrip().splitlines()[-1]
    assert f"kcmoe: host {victim} (" in last
    assert "was lost" in last
    assert "the same command, started on all hosts, goes on" in last


def test_processes_that_disagree_in_number_are_refused(hosts: Run) -> None:
    (one, first), (other, second) = hosts("time.sleep(600)", counts=(2, 3))
    assert (one, other) == (2, 2)
    assert "was started with --num_processes=3, host 0 (" in first
    assert "give every host the same number" in second


def test_a_collective_that_breaks_is_blamed_on_the_host_that_is_gone(hosts: Run) -> None:
    """Gloo tells only that a connection was reset, from a compiled program with a ValueError."""
    ends = hosts(
        """
        hosts.wait()
        if index == 1:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1.5)
        raise ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")
        """
    )
    status, text = ends[0]
    assert status == 1
    assert "host 1 (" in text.rstrip().splitlines()[-1]
    assert "was lost" in text
    assert "Traceback" not in text

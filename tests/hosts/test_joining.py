# SPDX-License-Identifier: Apache-2.0
"""Who the others are: flags, variables, and what is wrong with them."""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys

import pytest

from kcmoe.config import arguments
from kcmoe.errors import UserError
from kcmoe.hosts import joining
from kcmoe.hosts.joining import Member

ALL = ["--coordinator=10.0.0.2:8476", "--num_processes=4", "--process_id=3"]


def parsed(*flags: str) -> argparse.Namespace:
    parser = arguments.Parser(prog="kcmoe train")
    joining.add_arguments(parser)
    return parser.parse_args(flags)


def test_flags_or_variables_say_where_a_process_stands() -> None:
    assert joining.place(parsed(), {}) is None
    assert joining.place(parsed(*ALL), {}) == Member("10.0.0.2:8476", 4, 3)
    variables = {
        "KCMOE_COORDINATOR": "host:1",
        "KCMOE_NUM_PROCESSES": "2",
        "KCMOE_PROCESS_ID": "0",
        "KCMOE_HOST_TIMEOUT": "9",
    }
    assert joining.place(parsed(), variables) == Member("host:1", 2, 0, host_timeout_s=9)
    assert joining.place(parsed("--process_id=1"), variables).index == 1  # type: ignore[union-attr]
    one = ["--coordinator=a:1", "--num_processes=1", "--process_id=0"]
    assert joining.place(parsed(*one), {}) is None


def test_slurm_says_it_without_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"JOB_ID": "4096", "STEP_NODELIST": "node[03-04]", "NTASKS": "2", "PROCID": "1"}
    for name, value in {**told, "LOCALID": "0", "STEP_NUM_NODES": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert joining.place(parsed(), {}) == Member("node03:61440", 2, 1)
    assert joining.place(parsed(), {"KCMOE_DISTRIBUTED": "0"}) is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert joining.place(parsed(), {}) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (ALL[:2], "--process_id is missing"),
        (ALL[:1], "--num_processes, --process_id are missing"),
        ([*ALL[:2], "--process_id=4"], "count from 0 to --num_processes - 1 = 3"),
        (["--coordinator=10.0.0.2", *ALL[1:]], "is no HOST:PORT"),
        (["--coordinator=10.0.0.2:99999", *ALL[1:]], "is no HOST:PORT"),
        (["--coordinator=:8476", *ALL[1:]], "is no HOST:PORT"),
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        joining.place(parsed(*flags), {})


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("KCMOE_PROCESS_ID=x", "KCMOE_PROCESS_ID: 'x' is not a whole number"),
        ("KCMOE_PROCESS_ID=-1", "KCMOE_PROCESS_ID: -1 is not a whole number from 0"),
        ("KCMOE_NUM_PROCESSES=0", "KCMOE_NUM_PROCESSES: 0 is not a whole number from 1"),
        ("KCMOE_START_TIMEOUT=0", "KCMOE_START_TIMEOUT: 0 is not a whole number from 1"),
        ("KCMOE_HOST_TIMEOUT=2", "KCMOE_HOST_TIMEOUT: 2 is not a whole number from 3"),
    ],
)
def test_a_variable_is_checked_as_its_flag_is(
    variable: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, _, value = variable.partition("=")
    with pytest.raises(UserError, match=message):
        joining.place(parsed(), {name: value})
    flag = name.removeprefix("KCMOE_").lower()
    with pytest.raises((SystemExit, UserError)) as caught:
        parsed(f"--{flag}={value}")
    assert message.partition(": ")[2] in f"{caught.value}{capsys.readouterr().err}"


def test_how_long_a_host_may_be_silent() -> None:
    assert joining.host_timeout_s({}) == Member.host_timeout_s
    assert joining.host_timeout_s({"KCMOE_HOST_TIMEOUT": "7"}) == 7


def test_a_port_in_use_and_a_coordinator_that_does_not_answer() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen(1)
        port = other.getsockname()[1]
        with (
            pytest.raises(UserError, match=f"port {port} of this host cannot be had"),
            joining.joined(Member(f"127.0.0.1:{port}", 2, 0)),
        ):
            pass
    with (
        pytest.raises(UserError, match=r"does not answer \(Connection refused\), waited 1 s"),
        joining.joined(Member(f"127.0.0.1:{port}", 2, 1, start_timeout_s=1)),
    ):
        pass


def test_a_port_where_something_else_listens() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        where = Member(f"127.0.0.1:{other.getsockname()[1]}", 2, 1, start_timeout_s=1)
        program = f"from kcmoe.hosts import joining; from kcmoe.hosts.joining import Member\n\
with joining.joined({where!r}): pass"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    last = done.stderr.rstrip().splitlines()[-1]
    assert "kcmoe: not all 2 processes came to 127.0.0.1:" in last
    assert last.endswith("if they were, another program has that port")

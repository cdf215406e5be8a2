# SPDX-License-Identifier: Apache-2.0
"""`kcmoe predict FILE --output=OUT` stopped anywhere and given again."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kcmoe.errors import UserError
from kcmoe.inference import answer_log, loading, windows
from kcmoe.inference.patience import ctrl_c_waits

TEXTS = ['정말 "재미" 있다', "별로, 두 번은 못 본다", "배우 연기 좋다 " * 4, "<extra_id_0>\t최악"]
ALIKE = ["재미 있다", "별로 다", "재미 없다"]  # of one length in tokens, so one program is compiled

Predict = Callable[..., tuple[int, str, str]]


def stopped(
    predict_file: Predict, monkeypatch: pytest.MonkeyPatch, lines: int, *arguments: str
) -> str:
    """Runs until `lines` are answered, and stops as Ctrl-C does."""
    append = answer_log.AnswerLog.append

    def until(log: answer_log.AnswerLog, answers: Any) -> None:
        append(log, answers)
        if log.rows >= lines:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(answer_log.AnswerLog, "append", until)
        patch.setattr(windows, "_FIRST_ROWS", 2)
        patch.setattr(windows.Windows, "took", lambda *_: None)
        status, _, err = predict_file(*arguments)
    assert status == 130
    return err


@pytest.mark.usefixtures("fake_answers")
@pytest.mark.parametrize("torn", [0, 1, 9, 60])
def test_a_torn_log_goes_on_with_the_same_bytes(
    predict_file: Predict, rows: ModuleType, monkeypatch: pytest.MonkeyPatch, torn: int
) -> None:
    texts = [*TEXTS[:3], "", *TEXTS] * 3
    rows.write("in.csv", texts)
    assert predict_file("in.csv", "--output=whole.parquet")[0] == 0
    err = stopped(predict_file, monkeypatch, 10, "in.csv", "--output=out.parquet")
    assert "answers to 10 of 24 lines are kept; the same command goes on" in err
    assert not os.path.exists("out.parquet")
    log = Path("out.parquet.part")
    log.write_bytes(log.read_bytes()[: log.stat().st_size - torn])
    status, _, err = predict_file("in.csv", "--output=out.parquet")
    assert status == 0
    assert "going on after " in err
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert not log.exists()


@pytest.mark.usefixtures("fake_answers")
def test_a_log_goes_on_for_the_same_question_alone(
    predict_file: Predict, rows: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.write("in.csv", TEXTS)
    asked = ("in.csv", "--output=out.csv", "--columns=document")
    stopped(predict_file, monkeypatch, 2, *asked)
    before = Path("out.csv.part").read_bytes()
    status, _, err = predict_file(*asked, task="curse")
    assert status == 2
    assert (
        "out.csv.part holds answers to the same command with another task (nsmc, now curse)" in err
    )
    assert len(err.splitlines()) == 1
    assert (
        "another setting of PREDICT_TOKENS:" in predict_file(*asked, "--gin.PREDICT_TOKENS=128")[2]
    )
    rows.write("in.csv", [*TEXTS[:3], "다르다"])
    assert "another input" in predict_file(*asked)[2]
    assert Path("out.csv.part").read_bytes() == before, "nothing was touched"
    os.utime("in.csv")
    rows.write("in.csv", TEXTS)
    assert "going on after 2" in predict_file(*asked)[2], "a copy of the input is the same input"
    status, _, err = predict_file(*asked)
    assert (status, "out.csv exists already" in err) == (2, True)
    assert predict_file(*asked, "--overwrite", task="curse")[0] == 0
    assert "probability_욕설" in Path("out.csv").read_text("utf-8")


@pytest.mark.usefixtures("fake_answers")
def test_what_holds_no_answer_is_not_in_the_way(
    predict_file: Predict, rows: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.write("in.csv", TEXTS)

    def refuses(_: Any) -> None:
        raise UserError("the checkpoint is damaged")

    with monkeypatch.context() as patch:
        patch.setattr(loading, "load", refuses)
        status, _, err = predict_file("in.csv", "--output=out.csv", "--gin.PREDICT_TOKENS=128")
        assert (status, "the checkpoint is damaged" in err, os.listdir()) == (2, True, ["in.csv"])
        patch.setattr(answer_log.AnswerLog, "remove", lambda _: None)  # stands for a kill
        assert predict_file("in.csv", "--output=out.csv", "--gin.PREDICT_TOKENS=128")[0] == 2
    assert Path("out.csv.part").exists()
    status, _, err = predict_file("in.csv", "--output=out.csv")
    assert (status, err, sorted(os.listdir())) == (0, "", ["in.csv", "out.csv"])


@pytest.mark.usefixtures("fake_answers")
def test_a_full_disk_is_one_line_and_goes_on(
    predict_file: Predict, rows: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.write("in.csv", TEXTS * 3)
    write_bytes, calls = answer_log._write, []

    def full(descriptor: int, content: bytes) -> None:
        calls.append(content)
        if len(calls) == 3:
            write_bytes(descriptor, content[:7])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_bytes(descriptor, content)

    with monkeypatch.context() as patch:
        patch.setattr(answer_log, "_write", full)
        patch.setattr(windows, "_FIRST_ROWS", 2)
        patch.setattr(windows.Windows, "took", lambda *_: None)
        status, _, err = predict_file("in.csv", "--output=out.csv")
    assert status == 2
    assert "no space left to write out.csv.part" in err
    assert "the answers to 2 rows are kept" in err
    assert len(err.splitlines()) == 1
    assert "going on after 2 of 12" in predict_file("in.csv", "--output=out.csv")[2]
    assert len(list(rows.records("out.csv"))) == 12


@pytest.mark.usefixtures("fake_answers")
def test_stopped_between_the_last_name_and_the_end(
    predict_file: Predict, rows: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.write("in.csv", TEXTS)

    def killed(_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(answer_log.AnswerLog, "remove", killed)
        assert predict_file("in.csv", "--output=out.csv")[0] == 130
    written = Path("out.csv").read_bytes()
    assert predict_file("in.csv", "--output=out.csv")[:2] == (0, "out.csv is complete\n")
    assert (os.listdir(), Path("out.csv").read_bytes()) == (["in.csv", "out.csv"], written)


@pytest.mark.usefixtures("fake_answers")
def test_what_was_there_is_not_taken_for_the_result(
    predict_file: Predict, rows: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.write("in.csv", TEXTS)
    Path("out.csv").write_text("old", "utf-8")
    assert "--output=out.csv exists already" in predict_file("in.csv", "--output=out.csv")[2]
    stopped(predict_file, monkeypatch, 4, "in.csv", "--output=out.csv", "--overwrite")
    assert "--output=out.csv exists already" in predict_file("in.csv", "--output=out.csv")[2]
    assert Path("out.csv").read_text("utf-8") == "old"
    assert "going on after 4" in predict_file("in.csv", "--output=out.csv", "--overwrite")[2]
    assert len(list(rows.records("out.csv"))) == 4


def test_ctrl_c_does_not_wait_for_what_does_not_hear_it() -> None:
    """In a process of its own, which it ends; a handler that does nothing stands for XLA."""
    program = """
import os, signal, threading, time
from kcmoe.inference.patience import short_patience
signal.signal(signal.SIGINT, lambda *_: None)
with short_patience(0.2, lambda: "kept"):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (130, "kept\n")


def test_ctrl_c_waits_for_what_it_would_break() -> None:
    """With Python's own handler: a program in the background of a shell begins by ignoring the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    done = []
    try:
        with pytest.raises(KeyboardInterrupt), ctrl_c_waits():
            signal.raise_signal(signal.SIGINT)
            done.append("block")
        assert done == ["block"]
        with ctrl_c_waits():
            done.append("in peace")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_killed_with_several_processes(
    predict_file: Predict, rows: ModuleType, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of two workers, killed with their parent at some moment, completed by one process."""
    rows.write("in.csv", [ALIKE[n * n % 3] for n in range(12_000)])
    assert predict_file("in.csv", "--output=whole.csv")[0] == 0
    arguments = ["predict", f"--checkpoint={model_dir}/checkpoint_7", "--task=nsmc"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kcmoe", *arguments, "in.csv", "--output=out.csv", "--processes=2"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
    )
    log = Path("out.csv.part")
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 1):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not os.path.exists("out.csv")
    assert 1 < log.read_bytes().count(b"\n") < 12_000
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("workers outlive their parent")
    assert predict_file("in.csv", "--output=out.csv")[0] == 0
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()

# SPDX-License-Identifier: Apache-2.0
"""The table of verbs: help, exit statuses, one line per mistake."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from kcmoe import cli


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_usage_lists_every_verb(capsys, argv):
    assert cli.run(argv) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in cli.VERBS)


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_has_help_with_an_example(capsys, verb):
    try:
        status = cli.run([verb, "--help"])
    except SystemExit as stop:  # argparse's way of ending
        status = stop.code
    assert status == 0
    printed = capsys.readouterr().out
    assert f"kcmoe {verb}" in printed
    assert "example" in printed.lower()


@pytest.mark.parametrize("argv", [["trian"], ["train", "--gin_fille=x"], ["train", "--gin.X"]])
def test_mistakes_are_one_line_and_status_2(capsys, argv):
    assert cli.run(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_unknown_verb_names_the_nearest(capsys):
    cli.run(["trian"])
    assert "train" in capsys.readouterr().err


def test_a_message_stays_one_readable_line(capsys):
    """However long a name was, and whatever it would do to a terminal."""
    cli.run(["x\x1b[2J" + "y" * 100_000])
    message = capsys.readouterr().err
    assert len(message) < 3200
    assert "\x1b" not in message
    assert "more characters" in message


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX", "PYTHONIOENCODING": "euc_kr"},
        {"PYTHONIOENCODING": "ascii"},
    ],
)
def test_any_terminal(locale, tmp_path):
    """Hangul, blocks and emoji in a message and in a name, where the terminal has no such signs."""
    folder = tmp_path / "자료 🙂█"
    folder.mkdir()
    command = [sys.executable, "-m", "kcmoe", "checkpoint", "inspect", folder / "없음"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **locale}, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"kcmoe checkpoint: there is no checkpoint")
    assert done.stderr.count(b"\n") == 1


def test_a_korean_locale_that_is_not_utf_8(tmp_path):
    """Names in UTF-8 as on the disk, arguments in either encoding, messages in the terminal's."""
    made = shutil.which("localedef") and subprocess.run(
        ["localedef", "-i", "ko_KR", "-f", "EUC-KR", tmp_path / "ko_KR.EUC-KR"],
        capture_output=True,
        check=False,
    )
    if not made or not (tmp_path / "ko_KR.EUC-KR").exists():
        pytest.skip("this machine cannot make the locale ko_KR.EUC-KR")
    place = tmp_path / "훈련 자료"
    place.mkdir()
    env = {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": "ko_KR.EUC-KR", "HOME": str(place)}
    for name in ("PYTHONUTF8", "PYTHONIOENCODING"):
        env.pop(name, None)
    program = (
        "import sys; from kcmoe import cli; cli.run = lambda a: print(a, len(a[0])); cli.main()"
    )
    for coding in ("utf-8", "euc_kr"):
        done = subprocess.run(
            [sys.executable, "-c", program, "없음".encode(coding), str(place).encode()],
            capture_output=True,
            env=env,
            check=False,
        )
        assert done.stdout.decode("euc_kr") == f"['없음', '{place}'] 2\n"


@pytest.mark.parametrize("arguments", ["checkpoint --help", "trian", "data list"])
@pytest.mark.parametrize("close", [">&-", "2>&-", "<&- >&- 2>&-", "| true", "2>&1 | true"])
def test_closed_pipes(arguments, close):
    command = f"{sys.executable} -m kcmoe {arguments} {close}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr
    if "|" in close:
        assert done.returncode == 0
    if ">&-" in close.replace("2>&-", ""):
        assert done.returncode == 2
        assert ("standard output is closed" in done.stderr) == ("2>&-" not in close)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
@pytest.mark.parametrize("arguments", ["--help", "data list"])
def test_output_without_room_is_one_line(arguments):
    command = f"{sys.executable} -m kcmoe {arguments} >/dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert re.fullmatch(
        r"kcmoe .*: standard output cannot be written to: No space.*\n", done.stderr
    )
    assert done.returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
@pytest.mark.parametrize(
    ("arguments", "status"), [("trian", 2), ("report nowhere", 2), ("data list", 0)]
)
def test_errors_that_cannot_be_said_have_their_status(arguments, status):
    for where in ("2>/dev/full", "2>&-", "2</dev/null"):
        command = f"{sys.executable} -m kcmoe {arguments} {where}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
        assert done.returncode == status


@pytest.mark.parametrize(
    "arguments",
    [
        ["checkpoint", "inspect"],
        ["report"],
        ["predict", "--checkpoint"],
        ["plan", "--hardware=cpu", "--gin_file"],
    ],
)
def test_a_folder_one_may_not_look_into_is_one_line(arguments, tmp_path, monkeypatch, capsys):
    """Also where the tests run as root, which may look into everything."""

    def refusing(real):
        def ask(path, *args, **options):
            if "closed" in os.fspath(path):
                raise PermissionError(13, "Permission denied", path)
            return real(path, *args, **options)

        return ask

    (tmp_path / "closed").mkdir()
    for name in ("stat", "listdir", "scandir", "open"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    place = str(tmp_path / "closed")
    *words, last = arguments
    given = [f"{last}={place}"] if last.startswith("--") else [last, place]
    assert cli.run([*words, *given]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert place in message


def test_an_interrupt_that_python_only_mentions_comes_again() -> None:
    """As in JAX's callback of the garbage collector, and where it kept a module from being imported."""
    program = """
import gc, signal, sys, time
from kcmoe import cli

def collected(phase, info):
    if phase == "start" and info["generation"] == 2:
        gc.callbacks.clear()
        signal.raise_signal(signal.SIGINT)

def waits(arguments):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    gc.callbacks.append(collected)
    gc.collect()
    time.sleep(60)

def imports(arguments):
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as stop:
        raise ImportError("Encountered an error while initializing the extension") from stop

module = type(sys)("verbs")
module.main = {"wait": waits, "import": imports}[sys.argv[2]]
sys.modules["verbs"] = module
cli.VERBS["parity"] = ("verbs", "")
cli.main()
"""
    for how in ("wait", "import"):
        command = [sys.executable, "-c", program, "parity", how]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
        assert (done.returncode, done.stderr) == (cli.INTERRUPTED, "kcmoe parity: interrupted\n")

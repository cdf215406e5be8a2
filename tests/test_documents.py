# SPDX-License-Identifier: Apache-2.0
"""The documents say what is there: commands, flags, files, and the same in both languages."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import pytest

from kcmoe import cli
from kcmoe.config import fields as config
from kcmoe.config import gin_files

ROOT = Path(__file__).parents[1]
ENGLISH = ["README.md", "how-to-train.md"]
DOCUMENTS = [*ENGLISH, "README.ko.md", "how-to-train.ko.md"]
# Run files carry commands in their headers.
CONFIGS = sorted((ROOT / "configs").rglob("*.gin"))


def blocks(text: str) -> list[str]:
    """Contents of the code blocks marked bash."""
    return re.findall(r"```bash\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Every `kcmoe …`, `bash …` and `python -m …` command of the bash blocks, as words."""
    found = []
    for block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" | "):
                words = shlex.split(part, comments=True)
                if words and words[0] in ("kcmoe", "bash", "python"):
                    found.append(words)
    return found


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The help of `kcmoe verb [action]`."""
    verb = words[1:2] + [word for word in words[2:3] if word.isalpha()]
    with contextlib.suppress(SystemExit):  # argparse leaves this way, with status 0
        assert cli.run([*verb, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_exist_with_their_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    # The tokenizer's macros are of no interest to a run, so they are not in the common registry.
    tokenizer = gin_files.parse(["configs/tokenizer/unigram_32k.gin"])
    known = {*config.known_macros(), *tokenizer}
    for words in commands(read(name)):
        if words[0] == "bash":
            assert (ROOT / words[1]).exists(), words
        if words[0] == "kcmoe" and words[1] != "--help":
            assert words[1] in cli.VERBS
            text = help_of(words, capsys)
            flags = {w.split("=")[0] for w in words if w.startswith("--")}
            unknown = {f for f in flags if not f.startswith("--gin.") and f not in text}
            assert not unknown, f"{words[:3]} has no {unknown}"
        for word in words:
            macro = re.match(r"--gin\.(\w+)=", word)
            assert not macro or macro[1] in known, word


@pytest.mark.parametrize("name", DOCUMENTS)
def test_gin_files_of_commands_are_read_with_their_overrides(name: str) -> None:
    for words in commands(read(name)):
        files = [w.partition("=")[2] for w in words if w.startswith("--gin_file=")]
        bindings = [w.removeprefix("--gin.") for w in words if w.startswith("--gin.")]
        gin_files.parse(
            [f for f in files if f != "FILE"], bindings, foreign="t5x" in " ".join(files)
        )


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_named_exist(name: str) -> None:
    text = read(name)
    paths = set(re.findall(r"(?:configs|scripts|kcmoe|tests)/[\w./*-]+\w", text))
    paths |= set(re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text))
    missing = [path for path in paths if not any(ROOT.glob(path))]
    assert not missing


@pytest.mark.parametrize("name", ENGLISH)
def test_korean_has_the_same_commands(name: str) -> None:
    korean = read(name.replace(".md", ".ko.md"))
    assert commands(read(name)) == commands(korean)
    assert commands(read(name)), "no command found: the pattern is wrong"
    tables = [re.findall(r"^\|.*\|$", text, re.MULTILINE) for text in (read(name), korean)]
    assert len(tables[0]) == len(tables[1])


def test_published_numbers_are_the_same_in_both_languages() -> None:
    # No \b: a Korean particle right after a number is a word character, too.
    numbers = [
        re.findall(r"(?<!\d)\d\d\.\d\d(?!\d)", read(name)) for name in ("README.md", "README.ko.md")
    ]
    assert numbers[0] == numbers[1]
    assert {"91.86", "80.47", "87.53"} <= set(numbers[0])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_headers_of_gin_files_name_files_that_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith("# "), "a gin file opens with what it provides"
    missing = [
        named
        for named in re.findall(r"(?:configs|scripts)/[\w./-]+\.(?:gin|sh)", text)
        if not (ROOT / named).exists() and "/X." not in named  # X stands for any name
    ]
    assert not missing


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = "bash scripts/test.sh"
    assert command in read(".ci/run").splitlines()
    assert ["bash", "scripts/test.sh"] in commands(read("README.md"))

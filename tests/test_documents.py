# SPDX-License-Identifier: Apache-2.0
"""The documents say what is there: commands, flags, files, and the same in both languages."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kcmoe import cli
from kcmoe.config import arguments, fields, gin_files
from kcmoe.inference.predict import LanguageModel

ROOT = Path(__file__).parents[1]
ENGLISH = ["README.md", "how-to-train.md"]
DOCUMENTS = [*ENGLISH, "README.ko.md", "how-to-train.ko.md"]
# Run files carry commands in their headers.
CONFIGS = sorted((ROOT / "configs").rglob("*.gin"))
# Programs of others, which no test of ours understands.
ELSEWHERE = (".", "curl", "echo", "find", "gcloud", "gsutil")
real_parse = gin_files.parse


def blocks(text: str) -> list[str]:
    """Contents of the code blocks marked bash."""
    return re.findall(r"```bash\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Every command of the bash blocks, as words; those of a pipe and of `&&` one by one."""
    found = []
    for block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r" \| | && ", line):
                words = shlex.split(part, comments=True)
                if words:
                    found.append(words)
    return found


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


class Parsed(Exception):
    """A command was understood: its arguments by the verb's own parser, its gin files and overrides."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `cli.run` raise `Parsed` where a verb would begin to work."""
    parse_arguments, parse_gin = arguments.Parser.parse_args, gin_files.parse

    def arguments_read(parser: arguments.Parser, *given: Any, **more: Any) -> Any:
        args = parse_arguments(parser, *given, **more)
        if not hasattr(args, "gin_file"):
            raise Parsed
        return args

    def gin_read(*given: Any, **more: Any) -> gin_files.Macros:
        fields.check_all(parse_gin(*given, **more))
        raise Parsed

    monkeypatch.setattr(arguments.Parser, "parse_args", arguments_read)
    monkeypatch.setattr(gin_files, "parse", gin_read)


def understood(words: list[str]) -> None:
    """Runs a command as far as its own parser; what is not ours need only be there."""
    if words[0] == "kcmoe":
        if words[1:] == ["--help"]:
            assert cli.run(words[1:]) == 0
            return
        given = [words[1], *("configs/sizes/tiny.gin" if w == "FILE" else w for w in words[2:])]
        with pytest.raises(Parsed):
            status = cli.run(given)
            raise AssertionError(f"status {status}: {' '.join(words)}")
    elif words[:2] in (["python", "-m"], ["python3", "-m"]):
        if words[2].startswith("t5x."):
            files = [w.partition("=")[2] for w in words if w.startswith("--gin_file=")]
            bindings = [w.removeprefix("--gin.") for w in words if w.startswith("--gin.")]
            assert files, "T5X runs nothing without a gin file"
            fields.check_all(real_parse(files, bindings, foreign=True))
        else:
            assert words[2] == "venv"
    elif words[0] == "python":
        ast.parse(read(words[1]))
    elif words[0] == "pip":
        extras = {w for word in words for w in re.findall(r"\.\[([\w,]+)\]", word)}
        known = ast.unparse(ast.parse(read("setup.py")))
        assert all(f"'{extra}':" in known for extra in extras), extras
    elif words[0] == "bash" and words[1].startswith("scripts/tpu_"):
        understood(words[words.index("--") + 1 :]) if "--" in words else None
        first = 3 if words[1] == "scripts/tpu_launch.sh" else 2
        named = ["--tpu=name" if word == "--tpu=NAME" else word for word in words]
        dry = [*named[:first], "--dry-run", *named[first:]]
        done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    elif words[0] == "bash":
        assert (ROOT / words[1]).exists(), words
    else:
        assert words[0] in ELSEWHERE, words


@pytest.mark.parametrize(
    "words",
    dict.fromkeys(tuple(words) for name in DOCUMENTS for words in commands(read(name))),
    ids=lambda words: " ".join(words)[:60],
)
@pytest.mark.usefixtures("parse_only")
def test_every_command_is_understood(words: tuple[str, ...]) -> None:
    understood(list(words))


@pytest.mark.parametrize(
    "words", [["kcmoe", "train", "--gin_fil=x"], ["kcmoe", "plan", "--size=x"]]
)
@pytest.mark.usefixtures("parse_only")
def test_a_wrong_command_would_be_noticed(words: list[str]) -> None:
    with pytest.raises(AssertionError):
        understood(words)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.usefixtures("parse_only")
def test_commands_of_gin_files_are_understood(path: Path) -> None:
    header = re.match(r"(?:#.*\n)*", path.read_text("utf-8"))
    lines = re.sub(r"^# ?", "", header[0] if header else "", flags=re.MULTILINE)
    for command in re.findall(r"Command: +((?:.*\\\n)*.*)", lines):
        words = shlex.split(command.replace("\\\n", " "))
        understood(words)


def test_calls_of_the_python_examples_exist() -> None:
    for name in ("README.md", "README.ko.md"):
        examples = re.findall(r"```python\n(.*?)```", read(name), re.DOTALL)
        calls = re.findall(r"\blm\.(\w+)\(", "\n".join(examples))
        assert calls
        for call in calls:
            assert callable(getattr(LanguageModel, call)), call
        for example in examples:
            ast.parse(example)


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

# SPDX-License-Identifier: Apache-2.0
"""Places to write to: refused before any work, and every verb that writes asks."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

from kcmoe import cli
from kcmoe.errors import UserError
from kcmoe.io import outputs


def test_a_place_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    outputs.check_file(tmp_path / "새 폴더" / "deeper" / "a.json", overwrite=False)
    outputs.check_folder(tmp_path / "new")
    outputs.check_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("there.svg", "--plot={} exists already"),
        ("folder.svg", "--plot={} is a folder"),
        ("there.svg/below.svg", "is a file where a folder is needed"),
        ("link.svg", "--plot={} exists already"),
        ("pipe.svg", "device or a pipe"),
        ("a.json", "must end in .svg or .png"),
        (f"{'가' * 200}.svg", "File name too long"),
        ("", "names no place"),
        ("gs://bucket/a.svg", "not on this machine"),
    ],
)
def test_files_that_cannot_be_written_are_refused(tmp_path: Path, place: str, said: str) -> None:
    (tmp_path / "there.svg").touch()
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "link.svg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.svg")
    path = place if "://" in place or not place else str(tmp_path / place)
    endings = outputs.PICTURES if place else ()
    with pytest.raises(UserError) as error:
        outputs.check_file(path, "--plot", overwrite=False, endings=endings)
    assert said.format(path) in str(error.value)
    assert (tmp_path / "there.svg").read_bytes() == b""


def test_overwrite_replaces_files_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    outputs.check_file(tmp_path / "there", overwrite=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe"):
        outputs.check_file(tmp_path / "pipe", overwrite=True)
    with pytest.raises(UserError, match="is a file where a folder is needed"):
        outputs.check_folder(tmp_path / "there", "MODEL_DIR")


@pytest.mark.parametrize(
    "command",
    [
        "evaluate --checkpoint=tiny --task=nsmc --predictions={}",
        "report runs/nowhere --output={}",
        "bench train --json={}",
        "bench predict --json={}",
        "bench dispatch --json={}",
        "bench data --task=sample_pretrain --json={}",
        "data inspect --task=sample_pretrain --plot={}",
        "tokenizer report --text=nowhere.txt --json={}",
        "tokenizer report --text=nowhere.txt --plot={}",
        "tokenizer add-sentinels nowhere.model {}",
        "checkpoint convert tiny {} --format=safetensors",
        "prune tiny {} --experts=0",
    ],
)
def test_no_verb_replaces_what_is_there(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ending = {"--plot": ".svg", "add-sent": ".model", "report runs": ".html"}
    place = tmp_path / f"mine{next((e for w, e in ending.items() if w in command), '')}"
    place.write_text("of the user")
    assert cli.run(command.format(place).split()) == 2
    assert f"{place} exists already" in capsys.readouterr().err
    assert place.read_text() == "of the user"


@pytest.mark.parametrize(
    "command",
    [
        "report runs/nowhere --png={}",
        "report runs/nowhere --svg={}",
        "evaluate --suite --checkpoint=tiny --output={}",
        "data prepare --sample --output={}",
        "data download nsmc --data_dir={}",
        "train --size=tiny --gin.MODEL_DIR='{}'",
    ],
)
def test_no_verb_takes_a_file_for_a_folder(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("of the user")
    words = command.format(tmp_path / "mine").split()
    words += ["--gin_file=configs/runs/pretrain_sample.gin"] * (words[0] == "train")
    assert cli.run(words) == 2
    error = capsys.readouterr().err
    assert "mine" in error and "fol" in error
    assert (tmp_path / "mine").read_text() == "of the user"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_every_verb_that_writes_is_listed_above() -> None:
    verbs = [importlib.import_module(module).__name__ for module, _ in cli.VERBS.values()]
    assert len(verbs) == 12  # a new one needs a line above if it writes

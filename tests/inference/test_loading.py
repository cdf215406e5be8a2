# SPDX-License-Identifier: Apache-2.0
"""Which settings a checkpoint is used with, wherever it was copied to."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import kcmoe
from kcmoe.checkpoint import run_config
from kcmoe.checkpoint.writing import convert
from kcmoe.config import gin_files
from kcmoe.errors import UserError
from kcmoe.inference import loading
from kcmoe.inference.predict import LanguageModel
from kcmoe.io import resources
from kcmoe.tasks.registry import TASKS, one_task

PLAIN = str(resources.find("vocab/kcmoe_32k.model"))


def test_a_converted_checkpoint_needs_no_config_gin(
    model: LanguageModel, model_dir: Path, tmp_path: Path
) -> None:
    source = model_dir / "checkpoint_7"
    for number, format in enumerate(("safetensors", "safetensors", "t5x_orbax", "t5x_legacy")):
        source = convert(source, tmp_path / str(number) / "checkpoint_7", format)
        loaded = kcmoe.load(str(source)).loaded
        assert loaded.config == model.loaded.config, format
        assert loaded.lengths == model.loaded.lengths, format
        with pytest.raises(
            UserError, match=r"was trained with another vocabulary .*set VOCABULARY_FILE"
        ):
            kcmoe.load(str(source), VOCABULARY_FILE=PLAIN)


def test_sizes_alone_are_not_enough(model_dir: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare" / "checkpoint_7"
    bare.parent.mkdir()
    bare.symlink_to(model_dir / "checkpoint_7")
    exported = convert(bare, tmp_path / "exported", "safetensors")
    assert json.loads((exported / "config.json").read_text())["EMBED_DIM"] == 16
    with pytest.raises(
        UserError, match=r"no config.gin beside .*so NUM_SELECTED_EXPERTS is unknown"
    ):
        loading.read_settings(str(exported))
    given = loading.read_settings(str(exported), config=str(model_dir / "config.gin"))
    assert given["NUM_SELECTED_EXPERTS"] == 2


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "nowhere"])
def test_a_config_gin_that_is_no_file_is_called_so(
    model_dir: Path, tmp_path: Path, kind: str
) -> None:
    place = tmp_path / "run/checkpoint_7"
    shutil.copytree(model_dir / "checkpoint_7", place)
    config = tmp_path / "run/config.gin"
    make = {"folder": config.mkdir, "pipe": lambda: os.mkfifo(config)}
    make.get(kind, lambda: config.symlink_to("/dev/zero" if kind == "device" else "none"))()
    with pytest.raises(UserError, match=r"config\.gin is no plain file"):
        loading.find(place)
    if kind != "nowhere":
        with pytest.raises(UserError, match=r"is a folder|a device or a pipe"):
            gin_files.parse(["config.gin"], search_paths=[str(config.parent)])


def test_another_task_leaves_the_runs_own_behind(toy: ModuleType, tmp_path: Path) -> None:
    own = {"TASK_PROMPT": "평: {document}", "MIXTURE": {"nsmc": 1.0, "kornli": 1.0}}
    checkpoint = str(toy.make_model_dir(tmp_path, **own) / "checkpoint_7")
    assert one_task(loading.read_settings(checkpoint)).prompt == "평: {document}"
    other = loading.read_settings(checkpoint, given={"MIXTURE_OR_TASK_NAME": "kornli"})
    assert one_task(other) == TASKS["kornli"]
    model = LanguageModel.load(checkpoint)
    assert model.task(None).prompt == model.task("nsmc").prompt == "평: {document}"
    assert model.task("kornli") == TASKS["kornli"]


@pytest.mark.parametrize("place", ["http://127.0.0.1:1/v.model", "PIPE"])
def test_settings_beside_a_checkpoint_name_no_place_but_a_vocabulary(
    place: str, toy: ModuleType, tmp_path: Path
) -> None:
    if place == "PIPE":
        os.mkfifo(tmp_path / "pipe")
        place = str(tmp_path / "pipe")
    folder = toy.make_model_dir(tmp_path / "run")
    config = folder / "config.gin"
    config.write_text(
        config.read_text()
        + f"VOCABULARY_FILE = '{place}'\nDATA_DIR = '{place}'\nEVAL_OUTPUT_DIR = '/elsewhere'\n"
    )
    checkpoint = str(folder / "checkpoint_7")
    with pytest.raises(UserError, match="not on this machine: put it beside"):
        loading.read_settings(checkpoint)
    given = {"VOCABULARY_FILE": PLAIN}
    found = loading.find(checkpoint, given=given)
    assert (found.macros["VOCABULARY_FILE"], found.macros["EVAL_OUTPUT_DIR"]) == (PLAIN, None)
    with pytest.raises(UserError, match=r"say DATA_DIR = .*--gin.DATA_DIR"):
        loading.refuse_addresses(found, given)
    loading.refuse_addresses(found, {**given, "DATA_DIR": place})


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("TASK_FEATURE_LENGTHS", "-1", "a dictionary in braces"),
        ("MIXTURE", "3", "a dictionary in braces"),
        ("PREDICT_TOKENS", "0", "at least 1"),
        ("VOCABULARY_FILE", "[3]", "a text in quotes"),
        ("LEARNT_TASKS", "3", "a list of names"),
    ],
)
def test_a_bad_value_beside_a_checkpoint_is_said_before_it_is_read(
    model_dir: Path, tmp_path: Path, name: str, value: str, wanted: str
) -> None:
    place = tmp_path / "checkpoint_7"
    place.symlink_to(model_dir / "checkpoint_7")
    settings = (model_dir / "config.gin").read_text("utf-8")
    lines = [line for line in settings.splitlines() if not line.startswith(f"{name} ")]
    config = tmp_path / "config.gin"
    config.write_text("\n".join([*lines, f"{name} = {value}"]), "utf-8")
    said = rf"config\.gin:{len(lines) + 1}: {name} = .* must be {wanted}"
    with pytest.raises(UserError, match=said):
        run_config.recorded(str(place))
    if name == "VOCABULARY_FILE":
        said = r"settings of .* name the vocabulary '\[3\]'"
    with pytest.raises(UserError, match=said):
        loading.find(place)


def test_a_bad_value_is_said_with_the_place_that_gave_it(model_dir: Path) -> None:
    given = gin_files.parse(bindings=["TASK_FEATURE_LENGTHS = -1"])
    with pytest.raises(UserError, match=r"^--gin\.TASK_FEATURE_LENGTHS: "):
        loading.find(model_dir, given=given)
    with pytest.raises(UserError, match=r"the program: TASK_FEATURE_LENGTHS = -1"):
        loading.find(model_dir, given=dict(given))


def test_an_address_that_cannot_be_listed_is_taken_as_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(place: object) -> None:
        raise UserError("403: may not list")

    monkeypatch.setattr(loading.manage, "latest", refuse)
    assert loading.find_checkpoint("https://example.org/model/") == "https://example.org/model"

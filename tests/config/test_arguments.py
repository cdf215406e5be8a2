# SPDX-License-Identifier: Apache-2.0
"""Paths in flags, settings and the environment mean the same: `~` is home, and names as they are there."""

from __future__ import annotations

import unicodedata

import pytest

from kcmoe.checkpoint import open_checkpoint
from kcmoe.config.arguments import PATH_MACROS, Parser, add_gin_arguments, parse_with_gin
from kcmoe.config.fields import known_macros
from kcmoe.data.pipeline import default_cache_dir
from kcmoe.errors import UserError
from kcmoe.inference.loading import find_checkpoint
from kcmoe.io import compilation_cache
from kcmoe.vocabulary import Vocabulary

_NAMED = ("^--plot=", "^--data_dir=", "^FILE=", "^--gin_file=")


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "내 집 [1]"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def parsed(*argv):
    parser = Parser(prog="kcmoe x")
    add_gin_arguments(parser)
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--data_dir", default="~/data")
    parser.add_argument("files", nargs="*", metavar="FILE")
    return parse_with_gin(parser, argv)


def test_home_in_flags_and_settings(home):
    (home / "a.gin").write_text("MODEL_DIR = '~/run'\nDATA_DIR = %MODEL_DIR\n")
    args, macros = parsed(
        "~/*.txt", "-", "--plot=~/a.png", "--gin_file=~/a.gin", "--gin.CACHE_DIR='~'"
    )
    assert args.files == [f"{home}/*.txt", "-"]
    assert args.plot == f"{home}/a.png"
    assert args.data_dir == f"{home}/data"
    assert macros["MODEL_DIR"] == macros["DATA_DIR"] == f"{home}/run"
    assert macros["CACHE_DIR"] == str(home)
    assert macros.where("MODEL_DIR").endswith("a.gin:1")
    assert parsed("--gin.MODEL_DIR='gs://b/~/x'")[1]["MODEL_DIR"] == "gs://b/~/x"


@pytest.mark.parametrize("empty", ["", "  "])
def test_nothing_is_no_path(empty):
    """It would mean the current folder, which is called "."."""
    for argv in ([f"--plot={empty}"], [f"--data_dir={empty}"], [empty], [f"--gin_file={empty}"]):
        with pytest.raises(UserError, match=rf"{'|'.join(_NAMED)}.*is empty"):
            parsed(*argv)
    for name in PATH_MACROS:
        with pytest.raises(UserError, match=f"{name} = '{empty}'.* is empty"):
            parsed(f"--gin.{name}='{empty}'")
    for find in (find_checkpoint, open_checkpoint, Vocabulary):
        with pytest.raises(UserError, match="is empty"):
            find(empty)
    assert parsed("--gin.DATA_DIR='.'")[1]["DATA_DIR"] == "."


def test_every_setting_called_a_place_is_a_path():
    places = ("_DIR", "_PATH", "_FILE", "_OUTPUT")
    assert {name for name in known_macros() if name.endswith(places)} <= set(PATH_MACROS)


def test_home_in_the_environment(home, monkeypatch):
    monkeypatch.setenv("KCMOE_CACHE_DIR", "~/cache")
    assert default_cache_dir() == f"{home}/cache/tokens"
    assert compilation_cache.folder() == home / "cache"


def test_a_folder_in_decomposed_hangul_is_found(tmp_path):
    (tmp_path / unicodedata.normalize("NFD", "모델")).mkdir()
    _, macros = parsed(f"--gin.MODEL_DIR={str(tmp_path / '모델')!r}")
    assert macros["MODEL_DIR"] == str(tmp_path / unicodedata.normalize("NFD", "모델"))

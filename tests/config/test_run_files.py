# SPDX-License-Identifier: Apache-2.0
"""`--size` and `--task` are short for gin files, and a file that is gone is answered with what it is now."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcmoe.config import arguments, gin_files, run_files
from kcmoe.errors import UserError

ROOT = Path(__file__).parents[2]
ENGINE = "configs/engine/engine.gin"


def read(*argv: str) -> gin_files.Macros:
    parser = arguments.Parser(prog="kcmoe verb")
    arguments.add_run_arguments(parser)
    return arguments.parse_with_gin(parser, argv)[1]


def test_short_names_are_the_files() -> None:
    short = read("--size=tiny", "--task", "nsmc", "--gin_file=configs/runs/finetune.gin")
    files = ["configs/sizes/tiny.gin", "configs/tasks/nsmc.gin", "configs/runs/finetune.gin"]
    assert dict(short) == dict(gin_files.parse(files))


def test_they_are_read_where_they_stand() -> None:
    recipe = "--gin_file=configs/runs/finetune_nsmc_tiny.gin"
    assert read(recipe, "--task=kornli")["MIXTURE_OR_TASK_NAME"] == "kornli"
    assert read("--task=kornli", recipe)["MIXTURE_OR_TASK_NAME"] == "nsmc"
    assert read("--task=kornli", "--gin.FINETUNE_STEPS=7")["FINETUNE_STEPS"] == 7
    assert read()._settings == {}, "nothing is kept from one command to the next"


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--size=tny", ["--size=tny", "Did you mean tiny?", "base_dense"]),
        ("--task=nmsc", ["--task=nmsc", "Did you mean nsmc?", "--gin_file=FILE"]),
    ],
)
def test_unknown_names(argument: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        read(argument)
    assert all(word in str(error.value) for word in words)


def test_own_files_in_the_folder_one_works_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs/tasks").mkdir(parents=True)
    (tmp_path / "configs/tasks/mine.gin").write_text("MIXTURE_OR_TASK_NAME = 'mine'\n")
    monkeypatch.chdir(tmp_path)
    assert read("--task=mine", "--size=tiny")["MIXTURE_OR_TASK_NAME"] == "mine"


def test_files_that_are_gone_name_what_they_are_now() -> None:
    for old, words in {
        "configs/runs/finetune_kornli_tiny.gin": "--size=tiny --task=kornli with configs/runs/finetune.gin",
        "configs/runs/eval_nsmc_base.gin": "--size=base --task=nsmc with configs/runs/evaluate.gin",
        "configs/runs/pretrain_base.gin": "--size=base --task=pretrain with configs/runs/pretrain.gin",
        "configs/runs/eval.gin": "configs/runs/evaluate.gin",
        "configs/runs/finetune_nsmc_mini.gin": "finetune.gin and --gin.FINETUNE_STEPS=4000",
        "configs/t5x/infer_nsmc_base.gin": "configs/runs/evaluate.gin, then configs/t5x/infer.gin",
    }.items():
        with pytest.raises(UserError, match=r"--gin_file: ") as error:
            gin_files.parse([old])
        assert str(error.value).endswith(f"{old} is now {words}") or words in str(error.value)


def test_what_is_named_exists_and_what_is_gone_does_not() -> None:
    gone = dict(run_files._gone())
    assert len(gone) == 36  # eval, 23 of a size and a task, pretrain_base, 11 of T5X
    for old, words in gone.items():
        assert not (ROOT / old).exists()
        named = [word.strip(",") for word in words.split() if word.startswith("configs/")]
        assert named
        assert all((ROOT / path).is_file() for path in named)


def test_steps_are_those_of_the_files_that_are_gone() -> None:
    """What stood in finetune_TASK_SIZE.gin beyond the steps of pretraining."""
    old = {
        ("nsmc", "base"): 1000, ("nsmc", "mini"): 4000,
        ("kornli", "base"): 6000, ("kornli", "mini"): 6000, ("kornli", "tiny"): 6000,
        ("korsts", "base"): 1000, ("korsts", "mini"): 2000, ("korsts", "tiny"): 2000,
        ("hate_speech", "base"): 1000, ("hate_speech", "mini"): 2000, ("hate_speech", "tiny"): 2000,
    }  # fmt: skip
    for (task, size), steps in old.items():
        answer = run_files.successor(f"configs/runs/finetune_{task}_{size}.gin")
        said = answer.rpartition("FINETUNE_STEPS=")[2] if "FINETUNE_STEPS" in answer else ""
        of_task = gin_files.parse([f"configs/tasks/{task}.gin"])["FINETUNE_STEPS"]
        assert int(said or of_task) == steps, (task, size)

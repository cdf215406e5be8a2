# SPDX-License-Identifier: Apache-2.0
"""`kcmoe train` with what people get wrong: one line, exit status 2, nothing written."""

from __future__ import annotations

import collections
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kcmoe import cli

SAMPLE = "--gin_file=configs/runs/pretrain_sample.gin"
Usage = collections.namedtuple("Usage", "total used free")


def train(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = cli.run(["train", *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("kcmoe train: ")
    assert not any("Traceback" in line for line in lines)
    return status, lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([SAMPLE], "MODEL_DIR is not set"),
        ([SAMPLE, "--gin.MODEL_DRI='x'"], "Did you mean MODEL_DIR"),
        (["--gin_file=configs/runs/pretrain_sampel.gin"], "Did you mean configs/runs/pretrain_"),
        (["--gin_fil=x"], "--gin_fil"),
        (
            [SAMPLE, "--gin.MODEL_DIR='{}/run'", "--gin.BATCH_SIZE=3"],
            "BATCH_SIZE = 3 is not a multiple of",
        ),
        ([SAMPLE, "--gin.MODEL_DIR='{}/run'", "--gin.NUM_EMBEDDINGS=1000"], "32,100 pieces, but"),
        (
            [SAMPLE, "--gin.MODEL_DIR='{}/run'", "--gin.FREEZE=['encodr/.*']"],
            "Did you mean encoder/",
        ),
        ([SAMPLE, "--gin.MODEL_DIR='{}/run'", "--gin.MIXTURE_OR_TASK_NAME='nsmcc'"], "nsmc"),
        (
            [SAMPLE, "--gin.MODEL_DIR='{}/run'", "--gin.INITIAL_CHECKPOINT_PATH='{}/checkpoint_1'"],
            "checkpoint_1",
        ),
        ([SAMPLE, "--gin.MODEL_DIR='{}/file/run'"], "cannot be written to"),
        ([SAMPLE, "--gin.MODEL_DIR='ftp://bucket/run'"], "cannot be opened"),
    ],
)
def test_one_line_and_nothing_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    filled = [argument.replace("{}", str(tmp_path)) for argument in arguments]
    status, line = train(capsys, *filled)
    assert status == 2, line
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_too_little_disk_space_is_said_before_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 5, 5_000_000))
    status, line = train(capsys, SAMPLE, f"--gin.MODEL_DIR='{tmp_path}/run'", "--gin.BATCH_SIZE=4")
    assert status == 2
    assert "needs about 58.3 MB and only 5.0 MB is free" in line
    assert list(tmp_path.iterdir()) == []


def test_out_of_memory_says_what_to_change(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kcmoe.training import loop

    def full(*arguments: Any, **settings: Any) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(loop, "train", full)
    status, line = train(capsys, SAMPLE, f"--gin.MODEL_DIR='{tmp_path}/run'")
    assert status == 2
    assert "set REMAT = True, NUM_MICROBATCHES = 2, or a smaller BATCH_SIZE" in line


@pytest.mark.parametrize(
    ("batch", "microbatches", "devices", "remat", "advice"),
    [
        (16, 1, 4, False, "set REMAT = True, NUM_MICROBATCHES = 2, or a smaller BATCH_SIZE"),
        (96, 2, 4, True, "set NUM_MICROBATCHES = 3, or a smaller BATCH_SIZE"),
        (16, 16, 1, False, "set REMAT = True, or a smaller BATCH_SIZE"),
        (8, 2, 4, True, "set a smaller BATCH_SIZE"),
    ],
)
def test_what_out_of_memory_advises_is_possible(
    toy: ModuleType,
    tmp_path: Path,
    batch: int,
    microbatches: int,
    devices: int,
    remat: bool,
    advice: str,
) -> None:
    from kcmoe.train import _out_of_memory

    macros = {"BATCH_SIZE": batch, "NUM_MICROBATCHES": microbatches, "REMAT": remat}
    assert _out_of_memory(toy.settings(tmp_path, **macros), devices).endswith(advice)


def test_loss_that_is_not_finite_exits_1_and_names_the_last_good_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kcmoe.training import loop
    from kcmoe.training.observing import NonFiniteError

    def diverge(*arguments: Any, **settings: Any) -> None:
        raise NonFiniteError("loss is nan at step 12")

    monkeypatch.setattr(loop, "train", diverge)
    status, line = train(capsys, SAMPLE, f"--gin.MODEL_DIR='{tmp_path}/run'")
    assert status == 1
    assert "loss is nan at step 12; no checkpoint was saved before" in line


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run(["train", "--help"])
    assert stop.value.code == 0
    assert "kcmoe train --gin_file=" in capsys.readouterr().out

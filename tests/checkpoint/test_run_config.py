# SPDX-License-Identifier: Apache-2.0
"""Weights are not used with a vocabulary they were not trained with."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcmoe.checkpoint import run_config
from kcmoe.checkpoint.run_config import check_vocabulary, find_config
from kcmoe.errors import UserError
from kcmoe.io import resources
from kcmoe.vocabulary import Vocabulary

PLAIN = str(resources.find("vocab/kcmoe_32k.model"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "checkpoint_8"
    path.mkdir(parents=True)
    return path


def test_config_beside_or_above(checkpoint: Path) -> None:
    assert find_config(str(checkpoint)) is None
    above = checkpoint.parent / "config.gin"
    above.touch()
    assert find_config(str(checkpoint)) == find_config(str(checkpoint.parent)) == str(above)
    assert find_config("gs://bucket/run/checkpoint_8") == "gs://bucket/run/config.gin"


def test_recorded_digest_decides_whatever_the_file_is_called(checkpoint: Path) -> None:
    shipped = Vocabulary()
    config = checkpoint.parent / "config.gin"
    config.write_text(f"VOCABULARY_SHA256 = '{shipped.digest}'\nVOCABULARY_FILE = '/gone.model'\n")
    check_vocabulary(str(checkpoint), shipped)
    with pytest.raises(UserError, match=r"trained with the vocabulary /gone\.model .*set VOCAB"):
        check_vocabulary(str(checkpoint), Vocabulary(PLAIN))


def test_without_a_digest_the_named_file_is_read(checkpoint: Path) -> None:
    config = checkpoint.parent / "config.gin"
    config.write_text(f"VOCABULARY_FILE = '{PLAIN}'\n")
    with pytest.raises(UserError, match=r"not with .*100extra\.model"):
        check_vocabulary(str(checkpoint), Vocabulary())
    check_vocabulary(str(checkpoint), Vocabulary(PLAIN))


def test_a_converted_checkpoint_knows_its_vocabulary(checkpoint: Path) -> None:
    shipped = Vocabulary()
    config = run_config.to_json({"VOCABULARY_SHA256": shipped.digest}, step=8)
    (checkpoint / "config.json").write_bytes(config)
    check_vocabulary(str(checkpoint), shipped)
    with pytest.raises(
        UserError, match=rf"another vocabulary \(sha256 {shipped.digest[:12]}.*set VOCAB"
    ):
        check_vocabulary(str(checkpoint), Vocabulary(PLAIN))


def test_nothing_to_compare_with(checkpoint: Path) -> None:
    check_vocabulary(str(checkpoint), Vocabulary())
    (checkpoint / "config.json").write_text('{"model_type": "t5", "VOCABULARY_SHA256": "0"}')
    check_vocabulary(str(checkpoint), Vocabulary())
    (checkpoint / "config.json").write_bytes(run_config.to_json({}, step=8))  # as written at first
    check_vocabulary(str(checkpoint), Vocabulary(PLAIN))
    (checkpoint.parent / "config.gin").write_text("VOCABULARY_FILE = '/elsewhere/other.model'\n")
    check_vocabulary(str(checkpoint), Vocabulary())


@pytest.mark.parametrize(
    "place", ["http://127.0.0.1:1/v.model", "gs://bucket/v.model", "/dev/zero"]
)
def test_settings_that_came_along_open_no_address(place: str, checkpoint: Path) -> None:
    config = checkpoint.parent / "config.gin"
    config.write_text(f"VOCABULARY_FILE = '{place}'\n")
    check_vocabulary(str(checkpoint), Vocabulary())  # nothing to compare with, and nothing opened
    recorded = run_config.recorded(str(checkpoint))
    with pytest.raises(UserError, match=r"not on this machine: put it beside .*--gin.VOCABULARY_"):
        run_config.vocabulary_of(str(checkpoint), recorded)
    beside = checkpoint.parent / Path(place).name
    beside.write_bytes(Path(PLAIN).read_bytes())
    assert run_config.vocabulary_of(str(checkpoint), recorded) == str(beside)


def test_settings_that_came_along_include_nothing(checkpoint: Path) -> None:
    config = checkpoint.parent / "config.gin"
    config.write_text("import os\ninclude 'http://127.0.0.1:1/x.gin'\n")
    with pytest.raises(UserError, match=r"config.gin:2: .* may not include a file"):
        run_config.recorded(str(checkpoint))

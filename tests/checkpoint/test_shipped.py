# SPDX-License-Identifier: Apache-2.0
"""The model that ships: its files agree, its name is known everywhere, and a damaged one is refused."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kcmoe
from kcmoe import checkpoint, cli, tree
from kcmoe.checkpoint import run_config, shipped
from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.errors import UserError
from kcmoe.inference import loading
from kcmoe.io import resources
from kcmoe.model.interface import param_shapes
from kcmoe.tasks.registry import TASKS
from kcmoe.vocabulary import Vocabulary

FOLDER = Path(__file__).parents[2] / "weights" / "tiny"
needs_weights = pytest.mark.skipif(
    not (FOLDER / "model.safetensors").exists(),
    reason="weights/tiny/model.safetensors is not in this copy of the repository",
)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of which `tiny` is a model of one leaf; the working directory is empty."""
    source = checkpoint.save(
        tmp_path,
        3,
        {"target/decoder/x": np.arange(4, dtype=np.float32), "state/step": np.asarray(3, np.int32)},
    )
    package = tmp_path / "package"
    new = checkpoint.convert(source, package / "weights" / "tiny", "safetensors", dtype="bfloat16")
    names = ("config.json", "kcmoe.json", "model.safetensors")
    sums = "".join(f"{shipped.hashing.file_digest(new / name)}  {name}\n" for name in names)
    (new / shipped.SUMS).write_text(sums, "utf-8")
    monkeypatch.setattr(resources, "roots", lambda: (package,))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return new


def test_a_name_is_a_checkpoint(toy: Path, tmp_path: Path) -> None:
    assert shipped.resolve("tiny") == loading.find_checkpoint("tiny") == str(toy)
    assert checkpoint.open_checkpoint("tiny").step == 3
    assert shipped.is_shipped(toy) and not shipped.is_shipped(tmp_path)
    for other in ("tiny/", "./tiny", "runs/tiny", "gs://bucket/tiny"):
        assert shipped.resolve(other) == other
    assert cli.run(["checkpoint", "inspect", "tiny"]) == 0


def test_a_folder_of_that_name_wins_and_is_said(
    toy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shipped._say_folder_wins.cache_clear()
    shutil.copytree(toy, "tiny")
    with caplog.at_level(logging.WARNING):
        assert Path(loading.find_checkpoint("tiny")).samefile("tiny")
        checkpoint.open_checkpoint("tiny")
    assert [record.getMessage() for record in caplog.records] == [
        f"tiny is the folder {Path('tiny').absolute()} of the working directory here, not the model "
        "that ships under that name"
    ]


@pytest.mark.usefixtures("toy")
def test_a_near_miss_names_the_model(tmp_path: Path) -> None:
    for find in (kcmoe.load, checkpoint.open_checkpoint):
        with pytest.raises(UserError, match=r"no checkpoint tyni\..* Did you mean tiny, the model"):
            find("tyni")
        with pytest.raises(UserError, match=r"model that ships with Kc-MoE is called tiny\."):
            find("my_run")
        with pytest.raises(UserError) as found:
            find(str(tmp_path / "tyni"))
        assert "ships" not in str(found.value), "a path was meant"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", r"model that ships is damaged: .*model\.safetensors has sha256 \w{12}…, not"),
        ("config.json", r"damaged: .*config\.json has"),
        ("kcmoe.json", r"damaged: .*kcmoe\.json has"),
    ],
)  # fmt: skip
def test_a_changed_file_is_refused_with_how_to_mend(toy: Path, name: str, said: str) -> None:
    assert checkpoint.open_checkpoint("tiny")
    content = bytearray((toy / name).read_bytes())
    content[-1] ^= 1
    (toy / name).write_bytes(content)
    for find in (loading.find_checkpoint, checkpoint.open_checkpoint):
        with pytest.raises(UserError, match=said + r".*install Kc-MoE again"):
            find("tiny")
    (toy / name).unlink()
    with pytest.raises(UserError, match=rf"not complete: no {name}; install"):
        checkpoint.open_checkpoint("tiny")


def test_16_bits_fill_float32_only_where_that_is_asked_for(toy: Path) -> None:
    expected = {"target/decoder/x": np.zeros(4, np.float32)}
    with pytest.raises(UserError, match=r"bfloat16\[4\] here, float32\[4\] expected"):
        checkpoint.restore("tiny", expected, [tree.PARAMETERS])
    found = checkpoint.restore("tiny", expected, [tree.PARAMETERS], widen=True)["target/decoder/x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.arange(4))
    assert toy.exists()


def test_what_a_run_has_learnt_goes_with_its_copies() -> None:
    mixture = {"MIXTURE_OR_TASK_NAME": "nsmc", "MIXTURE": {"nsmc": 1.0, "curse": 2.0}}
    kept = run_config.to_keep("run/checkpoint_1", mixture, {})
    assert kept == {"LEARNT_TASKS": ["nsmc", "curse"]}
    assert run_config.learnt_tasks(kept) == ("nsmc", "curse")
    assert run_config.learnt_tasks({}) == ()
    assert loading.unlearnt("run", kept, "curse") == loading.unlearnt("run", {}, "kornli") == ""
    assert loading.unlearnt("run", kept, "sample_reviews") == "", "nsmc under another name"
    assert "run was trained on nsmc, curse, not on kornli" in loading.unlearnt(
        "run", kept, "kornli"
    )


@needs_weights
def test_the_shipped_files_agree() -> None:
    """Checksums, the arrays and their size, the vocabulary and the learnt tasks."""
    reader = checkpoint.open_checkpoint("tiny")
    assert reader.path == str(FOLDER)
    assert (FOLDER / "model.safetensors").stat().st_size <= 35_000_000
    found = reader.recorded()
    model = ModelConfig.from_macros(loading.read_settings(reader.path))
    here = {path: leaf.shape for path, leaf in tree.parameters(reader.tree()).items()}
    assert here == {path: tuple(leaf.shape) for path, leaf in param_shapes(model).items()}
    sizes = ModelConfig.from_macros(
        gin_files.parse(["configs/engine/engine.gin", "configs/sizes/tiny.gin"], ["ROUTING = 'dropless'"])
    )  # fmt: skip
    assert model == sizes
    assert found["VOCABULARY_SHA256"] == Vocabulary().digest
    assert reader.step == 0
    assert set(run_config.learnt_tasks(found)) <= set(TASKS)
    assert {"pretrain", "nsmc"} <= set(run_config.learnt_tasks(found))
    assert reader.extras().keys() == {"config.json"}
    for _, values in reader.read_all(reader.tree()):
        assert isinstance(values, np.ndarray), values  # else what is wrong with it


@needs_weights
def test_predict_takes_it_where_no_checkpoint_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []

    def stop(found: loading.Found) -> None:
        seen.append(found)
        raise UserError("enough")

    monkeypatch.setattr(loading, "load", stop)
    Path("lines.txt").write_text("재밌어요\n", "utf-8")
    assert cli.run(["predict", "--task=nsmc", "lines.txt"]) == 2
    assert seen[0].checkpoint == str(FOLDER)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "kcmoe predict: no --checkpoint, so it is tiny, the model that ships"
    assert cli.run(["predict", "--checkpoint=tiny", "lines.txt"]) == 2
    assert "has learnt several tasks; say which, --task=nsmc: nsmc, " in capsys.readouterr().err

# SPDX-License-Identifier: Apache-2.0
"""A 16-wide model with random weights and the shipped vocabulary, saved as a checkpoint."""

from __future__ import annotations

import csv
import gzip
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kcmoe import checkpoint, cli
from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.inference import command, loading
from kcmoe.inference.answers import per_label
from kcmoe.inference.predict import LanguageModel, Prediction
from kcmoe.model.interface import param_shapes

MACROS: dict[str, Any] = {
    "NUM_ENCODER_LAYERS": 1,
    "NUM_DECODER_LAYERS": 1,
    "NUM_ENCODER_SPARSE_LAYERS": 1,
    "NUM_DECODER_SPARSE_LAYERS": 1,
    "NUM_HEADS": 2,
    "HEAD_DIM": 8,
    "EMBED_DIM": 16,
    "MLP_DIM": 32,
    "EXPERT_MLP_DIM": 32,
    "NUM_EXPERTS": 4,
    "SCALE": 1.0,
    "EVAL_EXPERT_CAPACITY_FACTOR": 1.0,  # so that capacity routing drops tokens and dropless shows
    "ACTIVATION_DTYPE": "float32",
    "MIXTURE_OR_TASK_NAME": "nsmc",
    "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 6},
    "PREDICT_TOKENS": 256,
}


def make_model_dir(folder: Path, steps: tuple[int, ...] = (7,), **changes: Any) -> Path:
    """A model directory with a checkpoint per step, each with weights of its own."""
    files = ["configs/engine/engine.gin", "configs/sizes/tiny.gin"]
    values = {**MACROS, **changes}
    macros = gin_files.parse(files, [f"{name} = {value!r}" for name, value in values.items()])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.gin").write_text(gin_files.dump(macros), encoding="utf-8")
    shapes = param_shapes(ModelConfig.from_macros(macros))
    for step in steps:
        rng = np.random.default_rng(step)
        flat = {
            f"target/{name}": rng.normal(0, 0.4, leaf.shape).astype(np.float32)
            for name, leaf in shapes.items()
        }
        checkpoint.save(folder, step, {**flat, "state/step": np.asarray(step, np.int32)})
    return folder


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(tmp_path_factory.mktemp("compiled"))
    os.environ["KCMOE_CACHE_DIR"] = folder
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture
def toy() -> ModuleType:
    """This module."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with checkpoint_7."""
    return make_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def model(model_dir: Path) -> LanguageModel:
    """checkpoint_7 in use."""
    return LanguageModel.load(model_dir / "checkpoint_7")


@pytest.fixture
def predict_file(
    model: LanguageModel,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    """Runs the verb in an empty folder on a model loaded once; returns status, stdout and stderr."""
    monkeypatch.setattr(loading, "load", lambda found: model.loaded)
    monkeypatch.setattr(command.logging, "basicConfig", lambda **_: None)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, task: str = "nsmc") -> tuple[int, str, str]:
        checkpoint = f"--checkpoint={model_dir}/checkpoint_7"
        status = cli.run(["predict", checkpoint, f"--task={task}", *arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def fake_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that cost nothing, each a function of its ids."""

    def classify(lm: LanguageModel, ids: Any, task: Any, advance: Any = None) -> list[Prediction]:
        found = []
        for one in ids:
            share = sum(one) % 1000 / 1000
            words = lm.answers(task)
            each = {
                word: share if word == words[0] else (1 - share) / (len(words) - 1)
                for word in words
            }
            found.append(Prediction(max(each, key=each.__getitem__), each, per_label(task, each)))
        return found

    def generate(lm: LanguageModel, ids: Any, beam_size: int, **_: Any) -> list[str]:
        return [f"{beam_size} {len(one)}" for one in ids]

    monkeypatch.setattr(LanguageModel, "classify_ids", classify)
    monkeypatch.setattr(LanguageModel, "generate_ids", generate)


@pytest.fixture
def rows() -> ModuleType:
    """This module: `write` and `records` for files of rows."""
    return sys.modules[__name__]


def write(path: str, texts: Sequence[str]) -> None:
    """A file of `texts`, numbered where the format has columns, in the format of its name."""
    rows = [{"id": i, "document": text} for i, text in enumerate(texts)]
    if ".parquet" in path:
        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    opened = gzip.open if path.endswith(".gz") else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if ".jsonl" in path:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        elif ".txt" in path:
            file.writelines(text.replace("\t", " ") + "\n" for text in texts)
        else:
            out = csv.writer(file, delimiter="\t" if ".tsv" in path else ",", lineterminator="\n")
            out.writerows([["id", "document"], *(row.values() for row in rows)])


def records(path: str) -> Iterator[dict[str, Any]]:
    """The rows of an output."""
    if path.endswith(".parquet"):
        yield from pq.read_table(path).to_pylist()
    elif path.endswith(".jsonl"):
        yield from map(json.loads, Path(path).read_text("utf-8").splitlines())
    else:
        with open(path, encoding="utf-8", newline="") as file:
            dialect = {"quoting": csv.QUOTE_NONE} if path.endswith(".txt") else {}
            separator = "," if path.endswith(".csv") else "\t"
            yield from csv.DictReader(file, delimiter=separator, **dialect)

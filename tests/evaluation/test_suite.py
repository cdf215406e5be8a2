# SPDX-License-Identifier: Apache-2.0
"""`kcmoe evaluate --suite` on a toy model and a few rows: table, files, what is kept, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kcmoe import checkpoint, cli
from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.data.labelled import labelled_examples
from kcmoe.evaluation import command, suite_tasks
from kcmoe.evaluation.protocol import Questions
from kcmoe.evaluation.suite import _parts
from kcmoe.inference import loading
from kcmoe.inference.batching import BatchedModel
from kcmoe.model.interface import init_params
from kcmoe.tasks.registry import TASKS

SIZES = {
    "NUM_ENCODER_LAYERS": 1,
    "NUM_DECODER_LAYERS": 1,
    "NUM_HEADS": 2,
    "HEAD_DIM": 4,
    "EMBED_DIM": 8,
    "MLP_DIM": 8,
    "EXPERT_MLP_DIM": 8,
    "NUM_EXPERTS": 4,
    "ACTIVATION_DTYPE": "float32",
    "MIXTURE_OR_TASK_NAME": "nsmc",
    "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 4},
}
ROWS = {
    "nsmc/test": {
        "id": list("12345"),
        "document": ["재밌다", "", "별로", "굿", "참"],
        "label": [1, 0, 0, 1, 1],
    },
    "korsts/test": {
        "sentence1": ["가", "나", "다"],
        "sentence2": ["가", "라", "하"],
        "score": [5.0, 1.0, 0.4],
    },
    "kmhas/validation": {"text": ["음", "어"], "labels": [[8], [2, 3]]},
    "kmhas/test": {"text": ["음"], "labels": [[8]]},
}


def save(folder: Path, seed: int = 0) -> str:
    files = ["configs/engine/engine.gin", "configs/sizes/tiny.gin"]
    macros = gin_files.parse(files, [f"{name} = {value!r}" for name, value in SIZES.items()])
    folder.mkdir(exist_ok=True)
    (folder / "config.gin").write_text(gin_files.dump(macros), encoding="utf-8")
    shapes = jax.eval_shape(lambda: init_params(ModelConfig.from_macros(macros), seed=0))
    rng = np.random.default_rng(seed)
    flat = {
        f"target/{name}": rng.normal(0, 0.4, leaf.shape).astype(np.float32)
        for name, leaf in shapes.items()
    }
    checkpoint.save(folder, 20, {**flat, "state/step": np.asarray(20, np.int32)})
    return str(folder / "checkpoint_20")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, columns in ROWS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


@pytest.fixture(autouse=True)
def _no_log_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.logging, "basicConfig", lambda **_: None)


def suite(model: str, data_dir: Path, output: Path, *more: str) -> int:
    places = [f"--checkpoint={model}", f"--gin.DATA_DIR='{data_dir}'", f"--output={output}"]
    return cli.run(["evaluate", "--suite", *places, *more])


def test_table_files_and_what_is_kept(
    model: str, data_dir: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Cut off in the second task: what the first one gave is kept.
    measure = BatchedModel.rank

    def cut(self: Any, inputs: Any, labels: Any, advance: Any = None) -> np.ndarray:
        if len(labels) > 2:
            raise KeyboardInterrupt
        return measure(self, inputs, labels, advance)

    monkeypatch.setattr(BatchedModel, "rank", cut)
    assert suite(model, data_dir, tmp_path) == 130
    (place,) = tmp_path.glob("*.json")
    assert len(json.loads(place.read_text("utf-8"))["results"]) == 1
    asked = []

    def count(self: Any, inputs: Any, labels: Any, advance: Any = None) -> np.ndarray:
        asked.append(len(labels))
        return measure(self, inputs, labels, advance)

    monkeypatch.setattr(BatchedModel, "rank", count)
    capsys.readouterr()
    assert suite(model, data_dir, tmp_path) == 0
    out, err = capsys.readouterr()
    assert asked == [26, 45], "the first task was not asked again"
    assert "2/3 korsts test, rank: 3 lines in" in err
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert lines["nsmc"][1:3] == ["test", "accuracy"]
    assert lines["kmhas"][1:4] == ["*", "validation", "micro_f1"], "never its test split"
    assert "* the run was not trained on this question" in out
    assert "no data here for kornli, klue_sts" in out
    sets = "kornli klue_sts hate_speech apeach curse three_i_four_k question_pair"
    assert f"kcmoe data download {sets} --data_dir={data_dir}" in out
    report = json.loads(place.read_text("utf-8"))
    rows = {row["task"]: row for row in report["rows"]}
    assert [*rows] == ["nsmc", "korsts", "kmhas"]
    assert rows["nsmc"]["rows"] == 5
    accuracy = rows["nsmc"]["metrics"]["accuracy"]
    assert f"{100 * accuracy['value']:.2f}" in lines["nsmc"]
    assert accuracy["n_grams"] is None, "these are not the rows that were measured"
    assert place.with_suffix(".svg").read_bytes().startswith(b"<svg")

    # All is there: nothing is computed; as Markdown.
    assert suite(model, data_dir, tmp_path, "--markdown") == 0
    assert asked == [26, 45]
    first, rule, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("| task") and set(rule) <= set("|-: ")

    # Other rows of one task: only that one is asked again.
    assert suite(model, data_dir, tmp_path, "--limit=3") == 0
    assert asked == [26, 45, 2], "korsts and kmhas have no more than three"
    assert "3 of 5" in capsys.readouterr().out


def test_other_weights_do_not_take_over(
    model: str, data_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "out"
    assert suite(model, data_dir, output, "--limit=1", "--split=test") == 0
    (place,) = output.glob("*.json")
    before = place.read_bytes()
    other = save(tmp_path / "other", seed=1)
    assert suite(other, data_dir, output, "--limit=1", "--split=test") == 2
    assert "has the results of other weights" in capsys.readouterr().err
    assert place.read_bytes() == before
    place.write_text("{}")
    assert suite(model, data_dir, output, "--limit=1", "--split=test") == 2
    assert "cannot be read as the results of a suite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--predictions=x.jsonl"], "--predictions is for one task"),
        (["--split=train"], "no task of the suite is evaluated on its train split"),
        (["--gin.DATA_DIR='none'"], "kcmoe data download nsmc kornli"),
        (["--gin.CHECKPOINT_PATH='other'"], "give one"),
        (["--limit=0"], "--limit: 0 is not"),
    ],
)
def test_mistakes(
    model: str, data_dir: Path, tmp_path: Path, arguments: list[str], said: str, capsys: Any
) -> None:
    assert suite(model, data_dir, tmp_path, *arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1 and captured.out == ""
    assert cli.run(["evaluate", f"--checkpoint={model}", "--markdown"]) == 2
    assert "are for --suite" in capsys.readouterr().err


@pytest.mark.slow
def test_aligned_answers_rank_the_same(model: str, data_dir: Path) -> None:
    loaded = loading.load(loading.find(model))
    batched = BatchedModel(loaded.compute, 32, 64)
    examples = labelled_examples(TASKS["nsmc"], "test", str(data_dir))
    lengths = set()
    for name in ("apeach", "three_i_four_k"):
        plain, aligned = (
            Questions(TASKS[name], examples, loaded.vocabulary, 32, aligned) for aligned in (0, 1)
        )
        assert plain.word_ids != aligned.word_ids
        lengths |= {len(ids) for ids in aligned.word_ids}
        np.testing.assert_allclose(
            batched.rank(plain.inputs, plain.word_ids),
            batched.rank(aligned.inputs, aligned.word_ids),
            atol=1e-5,
        )
    assert lengths == {4}


def test_the_tasks_exist_and_every_one_has_its_baseline() -> None:
    assert all(set(splits) <= set(TASKS[name].splits) for name, splits in suite_tasks.SUITE.items())
    assert "test" not in suite_tasks.SUITE["kmhas"]
    measured = suite_tasks.read_baselines()
    wanted = {(name, split) for name, splits in suite_tasks.SUITE.items() for split in splits}
    assert measured.keys() == wanted
    for (name, _), baseline in measured.items():
        assert [*baseline.metrics] == [*TASKS[name].metrics]
        assert all(0.2 < one.value < 1 for one in baseline.metrics.values())


def test_sets_to_download_are_in_the_catalogue() -> None:
    from kcmoe.config.data import DataConfig
    from kcmoe.corpus.catalogue import DATA_SETS
    from kcmoe.evaluation.suite import _download

    _, absent = _parts(DataConfig(data_dir="none"), None)
    assert absent == list(suite_tasks.SUITE)
    assert set(_download(absent, "none").split()[3:-1]) <= set(DATA_SETS)


@pytest.mark.parametrize(
    ("trained_on", "learnt"),
    [
        (["nsmc"], {"nsmc"}),
        (["kornli_from_klue"], {"kornli"}),
        (
            ["all", "korsts", "hate_speech_binary"],
            {"korsts", "klue_sts", "hate_speech_binary", "apeach"},
        ),
        (["pretrain"], set()),
        ([], set(suite_tasks.SUITE)),
    ],
)
def test_whether_a_question_was_learnt(trained_on: list[str], learnt: set[str]) -> None:
    assert {name for name in suite_tasks.SUITE if suite_tasks.learnt(name, trained_on)} == learnt

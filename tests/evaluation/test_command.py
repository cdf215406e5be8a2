# SPDX-License-Identifier: Apache-2.0
"""`kcmoe evaluate` from end to end on the bundled reviews: table, JSON, what was held out, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from kcmoe import checkpoint, cli
from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.data.labelled import labelled_examples
from kcmoe.evaluation import command
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
    "MIXTURE_OR_TASK_NAME": "sample_reviews",
    "TASK_FEATURE_LENGTHS": {"inputs": 48, "targets": 4},
    "BATCH_SIZE": 4,
    "EVAL_STEPS": 5,
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    files = ["configs/engine/engine.gin", "configs/sizes/tiny.gin"]
    macros = gin_files.parse(files, [f"{name} = {value!r}" for name, value in SIZES.items()])
    (folder / "config.gin").write_text(gin_files.dump(macros), encoding="utf-8")
    shapes = jax.eval_shape(lambda: init_params(ModelConfig.from_macros(macros), seed=0))
    rng = np.random.default_rng(0)
    flat = {
        f"target/{name}": rng.normal(0, 0.4, leaf.shape).astype(np.float32)
        for name, leaf in shapes.items()
    }
    checkpoint.save(folder, 20, {**flat, "state/step": np.asarray(20, np.int32)})
    return folder


@pytest.fixture(autouse=True)
def _no_log_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.logging, "basicConfig", lambda **_: None)


def evaluate(model_dir: Path, *arguments: str) -> int:
    return cli.run(["evaluate", f"--gin.CHECKPOINT_PATH='{model_dir}/checkpoint_20'", *arguments])


def test_table_and_json(model_dir: Path, tmp_path: Path, capsys: Any) -> None:
    best = {"checkpoint": "checkpoint_10", "metric": "accuracy", "value": 0.75}
    (model_dir / "best.json").write_text(json.dumps(best))
    predictions = tmp_path / "answers.jsonl"
    assert evaluate(model_dir, "--limit=24", f"--predictions={predictions}") == 0
    out = capsys.readouterr().out

    examples = labelled_examples(TASKS["sample_reviews"], "validation")
    answers = [json.loads(line) for line in predictions.read_text("utf-8").splitlines()]
    assert [a["id"] for a in answers] == [examples[i * len(examples) // 24].id for i in range(24)]
    right = {
        name: np.mean([a[name] == a["target"] for a in answers]) for name in ("rank", "generate")
    }

    report = json.loads(
        (model_dir / "evaluation/sample_reviews-validation-24-checkpoint_20.json").read_text(
            "utf-8"
        )
    )
    assert report["examples"] == 24
    assert report["settings"]["routing"] == "dropless"
    for name, share in right.items():
        accuracy = report["protocols"][name]["metrics"]["accuracy"]
        assert accuracy["value"] == pytest.approx(share)
        error = (share * (1 - share) / 24) ** 0.5
        assert accuracy["standard_error"] == pytest.approx(error)
        assert f"{100 * share:.2f} ± {100 * error:.2f}" in out
    unknown = sum(a["generate"] not in ("긍정적", "부정적") for a in answers)
    assert report["protocols"]["generate"]["answers_that_are_no_label"] == unknown

    assert f"sample_reviews, validation split, 24 of {len(examples)} examples" in out
    assert "held out for choosing a checkpoint: all rows of reviews_validation.tsv" in out
    assert "20 of them, evenly spread" in out
    assert "checkpoint_10 by validation accuracy 0.7500 (not checkpoint_20)" in out
    ids = (model_dir / "evaluation/sample_reviews-held-out.txt").read_text("utf-8").split()
    assert ids == [example.id for example in examples]


def test_one_protocol(model_dir: Path, tmp_path: Path, capsys: Any) -> None:
    output = f"--gin.EVAL_OUTPUT_DIR='{tmp_path}/scores'"
    assert evaluate(model_dir, "--limit=3", "--protocol=rank", output) == 0
    assert "generate" not in capsys.readouterr().out
    (file,) = (tmp_path / "scores").glob("*.json")
    assert list(json.loads(file.read_text("utf-8"))["protocols"]) == ["rank"]


def test_own_task_of_a_mixture(model_dir: Path, tmp_path: Path, capsys: Any) -> None:
    places = [f"--gin.EVAL_OUTPUT_DIR='{tmp_path}'", "--limit=2", "--protocol=rank"]
    mixture = "--gin.MIXTURE={'sample_reviews': 1.0, 'sample_nli': 1.0}"
    own = "--gin.TASK_PROMPT='평: {document}'"
    assert evaluate(model_dir, *places, mixture, own) == 0
    assert "sample_reviews, validation split" in capsys.readouterr().out
    assert evaluate(model_dir, *places, mixture, "--gin.MIXTURE_OR_TASK_NAME='both'") == 2
    assert "both is a mixture; say which" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--split=test"], "sample_reviews has no test split; it has train, validation"),
        (["--split=tset"], "invalid choice"),
        (["--limit=0"], "--limit: 0 is not"),
        (["--gin.CHECKPOINT_PAHT='x'"], "Did you mean CHECKPOINT_PATH"),
        (["--gin.CHECKPOINT_PATH='none/checkpoint_1'"], "there is no checkpoint none/checkpoint_1"),
        (["--gin.MIXTURE_OR_TASK_NAME='sample_pretrain'"], "no labels to evaluate"),
        (["--gin.MIXTURE_OR_TASK_NAME='nsmc'", "--gin.DATA_DIR='none'"], "none"),
        (
            ["--predictions=README.md"],
            "--predictions=README.md exists already",
        ),
        (["--gin.EVAL_OUTPUT_DIR='/dev/null/x'"], "set EVAL_OUTPUT_DIR to another place"),
        (["--gin.EVAL_OUTPUT_DIR='gs://bucket/x'"], "'gs://bucket/x' is not on this machine"),
        (["--gin.EVAL_OUTPUT_DIR=5"], "EVAL_OUTPUT_DIR = 5, but it must be a text in quotes"),
    ],
)
def test_mistakes(model_dir: Path, arguments: list[str], said: str, capsys: Any) -> None:
    assert evaluate(model_dir, *arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_checkpoint_is_required(capsys: Any) -> None:
    assert cli.run(["evaluate"]) == 2
    assert "CHECKPOINT_PATH is not set" in capsys.readouterr().err

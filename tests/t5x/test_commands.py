# SPDX-License-Identifier: Apache-2.0
"""The documented commands with the real T5X, tiny sizes, on this CPU, and the engine before and after.

Each test is a process that starts T5X, so each takes the better part of a minute.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kcmoe import checkpoint

pytestmark = [pytest.mark.t5x, pytest.mark.slow]

Run = Callable[..., Any]
ROWS = [("정말 재밌어요", 1), ("시간이 아까웠다", 0), ("배우들이 좋다", 1), ("지루하다", 0)] * 4


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set of our own, as `TASK_VALIDATION_FILES` takes it."""
    file = tmp_path_factory.mktemp("data") / "reviews.tsv"
    lines = ["document\tlabel", *(f"{text} {i}\t{label}" for i, (text, label) in enumerate(ROWS))]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


@pytest.fixture(scope="module")
def macros(small: dict[str, int], reviews: Path) -> dict[str, Any]:
    return {
        **small,
        "BATCH_SIZE": 8,
        "EVAL_PERIOD": 3,
        "EVAL_STEPS": 1,
        "CHECKPOINT_PERIOD": 3,
    }


@pytest.fixture(scope="module")
def on_reviews(macros: dict[str, Any], reviews: Path) -> dict[str, Any]:
    lengths = {"inputs": 32, "targets": 4}
    return {**macros, "TASK_VALIDATION_FILES": str(reviews), "TASK_FEATURE_LENGTHS": lengths}


def succeeded(done: Any) -> str:
    assert done.returncode == 0, done.stderr[-3000:]
    return str(done.stderr)


PRETRAIN = ("--gin_file=configs/runs/pretrain_sample.gin", "--gin_file=configs/t5x/train.gin")


@pytest.fixture(scope="module")
def pretrained(
    python_m: Run, macros: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """T5X's checkpoint after three steps of span corruption."""
    folder = tmp_path_factory.mktemp("t5x") / "pretrained"
    succeeded(python_m("t5x.train", *PRETRAIN, **macros, MODEL_DIR=str(folder), TRAIN_STEPS=3))
    return folder / "checkpoint_3"


@pytest.fixture(scope="module")
def tuned_by_engine(
    python_m: Run,
    pretrained: Path,
    on_reviews: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The engine's checkpoint three steps after T5X's."""
    folder = tmp_path_factory.mktemp("engine") / "tuned"
    gin = "--gin_file=configs/runs/finetune_sample_reviews.gin"
    places = {"MODEL_DIR": str(folder), "INITIAL_CHECKPOINT_PATH": str(pretrained)}
    succeeded(python_m("kcmoe", "train", gin, **on_reviews, **places, TRAIN_STEPS=6))
    return folder / "checkpoint_6"


@pytest.fixture(scope="module")
def tuned(
    python_m: Run,
    tuned_by_engine: Path,
    on_reviews: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """T5X's checkpoint three steps after the engine's."""
    folder = tmp_path_factory.mktemp("t5x") / "tuned"
    gin = [
        "--gin_file=configs/runs/finetune_sample_reviews.gin",
        "--gin_file=configs/t5x/finetune.gin",
    ]
    places = {"MODEL_DIR": str(folder), "INITIAL_CHECKPOINT_PATH": str(tuned_by_engine)}
    # No TRAIN_STEPS: they are counted from the six of the engine.
    succeeded(python_m("t5x.train", *gin, **on_reviews, **places, FINETUNE_STEPS=3))
    return folder / "checkpoint_9"


def test_pretraining_saves_a_checkpoint_that_we_read(pretrained: Path) -> None:
    reader = checkpoint.open_checkpoint(pretrained)
    assert reader.step == 3
    assert reader.tree()["target/encoder/layers_1/mlp/expert/wi_0/kernel"].shape == (4, 32, 64)
    assert (pretrained.parent / "config.gin").is_file()


def test_the_engine_goes_on_from_t5x(tuned_by_engine: Path) -> None:
    assert checkpoint.open_checkpoint(tuned_by_engine).step == 6


def test_t5x_tunes_on_from_the_engine_and_scores(tuned: Path) -> None:
    assert checkpoint.open_checkpoint(tuned).step == 9
    scores = tuned.parent / "inference_eval/sample_reviews-metrics.jsonl"
    last = json.loads(scores.read_text().splitlines()[-1])
    assert last["step"] == 9
    assert 0 <= last["accuracy"] <= 100


def test_evaluation_scores_every_example(
    python_m: Run, tuned: Path, on_reviews: dict[str, Any], tmp_path: Path
) -> None:
    files = [
        "--gin_file=configs/runs/finetune_sample_reviews.gin",
        "--gin_file=configs/t5x/evaluate.gin",
    ]
    places = {"CHECKPOINT_PATH": str(tuned), "EVAL_OUTPUT_DIR": str(tmp_path / "eval")}
    done = python_m("t5x.eval", *files, **on_reviews, **places, EVAL_SPLIT="validation")
    succeeded(done)
    results = tmp_path / "eval/inference_eval/sample_reviews-000009.jsonl"
    answers = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    assert len(answers) == len(ROWS)
    assert [answer["target"] for answer in answers] == [label for _, label in ROWS]


def test_inference_writes_every_answer_in_order(
    python_m: Run, tuned: Path, on_reviews: dict[str, Any], reviews: Path, tmp_path: Path
) -> None:
    files = [
        "--gin_file=configs/runs/finetune_sample_reviews.gin",
        "--gin_file=configs/t5x/infer.gin",
    ]
    places = {"CHECKPOINT_PATH": str(tuned), "INFER_OUTPUT_DIR": str(tmp_path / "infer")}
    succeeded(python_m("t5x.infer", *files, **on_reviews, **places, EVAL_SPLIT="validation"))
    (results,) = (tmp_path / "infer").glob("*.jsonl-00000-of-00001")
    answers = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    prompts = [answer["inputs"]["inputs_pretokenized"] for answer in answers]
    documents = [line.split("\t")[0] for line in reviews.read_text("utf-8").splitlines()[1:]]
    assert [prompt.partition("리뷰: ")[2] for prompt in prompts] == documents
    assert all(isinstance(answer["prediction"], str) for answer in answers)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"BATCH_SIZ": 3}, "nothing is called BATCH_SIZ. Did you mean BATCH_SIZE?"),
        (
            {"NUM_MODEL_PARTITIONS": 3},
            "NUM_MODEL_PARTITIONS = 3 does not divide the 1 devices here",
        ),
        ({"NUM_MICROBATCHES": 3}, "BATCH_SIZE = 8 is not a multiple of 3, which is NUM_MICROB"),
        (
            {"INITIAL_CHECKPOINT_PATH": "PRETRAINED", "NUM_EXPERTS": 8},
            "NUM_EXPERTS 4 here, 8 expected",
        ),
    ],
    ids=["name", "partitions", "microbatches", "size"],
)
def test_a_mistake_stops_before_anything_is_compiled(
    change: dict[str, Any],
    words: str,
    python_m: Run,
    pretrained: Path,
    macros: dict[str, Any],
    tmp_path: Path,
) -> None:
    change = {k: str(pretrained) if v == "PRETRAINED" else v for k, v in change.items()}
    done = python_m(
        "t5x.train", *PRETRAIN, **{**macros, **change}, MODEL_DIR=str(tmp_path / "never")
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("kcmoe on t5x: ")]
    assert words in line

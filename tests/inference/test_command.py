# SPDX-License-Identifier: Apache-2.0
"""`kcmoe predict` as a person runs it: output, order, mistakes before the first line of output."""

from __future__ import annotations

import io
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kcmoe import cli
from kcmoe.inference import command, loading
from kcmoe.inference.predict import LanguageModel

LINES = ["정말 재미 있다", "", "<extra_id_0> 최악 {document}", "배우 연기 좋다 " * 8, "별로"]


@pytest.fixture
def predict(
    model: LanguageModel,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, list[Any], str]]:
    """Runs the verb on a model loaded once; returns status, JSON lines and stderr."""
    monkeypatch.setattr(loading, "load", lambda found: model.loaded)
    monkeypatch.setattr(command.logging, "basicConfig", lambda **_: None)

    def run(*arguments: str) -> tuple[int, list[Any], str]:
        status = cli.run(["predict", f"--checkpoint={model_dir}/checkpoint_7", *arguments])
        out, err = capsys.readouterr()
        return status, [json.loads(line) for line in out.splitlines()], err

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    return path


def test_a_json_line_per_line_in_order(predict: Any, file: Path, model: LanguageModel) -> None:
    status, results, err = predict("--task=nsmc", str(file))
    assert status == 0
    assert [result["text"] for result in results] == LINES
    for result, expected in zip(results, model.classify(LINES, task="nsmc"), strict=True):
        assert result["label"] == expected.label
        assert result["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    assert err == "", "no progress where stderr is no terminal"


def test_parts_of_a_long_file_give_the_same(
    predict: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict("--task=nsmc", str(file))
    monkeypatch.setattr(command, "_LINES_AT_ONCE", 2)
    assert predict("--task=nsmc", str(file)) == whole


@pytest.mark.usefixtures("predict")
def test_korean_is_written_as_korean(model_dir: Path, file: Path, capsys: Any) -> None:
    cli.run(["predict", f"--checkpoint={model_dir}", "--task=nsmc", str(file)])
    assert '{"text": "정말 재미 있다", "label": "' in capsys.readouterr().out


def test_a_task_of_ones_own_by_its_name(
    toy: types.ModuleType, tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {
        "MIXTURE_OR_TASK_NAME": "my_reviews",
        "TASK_TRAIN_FILES": "my_reviews/train.csv",
        "TASK_PROMPT": "평: {text}",
        "TASK_TARGET_COLUMN": "rating",
        "TASK_LABELS": {"bad": "불만", "good": "만족"},
    }
    checkpoint = f"--checkpoint={toy.make_model_dir(tmp_path / 'own', **own)}"
    assert cli.run(["predict", checkpoint, "--task=my_reviews", str(file)]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert set(first["probabilities"]) == {"불만", "만족"}
    assert cli.run(["predict", checkpoint, "--task=my_review", str(file)]) == 2
    assert "no task is called my_review. Did you mean my_reviews or" in capsys.readouterr().err


def test_generate(predict: Any, file: Path, model: LanguageModel) -> None:
    status, results, _ = predict("--task=generate", "--beam_size=2", str(file))
    assert status == 0
    assert [result["generated"] for result in results] == model.generate(LINES, beam_size=2)


def test_standard_input(predict: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = types.SimpleNamespace(buffer=io.BytesIO("좋다\n".encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    status, results, _ = predict("--task=nsmc")
    assert (status, len(results)) == (0, 1)


def test_two_columns_stand_between_tabs(predict: Any, tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("비가 온다\t맑다\n", encoding="utf-8")
    status, (result,), _ = predict("--task=kornli", str(path))
    assert status == 0
    assert set(result["probabilities"]) == {"함의", "중립", "모순"}
    path.write_text("비가 온다\t맑다\n비가 온다\n", encoding="utf-8")
    status, results, err = predict("--task=kornli", str(path))
    assert (status, results) == (2, [])
    assert "line 2 has 1 columns between tabs, but kornli needs 2: premise, hypothesis" in err


@pytest.mark.parametrize(
    ("arguments", "content", "said"),
    [
        (["--task=nsmc"], "좋다\n재미\n".encode("cp949"), "2 lines not in UTF-8 (lines 1, 2)"),
        (["--task=nsmd"], b"x\n", "no task is called nsmd. Did you mean nsmc?"),
        (["--task=pretrain"], b"x\n", "pretrain has no labels"),
        (["--task=generate", "--beam_size=0"], b"x\n", "--beam_size: 0 is not"),
        (["--task=generate"], b"ok\n<extra_id_777>\n", "no <extra_id_777>"),
        (["--tsk=nsmc"], b"x\n", "Did you mean --task?"),
    ],
)
def test_mistakes_are_one_line_and_no_output(
    predict: Any, tmp_path: Path, arguments: list[str], content: bytes, said: str
) -> None:
    path = tmp_path / "input.txt"
    path.write_bytes(content)
    status, results, err = predict(*arguments, str(path))
    assert (status, results) == (2, [])
    assert said in err
    assert len(err.splitlines()) == 1
    assert err.startswith("kcmoe predict: ")


@pytest.mark.parametrize(
    ("task", "name", "content"),
    [
        *(
            ("nsmc", f"a.{e}", "document\n좋다\n")
            for e in ("csv", "TSV", "jsonl", "parquet", "txt.gz")
        ),
        ("nsmc", "ratings.txt", "id\tdocument\tlabel\n1\t좋다\t1\n"),
        ("generate", "a.txt", "text\tlabel\n좋다\t1\n"),
        ("kornli", "a.tsv", "premise\thypothesis\n비가 온다\t맑다\n"),
    ],
)
def test_a_table_is_not_answered_as_lines(
    predict: Any, tmp_path: Path, task: str, name: str, content: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    status, results, err = predict(f"--task={task}", str(path))
    assert (status, results) == (2, [])
    assert "a table: " in err and "--output=OUT.csv" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("output", ["", "out.csv"])
def test_what_is_refused_is_the_only_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    """Not after the line that the model is tiny."""
    (tmp_path / "a.csv").write_bytes("document\n좋다\n".encode("cp949"))
    options = [f"--output={tmp_path / output}"] if output else []
    assert cli.run(["predict", "--task=nsmc", str(tmp_path / "a.csv"), *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "a.csv" in err


def test_empty_file(predict: Any, tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.touch()
    assert predict("--task=nsmc", str(path)) == (0, [], f"kcmoe predict: {path} has no lines\n")
    status, _, err = predict("--task=nsmc", str(tmp_path / "none.txt"))
    assert status == 2
    assert "none.txt cannot be read" in err

# SPDX-License-Identifier: Apache-2.0
"""`kcmoe predict FILE --output=OUT`: every format, stopped anywhere, and what is refused."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kcmoe import cli
from kcmoe.inference import answer_log, command, loading, windows
from kcmoe.inference.answers import per_label
from kcmoe.inference.predict import LanguageModel, Prediction

TEXTS = ['정말 "재미" 있다', "별로, 두 번은 못 본다", "배우 연기 좋다 " * 4, "<extra_id_0>\t최악"]
ALIKE = ["재미 있다", "별로 다", "재미 없다"]  # of one length in tokens, so one program is compiled
Predict = Callable[..., tuple[int, str, str]]


@pytest.fixture
def predict(
    model: LanguageModel,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Predict:
    """Runs the verb in an empty folder on a model loaded once; returns status, stdout and stderr."""
    monkeypatch.setattr(loading, "load", lambda found: model.loaded)
    monkeypatch.setattr(command.logging, "basicConfig", lambda **_: None)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, task: str = "nsmc") -> tuple[int, str, str]:
        checkpoint = f"--checkpoint={model_dir}/checkpoint_7"
        status = cli.run(["predict", checkpoint, f"--task={task}", *arguments])
        return status, *capsys.readouterr()

    return run


def write(path: str, texts: list[str] = TEXTS) -> None:
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


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_answers_are_those_of_the_model(predict: Predict, model: LanguageModel) -> None:
    write("in.txt", ALIKE)
    assert predict("in.txt", "--output=out.jsonl")[0] == 0
    wanted = [one.as_json() for one in model.classify(ALIKE, task="nsmc")]
    assert list(records("out.jsonl")) == [
        {"text": text, **each} for text, each in zip(ALIKE, wanted, strict=True)
    ]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("given", ["in.csv", "in.tsv", "in.jsonl.gz", "in.parquet", "in.txt"])
@pytest.mark.parametrize("out", ["out.csv", "out.tsv", "out.jsonl", "out.parquet", "out.txt"])
def test_all_columns_and_then_the_answers(
    predict: Predict, model: LanguageModel, given: str, out: str
) -> None:
    write(given)
    status, said, _ = predict(given, f"--output={out}")
    assert status == 0
    assert said.startswith(f"{out}: 4 lines in ")
    assert os.listdir() == [given, out] or os.listdir() == [out, given], "nothing else is left"
    text = "text" if given == "in.txt" else "document"
    texts = [t.replace("\t", " ") for t in TEXTS] if "in.txt" in given else TEXTS
    found = list(records(out))
    for row, wanted, each in zip(found, model.classify(texts, task="nsmc"), texts, strict=True):
        assert row[text] == (each.replace("\t", " ") if out == "out.txt" else each)
        assert row["label"] == wanted.label
        if out == "out.jsonl":
            assert row["probabilities"] == wanted.as_json()["probabilities"]
        else:
            assert float(row["probability_긍정적"]) == round(wanted.probabilities["긍정적"], 6)
    if text == "document":
        assert [int(row["id"]) for row in found] == [0, 1, 2, 3]


@pytest.mark.usefixtures("fake")
def test_columns_of_other_tasks_and_names_that_are_taken(predict: Predict) -> None:
    rows = [
        {"a": "비가 온다", "b": "날이 맑다", "score": 3.2},
        {"a": None, "b": "맑다", "score": 1},
    ]
    Path("pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    asked = ("pairs.jsonl", "--columns=a,b")
    assert predict(*asked, "--output=nli.jsonl", task="kornli")[0] == 0
    assert set(next(records("nli.jsonl"))["probabilities"]) == {"함의", "중립", "모순"}
    assert predict(*asked, "--output=sts.parquet", task="korsts")[0] == 0
    first, second = records("sts.parquet")
    assert first["score"] == 3.2 and 0 <= first["predicted_score"] <= 5
    assert second["predicted_score"] is None
    assert predict("sts.parquet", "--columns=b", "--output=kinds.csv", task="kmhas")[0] == 0
    assert [*next(records("kinds.csv"))][4:7] == ["label", "probability_출신", "probability_외모"]
    status, _, err = predict("pairs.jsonl", "--output=x.csv", task="kornli")
    assert status == 2
    assert "no column premise, which kornli reads; name yours, in its order" in err
    assert "Columns: a, b, score" in err


@pytest.mark.usefixtures("fake")
def test_generated_text(predict: Predict, model: LanguageModel) -> None:
    Path("gaps.txt").write_text("오늘 <extra_id_0> 좋다\n\n", "utf-8")
    assert predict("gaps.txt", "--output=out.jsonl", "--beam_size=3", task="generate")[0] == 0
    (ids,) = model.encode(["오늘 <extra_id_0> 좋다"], sentinels=True)
    assert [row["generated"] for row in records("out.jsonl")] == [f"3 {len(ids)}", None]
    Path("gaps.txt").write_text("오늘\n<extra_id_777> 좋다\n", "utf-8")
    status, _, err = predict("gaps.txt", "--output=new.jsonl", task="generate")
    assert (status, os.path.exists("new.jsonl.part")) == (2, False)
    assert "gaps.txt, row 2: there is no <extra_id_777>" in err


@pytest.mark.usefixtures("fake")
def test_rows_without_text_and_very_long_ones(predict: Predict) -> None:
    write("in.csv", ["좋다", "", "가나다 " * 2_500_000, "  ", "별로"])
    status, said, _ = predict("in.csv", "--output=out.csv")
    assert status == 0
    assert "2 without text, whose answers are empty; 1 longer than the model reads" in said
    labels = [row["label"] for row in records("out.csv")]
    assert [bool(label) for label in labels] == [True, False, True, False, True]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("name", ["in.csv", "in.txt", "in.jsonl", "in.parquet"])
def test_no_rows(predict: Predict, name: str) -> None:
    write(name, [])
    if name == "in.parquet":
        pq.write_table(pa.table({"document": pa.array([], pa.string())}), name)
    assert predict(name, "--output=out.csv")[0] == 0
    assert list(records("out.csv")) == []


def stopped(predict: Predict, monkeypatch: pytest.MonkeyPatch, lines: int, *arguments: str) -> str:
    """Runs until `lines` are answered, and stops as Ctrl-C does."""
    append = answer_log.AnswerLog.append

    def until(log: answer_log.AnswerLog, answers: Any) -> None:
        append(log, answers)
        if log.rows >= lines:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(answer_log.AnswerLog, "append", until)
        patch.setattr(windows, "_FIRST_ROWS", 2)
        patch.setattr(windows.Windows, "took", lambda *_: None)
        status, _, err = predict(*arguments)
    assert status == 130
    return err


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("torn", [0, 1, 9, 60])
def test_a_torn_log_goes_on_with_the_same_bytes(
    predict: Predict, monkeypatch: pytest.MonkeyPatch, torn: int
) -> None:
    texts = [*TEXTS[:3], "", *TEXTS] * 3
    write("in.csv", texts)
    assert predict("in.csv", "--output=whole.parquet")[0] == 0
    err = stopped(predict, monkeypatch, 10, "in.csv", "--output=out.parquet")
    assert "answers to 10 of 24 lines are kept; the same command goes on" in err
    assert not os.path.exists("out.parquet")
    log = Path("out.parquet.part")
    log.write_bytes(log.read_bytes()[: log.stat().st_size - torn])
    status, _, err = predict("in.csv", "--output=out.parquet")
    assert status == 0
    assert "going on after " in err
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert not log.exists()


@pytest.mark.usefixtures("fake")
def test_a_log_goes_on_for_the_same_question_alone(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("in.csv", TEXTS)
    asked = ("in.csv", "--output=out.csv", "--columns=document")
    stopped(predict, monkeypatch, 2, *asked)
    before = Path("out.csv.part").read_bytes()
    status, _, err = predict(*asked, task="curse")
    assert status == 2
    assert (
        "out.csv.part holds answers to the same command with another task (nsmc, now curse)" in err
    )
    assert len(err.splitlines()) == 1
    assert predict(*asked, "--gin.PREDICT_TOKENS=128")[0] == 2
    write("in.csv", [*TEXTS[:3], "다르다"])
    assert "another input" in predict(*asked)[2]
    assert Path("out.csv.part").read_bytes() == before, "nothing was touched"
    os.utime("in.csv")
    write("in.csv", TEXTS)
    assert "going on after 2" in predict(*asked)[2], "a copy of the input is the same input"
    status, _, err = predict(*asked)
    assert (status, "out.csv exists already" in err) == (2, True)
    assert predict(*asked, "--overwrite", task="curse")[0] == 0
    assert "probability_욕설" in Path("out.csv").read_text("utf-8")


@pytest.mark.usefixtures("fake")
def test_a_full_disk_is_one_line_and_goes_on(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("in.csv", TEXTS * 3)
    write_bytes, calls = answer_log._write, []

    def full(descriptor: int, content: bytes) -> None:
        calls.append(content)
        if len(calls) == 3:
            write_bytes(descriptor, content[:7])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_bytes(descriptor, content)

    with monkeypatch.context() as patch:
        patch.setattr(answer_log, "_write", full)
        patch.setattr(windows, "_FIRST_ROWS", 2)
        patch.setattr(windows.Windows, "took", lambda *_: None)
        status, _, err = predict("in.csv", "--output=out.csv")
    assert status == 2
    assert "no space left to write out.csv.part" in err
    assert "the answers to 2 rows are kept" in err
    assert len(err.splitlines()) == 1
    assert "going on after 2 of 12" in predict("in.csv", "--output=out.csv")[2]
    assert len(list(records("out.csv"))) == 12


@pytest.mark.usefixtures("fake")
def test_stopped_between_the_last_name_and_the_end(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("in.csv")

    def killed(_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(answer_log.AnswerLog, "remove", killed)
        assert predict("in.csv", "--output=out.csv")[0] == 130
    written = Path("out.csv").read_bytes()
    assert predict("in.csv", "--output=out.csv")[:2] == (0, "out.csv is complete\n")
    assert (os.listdir(), Path("out.csv").read_bytes()) == (["in.csv", "out.csv"], written)


@pytest.mark.usefixtures("fake")
def test_what_was_there_is_not_taken_for_the_result(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("in.csv")
    Path("out.csv").write_text("old", "utf-8")
    assert "--output=out.csv exists already" in predict("in.csv", "--output=out.csv")[2]
    stopped(predict, monkeypatch, 4, "in.csv", "--output=out.csv", "--overwrite")
    assert "--output=out.csv exists already" in predict("in.csv", "--output=out.csv")[2]
    assert Path("out.csv").read_text("utf-8") == "old"
    assert "going on after 4" in predict("in.csv", "--output=out.csv", "--overwrite")[2]
    assert len(list(records("out.csv"))) == 4


def cut(path: str, size: int) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:size])


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("in.csv", -2, "not CSV"),
        ("in.jsonl", -3, "not JSON"),
        ("in.jsonl.gz", -12, "cannot be read"),
        ("in.parquet", -40, "not a readable parquet file"),
        ("in.txt", -2, "is not utf-8 text"),
    ],
)
def test_a_file_cut_anywhere_is_said_before_anything_is_computed(
    predict: Predict, name: str, size: int, said: str
) -> None:
    write(name, ["좋다", "나쁘다", '그저 "그렇다'])
    cut(name, size)
    status, out, err = predict(name, "--output=out.csv")
    assert (status, out, os.listdir()) == (2, "", [name])
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["in.csv", "--output=out.xml"], "the ending says what is written"),
        (["in.csv", "--output=in.csv/out.csv"], "is a file where a folder is needed"),
        (["in.csv", "--output=out.csv.gz"], "the ending says what is written"),
        (["in.csv", "--output=in.csv", "--overwrite"], "is the input itself"),
        (["in.csv", "--output=gs://b/out.csv"], "is not on this machine"),
        (["none.csv", "--output=out.csv"], "none.csv"),
        (["in.csv", "--columns=documnt", "--output=out.csv"], "Did you mean document?"),
        (["in.csv", "--columns=a,b", "--output=out.csv"], "--columns names 2, but nsmc reads 1"),
        (["--output=out.csv"], "--output needs a FILE"),
        (["in.csv", "--lenient"], "--lenient is for a file with --output"),
    ],
)
def test_mistakes(predict: Predict, arguments: list[str], said: str) -> None:
    write("in.csv")
    status, out, err = predict(*arguments)
    assert (status, out, os.listdir()) == (2, "", ["in.csv"])
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.usefixtures("fake")
def test_lenient_leaves_damaged_places_out(predict: Predict) -> None:
    write("in.jsonl", ["좋다", "나쁘다"])
    with open("in.jsonl", "a", encoding="utf-8") as file:
        file.write('{"id": 2, "docu\n{"id": 3, "document": "글쎄"}\n')
    assert predict("in.jsonl", "--output=out.jsonl")[0] == 2
    status, said, _ = predict("in.jsonl", "--output=out.jsonl", "--lenient")
    assert (status, "left out 1 x not JSON" in said) == (0, True)
    assert [row["id"] for row in records("out.jsonl")] == [0, 1, 3]


def test_killed_with_several_processes(
    predict: Predict, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of two workers, killed with their parent at some moment, completed by one process."""
    write("in.csv", [ALIKE[n * n % 3] for n in range(12_000)])
    assert predict("in.csv", "--output=whole.csv")[0] == 0
    arguments = ["predict", f"--checkpoint={model_dir}/checkpoint_7", "--task=nsmc"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kcmoe", *arguments, "in.csv", "--output=out.csv", "--processes=2"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
    )
    log = Path("out.csv.part")
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 1):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not os.path.exists("out.csv")
    assert 1 < log.read_bytes().count(b"\n") < 12_000
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("workers outlive their parent")
    assert predict("in.csv", "--output=out.csv")[0] == 0
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()

# SPDX-License-Identifier: Apache-2.0
"""`kcmoe report`: one file without outside parts, honest thinning, alarms with their steps, odd inputs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kcmoe import cli
from kcmoe.tools.report.alarms import alarms
from kcmoe.tools.report.pictures import sections
from kcmoe.tools.report.reading import read
from kcmoe.tools.report.series import INTERVALS, Intervals, Series

LAYER = "encoder/layers_1/mlp"
EXPERTS = 8


def record(step: int, load: Any = None, **values: Any) -> str:
    even = [1 / EXPERTS] * EXPERTS if load is None else load
    found = {
        "step": step, "split": "train", "cross_ent_loss": 5 / step, "loss": 6 / step, "grad_norm": 1.0,
        "param_norm": 9.0, "learning_rate": 0.01, "tokens_per_s": 100.0, "step_s": 0.5,
        "model_flops_per_s": 1e9, "token_accuracy": 0.5, "target_tokens": 10.0,
    }  # fmt: skip
    if load != "dense":
        at = f"router/{LAYER}"
        found |= {f"{at}/expert_load": even, f"{at}/router_entropy": 2.0, f"{at}/effective_experts": 8.0,
                  f"{at}/first_choice_dropped": 0.1, f"{at}/second_choice_dropped": 0.2,
                  f"{at}/auxiliary_loss": 1.0, f"{at}/router_z_loss": 1.0}  # fmt: skip
    return json.dumps({**found, **values})


def make_run(folder: Path, lines: list[str], config: str = "NUM_SELECTED_EXPERTS = 2\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "config.gin").write_text(config, encoding="utf-8")
    return folder


def evaluation(step: int, **values: Any) -> str:
    return json.dumps({"step": step, "split": "eval", **values})


class _Resources(HTMLParser):
    """Collects whatever an element would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href", "data", "srcset")]


def test_a_report_is_one_file_with_all_that_is_asked_for(tmp_path: Path) -> None:
    lines = [record(step) for step in range(1, 301)]
    lines += [
        evaluation(step, cross_ent_loss=1.0, accuracy=step / 1000) for step in (100, 200, 300)
    ]
    folder = make_run(tmp_path / "실행", lines)
    assert cli.run(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text("utf-8")
    resources = _Resources()
    resources.feed(page)
    assert all(one.startswith(("data:image/png", "#")) for one in resources.found)
    assert not re.findall(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)
    for words in (
        *("토큰당 교차 엔트로피", "학습률", "초당 토큰", "기울기 노름", "실제로 일한 전문가 수"),
        *("버려진 둘째 선택", "전문가마다 받은 몫", "검증 accuracy", "실행"),
    ):
        assert words in page
    assert "data:image/png;base64," in page


def test_every_picture_says_how_to_read_it(tmp_path: Path) -> None:
    norms = {"grad_norm": 50.0}
    lines = [record(step, **(norms if step == 9 else {})) for step in range(1, 301)]
    run = read(make_run(tmp_path / "run", [*lines, evaluation(300, accuracy=0.8)]), "run", "run")
    shown = {one.picture.name: one for part in sections([run], None) for one in part.pictures}
    assert [name for name, one in shown.items() if not (one.ko_note and one.en_note)] == []
    entropy = shown["encoder-layers-1-router-entropy"]
    assert f"{np.log(EXPERTS):.2f}" in entropy.ko_note
    assert "로그 눈금" in shown["grad-norm"].ko_note
    # A loss that fell at the beginning is drawn without it, too: 5 / step from step 31 on.
    later = shown["cross-ent-loss-later"].picture.lines[0]
    assert (later.x[0], later.y[0]) == (31, pytest.approx(5 / 31))
    assert "token-accuracy-later" not in shown


def test_times_are_written_as_their_language_does(tmp_path: Path) -> None:
    lines = [record(step, step_s=25.0) for step in range(1, 301)]
    folder = make_run(tmp_path / "run", [*lines, evaluation(200, cross_ent_loss=1.0)])
    assert cli.run(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text("utf-8")
    assert '<span lang="ko">2시간 5분</span><span lang="en">2 h 05 min</span>' in page
    assert '<span lang="ko">1.0000 (200스텝)</span><span lang="en">1.0000 (step 200)</span>' in page


def test_thinning_keeps_minima_and_maxima() -> None:
    steps = np.arange(1, 1_000_001)
    values = np.sin(steps / 50_000)
    values[123_456], values[777_777] = 99.0, -99.0
    series = Series(Intervals(1, 1_000_000, INTERVALS))
    for part in np.array_split(np.arange(len(steps)), 97):
        series.add(steps[part], values[part])
    assert len(series.mean()) == INTERVALS
    assert np.nanmax(series.high()) == 99
    assert np.nanmin(series.low()) == -99
    assert series.highest == (99.0, 123_457)
    place = int(np.nanargmax(series.high()))
    assert abs(series._intervals.centres()[place] - 123_457) < 1_000_000 / INTERVALS
    np.testing.assert_allclose(series.mean()[300], np.sin(500_833 / 50_000), atol=1e-3)


def test_short_runs_are_not_thinned(tmp_path: Path) -> None:
    run = read(make_run(tmp_path / "run", [record(step) for step in range(5, 55)]), "run", "run")
    np.testing.assert_allclose(run.train["loss"].mean(), [6 / step for step in range(5, 55)])
    np.testing.assert_array_equal(run.intervals.centres(), np.arange(5, 55))


def test_collapse_and_dead_experts_are_named_with_their_steps(tmp_path: Path) -> None:
    collapsed = [0.5, 0.5, *[0.0] * (EXPERTS - 2)]
    lines = [record(step, load=collapsed if step > 200 else None) for step in range(1, 501)]
    found = alarms(read(make_run(tmp_path / "run", lines), "run", "run"))
    collapse = next(alarm for alarm in found if "collapsed" in alarm.en)
    assert collapse.grave == "bad"
    assert 150 < collapse.step <= 201 + 50
    assert "2.0 of 8" in collapse.en
    assert "2.0명" in collapse.ko
    dead = next(alarm for alarm in found if "no token" in alarm.en)
    assert "6 experts" in dead.en
    assert dead.step == 201


def test_the_collapse_is_the_one_that_training_warns_of(tmp_path: Path) -> None:
    from kcmoe.training.observing import WINDOW_STEPS, CollapseAlarm

    rng = np.random.default_rng(0)
    two = np.eye(EXPERTS)[3] * 0.6 + np.eye(EXPERTS)[1] * 0.4
    loads = [*rng.dirichlet(np.full(EXPERTS, 50.0), size=150), *[two] * 250]
    lines = [record(step, load=list(map(float, load))) for step, load in enumerate(loads, 1)]
    run = read(make_run(tmp_path / "run", lines), "run", "run")
    alarm = CollapseAlarm(EXPERTS, 2)
    told = [s for s, load in enumerate(loads, 1) if alarm.observe(s, {LAYER: load})]
    begin = run.loads[LAYER].collapses[0][0]
    assert told == [begin + WINDOW_STEPS - 1]


def test_other_alarms(tmp_path: Path) -> None:
    lines = [record(step, grad_norm=500.0 if step == 250 else 1.0) for step in range(1, 301)]
    lines[280] = record(281, loss="nan")
    losses = [(50, 2.0), (100, 1.0), (150, 1.5), (200, 1.6), (250, 1.7)]
    lines += [evaluation(step, cross_ent_loss=loss) for step, loss in losses]
    found = {
        alarm.step: alarm for alarm in alarms(read(make_run(tmp_path / "run", lines), "run", "run"))
    }
    assert found[281].grave == "bad"
    assert "500" in found[250].en
    assert "overfit" in found[100].en
    quiet = make_run(tmp_path / "quiet", [record(step) for step in range(1, 301)])
    assert alarms(read(quiet, "quiet", "quiet")) == []


def test_several_runs_are_compared(tmp_path: Path) -> None:
    one = make_run(
        tmp_path / "a/run", [record(s) for s in range(1, 99)], "BATCH_SIZE = 16\nPACK = True\n"
    )
    two = make_run(
        tmp_path / "b/run", [record(s) for s in range(50, 200)], "BATCH_SIZE = 32\nPACK = True\n"
    )
    output = tmp_path / "out" / "both.html"
    assert cli.run(["report", str(one), str(two), f"--output={output}", "--language=en"]) == 0
    page = output.read_text("utf-8")
    assert '<html lang="en">' in page
    assert "a/run" in page
    assert "b/run" in page
    differing = page[page.index("What differs") : page.index("<details>")]
    assert "BATCH_SIZE" in differing
    assert "PACK" not in differing
    assert cli.run(["report", str(one), "--output=both.pdf"]) == 2  # what is written is HTML


def test_a_run_without_experts(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [record(step, load="dense") for step in range(1, 20)])
    assert cli.run(["report", str(folder)]) == 0
    assert "전문가가 없습니다" in (folder / "report.html").read_text("utf-8")


def test_a_cut_and_a_damaged_line(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "run", [record(1), "{broken", record(2), '"text"', '{"step": "x"}', "[]"]
    )
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b"\xff\xfe\n" + record(3).encode()[:50])
    run = read(folder, "run", "run")
    assert run.records == 2
    assert run.broken == 5
    assert run.cut
    sentences = " ".join(alarm.en for alarm in alarms(run))
    assert "5 lines" in sentences
    assert "has no end" in sentences


def test_texts_of_a_run_are_not_markup(tmp_path: Path) -> None:
    config = "MODEL_DIR = '</script><script>alert(1)</script>'\n"
    folder = make_run(tmp_path / "<b>run", [record(1), record(2)], config)
    assert cli.run(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text("utf-8")
    assert "<b>run" not in page
    assert "<script>alert" not in page


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda p: p / "none", "there is no"),
        (lambda p: p, "metrics.jsonl"),
        (lambda p: make_run(p / "empty", []), "no step yet"),
        (lambda p: make_run(p / "text", ["a line", "another"]), "no line of it is a step"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, word: str) -> None:
    assert cli.run(["report", str(make(tmp_path))]) == 2
    assert word in capsys.readouterr().err


def test_restarts_are_marked(tmp_path: Path) -> None:
    from kcmoe.training.records import Recorder

    folder = tmp_path / "run"
    folder.mkdir()
    for first in (1, 21, 31):
        recorder = Recorder(folder)
        for step in range(first, first + 10):
            recorder.write("train", step, {"loss": 1.0})
        recorder.close()
    run = read(folder, "run", "run")
    assert run.restarts == [21, 31]
    (learning,) = sections([run], None)
    assert [mark.x for mark in learning.pictures[0].picture.marks] == [21, 31]


def test_pictures_are_written_on_request(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = make_run(tmp_path / "run", [record(step) for step in range(1, 20)])
    options = [f"--png={tmp_path / 'png'}", f"--svg={tmp_path / 'svg'}", "--language=en"]
    assert cli.run(["report", str(folder), *options]) == 0
    names = {path.stem for path in (tmp_path / "png").iterdir()}
    assert names == {path.stem for path in (tmp_path / "svg").iterdir()}
    assert {"cross-ent-loss", "encoder-layers-1-load"} <= names
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (tmp_path / "png").iterdir())

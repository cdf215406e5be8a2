# SPDX-License-Identifier: Apache-2.0
"""Blanks: where an answer ends, what stands in them, and that all candidates come from one search."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from kcmoe.errors import UserError
from kcmoe.inference import asking, filling
from kcmoe.inference.filling import Beam, end, filled, fills
from kcmoe.vocabulary import Vocabulary


def test_an_answer_ends_with_the_sentinel_behind_those_of_the_text():
    vocabulary = Vocabulary()
    assert end(vocabulary, "오늘 <extra_id_0> 좋다") == vocabulary.sentinel_id(1)
    assert end(vocabulary, "<unused0> <extra_id_1>") == vocabulary.sentinel_id(2)
    assert end(vocabulary, "빈칸 없음") == end(vocabulary, "<extra_id_99>") == vocabulary.eos_id
    with pytest.raises(UserError, match="no <extra_id_100>: the vocabulary has 100 sentinels"):
        end(vocabulary, "<extra_id_100>")


def test_fills():
    assert fills("<extra_id_0> 날씨가 <extra_id_1> 참 <extra_id_2>") == {
        "<extra_id_0>": "날씨가",
        "<extra_id_1>": "참",
        "<extra_id_2>": "",
    }
    assert fills("긍정적") == {}


def test_a_text_is_filled_and_otherwise_stays_as_it_is():
    text = "오늘  <extra_id_0> 참 <unused1>!"
    assert (
        filled(text, {"<extra_id_0>": "날씨가", "<extra_id_1>": "좋다"}) == "오늘  날씨가 참 좋다!"
    )
    assert filled(text, {"<extra_id_0>": ""}) == "오늘  참 <unused1>!"


def test_candidates_that_come_out_the_same_are_one():
    beams = [
        Beam(
            "<extra_id_0> 가 <extra_id_1>",
            {"<extra_id_0>": "가", "<extra_id_1>": ""},
            math.log(0.5),
            True,
        ),
        Beam("<extra_id_0> 나", {"<extra_id_0>": "나"}, math.log(0.2), False),
        Beam("<extra_id_0>  가", {"<extra_id_0>": "가"}, math.log(0.1), True),
    ]
    first, second = filling.candidates("<extra_id_0>!", beams)
    assert (first.text, first.fills) == ("가!", {"<extra_id_0>": "가"})
    assert first.probability == pytest.approx(0.6)
    assert second.as_json() == {"text": "나!", "fills": {"<extra_id_0>": "나"}, "probability": 0.2}


TEXTS = ["영화 <extra_id_0> 좋다", "<extra_id_0> 정말 <extra_id_1>", "배우 <extra_id_0>"]


def test_all_candidates_are_the_beams_of_one_search(model):
    found = model.fill(TEXTS, 3, max_tokens=5)
    assert model.fill(TEXTS[1:2], 3, max_tokens=5)[0] == found[1]
    vocabulary = model.loaded.vocabulary
    ids = model.encode(TEXTS, sentinels=True)
    for text, one, candidates in zip(TEXTS, ids, found, strict=True):
        stop = end(vocabulary, text)
        tokens, scores = model.batched.search([one], 5, beam_size=3, end=stop)
        beams = filling.beams(vocabulary, tokens[0], scores[0], 0.6, stop)
        assert candidates == filling.candidates(text, beams)
        for beam, row in zip(beams, tokens[0][::-1], strict=True):
            ends = np.flatnonzero(np.isin(row, [1, stop]))
            target = row[: ends[0] + 1] if len(ends) else row
            scored = model.batched.score([one], [target.tolist()], 8)[0]
            assert beam.log_likelihood == pytest.approx(float(scored), rel=1e-3)
            assert beam.finished == bool(len(ends))


@pytest.mark.parametrize(
    ("text", "said"),
    [("빈칸 없음", "it has no blank; write"), ("<extra_id_100>", "no <extra_id_100>")],
)
def test_what_cannot_be_filled_is_named(model, predict_file, tmp_path, text, said):
    with pytest.raises(UserError, match=rf"texts\[1\]: .*{said}"):
        model.fill([TEXTS[0], text])
    with pytest.raises(UserError, match="candidates is 0"):
        model.fill(TEXTS, 0)
    (tmp_path / "a.txt").write_text(f"{TEXTS[0]}\n{text}\n", encoding="utf-8")
    status, _, said_there = predict_file("a.txt", task="fill")
    assert status == 2
    assert said.split(";")[0] in said_there
    assert "line 2" in said_there


def test_fill_from_the_command_line(model, predict_file, tmp_path):
    (tmp_path / "a.txt").write_text(f"{TEXTS[0]}\n\n{TEXTS[1]}\n", encoding="utf-8")
    options = ("--beam_size=2", "--max_tokens=5", "a.txt")
    status, printed, _ = predict_file(*options, task="fill")
    found = [json.loads(line)["candidates"] for line in printed.splitlines()]
    wanted = [[one.as_json() for one in each] for each in model.fill(TEXTS[:2], 2, max_tokens=5)]
    assert (status, found) == (0, [wanted[0], [], wanted[1]])
    assert predict_file("--output=out.jsonl", *options, task="fill")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    first = wanted[0][0]
    assert (rows[0]["filled_1"], rows[0]["probability_1"]) == (first["text"], first["probability"])


def test_candidates_that_a_search_did_not_find_are_missing():
    found = [filling.Candidate("날씨가 좋다", {}, 0.5)]
    assert asking._flat(found, 2) == ["날씨가 좋다", 0.5, None, None]

# SPDX-License-Identifier: Apache-2.0
"""The HTTP interface: the answers of the Python one bit for bit, and errors that say how to mend them."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kcmoe.errors import UserError
from kcmoe.inference.predict import LanguageModel
from kcmoe.serve.command import listen

TEXTS = [
    "정말 재미있다",
    "별로",
    "",
    "배우들 연기가 너무 좋아서 끝까지 몰입해서 봤어요 " * 4,
    "<extra_id_0> ㅋㅋ",
]


def test_labels_are_those_of_the_python_interface(server: Any, model: LanguageModel) -> None:
    answer = server.post("/v1/classify", {"texts": TEXTS, "exact": True})
    expected = model.classify(TEXTS, task="nsmc")
    assert [p["label"] for p in answer["predictions"]] == [p.label for p in expected]
    assert [p["probabilities"] for p in answer["predictions"]] == [
        p.probabilities for p in expected
    ]
    assert len({p["probabilities"]["긍정적"] for p in answer["predictions"]}) == len(TEXTS)


def test_labels_are_those_that_predict_prints(server: Any, model_dir: Path) -> None:
    lines = [text for text in TEXTS if text]
    printed = subprocess.run(
        [sys.executable, "-m", "kcmoe", "predict", f"--checkpoint={model_dir}", "--task=nsmc"],
        input="\n".join(lines), capture_output=True, check=True, text=True, encoding="utf-8",
    ).stdout  # fmt: skip
    answer = server.post("/v1/classify", {"texts": lines, "task": "nsmc"})
    expected = [json.loads(line) for line in printed.splitlines()]
    assert [p["probabilities"] for p in answer["predictions"]] == [
        p["probabilities"] for p in expected
    ]


def test_where_several_labels_may_be_right_each_has_a_probability(
    server: Any, model: LanguageModel
) -> None:
    answer = server.post("/v1/classify", {"texts": TEXTS[:1], "task": "kmhas", "exact": True})
    (found,), (expected,) = answer["predictions"], model.classify(TEXTS[:1], task="kmhas")
    assert found["per_label"] == expected.per_label
    assert 1 < sum(found["per_label"].values()) < 2  # answers name one label or two
    with_politics = [
        p for words, p in found["probabilities"].items() if "정치" in words.split(", ")
    ]
    assert len(with_politics) == 9
    assert found["per_label"]["정치"] == pytest.approx(sum(with_politics))
    (task,) = [t for t in server.get("/v1/model")[1]["tasks"] if t["name"] == "kmhas"]
    assert task["several"] and task["labels"] == list(found["per_label"])


def test_many_clients_at_once_get_their_own_answers(server: Any, model: LanguageModel) -> None:
    texts = [
        f"{word} {number}" for number in range(8) for word in ("좋다", "나쁘다", "그저 그렇다")
    ]
    expected = [p.probabilities for p in model.classify(texts, task="nsmc")]
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        answer = server.post("/v1/classify", {"texts": [texts[number]], "exact": True})
        found[number] = answer["predictions"][0]["probabilities"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(len(texts))] == expected


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_is_that_of_the_python_interface(
    server: Any, model: LanguageModel, beams: int
) -> None:
    texts = ["오늘 <extra_id_0> 좋다", "영화"]
    answer = server.post("/v1/generate", {"texts": texts, "beams": beams})
    results = answer["results"]
    assert [r["generated"] for r in results] == model.generate(texts, beam_size=beams)
    assert all(1 <= len(r["beams"]) <= beams for r in results)
    assert all(b["log_likelihood"] < 0 for r in results for b in r["beams"])


def test_filling_ends_with_the_last_blank(server: Any, model: LanguageModel) -> None:
    texts = ["오늘 <extra_id_0> 좋다", "<extra_id_0> 참 <extra_id_1>", "빈칸 없음"]
    plain, filled = (
        server.post("/v1/generate", {"texts": texts, "beams": 8, "max_tokens": 8, "fill": fill})["results"]
        for fill in (False, True)
    )  # fmt: skip
    assert filled[2]["beams"] == plain[2]["beams"]
    for number, result in enumerate(filled[:2], 1):
        assert not any(f"<extra_id_{number}>" in beam["text"] for beam in result["beams"])
    for text, result in zip(texts[:2], filled, strict=False):
        wanted = model.fill([text], 8, max_tokens=8)[0]
        assert result["candidates"] == [candidate.as_json() for candidate in wanted]
    assert "candidates" not in plain[0]


def test_scores_and_embeddings(server: Any, model: LanguageModel) -> None:
    inputs, targets = ["이 영화 어때?", "<extra_id_0> 봐"], ["긍정적", "<extra_id_0> 꼭"]
    answer = server.post("/v1/score", {"inputs": inputs, "targets": targets})
    found = np.array([s["log_likelihood"] for s in answer["scores"]], np.float32)
    np.testing.assert_array_equal(found, model.score(inputs, targets))

    texts = ["재밌어요", "재밌어요 정말로"]
    answer = server.post("/v1/embed", {"texts": texts})
    for text, one in zip(texts, answer["embeddings"], strict=True):
        ids = model.encode([text])[0]
        encoded = model.model.apply(
            {"params": _nested(model)}, np.array([ids], np.int32), method="encode"
        )
        mean = np.asarray(encoded, np.float64)[0].mean(axis=0)
        np.testing.assert_allclose(one["embedding"], mean, rtol=1e-4, atol=1e-5)


def _nested(model: LanguageModel) -> Any:
    from kcmoe.tree import nested

    return nested(model.loaded.params)


def test_the_map_of_experts_is_what_the_routers_choose(server: Any) -> None:
    answer = server.post("/v1/experts", {"text": "정말 재미있다 ㅋㅋ", "task": "nsmc"})
    pieces = answer["pieces"]
    own = "".join(piece["text"] for piece in pieces if not piece["prompt"])
    assert own.strip() == "정말 재미있다 ㅋㅋ"
    assert [layer["layer"] for layer in answer["layers"]] == [
        "encoder/layers_0",
        "encoder/layers_1",
    ]
    for layer in answer["layers"]:
        assert len(layer["chosen"]) == len(pieces) == answer["tokens"]
        assert all(len(set(pair)) == 2 and max(pair) < 4 for pair in layer["chosen"])
        assert all(1 > a >= b > 0 for a, b in layer["weights"])
        assert np.shape(layer["dropped"]) == (len(pieces), 2)
    liked = server.get("/v1/experts/preferences")[1]
    shares = [one["share"] for one in liked["layers"][0]["experts"]]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(1)


def test_a_long_text_is_said_to_be_cut_and_where(server: Any) -> None:
    text = "재미있다 " * 100
    (found,) = server.post("/v1/classify", {"texts": [text]})["predictions"]
    cut = found["cut"]
    assert cut["tokens"] > cut["kept_tokens"] == 63
    assert text[: cut["character"]].endswith(cut["before"])
    assert text[cut["character"] :].startswith(cut["after"])
    (short,) = server.post("/v1/classify", {"texts": ["짧다"]})["predictions"]
    assert "cut" not in short


BAD = [
    (b"{", 400, "JSON"),
    (b"", 400, "empty"),
    (b"\xff\xfe{}", 400, "UTF-8"),
    ('{"texts": ["한글"]}'.encode("cp949"), 400, "UTF-8"),
    (b'{"texts": [NaN]}', 400, "NaN"),
    (b"[" * 100_000, 400, "JSON"),
    ([], 422, "object"),
    ({}, 422, "texts"),
    ({"texts": "하나"}, 422, "list"),
    ({"texts": [1]}, 422, "texts[0]"),
    ({"texts": [None]}, 422, "texts[0]"),
    ({"text": ["하나"]}, 422, "texts"),
    ({"texts": ["\ud800"]}, 422, "surrogate"),
    ({"texts": ["x"], "task": "nsmk"}, 422, "nsmc"),
    ({"texts": ["x"], "task": "pretrain"}, 422, "labels"),
    ({"texts": ["x"], "task": "kornli"}, 422, "premise"),
    ({"texts": ["x"], "exact": 1}, 422, "true or false"),
    ({"texts": ["x"] * 33}, 413, "33"),
    ({"texts": ["x" * 30_000]}, 413, "characters"),
    (b'{"texts": ["' + b"x" * 10_000_000 + b'"]}', 413, "bytes"),
]


@pytest.mark.parametrize(("body", "status", "word"), BAD, ids=[str(b[0])[:24] for b in BAD])
def test_bad_requests_say_what_where_and_how_to_mend(
    server: Any, body: Any, status: int, word: str
) -> None:
    try:
        found, answer, _ = server.ask("POST", "/v1/classify", body)
    except (BrokenPipeError, ConnectionResetError):
        assert status == 413  # the answer came before all was sent, and the connection ended
        return
    error = answer["error"]
    assert found == status == error["status"]
    assert all(error[name] for name in ("what", "where", "mend"))
    assert word in json.dumps(error, ensure_ascii=False)


def test_other_mistakes(server: Any) -> None:
    assert server.ask("GET", "/v1/classify")[0] == 405
    assert server.get("/nothing")[1]["error"]["status"] == 404
    assert server.ask("POST", "/v1/classify", b"a=b", **{"content-type": "text/plain"})[0] == 415
    assert server.ask("GET", "/healthz", host="evil.example")[0] == 421
    assert server.ask("POST", "/v1/generate", {"texts": ["x"], "beams": 3})[0] == 422
    assert server.ask("POST", "/v1/generate", {"texts": ["x"], "max_tokens": 7})[0] == 422
    assert server.ask("POST", "/v1/score", {"inputs": ["x"], "targets": []})[0] == 422


def test_strange_texts_are_texts(server: Any, model: LanguageModel) -> None:
    texts = ["<script>alert(1)</script>", "\x00\x07\x1b[31m", "a\nb\tc", "👩‍👩‍👧 ㈜", "‮거꾸로"]
    answer = server.post("/v1/classify", {"texts": texts, "exact": True})
    expected = model.classify(texts, task="nsmc")
    assert [p["probabilities"] for p in answer["predictions"]] == [
        p.probabilities for p in expected
    ]


def test_the_queue_has_an_end(server: Any) -> None:
    def flood() -> None:
        for _ in range(3):
            statuses.append(
                server.ask(
                    "POST", "/v1/generate", {"texts": ["가 <extra_id_0>"] * 32, "max_tokens": 256}
                )
            )

    statuses: list[Any] = []
    threads = [threading.Thread(target=flood) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _, _ in statuses} == {200, 429}
    assert all(int(h["retry-after"]) >= 1 for status, _, h in statuses if status == 429)


def test_slow_and_vanishing_clients_slow_nobody(server: Any) -> None:
    server.post("/v1/classify", {"texts": ["먼저"]})
    head = b"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    held = []
    for number in range(100):
        one = socket.create_connection(("127.0.0.1", server.port))
        one.sendall(head[:20] if number % 2 else head + b"content-length: 1000\r\n\r\n{")
        held.append(one)
    gone = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    for one in gone:
        body = json.dumps({"texts": ["가라"] * 32}).encode()
        one.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        one.close()
    started = time.monotonic()
    server.post("/v1/classify", {"texts": ["먼저"]})
    assert time.monotonic() - started < 10
    for one in held:
        one.close()


def test_broken_http_is_answered_as_json(server: Any) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as one:
        one.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        answer = one.makefile("rb").read()  # to the end: head and body may come apart
    assert b" 400 " in answer
    assert b'"mend"' in answer


def test_what_the_server_says_of_itself(server: Any) -> None:
    assert server.get("/healthz")[0] == 200
    model = server.get("/v1/model")[1]
    assert model["default_task"] == "nsmc"
    assert model["experts"] == 4
    described = server.get("/openapi.json")[1]
    assert set(described["paths"]["/v1/classify"]["post"]["responses"]) >= {
        "200",
        "413",
        "422",
        "429",
        "503",
    }
    server.post("/v1/classify", {"texts": ["하나"]})
    metrics = server.get("/metrics")[1]
    assert 'kcmoe_requests_total{path="/v1/classify",status="200"}' in metrics
    assert 'le="+Inf"' in metrics
    headers = server.get("/")[2]
    assert "default-src 'none'" in headers["content-security-policy"]


def test_sigterm_answers_what_was_accepted(model_dir: Path, start: Any) -> None:
    server = start(model_dir)
    found = []
    body = {"texts": ["가 <extra_id_0> 나"] * 24, "max_tokens": 256}
    asking = threading.Thread(target=lambda: found.append(server.ask("POST", "/v1/generate", body)))
    asking.start()
    time.sleep(0.5)
    assert server.stop() == 0
    asking.join()
    assert found[0][0] == 200
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        server.get("/healthz")


def test_a_taken_port_is_said_before_the_model_is_read(model_dir: Path, server: Any) -> None:
    taken = subprocess.run(
        [sys.executable, "-m", "kcmoe", "serve", f"--checkpoint={model_dir}", f"--port={server.port}"],
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert taken.returncode == 2
    assert "--port=0" in taken.stderr
    assert "Traceback" not in taken.stderr


def test_a_host_that_is_not_here_is_not_called_a_matter_of_the_port() -> None:
    with pytest.raises(UserError, match=r"--host=192\.0\.2\.1 is no address of this machine"):
        listen("192.0.2.1", 0)

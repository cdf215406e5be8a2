# SPDX-License-Identifier: Apache-2.0
"""`kcmoe bench data`: what it counts and what it prints."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kcmoe.errors import UserError
from kcmoe.tools.bench import data


def test_speed_counts_real_tokens_after_warming_up(monkeypatch):
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(data.time, "perf_counter", lambda: next(clock))
    batch = {
        "encoder_input_tokens": np.array([[5, 6, 0]]),
        "decoder_target_tokens": np.array([[7, 0, 0]]),
    }
    taken = []
    batches = (taken.append(n) or batch for n in range(100))
    assert data.speed(batches, steps=10, warm_up=5) == 10 * 3 / 2.0
    assert len(taken) == 15


def test_the_command_prints_and_writes_its_numbers(tmp_path, capsys):
    path = tmp_path / "speed.json"
    gin = "--gin_file=configs/tasks/sample_pretrain.gin"
    assert data.main([gin, "--steps=20", "--batch_size=4", "--workers=0", f"--json={path}"]) == 0
    numbers = json.loads(path.read_text())
    assert numbers["batches, by a thread (tokens/s)"] > 0
    assert numbers["tokens in a batch"] == 4 * (128 + 29)
    assert "SentencePiece alone" in capsys.readouterr().out


@pytest.mark.t5x
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_seqio_is_timed_on_the_same_task(capsys):
    gin = "--gin_file=configs/tasks/sample_pretrain.gin"
    assert data.main([gin, "--steps=40", "--batch_size=4", "--workers=0", "--seqio"]) == 0
    lines = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    numbers = {
        name: float(number.replace(",", "")) for name, number in lines.items() if "SeqIO" in name
    }
    assert numbers["SeqIO and t5, same files (tokens/s)"] > 0
    assert numbers["ours / SeqIO"] > 0  # how much it is, benchmarks/README.md says


def test_mistakes():
    with pytest.raises(UserError, match="say which task"):
        data.main([])
    with pytest.raises(UserError, match="--steps: 1 is not"):
        data.main(["--steps=1"])

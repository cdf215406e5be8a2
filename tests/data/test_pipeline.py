# SPDX-License-Identifier: Apache-2.0
"""Batches: the same however a step is reached, every example once an epoch, resumed exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kcmoe.config import gin_files
from kcmoe.config.data import DataConfig
from kcmoe.data import pipeline
from kcmoe.data.rows import MixedRows
from kcmoe.data.settings import evaluation_batches, training_batches
from kcmoe.errors import UserError
from kcmoe.tasks import registry as tasks
from kcmoe.vocabulary import Vocabulary

LENGTHS = {"inputs": 64, "targets": 20}


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of two files and a labelled set."""
    folder = tmp_path_factory.mktemp("data")
    for shard in range(2):
        lines = [
            f"{shard}-{n} 오늘 본 영화 {n * 7919 % 1000}번은 정말 재밌었어요" for n in range(400)
        ]
        (folder / f"c{shard}.txt").write_text("\n".join(lines), encoding="utf-8")
    rows = [f"{n}번째 리뷰 {'좋아요 ' * (n % 9)}\t{n % 2}" for n in range(103)]
    (folder / "l.tsv").write_text("text\tlabel\n" + "\n".join(rows), encoding="utf-8")
    return folder


def corpus_task() -> tasks.Task:
    return tasks.Task(
        name="c",
        kind="span_corruption",
        files={"train": ("c*.txt",)},
        text_column="text",
        holdout=0.1,
    )


def labelled_task(**changes) -> tasks.Task:
    task = tasks.Task(
        name="l",
        kind="labelled",
        files={"train": ("l.tsv",), "test": ("l.tsv",)},
        prompt="리뷰: {text}",
        target="label",
        labels={"0": "부정적", "1": "긍정적"},
    )
    return dataclasses.replace(task, **changes)


def batches(task, vocabulary, folder, batch_size=8, seed=3, pack=True, **options):
    data = data_of(folder, pack=pack, **options)
    return pipeline.train_batches(task, vocabulary, LENGTHS, batch_size, seed, data)


def data_of(folder, **options) -> DataConfig:
    return DataConfig(data_dir=str(folder), cache_dir=str(folder / "cache"), **options)


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


KINDS = pytest.mark.parametrize("task", [corpus_task(), labelled_task()], ids=lambda t: t.name)


@KINDS
def test_a_step_is_the_same_however_it_is_reached(task, vocabulary, folder):
    one = batches(task, vocabulary, folder)
    walked = list(itertools.islice(one.iterate(0, 12), 12))
    other = batches(task, vocabulary, folder)
    for step in (11, 0, 5):
        assert equal(other.at(step), walked[step])
    assert not equal(walked[0], walked[1])
    assert not equal(batches(task, vocabulary, folder, seed=4).at(0), walked[0])


@KINDS
def test_hosts_take_their_rows_of_the_same_batch(task, vocabulary, folder):
    one = batches(task, vocabulary, folder)
    whole = one.at(7)
    for hosts in (2, 4):
        size = one.batch_size // hosts
        parts = [one.only(np.arange(h * size, (h + 1) * size)).at(7) for h in range(hosts)]
        assert equal({n: np.concatenate([p[n] for p in parts]) for n in whole}, whole)


def test_worker_processes_change_nothing(vocabulary, folder):
    one = batches(corpus_task(), vocabulary, folder)
    with contextlib.closing(one.iterate(5, 12, workers=2)) as iterator:
        made = list(iterator)
    assert len(made) == 7
    assert all(equal(batch, one.at(5 + n)) for n, batch in enumerate(made))


def test_workers_leave_signals_to_the_run(vocabulary, folder):
    """Ctrl-C reaches every process of the terminal; the run still needs the batch it asked for."""
    one = batches(corpus_task(), vocabulary, folder)
    with contextlib.closing(one.iterate(0, 40, workers=1)) as iterator:
        next(iterator)
        (worker,) = [c for c in multiprocessing.active_children() if "grain" in c.name]
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
        assert sum(1 for _ in iterator) == 39


KILLED = """
import multiprocessing, os, signal, sys
from kcmoe.config.data import DataConfig
from kcmoe.tasks import registry as tasks
from kcmoe.data import pipeline
from kcmoe.vocabulary import Vocabulary
if __name__ == "__main__":
    folder = sys.argv[1]
    task = tasks.Task(name="c", kind="span_corruption", files={"train": ("c0.txt",)}, text_column="text")
    lengths = {"inputs": 64, "targets": 20}
    data = DataConfig(data_dir=folder, cache_dir=folder + "/cache", pack=True)
    steps = pipeline.train_batches(task, Vocabulary(), lengths, 8, 3, data)
    iterator = steps.iterate(0, 1000, workers=1)
    next(iterator)
    (worker,) = [c for c in multiprocessing.active_children() if "grain" in c.name]
    print(worker.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_workers_end_with_a_run_that_is_killed(folder):
    (folder / "killed.py").write_text(KILLED)
    command = [sys.executable, str(folder / "killed.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    status = Path(f"/proc/{int(done.stdout)}/stat")
    end = time.monotonic() + 10
    # Gone, or dead and not yet collected.
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end, "the worker lives on"
        time.sleep(0.1)


@pytest.mark.parametrize("pack", [True, False])
def test_an_epoch_holds_every_example_once_and_epochs_differ(vocabulary, folder, pack):
    one = batches(labelled_task(), vocabulary, folder, batch_size=1, pack=pack)
    rows = one.rows.rows_per_epoch
    assert (rows < 103) == pack
    orders = []
    for epoch in range(2):
        texts: Counter[str] = Counter()
        order = []
        for step in range(epoch * rows, (epoch + 1) * rows):
            tokens = one.at(step)["encoder_input_tokens"][0]
            order.append(tokens.tolist())
            ends = np.flatnonzero(tokens == 1) + 1
            for part in np.split(tokens[: ends[-1]], ends[:-1]):
                texts[vocabulary.decode(part)] += 1
        assert len(texts) == 103
        assert set(texts.values()) == {1}
        orders.append(order)
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_a_corpus_epoch_reads_every_token_once(vocabulary, folder):
    one = batches(corpus_task(), vocabulary, folder)
    rows, size = one.rows.rows_per_epoch, one.rows.counts.tokens
    total = one.rows._cache.num_tokens
    phases = set()
    for epoch in range(3):
        starts = one.rows.segment_starts(np.arange(epoch * rows, (epoch + 1) * rows))
        covered = np.unique((starts[:, None] + np.arange(size)) % total)
        assert covered.size == rows * size
        phases.add(int(starts.min() % size))
    assert len(phases) > 1, "each epoch cuts at other places"


def test_features_are_int32_of_fixed_shape(vocabulary, folder):
    for task, pack, count in ((corpus_task(), True, 8), (labelled_task(), False, 4)):
        features = batches(task, vocabulary, folder, pack=pack).at(0)
        assert len(features) == count
        for name, values in features.items():
            assert values.shape == (
                8,
                LENGTHS["inputs" if name.startswith("encoder") else "targets"],
            )
            assert values.dtype == np.int32


def test_resume_refuses_other_data_and_allows_another_batch_size(vocabulary, folder):
    one = batches(corpus_task(), vocabulary, folder)
    position = json.loads(json.dumps(one.position(10)))
    assert equal(batches(corpus_task(), vocabulary, folder).resume(position).at(10), one.at(10))

    smaller = batches(corpus_task(), vocabulary, folder, batch_size=4).resume(position)
    pair = [smaller.at(10), smaller.at(11)]
    assert equal({n: np.concatenate([p[n] for p in pair]) for n in pair[0]}, one.at(10))
    assert smaller.position(12)["row"] == one.position(11)["row"]

    with pytest.raises(UserError, match="not what step 10 was trained on"):
        batches(corpus_task(), vocabulary, folder, seed=9).resume(position)


def test_mixtures_keep_their_proportions_in_every_block(vocabulary, folder):
    mixture = tasks.Mixture("m", ((corpus_task(), 3.0), (labelled_task(), 1.0)))
    one = batches(mixture, vocabulary, folder)
    owner, number = one.rows.owners(np.arange(3000))
    for block in range(3):
        assert np.bincount(owner[block * 1000 : (block + 1) * 1000]).tolist() == [750, 250]
    for part, count in ((0, 2250), (1, 750)):
        assert sorted(number[owner == part].tolist()) == list(range(count)), (
            "no row twice, none left out"
        )
    features = one.at(0)
    alone = batches(labelled_task(), vocabulary, folder).rows
    rows = np.flatnonzero(owner[:8] == 1)
    expected = alone.take(number[:8][rows])
    assert equal({n: v[rows] for n, v in features.items()}, expected)
    with pytest.raises(UserError, match="too small"):
        MixedRows("m", [(alone, 1.0), (alone, 1e-6)], 0)


def test_evaluation_scores_every_row_once(vocabulary, folder):
    split = pipeline.eval_batches(labelled_task(), "test", vocabulary, LENGTHS, 16, data_of(folder))
    assert (split.num_rows, len(split), len(split.examples)) == (103, 7, 103)
    row = 0
    for batch in split:
        assert batch["encoder_input_tokens"].shape == (16, 64)
        for tokens, weights in zip(
            batch["encoder_input_tokens"], batch["decoder_loss_weights"], strict=True
        ):
            if row < 103:
                assert vocabulary.decode(tokens) == split.examples[row].inputs_text.strip()
                assert weights.any()
            else:
                assert not tokens.any()
                assert not weights.any()
            row += 1
    assert row == 112


def test_evaluation_noise_is_fixed(vocabulary, folder):
    first, second = (
        list(
            pipeline.eval_batches(
                corpus_task(), "validation", vocabulary, LENGTHS, 4, data_of(folder)
            )
        )
        for _ in range(2)
    )
    assert len(first) > 1
    assert all(equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_changed_file_is_noticed_while_running(vocabulary, folder, tmp_path, monkeypatch, caplog):
    path = tmp_path / "c0.txt"
    path.write_bytes((folder / "c0.txt").read_bytes())
    one = batches(corpus_task(), vocabulary, tmp_path)
    monkeypatch.setattr(pipeline, "_CHECK_STEPS", 2)
    with caplog.at_level(logging.WARNING), contextlib.closing(one.iterate(0, 20)) as iterator:
        next(iterator)
        path.unlink()
        assert len(list(iterator)) == 19, "the cache goes on"
    assert caplog.text.count("c0.txt is gone since it was read") == 1


def test_from_gin(folder):
    macros = gin_files.parse(
        ["configs/tasks/sample_nli.gin"], ["BATCH_SIZE=4", "RANDOM_SEED=1", "PACK=True"]
    )
    features = training_batches(macros).at(0)
    assert features["encoder_segment_ids"].shape == (4, 96)
    task = tasks.get_task(macros)
    assert evaluation_batches(macros, task, "validation", 4, max_batches=2).num_rows == 8
    with pytest.raises(UserError, match="BATCH_SIZE is not set"):
        training_batches(gin_files.parse(["configs/tasks/sample_nli.gin"]))
    with pytest.raises(UserError, match="DATA_WORKERS = -1"):
        training_batches(macros.replace(DATA_WORKERS=-1))


def test_too_little_text(vocabulary, tmp_path):
    (tmp_path / "c0.txt").write_text("너무 짧아요", encoding="utf-8")
    task = dataclasses.replace(corpus_task(), holdout=0.0)
    with pytest.raises(UserError, match="tokens of text are less than one row"):
        batches(task, vocabulary, tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""MODEL_DIR in a bucket: the run is the one on a disk, whatever is killed or refused in between."""

from __future__ import annotations

import dataclasses
import filecmp
import json
import os
import shutil
import signal
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import pytest

from kcmoe import checkpoint as checkpoints
from kcmoe import cli
from kcmoe.checkpoint import bucket as checkpoint_bucket
from kcmoe.checkpoint.storage import Unreachable
from kcmoe.errors import UserError
from kcmoe.io import durable
from kcmoe.io.remote import Place, place
from kcmoe.training import run_folder
from kcmoe.training.loop import Outcome, train
from kcmoe.training.places import InBucket
from kcmoe.training.records import join, whole
from kcmoe.training.run_folder import BY_LOSS, RunFolder, read_best, read_extra
from kcmoe.training.settings import Settings
from tests.fake_bucket import Bucket

Run = Callable[..., Outcome]


@pytest.fixture
def run(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Run:
    """One start of the toy run in any place; `before(n)` is called before step n + 1."""
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])

    def start(where: Place, before: Callable[[int], None] = lambda step: None) -> Outcome:
        class Watched(toy.ToyBatches):
            def iterate(self, start_step: int, stop_step: int, workers: int) -> Iterator[Any]:
                for step in range(start_step, stop_step):
                    before(step)
                    yield self.at(step)

        settings: Settings = toy.settings(where)
        inputs = dataclasses.replace(toy.inputs(8), batches=Watched(8))
        return train(settings, inputs, say=said.append)

    said: list[str] = []
    start.said = said  # type: ignore[attr-defined]
    return start


@pytest.fixture
def home(bucket: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Place, Path]]:
    """A model directory in the bucket, and where its files are seen."""
    Bucket.writes.clear()
    name = request.node.name.partition("[")[0]
    yield place(f"gs://bucket/{name}"), bucket / name
    Bucket.refused.clear()
    shutil.rmtree(bucket / name, ignore_errors=True)


def same_weights(one: Place, other: Place) -> bool:
    first, second = checkpoints.open_checkpoint(one), checkpoints.open_checkpoint(other)
    assert first.tree() == second.tree()
    return all(first.read(path).tobytes() == second.read(path).tobytes() for path in first.tree())


class Killed(BaseException):
    pass


def test_stopped_killed_and_resumed_is_never_stopped(
    run: Run,
    home: tuple[Place, Path],
    toy: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where, seen = home

    def stop(step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def kill(step: int) -> None:
        if step == 5:
            raise Killed

    assert run(where, stop).stopped_by == "SIGTERM"
    assert checkpoints.latest(where) == where / "checkpoint_2"
    with pytest.raises(Killed):
        run(where, kill)
    assert [path.name for path in checkpoints.all_checkpoints(where)] == [
        "checkpoint_2",
        "checkpoint_4",
    ]
    outcome = run(where)
    assert "continued from gs://bucket" in "\n".join(run.said)  # type: ignore[attr-defined]
    assert run(tmp_path).step == outcome.step == 6
    assert same_weights(where / "checkpoint_6", tmp_path / "checkpoint_6")
    assert [path.name for path in checkpoints.all_checkpoints(where)] == [
        path.name for path in checkpoints.all_checkpoints(tmp_path)
    ]
    fetched = InBucket(str(where))  # whose folder goes when it does
    records = fetched.fetch_records()
    losses = [[each["loss"] for each in toy.records(folder)] for folder in (records, tmp_path)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    assert filecmp.cmp(seen / "best.json", tmp_path / "best.json", shallow=False)
    # What is new is an object of its own, so that no save sends all again.
    assert len(list(seen.glob("metrics.jsonl.from-*"))) == 2
    assert len(list(records.glob("train/events*"))) == 3
    monkeypatch.chdir(tmp_path)
    report = ["report", f"{where}/", str(tmp_path), "--language=en"]
    assert cli.run(report) == 0
    assert where.name in (tmp_path / "report.html").read_text("utf-8")
    assert cli.run(report) == 2  # it is not beside its run, so it may be of another one
    assert "report.html exists already" in capsys.readouterr().err
    assert cli.run(["report", f"{where}-absent"]) == 2
    assert f"{where}-absent has no metrics.jsonl" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"begun with other settings: NUM_EXPERTS 4 -> 8"):
        train(toy.settings(where, NUM_EXPERTS=8), toy.inputs(8))


def test_a_save_is_there_when_its_mark_is(run: Run, home: tuple[Place, Path]) -> None:
    where, seen = home
    Bucket.refused.add(f"{seen.name}/checkpoint_4/commit_success.txt")
    with pytest.raises(UserError, match=r"checkpoint_4 cannot be written: .*403"):
        run(where)
    marks = [name for name in Bucket.writes if "checkpoint_2/" in name]
    assert marks[-1] == f"{seen.name}/checkpoint_2/commit_success.txt"
    assert [path.name for path in checkpoints.all_checkpoints(where)] == ["checkpoint_2"]
    (seen / "checkpoint_4/state").mkdir(parents=True, exist_ok=True)
    (seen / "checkpoint_4/state/manifest.ocdbt").write_text("what a killed save left")
    assert [path.name for path in checkpoints.all_checkpoints(where)] == ["checkpoint_2"]
    Bucket.refused.clear()
    assert run(where).step == 6
    assert len(list(seen.glob("checkpoint_4/**/commit_success.txt"))) == 2


def test_a_bucket_that_cannot_be_written_to_is_one_line(run: Run, home: tuple[Place, Path]) -> None:
    where, seen = home
    Bucket.refused.add(seen.name)
    with pytest.raises(UserError, match=rf"gs://bucket/{seen.name} cannot be written: .*403"):
        run(where)


def test_records_are_sent_in_parts_and_cut_where_they_were(home: tuple[Place, Path]) -> None:
    where, seen = home
    place = InBucket(str(where))
    lines, sent = place.records / "metrics.jsonl", lambda: sorted(p.name for p in seen.glob("m*"))

    def publish(content: str) -> None:
        lines.write_text(content)
        place.publish()
        other = InBucket(str(where))
        again = other.fetch_records() / "metrics.jsonl"
        assert (again.read_text() if again.exists() else "") == content

    publish("one\n")
    publish("one\ntwo\n")
    publish("one\ntwo\nthree\n")
    assert sent() == ["metrics.jsonl", "metrics.jsonl.from-4", "metrics.jsonl.from-8"]
    publish("one\nt")  # cut within the second
    assert sent() == ["metrics.jsonl", "metrics.jsonl.from-4"]
    (seen / "metrics.jsonl.from-6").write_text("two")  # of before a cut, and its removal was killed
    publish("one\ntwo\nfour\n")
    (seen / "metrics.jsonl.from-4").unlink()  # somebody lost a part
    lost = InBucket(str(where))
    assert (lost.fetch_records() / "metrics.jsonl").read_text() == "one\n"
    lost.publish()
    assert sent() == ["metrics.jsonl"]
    publish("")


def test_only_records_are_fetched_and_other_tools_may_copy_them(
    home: tuple[Place, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, seen = home
    parts = {
        "metrics.jsonl": "one\n",
        "metrics.jsonl.from-4": "two\n",
        "metrics.jsonl.from-8": "x\n",
    }
    event = "train/events.out.tfevents.1.host-a"
    others = ("metrics.jsonl.bak", "metrics.jsonl.from-0", "train/", "train/notes", "train/a/" + event,
              "eval/report.json", "train/events.out.tfevents.a\nb", "metrics.jsonl/x")  # fmt: skip
    folder = tmp_path / "copied"
    for name, text in {**parts, event: "e", **dict.fromkeys(others, "?")}.items():
        for root in (seen, folder):
            path = root / name
            if not name.endswith("/") and not path.parent.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

    place = InBucket(str(where))
    fetched = place.fetch_records()
    files = {path for path in fetched.rglob("*") if path.is_file()}
    assert files == {fetched / "metrics.jsonl", fetched / event}
    place.publish()  # nothing is new, and nothing that is not a record is touched
    untouched = [seen / name for name in others if (seen / name).is_file()]
    assert len(untouched) == 6
    assert {path.read_text() for path in untouched} == {"?"}
    join(folder)
    for root in (fetched, folder):
        assert (root / "metrics.jsonl").read_text() == "one\ntwo\nx\n"
        assert not list(root.glob("*.from-[1-9]*"))
    assert (folder / "metrics.jsonl.bak").read_text() == "?"
    (folder / "metrics.jsonl.from-99").write_text("behind what is missing")
    for part in ("metrics.jsonl.from-10", f"{event}.from-1"):
        (folder / part).write_text("fits")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    inode = (folder / "metrics.jsonl").stat().st_ino
    with whole(folder) as copy:
        assert (copy / "metrics.jsonl").read_text() == "one\ntwo\nx\nfits"
        assert (copy / event).read_text() == "efits"
        assert not list(copy.rglob("*.from-*"))
    # A run may be writing there: nothing has changed.
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert (folder / "metrics.jsonl").stat().st_ino == inode

    def kill(partial: Path, final: Path) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(durable, "finish_file", kill)
        join(folder)
    assert {path for path in folder.rglob("*") if path.is_file()} == set(before)
    join(folder)
    assert (folder / "metrics.jsonl").read_text() == "one\ntwo\nx\nfits"
    assert not list(folder.rglob("*.from-[1-9]*"))  # else one might fit later
    with whole(folder) as same:
        assert same == folder


def test_nothing_is_cleaned_but_what_a_killed_save_or_removal_left(
    home: tuple[Place, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, seen = home
    for name in (
        "1/model.safetensors.part",
        "2/state/manifest.ocdbt",
        "3/state/ocdbt.process_0/d/1",
    ):
        (path := seen / f"checkpoint_{name}").parent.mkdir(parents=True)
        path.write_text("of somebody else, or on its way")
    bucket = checkpoint_bucket.Bucket(where)
    with pytest.raises(Killed), bucket.under_way("checkpoint_4"):
        bucket.write("checkpoint_4/state/a", b"a")
        raise Killed
    bucket.write("checkpoint_4/state/b", b"b")  # another process has not noticed yet
    with pytest.raises(UserError, match="refused"), bucket.under_way("checkpoint_7"):
        bucket.write("checkpoint_7/state/a", b"a")
        raise UserError("refused everywhere")
    for step in (5, 6):
        with bucket.under_way(f"checkpoint_{step}"):
            bucket.write(f"checkpoint_{step}/state/a", b"a")
            bucket.write(f"checkpoint_{step}/commit_success.txt", b"")
    removed: list[list[str]] = []

    def remove(names: Collection[str]) -> None:
        if len(removed) == 2:
            raise Killed
        removed.append(list(names))
        checkpoint_bucket.Bucket.remove(bucket, names)

    monkeypatch.setattr(bucket, "remove", remove)
    with pytest.raises(Killed):
        bucket.remove_checkpoint("checkpoint_6")
    monkeypatch.undo()
    assert removed == [["checkpoint_6/commit_success.txt"], ["checkpoint_6/state/a"]]
    assert checkpoints.all_checkpoints(where) == [where / "checkpoint_5"]
    assert checkpoints.clean(where) == [where / "checkpoint_4", where / "checkpoint_6"]
    left = {path.relative_to(seen).parts[0] for path in seen.rglob("*") if path.is_file()}
    assert left == {f"checkpoint_{step}" for step in (1, 2, 3, 5)}
    assert not (seen / "checkpoint_5/kcmoe_under_way").exists()


def test_a_finished_save_counts_whatever_its_marker_says(
    home: tuple[Place, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, _ = home
    bucket = checkpoint_bucket.Bucket(where)

    def refuse(names: Collection[str]) -> None:
        raise UserError("403")

    with bucket.under_way("checkpoint_1"):
        bucket.write("checkpoint_1/commit_success.txt", b"")
        monkeypatch.setattr(bucket, "remove", refuse)
    assert checkpoints.clean(where) == []
    assert checkpoints.all_checkpoints(where) == [where / "checkpoint_1"]


def test_the_best_stays_while_the_bucket_does_not_tell(
    run: Run, home: tuple[Place, Path], toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, seen = home
    run(where)
    folder = RunFolder(toy.settings(where).macros)
    folder.chooser, folder.keep = BY_LOSS, 1
    first, newest = folder.all()
    shutil.copytree(seen / newest.name, seen / "checkpoint_5")  # neither new nor known to be good
    best = {"checkpoint": first.name, "metric": BY_LOSS.metric, "value": 0.0}
    folder.place.write("best.json", json.dumps(best).encode())
    kept = folder.all()
    assert len(kept) == 3
    with monkeypatch.context() as patched:
        content = read_extra(newest)
        fails = Unreachable("503")
        patched.setattr(
            run_folder, "read_extra", lambda path: content if path == newest else _raise(fails)
        )
        assert folder.tidy() == read_best(str(where)) == best
        assert folder.all() == kept
    (seen / first.name / "training.json").write_text("damaged")
    found = folder.tidy() or {}
    assert found["checkpoint"] in ("checkpoint_5", newest.name)
    assert folder.all()[-1] == newest
    assert where / first.name not in folder.all()


def _raise(error: Exception) -> Any:
    raise error


def test_a_full_temporary_folder_is_one_line_that_names_tmpdir(
    home: tuple[Place, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"kept in a temporary folder .* TMPDIR"):
        InBucket(str(home[0]))

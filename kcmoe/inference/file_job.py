# SPDX-License-Identifier: Apache-2.0
"""What is to be done with a file, and the first pass over it: all that can be wrong with it, and how it is.

What the answers depend on is told by contents, not by names and times, so that a copy of the input serves.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kcmoe import __version__
from kcmoe.data import table_writing, tables, whole
from kcmoe.errors import UserError
from kcmoe.inference.asking import Question
from kcmoe.inference.loading import Found
from kcmoe.inference.progress import Progress
from kcmoe.io import hashing, remote

PART = ".part"


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
      found: the model.
      asked: the task.
      file: rows: a local file or one in a bucket.
      output: where they go with their answers, a local file.
      columns: of the file, in the order of the task's; empty to go by their names.
      encoding: of a text file.
      lenient: whether places that cannot be read are left out and counted.
      overwrite: whether an output that exists is replaced.
      processes: how many compute.
      notes: what is said when the file was found to be sound.
    """

    found: Found
    asked: Question
    file: str
    output: str
    columns: tuple[str, ...] = ()
    encoding: str = "utf-8"
    lenient: bool = False
    overwrite: bool = False
    processes: int = 1
    notes: tuple[str, ...] = ()

    @property
    def part(self) -> str:
        """The file that keeps the answers until all are there."""
        return self.output + PART


@dataclasses.dataclass(frozen=True)
class Survey:
    """What the first pass found.

    Attributes:
      about: the file.
      columns: those of the task, as the file spells them.
      rows: all rows.
      silent: rows in which a text is missing or blank.
      names: columns of the file, all that occur.
      kinds: PyArrow types of those of a JSON file, where parquet is written.
      stamp: size and time of change of the file; None in a bucket.
      left_out: what lenient reading left out, in words; "" for nothing.
    """

    about: whole.WholeFile
    columns: list[str]
    rows: int
    silent: int
    names: list[str]
    kinds: dict[str, Any]
    stamp: tuple[int, int] | None
    left_out: str


def chunks(job: Job, of: whole.WholeFile, columns: Sequence[str]) -> Iterator[whole.WholeChunk]:
    """The rows of the file once more, after `survey`."""
    return whole.read(of, columns, job.encoding, not job.lenient, tables.Tally())


def survey(job: Job, about: whole.WholeFile, columns: list[str], kind: str) -> Survey:
    """Reads the whole file, and raises `UserError` for what cannot be answered.

    Args:
      job: what is to be done.
      about: the file.
      columns: those of the task, as the file spells them.
      kind: format of the output.
    """
    from kcmoe.vocabulary import Vocabulary

    stamp = _stamp(job.file)
    vocabulary = None
    if job.asked.task is None:
        vocabulary = Vocabulary(job.found.macros.get("VOCABULARY_FILE"))
    names = table_writing.ColumnKinds(typed=kind == ".parquet")
    tally = tables.Tally()
    silent = row = 0
    with Progress(f"checking {job.file}", None) as progress:
        for chunk in whole.read(about, columns, job.encoding, not job.lenient, tally):
            for cells in zip(*(chunk.asked[name] for name in columns), strict=True):
                row += 1
                try:
                    job.asked.check(cells, vocabulary)
                except UserError as error:
                    raise UserError(f"{job.file}, row {row}: {error}") from None
                silent += job.asked.is_silent(cells)
            if chunk.objects:
                names.add(chunk.objects)
            progress(chunk.count)
    kinds = names.found()
    return Survey(
        about, columns, row, silent, list(kinds or about.names), kinds, stamp, tally.summary()
    )


def _stamp(path: str) -> tuple[int, int] | None:
    if remote.is_remote(path):
        return None
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def check_unchanged(job: Job, found: Survey) -> None:
    """Raises `UserError` if the file is no longer what `survey` read."""
    if _stamp(job.file) != found.stamp:
        raise UserError(
            f"{job.file} changed while it was read; give the same command again when nothing writes to it"
        )


def facts(job: Job, found: Survey) -> dict[str, Any]:
    """What answers depend on, each by the name that a message gives it."""
    settings = {name: repr(value) for name, value in sorted(job.found.macros.items())}
    settings |= {"task": repr(job.asked), "lenient": repr(job.lenient), "encoding": job.encoding}
    return {
        "input": _file_digest(job.file),
        "task": job.asked.name,
        "column": ", ".join(found.columns),
        "model": _model_digest(job.found.checkpoint),
        "version": f"kcmoe {__version__} with jax {importlib.metadata.version('jax')}",
        "setting": settings,
        "number of lines": f"{found.rows:,}",
    }


def _file_digest(path: str) -> str:
    if not remote.is_remote(path):
        return f"sha256:{hashing.file_digest(path)}"
    with remote.fsspec().open(path, "rb") as file:
        return f"sha256:{hashing.stream_digest(file)}"


def _model_digest(checkpoint: str) -> str:
    """Of what the checkpoint holds, wherever it lies; of its address alone in a bucket."""
    if remote.is_remote(checkpoint):
        return f"sha256:{hashing.facts_digest(checkpoint)}"
    files = sorted(path for path in Path(checkpoint).rglob("*") if path.is_file())
    sums = [(str(path.relative_to(checkpoint)), hashing.file_digest(path)) for path in files]
    return f"sha256:{hashing.facts_digest(sums)}"

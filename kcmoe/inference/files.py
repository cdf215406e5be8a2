# SPDX-License-Identifier: Apache-2.0
"""A file of rows in, the same rows with answers out: any size, in flat memory, resumable after any stop.

Three passes over the input. The first finds everything that is wrong and counts the rows; the second
answers them into a log beside the output (`answer_log.py`); the third writes rows and answers together under
a temporary name and renames it. Only the log survives a kill, so the output is the same bytes whenever and
however often the program was stopped.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from kcmoe.data import table_writing, whole
from kcmoe.errors import UserError
from kcmoe.inference import answer_log, file_job, windows, workers
from kcmoe.inference.answer_log import AnswerLog
from kcmoe.inference.file_job import Job, Survey
from kcmoe.inference.patience import short_patience
from kcmoe.inference.progress import Progress, duration
from kcmoe.io import durable, outputs

_PATIENCE_S = 2.0  # that Ctrl-C waits for XLA
_PREFIXES = ("", "predicted_", "{task}_", "predicted_{task}_")


def run(job: Job) -> str:
    """Does the job, or what is left of it; returns a line that says what was done.

    Raises:
      UserError: for an input that cannot be read, an output that may not be written, a full disk.
      KeyboardInterrupt: after saying that the answers so far are kept.
    """
    kind = table_writing.kind_of(job.output)
    _check_output(job)
    about = whole.look_at(job.file, job.encoding, job.columns or job.asked.columns)
    columns = whole.chosen(about, job.asked.columns, job.columns, job.asked.name)
    survey = file_job.survey(job, about, columns, kind)
    notes = list(job.notes)
    for name, own in zip(columns, job.asked.columns, strict=True):
        if name != own and not job.columns and about.kind != ".txt":
            notes.append(f"column {name} of {job.file} is read as {own}")
    facts = file_job.facts(job, survey)
    log = answer_log.open_log(job.part, facts, anew=job.overwrite)
    began, before = time.monotonic(), log.rows

    def kept() -> str:
        if not log.rows:
            return "kcmoe predict: nothing is answered yet"
        of = f"{log.rows:,} of {survey.rows:,} lines"
        return f"kcmoe predict: answers to {of} are kept; the same command goes on"

    try:
        if os.path.exists(job.output) and os.stat(job.output).st_ino == log.became:
            log.remove()
            return f"{job.output} is complete"  # stopped after the last step but one
        outputs.check_file(job.output, "--output", overwrite=job.overwrite)
        for note in notes:
            print(f"kcmoe predict: {note}", file=sys.stderr)
        if before:
            print(
                f"kcmoe predict: going on after {before:,} of {survey.rows:,} lines",
                file=sys.stderr,
            )
        with short_patience(_PATIENCE_S, lambda: f"{kept()}\nkcmoe predict: interrupted"):
            _answer(job, survey, log)
        cut, flattened = _write(job, survey, log, kind)
        log.remove()
    except KeyboardInterrupt:
        print(kept(), file=sys.stderr)
        raise
    finally:
        log.close()
    return _summary(job, survey, time.monotonic() - began, cut, flattened)


def _check_output(job: Job) -> None:
    """Refuses an output before anything is read."""
    if os.path.isdir(job.file):
        raise UserError(f"{job.file} is a folder; name a file in it")
    there = os.path.exists(job.output) and os.path.exists(job.file)
    if there and os.path.samefile(job.output, job.file):
        raise UserError(f"--output={job.output} is the input itself; name another file")
    # Beside a log it is seen later whether the output is what the log became.
    log = os.path.lexists(job.part) and answer_log.exists(job.part)
    outputs.check_file(job.output, "--output", overwrite=job.overwrite or log)


def _answer(job: Job, survey: Survey, log: AnswerLog) -> None:
    if log.rows == survey.rows:
        return
    chunks = file_job.chunks(job, survey.about, survey.columns)
    todo = windows.Windows(chunks, survey.columns, log.rows)
    with Progress("lines", survey.rows, log.rows) as progress:
        if job.processes > 1:
            found = workers.answered_by(job.processes, job.found, job.asked, todo, progress)
        else:
            from kcmoe.inference import loading
            from kcmoe.inference.predict import LanguageModel

            model = LanguageModel(loading.load(job.found))
            found = windows.answered(model, job.asked, todo, progress)
        with contextlib.closing(found):  # type: ignore[type-var]
            for answers in found:
                log.append(answers)
    file_job.check_unchanged(job, survey)
    if log.rows != survey.rows:
        raise UserError(f"{job.file} gave {log.rows:,} rows and before {survey.rows:,}")


def answer_names(job: Job, names: Sequence[str], nested: bool) -> dict[str, str]:
    """What the answers' columns are called: as they are, or longer where the file has such columns."""
    own = {column.name: column for column in job.asked.answers}
    taken = set(names)
    for prefix in _PREFIXES:
        prefix = prefix.format(task=job.asked.name)
        within = [c.within[0] if nested and c.within else c.name for c in own.values()]
        if not taken & {prefix + name for name in within}:
            return {name: prefix + name for name in own}
    raise UserError(
        f"{job.file} has columns {', '.join(sorted(taken & set(own)))} already, and longer names of them, "
        "too; rename them"
    )


def _write(job: Job, survey: Survey, log: AnswerLog, kind: str) -> tuple[int, int]:
    """Writes the output; returns how many texts were cut, and how many rows were flattened."""
    partial = f"{job.part}.tmp"
    named = answer_names(job, survey.names, kind == ".jsonl")
    columns = job.asked.answers
    prefix = next(iter(named.values())).removesuffix(columns[0].name)
    more = {named[column.name]: column.kind for column in columns}
    nested = {
        named[column.name]: (prefix + column.within[0], column.within[1])
        for column in columns
        if column.within
    }
    none: list[Any] = [*[None] * len(columns), 0]
    answers = log.read()
    cut = 0
    try:
        writer = table_writing.writer(
            partial, kind, survey.about, survey.names, more, survey.kinds, nested
        )
        with contextlib.closing(writer), Progress(f"writing {job.output}", survey.rows) as progress:
            for chunk in file_job.chunks(job, survey.about, survey.columns):
                rows = [
                    none if one is None else one for one in itertools.islice(answers, chunk.count)
                ]
                cut += sum(map(itemgetter(-1), rows))
                by_column = list(zip(*rows, strict=True))[:-1]
                writer.write(chunk, dict(zip(more, by_column, strict=True)))
                progress(chunk.count)
        file_job.check_unchanged(job, survey)
        log.mark(os.stat(partial).st_ino)
        durable.finish_file(Path(partial), Path(job.output))
    except OSError as error:
        raise answer_log.not_written(error, job.output, "all answers are kept") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)
    return cut, writer.flattened


def _summary(job: Job, survey: Survey, seconds: float, cut: int, flattened: int) -> str:
    facts = [f"{survey.rows:,} lines in {duration(seconds)}"]
    if survey.silent:
        facts.append(f"{survey.silent:,} without text, whose answers are empty")
    if cut:
        facts.append(f"{cut:,} longer than the model reads, of which the beginning was read")
    if flattened:
        facts.append(f"{flattened:,} whose tabs or line breaks became blanks")
    if survey.left_out:
        facts.append(survey.left_out)
    return f"{job.output}: {'; '.join(facts)}"

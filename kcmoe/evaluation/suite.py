# SPDX-License-Identifier: Apache-2.0
"""`kcmoe evaluate --suite`: every task of the suite on one checkpoint, kept task by task.

What a task gave is written before the next one starts. A later call with the same weights, data and settings
takes it from there, so that a suite which was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kcmoe.checkpoint import run_config
from kcmoe.config.data import DataConfig
from kcmoe.config.inference import InferenceConfig
from kcmoe.data.labelled import Example, labelled_examples, spread
from kcmoe.data.splits import split_files
from kcmoe.errors import UserError
from kcmoe.evaluation import report as report_lib
from kcmoe.evaluation.suite_report import Row, SuiteReport
from kcmoe.evaluation.suite_tasks import SUITE, chosen_split, learnt, read_baselines
from kcmoe.hosts import agreeing
from kcmoe.hosts.group import ALONE, Hosts
from kcmoe.inference import loading
from kcmoe.io import durable, json_text
from kcmoe.io.drawing_svg import svg_file
from kcmoe.tasks.registry import Task, named_task

if TYPE_CHECKING:
    from kcmoe.inference.divided import DividedModel

_FORMAT = 1
# A compiled program for each length costs as much as some thousand lines of a small model. So tasks with few
# lines have few lengths, all of them among those of `inference.batching`.
_FEW_ROWS, _FEW_LENGTHS = 10_000, (32, 64, 128, 256, 512)


@dataclasses.dataclass(frozen=True)
class Part:
    """One task of the suite as it is asked here.

    Attributes:
      task: the task.
      split: the split that is read.
      of_rows: how many rows that has.
      examples: those that are asked, all or evenly spread ones.
    """

    task: Task
    split: str
    of_rows: int
    examples: list[Example]

    def key(self, protocol: str) -> str:
        """What an answer depends on besides the checkpoint, as 16 letters."""
        texts = [[one.inputs_text, one.target_text] for one in self.examples]
        told = [self.task.name, self.split, protocol, self.task.metrics, texts]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def main(
    args: argparse.Namespace, given: Mapping[str, Any], checkpoint: str, hosts: Hosts = ALONE
) -> int:
    """Runs the suite and prints its table; see `kcmoe evaluate --help`."""
    found = loading.find(checkpoint, given=given)
    data = DataConfig.from_macros(found.macros)
    chosen = args.output or InferenceConfig.from_macros(found.macros).eval_output_dir
    folder = report_lib.output_folder(report_lib.model_dir_of(found.checkpoint), chosen)
    name = os.path.basename(found.checkpoint.rstrip("/"))
    place = folder / f"suite-{args.split or 'final'}-{name}.json"
    here, absent = _parts(data, args.split)
    if not here and not absent:
        raise UserError(f"no task of the suite is evaluated on its {args.split} split")
    if not here:
        raise UserError(
            f"no task of the suite has its {args.split or 'evaluation'} data below DATA_DIR = "
            f"{data.data_dir!r}; get some: {_download(absent, data.data_dir)}"
        )

    loaded = loading.load(found)
    weights = identity(loaded)
    asked = str([(task.name, split) for task, split in here])
    told = {"the weights or settings": weights, "the tasks": asked}
    agreeing.agree(hosts, lambda: {**agreeing.program({}), **told})
    kept = _Kept(place, weights, hosts)
    protocols = ("rank", "generate") if args.protocol == "both" else (args.protocol or "rank",)
    rows = _rows(loaded, here, data, protocols, args.limit, kept, hosts)
    report = SuiteReport(
        checkpoint=found.checkpoint,
        step=loaded.step,
        settings={"routing": loaded.config.routing, "activations": loaded.config.activation_dtype},
        rows=tuple(rows),
        absent=tuple(absent),
        download=_download(absent, data.data_dir) if absent else "",
    )
    kept.finish(report)
    if not hosts.first:
        return 0
    picture = place.with_suffix(".svg")
    durable.write_file(picture, svg_file([report.picture()]))
    print("\n".join(report.markdown() if args.markdown else report.table()))
    if not args.markdown:
        print(f"written: {place}, {picture.name}")
    return 0


def identity(loaded: loading.Loaded) -> str:
    """A name for the weights and everything about the model that answers depend on, 64 letters.

    Two checkpoints with the same one give the same answers, wherever they lie.
    """
    import numpy as np

    digest = hashlib.sha256()
    told = [repr(loaded.config), dict(loaded.lengths), loaded.vocabulary.digest]
    digest.update(json.dumps(told, sort_keys=True).encode())
    for path in sorted(loaded.params):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(loaded.params[path]).view(np.uint8).data)
    return digest.hexdigest()


def _parts(data: DataConfig, wanted: str | None) -> tuple[list[tuple[Task, str]], list[str]]:
    """The tasks and splits whose files are here, and the names of the tasks whose files are not."""
    here: list[tuple[Task, str]] = []
    absent: list[str] = []
    for name in SUITE:
        task, split = named_task(name), chosen_split(name, wanted)
        if split is None:
            continue
        try:
            split_files(task, split, data.data_dir)
            here.append((task, split))
        except UserError:
            absent.append(name)
    return here, absent


def _download(names: Sequence[str], data_dir: str) -> str:
    """The command that fetches the data of these tasks; a set is called as its folder."""
    files = [path for name in names for paths in named_task(name).files.values() for path in paths]
    sets = dict.fromkeys(path.partition("/")[0] for path in files)
    return f"kcmoe data download {' '.join(sets)} --data_dir={data_dir}"


def _rows(
    loaded: loading.Loaded,
    here: Sequence[tuple[Task, str]],
    data: DataConfig,
    protocols: Sequence[str],
    limit: int | None,
    kept: _Kept,
    hosts: Hosts,
) -> Iterator[Row]:
    """Each task's results in turn, computed or remembered."""
    from kcmoe.inference.divided import DividedModel

    longest = loaded.lengths["inputs"]
    model = DividedModel(loaded.compute, longest, loaded.tokens, hosts=hosts)
    baselines = read_baselines()
    trained_on = run_config.learnt_tasks(run_config.recorded(loaded.checkpoint))
    for number, (task, split) in enumerate(here, 1):
        examples = labelled_examples(task, split, data.data_dir, strict=data.strict)
        part = Part(task, split, len(examples), spread(examples, limit or len(examples)))
        baseline = baselines.get((task.name, split))
        if baseline is not None and baseline.rows != part.of_rows:
            baseline = None  # other rows than those that were measured
        for protocol in protocols:
            key = part.key(protocol)
            result = kept.results.get(key)
            if result is None:
                title = f"{number}/{len(here)} {task.name} {split}, {protocol}"
                result = _answer(loaded, model, part, protocol, title)
                kept.add(key, result)
            metrics = {name: (value, error) for name, value, error in result["metrics"]}
            yield Row(
                task=task.name,
                split=split,
                protocol=protocol,
                rows=len(part.examples),
                of_rows=part.of_rows,
                metrics=metrics,
                seconds=result["seconds"],
                baseline=baseline,
                learnt=learnt(task.name, trained_on),
            )


def _answer(
    loaded: loading.Loaded, model: DividedModel, part: Part, protocol: str, title: str
) -> dict[str, Any]:
    """Metrics and seconds of one task, as they are kept."""
    from tqdm import tqdm

    from kcmoe.evaluation.protocol import Questions

    started_s = time.monotonic()
    longest = loaded.lengths["inputs"]
    if len(part.examples) <= _FEW_ROWS:
        model = dataclasses.replace(model, shapes=_FEW_LENGTHS)
    questions = Questions(part.task, part.examples, loaded.vocabulary, longest, aligned=True)
    shown = None if model.hosts.first else True
    with tqdm(total=len(part.examples), desc=title, unit="line", disable=shown) as bar:
        if protocol == "rank":
            outcome = questions.rank(model, bar.update)
        else:
            outcome = questions.generate(model, loaded.lengths["targets"], bar.update)
    seconds = time.monotonic() - started_s
    if model.hosts.first and not sys.stderr.isatty():
        print(f"{title}: {len(part.examples):,} lines in {seconds:.0f} s", file=sys.stderr)
    metrics = [[name, *map(report_lib.finite, one)] for name, one in outcome.metrics.items()]
    return {"metrics": metrics, "seconds": round(seconds, 3)}


class _Kept:
    """The results so far, in the JSON file that becomes the report; the first host reads and writes it.

    Raises:
      UserError: if the file holds the results of other weights, or is none of ours.
    """

    def __init__(self, place: Path, checkpoint: str, hosts: Hosts = ALONE):
        self.place, self.checkpoint, self._hosts = place, checkpoint, hosts
        self.results: dict[str, Any] = json.loads(
            hosts.first_does(lambda: json.dumps(self._read()))
        )

    def _read(self) -> dict[str, Any]:
        place, checkpoint = self.place, self.checkpoint
        if not place.exists():
            return {}
        try:
            content = json_text.parse(place.read_bytes())
            same = (content["format"], content["identity"]) == (_FORMAT, checkpoint)
            results = dict(content["results"]) if same else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{place} cannot be read as the results of a suite ({type(error).__name__}); remove it, "
                "or choose another folder with --output=DIR"
            ) from None
        if not same:
            raise UserError(
                f"{place} has the results of other weights or settings of the model; remove it, or choose "
                "another folder with --output=DIR"
            )
        return results

    def add(self, key: str, result: Mapping[str, Any]) -> None:
        """Keeps one result, on the disk before this returns."""
        self.results[key] = dict(result)
        self._write({})

    def finish(self, report: SuiteReport) -> None:
        """Adds the report for programs to read."""
        self._write(report.as_json())

    def _write(self, more: Mapping[str, Any]) -> None:
        if not self._hosts.first:
            return
        content = {"format": _FORMAT, "identity": self.checkpoint, **more, "results": self.results}
        text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
        durable.write_file(self.place, text.encode())

# SPDX-License-Identifier: Apache-2.0
"""`kcmoe evaluate`: a checkpoint's metrics on a labelled task, by both protocols.

Settings that the gin files leave out are those of `config.gin` beside the checkpoint, so our own
checkpoints need no sizes here; those of T5X take a file of configs/runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kcmoe.config import arguments
from kcmoe.errors import UserError
from kcmoe.hosts import agreeing, joining
from kcmoe.io import durable

if TYPE_CHECKING:
    from kcmoe.config.data import DataConfig
    from kcmoe.config.gin_files import Macros
    from kcmoe.data.labelled import Example
    from kcmoe.evaluation.protocol import ProtocolResult, Questions
    from kcmoe.hosts.group import Hosts
    from kcmoe.inference.loading import Loaded
    from kcmoe.tasks.registry import Task

PROTOCOLS = ("rank", "generate")
SPLITS = ("train", "validation", "test")

_EPILOG = """\
protocols:
  rank      every label word is scored and the likeliest wins
  generate  the label word is generated and must match exactly, as published

examples:
  kcmoe evaluate --task=nsmc --gin.CHECKPOINT_PATH='"tiny"' --gin.DATA_DIR='"data"' --limit=2000
  kcmoe evaluate --gin.CHECKPOINT_PATH='"runs/nsmc_tiny/checkpoint_14000"' --gin.DATA_DIR='"data"'
  kcmoe evaluate --size=base --task=nsmc --gin_file=configs/runs/evaluate.gin --split=test \\
    --gin.CHECKPOINT_PATH='"gs://bucket/run/checkpoint_1001000"' --gin.EVAL_OUTPUT_DIR='"scores"'

  kcmoe evaluate --suite --checkpoint=runs/nsmc_tiny/checkpoint_14000 --gin.DATA_DIR='"data"'

The validation split is for choosing among checkpoints; read the test split once, at the end. The suite takes
each task's last one, test where it has labels, unless --split says another; it ranks, unless --protocol says
otherwise. Started again, it computes what is missing.
"""


def _parser() -> arguments.Parser:
    parser = arguments.Parser(
        prog="kcmoe evaluate",
        description="Task metrics of a checkpoint, with one standard error, as a table and JSON.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="the same as --gin.CHECKPOINT_PATH, without its quotes"
    )
    parser.add_argument("--split", choices=SPLITS, help="default: validation")
    parser.add_argument("--protocol", choices=(*PROTOCOLS, "both"), help="default: both")
    parser.add_argument(
        "--limit",
        type=arguments.between(int, 1, 10**12),
        metavar="N",
        help="only N examples, evenly spread over the split",
    )
    arguments.add_output(
        parser, "--predictions", help="also write every answer there, as JSON lines"
    )
    suite = parser.add_argument_group("all tasks")
    suite.add_argument(
        "--suite", action="store_true", help="every Korean task whose data are here, in one table"
    )
    parser.folders.append(
        suite.add_argument(
            "--output",
            metavar="DIR",
            help="where its JSON and picture go; default: EVAL_OUTPUT_DIR",
        )
    )
    suite.add_argument("--markdown", action="store_true", help="its table as Markdown")
    arguments.add_run_arguments(parser)
    joining.add_arguments(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `kcmoe evaluate --help`."""
    args, given = arguments.parse_with_gin(_parser(), argv)
    with joining.joined(joining.place(args)) as hosts:
        return _run(args, given, hosts)


def _run(args: argparse.Namespace, given: Macros, hosts: Hosts) -> int:
    logging.basicConfig(format="kcmoe evaluate: %(message)s")
    from kcmoe.checkpoint import run_config
    from kcmoe.config import fields as configs
    from kcmoe.config.inference import InferenceConfig
    from kcmoe.data.labelled import spread
    from kcmoe.evaluation import report as report_lib
    from kcmoe.inference import loading

    configs.check_all(given)
    place = args.checkpoint or given.require("CHECKPOINT_PATH")
    if args.checkpoint and given.get("CHECKPOINT_PATH", args.checkpoint) != args.checkpoint:
        raise UserError(
            f"--checkpoint={args.checkpoint}, but CHECKPOINT_PATH = {given['CHECKPOINT_PATH']!r}: give one"
        )
    if args.suite:
        from kcmoe.evaluation import suite

        if args.predictions:
            raise UserError("--predictions is for one task; leave out --suite")
        return suite.main(args, given, place, hosts)
    if args.output or args.markdown:
        raise UserError(
            "--output and --markdown are for --suite; EVAL_OUTPUT_DIR says the folder here"
        )
    found = loading.find(place, given=given)
    loading.refuse_addresses(found, given)
    checkpoint, macros = found.checkpoint, found.macros
    task, data, examples = _examples(macros, args.split or "validation")
    if warning := loading.unlearnt(checkpoint, run_config.recorded(checkpoint), task.name):
        logging.getLogger(__name__).warning(warning)
    model_dir = report_lib.model_dir_of(checkpoint)
    chosen_folder = InferenceConfig.from_macros(macros).eval_output_dir
    folder = report_lib.output_folder(model_dir, chosen_folder)
    chosen = spread(examples, args.limit or len(examples))
    split = args.split or "validation"
    written = report_lib.place(folder, checkpoint, task.name, split, len(chosen), len(examples))
    loaded = loading.load(found)
    agreeing.agree(hosts, lambda: _facts(loaded, chosen))
    report, questions = _evaluate(loaded, task, chosen, len(examples), args, data, model_dir, hosts)
    if not hosts.first:
        return 0
    print(report.table())
    report_lib.write(report, written)
    print(f"written: {written}")
    if args.predictions:
        _write_predictions(args.predictions, chosen, questions, report.outcomes)
        print(f"answers: {args.predictions}")
    return 0


def _examples(macros: Any, split: str) -> tuple[Task, DataConfig, list[Example]]:
    from kcmoe.config.data import DataConfig
    from kcmoe.data.labelled import labelled_examples
    from kcmoe.tasks.registry import one_task

    data = DataConfig.from_macros(macros)
    task = one_task(macros)
    if task.kind != "labelled":
        raise UserError(
            f"task {task.name} has no labels to evaluate; its held-out loss is in metrics.jsonl of the "
            "run. Set MIXTURE_OR_TASK_NAME to a task with labels"
        )
    return task, data, labelled_examples(task, split, data.data_dir, strict=data.strict)


def _evaluate(
    loaded: Loaded,
    task: Task,
    examples: Sequence[Example],
    of_examples: int,
    args: argparse.Namespace,
    data: DataConfig,
    model_dir: str,
    hosts: Hosts,
) -> tuple[Any, Questions]:
    from tqdm import tqdm

    from kcmoe.evaluation.protocol import Questions
    from kcmoe.evaluation.report import Report
    from kcmoe.evaluation.selection import selection
    from kcmoe.inference.answers import answers
    from kcmoe.inference.divided import DividedModel

    longest = loaded.lengths["inputs"]
    model = DividedModel(loaded.compute, longest, loaded.tokens, hosts=hosts)
    questions = Questions(task, examples, loaded.vocabulary, longest)
    outcomes: dict[str, ProtocolResult] = {}
    seconds: dict[str, float] = {}
    for protocol in _protocols(args.protocol or "both", bool(answers(task)), task):
        started_s = time.monotonic()
        shown = None if hosts.first else True
        with tqdm(total=len(examples), desc=protocol, unit="line", disable=shown) as bar:
            if protocol == "rank":
                outcomes[protocol] = questions.rank(model, bar.update)
            else:
                longest = loaded.lengths["targets"]
                outcomes[protocol] = questions.generate(model, longest, bar.update)
        seconds[protocol] = time.monotonic() - started_s
        if hosts.first and not sys.stderr.isatty():
            print(
                f"{protocol}: {len(examples):,} lines in {seconds[protocol]:.0f} s", file=sys.stderr
            )
    report = Report(
        checkpoint=loaded.checkpoint,
        step=loaded.step,
        task=task.name,
        split=args.split or "validation",
        examples=len(examples),
        of_examples=of_examples,
        settings={"routing": loaded.config.routing, "activations": loaded.config.activation_dtype},
        outcomes=outcomes,
        seconds=seconds,
        selection=selection(task, loaded.macros, data, model_dir),
    )
    return report, questions


def _facts(loaded: Loaded, examples: Sequence[Example]) -> dict[str, str]:
    """What all hosts must have alike."""
    from kcmoe.io import hashing

    texts = [[one.inputs_text, one.target_text] for one in examples]
    return {
        **agreeing.program({}),
        "the checkpoint": f"{os.path.basename(loaded.checkpoint)} at step {loaded.step}",
        "the model": repr(loaded.config),
        "the vocabulary": loaded.vocabulary.digest,
        "the data": hashing.facts_digest({"examples": texts})[:16],
    }


def _protocols(wanted: str, can_rank: bool, task: Task) -> list[str]:
    if wanted == "rank" and not can_rank:
        raise UserError(f"task {task.name} has no answers to rank; use --protocol=generate")
    return [one for one in PROTOCOLS if wanted in (one, "both") and (can_rank or one != "rank")]


def _write_predictions(
    path: str, examples: Sequence[Example], questions: Questions, outcomes: Any
) -> None:
    lines = []
    for i, example in enumerate(examples):
        line = {
            "id": example.id,
            "inputs": example.inputs_text,
            "target": questions.true[i],
            **{name: outcome.answers[i] for name, outcome in outcomes.items()},
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    durable.write_file(Path(path), "".join(lines).encode())

# SPDX-License-Identifier: Apache-2.0
"""`kcmoe predict`: lines in, JSON lines out, in the same order.

Everything that can be wrong with the input is found before the first line of output. Results are written
while later lines are still being computed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from kcmoe.config import arguments
from kcmoe.errors import UserError
from kcmoe.io.wording import listed

if TYPE_CHECKING:
    from kcmoe.inference.asking import Question
    from kcmoe.inference.loading import Found
    from kcmoe.inference.predict import LanguageModel

_log = logging.getLogger(__name__)
_LINES_AT_ONCE = 8192  # results held back until all of these are done, so that buckets fill

_EPILOG = """\
examples:
  echo '정말 재밌어요' | kcmoe predict --task=nsmc
  {"text": "정말 재밌어요", "label": "긍정적", "probabilities": {"부정적": 0.02, "긍정적": 0.98}}

  echo '오늘 <extra_id_0> 좋다' | kcmoe predict --checkpoint=runs/tiny/checkpoint_10000 --task=generate
  {"text": "오늘 <extra_id_0> 좋다", "generated": "<extra_id_0> 날씨가 <extra_id_1>"}

  echo '오늘 <extra_id_0> 좋다' | kcmoe predict --task=fill --beam_size=2
  {"text": "오늘 <extra_id_0> 좋다", "candidates": [{"text": "오늘 날씨가 좋다", "fills": {...}, ...}, ...]}

  kcmoe predict reviews.csv --task=nsmc --columns=review --output=labelled.csv
  all columns of reviews.csv, then label, probability_부정적, probability_긍정적

With --output FILE may be of any size: text, CSV, TSV, JSON lines or parquet (compressed as well), and the
ending of OUT says which of these is written. Stopped in whatever way, the same command goes on where it was;
OUT appears when it is complete. Rows without text get no answer.

Without --output, input is UTF-8, one text per line, and no table; tasks with several columns (kornli) take
them separated by tabs. An empty line is an empty text, so output line N belongs to input line N. Where
several labels may be right (kmhas), "per_label" says of each how likely it is one of them.
"""


def _parser() -> arguments.Parser:
    parser = arguments.Parser(
        prog="kcmoe predict",
        description="Labels with probabilities, or generated text, for the lines of a file.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="dir/checkpoint_N, or dir for its newest; default: tiny, the model that ships",
    )
    parser.add_argument(
        "--task",
        help="a task with labels, e.g. nsmc; or generate; or fill, which fills <extra_id_0>. Default: what "
        "the run was trained for",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="gin file with the sizes, if config.gin is not beside it"
    )
    parser.add_argument(
        "--beam_size",
        type=arguments.between(int, 1, 1024),
        help="of --task=generate (default 1, greedy); of --task=fill, how many candidates (default 4)",
    )
    parser.add_argument(
        "--max_tokens",
        type=arguments.between(int, 1, 1 << 16),
        help="longest answer of --task=generate and fill",
    )
    files = parser.add_argument_group("files of any size")
    files.add_argument(
        "--output", metavar="FILE", help="write all columns and the answers there, resumable"
    )
    files.add_argument(
        "--columns",
        metavar="A,B",
        help="columns that the task reads, in its order; default: those of the task's names, or text",
    )
    files.add_argument(
        "--encoding", default="utf-8", help="of a text file, e.g. cp949 (default utf-8)"
    )
    files.add_argument(
        "--lenient", action="store_true", help="leave damaged places out and count them"
    )
    files.add_argument(
        "--processes",
        type=arguments.between(int, 1, 256),
        default=1,
        metavar="N",
        help="processes that compute, each with the model (default 1)",
    )
    arguments.add_overwrite(files)
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="- is standard input")
    arguments.add_gin_arguments(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `kcmoe predict --help`."""
    parser = _parser()
    args, macros = arguments.parse_with_gin(parser, argv)
    logging.basicConfig(format="kcmoe predict: %(message)s")
    from kcmoe.checkpoint import shipped
    from kcmoe.inference import asking, loading, texts

    notes = []  # said when nothing is left to be refused
    if args.checkpoint is None:
        args.checkpoint = shipped.DEFAULT
        notes = [f"no --checkpoint, so it is {shipped.DEFAULT}, the model that ships"]
    found = loading.find(args.checkpoint, args.config, macros)
    notes += _check_choice(args, found.macros)
    asked = asking.question(found, args.task, args.beam_size, args.max_tokens)
    if args.output is not None:
        return _to_file(args, found, asked, notes)
    _refuse_file_options(args, parser)
    if args.file != "-":
        _refuse_tables(args.file, asked)
    if args.file == "-" and os.isatty(0):
        print("kcmoe predict: reading lines from the terminal; Ctrl-D ends them", file=sys.stderr)
    lines = texts.read_lines(args.file)
    output = _utf8(sys.stdout)
    if not lines:
        place = "standard input" if args.file == "-" else args.file
        print(f"kcmoe predict: {place} has no lines", file=sys.stderr)
        return 0
    _refuse_header(lines[0], asked)
    for note in notes:
        print(f"kcmoe predict: {note}", file=sys.stderr)

    from kcmoe.inference.predict import LanguageModel

    model = LanguageModel(loading.load(found))
    for result in _results(model, lines, asked):
        print(json.dumps(result, ensure_ascii=False), file=output, flush=True)
    return 0


def _to_file(args: argparse.Namespace, found: Found, asked: Question, notes: Sequence[str]) -> int:
    from kcmoe.inference import file_job, files

    if args.file == "-":
        raise UserError("--output needs a FILE, which can be read again; for a pipe write > OUT")
    job = file_job.Job(
        found=found,
        asked=asked,
        file=args.file,
        output=args.output,
        columns=_columns(args.columns),
        encoding=args.encoding,
        lenient=args.lenient,
        overwrite=args.overwrite,
        processes=args.processes,
        notes=tuple(notes),
    )
    print(files.run(job))
    return 0


def _columns(given: str | None) -> tuple[str, ...]:
    names = tuple(given.split(",")) if given is not None else ()
    if not all(names):
        raise UserError(f"--columns={given} names no column in one place: give names as in A,B")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"--columns={given} names {twice[0]} twice: each text is in a column of its own"
        )
    return names


def _refuse_file_options(args: argparse.Namespace, parser: arguments.Parser) -> None:
    for name in ("columns", "encoding", "lenient", "overwrite", "processes"):
        if getattr(args, name) != parser.get_default(name):
            raise UserError(f"--{name} is for a file with --output=OUT")


_AS_TABLE = "add --output=OUT.csv (.tsv, .jsonl, .parquet)"


def _refuse_tables(file: str, asked: Question) -> None:
    """Refuses what its ending calls a table: read as lines, names and other columns would be answered."""
    from kcmoe.data import formats

    ending = formats.ending_of(file)
    of_bytes = formats.packing_of(file) or ending in (".parquet", ".arrow")
    # Several columns stand between tabs on standard input, too.
    if of_bytes or ending in (".csv", ".jsonl") or (ending == ".tsv" and len(asked.columns) == 1):
        way = "" if of_bytes else "; if each of its lines is a text, give them as standard input, "
        raise UserError(
            f"{file} is not plain lines but a table: {_AS_TABLE}, and its columns are read"
            f"{way}{'' if of_bytes else f'< {file}'}"
        )


def _refuse_header(line: str, asked: Question) -> None:
    """Refuses a table whose ending does not tell, as that of NSMC's files, before its names are answered."""
    from kcmoe.io.given import composed

    cells = [composed(cell.strip()) for cell in line.split("\t")]
    if len(cells) > 1 and {composed(name) for name in asked.columns} <= set(cells):
        raise UserError(
            f"the first line has the names of columns ({listed(cells)}), so this is a table: give it as a "
            f"FILE and {_AS_TABLE}, or leave that line out and keep {', '.join(asked.columns)} alone"
        )


def _check_choice(args: argparse.Namespace, settings: Mapping[str, Any]) -> list[str]:
    """Finds a misspelt task before the weights are read; returns what to say of one never learnt."""
    from kcmoe.checkpoint import run_config
    from kcmoe.errors import near_misses
    from kcmoe.inference import loading
    from kcmoe.inference.asking import FREE
    from kcmoe.tasks.registry import TASKS

    own = settings.get("MIXTURE_OR_TASK_NAME")
    learnt = run_config.learnt_tasks(settings)
    if args.task is None and own is None and learnt:
        raise UserError(
            f"{args.checkpoint} has learnt several tasks; say which, --task={learnt[0]}: "
            f"{', '.join((*learnt, *FREE))}"
        )
    known = dict.fromkeys((*FREE, *([own] if own else []), *TASKS))
    if args.task is not None and args.task not in known:
        close = near_misses(args.task, known)
        raise UserError(
            f"no task is called {args.task}.{close} Known: {', '.join(known)}; a task of one's own needs its "
            "gin file, --gin_file=FILE, or that of the run, --config=RUN/config.gin"
        )
    if args.task in (None, *FREE):
        return []
    warning = loading.unlearnt(args.checkpoint, settings, args.task)
    return [warning] if warning else []


def _utf8(stream: TextIO) -> TextIO:
    """Output is UTF-8 whatever the locale says; JSON is."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8")
    return stream


@contextlib.contextmanager
def _bar(lines: int) -> Iterator[Callable[[int], object] | None]:
    """A progress bar, on a terminal only, and only when there is something to wait for."""
    if lines < 100:
        yield None  # importing tqdm takes longer than a few lines
        return
    from tqdm import tqdm

    with tqdm(total=lines, disable=None, unit="line", file=sys.stderr) as bar:
        yield bar.update


def _results(
    model: LanguageModel, lines: Sequence[str], asked: Question
) -> Iterator[Mapping[str, Any]]:
    """One JSON object per line, in order; all lines are checked and encoded before the first."""
    from kcmoe.inference import asking

    empty = sum(not line.strip() for line in lines)
    if empty:
        _log.warning("%s of %s lines are empty", f"{empty:,}", f"{len(lines):,}")
    task = asked.task
    texts = lines if task is None else _prompts(task, lines)
    for number, line in enumerate(lines if task is None else (), 1):
        try:
            asked.check((line,), model.loaded.vocabulary)
        except UserError as error:
            raise UserError(f"line {number}: {error}") from None
    ids = model.encode(texts, sentinels=task is None, name="lines")
    with _bar(len(lines)) as advance:
        for start in range(0, len(lines), _LINES_AT_ONCE):
            part = slice(start, start + _LINES_AT_ONCE)
            if asked.fills:
                filled = asking.filled(model, asked, lines[part], ids[part], advance)
                for text, candidates in zip(lines[part], filled, strict=True):
                    found = [one.as_json() for one in candidates] if text.strip() else []
                    yield {"text": text, "candidates": found}
                continue
            if task is None or asked.generates:
                generated = model.generate_ids(
                    ids[part], asked.beam_size, max_tokens=asked.max_tokens, advance=advance
                )
                for text, answer in zip(lines[part], generated, strict=True):
                    yield {"text": text, "generated": answer}
                continue
            for text, prediction in zip(
                lines[part], model.classify_ids(ids[part], task, advance), strict=True
            ):
                yield {"text": text, **prediction.as_json()}


def _prompts(task: Any, lines: Sequence[str]) -> list[str]:
    from kcmoe.inference import texts

    columns = task.input_columns
    if len(columns) == 1:
        return texts.prompts(task, lines, "lines")
    rows = [line.split("\t") for line in lines]
    for number, row in enumerate(rows, 1):
        if len(row) != len(columns):
            raise UserError(
                f"line {number} has {len(row)} columns between tabs, but {task.name} needs "
                f"{len(columns)}: {', '.join(columns)}"
            )
    return texts.prompts(task, rows, "lines")

# SPDX-License-Identifier: Apache-2.0
"""`kcmoe tokenizer train|report|add-sentinels`: parses, calls, prints."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kcmoe.config import fields as config
from kcmoe.config.arguments import (
    ENCODING_HELP,
    Parser,
    add_gin_arguments,
    add_output,
    add_overwrite,
    between,
    parse_with_gin,
)
from kcmoe.errors import UserError, near_misses
from kcmoe.io import durable, remote, resources
from kcmoe.io.outputs import PICTURES

_USAGE = """usage: kcmoe tokenizer train|report|add-sentinels [options]

  train    learn a vocabulary from a corpus, no piece larger than a morpheme
  report   measure vocabularies on held-out text, side by side
  add-sentinels  append the sentinels that pretraining needs to a SentencePiece model of another project

examples:
  kcmoe tokenizer train --gin_file=configs/tokenizer/unigram_32k.gin --gin.DATA_DIR='"data"'
  kcmoe tokenizer report vocab/kcmoe_32k.model other.model --text=data/comments/validation.parquet

`kcmoe tokenizer train --help`, and so on, explain more."""

_TRAIN_EPILOG = """example:
  kcmoe tokenizer train --gin_file=configs/tokenizer/unigram_32k.gin --gin.DATA_DIR='"data"' \\
    --gin.TOKENIZER_CORPUS='["comments/train-*.parquet"]' --gin.TOKENIZER_OUTPUT='"vocab/mine.model"'

Writes mine.model, its twin mine.100extra.model with the sentinels, and mine.json, which records the
settings, versions and checksums. Prints the expected memory and time first. Needs kcmoe[tokenizer]."""

_REPORT_EPILOG = """example:
  kcmoe tokenizer report vocab/kcmoe_32k.model other.model \\
    --text=data/comments/validation.parquet --text=data/nsmc/test.parquet:document --plot=report.png

A text is a file with or without the name of its column, which otherwise is "text". Boundaries are
compared with MeCab's where it is installed (kcmoe[tokenizer])."""


_SENTINELS_EPILOG = """example:
  kcmoe tokenizer add-sentinels theirs.model vocabularies/theirs.100extra.model

The ids of all pieces stay. The model has to have been trained with --pad_id=0 --eos_id=1 --unk_id=2
--bos_id=-1. Use the result as VOCABULARY_FILE, with NUM_EMBEDDINGS at least its number of pieces."""


def main(argv: Sequence[str]) -> int:
    """Runs `kcmoe tokenizer`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    actions = {"train": _train, "report": _report, "add-sentinels": _add_sentinels}
    if argv[0] not in actions:
        hint = near_misses(argv[0], actions)
        raise UserError(f"no action {argv[0]}.{hint} Actions: train, report and add-sentinels")
    return actions[argv[0]](argv[1:])


def _train(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="kcmoe tokenizer train",
        description="Learns a morpheme-aware vocabulary.",
        epilog=_TRAIN_EPILOG,
    )
    add_gin_arguments(parser)
    parser.add_argument("--encoding", metavar="NAME", help=f"{ENCODING_HELP}; is TASK_ENCODING")
    add_overwrite(parser)
    args, macros = parse_with_gin(parser, argv)
    if not args.gin_file:
        raise UserError("no settings are given: add --gin_file=configs/tokenizer/unigram_32k.gin")

    from kcmoe.config.tokenizer import TokenizerConfig
    from kcmoe.tokenizer import trainer

    config.check_all(macros)
    if args.encoding:
        macros = macros.replace(TASK_ENCODING=args.encoding)
    settings = TokenizerConfig.from_macros(macros)
    trainer.check_outputs(settings, args.overwrite)
    started = time.monotonic()
    # A stop by the system cleans up as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = trainer.train(settings, lambda line: print(line, flush=True))
    finally:
        signal.signal(signal.SIGTERM, before)
    print(
        f"{result.model}, {result.twin} and {result.record} from {result.lines:,} lines in "
        f"{time.monotonic() - started:.0f} s; SentencePiece held {result.peak_bytes / 1e9:.2f} GB"
    )
    print(f"measure it with: kcmoe tokenizer report {result.model} --text=FILE")
    return 0


def _report(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="kcmoe tokenizer report",
        description="Measures vocabularies on text they have not seen.",
        epilog=_REPORT_EPILOG,
    )
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="SentencePiece models; ours if none"
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="FILE[:COLUMN]",
        help="held-out text; may be repeated",
    )
    parser.add_argument(
        "--lines",
        type=between(int, 0, 10**12),
        default=0,
        metavar="N",
        help="first N lines of each text",
    )
    parser.add_argument("--encoding", default="utf-8", metavar="NAME", help=ENCODING_HELP)
    parser.add_argument(
        "--lenient", action="store_true", help="leave damaged places out and count them"
    )
    add_output(parser, "--json", help="also write every measure here")
    add_output(parser, "--plot", help="also draw the measures, as .png or .svg", endings=PICTURES)
    args = parser.parse_args(argv)
    if not args.text:
        raise UserError(
            "no text is given: add --text=FILE, e.g. --text=data/comments/validation.parquet"
        )

    from kcmoe.data.tables import Tally
    from kcmoe.tokenizer import report, report_output

    models = args.models or [str(resources.find("vocab/kcmoe_32k.model"))]
    texts, tally = [], Tally()
    for text in args.text:
        texts.append(report.read_text(text, args.lines, args.encoding, not args.lenient, tally))
    if left_out := tally.summary():
        print(f"kcmoe tokenizer: {left_out}", file=sys.stderr)
    measures = [report.measure(model, text) for text in texts for model in models]
    print(report_output.tables(measures))
    if args.json:
        report_output.write_json(measures, Path(args.json))
    if args.plot:
        report_output.write_plot(measures, Path(args.plot))
    return 0


def _add_sentinels(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="kcmoe tokenizer add-sentinels",
        description="Appends sentinels to a SentencePiece model that has none.",
        epilog=_SENTINELS_EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="a SentencePiece model without sentinels")
    add_output(
        parser, "output", metavar="OUTPUT", help="the .model file to write", endings=[".model"]
    )
    parser.add_argument(
        "--count", type=between(int, 1, 10_000), default=100, help="sentinels (default: 100)"
    )
    args = parser.parse_args(argv)

    from kcmoe.tokenizer import model_file
    from kcmoe.vocabulary import Vocabulary

    before = Vocabulary(args.model)
    if before.num_sentinels:
        raise UserError(f"{args.model} has {before.num_sentinels} sentinels already")
    content = model_file.add_sentinels(remote.read_bytes(args.model), args.count)
    durable.write_file(Path(args.output), content)
    after = Vocabulary(args.output)
    print(
        f"{args.output}: {after.size:,} pieces, the last {after.num_sentinels:,} of them sentinels; use "
        f"it as VOCABULARY_FILE with NUM_EMBEDDINGS of at least {after.size:,}"
    )
    return 0

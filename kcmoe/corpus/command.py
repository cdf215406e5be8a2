# SPDX-License-Identifier: Apache-2.0
"""`kcmoe data list|download|prepare|inspect`: arguments and printing; the work is in the modules beside."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from kcmoe.config.arguments import (
    ENCODING_HELP,
    Parser,
    add_output,
    add_output_folder,
    add_run_arguments,
    between,
    parse_with_gin,
    seed,
)
from kcmoe.corpus.catalogue import DATA_SETS
from kcmoe.corpus.cleaning import MIN_CHARACTERS, RULES
from kcmoe.errors import UserError, near_misses
from kcmoe.io import outputs
from kcmoe.io.outputs import PICTURES

_EPILOG = """\
examples:
  kcmoe data list
  kcmoe data download nsmc kornli
  kcmoe data prepare 'raw/*.parquet' --output=data/comments --validation=5000
  kcmoe data inspect --task=nsmc --split=train --plot=lengths.png
`kcmoe data <action> --help` explains each.
"""


def main(argv: Sequence[str]) -> int:
    """Runs `kcmoe data`; returns the exit status."""
    actions = {"list": _list, "download": _download, "prepare": _prepare, "inspect": _inspect}
    parser = Parser(prog="kcmoe data", description="corpora and labelled sets", epilog=_EPILOG)
    parser.add_argument("action", metavar="list|download|prepare|inspect")
    args = parser.parse_args(argv[:1])
    if args.action not in actions:
        hint = near_misses(args.action, actions)
        raise UserError(f"no action {args.action}.{hint} Actions: {', '.join(actions)}")
    return actions[args.action](argv[1:])


def _data_dir(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("KCMOE_DATA_DIR", "data")
    parser.add_argument(
        "--data_dir", default=default, help=f"DATA_DIR of the runs (default {default})"
    )


def _list(argv: Sequence[str]) -> int:
    from kcmoe.corpus.download import presence

    parser = Parser(
        prog="kcmoe data list",
        description="what can be fetched, from where, under which licence, and whether it is here",
        epilog="example:\n  kcmoe data list --data_dir=data",
    )
    _data_dir(parser)
    args = parser.parse_args(argv)
    here = {each.name: presence(each, Path(args.data_dir)) for each in DATA_SETS.values()}
    name_width, width = max(map(len, here)), max(map(len, here.values()))
    for each in DATA_SETS.values():
        if each.by_hand:
            size, checked = "size not known", "not verified: no public checksum"
        elif each.bucket:
            size, checked = "size is asked of the bucket", "verified by the bucket's MD5"
        else:
            known = sum(file.size for file in each.files)
            unknown = sum(not file.size for file in each.files)
            more = f" and {unknown} file(s) of unknown size" if unknown else ""
            size, checked = f"{known / 1e6:.1f} MB{more}", "verified by git blob id"
        print(f"{each.name:<{name_width}} {here[each.name]:<{width}}  {each.about}")
        print(
            f"{'':<{name_width}} {each.licence}; {size}; {checked}; {each.bucket or each.homepage}"
        )
    return 0


def _download(argv: Sequence[str]) -> int:
    from kcmoe.corpus.download import data_set, download

    parser = Parser(
        prog="kcmoe data download",
        description="fetches sets from their official places, checks them and makes parquet of them",
        epilog=(
            "examples:\n  kcmoe data download nsmc korsts\n"
            "  kcmoe data download kornli --mirror=https://example.org/kcmoe\n"
            "A mirror holds <set>/<file name>. Proxies are taken from https_proxy and no_proxy.\n"
            "A cut download goes on where it stopped when started again."
        ),
    )
    parser.add_argument("sets", nargs="+", metavar="SET", help=", ".join(DATA_SETS))
    _data_dir(parser)
    parser.add_argument(
        "--mirror",
        action="append",
        default=[],
        metavar="URL",
        help="tried before the official place",
    )
    args = parser.parse_args(argv)
    sets = [data_set(name) for name in args.sets]
    outputs.check_folder(args.data_dir, "--data_dir")
    for each in sets:
        download(each, Path(args.data_dir), args.mirror)
    return 0


def _prepare(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="kcmoe data prepare",
        description=(
            "cleans, deduplicates and shuffles texts into zstd parquet with manifest.json, out of core;\n"
            "an interrupted run goes on when started again"
        ),
        epilog=(
            "examples:\n  kcmoe data prepare 'raw/*.parquet' comments.jsonl --output=data/comments "
            "--validation=5000 --memory=8GB\n"
            "  kcmoe data prepare 'raw/*.parquet' --output=data/comments "
            "--exclude=data/nsmc/test.parquet:document\n"
            "  kcmoe data prepare --sample --output=data/sample\n\nrules (KcBERT's), off with "
            "--without=RULE,…:\n" + "\n".join(f"  {name:<11}{text}" for name, text in RULES.items())
        ),
    )
    add = parser.add_argument
    add(
        "inputs",
        nargs="*",
        metavar="FILE",
        help="parquet, TSV, CSV, JSON lines or text; wildcards, gs://",
    )
    add("--sample", action="store_true", help="take the comments shipped with the package")
    add_output_folder(parser, "--output", required=True, help="folder of the shards")
    add("--column", default="text", help="the text (default text)")
    add("--encoding", default="utf-8", metavar="NAME", help=ENCODING_HELP)
    add("--without", default="", metavar="RULE,…", help="rules not to apply")
    count = between(int, 0, 10**12)
    add("--min_characters", type=count, default=MIN_CHARACTERS, help=f"default {MIN_CHARACTERS}")
    add(
        "--validation",
        type=count,
        default=0,
        metavar="ROWS",
        help="rows set apart as validation.parquet",
    )
    add(
        "--exclude",
        action="append",
        default=[],
        metavar="FILE[:COLUMN,…]",
        help="drop texts that, cleaned, equal exactly a cleaned text in these columns of FILE (default "
        "--column); may be repeated",
    )
    some = between(int, 1, 10**12)
    add("--shard_rows", type=some, default=1_000_000, help="rows per shard (default 1,000,000)")
    add(
        "--seed", type=between(int, -(2**63), 2**63 - 1), default=0, help="of the order (default 0)"
    )
    add("--memory", default="4GB", help="for the whole process (default 4GB)")
    add(
        "--workers",
        type=between(int, 1, 1024),
        default=os.cpu_count() or 1,
        help="cleaning processes (default: cores)",
    )
    add("--lenient", action="store_true", help="leave damaged places out and count them")
    args = parser.parse_args(argv)
    return _run_prepare(args)


def _run_prepare(args: argparse.Namespace) -> int:
    from kcmoe.corpus import exclusion
    from kcmoe.corpus.cleaning import Cleaner
    from kcmoe.corpus.prepare import Preparation, prepare
    from kcmoe.corpus.staging import Reading
    from kcmoe.data import tables

    if bool(args.inputs) == args.sample:
        raise UserError("give either input files or --sample")
    inputs = ["samples:comments.txt"] if args.sample else args.inputs
    rules = [rule for rule in args.without.split(",") if rule]
    cleaner = Cleaner.without(rules, min_characters=args.min_characters)
    plan = Preparation(
        files=tables.expand(inputs),
        output=Path(args.output),
        reading=Reading(cleaner, args.column, args.encoding, not args.lenient, args.seed),
        shard_rows=args.shard_rows,
        validation_rows=args.validation,
        exclude=[each for argument in args.exclude for each in exclusion.parse(argument)],
        memory_bytes=parse_bytes(args.memory),
        workers=args.workers,
    )
    result = prepare(plan)
    print(f"{args.output}: {result['rows_kept']:,} of {result['rows_read']:,} texts in")
    for shard in result["shards"]:
        print(f"  {shard['file']}  {shard['rows']:,} rows, {shard['bytes']:,} bytes")
    dropped = ({"excluded": 0} if args.exclude else {}) | result["dropped"]
    for reason, count in dropped.items():
        of = ""
        if reason == "excluded" and "excluded_texts" in result:
            of = f" ({result['excluded_texts']:,} texts of {', '.join(args.exclude)})"
        print(f"  left out: {count:,} {reason}{of}")
    print(f"  {args.output}/manifest.json has counts, checksums and settings")
    return 0


def parse_bytes(text: str) -> int:
    """Bytes of "500MB", "4GB" or "2.5GiB"."""
    units = {"": 1, "K": 10, "M": 20, "G": 30, "T": 40}
    plain = text.upper().removesuffix("B").removesuffix("I")
    unit = plain[-1:] if plain[-1:].isalpha() else ""
    try:
        return int(float(plain.removesuffix(unit)) * (1 << units[unit] if unit else 1))
    except (ValueError, KeyError, OverflowError):
        raise UserError(f"--memory={text} is not a size; write 500MB or 4GB") from None


def _inspect(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="kcmoe data inspect",
        description="rows as the model gets them, lengths, truncation, packing, duplicates across splits",
        epilog=(
            "examples:\n  kcmoe data inspect --task=sample_pretrain\n"
            "  kcmoe data inspect --task=nsmc --gin.DATA_DIR='\"data\"' "
            "--split=test --plot=nsmc.png"
        ),
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--split", default="train", help="train, validation or test (default train)"
    )
    count = between(int, 0, 10**12)
    parser.add_argument("--examples", type=count, default=3, help="rows to show (default 3)")
    add_output(
        parser, "--plot", help="write the length histograms as .png or .svg", endings=PICTURES
    )
    parser.add_argument(
        "--scan_rows", type=count, default=1_000_000, help="rows per split searched for duplicates"
    )
    args, macros = parse_with_gin(parser, argv)
    from kcmoe.config import fields as config
    from kcmoe.config.data import DataConfig
    from kcmoe.corpus import inspection
    from kcmoe.data.features import Lengths
    from kcmoe.tasks.registry import Mixture, get_task
    from kcmoe.vocabulary import Vocabulary

    config.check_all(macros)
    data = DataConfig.from_macros(macros)
    vocabulary = Vocabulary(data.vocabulary_file)
    lengths = Lengths.of(macros.require("TASK_FEATURE_LENGTHS"))
    task = get_task(macros)
    parts = [part for part, _ in task.weights] if isinstance(task, Mixture) else [task]
    all_findings = []
    for part in parts:
        findings = inspection.inspect(
            part,
            args.split,
            lengths,
            data,
            vocabulary,
            seed=seed(macros),
            shown=args.examples,
            scan_rows=args.scan_rows,
        )
        all_findings.append(findings)
        print(f"== {findings.title}")
        print("\n".join(findings.lines))
        for name, values in findings.lengths.items():
            print(f"tokens of {name}:")
            print("\n".join(inspection.histogram(values, findings.limits[name])))
        print("".join(f"{line}\n" for line in findings.shown), end="")
    if args.plot:
        inspection.plot(all_findings, args.plot)
        print(f"{args.plot} has the histograms")
    return 0

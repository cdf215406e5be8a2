# SPDX-License-Identifier: Apache-2.0
"""`kcmoe checkpoint inspect|convert`: argument parsing and printing only."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kcmoe.config.arguments import Parser
from kcmoe.errors import UserError

_EPILOG = """examples:
  kcmoe checkpoint inspect runs/nsmc/checkpoint_1000
  kcmoe checkpoint inspect tiny
  kcmoe checkpoint inspect gs://bucket/run/checkpoint_1000000 --no-finite --json
  kcmoe checkpoint convert pod/checkpoint_1000 laptop/checkpoint_1000 --format=t5x_orbax
  kcmoe checkpoint convert runs/nsmc/checkpoint_1000 exported --format=safetensors --params_only
  kcmoe checkpoint convert runs/nsmc/checkpoint_1000 my-model --format=huggingface
  kcmoe checkpoint convert my-model tuned/checkpoint_1000 --format=t5x_orbax
"""


def _parser() -> Parser:
    from kcmoe.checkpoint.formats import FORMATS

    parser = Parser(
        prog="kcmoe checkpoint",
        description="Shows what a checkpoint holds, or converts it to another format.",
        epilog=_EPILOG,
    )
    verbs = parser.add_subparsers(dest="action", required=True, metavar="inspect|convert")
    show = verbs.add_parser(
        "inspect", help="tree, sizes, step, format, finite or not", epilog=_EPILOG
    )
    show.add_argument("path", help="a checkpoint's folder, here or gs://..., or tiny, which ships")
    show.add_argument(
        "--finite",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read every value: are they finite, do the checksums agree (default: yes)",
    )
    show.add_argument("--json", action="store_true", help="print JSON instead of a text")
    change = verbs.add_parser(
        "convert",
        help="write it in another format, leaf by leaf, in little memory",
        epilog=_EPILOG,
    )
    change.add_argument("source", help="a checkpoint's folder, here or gs://..., or tiny")
    change.add_argument(
        "destination", help="the new folder; T5X restores only folders named checkpoint_<step>"
    )
    change.add_argument("--format", required=True, help=f"one of {', '.join(FORMATS)}")
    change.add_argument(
        "--params_only",
        action="store_true",
        help="leave the optimizer state behind; averages of the weights (EMA_DECAY) take their place",
    )
    change.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="dtype of the parameters (default: as they are)",
    )
    change.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="the vocabulary's file (default: the recorded one; only huggingface)",
    )
    return parser


def main(argv: list[str]) -> int:
    """Runs the verb. Returns 0; a checkpoint with faults raises `UserError` after it was shown."""
    args = _parser().parse_args(argv)
    return _inspect(args) if args.action == "inspect" else _convert(args)


def _inspect(args: argparse.Namespace) -> int:
    from kcmoe.checkpoint import inspection
    from kcmoe.checkpoint.base import describe_problems
    from kcmoe.checkpoint.reading import open_checkpoint

    with _progress("reading") as progress:
        found = inspection.inspect(open_checkpoint(args.path), args.finite, progress)
    print(json.dumps(found.to_json(), indent=1) if args.json else inspection.render(found))
    sys.stdout.flush()
    if found.faults:
        raise UserError(describe_problems(f"{found.path} is not sound", found.faults))
    return 0


def _convert(args: argparse.Namespace) -> int:
    from kcmoe.checkpoint import formats
    from kcmoe.checkpoint.storage import step_of
    from kcmoe.checkpoint.writing import convert

    started_s = time.monotonic()
    with _progress("converting") as progress:
        path = convert(
            args.source,
            args.destination,
            args.format,
            params_only=args.params_only,
            dtype=args.dtype,
            vocabulary=args.vocabulary,
            progress=progress,
        )
    print(f"wrote {path} ({args.format}) in {time.monotonic() - started_s:.1f} s")
    if formats.named(args.format).read_by_t5x and step_of(path) is None:
        print(f"T5X restores only folders named checkpoint_<step>: rename {path} for that")
    return 0


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int], Callable[[int], object]]]:
    """Gives a function that starts a progress bar of so many bytes and returns its advance."""
    from tqdm import tqdm

    bars: list[Any] = []

    def start(total: int) -> Callable[[int], object]:
        bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None, leave=False)
        bars.append(bar)
        return lambda count: bar.update(count)

    try:
        yield start
    finally:
        for bar in bars:
            bar.close()

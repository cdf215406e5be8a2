# SPDX-License-Identifier: Apache-2.0
"""Command-line parsing shared by every verb: one-line errors and gin flags spelled as T5X spells them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from kcmoe.config import gin_files, run_files
from kcmoe.errors import UserError, near_misses
from kcmoe.io import given, outputs
from kcmoe.io.wording import shown

ENCODING_HELP = "of text files (default utf-8); of single ones FILE=NAME, e.g. utf-8,old*.txt=cp949"
# Arguments and macros that are one path each; patterns and "FILE:COLUMN" are seen to where they are read.
_PATH_METAVARS = ("FILE", "DIR", "MODEL", "MODEL_DIR")
_PATH_NAMES = ("path", "source", "destination", "data_dir", "checkpoint", "output")
PATH_MACROS = (
    "CACHE_DIR",
    "CHECKPOINT_PATH",
    "DATA_DIR",
    "EVAL_OUTPUT_DIR",
    "INFER_OUTPUT_DIR",
    "INITIAL_CHECKPOINT_PATH",
    "MODEL_DIR",
    "TEACHER",
    "TOKENIZER_OUTPUT",
    "VOCABULARY_FILE",
)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that keeps the layout of its epilog and reports mistakes as `UserError`."""

    def __init__(self, **kwargs: object):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.files: list[
            tuple[argparse.Action, Collection[str]]
        ] = []  # to write, and their endings
        self.folders: list[argparse.Action] = []  # to write to

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As `ArgumentParser`; paths are those that are meant, see `given.path`."""
        found, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            if action.metavar in _PATH_METAVARS or action.dest in _PATH_NAMES:
                value = getattr(found, action.dest, None)
                if isinstance(value, str):
                    setattr(found, action.dest, _path(action, value))
                elif isinstance(value, list):
                    setattr(found, action.dest, [_path(action, each) for each in value])
        if isinstance(text := getattr(found, "encoding", None), str):
            given.check_encoding("--encoding", text)
        for action, endings in self.files:
            if (place := getattr(found, action.dest)) is not None:
                flag, over = "".join(action.option_strings), found.overwrite
                outputs.check_file(place, flag, overwrite=over, endings=endings)
        for action in self.folders:
            if (place := getattr(found, action.dest)) is not None:
                outputs.check_folder(place, "".join(action.option_strings))
        return found, rest

    def error(self, message: str) -> NoReturn:
        options = [option for action in self._actions for option in action.option_strings]
        hint = ""
        if message.startswith("unrecognized arguments: "):
            hint = near_misses(message.split()[2].partition("=")[0], options)
        raise UserError(f"{message}.{hint} See `{self.prog} --help`")


def _path(action: argparse.Action, text: str) -> str:
    try:
        return given.path(text)
    except UserError as error:
        name = "".join(action.option_strings) or action.metavar or action.dest
        raise UserError(f"{name}={shown(text)}: {error}") from None


def add_gin_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the three gin flags; `--gin.NAME=VALUE` appears in the help and is taken by `parse_with_gin`."""
    group = parser.add_argument_group(
        "gin", "settings; later ones win, --gin.NAME=VALUE over files"
    )
    group.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="a gin file; may be repeated",
    )
    group.add_argument(
        "--gin.NAME",
        dest="gin_bindings",
        action="append",
        default=[],
        metavar="VALUE",
        help="overrides one macro, e.g. --gin.BATCH_SIZE=64 --gin.MODEL_DIR='\"dir\"'; may be repeated",
    )
    group.add_argument(
        "--gin_search_paths", default="", metavar="A,B", help="further folders for gin files"
    )


def add_overwrite(parser: argparse._ActionsContainer) -> None:
    """Adds `--overwrite`, without which no output that exists is replaced."""
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist already")


def add_output(
    parser: Parser, name: str, *, help: str, metavar: str = "FILE", endings: Collection[str] = ()
) -> None:
    """Adds an argument that names a file to write, and `--overwrite`.

    That it can be written, and is not there already, is found while arguments are parsed.
    """
    parser.files.append((parser.add_argument(name, metavar=metavar, help=help), endings))
    if all(action.dest != "overwrite" for action in parser._actions):
        add_overwrite(parser)


def add_output_folder(parser: Parser, name: str, *, help: str, required: bool = False) -> None:
    """Adds an option that names a folder to write to, which may be there; checked as a file is."""
    parser.folders.append(parser.add_argument(name, metavar="DIR", help=help, required=required))


def between(kind: type[float], least: float, most: float) -> Callable[[str], float]:
    """Returns what a flag takes as its `type`: a number of that kind, int or float, in that range."""
    name = "a whole number" if kind is int else "a number"

    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {name}") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not {name} from {least:,} to {most:,}")
        return value

    return number


class _Named(argparse.Action):
    """`--size=tiny`: the gin file of that name, at its place among those of `--gin_file`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        kind = str(option_string).removeprefix("--")
        namespace.gin_file = [*namespace.gin_file, run_files.named(kind, values)]


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the gin flags, and `--size` and `--task`, which are short for two of `--gin_file`."""
    add_gin_arguments(parser)
    group = parser.add_argument_group("short for --gin_file, read in the order given")
    for kind, example in (("size", "tiny"), ("task", "nsmc")):
        group.add_argument(
            f"--{kind}",
            dest="gin_file",
            action=_Named,
            default=[],
            metavar="NAME",
            help=f"configs/{kind}s/NAME.gin, e.g. --{kind}={example}",
        )


def seed(macros: gin_files.Macros) -> int:
    """RANDOM_SEED for what needs no other setting of a run, 0 if there is none; `UserError` as in a run."""
    value = macros.get("RANDOM_SEED", 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise UserError(
            f"{macros.where('RANDOM_SEED')}: RANDOM_SEED = {value!r}, but it must be a whole number from "
            f"0 to {2**32 - 1:,}"
        )
    return value


def parse_with_gin(
    parser: argparse.ArgumentParser, argv: Sequence[str], base: Sequence[str] = ()
) -> tuple[argparse.Namespace, gin_files.Macros]:
    """Parses `argv` and reads the gin files that it names.

    Args:
      parser: the verb's parser, on which `add_gin_arguments` or `add_run_arguments` was called.
      argv: its arguments.
      base: gin files read first, whose settings every file may override.

    Returns:
      The namespace, and the macros of `base`, the files and the overrides, in that order.
    """
    bindings, rest = [], []
    words = iter(argv)
    for word in words:
        if not word.startswith("--gin."):
            rest.append(word)
            continue
        binding = word.removeprefix("--gin.")
        if "=" not in binding:
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise UserError(f"--gin.{binding} needs a value: --gin.{binding}=VALUE")
            binding = f"{binding}={value}"
        bindings.append(binding)
    args = parser.parse_args(rest)
    search_paths = [given.path(path) for path in args.gin_search_paths.split(",") if path]
    macros = gin_files.parse([*base, *args.gin_file], bindings, search_paths)
    return args, macros.changed({name: given.path for name in PATH_MACROS})

# SPDX-License-Identifier: Apache-2.0
"""Reads gin files made of plain macros, the form that both engines share.

The syntax is gin-config's own (its parser is used), restricted to `NAME = value`, `%OTHER` and
`include`. Plain macros are what T5X runs override on the command line, so one run file serves both
engines; bindings such as `trainer.Trainer.x = 1` belong to `configs/t5x/` and are refused here.
This file knows syntax and places, not what any name means: see `fields.py` for that.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kcmoe.config import run_files
from kcmoe.errors import UserError, near_misses
from kcmoe.io import remote, resources
from kcmoe.io.wording import first_line, shown


@dataclasses.dataclass(frozen=True)
class _Reference:
    """`%NAME`, not yet looked up."""

    name: str


class _Unusable:
    """`@configurable`: only T5X can build it. Harmless until somebody asks for its value."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One macro as written: its value and the place that set it."""

    value: Any
    where: str


class Macros(Mapping[str, Any]):
    """Resolved macros by name, each knowing where it was set.

    Iteration covers macros that have a value; names left at `%gin.REQUIRED` are in `required`, those that
    are a `@configurable` in `unusable`, both with the place that says so.
    """

    def __init__(self, settings: Mapping[str, Setting]):
        self._settings = dict(settings)
        self.referenced = frozenset(
            name for setting in settings.values() for name in _references(setting.value)
        )
        self._values: dict[str, Any] = {}
        self.required: dict[str, str] = {}
        self.unusable: dict[str, str] = {}
        for name, setting in self._settings.items():
            if setting.value == _Reference("gin.REQUIRED"):
                self.required[name] = setting.where
            elif isinstance(setting.value, _Unusable):
                self.unusable[name] = setting.where
            else:
                self._values[name] = self._resolve(setting.value, setting.where, (name,))

    def _resolve(self, value: Any, where: str, path: tuple[str, ...]) -> Any:
        if isinstance(value, _Reference):
            if value.name in path:
                chain = " -> ".join((*path, value.name))
                raise UserError(f"{where}: gin macros refer to each other in a circle: {chain}")
            setting = self._settings.get(value.name)
            if setting is None or isinstance(setting.value, _Unusable):
                hint = near_misses(value.name, self._settings)
                raise UserError(f"{where}: %{value.name} has no value.{hint} Set {value.name} = …")
            if setting.value == _Reference("gin.REQUIRED"):
                raise UserError(_missing(value.name, setting.where))
            return self._resolve(setting.value, setting.where, (*path, value.name))
        if isinstance(value, dict):
            return {k: self._resolve(v, where, path) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._resolve(v, where, path) for v in value)
        return value

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def where(self, name: str) -> str:
        """Where `name` was set: "file:line", "--gin.NAME" or "the program"."""
        return self._settings[name].where

    def require(self, name: str) -> Any:
        """Returns the value of `name`.

        Raises:
          UserError: if nothing sets it.
        """
        if name in self._values:
            return self._values[name]
        raise UserError(_missing(name, self.required.get(name), self._values))

    def replace(self, **values: Any) -> Macros:
        """A copy with some values set, as if on the command line."""
        return self.updated(values)

    def updated(self, given: Mapping[str, Any], where: str = "the program") -> Macros:
        """A copy with the values of `given`; where they were set, `Macros` know themselves."""
        changed = {
            name: Setting(value, given.where(name) if isinstance(given, Macros) else where)
            for name, value in given.items()
        }
        return Macros({**self._settings, **changed})

    def changed(self, changes: Mapping[str, Callable[[str], str]]) -> Macros:
        """A copy in which texts are what `changes` makes of them; other values stay, and so do places."""
        settings = dict(self._settings)
        for name, change in changes.items():
            if isinstance(text := self._values.get(name), str):
                where = settings[name].where
                try:
                    settings[name] = Setting(change(text), where)
                except UserError as error:
                    raise UserError(f"{where}: {name} = {shown(text)}: {error}") from None
        return Macros(settings)


def _missing(name: str, where: str | None, candidates: Mapping[str, Any] = {}) -> str:
    asked = f" (required by {where})" if where else ""
    hint = near_misses(name, candidates)
    example = "'\"dir\"'" if name.endswith(("_DIR", "_PATH", "_FILE")) else "VALUE"
    return f"{name} is not set{asked}.{hint} Add --gin.{name}={example}"


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, _Reference):
        yield value.name
    elif isinstance(value, dict):
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)


def parse(
    files: Sequence[str | os.PathLike[str]] = (),
    bindings: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    *,
    texts: Mapping[str, str] | None = None,
    foreign: bool = False,
    includes: bool = True,
) -> Macros:
    """Reads gin files in order, then texts, then bindings; later settings win, as in gin.

    Args:
      files: paths, looked up in `search_paths`, the current folder and the shipped files; `gs://` works.
      bindings: "NAME=value" in gin syntax, as given after `--gin.`.
      search_paths: further folders for files and includes.
      texts: name for messages -> gin text, e.g. what `gin.config_str()` returns inside T5X.
      foreign: accept a T5X `config.gin`: keep its plain macros, pass over imports and bindings.
      includes: False for settings that came with a checkpoint, which may lead to no other file.

    Raises:
      UserError: for a file that is not there, a syntax error or (unless foreign) a binding.
    """
    reader = _Reader(
        [*search_paths, ".", *(str(root) for root in resources.roots())], foreign, includes
    )
    for file in files:
        reader.read_file(os.fspath(file), "--gin_file")
    for name, text in (texts or {}).items():
        reader.read_text(text, name, name)
    for binding in bindings:
        name = binding.partition("=")[0].strip()
        reader.read_text(binding, f"--gin.{binding}", f"--gin.{name}")
    return Macros(reader.settings)


class _Reader:
    """Collects settings statement by statement; keeps the stack of includes to refuse circles."""

    def __init__(self, search_paths: Sequence[str], foreign: bool, includes: bool):
        self.settings: dict[str, Setting] = {}
        self._search_paths = search_paths
        self._foreign, self._includes = foreign, includes
        self._open: list[str] = []

    def read_file(self, path: str, asked_by: str) -> None:
        found = self._find(path, asked_by)
        if found in self._open:
            raise UserError(f"{asked_by}: {path} includes itself")
        if not (self._includes or remote.is_remote(found) or os.path.isfile(found)):
            raise UserError(f"{path} is not a plain file")
        self._open.append(found)
        self.read_text(_read(found), path)
        self._open.pop()

    def _find(self, path: str, asked_by: str) -> str:
        if remote.is_remote(path) or os.path.isabs(path):
            return path
        candidates = [os.path.join(folder, path) for folder in self._search_paths]
        for candidate in candidates:
            if os.path.isfile(candidate):
                return os.path.realpath(candidate)
        for candidate in candidates:
            if os.path.lexists(candidate):
                return candidate  # a folder, a device or a pipe, which is refused when it is read
        if gone := run_files.successor(path):
            raise UserError(f"{asked_by}: {gone}")
        siblings = {
            os.path.join(os.path.dirname(path), name)
            for folder in self._search_paths
            for name in _listing(os.path.join(folder, os.path.dirname(path)))
            if name.endswith(".gin")
        }
        hint = near_misses(path, siblings)
        looked = ", ".join(dict.fromkeys(os.path.abspath(f) for f in self._search_paths))
        raise UserError(f"{asked_by}: no gin file {path} in {looked}.{hint}")

    def read_text(self, text: str, name: str, place: str | None = None) -> None:
        import tokenize

        from gin import config_parser  # here, so that --help needs no gin

        text = text.removeprefix("\ufeff")  # Windows' editors write a byte order mark
        try:
            for statement in config_parser.ConfigParser(text, _Delegate()):
                where = place or f"{name}:{statement.location.line_num}"
                self._take(statement, where, name, config_parser)
        except SyntaxError as error:
            detail = str(error.args[0]).strip().splitlines()[0]
            if "malformed node" in detail:
                detail = "neither a number, a text in quotes, a list nor a dictionary"
            line = f":{error.lineno}" if error.lineno and not place else ""
            raise UserError(
                f"{place or name}{line}: not gin syntax ({detail}); {_mend(text, error)}"
            ) from None
        except tokenize.TokenError:
            raise UserError(
                f"{place or name}: not gin syntax (a bracket, brace or quote is opened and not closed)"
            ) from None
        except (TypeError, ValueError, RecursionError, MemoryError) as error:
            reason = (
                f"a key cannot be a {str(error).split()[-1]}" if "unhashable" in str(error) else ""
            )
            raise UserError(
                f"{place or name}: not a value that gin can hold ({reason or 'too deep or too long'})"
            ) from None

    def _take(self, statement: Any, where: str, name: str, kinds: Any) -> None:
        if isinstance(statement, kinds.IncludeStatement):
            if not self._includes:
                raise UserError(
                    f"{where}: settings that came with a checkpoint may not include a file, and "
                    f"this asks for {statement.filename}; write what you want of it into {name}"
                )
            self.read_file(statement.filename, where)
        elif isinstance(statement, kinds.BindingStatement) and not (
            statement.scope or statement.arg_name
        ):
            self.settings[statement.selector] = Setting(statement.value, where)
        elif not self._foreign:
            raise UserError(
                f"{where}: only plain macros (NAME = value) and include are read here; bindings and "
                "imports belong to configs/t5x/ and run with t5x. The same settings without them are "
                "in the files of configs/runs/"
            )


def _mend(text: str, error: SyntaxError) -> str:
    """Returns how to write the value in the line of the error."""
    lines = text.splitlines() or [""]
    line = lines[min(max(error.lineno or 1, 1), len(lines)) - 1]
    value = line.partition("=")[2].partition("#")[0].strip()
    python = {"true": "True", "yes": "True", "false": "False", "no": "False", "null": "None"}
    meant = python.get(value.lower(), "None" if value.lower() == "none" else "")
    if meant:
        return f"write {meant} instead of {value}"
    return "strings need quotes, on a shell as --gin.NAME='\"text\"'"


class _Delegate:
    """What gin's parser calls for `@x` and `%x`."""

    def configurable_reference(self, name: str, evaluate: bool) -> _Unusable:
        del name, evaluate
        return _Unusable()

    def macro(self, name: str) -> _Reference:
        return _Reference(name)


def _read(path: str) -> str:
    if not remote.is_remote(path) and os.path.isdir(path):
        raise UserError(f"{path} is a folder; name a gin file in it")
    try:
        return remote.read_bytes(path).decode("utf-8")
    except (OSError, ImportError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise UserError(f"{path}: not UTF-8 text, so not a gin file") from None
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None


def _listing(folder: str) -> list[str]:
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def dump(macros: Macros) -> str:
    """The macros as a gin file that `parse` reads back to the same values."""
    lines = ["# Every setting of this run; `kcmoe` reads it back with --gin_file=config.gin.", ""]
    for name in sorted(macros):
        lines.append(f"{name} = {macros[name]!r}")
    return "\n".join(lines) + "\n"

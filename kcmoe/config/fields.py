# SPDX-License-Identifier: Apache-2.0
"""gin macros -> frozen, checked dataclasses.

Each field names the macro it comes from, so the macro names, their types and their help stand once.
Values stand in `configs/`, never here. Every dataclass of settings derives from `GinConfig` and stands
in a module of this package that `__init__` imports, by which every name is known everywhere.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import types
import typing
from collections.abc import Container, Mapping
from typing import Any, Self

from kcmoe.config.gin_files import Macros
from kcmoe.errors import UserError, near_misses
from kcmoe.io.wording import shown

# Macros that only T5X + Flaxformer read; they may stand in shared files and mean nothing here.
T5X_ONLY = {
    "MODEL_PARALLEL_SUBMESH": "T5X's other way to say NUM_MODEL_PARTITIONS",
    "USE_CACHED_TASKS": "SeqIO's offline caches; the engine keeps its own",
    "INFER_OUTPUT_DIR": "where t5x.infer writes",
    "EVAL_SPLIT": "split that t5x.eval and t5x.infer read",
    "INFER_MODE": "what t5x.infer does: 'predict', 'score' or 'predict_with_aux'",
}

_REGISTRY: dict[str, type[GinConfig]] = {}


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number can mean: from `least` to `most`, but `above` and `below` the last two."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def fault(self, value: float) -> str:
        """Returns what `value` must be, "" if it is that."""
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
        for word, bound, kept in (
            ("at least", self.least, operator.ge),
            ("at most", self.most, operator.le),
            ("above", self.above, operator.gt),
            ("below", self.below, operator.lt),
        ):
            if bound is not None and not kept(value, bound):
                return f"{word} {bound:,}"
        return ""


def macro(
    name: str,
    *,
    help: str,
    default: Any = dataclasses.MISSING,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field filled from the gin macro `name`; without a default the macro is required.

    The bounds are those of a number, and of each number in a tuple or dictionary; here and nowhere else.
    """
    bounds = Range(least, most, above, below)
    return dataclasses.field(
        metadata={"macro": name, "help": help, "range": bounds}, default=default
    )


class GinConfig:
    """Base of every settings dataclass: `from_macros` and the registry of names."""

    def __init_subclass__(cls) -> None:
        # Runs before @dataclass does, when the class attributes still are the Field objects.
        for field in vars(cls).values():
            if isinstance(field, dataclasses.Field) and "macro" in field.metadata:
                _REGISTRY.setdefault(field.metadata["macro"], cls)

    @classmethod
    def macro_names(cls) -> tuple[str, ...]:
        """The macros it is built from, in the order of its fields."""
        return tuple(field.metadata["macro"] for field in dataclasses.fields(cls))  # type: ignore[arg-type]

    @classmethod
    def from_macros(cls, macros: Macros) -> Self:
        """Builds the dataclass from its macros.

        Raises:
          UserError: for a missing macro, a value of the wrong type, or one that `check` refuses.
        """
        hints = typing.get_type_hints(cls)
        values = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.metadata["macro"] in macros or field.default is dataclasses.MISSING:
                values[field.name] = _value(field, hints[field.name], macros)
        config = cls(**values)
        config.check()
        return config

    @classmethod
    def check_given(cls, macros: Macros, names: Container[str] | None = None) -> None:
        """Checks type and range of those of its macros that have a value, whoever will read them.

        Args:
          macros: as given.
          names: those to look at; None for all.
        """
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            name = field.metadata["macro"]
            if macros.get(name) is not None and (names is None or name in names):
                _value(field, hints[field.name], macros)

    def check(self) -> None:
        """Raises `UserError` for values that do not go together; subclasses say which."""


def _value(field: Any, hint: Any, macros: Macros) -> Any:
    name = field.metadata["macro"]
    given = macros.require(name)
    where = macros.where(name)
    value = _typed(given, hint, name, where)
    _check_content(value, field.metadata["range"], name, where)
    return value


def _typed(value: Any, hint: Any, name: str, where: str) -> Any:
    """Returns `value` as `hint` (int for float is fine, list for tuple too) or raises `UserError`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union or origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        hint = next(choice for choice in arguments if choice is not type(None))
        return _typed(value, hint, name, where)
    if origin is typing.Literal:
        if value in arguments:
            return value
        choices = ", ".join(map(repr, arguments))
        hint_text = near_misses(str(value), [str(choice) for choice in arguments])
        raise UserError(f"{where}: {name} = {shown(value)}, but it is one of {choices}.{hint_text}")
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(item, arguments[0], name, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf  # which no range holds
    if origin is dict and isinstance(value, dict):
        return {
            _typed(key, arguments[0], name, where): _typed(
                item, arguments[1], f"{name}[{key!r}]", where
            )
            for key, item in value.items()
        }
    plain = origin or hint
    if plain is Any or (
        isinstance(value, plain) and (plain is bool or not isinstance(value, bool))
    ):
        return value
    words = {
        int: "a whole number",
        float: "a number",
        str: "a text in quotes",
        bool: "True or False",
        dict: "a dictionary in braces",
        tuple: "a list in brackets",
    }
    wanted = words.get(plain, f"a {plain.__name__}")
    raise UserError(f"{where}: {name} = {shown(value)}, but it must be {wanted}")


def _check_content(value: Any, bounds: Range, name: str, where: str) -> None:
    """Raises `UserError` for a number outside what it can mean, and for a text that no file can hold."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_content(key, Range(), name, where)
            _check_content(item, bounds, f"{name}[{key!r}]", where)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_content(item, bounds, name, where)
    elif isinstance(value, str):
        if "\0" in value or any("\ud800" <= sign <= "\udfff" for sign in value):
            raise UserError(f"{where}: {name} = {shown(value)} has a NUL or half a character in it")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return
    elif fault := bounds.fault(value):
        raise UserError(f"{where}: {name} = {shown(value)}, but it must be {fault}")


def known_macros() -> Mapping[str, str]:
    """Every macro name the package reads, with its help."""
    known = dict(T5X_ONLY)
    for name, cls in _REGISTRY.items():
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        known[name] = next(f.metadata["help"] for f in fields if f.metadata.get("macro") == name)
    return known


def check_all(macros: Macros, foreign: bool = False) -> None:
    """Refuses macros that nothing reads, so that a misspelt name cannot pass silently, and impossible values.

    Args:
      macros: as given.
      foreign: T5X reads them, which can follow a `@configurable`.

    Raises:
      UserError: naming the macro, where it was set, and the nearest known names or what it must be.
    """
    known = known_macros()
    for name in [*macros, *macros.required]:
        if name not in known and name not in macros.referenced:
            hint = near_misses(name, known)
            raise UserError(f"{macros.where(name)}: nothing is called {name}.{hint}")
    for name, where in macros.unusable.items():
        if name in _REGISTRY and not foreign:
            raise UserError(
                f"{where}: {name} is a @configurable, which T5X alone can build; give a value"
            )
    check_values(macros)


def check_values(macros: Macros, names: Container[str] | None = None) -> None:
    """Refuses values of the wrong type or out of range; `names` are those to look at, None for all."""
    for cls in dict.fromkeys(_REGISTRY.values()):
        cls.check_given(macros, names)

# SPDX-License-Identifier: Apache-2.0
"""Every number says what it can mean, and nothing outside it gets in."""

from __future__ import annotations

import dataclasses
import re
import typing
from typing import Any

import pytest

from kcmoe.config import fields, gin_files
from kcmoe.config.data import DataConfig
from kcmoe.config.inference import InferenceConfig
from kcmoe.config.model import ModelConfig
from kcmoe.config.task import TaskSettings
from kcmoe.config.tokenizer import TokenizerConfig
from kcmoe.config.training import (
    AdafactorConfig,
    AdamWConfig,
    LossConfig,
    ScheduleConfig,
    TrainConfig,
)
from kcmoe.errors import UserError

CLASSES = [
    AdafactorConfig, AdamWConfig, DataConfig, InferenceConfig, LossConfig, ModelConfig, ScheduleConfig,
    TaskSettings, TokenizerConfig, TrainConfig,
]  # fmt: skip
FREE = {"TASK_TARGET_STEP"}  # one of four numbers, which the task compares


def numbers() -> list[Any]:
    """(class, field) of every setting that is a number, or holds numbers."""
    found = []
    for cls in CLASSES:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            kinds = {hint, *typing.get_args(hint)}
            if kinds & {int, float} and field.metadata["macro"] not in FREE:
                found.append(pytest.param(cls, field, id=f"{cls.__name__}-{field.name}"))
    return found


@pytest.mark.parametrize(("cls", "field"), numbers())
def test_every_number_has_a_range_that_holds(
    cls: type[fields.GinConfig], field: dataclasses.Field[Any]
) -> None:
    name, bounds = field.metadata["macro"], field.metadata["range"]
    assert bounds.least is not None or bounds.above is not None
    assert bounds.most is not None or bounds.below is not None
    hint = typing.get_type_hints(cls)[field.name]
    keyed = "dict" in str(hint)
    named = re.escape(f"{name}['inputs']" if keyed else name)
    whole = int in {hint, *typing.get_args(hint)}
    huge: list[Any] = [10**14 * 10**6, -(10**14), 10**400]
    for value in huge if whole else [*huge, 1e300, -1e300, float("inf"), float("nan"), 1e309]:
        macros = gin_files.parse().replace(**{name: {"inputs": value} if keyed else value})
        with pytest.raises(UserError, match=f"{named} = "):
            only(cls, field).from_macros(macros)


def only(cls: type[fields.GinConfig], field: dataclasses.Field[Any]) -> type[fields.GinConfig]:
    """A class of settings with that one field."""
    hint = typing.get_type_hints(cls)[field.name]
    copy = dataclasses.field(metadata=field.metadata)
    made = type("Only", (), {"__annotations__": {field.name: hint}, field.name: copy})
    single = dataclasses.dataclass(made)
    single.from_macros = classmethod(fields.GinConfig.from_macros.__func__)  # type: ignore[attr-defined]
    single.check = lambda self: None  # type: ignore[attr-defined]
    return single


@pytest.mark.parametrize("value", ["a\0b", "\ud800", "가\0"])
def test_texts_that_no_file_can_hold(value: str) -> None:
    macros = gin_files.parse().replace(DATA_DIR=value)
    with pytest.raises(UserError, match=r"DATA_DIR = .* half a character"):
        DataConfig.from_macros(macros)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("LEARNING_RATE", 0.0, "above 0"),
        ("LEARNING_RATE", -1e-3, "above 0"),
        ("WARMUP_STEPS", 10**14, "at most 2,147,483,647"),
        ("WARMUP_STEPS", 1.5, "a whole number"),
        ("LEARNING_RATE", True, "a number"),
    ],
)
def test_messages(name: str, value: Any, words: str) -> None:
    given = {"LEARNING_RATE_FACTORS": "constant", "LEARNING_RATE": 1.0, "WARMUP_STEPS": 1}
    macros = gin_files.parse().replace(**{**given, name: value})
    with pytest.raises(UserError, match=f"{name} = .*{words}"):
        ScheduleConfig.from_macros(macros)

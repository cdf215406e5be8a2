# SPDX-License-Identifier: Apache-2.0
"""What is recorded with a checkpoint about its run, and whether a vocabulary is the one of its weights.

A run's `config.gin` stands beside or above its checkpoints. A converted checkpoint has left it behind and
holds `config.json` instead: what the weights need to be used, and no path of the machine they come from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.errors import UserError
from kcmoe.io.remote import is_remote
from kcmoe.vocabulary import Vocabulary

CONFIG_FILE = "config.gin"
JSON_FILE = "config.json"
DIGEST = "VOCABULARY_SHA256"  # macro under which the engine records the vocabulary of a run
_MODEL_TYPE = "kcmoe"  # Transformers has files of this name, too
_KEPT = (*(field.metadata["macro"] for field in dataclasses.fields(ModelConfig)),
         DIGEST, "TASK_FEATURE_LENGTHS")  # fmt: skip


def find_config(checkpoint: str) -> str | None:
    """`config.gin` in the folder of the checkpoint or the one above it, None if there is none."""
    if is_remote(checkpoint):
        return f"{os.path.dirname(checkpoint)}/{CONFIG_FILE}"
    folder = os.path.abspath(checkpoint)
    for place in (folder, os.path.dirname(folder)):
        if os.path.isfile(os.path.join(place, CONFIG_FILE)):
            return os.path.join(place, CONFIG_FILE)
    return None


def read_json(checkpoint: str) -> dict[str, Any]:
    """The macros in the `config.json` that a conversion wrote into the checkpoint, or {}."""
    from kcmoe.checkpoint.storage import Folder  # here, as names are checked without TensorStore

    folder = Folder(checkpoint)
    try:
        fields = json.loads(folder.read(JSON_FILE)) if folder.exists(JSON_FILE) else {}
    except ValueError:
        return {}
    if not isinstance(fields, dict) or fields.get("model_type") != _MODEL_TYPE:
        return {}
    return {name: value for name, value in fields.items() if name.isupper()}


def recorded(checkpoint: str) -> dict[str, Any]:
    """The macros of `config.gin`, else those of `config.json`; {} where neither is.

    T5X's config.gin has no digest of the vocabulary; that of the file it names is added, if that is there.

    Raises:
      UserError: for a `config.gin` that is there and cannot be read.
    """
    config = find_config(checkpoint)
    if config is None:
        return read_json(checkpoint)
    if is_remote(checkpoint):  # read as the checkpoint is, which needs nothing more to be installed
        from kcmoe.checkpoint.storage import Folder

        above = Folder(os.path.dirname(config))
        if not above.exists(CONFIG_FILE):
            return read_json(checkpoint)
        text = above.read(CONFIG_FILE).decode("utf-8", "replace")
        macros = dict(gin_files.parse(texts={config: text}, foreign=True))
    else:
        macros = dict(gin_files.parse([config], foreign=True))
    if not macros.get(DIGEST):
        with contextlib.suppress(UserError):
            macros[DIGEST] = Vocabulary(macros.get("VOCABULARY_FILE")).digest
    return macros


def to_keep(source: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What goes into the `config.json` of a copy of `source`: recorded macros, and `sizes` of its tree.

    Raises:
      UserError: if the two disagree, or as `recorded`.
    """
    found = recorded(source)
    macros = {name: found[name] for name in _KEPT if name in found}
    unequal = [name for name in sizes if macros.get(name, sizes[name]) != sizes[name]]
    if unequal:
        listed = ", ".join(f"{name} is {macros[name]}, not {sizes[name]}" for name in unequal)
        place = find_config(source) or f"{source}/{JSON_FILE}"
        raise UserError(
            f"{place} does not belong to the checkpoint beside it: {listed}; move one of them away"
        )
    return {**macros, **sizes}


def to_json(macros: Mapping[str, Any], step: int) -> bytes:
    """The content of a `config.json` that `read_json` reads."""
    fields = {"model_type": _MODEL_TYPE, "step": step, **dict(sorted(macros.items()))}
    return json.dumps(fields, indent=2).encode() + b"\n"


def check_vocabulary(checkpoint: str, vocabulary: Vocabulary) -> None:
    """Compares `vocabulary` with the one the checkpoint was trained with, as far as that can be known.

    Raises:
      UserError: if they differ. Every row of the embedding would stand for another piece.
    """
    try:
        macros = recorded(checkpoint)
    except UserError:
        return  # nothing that can be read from here
    digest, name = str(macros.get(DIGEST) or ""), macros.get("VOCABULARY_FILE")
    if digest and digest != vocabulary.digest:
        raise UserError(
            f"{checkpoint} was trained with {f'the vocabulary {name}' if name else 'another vocabulary'} "
            f"(sha256 {digest[:12]}…), not with {vocabulary.path} ({vocabulary.digest[:12]}…); set "
            "VOCABULARY_FILE to the former"
        )

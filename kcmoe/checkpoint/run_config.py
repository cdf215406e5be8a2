# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint tells of its run: what is recorded beside it, its sizes, whose vocabulary it has.

A run's `config.gin` stands beside or above its checkpoints. A converted checkpoint has left it behind and
holds `config.json` instead: what the weights need to be used, and no path of the machine they come from.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from kcmoe.checkpoint.storage import Folder
from kcmoe.config import fields as configs
from kcmoe.config import gin_files
from kcmoe.config.inference import InferenceConfig
from kcmoe.config.model import ModelConfig
from kcmoe.config.task import TaskSettings
from kcmoe.errors import UserError
from kcmoe.io import json_text
from kcmoe.io.remote import is_remote
from kcmoe.io.wording import shown
from kcmoe.tree import ShapeDtype, parameters
from kcmoe.vocabulary import Vocabulary

CONFIG_FILE = "config.gin"
JSON_FILE = "config.json"
_MOST_SPARE_ROWS = 1024
DIGEST = "VOCABULARY_SHA256"  # macro under which the engine records the vocabulary of a run
LEARNT = "LEARNT_TASKS"  # what a checkpoint without config.gin has learnt
_MODEL_TYPE = "kcmoe"  # transformers writes files of this name, too
_KEPT = (*ModelConfig.macro_names(), DIGEST, "TASK_FEATURE_LENGTHS")
# Looked at before they are used. Of what only training reads, another program's config.gin may say anything.
_USED = frozenset(
    (
        *_KEPT,
        *InferenceConfig.macro_names(),
        *TaskSettings.macro_names(),
        *("VOCABULARY_FILE", "DATA_DIR"),
    )
)
_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(mlp/(?:router|expert)/)?")


def find_config(checkpoint: str) -> str | None:
    """Returns the path of `config.gin` in the checkpoint's folder or the one above; None if neither has it.

    In a bucket, where looking costs a request, it is the one above, there or not. Raises `UserError` for one
    that is no plain file.
    """
    if is_remote(checkpoint):
        return f"{os.path.dirname(checkpoint)}/{CONFIG_FILE}"
    folder = os.path.abspath(checkpoint)
    for place in (folder, os.path.dirname(folder)):
        path = os.path.join(place, CONFIG_FILE)
        if os.path.isfile(path):
            return path
        if os.path.lexists(path):
            raise UserError(
                f"{path} is no plain file but a folder, a device, a pipe or a link to nowhere; move it away, "
                "or put the run's own there"
            )
    return None


def read_json(checkpoint: str) -> dict[str, Any]:
    """Returns the macros in the `config.json` that a conversion wrote into the checkpoint, or {}."""
    folder = Folder(checkpoint)
    try:
        fields = json_text.parse(folder.read(JSON_FILE)) if folder.exists(JSON_FILE) else {}
    except ValueError:
        return {}
    if not isinstance(fields, dict) or fields.get("model_type") != _MODEL_TYPE:
        return {}
    return {name: value for name, value in fields.items() if name.isupper()}


def recorded(checkpoint: str) -> dict[str, Any]:
    """Returns the macros of `config.gin`, else those of `config.json`; {} where neither is.

    T5X's config.gin has no digest of the vocabulary; that of the file it names is added, if that is there.

    Raises:
      UserError: for a `config.gin` that is there and cannot be read, and for what `check` refuses.
    """
    macros = _config_macros(checkpoint)
    if macros is None:
        beside = read_json(checkpoint)
        return _checked(gin_files.Macros({}).updated(beside, f"{checkpoint}/{JSON_FILE}"))
    if not macros.get(DIGEST):
        with contextlib.suppress(UserError):
            macros[DIGEST] = Vocabulary(vocabulary_of(checkpoint, macros)).digest
    return macros


def vocabulary_of(checkpoint: str, macros: Mapping[str, Any]) -> str | None:
    """Returns the vocabulary file that the settings of `checkpoint` name, None for the shipped one.

    Settings may come from anywhere, so they open no address and no pipe: the file is on this machine where
    they say, or it lies beside them or beside the checkpoint.

    Raises:
      UserError: for any other, which the user has to name.
    """
    named = macros.get("VOCABULARY_FILE")
    if named is None:
        return None
    text = str(named)
    folders = (
        () if is_remote(checkpoint) else (checkpoint, os.path.dirname(os.path.abspath(checkpoint)))
    )
    beside = [os.path.join(folder, os.path.basename(text)) for folder in folders]
    for path in ([] if is_remote(text) else [text]) + beside:
        if os.path.isfile(path):
            return path
    if macros.get(DIGEST) and macros[DIGEST] == Vocabulary().digest:
        return None
    raise UserError(
        f"the settings of {checkpoint} name the vocabulary {text!r}, which is not on this machine: put it "
        "beside the checkpoint, or, if you trust that place, add "
        f"--gin.VOCABULARY_FILE='\"{text}\"'"
    )


def with_vocabulary(
    checkpoint: str, macros: Mapping[str, Any], file: str, rows: int
) -> dict[str, Any]:
    """Returns `macros`, recorded for `checkpoint`, with the vocabulary `file` instead of the one named there.

    A digest that the run itself wrote down stays, so that another vocabulary than its own is noticed. Where
    there is none, the `rows` of the embedding, which are rounded up for devices, must fit the pieces.

    Raises:
      UserError: if `file` is no vocabulary, or cannot be that of the checkpoint.
    """
    own, vocabulary = _config_macros(checkpoint), Vocabulary(file)
    digest = (macros if own is None else own).get(DIGEST)
    if not digest and not rows - _MOST_SPARE_ROWS <= vocabulary.size <= rows:
        raise UserError(
            f"{file} has {vocabulary.size:,} pieces, but the embedding of {checkpoint} has {rows:,} rows; "
            "name its own vocabulary with --vocabulary"
        )
    digest = digest or vocabulary.digest
    return {**macros, "VOCABULARY_FILE": file, DIGEST: digest}


def check(macros: gin_files.Macros) -> None:
    """Raises `UserError` for a setting that using a checkpoint reads and whose value is of another kind."""
    configs.check_values(macros, _USED)
    learnt = macros.get(LEARNT)
    if not isinstance(learnt, list | tuple | None):
        where = macros.where(LEARNT)
        raise UserError(f"{where}: {LEARNT} = {shown(learnt)}, but it must be a list of names")


def _config_macros(checkpoint: str) -> dict[str, Any] | None:
    """Returns the macros of `config.gin`, None if there is none; `UserError` for what `check` refuses."""
    config = find_config(checkpoint)
    if config is None:
        return None
    if not is_remote(checkpoint):
        return _checked(gin_files.parse([config], foreign=True, includes=False))
    # Through TensorStore, as the checkpoint itself, so no fsspec is needed.
    above = Folder(os.path.dirname(config))
    if not above.exists(CONFIG_FILE):
        return None
    text = above.read(CONFIG_FILE).decode("utf-8", "replace")
    return _checked(gin_files.parse(texts={config: text}, foreign=True, includes=False))


def _checked(macros: gin_files.Macros) -> dict[str, Any]:
    check(macros)
    return dict(macros)


def to_keep(source: str, found: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Returns what the `config.json` of a copy of `source` holds: macros `found` there, `sizes` of its tree.

    Raises:
      UserError: if the two disagree.
    """
    macros = {name: found[name] for name in _KEPT if name in found}
    unequal = [name for name in sizes if macros.get(name, sizes[name]) != sizes[name]]
    if unequal:
        listed = ", ".join(f"{name} is {macros[name]}, not {sizes[name]}" for name in unequal)
        place = find_config(source) or f"{source}/{JSON_FILE}"
        raise UserError(
            f"{place} does not belong to the checkpoint beside it: {listed}; move one of them away"
        )
    learnt = learnt_tasks(found)
    return {**macros, **({LEARNT: list(learnt)} if learnt else {}), **sizes}


def learnt_tasks(macros: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the tasks that a run has learnt: its own, those of its mixture, those recorded as learnt."""
    own = macros.get("MIXTURE_OR_TASK_NAME")
    names = (own, *(macros.get("MIXTURE") or ()), *(macros.get(LEARNT) or ()))
    return tuple(dict.fromkeys(str(name) for name in names if name))


def to_json(macros: Mapping[str, Any], step: int) -> bytes:
    """Returns the content of a `config.json` that `read_json` reads."""
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
        return  # what is recorded cannot be read, so there is nothing to compare with
    digest, name = str(macros.get(DIGEST) or ""), macros.get("VOCABULARY_FILE")
    if digest and digest != vocabulary.digest:
        raise UserError(
            f"{checkpoint} was trained with {f'the vocabulary {name}' if name else 'another vocabulary'} "
            f"(sha256 {digest[:12]}…), not with {vocabulary.path} ({vocabulary.digest[:12]}…); set "
            "VOCABULARY_FILE to the former"
        )


def sizes_of(tree: Mapping[str, ShapeDtype]) -> dict[str, int]:
    """Returns macro name -> size for all that the tree tells; {} for a tree of another model."""
    params, sizes = parameters(tree), dict[str, int]()
    for stack in ("encoder", "decoder"):
        layers, sparse = set(), set()
        for found in filter(None, map(_LAYER.match, params)):
            if found[1] == stack:
                layers.add(found[2])
                if found[3]:
                    sparse.add(found[2])
        if layers:
            sizes[f"NUM_{stack.upper()}_LAYERS"] = len(layers)
            sizes[f"NUM_{stack.upper()}_SPARSE_LAYERS"] = len(sparse)
    sizes.update(_dimensions(params))
    return sizes


def _dimensions(params: Mapping[str, ShapeDtype]) -> dict[str, int]:
    found: dict[str, int] = {}
    for path, leaf in params.items():
        if path.endswith("token_embedder/embedding") and len(leaf.shape) == 2:
            found["NUM_EMBEDDINGS"], found["EMBED_DIM"] = leaf.shape
        elif path.endswith("relpos_bias/rel_embedding") and len(leaf.shape) == 2:
            found["NUM_HEADS"] = leaf.shape[0]
        elif path.endswith("attention/query/kernel") and len(leaf.shape) == 2:
            found["joined"] = leaf.shape[1]
        elif path.endswith("mlp/expert/wi_0/kernel") and len(leaf.shape) == 3:
            found["NUM_EXPERTS"], _, found["EXPERT_MLP_DIM"] = leaf.shape
        elif path.endswith("mlp/wi_0/kernel") and len(leaf.shape) == 2:
            found["MLP_DIM"] = leaf.shape[1]
    joined = found.pop("joined", None)
    if joined and found.get("NUM_HEADS"):
        found["HEAD_DIM"] = joined // found["NUM_HEADS"]
    return found


def explain_difference(here: Mapping[str, ShapeDtype], wanted: Mapping[str, ShapeDtype]) -> str:
    """Returns " (another size: EMBED_DIM 32 here, 128 expected)", or "" if the sizes agree."""
    theirs, ours = sizes_of(here), sizes_of(wanted)
    names = [name for name in ours if name in theirs and theirs[name] != ours[name]]
    if not names:
        return ""
    listed = ", ".join(f"{name} {theirs[name]} here, {ours[name]} expected" for name in names)
    return f" (another size: {listed}; take the gin file of that checkpoint's size)"

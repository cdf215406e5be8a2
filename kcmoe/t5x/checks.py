# SPDX-License-Identifier: Apache-2.0
"""What would fail on a pod only after minutes of start-up, found before: sizes, vocabularies, folders.

Works on macros and files alone, with the same functions the engine uses to judge a checkpoint, so that
both engines refuse the same things with the same words. Knows nothing of T5X but its sharding rules
(t5x@cc342d4:t5x/contrib/moe/partitioning.py): what the model axis splits, and how devices are divided.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.errors import UserError
from kcmoe.io.remote import is_remote
from kcmoe.vocabulary import Vocabulary

# Where T5X would silently do something else: macro -> the only value it agrees with.
_ENGINE_ONLY: Mapping[str, Any] = {"ROUTING": "capacity", "FREEZE": (), "STEP_OFFSET": 0}


def refuse_engine_only(macros: Mapping[str, Any]) -> None:
    """Raises `UserError` for a setting that T5X would pass over in silence."""
    for name, accepted in _ENGINE_ONLY.items():
        if macros.get(name, accepted) not in (accepted, [], None):
            raise UserError(
                f"{name} = {macros[name]!r} is something only the engine does; run it with "
                f"`kcmoe train`, or leave {name} at {accepted!r} for T5X"
            )


def vocabulary_fits(vocabulary: Vocabulary, macros: gin_files.Macros) -> None:
    """Raises `UserError` where the embedding has fewer rows than the vocabulary has pieces."""
    rows = macros.require("NUM_EMBEDDINGS")
    if vocabulary.size > rows:
        raise UserError(
            f"{vocabulary.path} has {vocabulary.size:,} pieces, but NUM_EMBEDDINGS = {rows:,}; "
            "take the vocabulary of this model, or a larger embedding"
        )


def partitions_divide(macros: gin_files.Macros, num_devices: int) -> None:
    """Raises `UserError` where NUM_MODEL_PARTITIONS, NUM_EXPERTS or BATCH_SIZE does not divide."""
    model_axis, said = _model_axis(macros, num_devices)
    split = {name: macros.require(name) for name in ("NUM_HEADS", "MLP_DIM", "EXPERT_MLP_DIM")}
    split["NUM_EMBEDDINGS"] = macros.require("NUM_EMBEDDINGS")
    for name, value in split.items():
        if value % model_axis:
            raise UserError(f"{said} does not divide {name} = {value:,}, which it would split")
    data_axis = num_devices // model_axis
    if macros.require("BATCH_SIZE") % data_axis:
        raise UserError(
            f"BATCH_SIZE = {macros['BATCH_SIZE']} is not a multiple of {data_axis}, the devices "
            f"({num_devices}) divided by {said}"
        )
    experts = macros.require("NUM_EXPERTS")
    expert_axis = min(macros.require("NUM_EXPERT_PARTITIONS"), data_axis)
    while data_axis % expert_axis:
        expert_axis -= 1
    if experts % expert_axis:
        raise UserError(
            f"NUM_EXPERTS = {experts} cannot be divided over {expert_axis} devices; set "
            f"NUM_EXPERT_PARTITIONS to a divisor of both {experts} and {data_axis}"
        )


def microbatches_divide(macros: gin_files.Macros, num_devices: int) -> None:
    """Raises `UserError` where a microbatch is no whole number of rows for each device.

    Training only: evaluation and inference read NUM_MICROBATCHES in a run's file and do not use it.
    """
    model_axis, said = _model_axis(macros, num_devices)
    microbatches, batch = macros.get("NUM_MICROBATCHES") or 1, macros.require("BATCH_SIZE")
    multiple = microbatches * (num_devices // model_axis)
    if batch % multiple:
        raise UserError(
            f"BATCH_SIZE = {batch} is not a multiple of {multiple}, which is NUM_MICROBATCHES = "
            f"{microbatches} times the devices ({num_devices}) divided by {said}"
        )


def _model_axis(macros: gin_files.Macros, num_devices: int) -> tuple[int, str]:
    """Devices that share a matrix, and the setting that says so; `UserError` if it cannot be."""
    partitions, submesh = macros.get("NUM_MODEL_PARTITIONS"), macros.get("MODEL_PARALLEL_SUBMESH")
    if (partitions is None) == (submesh is None):
        raise UserError("one of NUM_MODEL_PARTITIONS and MODEL_PARALLEL_SUBMESH must be None")
    said = (
        f"MODEL_PARALLEL_SUBMESH = {submesh}" if submesh else f"NUM_MODEL_PARTITIONS = {partitions}"
    )
    model_axis = partitions if submesh is None else math.prod(submesh)
    if not isinstance(model_axis, int) or model_axis < 1 or num_devices % model_axis:
        raise UserError(f"{said} does not divide the {num_devices} devices here")
    return model_axis, said


def periods_divide(macros: gin_files.Macros) -> None:
    """Raises `UserError` where neither of EVAL_PERIOD and CHECKPOINT_PERIOD is a multiple of the other.

    T5X's loop runs in stretches of the shorter one (t5x@cc342d4:t5x/train.py).
    """
    evaluation, saving = macros.require("EVAL_PERIOD"), macros.require("CHECKPOINT_PERIOD")
    if evaluation and max(evaluation, saving) % min(evaluation, saving):
        raise UserError(
            f"T5X needs EVAL_PERIOD = {evaluation} and CHECKPOINT_PERIOD = {saving} to be multiples "
            "of one another; change one of them"
        )


def checkpoint_fits(path: str, macros: gin_files.Macros, *, optimizer: bool) -> str:
    """Compares every leaf's shape with the model of `macros`, reading no values.

    Args:
      path: `dir/checkpoint_N`, local or in a bucket, in either of T5X's formats.
      macros: sizes and vocabulary of the model it is for.
      optimizer: whether the optimizer state will be restored too.

    Returns:
      The path as T5X needs it: absolute.

    Raises:
      UserError: no checkpoint, one that may not be read, another size, another vocabulary.
    """
    from kcmoe.checkpoint.base import describe_problems
    from kcmoe.checkpoint.formats import FORMATS
    from kcmoe.checkpoint.reading import compare, open_checkpoint
    from kcmoe.checkpoint.run_config import check_vocabulary, explain_difference
    from kcmoe.training import state
    from kcmoe.training.optimizers.adafactor import Adafactor
    from kcmoe.tree import ShapeDtype, as_state, parameters

    reader = open_checkpoint(path)
    if not FORMATS[reader.format].read_by_t5x:
        raise UserError(
            f"{path} is {FORMATS[reader.format].title}, which T5X cannot read; make a copy with "
            "`kcmoe checkpoint convert`"
        )
    # Shapes depend on none of the optimizer's settings.
    adafactor = Adafactor(decay_rate=0.8, step_offset=0)
    expected = state.to_flat(state.state_shapes(ModelConfig.from_macros(macros), adafactor))
    here, problems = reader.scan()
    if not optimizer:
        here, problems, expected = (
            as_state(parameters(leaves)) for leaves in (here, problems, expected)
        )
    # T5X casts while it restores, so only shapes have to agree.
    wanted = {
        leaf: ShapeDtype(tuple(shape.shape), here[leaf].dtype if leaf in here else shape.dtype)
        for leaf, shape in expected.items()
    }
    faults = compare(here, wanted, problems)
    if faults:
        reason = explain_difference(here, wanted)
        raise UserError(describe_problems(f"{path} does not fit this model{reason}", faults))
    check_vocabulary(absolute(path), Vocabulary(macros.get("VOCABULARY_FILE")))
    return absolute(path)


def folder_usable(path: str) -> str:
    """Makes the folder or bucket prefix and returns its absolute path.

    Raises:
      UserError: if it cannot be made, so that hours are not spent before the first save fails.
    """
    import tensorflow as tf

    path = absolute(path)
    try:
        tf.io.gfile.makedirs(path)
        tf.io.gfile.listdir(path)
    except tf.errors.OpError as error:
        raise UserError(f"{path} cannot be used: {str(error.message).splitlines()[0]}") from None
    return path


def absolute(path: str) -> str:
    """The path as Orbax wants it; bucket addresses stay as they are."""
    return path if is_remote(path) else os.path.abspath(os.path.expanduser(path))

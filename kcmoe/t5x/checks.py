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

from kcmoe import fits
from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.errors import UserError
from kcmoe.io.remote import is_remote
from kcmoe.vocabulary import Vocabulary

# Where T5X would silently do something else: macro -> the only value it agrees with.
_ENGINE_ONLY: Mapping[str, Any] = {
    "ROUTING": "capacity",
    "FREEZE": (),
    "STEP_OFFSET": 0,
    "OPTIMIZER": "adafactor",
    "EMA_DECAY": None,
    "TEACHER": None,
}


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
    fits.check_vocabulary(vocabulary.path, vocabulary.size, macros.require("NUM_EMBEDDINGS"))


def partitions_divide(macros: gin_files.Macros, num_devices: int) -> None:
    """Raises `UserError` where NUM_MODEL_PARTITIONS, NUM_EXPERTS or BATCH_SIZE does not divide."""
    names = ("NUM_HEADS", "MLP_DIM", "EXPERT_MLP_DIM", "NUM_EMBEDDINGS")
    partitions, said = _model_partitions(macros)
    data_axis = fits.check_model_partitions(
        partitions, num_devices, {name: macros.require(name) for name in names}, said
    )
    fits.check_batch(macros.require("BATCH_SIZE"), 1, data_axis, f"{num_devices} / {said}")
    fits.check_t5x_experts(
        macros.require("NUM_EXPERTS"), macros.require("NUM_EXPERT_PARTITIONS"), data_axis
    )


def microbatches_divide(macros: gin_files.Macros, num_devices: int) -> None:
    """Raises `UserError` where a microbatch is no whole number of rows for each device.

    Training only: evaluation and inference read NUM_MICROBATCHES in a run's file and do not use it.
    """
    partitions, said = _model_partitions(macros)
    data_axis = fits.check_model_partitions(partitions, num_devices, {}, said)
    microbatches = macros.get("NUM_MICROBATCHES") or 1
    fits.check_batch(
        macros.require("BATCH_SIZE"), microbatches, data_axis, f"{num_devices} / {said}"
    )


def _model_partitions(macros: gin_files.Macros) -> tuple[int, str]:
    """Devices that share a matrix, and the setting that says so; `UserError` if two settings do."""
    partitions, submesh = macros.get("NUM_MODEL_PARTITIONS"), macros.get("MODEL_PARALLEL_SUBMESH")
    if (partitions is None) == (submesh is None):
        raise UserError("one of NUM_MODEL_PARTITIONS and MODEL_PARALLEL_SUBMESH must be None")
    if partitions is None:
        return math.prod(submesh), f"MODEL_PARALLEL_SUBMESH = {submesh}"  # type: ignore[arg-type]
    return partitions, f"NUM_MODEL_PARTITIONS = {partitions}"


def periods_divide(macros: gin_files.Macros) -> None:
    """Raises `UserError` where neither of EVAL_PERIOD and CHECKPOINT_PERIOD is a multiple of the other."""
    fits.check_t5x_periods(macros.require("EVAL_PERIOD"), macros.require("CHECKPOINT_PERIOD"))


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

# SPDX-License-Identifier: Apache-2.0
"""Every check of the kind "does it divide, does it fit", with both numbers in its message.

The engine, T5X on a pod and `kcmoe plan` ask here, so that all of them refuse the same settings with the
same words. Takes numbers, never a device, a file or a settings object, and knows no JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kcmoe.errors import UserError
from kcmoe.io.wording import human_bytes, shortened

FEATURES = ("inputs", "targets")
MOST_TOKENS = 1 << 24  # of a row; no device holds one


def check_lengths(lengths: Mapping[str, Any]) -> dict[str, int]:
    """The tokens of a row, of which the last is the end-of-text token.

    Args:
      lengths: TASK_FEATURE_LENGTHS.

    Returns:
      {"inputs": tokens, "targets": tokens}.

    Raises:
      UserError: if it is something else, or one is missing or below 2, which leaves no room for a token of
        the text.
    """
    given: Any = lengths
    if not isinstance(given, Mapping) or not set(FEATURES) >= set(given):
        raise UserError(
            f"TASK_FEATURE_LENGTHS = {shortened(repr(given), 200)}, but it must be {{'inputs': tokens, "
            "'targets': tokens}"
        )
    for name in FEATURES:
        value = lengths.get(name)
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or value < 2
            or value > MOST_TOKENS
        ):
            raise UserError(
                f"TASK_FEATURE_LENGTHS = {dict(lengths)!r} needs '{name}': a whole number of tokens, "
                f"at least 2 and at most {MOST_TOKENS:,}"
            )
    return {name: int(lengths[name]) for name in FEATURES}


def check_vocabulary(path: str, pieces: int, rows: int, checkpoint: str = "") -> None:
    """Raises `UserError` if the vocabulary has pieces that the embedding has no rows for.

    Args:
      path: the vocabulary file.
      pieces: its pieces, sentinels included.
      rows: NUM_EMBEDDINGS.
      checkpoint: the checkpoint that has the embedding, where it exists and cannot grow.
    """
    if pieces <= rows:
        return
    if checkpoint:
        room = f"the embedding of {checkpoint} has {rows:,} rows"
        mend = "set VOCABULARY_FILE to the vocabulary that it was trained with"
    else:
        room = f"NUM_EMBEDDINGS = {rows:,}"
        mend = (
            f"set NUM_EMBEDDINGS to at least {pieces:,} (a multiple of 128 is fast) or VOCABULARY_FILE "
            "to a smaller vocabulary"
        )
    raise UserError(f"vocabulary {path} has {pieces:,} pieces, but {room}; {mend}")


def check_batch(batch_size: int, microbatches: int = 1, devices: int = 1, shared: str = "") -> int:
    """Divides the rows of a batch over microbatches and devices.

    Args:
      batch_size: BATCH_SIZE.
      microbatches: NUM_MICROBATCHES.
      devices: devices that each microbatch is divided over.
      shared: why these are fewer than all devices, e.g. "8 devices / NUM_MODEL_PARTITIONS = 2".

    Returns:
      Rows of a microbatch on one device.

    Raises:
      UserError: if that is no whole number.
    """
    multiple = microbatches * devices
    if batch_size % multiple == 0:
        return batch_size // multiple
    factors = [f"NUM_MICROBATCHES = {microbatches}"] if microbatches > 1 else []
    if devices > 1:
        factors.append(f"{devices} devices{f' ({shared})' if shared else ''}")
    below = batch_size // multiple * multiple
    sizes = " or ".join(str(size) for size in (below, below + multiple) if size)
    raise UserError(
        f"BATCH_SIZE = {batch_size} is not a multiple of {multiple}, which is {' x '.join(factors)}; "
        f"set BATCH_SIZE to {sizes}{', or NUM_MICROBATCHES to another number' if microbatches > 1 else ''}"
    )


def check_model_partitions(
    partitions: int, devices: int, matrices: Mapping[str, int], said: str = ""
) -> int:
    """Divides the devices over the parts of a matrix.

    Args:
      partitions: devices that share each matrix.
      devices: all devices.
      matrices: macro -> the length of the axis that is split.
      said: the setting, where it is not NUM_MODEL_PARTITIONS.

    Returns:
      Devices that rows are divided over.

    Raises:
      UserError: if the partitions divide neither the devices nor each matrix.
    """
    said = said or f"NUM_MODEL_PARTITIONS = {partitions}"
    if not isinstance(partitions, int) or partitions < 1 or devices % partitions:
        raise UserError(f"{said} does not divide the {devices} devices here")
    for name, length in matrices.items():
        if length % partitions:
            raise UserError(f"{said} does not divide {name} = {length:,}, which it would split")
    return devices // partitions


def check_width(width: int, devices: int) -> None:
    """Raises `UserError` if the width of the model is to be divided over devices that do not divide it."""
    if width % devices:
        raise UserError(
            f"PARAMETER_PARTITIONING_DIMS = 2 divides EMBED_DIM = {width:,} over {devices} devices, which do "
            "not divide it; set PARAMETER_PARTITIONING_DIMS = 1, or take another number of devices"
        )


def check_expert_partitions(partitions: int, experts: int) -> None:
    """Raises `UserError` if experts are to be divided over more devices than there are experts."""
    if partitions > experts:
        raise UserError(
            f"NUM_EXPERT_PARTITIONS = {partitions} is more than NUM_EXPERTS = {experts}; set it to "
            f"{experts} or less"
        )


def check_t5x_experts(experts: int, partitions: int, devices: int) -> None:
    """Raises `UserError` if T5X would divide the experts over devices that they do not divide by.

    T5X takes the largest divisor of the devices up to NUM_EXPERT_PARTITIONS and does not look at the
    experts (t5x@cc342d4:t5x/contrib/moe/partitioning.py).
    """
    over = max(n for n in range(1, min(partitions, devices) + 1) if devices % n == 0)
    if experts % over:
        raise UserError(
            f"NUM_EXPERTS = {experts} cannot be divided over {over} devices; set "
            f"NUM_EXPERT_PARTITIONS to a divisor of both {experts} and {devices}"
        )


def check_sparse_layers(stack: str, layers: int, sparse: int) -> None:
    """Raises `UserError` if sparse layers cannot be spread evenly over the layers of a stack."""
    if sparse and (sparse > layers or layers % sparse):
        raise UserError(
            f"NUM_{stack.upper()}_SPARSE_LAYERS = {sparse} does not divide "
            f"NUM_{stack.upper()}_LAYERS = {layers}"
        )


def check_t5x_periods(evaluation: int, saving: int) -> None:
    """Raises `UserError` if neither EVAL_PERIOD nor CHECKPOINT_PERIOD is a multiple of the other.

    T5X's loop runs in stretches of the shorter one (t5x@cc342d4:t5x/train.py).
    """
    if evaluation and max(evaluation, saving) % min(evaluation, saving):
        raise UserError(
            f"T5X needs EVAL_PERIOD = {evaluation} and CHECKPOINT_PERIOD = {saving} to be multiples "
            "of one another; change one of them"
        )


def check_disk(model_dir: object, needed: int, free: int) -> None:
    """Raises `UserError` if a checkpoint of `needed` bytes is larger than the `free` bytes."""
    if free < needed:
        raise UserError(
            f"MODEL_DIR {model_dir}: a checkpoint needs about {human_bytes(needed)} and only "
            f"{human_bytes(free)} is free; free some space, or choose another MODEL_DIR"
        )

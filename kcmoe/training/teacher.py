# SPDX-License-Identifier: Apache-2.0
"""Distillation: a run that learns from another model's probabilities as well as from the targets (TEACHER).

At each target position the teacher's TEACHER_TOP likeliest pieces and their probabilities, made to sum to 1,
are put into the batch as two more features, and `losses.loss_and_metrics` adds

    TEACHER_WEIGHT x (cross-entropy against these - cross-entropy against the target)

to its loss (arXiv:1503.02531 with temperature 1, word by word as in arXiv:1606.07947, section 3.1). Of
label words and gaps filled the likeliest few pieces hold nearly all probability, and they take a thousandth
of the memory that whole distributions would. Both models see the same rows, so the vocabulary must be the
same; everything else may differ. The teacher drops no token and no feature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from kcmoe import checkpoint as checkpoints
from kcmoe import tree
from kcmoe.checkpoint import run_config, shipped
from kcmoe.checkpoint.reading import restore_parameters
from kcmoe.config.gin_files import Macros
from kcmoe.config.model import ModelConfig
from kcmoe.config.training import TeacherConfig
from kcmoe.errors import UserError
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.model.interface import HEAD, TEACHER_IDS, TEACHER_PROBS, Flat, features, param_shapes
from kcmoe.training import sharding
from kcmoe.training.losses import chunks

Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model that answers what the run learns.

    Attributes:
      checkpoint: its folder.
      config: its sizes.
      params: path -> float32 array, copied to every device.
      top: TEACHER_TOP.
      mesh: the devices of the run.
    """

    checkpoint: str
    config: ModelConfig
    params: Flat
    top: int
    mesh: Mesh

    def __post_init__(self) -> None:
        spread = sharding.named(self.mesh, None, "batch")
        program = jax.jit(self._answers, out_shardings=(spread, spread))
        object.__setattr__(self, "_program", program)

    def __call__(self, batch: Batch) -> dict[str, Array]:
        """A batch [M, B/M, …] with the teacher's answers, [M, B/M, L, TEACHER_TOP]."""
        ids, probs = self._program(self.params, dict(batch))  # type: ignore[attr-defined]
        return {**batch, TEACHER_IDS: ids, TEACHER_PROBS: probs}

    def example(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """A batch [B, …], or one's shapes, with the shapes of the answers."""
        shape = (*batch["decoder_target_tokens"].shape, self.top)
        return {
            **batch,
            TEACHER_IDS: jax.ShapeDtypeStruct(shape, jnp.int32),
            TEACHER_PROBS: jax.ShapeDtypeStruct(shape, jnp.float32),
        }

    def _answers(self, params: Flat, batch: Batch) -> tuple[Array, Array]:
        module = EncoderDecoder(self.config)

        def one(microbatch: Batch) -> tuple[Array, Array]:
            hidden = module.apply(
                {"params": tree.nested(params)},
                **features(microbatch),
                logits=False,
                enable_dropout=False,
            )
            rows, length, width = hidden.shape
            return jax.tree.map(
                lambda x: x.reshape(rows, length, self.top),
                likeliest(hidden.reshape(-1, width), params[HEAD], self.top),
            )

        return jax.lax.map(one, batch)


def likeliest(hidden: Array, kernel: Array, top: int) -> tuple[Array, Array]:
    """The likeliest pieces of N positions, a chunk of positions at a time.

    Args:
      hidden: float[N, D].
      kernel: float32[D, V], the output head.
      top: pieces per position, K.

    Returns:
      int32[N, K] ids and float32[N, K] probabilities, which sum to 1.
    """

    def one(x_NxD: Array) -> tuple[Array, Array]:
        logits_NxK, ids_NxK = jax.lax.top_k(jnp.dot(x_NxD, kernel), top)
        return ids_NxK, jax.nn.softmax(logits_NxK)

    ids, probs = (x.reshape(-1, top) for x in jax.lax.map(one, *chunks(hidden)))
    return ids[: hidden.shape[0]], probs[: hidden.shape[0]]


def open_teacher(
    macros: Macros, student: ModelConfig, vocabulary: Any, mesh: Mesh
) -> Teacher | None:
    """The teacher that the settings name, its weights on the devices; None where they name none.

    Raises:
      UserError: if it is not there, damaged, without its sizes, or of another vocabulary.
    """
    settings = TeacherConfig.from_macros(macros)
    if settings.teacher is None:
        return None
    folder = str(shipped.resolve(settings.teacher))
    reader = checkpoints.open_checkpoint(folder)
    if vocabulary:
        run_config.check_vocabulary(folder, vocabulary)
    sizes = {**reader.recorded(), **run_config.sizes_of(reader.tree())}
    own = {name: sizes[name] for name in ModelConfig.macro_names() if name in sizes}
    config = ModelConfig.from_macros(
        macros.replace(**{**own, "ROUTING": "dropless", "DISPATCH": "auto", "REMAT": False})
    )
    if config.num_embeddings != student.num_embeddings:
        raise UserError(
            f"TEACHER {settings.teacher} has {config.num_embeddings:,} rows in its embedding and the model "
            f"that learns {student.num_embeddings:,}: both need the same vocabulary"
        )
    if settings.top > config.num_embeddings:
        raise UserError(
            f"TEACHER_TOP = {settings.top}, but there are {config.num_embeddings} pieces"
        )
    shapes = tree.as_state(param_shapes(config))
    copied = sharding.named(mesh)
    params = tree.parameters(restore_parameters(reader, shapes, lambda path: copied))
    return Teacher(folder, config, params, settings.top, mesh)

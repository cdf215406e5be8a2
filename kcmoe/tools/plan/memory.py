# SPDX-License-Identifier: Apache-2.0
"""Memory of one device during a training step, worked out from shapes; nothing is allocated.

Parameters, optimizer state and gradients are counted leaf by leaf under the sharding of the mesh, what
the backward pass needs by `residuals`. The sum is that of the fullest moment, early in the backward pass;
`tests/plan` compares it with compiled programs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kcmoe import fits
from kcmoe.config.model import ModelConfig
from kcmoe.config.training import LossConfig
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.model.interface import param_shapes
from kcmoe.tools.plan import residuals
from kcmoe.training.losses import chunk_tokens, loss_and_metrics
from kcmoe.training.optimizers.base import Optimizer
from kcmoe.tree import logical_axes

# Logical axes that T5X's 'model' submesh divides (t5x@cc342d4:t5x/contrib/moe/partitioning.py).
_MODEL_AXES = {"vocab", "mlp", "heads", "joined_kv", "expert_mlp"}


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How the devices are divided: data x expert x model."""

    data: int
    expert: int
    model: int

    @property
    def rows_over(self) -> int:
        """Devices that the rows of a batch are divided over."""
        return self.data * self.expert


# Python, JAX and XLA's compiler, which share their memory with a CPU's arrays: what processes of tiny,
# mini and base held beyond the arrays of their compiled steps, 1.0 to 1.8 GiB (benchmarks/README.md).
PROCESS_BYTES = 1.1 * 2**30


# Of what the engine's trace would keep, T5X's step keeps this share, and gradients wait for one exchange,
# where there are activations to wait with: so the steps of base that the TPU's compiler has compiled are met
# to 9 % (benchmarks/README.md).
T5X_KEPT = 0.9


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device when it is fullest."""

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    process: int = 0

    @property
    def total(self) -> int:
        """The peak."""
        arrays = self.parameters + self.optimizer + self.gradients + self.activations
        return arrays + self.process


def mesh_shape(
    config: ModelConfig, devices: int, expert_partitions: int, model_partitions: int
) -> MeshShape:
    """The mesh of the engine and of T5X for this many devices.

    Raises:
      UserError: if NUM_MODEL_PARTITIONS does not divide the devices, or what it should divide.
    """
    names = ("num_heads", "mlp_dim", "expert_mlp_dim", "num_embeddings")
    matrices = {name.upper(): getattr(config, name) for name in names}
    rest, expert = fits.check_model_partitions(model_partitions, devices, matrices), 1
    if config.is_sparse:
        common = math.gcd(rest, config.num_experts)
        divisors = (n for n in range(1, common + 1) if common % n == 0)
        expert = max(n for n in divisors if n <= expert_partitions)
    return MeshShape(rest // expert, expert, model_partitions)


def state_bytes(config: ModelConfig, optimizer: Optimizer, how: MeshShape) -> tuple[int, int]:
    """(parameters, optimizer state) of one device."""
    shapes = {path: leaf.shape for path, leaf in param_shapes(config).items()}
    parameters = sum(_share(shape, logical_axes(path), how) for path, shape in shapes.items())
    slots = [
        slot for path, shape in shapes.items() for slot in optimizer.slots(path, shape).values()
    ]
    return parameters, sum(_share(slot.shape, slot.axes, how) for slot in slots)


def gradient_bytes(parameters: int, activations: int, microbatches: int, platform: str) -> int:
    """Gradients that are there when memory is fullest.

    They are as large as the parameters and come as activations go, layer by layer: two fifths of them are
    there at that moment (compiled steps of tiny, mini and base: 0.3 to 0.8), or all, at the end of the
    backward pass, where activations are few. On TPUs parameters are updated as gradients come, so there are
    no more of them than activations have gone (base on v5e-256). Accumulation holds the sum of all besides.
    """
    arriving = parameters * 2 // 5
    if platform == "tpu":
        arriving = min(arriving, activations)
    else:
        arriving = max(arriving, parameters - activations)
    return arriving + (parameters if microbatches > 1 else 0)


def _share(shape: tuple[int, ...], axes: Sequence[str | None], how: MeshShape) -> int:
    """Bytes on one device of a float32 array that is divided along `axes`."""
    size = 4 * math.prod(shape)
    if "expert" in axes:
        size //= how.expert
    if _MODEL_AXES & set(axes):
        size //= how.model
    return size


def activation_bytes(
    config: ModelConfig,
    losses: LossConfig,
    rows: int,
    lengths: Mapping[str, int],
    *,
    packed: bool,
    platform: str,
    devices: int = 1,
    whole_logits: bool = False,
) -> int:
    """Bytes between the forward and the backward pass of `rows` rows, on each of `devices` that share them.

    `platform` ("cpu", "gpu", "tpu") decides how tokens travel to experts where DISPATCH is 'auto', and
    what XLA keeps, see `residuals`. With REMAT the inputs of the layers are kept, and one layer's insides
    at a time. `whole_logits` are those of T5X, whose head keeps all of them.
    """
    lengths_key = (lengths["inputs"], lengths["targets"], packed, platform)
    kept = _residual_bytes(config, losses, rows, *lengths_key)
    if config.remat:
        plain = _residual_bytes(
            dataclasses.replace(config, remat=False), losses, rows, *lengths_key
        )
        kept += max(plain - kept, 0) // config.num_encoder_layers  # these are the largest layers
    # The head comes first, while everything is still there: the exponentials of a chunk's logits and,
    # made from them, their gradient.
    tokens = rows * lengths["targets"] // devices
    chunk = tokens if whole_logits else chunk_tokens(tokens)
    return kept // devices + 2 * 4 * chunk * config.num_embeddings


@functools.lru_cache(maxsize=64)
def _residual_bytes(
    config: ModelConfig,
    losses: LossConfig,
    rows: int,
    inputs: int,
    targets: int,
    packed: bool,
    platform: str,
) -> int:
    model = EncoderDecoder(config, platform)

    def loss(params: Any, batch: Any, key: Any) -> Any:
        return loss_and_metrics(model, params, batch, losses, key)

    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = batch_shapes(rows, inputs, targets, packed=packed)
    return residuals.kept_bytes(loss, param_shapes(config), batch, key, fused=platform != "cpu")


def batch_shapes(
    rows: int, inputs: int, targets: int, *, packed: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of T5X's features."""
    lengths = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": targets,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": targets,
    }
    if packed:
        lengths |= {
            "encoder_segment_ids": inputs,
            "encoder_positions": inputs,
            "decoder_segment_ids": targets,
            "decoder_positions": targets,
        }
    return {name: jax.ShapeDtypeStruct((rows, n), jnp.int32) for name, n in lengths.items()}

# SPDX-License-Identifier: Apache-2.0
"""One update of the parameters and one evaluation of a batch: what they compute, and what XLA compiles.

Gradient accumulation follows T5X (t5x@cc342d4:t5x/trainer.py::accumulate_grads_microbatched): each
microbatch normalises its loss by its own target tokens, and the gradients are summed, not averaged.
So the gradient of M microbatches is about M times that of one batch, and a microbatch with few
target tokens weighs as much as a full one. Routing groups, and with them what fits into an expert,
are those of a microbatch. Adafactor divides by the gradient's own size and does not see the factor
as long as it stays the same: second moments that are restored hold M^2 of the run that saved them
and forget it in about step^0.8 steps (`start.other_factors` warns). The reported loss is
the mean over microbatches.

Expert gradients are multiplied by NUM_EXPERT_PARTITIONS (t5x@cc342d4:t5x/contrib/moe/trainer.py), a
correction for pjit of old that T5X still applies: without it the second moments of a run that
changes engines would be off by its square.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from kcmoe.config.model import ModelConfig
from kcmoe.config.training import LossConfig
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.model.interface import Flat
from kcmoe.training import schedule, sharding
from kcmoe.training import state as states
from kcmoe.training.losses import loss_and_metrics
from kcmoe.training.optimizers.base import Optimizer
from kcmoe.training.settings import Settings
from kcmoe.training.state import TrainState, is_expert

Batch = Mapping[str, Array]
Metrics = dict[str, Array]
# (flat params, features of rows, dropout key or None for evaluation) -> loss (), metrics
LossFn = Callable[[Flat, Batch, Array | None], tuple[Array, Metrics]]


@dataclasses.dataclass(frozen=True)
class UpdateParts:
    """What an update is made of; everything but the state and the batch.

    Attributes:
      loss_fn: loss and metrics of a microbatch; `model_loss` makes that of the model.
      optimizer: turns gradients into new parameters.
      learning_rate: int32 step -> float32 scalar.
      num_expert_partitions: what gradients of experts are multiplied by.
      seed: of dropout, and of fresh parameters.
      frozen: paths of parameters that stay as they are.
    """

    loss_fn: LossFn
    optimizer: Optimizer
    learning_rate: Callable[[Array], Array]
    num_expert_partitions: int = 1
    seed: int = 0
    frozen: frozenset[str] = frozenset()


def model_loss(
    model: ModelConfig, losses: LossConfig, teacher_weight: float = 0.0, mesh: Mesh | None = None
) -> LossFn:
    """The loss of the model, for `UpdateParts`, computed by this process or by the devices of `mesh`."""
    platform = mesh.devices.flat[0].platform if mesh else None
    module = EncoderDecoder(model, platform, mesh)

    def loss_fn(params: Flat, batch: Batch, rng: Array | None) -> tuple[Array, Metrics]:
        return loss_and_metrics(module, params, batch, losses, rng, teacher_weight)

    return loss_fn


def of_run(
    settings: Settings, frozen: frozenset[str] = frozenset(), mesh: Mesh | None = None
) -> UpdateParts:
    """The parts that a run's settings ask for; `mesh` as in `model_loss`."""
    return UpdateParts(
        loss_fn=model_loss(settings.model, settings.losses, settings.teacher.weight, mesh),
        optimizer=settings.optimizer,
        learning_rate=lambda step: schedule.learning_rate(step, settings.schedule),
        num_expert_partitions=settings.run.num_expert_partitions,
        seed=settings.run.random_seed,
        frozen=frozen,
    )


def accumulate(loss_fn: LossFn, params: Flat, batch: Batch, rng: Array) -> tuple[Flat, Metrics]:
    """Sum of the gradients of the microbatches and mean of their metrics.

    Args:
      loss_fn: loss and metrics of one microbatch.
      params: path -> parameter.
      batch: features [M, B/M, …]. One microbatch's activations exist at a time.
      rng: dropout key; each microbatch gets its own.

    Returns:
      Gradients float32 by path, and metrics.
    """
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    num_microbatches = next(iter(batch.values())).shape[0]

    def one(microbatch: Batch, index: Array | int) -> tuple[Flat, Metrics]:
        (_, metrics), grads = gradient_fn(params, microbatch, jax.random.fold_in(rng, index))
        return jax.tree.map(lambda g: g.astype(jnp.float32), grads), metrics

    if num_microbatches == 1:
        return one({name: value[0] for name, value in batch.items()}, 0)

    def body(total: Flat, item: tuple[Batch, Array]) -> tuple[Flat, Metrics]:
        grads, metrics = one(*item)
        return jax.tree.map(jnp.add, total, grads), metrics

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    grads, metrics = jax.lax.scan(body, zeros, (batch, jnp.arange(num_microbatches)))
    return grads, jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics)


def make_update(parts: UpdateParts) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The update: (state after N steps, batch N+1 [M, B/M, …]) -> (state after N+1 steps, metrics)."""

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # The key depends on seed and step alone, so a resumed run draws what the stopped one would
        # have.
        rng = jax.random.fold_in(jax.random.key(parts.seed), state.step)
        grads, metrics = accumulate(parts.loss_fn, state.params, batch, rng)

        # XLA leaves out of the backward pass what only frozen parameters would need.
        trained = {path: grad for path, grad in grads.items() if path not in parts.frozen}
        grad_norm = global_norm(trained)
        scaled = {
            path: grad * parts.num_expert_partitions if is_expert(path) else grad
            for path, grad in trained.items()
        }

        # T5X looks the rate up with the number of updates done before: 0 for the first.
        learning_rate = parts.learning_rate(state.step)
        params, param_states = parts.optimizer.update(
            {path: state.params[path] for path in scaled},
            state.param_states,
            scaled,
            state.step,
            learning_rate,
        )
        new_state = TrainState(
            state.step + 1, {**state.params, **params}, {**state.param_states, **param_states}
        )
        norms = {"grad_norm": grad_norm, "param_norm": global_norm(new_state.params)}
        return new_state, {**metrics, "learning_rate": learning_rate, **norms}

    return update


def make_eval(loss_fn: LossFn) -> Callable[[Flat, Batch], Metrics]:
    """Metrics of one batch [B, …] without dropout and with the evaluation capacity."""

    def evaluate(params: Flat, batch: Batch) -> Metrics:
        return loss_fn(params, batch, None)[1]

    return evaluate


def global_norm(tree: Flat) -> Array:
    """Euclidean norm of all leaves together, float32 (); not finite if any leaf is not."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in tree.values()]
    return jnp.sqrt(jnp.sum(jnp.stack(squares)))


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs of a run.

    Attributes:
      evaluate: (params, batch) -> metrics; compiled when first used.
      init: () -> fresh state; traced when first used.
      update: (state, batch) -> (state, metrics), lowered; the state given is consumed.
    """

    evaluate: Any
    init: Any
    update: Any

    def start(
        self, state: TrainState | None = None, compiled: Callable[[], None] = lambda: None
    ) -> tuple[TrainState, Any]:
        """The state, fresh where there is none, and the update; `compiled` is called before either runs."""
        if state is not None:
            update = self.update.compile()
            compiled()
            return state, update
        # Side by side: XLA compiles outside Python's lock, and most of its passes use one core.
        with ThreadPoolExecutor(2) as pool:
            init, update = pool.map(lambda one: one.compile(), (self.init.lower(), self.update))
        compiled()
        return init(), update


def lower(
    parts: UpdateParts,
    model: ModelConfig,
    mesh: Mesh,
    batch: Mapping[str, Any],
    microbatches: int = 1,
    partitioning_dims: int = 1,
) -> Programs:
    """Traces the programs for these shapes; nothing is compiled or allocated.

    Args:
      parts: the update.
      model: whose fresh parameters `Programs.init` makes.
      mesh: the devices, from `sharding.make_mesh`, or those of a topology that is not here.
      batch: an example [B, …], or its shapes and dtypes.
      microbatches: parts a batch is computed in, M.
      partitioning_dims: PARAMETER_PARTITIONING_DIMS.
    """
    shapes = states.state_shapes(model, parts.optimizer)
    placed = sharding.state_shardings(mesh, shapes, parts.optimizer, partitioning_dims)
    copied = sharding.named(mesh)
    state = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, placed
    )
    init = jax.jit(
        lambda: states.init_state(model, parts.seed, parts.optimizer), out_shardings=placed
    )
    update = jax.jit(make_update(parts), donate_argnums=0, out_shardings=(placed, copied))
    return Programs(
        evaluate=jax.jit(make_eval(parts.loss_fn), out_shardings=copied),
        init=init,
        update=update.lower(state, sharding.batch_shapes(mesh, batch, microbatches)),
    )

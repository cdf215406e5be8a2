# SPDX-License-Identifier: Apache-2.0
"""One update of the parameters, and one evaluation of a batch, as functions to be compiled.

Gradient accumulation follows T5X (t5x@cc342d4:t5x/trainer.py::accumulate_grads_microbatched): each
microbatch normalises its loss by its own target tokens, and the gradients are summed, not averaged.
So the gradient of M microbatches is about M times that of one batch, and a microbatch with few
target tokens weighs as much as a full one. Routing groups, and with them what fits into an expert,
are those of a microbatch. Adafactor divides by the gradient's own size and does not see the factor
as long as it stays the same: second moments that are restored hold M^2 of the run that saved them
and forget it in about step^0.8 steps (`checkpointing.other_factors` warns). The reported loss is
the mean over microbatches.

Expert gradients are multiplied by NUM_EXPERT_PARTITIONS (t5x@cc342d4:t5x/contrib/moe/trainer.py), a
correction for pjit of old that T5X still applies: without it the second moments of a run that
changes engines would be off by its square.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from kcmoe.training import adafactor
from kcmoe.training.freezing import is_expert
from kcmoe.training.state import Flat, TrainState

Batch = Mapping[str, Array]
Metrics = dict[str, Array]
# (flat params, features of rows, dropout key or None for evaluation) -> loss (), metrics
LossFn = Callable[[Flat, Batch, Array | None], tuple[Array, Metrics]]


@dataclasses.dataclass(frozen=True)
class StepParts:
    """What an update is made of; everything but the state and the batch."""

    loss_fn: LossFn
    optimizer: adafactor.AdafactorConfig
    learning_rate: Callable[[Array], Array]
    num_expert_partitions: int
    seed: int
    frozen: frozenset[str] = frozenset()


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


def make_update(parts: StepParts) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The update: state after N steps and batch N+1 [M, B/M, …] -> state after N+1 steps,
    metrics."""

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
        params, param_states = adafactor.update(
            {path: state.params[path] for path in scaled},
            state.param_states,
            scaled,
            state.step,
            learning_rate,
            parts.optimizer,
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

# SPDX-License-Identifier: Apache-2.0
"""What XLA compiles for a run: the update, the evaluation, and the making of fresh weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh

from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.training import schedule, sharding
from kcmoe.training import state as states
from kcmoe.training.losses import loss_and_metrics
from kcmoe.training.settings import Settings
from kcmoe.training.state import TrainState
from kcmoe.training.step import StepParts, make_eval, make_update


def compile_together(*lowered: Any) -> list[Any]:
    """Compiles what `jax.jit(…).lower(…)` gave, side by side: XLA compiles outside Python's lock, and
    most of its passes use one core."""
    with ThreadPoolExecutor(len(lowered)) as pool:
        return list(pool.map(lambda program: program.compile(), lowered))


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

    def start(self, state: TrainState | None) -> tuple[TrainState, Any]:
        """The state, fresh where there is none, and the compiled update."""
        if state is not None:
            return state, self.update.compile()
        init, update = compile_together(self.init.lower(), self.update)
        return init(), update


def lower(
    settings: Settings,
    mesh: Mesh,
    shardings: Mapping[str, jax.sharding.NamedSharding],
    batch: Mapping[str, Any],
    frozen: frozenset[str],
) -> Programs:
    """Traces the programs for these shapes; nothing is compiled or allocated but the batch.

    Args:
      shardings: of every leaf of the flat train state.
      batch: an example, [B, …] on the host.
      frozen: paths of parameters that stay as they are.
    """
    model, run = EncoderDecoder(settings.model), settings.run

    def loss_fn(params: Any, features: Any, rng: Any) -> Any:
        return loss_and_metrics(model, params, features, settings.losses, rng)

    parts = StepParts(
        loss_fn=loss_fn,
        optimizer=settings.optimizer,
        learning_rate=lambda step: schedule.learning_rate(step, settings.schedule),
        num_expert_partitions=run.num_expert_partitions,
        seed=run.random_seed,
        frozen=frozen,
    )
    placed, copied = states.from_flat(shardings), sharding.named(mesh)
    shapes = states.state_shapes(settings.model)
    state = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, placed
    )
    init = jax.jit(lambda: states.init_state(settings.model, run.random_seed), out_shardings=placed)
    update = jax.jit(make_update(parts), donate_argnums=0, out_shardings=(placed, copied))
    return Programs(
        evaluate=jax.jit(make_eval(loss_fn), out_shardings=copied),
        init=init,
        update=update.lower(state, sharding.put_batch(mesh, batch, run.microbatches)),
    )

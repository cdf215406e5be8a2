# SPDX-License-Identifier: Apache-2.0
"""The process in which `kcmoe bench train --against=t5x` times T5X + Flaxformer's training step.

The model is the one `configs/t5x/model.gin` gives T5X; the step is its loss, gradients and Adafactor,
compiled as one program, without T5X's trainer around it: what is left out would only make it slower.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from kcmoe.t5x import requirements
from kcmoe.tools.bench.step_worker import random_batch, serve
from kcmoe.tools.bench.train import Shape

requirements.check_t5x()

import flax  # noqa: E402
import gin  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from t5x import utils  # noqa: E402
from t5x.contrib.moe import partitioning  # noqa: E402

from kcmoe.io import resources  # noqa: E402
from kcmoe.model.cpu import memory as kept_memory  # noqa: E402


@gin.configurable
def measured_model(model: Any = gin.REQUIRED) -> Any:
    """The model that gin built."""
    return model


def build(shape: Shape) -> Any:
    """T5X's model for `shape.size`, from the gin files its own runs use."""
    # A process of its own, so it may move: gin takes a folder `configs` on PYTHONPATH for a package without a
    # file and fails on its name, unless the file is found from here first.
    os.chdir(resources.find("configs").parent)
    lines = [
        "from __gin__ import dynamic_registration",
        "from kcmoe.t5x import step_speed",
        f"include 'configs/sizes/{shape.size}.gin'",
        "include 'configs/t5x/model.gin'",
        "NUM_MODEL_PARTITIONS = 1",
        *(binding.replace("=", " = ", 1) for binding in shape.gin),
        "step_speed.measured_model.model = %MODEL",
    ]
    gin.parse_config("\n".join(lines))
    return gin.get_configurable(measured_model)()


def main(shape: Shape) -> None:
    """Compiles a training step of T5X + Flaxformer and serves it."""
    kept_memory.compute_in_turn()
    model = build(shape)
    batch = random_batch(shape, model.module.shared_token_embedder_factory().num_embeddings)
    partitioner = partitioning.MoePjitPartitioner(num_expert_partitions=1, num_partitions=1)
    started = time.perf_counter()
    state = utils.TrainStateInitializer(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes={name: value.shape for name, value in batch.items()},
        partitioner=partitioner,
    ).from_scratch(jax.random.PRNGKey(0))
    on_device = jax.device_put(batch)
    key = jax.random.PRNGKey(1)

    def update(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        gradient_fn = jax.value_and_grad(model.loss_fn, has_aux=True)
        (loss, _), grads = gradient_fn(state.params, batch, key)
        mutables = flax.core.FrozenDict({})
        new = state.apply_gradient(grads, learning_rate=jnp.float32(0.01), flax_mutables=mutables)
        return new, loss

    compiled = jax.jit(update, donate_argnums=0).lower(state, on_device).compile()
    kept = kept_memory.keep(compiled)
    facts = {"compile_s": time.perf_counter() - started, "device": jax.devices()[0].device_kind}
    holder = [state]
    del state

    def step() -> None:
        holder[0], loss = kept(holder[0], on_device)
        jax.block_until_ready(loss)

    serve(facts, step, peak=None)


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    from kcmoe.t5x import step_speed  # the module gin knows, not __main__

    step_speed.main(Shape(**{**arguments, "gin": tuple(arguments["gin"])}))

# SPDX-License-Identifier: Apache-2.0
"""What `kcmoe bench` times beside the engine: T5X's training step and decoding, and SeqIO's batches.

The model is the one `configs/t5x/model.gin` gives T5X. Its step is its loss, gradients and Adafactor,
compiled as one program, without T5X's trainer around it: what is left out would only make it slower.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin
import numpy as np
import seqio

from kcmoe.io import resources
from kcmoe.t5x import requirements
from kcmoe.t5x import tasks as seqio_tasks
from kcmoe.tasks.registry import Mixture, Task

# rows of the embedding -> the features of a batch
MakeBatch = Callable[[int], dict[str, np.ndarray]]


def batches(
    task: Task | Mixture,
    vocabulary_file: str | None,
    lengths: Mapping[str, int],
    batch_size: int,
    data_dir: str,
    pack: bool,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled training batches, as T5X would get them."""
    name = seqio_tasks.register(task, data_dir, vocabulary_file)
    dataset = seqio.get_dataset(
        name,
        task_feature_lengths=dict(lengths),
        dataset_split="train",
        shuffle=True,
        num_epochs=None,
        feature_converter=seqio.EncDecFeatureConverter(pack=pack),
        seed=0,
    )
    return dataset.batch(batch_size, drop_remainder=True).prefetch(2).as_numpy_iterator()


@gin.configurable
def measured_model(model: Any = gin.REQUIRED) -> Any:
    """The model that gin built."""
    return model


def build(size: str, bindings: Sequence[str]) -> Any:
    """T5X's model of a size, from the gin files its own runs use.

    Args:
      size: a file of configs/sizes.
      bindings: "NAME=VALUE" macros that differ.
    """
    requirements.check_t5x()
    # gin takes a folder `configs` on PYTHONPATH for a package without a file and fails on its name, unless
    # the file is found from the working directory first.
    os.chdir(resources.find("configs").parent)
    lines = [
        "from __gin__ import dynamic_registration",
        "from kcmoe.t5x import speed",
        f"include 'configs/sizes/{size}.gin'",
        "include 'configs/t5x/model.gin'",
        "NUM_MODEL_PARTITIONS = 1",
        *(binding.replace("=", " = ", 1) for binding in bindings),
        "speed.measured_model.model = %MODEL",
    ]
    gin.parse_config("\n".join(lines))
    return gin.get_configurable(measured_model)()


def training_step(
    size: str, bindings: Sequence[str], make_batch: MakeBatch
) -> tuple[dict[str, Any], Callable[[], None]]:
    """A compiled training step of T5X + Flaxformer: facts about it, and what runs it once.

    Changes the working directory: meant for a process of its own.
    """
    from kcmoe.model.cpu import memory as kept_memory

    kept_memory.compute_in_turn()
    model = build(size, bindings)

    import flax
    import jax
    import jax.numpy as jnp
    from t5x import utils
    from t5x.contrib.moe import partitioning

    batch = make_batch(model.module.shared_token_embedder_factory().num_embeddings)
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

    return facts, step


def decoding(
    size: str, bindings: Sequence[str], make_batch: MakeBatch
) -> tuple[dict[str, Any], Callable[[], None]]:
    """T5X's compiled `predict_batch`, a beam search with one beam: facts, and what decodes the batch once.

    Changes the working directory: meant for a process of its own.
    """
    model = build(size, bindings)

    import jax

    batch = make_batch(model.module.shared_token_embedder_factory().num_embeddings)
    batch = {name: x for name, x in batch.items() if name.endswith("_tokens")}
    shapes = {name: value.shape for name, value in batch.items()}
    started = time.perf_counter()
    variables = model.get_initial_variables(jax.random.PRNGKey(0), shapes)
    on_device = jax.device_put(batch)
    predict = jax.jit(model.predict_batch).lower(variables["params"], on_device).compile()
    facts = {"compile_s": time.perf_counter() - started, "device": jax.devices()[0].device_kind}

    def step() -> None:
        jax.block_until_ready(predict(variables["params"], on_device))

    return facts, step

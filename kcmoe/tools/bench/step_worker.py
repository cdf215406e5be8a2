# SPDX-License-Identifier: Apache-2.0
"""What `kcmoe bench train` times this engine in: `python -m kcmoe.tools.bench.step_worker SHAPE`.

Prints facts as JSON once compiled; then for every number read runs that many steps and prints their seconds,
the matrix-product peak measured right after them, and the most memory the process ever held.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.tools.bench.train import Shape

PEAK_SIZE = 2048  # rows and columns of the matrices whose product counts as the peak


def macros(shape: Shape) -> gin_files.Macros:
    """The engine's macros for `shape.size`."""
    files = ["configs/engine/engine.gin", f"configs/sizes/{shape.size}.gin"]
    return gin_files.parse(files, shape.gin)


def model_config(shape: Shape) -> ModelConfig:
    """The model of `shape.size`; `UserError` if there is none."""
    return ModelConfig.from_macros(macros(shape))


def random_batch(shape: Shape, vocabulary: int) -> dict[str, np.ndarray]:
    """Random ids without padding, two packed examples a row, in T5X's features."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(3, vocabulary, (shape.batch, shape.inputs)).astype(np.int32)
    targets = rng.integers(3, vocabulary, (shape.batch, shape.targets)).astype(np.int32)

    def halves(length: int) -> tuple[np.ndarray, np.ndarray]:
        segments = np.where(np.arange(length) < length // 2, 1, 2).astype(np.int32)
        positions = np.arange(length, dtype=np.int32) % max(1, length // 2)
        return np.tile(segments, (shape.batch, 1)), np.tile(positions, (shape.batch, 1))

    encoder_segments, encoder_positions = halves(shape.inputs)
    decoder_segments, decoder_positions = halves(shape.targets)
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones_like(targets),
        "encoder_segment_ids": encoder_segments,
        "encoder_positions": encoder_positions,
        "decoder_segment_ids": decoder_segments,
        "decoder_positions": decoder_positions,
    }


def serve(
    facts: dict[str, Any], step: Callable[[], None], peak: Callable[[], float] | None
) -> None:
    """Answers requests for steps until the pipe closes.

    Args:
      facts: printed first.
      step: runs one step and waits for it.
      peak: measures FLOP/s of a matrix product, or None to leave that to the other process.
    """
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        answer: dict[str, Any] = {"seconds": seconds, "memory_gib": memory}
        if peak is not None:
            answer["peak_flops"] = peak()
        print(json.dumps(answer), flush=True)


def main(shape: Shape) -> None:
    """Compiles a training step of this engine and serves it."""
    import jax
    import jax.numpy as jnp

    from kcmoe.model.cpu import memory as kept_memory
    from kcmoe.model.encoder_decoder import EncoderDecoder
    from kcmoe.training import adafactor, losses
    from kcmoe.training.programs import compile_together
    from kcmoe.training.state import init_state, state_shapes
    from kcmoe.training.step import StepParts, make_update

    kept_memory.compute_in_turn()
    settings = macros(shape)
    config = model_config(shape)
    loss_config = losses.LossConfig.from_macros(settings)
    model = EncoderDecoder(config)
    parts = StepParts(
        loss_fn=lambda p, b, rng: losses.loss_and_metrics(model, p, b, loss_config, rng),
        optimizer=adafactor.AdafactorConfig.from_macros(settings),
        learning_rate=lambda step: jnp.full((), 0.01),
        num_expert_partitions=config.num_experts,
        seed=0,
    )
    batch = {k: v[None] for k, v in random_batch(shape, config.num_embeddings).items()}
    batch = jax.device_put(batch)
    started = time.perf_counter()
    init, update = compile_together(
        jax.jit(init_state, static_argnums=(0, 1)).lower(config, 0),
        jax.jit(make_update(parts), donate_argnums=0).lower(state_shapes(config), batch),
    )
    state = jax.block_until_ready(init())
    update = kept_memory.keep(update)
    facts = {
        "compile_s": time.perf_counter() - started,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    holder = [state]
    del state

    def step() -> None:
        holder[0], metrics = update(holder[0], batch)
        jax.block_until_ready(metrics["loss"])

    square = jnp.ones((PEAK_SIZE, PEAK_SIZE))
    product = jax.jit(jnp.dot)

    def peak() -> float:
        jax.block_until_ready(product(square, square))
        times = []
        for _ in range(5):
            started = time.perf_counter()
            jax.block_until_ready(product(square, square))
            times.append(time.perf_counter() - started)
        return 2 * PEAK_SIZE**3 / min(times)

    serve(facts, step, peak)


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    main(Shape(**{**arguments, "gin": tuple(arguments["gin"])}))

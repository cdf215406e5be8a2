# SPDX-License-Identifier: Apache-2.0
"""The process in which `kcmoe bench predict --against=t5x` times T5X's decoding.

One batch, padded as the published runs pad it, decoded by T5X's beam search with one beam.
"""

from __future__ import annotations

import json
import sys
import time

from kcmoe.t5x.step_speed import build
from kcmoe.tools.bench.step_worker import random_batch, serve
from kcmoe.tools.bench.train import Shape

import jax  # isort: skip  (after the check for T5X that step_speed makes)


def main(shape: Shape) -> None:
    """Compiles T5X's `predict_batch` and serves it."""
    model = build(shape)
    batch = random_batch(shape, model.module.shared_token_embedder_factory().num_embeddings)
    batch = {name: x for name, x in batch.items() if name.endswith("_tokens")}
    shapes = {name: value.shape for name, value in batch.items()}
    started = time.perf_counter()
    variables = model.get_initial_variables(jax.random.PRNGKey(0), shapes)
    on_device = jax.device_put(batch)
    predict = jax.jit(model.predict_batch).lower(variables["params"], on_device).compile()
    facts = {"compile_s": time.perf_counter() - started, "device": jax.devices()[0].device_kind}

    def step() -> None:
        jax.block_until_ready(predict(variables["params"], on_device))

    serve(facts, step, peak=None)


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    main(Shape(**{**arguments, "gin": tuple(arguments["gin"])}))

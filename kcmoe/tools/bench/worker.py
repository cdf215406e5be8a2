# SPDX-License-Identifier: Apache-2.0
"""Times one engine in a process of its own: both ends of the pipe between `kcmoe bench` and that process.

The process (`python -m kcmoe.tools.bench.worker ENGINE SHAPE`) prints facts as JSON once compiled; then for
every number it reads it runs that many steps and prints their seconds and the most memory it ever held. This
engine's process also measures the peak of matrix products right after the steps.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.errors import UserError

PEAK_SIZE = 2048  # rows and columns of the matrices whose product counts as the peak


@dataclasses.dataclass(frozen=True)
class StepShape:
    """What a step works on: `batch` packed rows of `inputs` and `targets` positions."""

    size: str
    batch: int
    inputs: int
    targets: int
    gin: tuple[str, ...] = ()


class Worker:
    """The process of one engine, seen from `kcmoe bench`. Speaks JSON lines over its pipes."""

    def __init__(self, name: str, engine: str, shape: StepShape, env: Mapping[str, str]):
        self.name = name
        self.seconds: list[float] = []
        self.peaks: list[float] = []
        self.memory_gib = 0.0
        # T5X fills pages with warnings: shown only if it fails.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed by `stop`
        described = json.dumps(dataclasses.asdict(shape))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kcmoe.tools.bench.worker", engine, described],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=env,
        )
        self.facts = self._receive()

    def run(self, steps: int) -> list[float]:
        """Runs `steps` steps; returns their seconds and keeps them."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        answer = self._receive()
        self.seconds += answer["seconds"]
        self.memory_gib = answer["memory_gib"]
        if "peak_flops" in answer:
            self.peaks.append(answer["peak_flops"])
        return answer["seconds"]

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # T5X logs to stdout as well
                return json.loads(line)
        status = self._process.wait()
        self._log.seek(0)
        tail = self._log.read().decode(errors="replace").splitlines()[-20:]
        raise UserError("\n".join([f"the {self.name} process ended (status {status}):", *tail]))

    def stop(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


def macros(shape: StepShape) -> gin_files.Macros:
    """The engine's macros for `shape.size`."""
    files = ["configs/engine/engine.gin", f"configs/sizes/{shape.size}.gin"]
    return gin_files.parse(files, shape.gin)


def model_config(shape: StepShape) -> ModelConfig:
    """The model of `shape.size`; `UserError` if there is none."""
    return ModelConfig.from_macros(macros(shape))


def random_batch(shape: StepShape, vocabulary: int) -> dict[str, np.ndarray]:
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


def _own_step(shape: StepShape) -> tuple[dict[str, Any], Callable[[], Any], Callable[[], float]]:
    """A compiled training step of this engine: facts, the step, and the peak of this machine."""
    import jax
    import jax.numpy as jnp

    from kcmoe.config.training import LossConfig
    from kcmoe.model.cpu import memory as kept_memory
    from kcmoe.training import sharding
    from kcmoe.training import update as updates
    from kcmoe.training.optimizers.registry import optimizer

    kept_memory.compute_in_turn()
    settings = macros(shape)
    config = model_config(shape)
    parts = updates.UpdateParts(
        loss_fn=updates.model_loss(config, LossConfig.from_macros(settings)),
        optimizer=optimizer(settings["OPTIMIZER"], settings),
        learning_rate=lambda step: jnp.full((), 0.01),
        num_expert_partitions=config.num_experts,
    )
    rows = random_batch(shape, config.num_embeddings)
    mesh = sharding.make_mesh(config, config.num_experts, jax.devices()[:1])
    batch = sharding.put_batch(mesh, rows, 1)
    started = time.perf_counter()
    state, update = updates.lower(parts, config, mesh, rows).start()
    holder = [jax.block_until_ready(state)]
    del state
    update = kept_memory.keep(update)
    facts = {
        "compile_s": time.perf_counter() - started,
        "device": f"1 x {jax.devices()[0].device_kind}",
    }

    def step() -> None:
        holder[0], metrics = update(holder[0], batch)
        jax.block_until_ready(metrics["loss"])

    return facts, step, product_peak()


def product_peak() -> Callable[[], float]:
    """A function that measures this machine: FLOP/s of the product of two large float32 matrices."""
    import jax
    import jax.numpy as jnp

    square = jnp.ones((PEAK_SIZE, PEAK_SIZE), jnp.float32)
    product = jax.jit(jnp.dot)

    def peak() -> float:
        jax.block_until_ready(product(square, square))
        times = []
        for _ in range(5):
            started = time.perf_counter()
            jax.block_until_ready(product(square, square))
            times.append(time.perf_counter() - started)
        return 2 * PEAK_SIZE**3 / min(times)

    return peak


def main(engine: str, shape: StepShape) -> None:
    """Compiles a step of "kcmoe", "t5x" or "t5x decoding" and runs it as often as it is asked to."""
    peak = None
    if engine == "kcmoe":
        facts, step, peak = _own_step(shape)
    else:
        from kcmoe.t5x import speed

        compiled = {"t5x": speed.training_step, "t5x decoding": speed.decoding}[engine]
        facts, step = compiled(
            shape.size, shape.gin, lambda vocabulary: random_batch(shape, vocabulary)
        )
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


if __name__ == "__main__":
    described = json.loads(sys.argv[2])
    main(sys.argv[1], StepShape(**{**described, "gin": tuple(described["gin"])}))

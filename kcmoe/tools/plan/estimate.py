# SPDX-License-Identifier: Apache-2.0
"""Memory, time and device-hours of a run on given hardware, and what to change where it does not fit.

Two stacks are known: the engine, and T5X + Flaxformer (a TPU slice of any size). The latter sends
tokens to experts by multiplying with one-hot masks, which costs arithmetic and memory of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

from kcmoe import fits
from kcmoe.config.model import ModelConfig
from kcmoe.errors import UserError
from kcmoe.model import flops
from kcmoe.model.routing import expert_capacity, num_groups
from kcmoe.tools.plan import memory as memory_lib
from kcmoe.tools.plan.hardware import Hardware
from kcmoe.tools.plan.memory import Memory, MeshShape
from kcmoe.training.settings import Settings

Stack = Literal["engine", "t5x"]
Fit = Literal["yes", "tight", "no"]

_TRIES = 2  # of a setting, where looking closer takes minutes


@dataclasses.dataclass(frozen=True)
class Tradeoff:
    """The settings that trade memory for something else."""

    batch_size: int
    microbatches: int
    remat: bool
    model_partitions: int


@dataclasses.dataclass(frozen=True)
class Forecast:
    """One run on one machine.

    Attributes:
      step_flops: useful arithmetic of a step.
      extra_flops: arithmetic that dispatch masks or recomputation add to a step.
      step_s: seconds per step at the stated utilisation, which counts useful arithmetic only, so
        that masks are part of what is lost; recomputation comes on top.
    """

    choice: Tradeoff
    mesh: MeshShape
    memory: Memory
    step_flops: float
    extra_flops: float
    step_s: float


@dataclasses.dataclass(frozen=True)
class Planner:
    """Everything about a run but the `Tradeoff`."""

    settings: Settings
    hardware: Hardware
    stack: Stack
    utilisation: float
    packed: bool

    def asked(self, model_partitions: int) -> Tradeoff:
        """The choice that the settings make."""
        run = self.settings.run
        return Tradeoff(
            run.batch_size, run.microbatches, self.settings.model.remat, model_partitions
        )

    def estimate(self, choice: Tradeoff) -> Forecast:
        """Raises `UserError` where the rows of a microbatch do not divide over the devices."""
        model, run = self._model(choice), self.settings.run
        how = memory_lib.mesh_shape(
            model, self.hardware.devices, run.num_expert_partitions, choice.model_partitions
        )
        fits.check_batch(choice.batch_size, choice.microbatches, how.rows_over)
        if self.stack == "t5x":
            # Flaxformer makes as many groups that each copy of an expert has some.
            copies = max(1, how.data * how.expert // run.num_expert_partitions)
            model = dataclasses.replace(model, num_expert_replicas=copies)
        parameters, optimizer = memory_lib.state_bytes(model, self.settings.optimizer, how)
        activations = memory_lib.activation_bytes(
            model,
            self.settings.losses,
            choice.batch_size // choice.microbatches,
            run.lengths,
            packed=self.packed,
            platform="gpu" if self.stack == "t5x" else self.hardware.platform,
            devices=how.rows_over,
            whole_logits=self.stack == "t5x",
        )
        activations //= choice.model_partitions
        platform = self.hardware.platform
        gradients = memory_lib.gradient_bytes(
            parameters, activations, choice.microbatches, platform
        )
        if self.stack == "t5x":
            activations = int(activations * memory_lib.T5X_KEPT)
            gradients = min(parameters, activations)
            gradients += parameters if choice.microbatches > 1 else 0
        process = int(memory_lib.PROCESS_BYTES) if self.hardware.platform == "cpu" else 0
        inputs, targets = run.lengths["inputs"], run.lengths["targets"]
        useful = flops.train_step_flops(model, choice.batch_size, inputs, targets)
        repeated = useful / 3 if model.remat else 0.0  # one more forward pass
        masks = 0.0
        if self.stack == "t5x":
            masks = mask_flops(model, choice.batch_size, inputs, targets)
            masks += embedding_flops(model, choice.batch_size * (inputs + targets))
        peak = self.hardware.peak_flops(model.activation_dtype)
        return Forecast(
            choice=choice,
            mesh=how,
            memory=Memory(parameters, optimizer, gradients, activations, process),
            step_flops=useful,
            extra_flops=repeated + masks,
            step_s=(useful + repeated) / (peak * self.utilisation),
        )

    def fits(self, estimate: Forecast) -> Fit:
        """Whether one device can hold it.

        "tight" is for TPUs, where XLA computes activations again by itself when memory runs short: up to
        a quarter of them is taken to be harmless.
        """
        over = estimate.memory.total - self.hardware.usable_bytes
        if over <= 0:
            return "yes"
        is_tpu = self.hardware.platform == "tpu"
        return "tight" if is_tpu and over <= estimate.memory.activations / 4 else "no"

    def remedies(
        self, asked: Tradeoff, accept: Callable[[Forecast], bool] = lambda _: True
    ) -> list[Forecast]:
        """For each setting that saves memory, the smallest change that makes the run fit.

        `accept` may look closer at what fits by arithmetic; where it refuses, one more step is tried.
        """
        found = []
        for candidates in (
            self._microbatches(asked),
            self._remat(asked),
            self._model_partitions(asked),
            self._batches(asked),
        ):
            refused = 0
            for choice in candidates:
                try:
                    estimate = self.estimate(choice)
                except UserError:
                    continue  # does not divide
                if self.fits(estimate) != "yes":
                    continue
                if accept(estimate):
                    found.append(estimate)
                    break
                refused += 1
                if refused == _TRIES:
                    break
        return found

    def _model(self, choice: Tradeoff) -> ModelConfig:
        dispatch: Literal["einsum", "auto"] = "einsum" if self.stack == "t5x" else "auto"
        asked = self.settings.model
        return dataclasses.replace(
            asked,
            remat=choice.remat and self.stack == "engine",  # Flaxformer's files have no such switch
            dispatch=dispatch if asked.dispatch == "auto" else asked.dispatch,
        )

    def _microbatches(self, asked: Tradeoff) -> Iterator[Tradeoff]:
        count = asked.microbatches * 2
        while count <= asked.batch_size:
            yield dataclasses.replace(asked, microbatches=count)
            count *= 2

    def _remat(self, asked: Tradeoff) -> Iterator[Tradeoff]:
        # XLA for CPUs undoes it: the compiled step is as large with REMAT as without.
        if self.stack == "engine" and not asked.remat and self.hardware.platform != "cpu":
            recomputed = dataclasses.replace(asked, remat=True)
            yield recomputed
            yield from self._microbatches(recomputed)

    def _model_partitions(self, asked: Tradeoff) -> Iterator[Tradeoff]:
        count = asked.model_partitions * 2
        while self.stack == "t5x" and count <= self.hardware.devices:
            partitioned = dataclasses.replace(asked, model_partitions=count)
            yield partitioned
            yield from self._microbatches(partitioned)
            count *= 2

    def _batches(self, asked: Tradeoff) -> Iterator[Tradeoff]:
        size = asked.batch_size // 2
        while size >= 1:
            yield dataclasses.replace(asked, batch_size=size, microbatches=1)
            size //= 2


def embedding_flops(config: ModelConfig, tokens: int) -> float:
    """FLOPs of a training step that Flaxformer spends on multiplying one-hot vectors with the embedding.

    Forward pass and gradient of the table; the one-hot vectors get none.
    """
    return 2.0 * 2.0 * tokens * config.num_embeddings * config.embed_dim


def mask_flops(config: ModelConfig, rows: int, inputs: int, targets: int) -> float:
    """FLOPs of a training step that Flaxformer spends on multiplying with dispatch and combine masks.

    Every token is multiplied with every slot of its group, there and back: 2 x 2 x slots x d FLOPs.
    """

    def one_stack(length: int, layers: int) -> float:
        copies = config.num_experts * config.num_expert_replicas
        group = rows * length // num_groups(rows * length, config.group_size, copies)
        factor = config.train_expert_capacity_factor
        slots = config.num_experts * expert_capacity(factor, group, config.num_experts)
        return layers * rows * length * 4.0 * slots * config.embed_dim

    forward = one_stack(inputs, config.num_encoder_sparse_layers)
    forward += one_stack(targets, config.num_decoder_sparse_layers)
    return 3.0 * forward

# SPDX-License-Identifier: Apache-2.0
"""The fixture `toy`: a 16-wide model on random ids, so that the train loop takes a second or two."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
import pytest

from kcmoe.config import gin_files
from kcmoe.training.inputs import Features, Inputs
from kcmoe.training.settings import Settings


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests of this folder compile the same few programs again and again."""
    import jax

    folder = str(tmp_path_factory.mktemp("compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture
def toy() -> ModuleType:
    """This module."""
    return sys.modules[__name__]


MACROS: dict[str, Any] = {
    "NUM_ENCODER_LAYERS": 1,
    "NUM_DECODER_LAYERS": 1,
    "NUM_ENCODER_SPARSE_LAYERS": 1,
    "NUM_DECODER_SPARSE_LAYERS": 1,
    "NUM_HEADS": 2,
    "HEAD_DIM": 8,
    "EMBED_DIM": 16,
    "MLP_DIM": 32,
    "EXPERT_MLP_DIM": 32,
    "NUM_EMBEDDINGS": 64,
    "NUM_EXPERTS": 4,
    "GROUP_SIZE": 16,
    "SCALE": 1.0,
    "ACTIVATION_DTYPE": "float32",
    "DROPOUT_RATE": 0.1,
    "MIXTURE_OR_TASK_NAME": "toy",
    "TASK_FEATURE_LENGTHS": {"inputs": 12, "targets": 8},
    "BATCH_SIZE": 8,
    "TRAIN_STEPS": 6,
    "EVAL_PERIOD": 2,
    "EVAL_STEPS": 1,
    "CHECKPOINT_PERIOD": 2,
    "CHECKPOINTS_TO_KEEP": 2,
    "LEARNING_RATE": 0.05,
    "LEARNING_RATE_FACTORS": "constant",
    "PACK": False,
}


def settings(model_dir: Path, **changes: Any) -> Settings:
    """The toy run, with some macros changed."""
    values = {**MACROS, "MODEL_DIR": str(model_dir), **changes}
    files = ["configs/engine/engine.gin", "configs/sizes/tiny.gin", "configs/runs/pretrain.gin"]
    return Settings.from_macros(gin_files.parse(files, [f"{k} = {v!r}" for k, v in values.items()]))


@dataclasses.dataclass(frozen=True)
class ToyBatches:
    """Random sentences that repeat each other a little, a pure function of the row."""

    batch_size: int
    inputs: int = 12
    targets: int = 8
    vocabulary: int = 64
    first_row: int = 0
    part: tuple[int, ...] = ()

    def at(self, step: int) -> Features:
        start = self.first_row + step * self.batch_size
        part = self.part or range(self.batch_size)
        rows = [np.random.default_rng(start + row) for row in part]
        encoder = np.stack([r.integers(3, self.vocabulary, self.inputs) for r in rows])
        decoder = (encoder[:, : self.targets] * 7) % self.vocabulary
        decoder = np.maximum(decoder, 3)
        encoder[:, -2:], decoder[:, -1:] = 0, 0
        shifted = np.pad(decoder[:, :-1], ((0, 0), (1, 0)))
        features = {
            "encoder_input_tokens": encoder,
            "decoder_input_tokens": shifted,
            "decoder_target_tokens": decoder,
            "decoder_loss_weights": decoder > 0,
        }
        return {name: x.astype(np.int32) for name, x in features.items()}

    def iterate(self, start_step: int, stop_step: int, workers: int) -> Iterator[Features]:
        del workers
        return (self.at(step) for step in range(start_step, stop_step))

    def only(self, rows: np.ndarray) -> Self:
        return dataclasses.replace(self, part=tuple(rows.tolist()))

    def position(self, step: int) -> dict[str, Any]:
        return {"step": step, "row": self.first_row + step * self.batch_size}

    def resume(self, position: Mapping[str, Any]) -> Self:
        first = position["row"] - position["step"] * self.batch_size
        return dataclasses.replace(self, first_row=first)


def inputs(batch_size: int = 8) -> Inputs:
    """Training batches, and one batch of other rows held out."""
    held_out = dataclasses.replace(ToyBatches(batch_size), first_row=1_000_000).at(0)
    return Inputs(ToyBatches(batch_size), [held_out])


def records(model_dir: Path, split: str = "train") -> list[dict[str, Any]]:
    """The records of `metrics.jsonl` of one split."""
    lines = (model_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["split"] == split]

# SPDX-License-Identifier: Apache-2.0
"""A reference case: what T5X + Flaxformer computed for one small model.

A folder with case.json (macros that differ from ST-MoE base, batch shape, losses of each step) and the arrays
params.npz, batches.npz, outputs.npz, trajectory.npz, and the final state as a T5X checkpoint in one or both
of its formats. Keys are paths joined by "/". A case that lacks anything is refused, never half compared.
"""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from kcmoe.checkpoint import open_checkpoint
from kcmoe.config import gin_files
from kcmoe.config.fields import check_all
from kcmoe.config.model import ModelConfig
from kcmoe.config.training import LossConfig
from kcmoe.errors import UserError
from kcmoe.io import json_text
from kcmoe.io.wording import first_line
from kcmoe.training.optimizers.adafactor import Adafactor

Arrays = dict[str, np.ndarray]

_KEYS: dict[str, type] = {
    "gin": dict,
    **dict.fromkeys(("batch", "inputs", "targets", "seed", "steps"), int),
    **{"packed": bool, "lr": float, "losses": list},
}
BASE_FILES = ("configs/engine/engine.gin", "configs/sizes/base.gin")
FLOAT32 = ('ACTIVATION_DTYPE="float32"', 'MOE_TRUNCATED_DTYPE="float32"')
CHECKPOINTS = ("t5x_orbax", "t5x_legacy")


@dataclasses.dataclass(frozen=True)
class Case:
    """One reference case.

    Attributes:
      name: the folder's name.
      model, loss, adafactor: the settings it was computed with.
      params: initial parameters, path -> float32.
      batches: the batch of each step, feature -> int32.
      outputs: expected values for batch 0 and the initial parameters.
      final_params: expected parameters after the last step.
      final_states: expected checkpoint contents after it, by format, flat paths as T5X writes them.
      losses: expected loss of each step.
      learning_rate: constant over the steps.
      seed: of the initial parameters and batches.
    """

    name: str
    model: ModelConfig
    loss: LossConfig
    adafactor: Adafactor
    params: Arrays
    batches: list[Arrays]
    outputs: Arrays
    final_params: Arrays
    final_states: dict[str, Arrays]
    losses: list[float]
    learning_rate: float
    seed: int


def load(folder: Path) -> Case:
    """Reads a case.

    Raises:
      UserError: for a missing or unreadable file, a missing key, or a macro nobody knows.
    """
    spec = _json(folder / "case.json")
    for key, kind in _KEYS.items():
        if not isinstance(spec, dict) or not isinstance(spec.get(key), kind):
            raise UserError(
                f"{folder / 'case.json'} has no {key!r} that is {kind.__name__}; it is not a complete case"
            )
    if len(spec["losses"]) != spec["steps"]:
        raise UserError(
            f"{folder / 'case.json'} has {len(spec['losses'])} losses for {spec['steps']} steps"
        )
    bindings = [f"{name}={value!r}" for name, value in spec["gin"].items()]
    macros = gin_files.parse(BASE_FILES, [*bindings, *FLOAT32])
    check_all(macros)
    batches = _arrays(folder / "batches.npz")
    return Case(
        name=folder.name,
        model=ModelConfig.from_macros(macros),
        loss=LossConfig.from_macros(macros),
        adafactor=Adafactor.from_macros(macros),
        params=_arrays(folder / "params.npz"),
        batches=[_one_step(batches, step, folder) for step in range(spec["steps"])],
        outputs=_arrays(folder / "outputs.npz"),
        final_params=_arrays(folder / "trajectory.npz"),
        final_states=_final_states(folder, spec["steps"]),
        losses=spec["losses"],
        learning_rate=spec["lr"],
        seed=spec["seed"],
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return json_text.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the folder of a reference case") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({first_line(error)})") from None


def _arrays(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; the case is not complete") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a readable npz file ({first_line(error)})") from None


def _one_step(batches: Arrays, step: int, folder: Path) -> Arrays:
    prefix = f"{step}/"
    batch = {k.removeprefix(prefix): v for k, v in batches.items() if k.startswith(prefix)}
    needed = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    missing = [name for name in (*needed, "decoder_loss_weights") if name not in batch]
    if missing:
        raise UserError(f"{folder / 'batches.npz'} lacks {', '.join(missing)} of step {step}")
    return batch


def _final_states(folder: Path, steps: int) -> dict[str, Arrays]:
    states = {}
    for kind in CHECKPOINTS:
        path = folder / kind / f"checkpoint_{steps}"
        if path.exists():
            reader = open_checkpoint(path)
            states[kind] = {leaf: np.asarray(reader.read(leaf)) for leaf in reader.tree()}
    if not states:
        wanted = " or ".join(f"{kind}/checkpoint_{steps}" for kind in CHECKPOINTS)
        raise UserError(f"{folder} has no {wanted}; the optimizer state could not be compared")
    return states

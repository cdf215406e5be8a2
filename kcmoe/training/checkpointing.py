# SPDX-License-Identifier: Apache-2.0
"""What a run saves, what it starts from, and which checkpoint is the best.

A checkpoint holds T5X's train state and `training.json`: the data position and the validation
metrics of that step. `best.json` in the model directory names the best checkpoint; it is worked out
from the checkpoints themselves at every start and save, so a kill between the two files cannot make
it lie. A run without validation leaves it, and what it names, as they are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kcmoe import checkpoint as checkpoints
from kcmoe import fits, tree
from kcmoe.checkpoint import run_config
from kcmoe.config.model import ModelConfig
from kcmoe.errors import UserError
from kcmoe.io import durable
from kcmoe.training import state as states
from kcmoe.training.model_dir import existing
from kcmoe.training.settings import Settings
from kcmoe.training.state import Flat, TrainState
from kcmoe.training.validation import Chooser

EXTRA = "training.json"
BEST = "best.json"


class Checkpoints:
    """The checkpoints of one model directory.

    Args:
      model_dir: the folder.
      keep: newest checkpoints to keep, None for all; the best one stays besides.
      chooser: which validation metric names the best, None where there is no validation.
    """

    def __init__(self, model_dir: Path, keep: int | None, chooser: Chooser | None):
        self.model_dir = model_dir
        self._keep = keep
        self._chooser = chooser

    def save(self, state: TrainState, position: Any, validation: Mapping[str, Any] | None) -> Path:
        """Writes checkpoint_<step> atomically, then names the best one and removes old ones."""
        step = int(state.step)
        content: dict[str, Any] = {"step": step, "data_position": position}
        if validation is not None:
            content["validation"] = {
                name: float(value)
                for name, value in validation.items()
                if "/" not in name and not np.ndim(value) and np.isfinite(value)
            }
        extras = {EXTRA: json.dumps(content, ensure_ascii=False, indent=1).encode()}
        path = checkpoints.save(self.model_dir, step, states.to_flat(state), extras)
        self.tidy()
        return path

    def tidy(self) -> dict[str, Any] | None:
        """Writes `best.json`, removes what is neither new nor best; returns what `best.json`
        holds."""
        best = self._find_best()
        if best is None:
            best = read_best(self.model_dir)
        else:
            content = json.dumps(best, ensure_ascii=False, indent=1).encode() + b"\n"
            durable.write_file(self.model_dir / BEST, content)
        protect = [best["checkpoint"]] if best else []
        checkpoints.remove_old(self.model_dir, self._keep, protect)
        return best

    def _find_best(self) -> dict[str, Any] | None:
        chooser, best = self._chooser, None
        if chooser is None:
            return None
        for path in checkpoints.all_checkpoints(self.model_dir):
            try:
                values = read_extra(path).get("validation", {})
            except UserError:
                continue  # a damaged checkpoint is nobody's best
            value = values.get(chooser.metric)
            if value is not None and (best is None or chooser.better(value, best["value"])):
                best = {
                    "checkpoint": path.name,
                    "metric": chooser.metric,
                    "value": value,
                    "higher_is_better": chooser.higher_is_better,
                    "validation": values,
                }
        return best


def read_extra(path: Path) -> dict[str, Any]:
    """`training.json` of a checkpoint; {} where T5X wrote it.

    Raises:
      UserError: if the file differs from what was saved.
    """
    content = checkpoints.open_checkpoint(path).extras().get(EXTRA)
    return json.loads(content) if content else {}


def read_best(model_dir: Path) -> dict[str, Any] | None:
    """What `best.json` holds; None where there is none."""
    return _read_json(model_dir / BEST) or None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def restore(
    path: str | Path, shardings: Mapping[str, Any], config: ModelConfig
) -> tuple[TrainState, bool]:
    """The train state saved at `path`, every leaf checked, on the devices that `shardings` say.

    Returns:
      The state, and whether its optimizer state is from `path` too; where that has none
      (safetensors), it is a fresh one at the checkpoint's step.

    Raises:
      UserError: listing all leaves that are missing, misshapen or damaged.
    """
    expected = states.to_flat(states.state_shapes(config))
    reader = checkpoints.open_checkpoint(path)
    if any(map(tree.is_optimizer, reader.scan()[0])):
        return states.from_flat(checkpoints.restore(reader, expected, sharding=shardings)), True
    restored: Flat = checkpoints.restore(reader, expected, [tree.PARAMETERS], sharding=shardings)
    fresh = {
        leaf: jnp.zeros(shape.shape, shape.dtype)
        for leaf, shape in expected.items()
        if leaf not in restored
    }
    fresh[tree.STEP] = jnp.asarray(reader.step, jnp.int32)
    placed = {leaf: jax.device_put(value, shardings[leaf]) for leaf, value in fresh.items()}
    return states.from_flat({**placed, **restored}), False


def other_factors(path: str | Path, step: int, settings: Settings) -> list[str]:
    """One warning per factor of the gradients (see step.py) that was another where `path` was
    trained, up to `step`: the second moments restored from there hold its square."""
    try:
        recorded = run_config.recorded(str(path))
    except UserError:
        return []  # nothing that can be read from here
    run, warnings = settings.run, []
    memory = max(step, 1) ** settings.optimizer.decay_rate  # steps that a second moment averages
    for name, gradients, now in (
        ("NUM_MICROBATCHES", "gradients", run.microbatches),
        ("NUM_EXPERT_PARTITIONS", "gradients of experts", run.num_expert_partitions),
    ):
        before = recorded.get(name, now) or 1
        if before == now or (name == "NUM_EXPERT_PARTITIONS" and not settings.model.is_sparse):
            continue
        if before > now:
            effect = f"large, which divides the learning rate by up to {before / now:g}"
        else:
            effect = f"small, which multiplies the learning rate by up to {now / before:g}"
        warnings.append(
            f"warning     {name} was {before} where {path} was trained and is {now} here: it "
            f"multiplies {gradients}, so their second moments start "
            f"{max(before / now, now / before) ** 2:g} times too {effect}, for about {memory:,.0f} "
            f"steps; set {name} = {before} to avoid it"
        )
    return warnings


def check_space(model_dir: Path, shapes: TrainState) -> int:
    """Raises `UserError` unless one checkpoint fits on the disk; returns its size in bytes."""
    needed = tree.total_bytes(states.to_flat(shapes).values())
    free = shutil.disk_usage(existing(model_dir)).free
    fits.check_disk(model_dir, needed, free)
    return needed

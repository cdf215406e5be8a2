# SPDX-License-Identifier: Apache-2.0
"""The folder of a run, MODEL_DIR: `config.gin`, checkpoints, `best.json`, and what may not change once begun.

Three kinds of settings are fixed for the life of a folder: sizes, because the weights have them; the
optimizer, because checkpoints hold its state; and what decides the batches, because a resumed run must see
those that the stopped one would have seen. Everything else may change between starts, and the change is
printed.

A checkpoint holds T5X's train state and `training.json`: the data position and the validation metrics of
that step. `best.json` names the best checkpoint. It is worked out from the checkpoints at every start and
save, so it stays right when a run is killed between writing the two. A run without validation leaves it, and
what it names, as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kcmoe import checkpoint as checkpoints
from kcmoe import fits, tree
from kcmoe.checkpoint import checksums
from kcmoe.checkpoint.run_config import CONFIG_FILE
from kcmoe.checkpoint.storage import Folder, Unreachable
from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.errors import UserError
from kcmoe.hosts import agreeing
from kcmoe.hosts.group import ALONE, Hosts
from kcmoe.io import json_text
from kcmoe.io.remote import Place
from kcmoe.training import places

EXTRA = checksums.RUN_FILE
BEST = "best.json"

# Fields of ModelConfig that only say how, or how much, is computed; the weights do not have them.
_FREE_MODEL_FIELDS = {
    "group_size", "train_expert_capacity_factor", "eval_expert_capacity_factor", "scale",
    "dropout_rate", "expert_dropout_rate", "activation_dtype", "moe_truncated_dtype",
    "num_expert_replicas", "routing", "dispatch", "remat",
}  # fmt: skip
_SIZES = tuple(
    field.metadata["macro"]
    for field in dataclasses.fields(ModelConfig)
    if field.name not in _FREE_MODEL_FIELDS
)
_BATCHES = (
    "MIXTURE_OR_TASK_NAME", "TASK_FEATURE_LENGTHS", "RANDOM_SEED", "PACK", "NOISE_DENSITY",
    "MEAN_NOISE_SPAN_LENGTH",
)  # fmt: skip
FIXED = frozenset((*_SIZES, *_BATCHES, "OPTIMIZER"))


@dataclasses.dataclass(frozen=True)
class Chooser:
    """Which validation metric names the best checkpoint."""

    metric: str
    higher_is_better: bool

    def better(self, new: float, old: float) -> bool:
        """Whether `new` beats `old`; equal values do not, so the earlier checkpoint stays."""
        return new > old if self.higher_is_better else new < old


BY_LOSS = Chooser("cross_ent_loss", higher_is_better=False)


class RunFolder:
    """MODEL_DIR. Making one compares the settings with those it was begun with, and writes nothing.

    Attributes:
      place: where it is, on a disk or in a bucket; it may not be there yet.
      changes: one line per setting that has changed since the last start, and may.
      hosts: of these only the first writes, but for the arrays of a checkpoint.
      keep: newest checkpoints to keep, None for all; the best one stays besides.
      chooser: which validation metric names the best; None where there is no validation.
    """

    def __init__(self, macros: gin_files.Macros, hosts: Hosts = ALONE):
        """Raises `UserError` if a fixed setting differs, or the folder cannot be written to."""
        self.place = places.find(str(macros.require("MODEL_DIR")))
        self.path, self.records = self.place.path, self.place.records
        self.hosts = hosts
        self.changes: list[str] = []
        self.keep: int | None = None
        self.chooser: Chooser | None = None
        config = self.records / CONFIG_FILE
        if os.path.exists(config):
            # `foreign`: the run may have begun on a pod, whose config.gin has T5X's bindings too.
            before = gin_files.parse([str(config.absolute())], foreign=True, includes=False)
            self.changes = _compare(self.path, before, macros)

    @contextlib.contextmanager
    def locked(self, say: Callable[[str], None]) -> Iterator[None]:
        """Makes the folder and keeps a second run out of it; a killed run leaves no lock behind.

        Where that cannot be, it only says so with `say`.
        """
        with self.place.locked(say) if self.hosts.first else contextlib.nullcontext():
            yield

    def write_config(self, macros: gin_files.Macros) -> None:
        """Writes the whole operative config to `config.gin`, at once or not at all."""
        if self.hosts.first:
            self.place.write(CONFIG_FILE, gin_files.dump(macros).encode())

    def prepare(self) -> None:
        """Removes what killed saves left; on many hosts, when all have seen that this is one folder.

        Raises:
          UserError: if it is not one folder, or hosts see other checkpoints in it.
        """
        agreeing.check_shared(self.hosts, self.place)
        self.hosts.first_does(lambda: str(checkpoints.clean(self.path)))
        agreeing.agree(
            self.hosts, lambda: {"the newest checkpoint": str([p.name for p in self.all()][-1:])}
        )

    def all(self) -> Sequence[Place]:
        """The checkpoints, oldest first."""
        return checkpoints.all_checkpoints(self.path)

    def check_space(self, state: Mapping[str, Any]) -> int:
        """Raises `UserError` unless one checkpoint of these leaves fits on the disk; returns its bytes."""
        needed = tree.total_bytes(state.values())
        free = self.place.free_bytes()
        if free is not None:
            fits.check_disk(Path(self.path), needed, free)
        return needed

    def save(
        self, step: int, state: Mapping[str, Any], position: Any, metrics: Mapping[str, Any] | None
    ) -> Place:
        """Writes checkpoint_<step> atomically, then names the best one and removes old ones.

        Args:
          step: steps done.
          state: the flat train state.
          position: where the data stands, as JSON.
          metrics: what validation gave at this step, if it ran.
        """
        content: dict[str, Any] = {"step": step, "data_position": position}
        if metrics is not None:
            content["validation"] = {
                name: float(value)
                for name, value in metrics.items()
                if "/" not in name and not np.ndim(value) and np.isfinite(value)
            }
        extras = {EXTRA: json.dumps(content, ensure_ascii=False, indent=1).encode()}
        if self.hosts.first:
            self.place.publish()  # records of a step are there before its checkpoint is
        path = checkpoints.save(self.path, step, state, extras, self.hosts)
        self.tidy()
        return path

    def tidy(self) -> dict[str, Any] | None:
        """Writes `best.json`, removes what is neither new nor best; returns what `best.json` holds."""
        best, unread = self._find_best() if self.hosts.first else (None, [])
        before = self.best() if best is None or unread else None
        if best is None or (before and before["checkpoint"] in unread):
            best = before
        else:
            content = json.dumps(best, ensure_ascii=False, indent=1).encode() + b"\n"
            self.place.write(BEST, content)
        protect = [*unread, *([best["checkpoint"]] if best else [])]
        if self.hosts.first:
            checkpoints.remove_old(self.path, self.keep, protect)
        return best

    def best(self) -> dict[str, Any] | None:
        """What `best.json` holds (checkpoint, metric, value and more); None without one."""
        return _parse_best(self.place.read(BEST))

    def _find_best(self) -> tuple[dict[str, Any] | None, list[str]]:
        """What `best.json` is to hold, and those of which a bucket did not tell how good they are."""
        if self.chooser is None:
            return None, []
        measured, unread = {}, []
        for path in self.all():
            try:
                measured[path.name] = read_extra(path).get("validation", {})
            except Unreachable:  # a bucket may fail for a while
                unread.append(path.name)
            except UserError:  # a damaged checkpoint cannot be the best one
                continue
        # A correlation does not exist where all answers are equal, and its place is not in the record then.
        return _best_of(measured, self.chooser) or _best_of(measured, BY_LOSS), unread


def _best_of(measured: Mapping[str, Mapping[str, Any]], by: Chooser) -> dict[str, Any] | None:
    """What `best.json` holds; `measured`: name of a checkpoint -> its validation metrics, oldest first."""
    best: dict[str, Any] | None = None
    for name, values in measured.items():
        value = values.get(by.metric)
        if value is not None and (best is None or by.better(value, best["value"])):
            best = {
                "checkpoint": name,
                "metric": by.metric,
                "value": value,
                "higher_is_better": by.higher_is_better,
                "validation": values,
            }
    return best


def read_extra(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """`training.json` of a checkpoint; {} where T5X wrote it.

    Raises:
      UserError: if the file differs from what was saved, or is no such file.
    """
    reader = checkpoints.open_checkpoint(checkpoint)
    content = reader.extras().get(EXTRA)
    if reader.saved is None and reader.folder.exists(EXTRA):
        content = reader.folder.read(EXTRA)  # where the data stand is known, checksums or not
    try:
        found = json_text.parse(content) if content else {}
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("validation", {}), dict):
        raise UserError(f"{checkpoint} is damaged: its {EXTRA} is not what a run writes")
    return found


def read_best(model_dir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `best.json` of a model directory holds (checkpoint, metric, value and more); None without one."""
    try:
        return _parse_best(Folder(model_dir).read_many([BEST]).get(BEST))
    except UserError:
        return None


def _parse_best(content: bytes | None) -> dict[str, Any] | None:
    try:
        best = json_text.parse(content or b"")
    except ValueError:
        return None
    complete = isinstance(best, dict) and {"checkpoint", "metric", "value"} <= best.keys()
    return best if complete else None


def _compare(path: Place, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per setting that changed; raises `UserError` if a fixed one did."""
    changed = [name for name in sorted(before) if name in now and before[name] != now[name]]
    fixed = [name for name in changed if name in FIXED]
    if fixed:
        listing = ", ".join(f"{name} {before[name]!r} -> {now[name]!r}" for name in fixed)
        raise UserError(
            f"MODEL_DIR {path} was begun with other settings: {listing}. Use the old ones to "
            "continue, or a new MODEL_DIR (with INITIAL_CHECKPOINT_PATH to start from these "
            "weights, where the sizes are equal)"
        )
    return [
        f"changed     {name} {before[name]!r} -> {now[name]!r} since the last start"
        for name in changed
        if name != "MODEL_DIR"
    ]

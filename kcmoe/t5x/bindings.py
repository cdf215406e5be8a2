# SPDX-License-Identifier: Apache-2.0
"""What the gin files in `configs/t5x` call: the task, the vocabulary, and checks before a pod-hour is spent.

T5X reads these while it builds its configuration, before it allocates or compiles anything. Each looks
at the same macros the engine reads, so that a misspelt name, a checkpoint of another size or a bucket
that cannot be read stops the run at once, with one line and exit status 2.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kcmoe.t5x import requirements

requirements.check_t5x()

import gin  # noqa: E402
import jax  # noqa: E402
import seqio  # noqa: E402

from kcmoe.config import gin_files  # noqa: E402
from kcmoe.config.data import DataConfig  # noqa: E402
from kcmoe.config.fields import check_all  # noqa: E402
from kcmoe.data import splits as data_splits  # noqa: E402
from kcmoe.data.features import Lengths  # noqa: E402
from kcmoe.data.pipeline import noise_of  # noqa: E402
from kcmoe.errors import UserError  # noqa: E402
from kcmoe.t5x import checks, hosts, submesh  # noqa: E402
from kcmoe.t5x import tasks as seqio_tasks  # noqa: E402
from kcmoe.t5x import vocabulary as vocabularies  # noqa: E402
from kcmoe.tasks import registry as tasks  # noqa: E402
from kcmoe.training.settings import count_steps  # noqa: E402

_F = TypeVar("_F", bound=Callable[..., Any])


def _one_line(function: _F) -> _F:
    """Ends the program as `kcmoe` does on a user's mistake; gin would wrap the exception in its own words."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            print(f"kcmoe on t5x: {error}", file=sys.stderr, flush=True)
            hosts.fail(error)
            raise SystemExit(2) from error

    return wrapped  # type: ignore[return-value]


@_one_line
def _join_the_other_hosts() -> None:
    """Starts JAX's distributed service where KCMOE_DISTRIBUTED says so, and watches over the hosts."""
    asked = os.environ.get("KCMOE_DISTRIBUTED", "0") not in ("", "0")
    if asked or jax.distributed.is_initialized():  # by T5X's --multiprocess_gpu
        hosts.join()


# Orbax saves from several hosts only through JAX's distributed service. T5X starts it for GPUs alone, and
# this import is the last moment: afterwards T5X asks JAX for its devices.
_join_the_other_hosts()


def settings() -> gin_files.Macros:
    """The macros of the running gin configuration, as the engine would read them.

    Raises:
      UserError: for a macro that nothing reads, or one that only the engine obeys.
    """
    texts = {"the gin configuration": gin.config_str()}
    macros = gin_files.parse(["configs/engine/engine.gin"], texts=texts, foreign=True)
    check_all(macros, foreign=True)
    checks.refuse_engine_only(macros)
    return macros


@_one_line
def task_name(splits: Sequence[str]) -> str:
    """Registers the task of MIXTURE_OR_TASK_NAME (and TASK_…) with SeqIO and returns its name.

    Args:
      splits: those that will be read; their files must be there, except for an absent validation split.
    """
    macros = settings()
    task = tasks.get_task(macros)
    data = DataConfig.from_macros(macros)
    for part in [task] if isinstance(task, tasks.Task) else [part for part, _ in task.weights]:
        for split in splits:
            if split != "validation" or split in part.splits:
                data_splits.split_files(part, split, data.data_dir)
    return seqio_tasks.register(
        task,
        data.data_dir,
        data.vocabulary_file,
        strict=data.strict,
        noise=noise_of(data),
        targets=Lengths.of(macros.require("TASK_FEATURE_LENGTHS")).targets,
    )


@_one_line
def vocabulary() -> seqio.SentencePieceVocabulary:
    """The vocabulary of VOCABULARY_FILE, refused where the embedding is too small for it."""
    macros = settings()
    path = macros.get("VOCABULARY_FILE")
    checks.vocabulary_fits(vocabularies.engine_vocabulary(path), macros)
    return vocabularies.seqio_vocabulary(path)


@_one_line
def model_partitions() -> int | None:
    """NUM_MODEL_PARTITIONS, refused where it divides neither devices nor matrices.

    None where `model_submesh` has the answer: T5X takes one of the two.
    """
    macros = settings()
    checks.partitions_divide(macros, jax.device_count())
    return None if model_submesh() else macros.get("NUM_MODEL_PARTITIONS")


@_one_line
def model_submesh() -> tuple[int, ...] | None:
    """MODEL_PARALLEL_SUBMESH, or a tile of NUM_MODEL_PARTITIONS devices where T5X knows none."""
    macros = settings()
    partitions = macros.get("NUM_MODEL_PARTITIONS")
    if partitions is None:
        return macros.get("MODEL_PARALLEL_SUBMESH")
    return submesh.for_these_devices(partitions)


@_one_line
def total_steps() -> int:
    """TRAIN_STEPS, or FINETUNE_STEPS after those of INITIAL_CHECKPOINT_PATH, as in the engine."""
    return int(count_steps(settings()).require("TRAIN_STEPS"))


@_one_line
def initial_checkpoint() -> str | list[str]:
    """INITIAL_CHECKPOINT_PATH after checking every leaf's shape; [] means to begin from scratch."""
    macros = settings()
    checks.periods_divide(macros)
    checks.microbatches_divide(macros, jax.device_count())
    path = macros.get("INITIAL_CHECKPOINT_PATH")
    return checks.checkpoint_fits(path, macros, optimizer=True) if path else []


@_one_line
def checkpoint() -> str:
    """CHECKPOINT_PATH after checking every leaf's shape."""
    macros = settings()
    return checks.checkpoint_fits(macros.require("CHECKPOINT_PATH"), macros, optimizer=False)


@_one_line
def folder(path: str) -> str:
    """The folder to write to (MODEL_DIR, EVAL_OUTPUT_DIR, INFER_OUTPUT_DIR), made, as an absolute path."""
    settings()  # T5X evaluates this first: a misspelt name stops it before anything is made
    return checks.folder_usable(path)

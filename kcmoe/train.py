# SPDX-License-Identifier: Apache-2.0
"""`kcmoe train`: reads the gin files, trains, and says how it ended.

It stands above training and evaluation, and gives the former the latter's metric for a task.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kcmoe.config import arguments
from kcmoe.errors import UserError
from kcmoe.hosts import joining
from kcmoe.io.remote import place

if TYPE_CHECKING:
    from kcmoe.training.loop import Outcome
    from kcmoe.training.settings import Settings

_EPILOG = """\
examples:
  kcmoe train --gin_file=configs/runs/pretrain_tiny.gin \\
    --gin.DATA_DIR='"data"' --gin.MODEL_DIR='"runs/tiny"'
  kcmoe train --size=tiny --task=nsmc --gin_file=configs/runs/finetune.gin \\
    --gin.DATA_DIR='"data"' --gin.MODEL_DIR='"runs/nsmc"' \\
    --gin.INITIAL_CHECKPOINT_PATH='"runs/tiny/checkpoint_10000"'

The same command continues a run that was stopped, from the newest checkpoint in MODEL_DIR.
On many hosts start the same command on each; on TPU pods, under SLURM and Open MPI as it is,
elsewhere with --coordinator=HOST:PORT --num_processes=N --process_id=I. MODEL_DIR is then a folder
that all of them share, or in a bucket, and each host reads DATA_DIR for itself.

SIGTERM and Ctrl-C, at any one host, save first. Fine-tuning takes FINETUNE_STEPS after those of
INITIAL_CHECKPOINT_PATH; TRAIN_STEPS, where given, includes the steps before.
"""


def main(argv: Sequence[str]) -> int:
    """Returns 0 at the end of the run or when stopped in order, 1 if the loss is not finite."""
    parser = arguments.Parser(
        prog="kcmoe train",
        description="Pretrains, continues or fine-tunes a model on the devices of this machine.",
        epilog=_EPILOG,
    )
    arguments.add_run_arguments(parser)
    joining.add_arguments(parser)
    args, macros = arguments.parse_with_gin(parser, argv, base=["configs/engine/engine.gin"])
    where = joining.place(args)

    from kcmoe.io import compilation_cache
    from kcmoe.model.cpu import memory as kept_memory
    from kcmoe.training.observing import NonFiniteError
    from kcmoe.training.settings import Settings

    settings = Settings.from_macros(macros)
    compilation_cache.enable()
    kept_memory.compute_in_turn()

    from kcmoe.evaluation.protocol import training_metric
    from kcmoe.training.loop import train

    try:
        with joining.joined(where) as hosts:
            outcome = train(
                settings,
                make_task_metric=functools.partial(training_metric, hosts=hosts),
                hosts=hosts,
            )
    except NonFiniteError as error:
        print(f"kcmoe train: {_stopped(settings.run.model_dir, error)}", file=sys.stderr)
        return 1
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        import jax

        raise UserError(_out_of_memory(settings, jax.local_device_count())) from error
    if hosts.first:
        _report(settings.run.model_dir, outcome)
    return 0


def _stopped(folder: str, error: Exception) -> str:
    from kcmoe.checkpoint import latest

    newest = latest(folder)
    kept = f"{newest} is the last good checkpoint" if newest else "no checkpoint was saved before"
    return f"stopped, {error}; {kept}. Lower LEARNING_RATE to go on from there"


def _out_of_memory(settings: Settings, devices: int) -> str:
    """What to change that is not set already and divides; first what changes no result."""
    run = settings.run
    more = range(run.microbatches + 1, run.batch_size // devices + 1)
    fitting = [count for count in more if run.batch_size % (count * devices) == 0]
    advice = [] if settings.model.remat else ["REMAT = True"]
    advice += [f"NUM_MICROBATCHES = {count}" for count in fitting[:1]]
    advice.append("or a smaller BATCH_SIZE" if advice else "a smaller BATCH_SIZE")
    return (
        f"the device ran out of memory with BATCH_SIZE = {run.batch_size} and NUM_MICROBATCHES = "
        f"{run.microbatches}; set {', '.join(advice)}"
    )


def _report(folder: str, outcome: Outcome) -> None:
    """Says how the run ended and what to do next."""
    from kcmoe.checkpoint import latest

    where = place(folder)
    saved = where / f"checkpoint_{outcome.step}"
    if outcome.stopped_by and latest(where) != saved:
        print(f"stopped by {outcome.stopped_by} before the first step; the same command starts it")
    elif outcome.stopped_by:
        at = f"stopped by {outcome.stopped_by} at step {outcome.step:,}"
        print(f"{at}; saved {saved}. The same command continues")
    else:
        print(f"finished at step {outcome.step:,}: {saved}")
    if outcome.best:
        name, value = outcome.best["metric"], outcome.best["value"]
        print(f"best by {name} {value:.4f}: {where / outcome.best['checkpoint']}")
    print(f"curves and routers of the run, as one page: kcmoe report {where}")

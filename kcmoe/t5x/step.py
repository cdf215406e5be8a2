# SPDX-License-Identifier: Apache-2.0
"""The training step of T5X + Flaxformer as configs/t5x/train.gin binds it, lowered for devices that need not
be here: `kcmoe plan --compile` hands it to the TPU's compiler.

Only in a process of its own: it changes the working directory, gin's configuration, and what T5X sees as
the devices of the machine (it asks JAX for them while it builds its mesh and its constraints).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import gin
import jax

from kcmoe.io import resources
from kcmoe.t5x import requirements

# What a run needs and a step does not: folders, data, a checkpoint to begin from.
_GIN = """
from __gin__ import dynamic_registration
import __main__ as train_script
from t5x import utils
{macros}
include 'configs/t5x/train.gin'
train_script.train.model_dir = None
utils.DatasetConfig.mixture_or_task_name = 'planned'
utils.CheckpointConfig.restore = None
"""


def lowered(
    macros: str, devices: Sequence[Any], batch: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[Any, dict[str, int]]:
    """The step, lowered.

    Args:
      macros: the settings of the run, as gin text.
      devices: of the topology; all of them.
      batch: features of the whole batch.

    Returns:
      What JAX's `lower` returns, and the mesh: axis -> devices.
    """
    requirements.check_t5x()
    os.chdir(resources.find("configs").parent)  # see `speed.build`
    _pretend(devices)
    # train.gin binds `train` of the main program, in whose place is what lowers the step.
    sys.modules["__main__"].train = train  # type: ignore[attr-defined]
    train.__module__ = "__main__"
    gin.parse_config(_GIN.format(macros=macros))
    return gin.get_configurable(train)(batch=batch)


def train(
    model: Any,
    partitioner: Any,
    trainer_cls: Any,
    random_seed: int,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    **others: Any,
) -> tuple[Any, dict[str, int]]:
    """Does what `t5x.train.train` does up to the compilation of its step; takes the same arguments."""
    from t5x import utils

    del others
    initializer = utils.TrainStateInitializer(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes={name: value.shape for name, value in batch.items()},
        input_types={name: value.dtype for name, value in batch.items()},
        partitioner=partitioner,
    )
    trainer = trainer_cls(
        model=model,
        train_state=initializer.global_train_state_shape,
        partitioner=partitioner,
        eval_names=[],
        summary_dir=None,
        train_state_axes=initializer.train_state_axes,
        rng=jax.random.PRNGKey(random_seed or 0),
    )
    step = trainer._partitioned_train_step.lower(trainer.train_state, dict(batch))
    trainer.close()
    return step, {str(axis): int(size) for axis, size in partitioner.mesh.shape.items()}


def _pretend(devices: Sequence[Any]) -> None:
    """Makes JAX's public functions answer as they would on the first host of `devices`."""
    hosts = sorted({device.process_index for device in devices})
    here = [device for device in devices if device.process_index == hosts[0]]
    answers: dict[str, Any] = {
        "devices": list(devices),
        "local_devices": here,
        "device_count": len(devices),
        "local_device_count": len(here),
        "process_count": len(hosts),
        "process_index": hosts[0],
    }
    for name, answer in answers.items():
        setattr(jax, name, lambda *_, _answer=answer, **__: _answer)

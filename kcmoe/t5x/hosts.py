# SPDX-License-Identifier: Apache-2.0
"""T5X on several hosts: joined, watched and ended as `kcmoe.hosts` does it for the engine.

T5X starts JAX's distributed service for GPUs alone, and where a host dies the others wait until that service
aborts them, a minute and a half later, with a stack trace that names nobody.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import signal
import sys
from typing import Any

import jax

from kcmoe.errors import UserError
from kcmoe.hosts import joining
from kcmoe.hosts.watching import Watch

_run = contextlib.ExitStack()  # closed when the program ends


def join() -> None:
    """Joins the hosts that JAX or the variables of `kcmoe.hosts.joining` know, and watches over them.

    Raises:
      UserError: if there is no cluster, the coordinator does not answer, or its port is taken.
    """
    if jax.distributed.is_initialized():  # by T5X's --multiprocess_gpu
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX's preemption service swallows it
        _watch_over_those_of_t5x()
    else:
        where = joining.place(argparse.Namespace())
        if where is None and not _is_a_cluster():
            raise UserError(
                "KCMOE_DISTRIBUTED=1 is for several hosts, but JAX finds neither a TPU pod nor SLURM here. "
                "Leave it out on one machine; elsewhere set KCMOE_COORDINATOR=HOST:PORT, "
                "KCMOE_NUM_PROCESSES=N and KCMOE_PROCESS_ID=I"
            )
        _run.enter_context(joining.joined(where))
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, *rest: Any) -> None:
        previous(kind, error, *rest)
        fail(error)

    sys.excepthook = hook
    atexit.register(_run.close)  # after JAX's own, so it runs before that


def fail(error: BaseException) -> None:
    """Tells the other hosts why this one ends, so that they do not wait for it."""
    run = _run.pop_all()
    with contextlib.suppress(type(error)):
        run.__exit__(type(error), error, error.__traceback__)


def _watch_over_those_of_t5x() -> None:
    from jax._src import distributed  # no public name for the store that all hosts share

    here = distributed.global_state
    if here.num_processes > 1:
        timeout_s = joining.host_timeout_s()
        watch = Watch(here.client, here.process_id, here.num_processes, timeout_s)
        watch.start()

        def ended(kind: object, error: BaseException | None, *rest: object) -> None:
            if error is None:
                watch.stop()
            else:
                watch.tell(error)

        _run.push(ended)


def _is_a_cluster() -> bool:
    """Whether this process was started by a cluster, if only of one host."""
    from jax._src import clusters

    return any(cluster.is_env_present() for cluster in clusters.ClusterEnv._cluster_types)

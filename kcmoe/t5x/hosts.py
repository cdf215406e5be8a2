# SPDX-License-Identifier: Apache-2.0
"""T5X on several hosts: joining them, and saying which one was lost.

T5X starts JAX's distributed service for GPUs alone. Where a host dies, the others would wait in a
collective until JAX's service aborts them, a minute and a half later, with a stack trace that names nobody.
Here each host tells every other, through that service, that it lives; one that falls silent or fails ends
all of them, with one line that names it.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from kcmoe.errors import UserError

BEAT_S = 2
LOST_S = 30  # silent for so long: compiling and reading do not stop the thread that beats
JOIN_S = 300
STATUS_LOST = 75  # "try again", of sysexits.h
_PLACE = "kcmoe/hosts/"
ENDED, FAILED = "ended", "failed"


def join(timeout_s: int = JOIN_S) -> None:
    """Starts JAX's distributed service where T5X did not, with the hosts JAX finds, and watches over them.

    Raises:
      UserError: if JAX finds no cluster, or the coordinator's port is taken.
    """
    # JAX's preemption service would swallow SIGTERM, for which T5X has no use of its own.
    if jax.distributed.is_initialized():  # T5X's --multiprocess_gpu has done it already
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    else:
        jax.config.update("jax_enable_preemption_service", False)
        absent = (
            f"not all hosts came within {timeout_s} s: is the same command running on every one of them, and "
            "does a firewall close the coordinator's port (JAX_COORDINATOR_PORT)?"
        )
        overdue = threading.Timer(timeout_s, _leave, (absent, 2))
        overdue.daemon = True
        overdue.start()
        try:
            # JAX gives up later than we do: it does so with a stack trace.
            jax.distributed.initialize(initialization_timeout=timeout_s + 30)
        except (ValueError, RuntimeError) as error:
            raise UserError(_explained(str(error))) from error
        finally:
            overdue.cancel()
    from jax._src import distributed  # no public name for the store that all hosts share

    here = distributed.global_state
    if here.num_processes > 1:
        Watch(here.client, here.process_id, here.num_processes, _leave).start()


def _explained(reason: str) -> str:
    if "should be defined" in reason or "must be defined" in reason:
        return (
            "KCMOE_DISTRIBUTED=1 is for several hosts, but JAX finds neither a TPU pod nor SLURM here. Leave "
            "it out on one machine; elsewhere give T5X --multiprocess_gpu --coordinator_address=HOST:PORT "
            "--process_count=N --process_index=I"
        )
    first = reason.strip().splitlines()[0] if reason.strip() else "no reason given"
    return (
        f"JAX could not join the hosts: {first}. Is the coordinator's port taken by a run that did not "
        "end? Another one: JAX_COORDINATOR_PORT=8476"
    )


def _leave(why: str, status: int = STATUS_LOST) -> None:
    """Ends the process from any thread; the main one may be waiting for a host that is gone."""
    print(f"kcmoe on t5x: {why}", file=sys.stderr, flush=True)
    os._exit(status)


class Watch:
    """Beats for this host and looks at the others."""

    def __init__(self, store: Any, host: int, num_hosts: int, leave: Callable[[str], None]) -> None:
        """Args:
        store: JAX's client of the distributed service.
        host: number of this one.
        num_hosts: how many there are.
        leave: called with a line that names who was lost.
        """
        self._store, self._host, self._num_hosts, self._leave = store, host, num_hosts, leave
        self._ended = threading.Event()
        self._failed = False

    def start(self) -> None:
        """Beats until the program ends, however it does."""
        previous = sys.excepthook

        def hook(kind: type[BaseException], error: BaseException, *rest: Any) -> None:
            previous(kind, error, *rest)
            # Most often a connection that broke with a host: `_beat` is about to say which.
            if isinstance(error, jax.errors.JaxRuntimeError) and "EXHAUSTED" not in str(error):
                time.sleep(LOST_S + 3 * BEAT_S)
            self._failed = True

        sys.excepthook = hook
        atexit.register(self._end)  # after JAX's own, so it runs before that
        threading.Thread(target=self._beat, name="kcmoe-hosts", daemon=True).start()

    def _end(self) -> None:
        self._ended.set()
        self._say(FAILED if self._failed else ENDED)
        if self._failed:
            # JAX would wait for the others to end, and they for us to compute.
            time.sleep(2 * BEAT_S)
            sys.stderr.flush()
            os._exit(1)

    def _say(self, what: str) -> None:
        try:
            value = f"{what} {socket.gethostname()}"
            self._store.key_value_set(f"{_PLACE}{self._host}", value, allow_overwrite=True)
        except RuntimeError:
            pass  # the coordinator is gone, which `_beat` sees

    def _beat(self) -> None:
        sight = Sight(self._host, self._num_hosts)
        beats = 0
        while not self._ended.wait(BEAT_S):
            beats += 1
            self._say(str(beats))
            try:
                found = dict(self._store.key_value_dir_get(_PLACE))
            except RuntimeError as error:
                if not self._ended.is_set():
                    reason = str(error).splitlines()[0]
                    self._leave(f"host 0, which all others meet at, was lost ({reason}){_NEXT}")
                return
            lost = sight.look({key.rpartition("/")[2]: value for key, value in found.items()})
            if lost and not self._ended.is_set():
                self._leave(f"{lost}{_NEXT}")
                return


_NEXT = (
    ". This host ends too; start all of them again (`tpu_launch.sh resume` does): the run goes on from its "
    "newest checkpoint"
)


class Sight:
    """What one host has seen of the others."""

    def __init__(
        self, host: int, num_hosts: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._host, self._num_hosts, self._clock = host, num_hosts, clock
        self._seen: dict[int, tuple[str, float]] = {}

    def look(self, said: Mapping[str, str]) -> str:
        """One line about a host that is lost; "" while there is none.

        Args:
          said: number of a host -> "beats name", "ended name" or "failed name".
        """
        now = self._clock()
        for host in range(self._num_hosts):
            value = said.get(str(host), "")
            what, _, name = value.partition(" ")
            known = f"host {host} ({name})" if name else f"host {host}"
            if host == self._host or what == ENDED:
                continue
            if what == FAILED:
                return f"{known} ended with an error, which its own log tells"
            before, since = self._seen.get(host, ("", now))
            if host not in self._seen or value != before:
                self._seen[host] = (value, now)
            elif now - since > LOST_S:
                return f"{known} was lost: no sign of life for {LOST_S} s"
        return ""

# SPDX-License-Identifier: Apache-2.0
"""How the processes of a run find one another.

On TPU pods, under SLURM and under Open MPI JAX knows the others; elsewhere flags or variables say where
process 0 is. What JAX answers with an abort and a stack (a coordinator that is not there, hosts that do not
come) is looked for before, and said in one line.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from kcmoe.config import arguments
from kcmoe.errors import UserError
from kcmoe.hosts.group import ALONE, PREFIX, Hosts
from kcmoe.hosts.watching import GO_ON, Watch, on_abort

# Flag -> variable of the environment that stands for it.
_VARIABLES = {
    "coordinator": "KCMOE_COORDINATOR",
    "num_processes": "KCMOE_NUM_PROCESSES",
    "process_id": "KCMOE_PROCESS_ID",
    "start_timeout": "KCMOE_START_TIMEOUT",
    "host_timeout": "KCMOE_HOST_TIMEOUT",
}
# The least and the most that flag and variable may say.
_RANGES = {
    "num_processes": (1, 1 << 20),
    "process_id": (0, 1 << 20),
    "start_timeout": (1, 86_400),
    "host_timeout": (3, 86_400),
}
_PLACES = ("coordinator", "num_processes", "process_id")
# JAX's names for clusters in which every process is told its number; an MPI or Kubernetes that a single
# process happens to run in is none.
_CLUSTERS = ("slurm", "gcetpu", "gketpu", "ompi")


@dataclasses.dataclass(frozen=True)
class Member:
    """Where a process stands among the others.

    Attributes:
      coordinator: HOST:PORT, where process 0 answers.
      count: processes in all.
      index: the number of this one.
      start_timeout_s: how long to wait for the others to come.
      host_timeout_s: after how long of silence a host counts as lost.
    """

    coordinator: str
    count: int
    index: int
    start_timeout_s: int = 300
    host_timeout_s: int = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say who the others are; none of them is needed on one host."""
    group = parser.add_argument_group(
        "many hosts",
        "the same command on every host; on TPU pods, under SLURM and Open MPI without these flags",
    )
    numbers = {name: arguments.between(int, *_RANGES[name]) for name in _RANGES}
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0 and a free port there; KCMOE_COORDINATOR says the same",
    )
    group.add_argument(
        "--num_processes",
        type=numbers["num_processes"],
        metavar="N",
        help="processes in all; or KCMOE_NUM_PROCESSES",
    )
    group.add_argument(
        "--process_id",
        type=numbers["process_id"],
        metavar="I",
        help="this one, from 0; or KCMOE_PROCESS_ID",
    )
    group.add_argument(
        "--start_timeout",
        type=numbers["start_timeout"],
        metavar="S",
        help="seconds to wait for all to come, default 300; or KCMOE_START_TIMEOUT",
    )
    group.add_argument(
        "--host_timeout",
        type=numbers["host_timeout"],
        metavar="S",
        help="seconds of silence after which a host is lost and the others end, default 60; or "
        "KCMOE_HOST_TIMEOUT",
    )


def place(args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> Member | None:
    """Where this process stands; None if it is alone.

    Raises:
      UserError: for flags and variables that do not go together.
    """
    given = {name: _given(args, env, name) for name in _VARIABLES}
    waits = {f"{name}_s": given[name] for name in _VARIABLES if name not in _PLACES and given[name]}
    named = [name for name in _PLACES if given[name] is not None]
    if not named:
        return None if env.get("KCMOE_DISTRIBUTED") == "0" else _of_cluster(waits)
    missing = [f"--{name}" for name in _PLACES if given[name] is None]
    if missing:
        raise UserError(
            f"--coordinator, --num_processes and --process_id go together: {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing"
        )
    count, index = given["num_processes"], given["process_id"]
    if not 0 <= index < count:
        raise UserError(
            f"--process_id={index}, but processes count from 0 to --num_processes - 1 = {count - 1}"
        )
    host, _, port = str(given["coordinator"]).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(
            f"--coordinator={given['coordinator']} is no HOST:PORT; name the host of process 0 and a free "
            "port there, e.g. 10.0.0.2:8476"
        )
    if count == 1:
        return None
    return Member(str(given["coordinator"]), count, index, **waits)


def host_timeout_s(env: Mapping[str, str] = os.environ) -> int:
    """After how long of silence a host is lost, where no flag says it; raises `UserError`."""
    return _given(argparse.Namespace(), env, "host_timeout") or Member.host_timeout_s


def _given(args: argparse.Namespace, env: Mapping[str, str], name: str) -> Any:
    value, variable = getattr(args, name, None), _VARIABLES[name]
    if value is not None or not env.get(variable):
        return value
    if name == "coordinator":
        return env[variable]
    try:
        return arguments.between(int, *_RANGES[name])(env[variable])
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{variable}: {error}") from None


def _of_cluster(waits: Mapping[str, int]) -> Member | None:
    """What JAX knows of the cluster that this process was started by."""
    if not any(name.startswith(("SLURM_", "TPU_", "OMPI_")) for name in os.environ) and (
        not os.path.exists("/dev/accel0") and not os.path.exists("/dev/vfio/0")
    ):
        return None  # without asking JAX, whose import takes a second
    from jax._src import clusters

    for cluster in clusters.ClusterEnv._cluster_types:
        if getattr(cluster, "name", "") not in _CLUSTERS or not cluster.is_env_present():
            continue
        count = cluster.get_process_count()
        if count == 1:
            return None
        start_s = waits.get("start_timeout_s", Member.start_timeout_s)
        port = os.environ.get("JAX_COORDINATOR_PORT")
        address = cluster.get_coordinator_address(start_s, port)
        return Member(address, count, cluster.get_process_id(), **waits)
    return None


@contextlib.contextmanager
def joined(where: Member | None) -> Iterator[Hosts]:
    """The hosts of a run, from the moment that all have come until all are done.

    Where the block raises, the others are told why, and this process ends without waiting for them.

    Raises:
      UserError: if the coordinator does not answer, or its port is taken.
    """
    if where is None:
        yield ALONE
        return
    client, watch = _connect(where)
    hosts = Hosts(where.index, where.count, client)
    try:
        _introduce(hosts, where, client, watch)
        yield hosts
        hosts.wait()
    except BaseException as error:
        watch.tell(error)
        atexit.register(_leave, 2 if isinstance(error, UserError) else 1)
        raise
    watch.stop()
    import jax

    jax.distributed.shutdown()


def _connect(where: Member) -> tuple[Any, Watch]:
    """Joins JAX's coordination service, which process 0 begins."""
    host, _, port = where.coordinator.rpartition(":")
    print(
        f"hosts       process {where.index} of {where.count}, coordinator {where.coordinator}; "
        f"waiting for the others for up to {where.start_timeout_s} s",
        file=sys.stderr,
        flush=True,
    )
    deadline_s = time.monotonic() + where.start_timeout_s
    if where.index == 0:
        _check_free(int(port))
    else:
        _await_answer(host.strip("[]"), int(port), where, deadline_s)

    import jax
    from jax._src import distributed

    # It would answer SIGTERM in our place; `kcmoe.training.stopping` does that.
    jax.config.update("jax_enable_preemption_service", False)
    # On CPUs; elsewhere nothing reads them. Two steps at once would mix up their messages.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    on_abort(
        f"process {where.index} of {where.count} could not join {where.coordinator}; JAX's reason stands "
        "above: the processes do not agree on --num_processes, or two have the same --process_id"
    )
    late = threading.Timer(max(deadline_s - time.monotonic(), 1), _give_up, [where])
    late.daemon = True
    late.start()
    interrupt = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own would wait for `initialize`
    try:
        jax.distributed.initialize(
            where.coordinator,
            where.count,
            where.index,
            initialization_timeout=where.start_timeout_s + 60,
            # Ours speaks first, and says who was lost.
            heartbeat_timeout_seconds=where.host_timeout_s + 60,
        )
    except RuntimeError as error:
        raise UserError(f"{where.coordinator} could not be joined: {error}") from error
    finally:
        late.cancel()
        signal.signal(signal.SIGINT, interrupt)
    client = distributed.global_state.client
    return client, Watch(client, where.index, where.count, where.host_timeout_s)


def _introduce(hosts: Hosts, where: Member, client: Any, watch: Watch) -> None:
    """Tells the others the name of this host, and learns theirs."""
    watch.start()
    _say_when_aborted(hosts)
    mine = {
        "name": f"{socket.gethostname()}, process {os.getpid()}",
        "count": where.count,
    }
    client.key_value_set(f"{PREFIX}/name/{where.index}", json.dumps(mine))
    first = json.loads(client.blocking_key_value_get(f"{PREFIX}/name/0", 60_000))
    if first["count"] != where.count:
        raise UserError(
            f"host {where.index} ({mine['name']}) was started with --num_processes={where.count}, "
            f"host 0 ({first['name']}) with {first['count']}; give every host the same number"
        )
    told = [json.loads(text) for text in hosts.each(lambda: json.dumps(mine))]
    hosts.names = [f"host {number} ({one['name']})" for number, one in enumerate(told)]
    watch.names = hosts.names
    _say_when_aborted(hosts)
    if hosts.first:
        print(f"hosts       {hosts.count}: {'; '.join(hosts.names)}", file=sys.stderr, flush=True)


def _say_when_aborted(hosts: Hosts) -> None:
    lost = "another process came with the --process_id of one of the hosts"
    if not hosts.first:
        lost = f"{hosts.names[0]} was lost, or {lost}"
    on_abort(f"{lost}; JAX's words stand above; {GO_ON}")


def _check_free(port: int) -> None:
    with socket.socket(socket.AF_INET) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", port))
            one.listen(1)
        except OSError as error:
            raise UserError(
                f"port {port} of this host cannot be had ({error.strerror}): another run may have it; take "
                "another port in --coordinator, the same on every host"
            ) from None


def _await_answer(host: str, port: int, where: Member, deadline_s: float) -> None:
    reason = ""
    while time.monotonic() < deadline_s:
        try:
            with socket.create_connection((host, port), timeout=5):
                return
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.2)
    raise UserError(
        f"the coordinator {where.coordinator} does not answer ({reason}), waited {where.start_timeout_s} s: "
        "start process 0 there, and let the hosts reach one another on that port"
    )


def _give_up(where: Member) -> None:
    other = "; if they were, another program has that port" if where.index else ""
    print(
        f"kcmoe: not all {where.count} processes came to {where.coordinator} within "
        f"{where.start_timeout_s} s; start the same command with --num_processes={where.count} and "
        f"--process_id=0 to {where.count - 1} on the hosts, or raise --start_timeout{other}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _leave(status: int) -> None:
    """Ends this process without JAX's farewell, which waits for the others."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(status)

# SPDX-License-Identifier: Apache-2.0
"""Before the first step: all hosts run the same code, settings and data in one folder."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from kcmoe import __version__
from kcmoe.errors import UserError
from kcmoe.hosts.group import Hosts
from kcmoe.io.remote import Place
from kcmoe.io.wording import listed, shortened

# Where things lie may differ from host to host; what lies there is compared by its content.
_OWN = frozenset({"CACHE_DIR", "DATA_DIR", "MODEL_DIR", "VOCABULARY_FILE"})
_SEEN_WITHIN_S = 10.0  # network file systems remember for a few seconds what was not there


def agree(hosts: Hosts, facts: Callable[[], Mapping[str, str]]) -> None:
    """Raises `UserError` on every host, naming it, if one has other facts than the first host.

    Args:
      hosts: all of them.
      facts: gives what is compared, by the name that the message has for it; not asked where one is alone.
    """
    if hosts.count == 1:
        return
    told = [json.loads(text) for text in hosts.each(lambda: json.dumps(dict(facts())))]
    for name, theirs in zip(hosts.names, told, strict=True):
        differing = [
            f"{fact} is {shortened(str(theirs.get(fact)), 200)} there and "
            f"{shortened(str(told[0].get(fact)), 200)} on {hosts.names[0]}"
            for fact in {**told[0], **theirs}
            if theirs.get(fact) != told[0].get(fact)
        ]
        if differing:
            raise UserError(f"{name} differs: {listed(differing, 4, '; ')}")


def program(macros: Mapping[str, Any]) -> dict[str, str]:
    """The facts that are known before any data are read: versions, settings, devices."""
    import jax

    return {
        "the version": f"kcmoe {__version__} (code {_code()}), jax {jax.__version__}",
        "the number of devices": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
        **{name: repr(value) for name, value in sorted(macros.items()) if name not in _OWN},
    }


def _code() -> str:
    """Eight letters that change when a line of this package does."""
    folder, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


class Folder(Protocol):
    """A folder that hosts may share; `kcmoe.training.places` has them."""

    path: Place

    def read(self, name: str) -> bytes | None:
        """A small file, None where there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file. Raises `UserError`."""

    def remove(self, name: str) -> None:
        """Removes a small file, if it is there."""


def check_shared(hosts: Hosts, folder: Folder) -> None:
    """Raises `UserError`, naming the host, unless all hosts read and write one and the same `folder`."""
    if hosts.count == 1:
        return

    def leave(index: int) -> str:
        name = f".probe-{os.getpid()}-{time.time_ns()}-{index}"
        try:
            folder.write(name, name.encode())
        except UserError as error:
            raise UserError(f"MODEL_DIR {folder.path} cannot be written to: {error}") from error
        return name

    probes = []
    try:
        probes.append(hosts.first_does(lambda: leave(0)))
        hosts.each(lambda: _find(folder, probes[0], hosts.names[0]))
        probes += hosts.each(lambda: None if hosts.first else leave(hosts.index))[1:]
        for name, probe in zip(hosts.names[1:], probes[1:], strict=True):
            hosts.first_does(lambda probe=probe, name=name: _find(folder, probe, name))  # type: ignore[misc]
    finally:
        for probe in probes:
            folder.remove(probe)


def _find(folder: Folder, probe: str, writer: str) -> str:
    deadline_s = time.monotonic() + _SEEN_WITHIN_S
    while time.monotonic() < deadline_s:
        if folder.read(probe) == probe.encode():
            return ""
        time.sleep(0.2)
    raise UserError(
        f"MODEL_DIR {folder.path} is not the folder that {writer} writes to: its files do not appear here; "
        "name a folder that all hosts share"
    )

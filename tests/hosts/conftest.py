# SPDX-License-Identifier: Apache-2.0
"""The fixture `hosts`: what processes that joined one another print, and how they end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

# As many processes as `counts` has entries; each believes that there are so many.
PROGRAM = """
import os, signal, sys, time
from kcmoe.errors import UserError
from kcmoe.hosts import agreeing, joining
index, count, port = map(int, sys.argv[1:])
try:
    with joining.joined(joining.Member(f"127.0.0.1:{port}", count, index, 60, 3)) as hosts:
%s
    print("end", flush=True)
except UserError as error:
    print("refused:", error, flush=True)
    sys.exit(2)
"""

Ends = list[tuple[int, str]]


def free_port() -> int:
    """A port of the loopback interface that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture
def hosts() -> Callable[..., Ends]:
    """(body, counts) -> exit status and output of each process; `body` sees `hosts` and `index`."""

    def run(body: str, counts: tuple[int, ...] = (2, 2), devices: int = 1) -> Ends:
        program = PROGRAM % textwrap.indent(textwrap.dedent(body), " " * 8)
        flags = f"--xla_force_host_platform_device_count={devices}"
        port = free_port()
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(index), str(count), str(port)],
                env={**os.environ, "XLA_FLAGS": flags},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index, count in enumerate(counts)
        ]
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        return [(p.returncode, text) for p, text in zip(processes, outputs, strict=True)]

    return run

# SPDX-License-Identifier: Apache-2.0
"""A step's memory is fetched once and held once; only where that was asked for."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from kcmoe import huge_pages
from kcmoe.training import kept_memory
from kcmoe.training.step_log import StepLog

_STEPS = """
import json, resource, sys
from kcmoe.training import kept_memory
kept_memory.compute_in_turn()
import jax, jax.numpy as jnp

def pages():  # fetched from the kernel so far, and held now
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt, int(open("/proc/self/statm").read().split()[1])

x = jnp.ones(4096)
step = jax.jit(lambda x: jax.lax.fori_loop(0, 2, lambda i, y: y * x, x[:, None] + x)[0]).lower(x).compile()
assert step.memory_analysis().temp_size_in_bytes >= 4 * 4096 * 4096
step = kept_memory.keep(step)
small = []
for _ in range(3):
    small.append(jax.block_until_ready(step(x)))
fetched, held = pages()
for _ in range(10):
    small.append(jax.block_until_ready(step(x)))
kept_memory.give_back()
print(json.dumps([pages()[0] - fetched, held, pages()[1]]))
"""


def _run(**env: str) -> list[int]:
    plain = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "XLA_FLAGS")}
    plain |= {"GLIBC_TUNABLES": huge_pages.NO_SCRAPS, **env}  # and small pages, to be counted
    done = subprocess.run([sys.executable, "-c", _STEPS], env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc, whose settings these are")
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="arrays of this device are not glibc's")
def test_memory_is_fetched_once_and_held_once():
    array = 4096 * 4096 * 4 // os.sysconf("SC_PAGE_SIZE")  # pages
    fetched, held, after = _run()
    anew, _, _ = _run(KCMOE_KEEP_MEMORY="0")
    assert anew > 9 * array  # what is to be avoided
    assert fetched < 2 * array
    assert held - after > array  # given back when asked


def test_leaves_steps_alone_that_are_dispatched_ahead():
    """Their arrays would be held twice."""
    compiled = jax.jit(lambda x: x + 1).lower(jnp.zeros(3)).compile()
    ahead = jax.config.read("jax_cpu_enable_async_dispatch")  # tests of `kcmoe train` change it
    jax.config.update("jax_cpu_enable_async_dispatch", True)
    try:
        assert kept_memory.keep(compiled) is compiled
    finally:
        jax.config.update("jax_cpu_enable_async_dispatch", ahead)


def test_a_step_that_is_done_is_recorded_at_once(monkeypatch):
    """Else the last one before a save would take no time, and the first after it the time of two."""
    recorded = []
    log = StepLog.__new__(StepLog)
    monkeypatch.setattr(log, "_pending", None, raising=False)
    monkeypatch.setattr(StepLog, "flush", lambda self: recorded.append(self._pending))
    loss = jax.block_until_ready(jnp.zeros(()))
    log.add(7, {"loss": loss})
    assert recorded == [None, (7, {"loss": loss})]

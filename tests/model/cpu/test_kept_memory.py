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

from kcmoe.model.cpu import memory

_STEPS = """
import ctypes, json, resource, sys
from kcmoe.model.cpu import memory
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: small pages, to be counted
memory.compute_in_turn()
import jax, jax.numpy as jnp

def fetched():  # pages, from the kernel so far
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def held():  # pages, now
    return int(open("/proc/self/statm").read().split()[1])

x = jnp.ones(4096)
step = jax.jit(lambda x: jax.lax.fori_loop(0, 2, lambda i, y: y * x, x[:, None] + x)[0]).lower(x).compile()
assert step.memory_analysis().temp_size_in_bytes >= 4 * 4096 * 4096
step = memory.keep(step)
small, most = [], 0
start = fetched()
for _ in range(STEPS):
    small.append(jax.block_until_ready(step(x)))
    most = max(most, held())
anew = fetched() - start
memory.give_back()
idle = held()
freed = ctypes.create_string_buffer(64 << 20)
del freed  # kept where memory is kept
before = held()
memory.give_back()
print(json.dumps([anew, most - idle, before - held()]))
"""
_COUNT = 40


def _run(**env: str) -> list[int]:
    """Pages that the steps fetched; the most they held; what was given back in the end, of 64 MiB freed."""
    plain = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "XLA_FLAGS")}
    plain |= {"GLIBC_TUNABLES": memory.NO_SCRAPS, **env}
    script = _STEPS.replace("STEPS", str(_COUNT))
    done = subprocess.run([sys.executable, "-c", script], env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc, whose settings these are")
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="arrays of this device are not glibc's")
def test_memory_is_fetched_once_and_held_once():
    array = 4096 * 4096 * 4 // os.sysconf("SC_PAGE_SIZE")  # pages
    fetched, held, given_back = _run()
    anew, _, _ = _run(KCMOE_KEEP_MEMORY="0")
    assert anew > 0.9 * _COUNT * array  # what is to be avoided
    assert fetched < anew / 2  # on a busy machine the heap moves now and then: an array or two
    assert held < 1.5 * array  # moved or not
    assert given_back > 0.9 * array


def test_leaves_steps_alone_that_are_dispatched_ahead():
    """Their arrays would be held twice."""
    compiled = jax.jit(lambda x: x + 1).lower(jnp.zeros(3)).compile()
    ahead = jax.config.read("jax_cpu_enable_async_dispatch")  # tests of `kcmoe train` change it
    jax.config.update("jax_cpu_enable_async_dispatch", True)
    try:
        assert memory.keep(compiled) is compiled
    finally:
        jax.config.update("jax_cpu_enable_async_dispatch", ahead)

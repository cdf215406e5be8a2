# SPDX-License-Identifier: Apache-2.0
"""Accelerators by name: peak arithmetic, memory, and how many devices a name such as v4-32 means.

Figures are the makers' public ones, for dense bfloat16 with float32 accumulation:
TPU: cloud.google.com/tpu/docs/system-architecture-tpu-vm and the page of each version. A v3-8 board is
counted as 420 TFLOP/s, the figure of its announcement, on which the published utilisation rests; newer
pages say 4 x 123. GPU: NVIDIA's data sheets (without sparsity). JAX multiplies float32 in bfloat16 on a
TPU and in TF32, half the speed, on a GPU. `cpu` is measured on this machine.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Literal

from kcmoe.errors import UserError, near_misses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Kind:
    """One accelerator as JAX sees it: a TPU core up to v3, a chip from v4 on, a whole GPU.

    Attributes:
      peak_tflops: TFLOP/s in bfloat16.
      memory_gib: its memory.
      usable: share of the memory a program gets. On GPUs 0.75, JAX's default.
      float32: share of the peak left for float32 activations.
      cores: what the number in a TPU's name counts per device.
      per_host: devices of one host, at most.
      per_host_of_many: devices of one host where a slice has several.
      host_cores: CPU cores (vCPUs) of one host of a TPU slice.
      slices: the TPU slices that exist: the number in the name -> chips along each side.
    """

    peak_tflops: float
    memory_gib: float
    usable: float = 0.95
    float32: float = 1.0
    cores: int = 1
    per_host: int = 8
    per_host_of_many: int = 8
    host_cores: int = 0
    slices: Mapping[int, str] = dataclasses.field(default_factory=dict)


# Of v2 and v3 the number counts cores, two a chip, and JAX's devices are cores; from v4 on they are chips.
_FLAT = {8: "2x2", 32: "4x4", 128: "8x8", 256: "8x16", 512: "16x16"}
_FLAT_V3 = _FLAT | {64: "4x8", 1024: "16x32", 2048: "32x32"}
_CUBES = {
    **{8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8"},
    **{512: "4x8x8", 1024: "8x8x8", 1536: "8x8x12", 2048: "8x8x16", 4096: "8x16x16"},
}
_SQUARES = {
    **{1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16"},
    256: "16x16",
}
_V5E = Kind(peak_tflops=197, memory_gib=16, host_cores=224, slices=_SQUARES)

TPUS = {
    "v2": Kind(peak_tflops=22.5, memory_gib=8, host_cores=96, slices=_FLAT),
    "v3": Kind(peak_tflops=52.5, memory_gib=16, host_cores=96, slices=_FLAT_V3),
    "v4": Kind(peak_tflops=275, memory_gib=32, cores=2, per_host=4, host_cores=240, slices=_CUBES),
    "v5p": Kind(peak_tflops=459, memory_gib=95, cores=2, per_host=4, host_cores=208, slices=_CUBES),
    "v5e": _V5E,
    "v5litepod": _V5E,
    "v6e": Kind(
        peak_tflops=918, memory_gib=32, per_host_of_many=4, host_cores=180, slices=_SQUARES
    ),
}
GPUS = {
    name: Kind(peak_tflops=peak, memory_gib=gib, usable=0.75, float32=0.5)
    for name, peak, gib in [
        ("a100-40", 312, 40),
        ("a100-80", 312, 80),
        ("a10", 125, 24),
        ("l4", 121, 24),
        ("l40s", 362, 48),
        ("rtx3090", 71, 24),
        ("rtx4090", 165, 24),
        ("h100", 989, 80),
        ("h200", 989, 141),
        ("b200", 2250, 180),
    ]
}


@dataclasses.dataclass(frozen=True)
class Hardware:
    """`devices` accelerators of one kind, under the name that was asked for."""

    name: str
    kind: Kind
    devices: int

    @property
    def platform(self) -> Literal["cpu", "gpu", "tpu"]:
        """What JAX calls the kind of device."""
        if self.name == "cpu":
            return "cpu"
        return "tpu" if self.kind in TPUS.values() else "gpu"

    @property
    def hosts(self) -> int:
        """Machines that share the devices."""
        if self.devices <= self.kind.per_host:
            return 1
        return -(-self.devices // min(self.kind.per_host, self.kind.per_host_of_many))

    @property
    def topology(self) -> str:
        """The TPU slice as its compiler names it, e.g. v4:2x2x4; "" for anything else."""
        match = re.fullmatch(r"(v\d\w*)-(\d+)", self.name)
        if not match or self.platform != "tpu":
            return ""
        return f"{'v5e' if match[1] == 'v5litepod' else match[1]}:{self.kind.slices[int(match[2])]}"

    @property
    def usable_bytes(self) -> int:
        """Memory of one device that a program may fill."""
        return int(self.kind.memory_gib * self.kind.usable * GIB)

    def peak_flops(self, dtype: str) -> float:
        """FLOP/s of all devices together, for activations of `dtype`."""
        share = self.kind.float32 if dtype == "float32" else 1.0
        return self.devices * self.kind.peak_tflops * 1e12 * share


def parse(name: str) -> Hardware:
    """v3-8 (cores, as Google counts), v5e-256 (chips), h200x8, h100, cpu.

    Raises:
      UserError: for a name that is in no table, or a slice that cannot be.
    """
    wanted = name.strip().lower()
    if wanted == "cpu":
        return Hardware(wanted, _this_cpu(), 1)
    if match := re.fullmatch(r"(v\d\w*)-(\d+)", wanted):
        kind, count = TPUS.get(match[1]), int(match[2])
        if kind and count in kind.slices:
            return Hardware(wanted, kind, count // kind.cores)
        if kind:
            raise UserError(_no_slice(name, match[1], count, kind))
    if wanted in GPUS:
        return Hardware(wanted, GPUS[wanted], 1)
    gpu, _, count_text = wanted.rpartition("x")
    if gpu in GPUS and count_text.isdecimal() and int(count_text) > 0:
        return Hardware(wanted, GPUS[gpu], int(count_text))
    gpu, count_text = gpu or wanted, count_text.lstrip("0") if count_text.isdecimal() else ""
    examples = [
        "cpu",
        *(f"{tpu}-8" for tpu in TPUS),
        *(f"{each}x{count_text or 1}" for each in GPUS),
    ]
    kinds = [each for each in examples if each.startswith(f"{gpu}-")]  # a100: of which size?
    hint = f" Did you mean {' or '.join(kinds)}?" if kinds else near_misses(wanted, examples)
    raise UserError(f"--hardware={name} is not known.{hint} Known: {', '.join(examples)}")


def _no_slice(name: str, tpu: str, count: int, kind: Kind) -> str:
    sizes = sorted(kind.slices)
    nearest = sorted(sizes, key=lambda size: abs(size - count))[:2]
    meant = " or ".join(f"{tpu}-{size}" for size in sorted(nearest))
    counted = "cores" if kind.cores == 2 or tpu in ("v2", "v3") else "chips"
    return (
        f"--hardware={name}: there is no such slice. Did you mean {meant}? {tpu} comes with "
        f"{', '.join(map(str, sizes))} {counted}"
    )


def _this_cpu() -> Kind:
    """This machine: float32 products of 1024 x 1024 matrices timed, memory as the system says."""
    import time

    import jax
    import jax.numpy as jnp

    size, repeats = 1024, 4
    with jax.default_device(jax.devices("cpu")[0]):
        matrix = jnp.ones((size, size), jnp.float32)
        multiply = jax.jit(jnp.dot)
        multiply(matrix, matrix).block_until_ready()
        fastest_s = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            multiply(matrix, matrix).block_until_ready()
            fastest_s = min(fastest_s, time.perf_counter() - start)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Kind(peak_tflops=2 * size**3 / fastest_s / 1e12, memory_gib=memory, per_host=1)

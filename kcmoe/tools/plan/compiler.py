# SPDX-License-Identifier: Apache-2.0
"""Compiles one training step for TPUs that are not here and writes down what the compiler says of it.

A program of its own, started by `compiled`: `python -m kcmoe.tools.plan.compiler REQUEST ANSWER`, both JSON
files. libtpu holds the compiler; it takes its settings from the environment when it is loaded, may end the
process, and T5X has to be told of other devices than the machine has.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from kcmoe.config import gin_files
from kcmoe.tools.plan import hlo, memory
from kcmoe.training import sharding
from kcmoe.training import update as updates
from kcmoe.training.settings import Settings

# v4's two cores a chip are one device to JAX, as Cloud TPU VMs set it up.
_MEGACORE = {"chip_config_name": "megacore"}
# libtpu says it in two ways: before it looks for places of the arrays, and after.
_FULL = re.compile(
    r"(?:Used |temporaries \()([\d.]+\w)(?: of |\) exceeds available HBM \()([\d.]+\w)"
)
_ALLOCATION = re.compile(
    r"^\s*\d+\. Size: ([\d.]+\w)$.*?^\s*Shape: (\S+)$", re.MULTILINE | re.DOTALL
)


def main(request_file: str, answer_file: str) -> None:
    """Reads the request, compiles, writes the answer."""
    request = json.loads(Path(request_file).read_text("utf-8"))
    started = time.perf_counter()
    step, mesh = _lowered(request)
    lowered = time.perf_counter()
    try:
        program = step.compile()
    except jax.errors.JaxRuntimeError as error:
        answer = _refused(str(error))
    else:
        answer = _described(program)
    answer |= {
        "mesh": mesh,
        "trace_s": lowered - started,
        "compile_s": time.perf_counter() - lowered,
    }
    Path(answer_file).write_text(json.dumps(answer), "utf-8")


def _lowered(request: Mapping[str, Any]) -> tuple[Any, dict[str, int]]:
    """The step of the request, and its mesh."""
    devices = _devices(request["topology"])
    macros = gin_files.parse(texts={"the request": request["macros"]})
    settings = Settings.from_macros(macros)
    run = settings.run
    batch = memory.batch_shapes(
        run.batch_size, run.lengths["inputs"], run.lengths["targets"], packed=request["packed"]
    )
    if request["stack"] == "t5x":
        from kcmoe.t5x import step

        return step.lowered(request["macros"], devices, batch)
    mesh = sharding.make_mesh(
        settings.model, run.num_expert_partitions, devices, run.model_partitions
    )
    parts = updates.of_run(settings, mesh=mesh)
    dims = run.parameter_partitioning_dims
    programs = updates.lower(parts, settings.model, mesh, batch, run.microbatches, dims)
    return programs.update, dict(mesh.shape)


def _devices(topology: str) -> Any:
    """The devices of e.g. v3:2x2."""
    sides = [int(n) for n in topology.partition(":")[2].split("x")]
    options: dict[str, Any] = dict(_MEGACORE) if topology.startswith("v4") else {}
    if sides == [1, 1]:
        options["chips_per_host_bounds"] = (1, 1, 1)
    elif sides == [2, 4]:
        options["chips_per_host_bounds"] = (2, 4, 1)  # v5e-8 and v6e-8 are one host
    return topologies.get_topology_desc(topology, "tpu", **options).devices


def _described(program: Any) -> dict[str, Any]:
    """What the compiler says of a program that fits; bytes and FLOPs of one device."""
    memory_of, costs = program.memory_analysis(), program.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    text = hlo.read(program.as_text())
    return {
        "arguments_bytes": memory_of.argument_size_in_bytes,
        "new_outputs_bytes": memory_of.output_size_in_bytes - memory_of.alias_size_in_bytes,
        "temporaries_bytes": memory_of.temp_size_in_bytes,
        "code_bytes": memory_of.generated_code_size_in_bytes,
        "peak_bytes": memory_of.peak_memory_in_bytes,
        "flops": costs.get("flops", 0.0),
        "accessed_bytes": costs.get("bytes accessed", 0.0),
        "optimal_s": max(
            costs.get("optimal_seconds", 0.0), 0.0
        ),  # v5e's is a sum of -1 for not known
        "loops": text.cycles / text.cycles_once if text.cycles_once else 1.0,
        "exchanges": [one._asdict() for one in text.exchanges],
    }


def _refused(message: str) -> dict[str, Any]:
    """Why there is no program: the compiler's own reason, and the largest arrays if memory was too short."""
    full = _FULL.search(message)
    if not full:
        return {"error": " ".join(message.split())[:400]}
    sizes = dict.fromkeys(
        f"{size}iB {shape.partition('{')[0]}" for size, shape in _ALLOCATION.findall(message)
    )
    return {
        "error": f"needs {full[1]}iB of memory, and a device has {full[2]}iB",
        "largest": list(sizes)[:5],
    }


if __name__ == "__main__":
    main(*sys.argv[1:])

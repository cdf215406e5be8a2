# SPDX-License-Identifier: Apache-2.0
"""Asks the TPU's own compiler about a step, on a machine without any TPU, and keeps its answers.

libtpu holds that compiler and compiles for topologies that are not there. A process of its own does it, see
`compiler`; base takes it several minutes. Answers lie in the cache of `kcmoe.io.compilation_cache`, by
settings, versions and the code of model and step.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kcmoe.config import gin_files
from kcmoe.errors import UserError
from kcmoe.io import compilation_cache, hashing, resources
from kcmoe.tools.plan.hardware import Hardware
from kcmoe.tools.plan.hlo import Exchange

# libtpu asks Google's metadata server and its neighbours who they are, unless told; the type is not used.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
# Settings that change where a run begins, ends and writes, and no operation of its step.
_NOT_OF_A_STEP = re.compile(
    r"(MODEL|DATA)_DIR|.*CHECKPOINT.*|EVAL_.*|TRAIN_STEPS|FINETUNE_STEPS|MIXTURE.*|TASK_(?!FEATURE).*|RANDOM_SEED"
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step; bytes, FLOPs and seconds are those of one device.

    Attributes:
      error: why there is no program; then the rest is 0 and `largest` may name the largest arrays.
      arguments_bytes: parameters, optimizer state and batch; the new state takes the old one's place.
      peak_bytes: the most that is there at a time, as XLA counts it.
      flops: of all operations, loops counted as often as they run.
      optimal_s: the compiler's estimate of a step, exchanges not included where it knows none of them; 0
        where it gives none.
      loops: what loops multiply: cycles as often as they run by cycles counted once.
      cached: whether an earlier answer was read.
      fault: why it was not kept for the next time, "" if it was or nothing is to be kept.
    """

    mesh: Mapping[str, int]
    versions: Mapping[str, str]
    compile_s: float
    trace_s: float
    error: str = ""
    largest: tuple[str, ...] = ()
    arguments_bytes: int = 0
    new_outputs_bytes: int = 0
    temporaries_bytes: int = 0
    code_bytes: int = 0
    peak_bytes: int = 0
    flops: float = 0.0
    accessed_bytes: float = 0.0
    optimal_s: float = 0.0
    loops: float = 1.0
    exchanges: tuple[Exchange, ...] = ()
    cached: bool = False
    fault: str = ""

    @property
    def total_bytes(self) -> int:
        """What a device must have: everything that is allocated."""
        arrays = self.arguments_bytes + self.new_outputs_bytes + self.temporaries_bytes
        return arrays + self.code_bytes

    @property
    def estimate_s(self) -> float:
        """The compiler's estimate with loops counted as often as they run."""
        return self.optimal_s * self.loops

    @property
    def exchanged_bytes(self) -> int:
        """Results of all exchanges between devices in a step."""
        return sum(one.times * one.bytes_each for one in self.exchanges)


def compile_step(
    macros: gin_files.Macros, hardware: Hardware, stack: str, *, packed: bool
) -> Compiled:
    """The answer of the compiler about the step of a run, from the cache where it is there.

    Args:
      macros: all settings of the run.
      hardware: a TPU slice.
      stack: "engine" or "t5x", which needs T5X and Flaxformer.
      packed: whether rows are packed.

    Raises:
      UserError: if the compiler is not installed, or ended without an answer.
    """
    check(hardware, stack)
    step = {name: macros[name] for name in sorted(macros) if not _NOT_OF_A_STEP.fullmatch(name)}
    request = {"stack": stack, "topology": hardware.topology, "packed": packed}
    versions = _versions(stack)
    facts = {**request, "step": repr(step), "versions": versions}
    kept = compilation_cache.kept("plan")
    if found := kept.find(facts):
        return _answer(json.loads(found), versions, cached=True)
    answer = _ask({**request, "macros": gin_files.dump(macros)}, hardware.name)
    kept.keep(facts, json.dumps(answer, indent=1).encode())
    return _answer({**answer, "fault": kept.fault}, versions, cached=False)


def check(hardware: Hardware, stack: str) -> None:
    """Raises `UserError` where nothing can be compiled for this hardware or with this installation."""
    if not hardware.topology:
        raise UserError(
            f"--compile asks the TPU's compiler, and {hardware.name} is no TPU; leave --compile away, "
            "or name a TPU slice such as v3-8"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--compile needs the TPU's compiler, libtpu: pip install 'kcmoe[tpu]'")
    if stack == "t5x":
        try:
            from kcmoe.t5x import requirements

            requirements.check_t5x_is_here()
        except UserError as error:
            raise UserError(f"{error}. Or compile the engine's step: --stack=engine") from None


def other_version() -> str:
    """Says which libtpu this JAX was made for, if another is installed; "" if it is that one."""
    found = importlib.metadata.version("libtpu")
    wanted = [w for w in importlib.metadata.requires("jax") or () if w.startswith("libtpu")]
    pin = re.match(r"libtpu==(\d+(?:\.\d+)*)(\.\*)?", wanted[0]) if wanted else None
    if pin is None or found == pin[1] or (pin[2] and found.startswith(f"{pin[1]}.")):
        return ""
    jax_version = importlib.metadata.version("jax")
    return (
        f"libtpu {found} is installed, and jax {jax_version} was made for {pin[0]}: if it fails, "
        f"pip install '{pin[0]}'"
    )


def _ask(request: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Runs the compiler's process to its end."""
    with tempfile.TemporaryDirectory(prefix="kcmoe-compile-") as folder:
        asked, answered, said = (Path(folder) / part for part in ("request", "answer", "log"))
        asked.write_text(json.dumps(request), "utf-8")
        command = [sys.executable, "-m", "kcmoe.tools.plan.compiler", str(asked), str(answered)]
        environment = {**os.environ, **_ENVIRONMENT}
        environment.pop("XLA_FLAGS", None)  # of the CPU; libtpu ends on flags that it does not know
        if request["stack"] == "t5x":
            environment["JAX_NUMPY_DTYPE_PROMOTION"] = "standard"  # Flaxformer mixes dtypes
        with said.open("wb") as log:
            done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
        if answered.is_file():
            return json.loads(answered.read_text("utf-8"))
        raise UserError(_failure(done.returncode, said.read_text("utf-8", "replace"), name))


def _failure(status: int, log: str, name: str) -> str:
    if status < 0:
        return f"compiling for {name} was ended by signal {-status}" + (
            ": the compiler needs more memory than was free" if status == -9 else ""
        )
    lines = [line for line in log.splitlines() if line.strip()]
    last = lines[-1] if lines else "no reason given"
    note = other_version()
    return f"compiling for {name} failed: {last.strip()}{'; ' + note if note else ''}"


def _answer(fields: Mapping[str, Any], versions: Mapping[str, str], *, cached: bool) -> Compiled:
    lists = {
        "exchanges": tuple(Exchange(**one) for one in fields.get("exchanges", ())),
        "largest": tuple(fields.get("largest", ())),
    }
    return Compiled(**{**fields, **lists}, versions=versions, cached=cached)


def _versions(stack: str) -> dict[str, str]:
    """Of everything that decides what is compiled; our own code by its digest."""
    versions = {
        name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "flax")
    }
    package = Path(__file__).parents[2]
    parts = ("t5x", "training/update.py") if stack == "t5x" else ("model", "training", "tree.py")
    files = [f for part in parts for f in _python(package / part)]
    files += [Path(__file__).with_name("compiler.py")]
    if stack == "t5x":
        from kcmoe.t5x import requirements

        for name in ("t5x", "flaxformer"):  # of which a plain copy has no version
            versions[name] = requirements.installed_commit(name) or _digest(_package(name))
        files += sorted(resources.find("configs/t5x").glob("*.gin"))
    return {**versions, "kcmoe": _digest(files)}


def _digest(files: Iterable[Path]) -> str:
    return hashing.facts_digest([hashing.file_digest(file) for file in files])


def _package(name: str) -> list[Path]:
    found = importlib.util.find_spec(name)
    places = found.submodule_search_locations if found else None
    return [file for place in places or () for file in _python(Path(place))]


def _python(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]

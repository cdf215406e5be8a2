# SPDX-License-Identifier: Apache-2.0
"""A model on CPUs, whose programs are kept on disk.

What was once compiled on this machine lies in the cache folder, ready to run, so that a new process traces
and compiles nothing and need not import JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kcmoe.config.model import ModelConfig
from kcmoe.inference import few
from kcmoe.inference.compute import Arrays, Call, Jitted, function
from kcmoe.inference.runtime import Runtime
from kcmoe.inference.surroundings import surroundings
from kcmoe.io.kept import Kept

_log = logging.getLogger(__name__)
_log.setLevel(logging.INFO)  # what is said here is rare, and about seconds of waiting


class Programs:
    """A model whose programs are kept on disk. May be used from several threads.

    Args:
      config: the model as inference runs it.
      weights: path -> array, which must not change.
      runtime: what runs the programs.
      kept: where they are.
    """

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, np.ndarray], runtime: Runtime, kept: Kept
    ):
        self._config, self._runtime, self._kept = config, runtime, kept
        self._weights = dict(sorted(weights.items()))  # the order in which JAX hands them over
        self._arrays = [runtime.put(array) for array in self._weights.values()]
        self._ready: dict[Call, Callable[..., Any]] = {}
        self._locks: dict[Call, threading.Lock] = {}
        self._lock = threading.Lock()
        self._jitted: Jitted | None = None
        self._few: dict[Call, int] = {}  # the rows that may stand for those of a call
        self._asked: Counter[Call] = Counter()
        self._trying = threading.Lock()

    def __call__(self, name: str, *arrays: np.ndarray, **settings: Any) -> Any:
        """See `Compute`."""
        call = Call.of(name, arrays, settings)
        while (program := self._ready.get(call)) is None:  # others may `forget` at any moment
            self.prepare([call])
        return program(*arrays)

    def prepare(self, calls: Iterable[Call]) -> None:
        """Loads or compiles the programs that are not ready; says so if it takes a while."""
        missing = [call for call in dict.fromkeys(calls) if not self._loaded(call)]
        if not missing:
            return
        started = time.monotonic()
        count = "a program" if len(missing) == 1 else f"{len(missing)} programs"
        _log.info("compiling %s for this machine, once, about 5 s each …", count)
        _in_threads(self._compiled, missing)
        place = (
            f"kept in {self._kept.folder}" if self._kept.folder else "KCMOE_CACHE_DIR keeps none"
        )
        seconds = time.monotonic() - started
        _log.info("compiled in %.1f s; %s", seconds, self._kept.fault or place)

    def few(self, call: Call, rest: Arrays, candidates: Sequence[int], patience: int | None) -> int:
        """See `Compute`; what was found is kept beside the programs."""
        if call in self._few or patience is None:
            return self._few.get(call, 0)
        if not self._trying.acquire(blocking=False):  # another thread tries for seconds: do without
            return 0
        try:
            facts = {**self._facts(call), "what": "rows with the same bits", "tried": candidates}
            kept = self._kept.find(facts)
            if kept is None:
                self._asked[call] += 1
                if self._asked[call] <= patience:
                    return 0
                smaller = {rows: few.with_rows(call, rest, rows) for rows in candidates}
                self.prepare([call, smaller[candidates[0]]])
                compute = functools.partial(self, call.name, **dict(call.settings))
                entries = self._config.num_embeddings
                kept = b"%d" % few.same_bits(compute, call, rest, candidates, entries)
                self._kept.keep(facts, kept)
                for rows, other in smaller.items():
                    if rows != int(kept):
                        self._ready.pop(other, None)
            self._few[call] = int(kept)
            return self._few[call]
        finally:
            self._trying.release()

    def forget(self) -> None:
        """See `Compute`."""
        self._few.clear()
        self._ready.clear()
        if self._jitted is not None:
            self._jitted.forget()

    def _lock_of(self, call: Call) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(call, threading.Lock())

    def _loaded(self, call: Call) -> bool:
        """Whether the program is ready, now that it was looked for on disk."""
        with self._lock_of(call):
            if call in self._ready:
                return True
            content = self._kept.find(self._facts(call))
            if content is None:
                return False
            try:
                self._ready[call] = self._program(content)
            except Exception as error:  # made anew, whatever jaxlib has against it
                _log.debug("a kept program cannot be used: %r", error)
                return False
            return True

    def _compiled(self, call: Call) -> None:
        with self._lock_of(call):
            if call in self._ready:
                return
            try:
                content = self._compile(call)
                self._ready[call] = self._program(content)
            except Exception as error:
                # Another JAX: its own way still works, or says what is wrong.
                _log.debug("a program cannot be made ready to be kept: %r", error)
                self._ready[call] = functools.partial(
                    self._plainly, call.name, **dict(call.settings)
                )
                return
            self._kept.keep(self._facts(call), content)

    def _plainly(self, name: str, *arrays: np.ndarray, **settings: Any) -> Any:
        with self._lock:
            if self._jitted is None:
                import jax

                from kcmoe.io import compilation_cache
                from kcmoe.model.encoder_decoder import EncoderDecoder

                compilation_cache.enable()
                model = EncoderDecoder(self._config, platform="cpu")
                self._jitted = Jitted(model, jax.device_put(self._weights))
        return self._jitted(name, *arrays, **settings)

    def _facts(self, call: Call) -> dict[str, Any]:
        """All that a program depends on."""
        return {
            "what": "program",
            "model": dataclasses.asdict(self._config),
            "weights": [[path, [*a.shape], a.dtype.name] for path, a in self._weights.items()],
            "call": call,
            **surroundings(),
        }

    def _program(self, content: bytes) -> Callable[..., Any]:
        header, _, serialized = content.partition(b"\n")
        about = json.loads(header)
        run = self._runtime.load(serialized, about["outputs"])
        single, put = about["single"], self._runtime.put

        def program(*arrays: np.ndarray) -> Any:
            found = run([*self._arrays, *map(put, arrays)])
            return found[0] if single else tuple(found)

        return program

    def _compile(self, call: Call) -> bytes:
        import jax

        from kcmoe.model.encoder_decoder import EncoderDecoder

        inner = function(call.name).__wrapped__
        model, settings = EncoderDecoder(self._config, platform="cpu"), dict(call.settings)

        def program(params: Any, *arrays: Any) -> Any:
            return inner(model, params, *arrays, **settings)

        # An executable that JAX takes from its own cache cannot be serialized again. This name is not in it.
        program.__name__ = f"kcmoe_{call.name}_{os.urandom(8).hex()}"
        params = {
            path: jax.ShapeDtypeStruct(array.shape, array.dtype)
            for path, array in self._weights.items()
        }
        arrays = [jax.ShapeDtypeStruct(shape, np.dtype(dtype)) for shape, dtype in call.shapes]
        lowered = jax.jit(program, keep_unused=True).lower(params, *arrays)
        with _not_in_jax_cache:
            compiled = lowered.compile()
        outputs, tree = jax.tree_util.tree_flatten(compiled.out_info)
        about = {
            "outputs": [[[*leaf.shape], leaf.dtype.name] for leaf in outputs],
            "single": jax.tree_util.treedef_is_leaf(tree),
        }
        executable: Any = compiled.runtime_executable()
        return json.dumps(about).encode() + b"\n" + executable.serialize()


def _in_threads(work: Callable[[Call], None], calls: Sequence[Call]) -> None:
    """Does the work for all calls, on all processors. Ctrl-C waits for none of it: daemons end with us."""
    waiting, failures = list(calls), list[BaseException]()

    def take() -> None:
        while waiting and not failures:
            with contextlib.suppress(IndexError):  # another thread took the last one
                call = waiting.pop(0)
                try:
                    work(call)
                except BaseException as error:
                    failures.append(error)

    threads = [
        threading.Thread(target=take, daemon=True, name="kcmoe-compile")
        for _ in range(min(len(calls), os.cpu_count() or 1))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class _NotInJaxCache:
    """JAX keeps nothing that is compiled meanwhile, in whichever thread: it is kept here."""

    _name = "jax_persistent_cache_min_compile_time_secs"

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, 0.0

    def __enter__(self) -> None:
        import jax

        with self._lock:
            if not self._inside:
                self._before = getattr(jax.config, self._name)
                jax.config.update(self._name, float("inf"))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        import jax

        with self._lock:
            self._inside -= 1
            if not self._inside:
                jax.config.update(self._name, self._before)


_not_in_jax_cache = _NotInJaxCache()

# SPDX-License-Identifier: Apache-2.0
"""Programs kept on disk: the numbers of JAX, found again by the next process, which imports no JAX."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from kcmoe.inference.compute import Call, Jitted, fetched
from kcmoe.inference.predict import LanguageModel
from kcmoe.inference.programs import Programs, _not_in_jax_cache
from kcmoe.inference.runtime import Runtime, computes_on_cpu
from kcmoe.io.kept import Kept

INPUTS = np.tile(np.array([[7, 9, 11, 1] + [0] * 12], np.int32), (16, 1))


def programs(model: LanguageModel, folder: Path | None) -> Programs:
    runtime = Runtime.of()
    assert runtime is not None, "jaxlib alone must work where these tests run"
    return Programs(model.loaded.config, model.loaded.weights, runtime, Kept(folder))


def search(compute: Any) -> Any:
    strength, ends = np.asarray(0.6, np.float32), np.array([1, 1], np.int32)
    return fetched(compute("search", INPUTS, strength, ends, max_decode_len=4, beam_size=2))


def test_programs_compute_what_jax_does_and_are_found_again(
    model: LanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = search(Jitted(model.model, model.loaded.params))
    with caplog.at_level(logging.INFO):
        first = search(programs(model, tmp_path / "programs"))
    assert f"kept in {tmp_path}" in caplog.text
    (file,) = (tmp_path / "programs").iterdir()
    caplog.clear()
    again = search(programs(model, tmp_path / "programs"))
    assert not caplog.text
    for theirs, ours, found in zip(plain, first, again, strict=True):
        assert np.array_equal(theirs, ours)
        assert np.array_equal(ours, found)
    # What is damaged is compiled again, with the same result.
    file.write_bytes(file.read_bytes()[:-100])
    assert np.array_equal(search(programs(model, tmp_path / "programs"))[0], plain[0])


def test_where_programs_cannot_be_serialized_jax_computes(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise AttributeError("another JAX")

    monkeypatch.setattr(Programs, "_compile", refuse)
    found = search(programs(model, None))
    assert np.array_equal(found[0], search(Jitted(model.model, model.loaded.params))[0])


def test_a_call_tells_its_shapes_and_settings() -> None:
    assert Call.of("rank", [INPUTS], {"b": 1, "a": (2,)}) == (
        "rank", (((16, 16), "int32"),), (("a", (2,)), ("b", 1)),
    )  # fmt: skip


def test_an_accelerator_is_left_to_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert Runtime.of() is None
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert computes_on_cpu()


def test_the_second_process_imports_nothing_it_does_not_need(model_dir: Path) -> None:
    names = ("jax", "flax", "orbax", "grain", "pyarrow", "tensorflow", "MeCab")
    code = (
        f"import kcmoe, sys; print(kcmoe.load({str(model_dir)!r}).classify(['좋다'])); "
        f"print([name for name in {names!r} if name in sys.modules])"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    answers = [run.stdout.splitlines()[0] for run in runs]
    assert answers[0] == answers[1]
    assert runs[1].stdout.splitlines()[1] == "[]"


def test_jax_keeps_what_is_compiled_after_two_threads_compiled_at_once() -> None:
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with _not_in_jax_cache:
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with _not_in_jax_cache:
        leave.set()
        thread.join()
        assert jax.config.jax_persistent_cache_min_compile_time_secs == float("inf")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == before

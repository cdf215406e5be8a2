# SPDX-License-Identifier: Apache-2.0
"""A 16-wide model with random weights, in use here and behind a `kcmoe serve`; a browser for its page."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from kcmoe import checkpoint
from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.inference.predict import LanguageModel
from kcmoe.model.interface import param_shapes

MACROS: dict[str, Any] = {
    "NUM_ENCODER_LAYERS": 2,
    "NUM_DECODER_LAYERS": 1,
    "NUM_ENCODER_SPARSE_LAYERS": 2,
    "NUM_DECODER_SPARSE_LAYERS": 1,
    "NUM_HEADS": 2,
    "HEAD_DIM": 8,
    "EMBED_DIM": 16,
    "MLP_DIM": 32,
    "EXPERT_MLP_DIM": 32,
    "NUM_EXPERTS": 4,
    "SCALE": 1.0,
    "EVAL_EXPERT_CAPACITY_FACTOR": 1.0,
    "ACTIVATION_DTYPE": "float32",
    "MIXTURE_OR_TASK_NAME": "nsmc",
    "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 6},
    "PREDICT_TOKENS": 256,
}
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
WAIT_MS = 120_000
LIMITS = ("--max_lines=32", "--queue=64", "--timeout_s=120")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs the extra [serve] where it is not installed."""
    if importlib.util.find_spec("starlette") and importlib.util.find_spec("uvicorn"):
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(
                pytest.mark.skip(reason="needs pip install -c constraints.txt '.[serve]'")
            )


def make_model_dir(folder: Path, **changes: Any) -> Path:
    """A model directory with checkpoint_7."""
    files = ["configs/engine/engine.gin", "configs/sizes/tiny.gin"]
    values = {**MACROS, **changes}
    macros = gin_files.parse(files, [f"{name} = {value!r}" for name, value in values.items()])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.gin").write_text(gin_files.dump(macros), encoding="utf-8")
    shapes = param_shapes(ModelConfig.from_macros(macros))
    rng = np.random.default_rng(7)
    flat = {
        f"target/{name}": rng.normal(0, 0.4, leaf.shape).astype(np.float32)
        for name, leaf in shapes.items()
    }
    checkpoint.save(folder, 7, {**flat, "state/step": np.asarray(7, np.int32)})
    return folder


class Server:
    """A `kcmoe serve` process and how to ask it."""

    def __init__(self, folder: Path, *options: str):
        command = [
            sys.executable,
            "-m",
            "kcmoe",
            "serve",
            f"--checkpoint={folder}",
            "--port=0",
            *options,
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()
        assert "http://" in self.first_line, self.process.communicate()[1]
        self.address = self.first_line.split()[-1]
        self.port = int(self.address.rsplit(":", 1)[1])
        for _ in range(600):
            if self.get("/readyz")[0] == 200:
                return
            time.sleep(0.2)
        raise AssertionError("never ready")

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """(status, JSON or text, headers)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)
        try:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            given = {"content-type": "application/json"} if body is not None else {}
            connection.request(method, path, content, {**given, **headers})
            response = connection.getresponse()
            text = response.read().decode()
            found = {name.lower(): value for name, value in response.getheaders()}
            is_json = found.get("content-type", "").startswith("application/json")
            return response.status, json.loads(text) if is_json else text, found
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, Any, dict[str, str]]:
        return self.ask("GET", path)

    def post(self, path: str, body: Any) -> Any:
        """The answer of a request that must succeed."""
        status, answer, _ = self.ask("POST", path, body)
        assert status == 200, answer
        return answer

    def stop(self) -> int:
        """Asks the process to end; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(tmp_path_factory.mktemp("compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    os.environ["KCMOE_CACHE_DIR"] = folder


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with checkpoint_7."""
    return make_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def model(model_dir: Path) -> LanguageModel:
    """checkpoint_7 in use."""
    return LanguageModel.load(model_dir / "checkpoint_7")


@pytest.fixture
def start() -> type[Server]:
    """Starts a server of one's own."""
    return Server


@pytest.fixture(scope="session")
def server(model_dir: Path) -> Iterator[Server]:
    """checkpoint_7 behind HTTP."""
    found = Server(model_dir, *LIMITS)
    yield found
    found.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real browser: Debian's (apt-get install chromium), Playwright's, or what KCMOE_CHROMIUM names."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs pip install playwright, and apt-get install chromium"
    )
    path = os.environ.get("KCMOE_CHROMIUM") or shutil.which("chromium")
    with contextlib.ExitStack() as held:
        engine = held.enter_context(playwright.sync_playwright())
        try:
            found = engine.chromium.launch(executable_path=path, args=FLAGS)
        except playwright.Error:
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Any, server: Any) -> Iterator[Any]:
    """Opens the page; at the end nothing may have been said in the console or fetched from elsewhere."""
    complaints: list[str] = []
    contexts = []

    def opened(path: str = "/", **options: Any) -> Any:
        context = browser.new_context(accept_downloads=True, **{"locale": "ko-KR", **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        # Chromium itself writes this of every answer that is not 200.
        page.on(
            "console",
            lambda message: (
                None
                if message.text.startswith("Failed to load resource")
                else complaints.append(message.text)
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((server.address, "data:", "blob:"))
                else complaints.append(request.url)
            ),
        )
        page.goto(server.address + path)
        page.wait_for_selector("html[data-ready]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints

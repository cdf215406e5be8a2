# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are read from gs:// as from a disk: a local server plays the bucket's part."""

from __future__ import annotations

import http.server
import json
import os
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kcmoe import checkpoint
from kcmoe.checkpoint import run_config
from kcmoe.checkpoint.writing import convert
from kcmoe.errors import UserError

State = dict[str, np.ndarray]


class Bucket(http.server.BaseHTTPRequestHandler):
    """Lists and reads objects as Google's JSON API does; nothing else is asked for."""

    folder: Path

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path.endswith("/o"):
            first, end = query.get("startOffset", ""), query.get("endOffset", "\x7f")
            files = (path for path in self.folder.rglob("*") if path.is_file())
            names = sorted(str(path.relative_to(self.folder)) for path in files)
            items = [{"name": n, "generation": "1"} for n in names if first <= n < end]
            self._answer(200, json.dumps({"items": items}).encode())
            return
        file = self.folder / urllib.parse.unquote(url.path.split("/o/")[1])
        if not file.is_file():
            self._answer(404, b"")
            return
        content, wanted = file.read_bytes(), self.headers.get("Range")
        if wanted is None:
            self._answer(200, content)
            return
        start, _, last = wanted.removeprefix("bytes=").partition("-")
        part = content[int(start) : int(last) + 1 if last else None]
        whole = f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}"
        self._answer(206, part, whole)

    def _answer(self, status: int, body: bytes, whole: str | None = None) -> None:
        self.send_response(status)
        self.send_header("x-goog-generation", "1")
        self.send_header("Content-Length", str(len(body)))
        if whole:
            self.send_header("Content-Range", whole)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that is readable as gs://bucket. TensorStore asks for the server's address once."""
    Bucket.folder = tmp_path_factory.mktemp("bucket")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    before = os.environ.get("TENSORSTORE_GCS_HTTP_URL")
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = f"http://127.0.0.1:{server.server_port}"
    yield Bucket.folder
    server.shutdown()
    server.server_close()
    del os.environ["TENSORSTORE_GCS_HTTP_URL"]
    if before is not None:
        os.environ["TENSORSTORE_GCS_HTTP_URL"] = before


@pytest.mark.parametrize("format", ["t5x_orbax", "t5x_legacy"])
def test_a_checkpoint_in_a_bucket(
    format: str,
    state: State,
    expected: object,
    bucket: Path,
    write: Callable[..., Path],
    same: Callable[..., None],
) -> None:
    name = f"{format}/checkpoint_7"
    (bucket / format).mkdir()
    write(state, format, extras={"training.json": b"{}"}).rename(bucket / name)
    reader = checkpoint.open_checkpoint(f"gs://bucket/{name}")
    assert (reader.format, reader.step, reader.extras()) == (format, 7, {"training.json": b"{}"})
    same(state, checkpoint.restore(reader, expected))
    with pytest.raises(UserError, match=r"is a model directory.*checkpoint_7"):
        checkpoint.open_checkpoint(f"gs://bucket/{format}")


def test_a_conversion_from_a_bucket_brings_the_settings(
    state: State, bucket: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    (bucket / "pod").mkdir()
    write(state).rename(bucket / "pod/checkpoint_7")
    bare = convert("gs://bucket/pod/checkpoint_7", tmp_path / "bare", "safetensors")
    assert "NUM_SELECTED_EXPERTS" not in run_config.recorded(str(bare))
    (bucket / "pod/config.gin").write_text("import seqio\nNUM_SELECTED_EXPERTS = 2\n")
    full = convert("gs://bucket/pod/checkpoint_7", tmp_path / "full", "safetensors")
    assert run_config.recorded(str(full))["NUM_SELECTED_EXPERTS"] == 2


def test_an_unfinished_save_in_a_bucket(
    state: State, bucket: Path, write: Callable[..., Path]
) -> None:
    (bucket / "half").mkdir()
    path = write(state).rename(bucket / "half/checkpoint_7")
    (path / "kcmoe.json").unlink()
    (path / "_CHECKPOINT_METADATA").unlink()
    (path / "commit_success.txt").unlink()
    with pytest.raises(UserError, match="half-finished save"):
        checkpoint.open_checkpoint("gs://bucket/half/checkpoint_7")
    with pytest.raises(UserError, match="is empty or does not exist"):
        checkpoint.open_checkpoint("gs://bucket/absent")


def test_what_buckets_cannot_do(state: State, bucket: Path, write: Callable[..., Path]) -> None:
    write(state, "safetensors").rename(bucket / "exported")
    with pytest.raises(UserError, match="copy the folder to this machine first"):
        checkpoint.open_checkpoint("gs://bucket/exported")
    with pytest.raises(UserError, match="not on this machine"):
        checkpoint.save("gs://bucket/run", 7, state)
    with pytest.raises(UserError, match="cannot be opened"):
        checkpoint.open_checkpoint("nowhere://bucket/checkpoint_7")

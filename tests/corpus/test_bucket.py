# SPDX-License-Identifier: Apache-2.0
"""Reading and copying from buckets: Google's, by a small server that speaks its JSON interface, and any."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kcmoe.corpus import bucket as bucket_copy
from kcmoe.data import tables
from kcmoe.errors import UserError


class Bucket(http.server.BaseHTTPRequestHandler):
    objects: dict[str, bytes]
    cuts: list[int]

    def log_message(self, *args: object) -> None:
        pass

    def _describe(self, name: str) -> dict[str, str]:
        content = self.objects[name]
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        about = {"kind": "storage#object", "name": name, "bucket": "b", "generation": "1"}
        return {**about, "size": str(len(content)), "md5Hash": md5, "storageClass": "STANDARD"}

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        name = urllib.parse.unquote(url.path.rpartition("/o/")[2]) if "/o/" in url.path else ""
        if not name and url.path.endswith("/o"):
            prefix = query.get("prefix", [""])[0]
            items = [self._describe(n) for n in sorted(self.objects) if n.startswith(prefix)]
            self._answer(json.dumps({"kind": "storage#objects", "items": items}).encode())
        elif name not in self.objects:
            self._answer(b'{"error": {"code": 404, "message": "not here"}}', 404)
        elif query.get("alt") == ["media"]:
            content = self.objects[name]
            span = self.headers.get("Range")
            if span:
                first, last = span.removeprefix("bytes=").split("-")
                content = content[int(first) : int(last) + 1 if last else None]
            self._answer(content, 206 if span else 200)
        else:
            self._answer(json.dumps(self._describe(name)).encode())

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def objects(monkeypatch) -> Iterator[dict[str, bytes]]:
    pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    import fsspec
    import gcsfs.core

    # Without its gRPC extension, whoever imported it first; see kcmoe/io/remote.py.
    fsspec.register_implementation("gs", gcsfs.core.GCSFileSystem, clobber=True)
    held: dict[str, bytes] = {}
    handler = type("Handler", (Bucket,), {"objects": held})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    gcsfs.core.GCSFileSystem.clear_instance_cache()
    assert fsspec.get_filesystem_class("gs") is gcsfs.core.GCSFileSystem
    yield held
    gcsfs.core.GCSFileSystem.clear_instance_cache()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_folder_is_copied_and_checked(objects, tmp_path):
    objects["checkpoint/a"] = b"a" * 10_000
    objects["checkpoint/target.x/0.0"] = bytes(range(256)) * 100
    said: list[str] = []
    bucket_copy.copy("gs://b/checkpoint", tmp_path, said.append)
    assert (tmp_path / "a").read_bytes() == objects["checkpoint/a"]
    assert (tmp_path / "target.x" / "0.0").read_bytes() == objects["checkpoint/target.x/0.0"]
    assert all("copied, checksum is right" in line for line in said)
    with pytest.raises(UserError, match="is empty or not public"):
        bucket_copy.copy("gs://b/nothing", tmp_path)


def test_parquet_is_read_from_a_bucket(objects, tmp_path):
    pq.write_table(pa.table({"text": ["가", "나", "다"]}), tmp_path / "x.parquet", row_group_size=2)
    objects["c/x.parquet"] = (tmp_path / "x.parquet").read_bytes()
    files = tables.expand(["gs://b/c/*.parquet"])
    assert [f.rpartition("/")[2] for f in files] == ["x.parquet"]
    chunks = list(tables.read_chunks(files[0], ["text"]))
    assert [text for chunk in chunks for text in chunk["text"]] == ["가", "나", "다"]


@pytest.fixture
def bucket():
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/checkpoint/a", b"a" * 1000)
    memory.pipe("/bucket/checkpoint/below/b", b"b" * 5000)
    return "memory://bucket/checkpoint"


def test_a_bucket_folder_is_copied_checked_and_resumed(bucket, tmp_path, monkeypatch):
    said: list[str] = []
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b.part").write_bytes(b"b" * 2000)
    starts = []
    real = bucket_copy._blocks
    monkeypatch.setattr(
        bucket_copy,
        "_blocks",
        lambda fs, name, start, *rest: starts.append(start) or real(fs, name, start, *rest),
    )
    bucket_copy.copy(bucket, tmp_path, said.append)
    assert (tmp_path / "a").read_bytes() == b"a" * 1000
    assert (tmp_path / "below" / "b").read_bytes() == b"b" * 5000
    assert starts == [0, 2000]
    bucket_copy.copy(bucket, tmp_path, said.append)
    assert starts == [0, 2000], "nothing is copied twice"
    with pytest.raises(UserError, match="is empty or not public"):
        bucket_copy.copy("memory://bucket/nothing", tmp_path)


def test_a_bucket_file_with_another_checksum_is_refused(bucket, tmp_path):
    import fsspec

    info = {"size": 1000, "md5Hash": "AAAAAAAAAAAAAAAAAAAAAA=="}
    memory = fsspec.filesystem("memory")
    with pytest.raises(UserError, match="another checksum than the bucket's"):
        bucket_copy._copy_file(memory, "/bucket/checkpoint/a", info, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []

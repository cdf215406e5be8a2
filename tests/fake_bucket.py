# SPDX-License-Identifier: Apache-2.0
"""A folder of this machine that is served as gs://bucket: list, read, write and remove, as Google's JSON API.

Only what TensorStore and gcsfs ask for. Whatever is under `refused` cannot be written.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar


class Bucket(http.server.BaseHTTPRequestHandler):
    folder: ClassVar[Path]
    writes: ClassVar[list[str]] = []  # names in the order in which they were written
    refused: ClassVar[set[str]] = set()  # beginnings of names
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 20  # an answer in one packet; else the other side waits 40 ms for the second

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _asked(self) -> tuple[str, dict[str, str]]:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        name = url.path.partition("/o/")[2] or query.get("name", "")
        return urllib.parse.unquote(name), query

    def do_GET(self) -> None:
        name, query = self._asked()
        if not name:
            first, end = query.get("startOffset", ""), query.get("endOffset", "\x7f")
            start = query.get("prefix", "")
            files = (path for path in self.folder.rglob("*") if path.is_file())
            names = sorted(str(path.relative_to(self.folder)) for path in files)
            names = [n for n in names if first <= n < end and n.startswith(start)]
            self._json({"items": [{"name": n, "generation": "1"} for n in names]})
            return
        file = self.folder / name
        if not file.is_file():
            self._answer(404, b"{}")
        elif query.get("alt") != "media":
            self._json({"name": name, "bucket": "bucket", "size": str(file.stat().st_size)})
        else:
            content, wanted = file.read_bytes(), self.headers.get("Range")
            if wanted is None:
                self._answer(200, content)
                return
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1 if last else None]
            self._answer(206, part, f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        name, query = self._asked()
        if any(name.startswith(each) for each in self.refused):
            self._answer(403, b'{"error": {"message": "no permission to write"}}')
            return
        file = self.folder / name
        if query.get("ifGenerationMatch") == "0" and file.exists():
            self._answer(412, b"{}")
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        self.writes.append(name)
        self._json({"name": name, "generation": "1"})

    def do_DELETE(self) -> None:
        name, _ = self._asked()
        with contextlib.suppress(FileNotFoundError):
            (self.folder / name).unlink()
        self._answer(204, b"")

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode())

    def _answer(self, status: int, body: bytes, part: str = "") -> None:
        self.send_response(status)
        self.send_header("x-goog-generation", "1")
        self.send_header("Content-Length", str(len(body)))
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """Serves `folder` as gs://bucket; gives the environment in which programs find it there."""
    Bucket.folder = folder
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    names = {"TENSORSTORE_GCS_HTTP_URL": address, "STORAGE_EMULATOR_HOST": address}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield names
    finally:
        server.shutdown()
        server.server_close()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value

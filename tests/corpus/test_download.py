# SPDX-License-Identifier: Apache-2.0
"""Downloads against a server of our own that cuts, redirects, refuses and lies."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kcmoe.corpus import download as downloads
from kcmoe.corpus import fetch
from kcmoe.corpus.catalogue import DATA_SETS
from kcmoe.corpus.types import DataSet, Remote, Table
from kcmoe.errors import UserError

CONTENT = bytes(range(256)) * 4000  # about 1 MB


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `cuts` says after how many bytes to drop each connection in turn."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/a": CONTENT}
        self.redirects: dict[str, str] = {}
        self.statuses: list[int] = []
        self.cuts: list[int] = []
        self.ranges = True
        self.html = False
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        self.server.asked.append((self.path, span))
        if self.server.statuses:
            self.send_error(self.server.statuses.pop(0))
            return
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            self.end_headers()
            return
        if self.path not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[self.path]
        start = int(span[6:-1]) if span and self.server.ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Type", "text/html" if self.server.html else "text/plain")
        self.end_headers()
        rest = content[start:]
        if self.server.cuts:
            rest = rest[: self.server.cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(rest)


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def get(server: Server, target: Path, *paths: str, expected: bytes = CONTENT) -> bool:
    urls = [server.url + path for path in (paths or ("/a",))]
    return fetch.fetch(urls, target, blob(expected), pause_s=0.001)


def test_a_file_comes_once(server, tmp_path):
    target = tmp_path / "below" / "a"
    assert get(server, target)
    assert target.read_bytes() == CONTENT
    assert not get(server, target)
    assert len(server.asked) == 1
    assert [path.name for path in target.parent.iterdir()] == ["a"]


def test_a_cut_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.cuts = [300_000, 1, 400_000]
    assert get(server, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    spans = [span for _, span in server.asked]
    assert spans == [None, "bytes=300000-", "bytes=300001-", "bytes=700001-"]


def test_a_later_start_resumes(server, tmp_path):
    server.cuts = [500_000] + [0] * 10
    with pytest.raises(UserError, match=r"does not answer.*Start again to resume"):
        get(server, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "a.part").stat().st_size == 500_000
    server.cuts, server.asked = [], []
    assert get(server, tmp_path / "a")
    assert server.asked == [("/a", "bytes=500000-")]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.ranges, server.cuts = False, [100_000]
    assert get(server, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"something else", CONTENT + b"longer than the file"])
def test_a_part_of_another_file_is_thrown_away(server, tmp_path, left):
    (tmp_path / "a.part").write_bytes(left)
    assert get(server, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_wrong_checksum_never_gets_the_name(server, tmp_path):
    with pytest.raises(UserError, match=r"gives another file .git blob .*, expected"):
        get(server, tmp_path / "a", expected=b"what the authors published")
    assert list(tmp_path.iterdir()) == []


def test_a_spoilt_file_is_fetched_again(server, tmp_path):
    (tmp_path / "a").write_bytes(CONTENT[:-1])
    assert get(server, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_redirects_are_followed(server, tmp_path):
    server.redirects["/old"] = "/a"
    server.cuts = [10_000]
    assert get(server, tmp_path / "a", "/old")
    assert server.asked[-1] == ("/a", "bytes=10000-")


def test_the_official_place_follows_a_mirror_that_lacks_it(server, tmp_path):
    assert get(server, tmp_path / "a", "/mirror/a", "/a")
    with pytest.raises(UserError, match=r"/gone answers 404 Not Found.*--mirror"):
        get(server, tmp_path / "b", "/gone")


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.statuses = [503, 429, 500]
    assert get(server, tmp_path / "a")
    assert len(server.asked) == 4


def test_a_login_page_is_not_a_file(server, tmp_path):
    server.html = True
    with pytest.raises(UserError, match="answers with a web page"):
        get(server, tmp_path / "a")


def test_a_full_disk_is_named_and_keeps_what_came(server, tmp_path, monkeypatch):
    real_open = open

    def full(path, mode="r", *args, **kwargs):
        file = real_open(path, mode, *args, **kwargs)
        if str(path).endswith(".part") and mode in ("ab", "wb"):
            write, room = file.write, 300_000

            class Full:
                def __enter__(self):
                    return self

                def __exit__(self, *exc):
                    file.close()

                def write(self, block):
                    nonlocal room
                    if room < len(block):
                        raise OSError(errno.ENOSPC, "No space left on device")
                    room -= len(block)
                    return write(block)

            return Full()
        return file

    monkeypatch.setattr(fetch, "open", full, raising=False)
    with pytest.raises(UserError, match="is full; make room and start again"):
        get(server, tmp_path / "a")
    assert (tmp_path / "a.part").stat().st_size > 0
    monkeypatch.undo()
    assert get(server, tmp_path / "a")
    assert server.asked[-1][1] is not None, "resumed"


def test_too_little_room_is_known_beforehand(server, tmp_path):
    with pytest.raises(UserError, match=r"bytes free, but .* are needed"):
        fetch.fetch([server.url + "/a"], tmp_path / "a", blob(CONTENT), size=1 << 60)
    assert server.asked == []


@pytest.fixture
def small(server) -> DataSet:
    train = 'id\tdocument\tlabel\n1\t"""재밌다""\t1\n2\t\t0\n'.encode()
    server.files = {"/official/ratings.txt": train, "/mirror/small/ratings.txt": train}
    table = Table(
        "small/train.parquet",
        ("ratings.txt",),
        {"id": "id", "text": "document", "label": "label"},
        {"label": "int64"},
    )
    remote = Remote(server.url + "/official/ratings.txt", blob(train), len(train))
    return DataSet("small", "a set", "CC0", "nowhere", (remote,), (table,))


def test_a_set_becomes_parquet_with_a_manifest(server, small, tmp_path):
    assert not downloads.present(small, tmp_path)
    said: list[str] = []
    downloads.download(small, tmp_path, [server.url + "/mirror/"], said.append)
    assert [path for path, _ in server.asked] == ["/mirror/small/ratings.txt"]
    assert pq.read_table(tmp_path / "small/train.parquet").to_pylist() == [
        {"id": "1", "text": '"""재밌다""', "label": 1},
        {"id": "2", "text": "", "label": 0},
    ]
    assert downloads.present(small, tmp_path)
    assert "checksum is right" in said[0]
    from kcmoe.data import manifest

    found = manifest.read(tmp_path / "small")
    assert found["licence"] == "CC0"
    assert found["shards"][0]["rows"] == 2


def test_what_is_whole_is_not_made_again(server, small, tmp_path):
    downloads.download(small, tmp_path, say=lambda line: None)
    table, manifest = tmp_path / "small/train.parquet", tmp_path / "small/manifest.json"
    whole, about = table.read_bytes(), manifest.read_bytes()
    for path in (table, manifest):
        os.utime(path, ns=(1, 1))
    said: list[str] = []
    downloads.download(small, tmp_path, say=said.append)
    assert said[1] == f"{table}: 2 rows, already there, checksum is right"
    assert (table.stat().st_mtime_ns, manifest.stat().st_mtime_ns) == (1, 1)
    assert len(server.asked) == 1

    table.write_bytes(whole[:-1])
    downloads.download(small, tmp_path, say=lambda line: None)
    assert table.read_bytes() == whole, "a damaged one is"
    manifest.write_bytes(about[:-9])
    downloads.download(small, tmp_path, say=lambda line: None)
    assert manifest.read_bytes() == about
    renamed = dataclasses.replace(small.tables[0], columns={"text": "document"}, types={})
    downloads.download(dataclasses.replace(small, tables=(renamed,)), tmp_path)
    assert pq.read_table(table).column_names == ["text"], "one of another catalogue is"


@pytest.mark.parametrize("mirror", ["example.org/x", "https://[::1/x", "ftp://example.org"])
def test_a_mirror_is_an_address(server, small, tmp_path, mirror):
    with pytest.raises(UserError, match=r"--mirror=.* is no address; it begins with https://"):
        downloads.download(small, tmp_path, [mirror])
    assert server.asked == []


def test_a_mirror_may_be_a_mounted_folder(server, small, tmp_path):
    mirrored = tmp_path / "mirror" / "small" / "ratings.txt"
    mirrored.parent.mkdir(parents=True)
    mirrored.write_bytes(server.files["/official/ratings.txt"])
    downloads.download(small, tmp_path, [f"file://{tmp_path}/mirror"])
    assert server.asked == []


@pytest.mark.parametrize("fails_in", ["__init__", "write"])
def test_a_disk_that_refuses_the_table_is_named(server, small, tmp_path, monkeypatch, fails_in):
    def full(self, *args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads.parquet.Writer, fails_in, full)
    with pytest.raises(UserError, match=r"train.parquet cannot be written: .*No space left"):
        downloads.download(small, tmp_path)
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["raw"]


def test_sets_behind_a_login_say_what_to_do(tmp_path):
    with pytest.raises(
        UserError, match=r"comments cannot be fetched by itself. Kaggle.*data prepare"
    ):
        downloads.download(downloads.data_set("comments"), tmp_path)
    with pytest.raises(UserError, match=r"nothing is called nsmk. Did you mean nsmc"):
        downloads.data_set("nsmk")


def test_the_catalogue_is_complete():
    for each in DATA_SETS.values():
        assert each.licence
        assert bool(each.files) + bool(each.bucket) + bool(each.by_hand) == 1
        assert {name for t in each.tables for name in t.sources} == {f.name for f in each.files}
        assert all(len(f.git_blob) == 40 for f in each.files)

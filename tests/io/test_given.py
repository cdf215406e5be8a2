# SPDX-License-Identifier: Apache-2.0
"""What a person gives as a path or an encoding, and what is meant by it."""

from __future__ import annotations

import http.server
import os
import threading
import unicodedata

import pytest

from kcmoe import vocabulary
from kcmoe.data import tables
from kcmoe.errors import UserError
from kcmoe.inference import texts
from kcmoe.io import given


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("가\n", encoding="utf-8")


def test_a_path_that_exists_is_that_path_and_a_pattern_is_what_remains(tmp_path):
    touch(tmp_path / "a[1].tsv", tmp_path / "a1.tsv", tmp_path / "b?.tsv", tmp_path / "bc.tsv")
    assert given.files("a[1].tsv", tmp_path) == [f"{tmp_path}/a[1].tsv"]
    assert given.files("b?.tsv", tmp_path) == [f"{tmp_path}/b?.tsv"]
    (tmp_path / "a[1].tsv").unlink()
    assert given.files("a[1].tsv", tmp_path) == [f"{tmp_path}/a1.tsv"]
    assert given.files("c*.tsv", tmp_path) == []


def test_a_folder_is_never_a_pattern(tmp_path):
    folder = tmp_path / "[최종] 자료 *"
    touch(folder / "원본" / "a.tsv", folder / "b.tsv", tmp_path / "최 자료 x" / "c.tsv")
    assert given.files("*.tsv", folder) == [f"{folder}/b.tsv"]
    assert given.files("**/*.tsv", folder) == [f"{folder}/b.tsv", f"{folder}/원본/a.tsv"]
    assert given.files(f"{folder}/*.tsv") == [f"{folder}/b.tsv"]
    assert given.files("원본", folder) == [f"{folder}/원본"]


def test_home_is_where_a_path_begins_with_a_tilde(tmp_path, monkeypatch):
    home = tmp_path / "내 집 [1]"
    monkeypatch.setenv("HOME", str(home))
    touch(home / "a.tsv")
    assert given.path("~/run") == f"{home}/run"
    assert given.path("~") == str(home)
    assert given.files("~/*.tsv", "data") == given.files("a.tsv", "~") == [f"{home}/a.tsv"]
    assert given.path("gs://bucket/~/x") == "gs://bucket/~/x"
    with pytest.raises(UserError, match="NUL"):
        given.path("a\0b")


@pytest.mark.parametrize(("there", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_found_in_either_spelling(tmp_path, there, asked):
    def spelt(form, text):
        return unicodedata.normalize(form, text)

    touch(tmp_path / spelt(there, "자료") / spelt(there, "훈련-1.tsv"))
    found = [str(tmp_path / spelt(there, "자료") / spelt(there, "훈련-1.tsv"))]
    assert given.files(spelt(asked, "자료/훈련-1.tsv"), tmp_path) == found
    assert given.files(spelt(asked, "자료/훈?-*.tsv"), tmp_path) == found
    assert given.files(spelt(asked, "훈련-1.tsv"), tmp_path / spelt(asked, "자료")) == found
    new = given.path(tmp_path / spelt(asked, "자료/새것"))
    assert new == str(tmp_path / spelt(there, "자료") / spelt(asked, "새것"))


@pytest.mark.parametrize(
    ("name", "known"),
    [("MS949", "cp949"), ("EUC-KR", "euc_kr"), ("UTF8", "utf-8"), ("u16", "utf-16")],
)
def test_encodings_are_known_by_every_name(name, known):
    assert given.encoding(name) == known


@pytest.mark.parametrize(
    "name", ["hex", "base64", "rot13", "undefined", "idna", "x\0y", "", "없음"]
)
def test_what_is_no_encoding_of_text_is_refused(name):
    with pytest.raises(UserError, match="encoding"):
        given.encoding(name)
    with pytest.raises(
        UserError, match=r"^TASK_ENCODING = .*(Did you mean|Usual are utf-8, cp949)"
    ):
        given.check_encoding("TASK_ENCODING", f"utf-8,{name}")


class _Server(http.server.BaseHTTPRequestHandler):
    """Refuses, or promises a file and then refuses or cuts it."""

    def do_HEAD(self):
        self._answer(200 if "later" in self.path or "cut" in self.path else 403, 5000)

    def do_GET(self):
        self._answer(206 if "cut" in self.path else 403, 5000)
        if "cut" in self.path:
            self.wfile.write(b"text\n")

    def _answer(self, status, size):
        self.send_response(status)
        self.send_header("Content-Length", str(size if status < 400 else 0))
        self.send_header("Content-Range", f"bytes 0-{size - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv?x=1", "*.tsv", "later.tsv", "cut.csv", "cut.zip"])
def test_what_a_server_refuses_is_a_line_and_not_an_absent_file(address, name):
    pytest.importorskip("aiohttp", reason="addresses of servers need aiohttp")
    with pytest.raises(UserError) as error:
        for path in tables.expand([f"{address}/{name}"]):
            list(tables.read_chunks(path, ["text"]))
    assert "no file matches" not in str(error.value)
    assert f"{address}/{name} cannot be" in str(error.value)


def test_devices_and_pipes_are_refused_and_never_read(tmp_path):
    (tmp_path / "zero.tsv").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.csv.gz")
    os.mkfifo(tmp_path / "pipe.parquet")
    for name in ("zero.tsv", "pipe.csv.gz", "pipe.parquet"):
        with pytest.raises(UserError, match="a device or a pipe"):
            list(tables.read_chunks(str(tmp_path / name), ["text"]))
    for read in (vocabulary.Vocabulary, texts.read_lines):
        with pytest.raises(UserError, match="cannot be read"):
            read("/dev/zero")


def test_the_home_of_nobody_is_no_path(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nobody's home is ~such-a-person"):
        given.path("~such-a-person/run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~such-a-person").touch()
    assert given.path("~such-a-person") == "~such-a-person"


def test_a_pattern_through_a_folder_one_may_not_look_into(tmp_path, monkeypatch):
    """Its files would be missing from the matches, and nobody would know."""
    touch(tmp_path / "a" / "x.tsv", tmp_path / "closed" / "x.tsv")
    real = os.listdir

    def listdir(folder):
        if "closed" in str(folder):
            raise PermissionError(13, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    assert given.files("a/*.tsv", tmp_path) == [f"{tmp_path}/a/x.tsv"]
    for pattern in ("*/*.tsv", "closed/*.tsv", "**/*.tsv"):
        with pytest.raises(UserError, match=f"no permission to look into {tmp_path}/closed"):
            given.files(pattern, tmp_path)


def test_a_folder_one_may_not_look_into_is_not_an_empty_one(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "closed" not in path and real(path, mode))
    assert f"no permission to look into {tmp_path}/closed." in given.absent(
        "a.tsv", tmp_path / "closed"
    )
    assert "permission" not in given.absent("a.tsv", tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""What a file is by its name and its first bytes, and what is left of one that is damaged."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re

import pyarrow as pa
import pytest

from kcmoe.data import tables, whole
from kcmoe.errors import UserError


def read(path):
    return [text for chunk in tables.read_chunks(str(path), ["text"]) for text in chunk["text"]]


def written(path, content):
    path.write_bytes(content)
    return path


def zstd(data):
    return pa.Codec("zstd").compress(data, asbytes=True)


COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("streams", [1, 2])
def test_every_flipped_byte_of_a_compressed_file_is_at_worst_a_message(tmp_path, ending, streams):
    right = [f"{n}번째 댓글" for n in range(20)]
    parts = (
        ["\n".join(right)] if streams == 1 else ["\n".join(right[:9]), "\n" + "\n".join(right[9:])]
    )
    packed = [COMPRESS[ending](part.encode()) for part in parts]
    good = b"".join(packed)
    path = tmp_path / f"bad.txt.{ending}"
    refused = 0
    for place in range(len(good)):
        for flip in (0xFF, 0x06):
            path.write_bytes(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
            try:
                assert read(path) == right  # e.g. the time in a header
            except UserError:
                refused += 1
        path.write_bytes(good[: place + 1])
        if place + 1 not in (len(packed[0]), len(good)):
            with pytest.raises(UserError, match="cannot be read"):
                read(path)
    assert refused > len(good)


@pytest.mark.parametrize("ending", COMPRESS)
def test_streams_behind_one_another_are_one_file(tmp_path, ending):
    packed = [COMPRESS[ending](f"{n}\n".encode()) for n in range(3)]
    path = tmp_path / f"a.txt.{ending}"
    assert read(written(path, b"".join(packed))) == ["0", "1", "2"]
    with pytest.raises(UserError, match=r"a.txt.\w+ cannot be read"):
        read(written(path, packed[0] + b"what is this" + packed[1]))
    if ending != "zst":  # its frames are filled up with a kind of frame instead
        assert read(written(path, bytes(8).join(packed) + bytes(4))) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"PK\x03\x04....", "a zip archive, as .xlsx is"),
        ("a.csv", gzip.compress(b"text\n", mtime=0), "compressed with gzip; call it a.csv.gz"),
        ("a.jsonl", b"PAR1....", "it is parquet; call it .parquet"),
        ("b.gz", b"", "nothing in its name says what is compressed; call it b.csv.gz if"),
        ("b.dat.gz", b"", ".dat does not say what is compressed; call it b.dat.csv.gz if"),
    ],
)
def test_a_file_under_a_wrong_name_is_told_what_it_is(tmp_path, name, content, said):
    with pytest.raises(UserError, match=re.escape(said)):
        read(written(tmp_path / name, content))


def test_columns_of_one_name_are_said(tmp_path):
    for content, said in (
        (b"text,,\n", "2 columns without a name"),
        (b"a,a\n", "2 columns called a"),
    ):
        with pytest.raises(UserError, match=said):
            whole.look_at(str(written(tmp_path / "a.csv", content)), "utf-8", ["text"])


def test_what_a_folder_holds_and_is_not_read_is_said(tmp_path, caplog):
    (tmp_path / "part").mkdir()
    written(tmp_path / "a.orc", b"ORC")
    with pytest.raises(UserError, match=r"folder without files of .*; it holds a\.orc, part"):
        tables.expand([str(tmp_path)])
    written(tmp_path / "b.csv", b"text\n")
    written(tmp_path / "README.md", b"about")
    assert tables.expand([str(tmp_path)]) == [str(tmp_path / "b.csv")]
    assert caplog.messages == [
        f"{tmp_path}: only the files with data right in it are read, not a.orc, part"
    ]

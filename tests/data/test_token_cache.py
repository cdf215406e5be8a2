# SPDX-License-Identifier: Apache-2.0
"""The token cache: complete, rebuilt only where needed, never silently wrong."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from kcmoe.data import manifest as manifests
from kcmoe.data.splits import held_out
from kcmoe.data.token_cache import Source, TokenCache
from kcmoe.data.tokenizing import open_cache
from kcmoe.errors import UserError
from kcmoe.io import durable
from kcmoe.io.hashing import file_digest
from kcmoe.vocabulary import Vocabulary

TEXTS = [f"{n}번째 댓글입니다 정말 재밌네요" for n in range(300)]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary()


@pytest.fixture
def corpus(tmp_path):
    files = []
    for shard in range(3):
        path = tmp_path / f"{shard}.txt"
        path.write_text(
            "\n".join([*TEXTS[shard * 100 : shard * 100 + 100], "", " "]), encoding="utf-8"
        )
        files.append(str(path))
    return files


def opened(files, vocabulary, tmp_path, **source) -> TokenCache:
    return open_cache(files, Source(**source), vocabulary, str(tmp_path / "cache"))


def test_the_ring_holds_every_token_in_order(corpus, vocabulary, tmp_path):
    cache = opened(corpus, vocabulary, tmp_path)
    whole = [token for text in TEXTS for token in vocabulary.encode(text)]
    assert cache.num_tokens == len(whole)
    assert cache.num_documents == 300
    starts = np.array([0, 17, len(whole) - 3, len(whole) // 3])
    for row, start in zip(cache.read(starts, 40), starts, strict=True):
        assert row.tolist() == (whole + whole)[start : start + 40]
    assert cache.document_lengths(250).tolist() == [len(vocabulary.encode(t)) for t in TEXTS[:250]]
    long = cache.read(np.array([5]), 2 * len(whole))
    assert long[0].tolist() == (whole * 3)[5 : 5 + 2 * len(whole)]
    left_out = [shard.facts["left_out"] for shard in cache.shards]
    assert left_out == [{"empty": 2}] * 3


def test_only_what_changed_is_read_again(corpus, vocabulary, tmp_path):
    before = opened(corpus, vocabulary, tmp_path)
    folders = [shard.folder for shard in before.shards]
    assert opened(corpus, vocabulary, tmp_path).digest == before.digest
    with open(corpus[1], "a", encoding="utf-8") as file:
        file.write("\n새 댓글이 하나 더 늘었어요\n")
    assert [line.rsplit("/", 1)[1] for line in before.changed_sources()] == ["1.txt changed"]
    after = opened(corpus, vocabulary, tmp_path)
    assert after.digest != before.digest
    assert [shard.folder == old for shard, old in zip(after.shards, folders, strict=True)] == [
        True, False, True,
    ]  # fmt: skip
    os.remove(corpus[2])
    assert any("2.txt is gone" in line for line in after.changed_sources())


def test_an_interrupted_build_leaves_nothing_and_goes_on(corpus, vocabulary, tmp_path, monkeypatch):
    from kcmoe.data import tokenizing

    real, calls = tokenizing._write, []

    def dies_at_the_second(folder, path, *rest):
        calls.append(path)
        if len(calls) == 2:
            (folder / "tokens.bin").write_bytes(b"half")
            raise KeyboardInterrupt
        real(folder, path, *rest)

    monkeypatch.setattr(tokenizing, "_write", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        opened(corpus, vocabulary, tmp_path)
    assert not list((tmp_path / "cache").rglob(f"*{durable.TEMPORARY}*"))
    opened(corpus, vocabulary, tmp_path)
    assert calls == [corpus[0], corpus[1], corpus[1], corpus[2]]


def test_korean_is_written_whatever_the_locale(tmp_path):
    """The column's name stands in the manifest; a bare container has an ASCII locale."""
    (tmp_path / "a.tsv").write_text("본문\n정말 재밌네요\n", encoding="utf-8")
    program = f"""
from kcmoe.data.token_cache import Source
from kcmoe.data.tokenizing import open_cache
from kcmoe.vocabulary import Vocabulary
folder, column = {str(tmp_path)!r}, {"본문"!a}
cache = open_cache([folder + "/a.tsv"], Source(column=column), Vocabulary(), folder + "/cache")
assert cache.shards[0].facts["settings"]["column"] == column
"""
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | ascii_only)


@pytest.mark.slow
def test_several_processes_build_the_same_cache(corpus, vocabulary, tmp_path):
    one = opened(corpus, vocabulary, tmp_path)
    folder = str(tmp_path / "other")
    assert open_cache(corpus, Source(), vocabulary, folder, processes=2).digest == one.digest


def test_a_damaged_cache_is_named(corpus, vocabulary, tmp_path):
    cache = opened(corpus, vocabulary, tmp_path)
    tokens = cache.shards[1].folder / "tokens.bin"
    whole = tokens.read_bytes()
    cache.read(np.array([0]), 10)

    tokens.write_bytes(whole[:-2])
    with pytest.raises(UserError, match=r"token cache .* is damaged \(tokens.bin has"):
        opened(corpus, vocabulary, tmp_path)
    with pytest.raises(UserError, match="was cut while it was read"):
        cache.read(np.array([0]), cache.num_tokens)

    tokens.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    os.utime(tokens, ns=(1, 1))
    with pytest.raises(UserError, match="does not match its checksum"):
        opened(corpus, vocabulary, tmp_path)

    tokens.write_bytes(whole)  # another time, the same content: fine
    assert opened(corpus, vocabulary, tmp_path).digest == cache.digest


def test_the_held_out_sides_share_no_text(corpus, vocabulary, tmp_path):
    train = opened(corpus, vocabulary, tmp_path, holdout=0.2)
    validation = opened(corpus, vocabulary, tmp_path, holdout=0.2, keep_held_out=True)
    expected = sum(held_out(text, 0.2) for text in TEXTS)
    assert 0 < expected < 150
    assert validation.num_documents == expected
    assert train.num_documents == 300 - expected


def test_a_worker_opens_the_files_itself(corpus, vocabulary, tmp_path):
    cache = opened(corpus, vocabulary, tmp_path)
    cache.read(np.array([0]), 4)
    copy = pickle.loads(pickle.dumps(cache))
    assert (copy.read(np.array([9]), 30) == cache.read(np.array([9]), 30)).all()


def test_absurd_lengths_are_left_out_and_said(vocabulary, tmp_path, caplog):
    path = tmp_path / "a.txt"
    path.write_text("보통 댓글입니다\n" + "가" * 1_000_001, encoding="utf-8")
    cache = opened([str(path)], vocabulary, tmp_path)
    assert cache.num_documents == 1
    assert cache.shards[0].facts["left_out"] == {"too long": 1}
    assert "1 x too long; first at" in caplog.text


def test_nothing_to_read(vocabulary, tmp_path):
    (tmp_path / "e.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(UserError, match="hold no text"):
        opened([str(tmp_path / "e.txt")], vocabulary, tmp_path)


def test_a_cache_folder_that_cannot_be_written(corpus, vocabulary, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*CACHE_DIR"):
        open_cache(corpus, Source(), vocabulary, str(tmp_path / "file" / "below"))


def test_manifest_beside_the_shards(corpus, vocabulary, tmp_path):
    shards = [
        {"file": os.path.basename(f), "bytes": os.path.getsize(f), "sha256": file_digest(f)}
        for f in corpus
    ]
    names = [f"train-{n}.txt" for n in range(3)]
    for path, name, shard in zip(corpus, names, shards, strict=True):
        os.rename(path, tmp_path / name)
        shard["file"] = name
    files = [str(tmp_path / name) for name in names]
    manifests.write(tmp_path, {"shards": shards})
    opened(files, vocabulary, tmp_path)

    manifests.write(tmp_path, {"shards": [*shards, {**shards[0], "file": "train-3.txt"}]})
    with pytest.raises(UserError, match=r"train-3.txt is gone"):
        opened(files, vocabulary, tmp_path)
    opened(files, vocabulary, tmp_path, strict=False)

    manifests.write(tmp_path, {"shards": shards})
    stray = tmp_path / "train-00003-of-00004.txt"  # left by another run
    stray.write_text("다른 댓글입니다\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"00004.txt is none of the shards written.*; move it away, or"
    ):
        opened([*files, str(stray)], vocabulary, tmp_path)
    opened([*files, str(stray)], vocabulary, tmp_path, strict=False)
    other = tmp_path / "validation.txt"  # of a split that the manifest knows nothing of
    other.write_text("검증 댓글입니다\n", encoding="utf-8")
    opened([*files, str(other)], vocabulary, tmp_path)
    manifests.write(tmp_path, {"shards": shards})

    content = (tmp_path / names[0]).read_bytes()
    (tmp_path / names[0]).write_bytes(content.replace(b"0", b"9", 1))
    with pytest.raises(UserError, match=r"train-0.txt is not the shard that was written"):
        opened(files, vocabulary, tmp_path)
    (tmp_path / names[0]).write_bytes(content + b"\n")
    with pytest.raises(UserError, match=r"train-0.txt has \d+ bytes, not"):
        opened(files, vocabulary, tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": [{}]}))
    with pytest.raises(UserError, match=r"manifest.json is not what .* move it away"):
        opened(files, vocabulary, tmp_path)


def test_folders_built_under_the_former_name_are_read(corpus, vocabulary, tmp_path):
    before = opened(corpus, vocabulary, tmp_path)
    for shard in before.shards:
        (shard.folder / "tokens.json").rename(shard.folder / "manifest.json")
    times = [(shard.folder / "tokens.bin").stat().st_mtime_ns for shard in before.shards]
    again = opened(corpus, vocabulary, tmp_path)
    assert again.digest == before.digest
    assert [(s.folder / "tokens.bin").stat().st_mtime_ns for s in again.shards] == times

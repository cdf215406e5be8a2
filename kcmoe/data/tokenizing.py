# SPDX-License-Identifier: Apache-2.0
"""Builds the token cache: files of text -> folders of ids, several files at a time.

See `token_cache` for what is in a folder. Progress is shown by rows, or by files where several processes
work.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kcmoe.data import manifest as manifests
from kcmoe.data import tables
from kcmoe.data.token_cache import FACTS, Shard, Source, TokenCache, facts_file, stamp
from kcmoe.errors import UserError
from kcmoe.io import durable, hashing
from kcmoe.io import processes as shared
from kcmoe.vocabulary import Vocabulary

# A longer text is a missing line break, not a comment; SentencePiece would take gigabytes for it.
MAX_CHARACTERS = 1_000_000

_VERSION = 1
# Below this a process takes longer to start than to tokenize.
_BYTES_PER_PROCESS = 64 << 20
_EXPECTED = {"empty", "null"}  # left out of every corpus without a word
_log = logging.getLogger(__name__)

Progress = Callable[[int], object]


def open_cache(
    files: Sequence[str],
    source: Source,
    vocabulary: Vocabulary,
    cache_dir: str,
    *,
    processes: int | None = None,
) -> TokenCache:
    """The tokens of `files`, tokenizing those that are not in the cache yet, with progress.

    Args:
      files: of one split.
      source: how they are read.
      vocabulary: turns text into ids.
      cache_dir: where folders lie.
      processes: how many build at the same time; None lets size and cores decide.

    Raises:
      UserError: damaged source or cache, full disk, or a corpus without text.
    """
    manifests.check(files, source.strict)
    folders = {path: shard_folder(path, source, vocabulary, cache_dir) for path in files}
    todo = [path for path in files if not facts_file(folders[path])]
    if todo:
        _build(todo, source, vocabulary, cache_dir, processes)
    cache = TokenCache([Shard(folders[path]) for path in files])
    if not cache.num_tokens:
        raise UserError(f"{files[0]} and {len(files) - 1} more files hold no text")
    return cache


def _build(
    files: Sequence[str],
    source: Source,
    vocabulary: Vocabulary,
    cache_dir: str,
    processes: int | None,
) -> None:
    from tqdm import tqdm

    cores = os.cpu_count() or 1
    if processes is None:
        size = sum(stamp(path)["size"] for path in files)
        processes = min(cores, len(files), max(size // _BYTES_PER_PROCESS, 1))
    options = {"desc": "tokenizing", "disable": None, "leave": False, "delay": 2}
    if processes == 1:
        with tqdm(unit="row", unit_scale=True, **options) as bar:
            for number, path in enumerate(files, 1):
                bar.set_postfix_str(f"file {number} of {len(files)}", refresh=False)
                build_shard(path, source, vocabulary, cache_dir, cores, bar.update)
        return
    with shared.Pool(processes) as pool:
        jobs = [pool.submit(build_shard, path, source, vocabulary, cache_dir) for path in files]
        for job in tqdm(
            concurrent.futures.as_completed(jobs), total=len(jobs), unit="file", **options
        ):
            job.result()


def shard_folder(path: str, source: Source, vocabulary: Vocabulary, cache_dir: str) -> Path:
    """Where the cache of one source file lies."""
    facts = {"stamp": stamp(path), "source": dataclasses.asdict(source), "version": _VERSION}
    key = hashing.facts_digest(facts)[:20]
    return Path(cache_dir) / vocabulary.digest[:12] / key


def build_shard(
    path: str,
    source: Source,
    vocabulary: Vocabulary,
    cache_dir: str,
    threads: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Tokenizes one source file into the cache, if it is not there yet, and returns its folder.

    `threads` SentencePiece threads share the work; `progress` is told of rows done.

    Raises:
      UserError: damaged source, full disk, or a folder that cannot be written.
    """
    folder = shard_folder(path, source, vocabulary, cache_dir)
    if facts_file(folder):
        return folder
    try:
        with durable.staged(folder) as partial:
            _write(partial, path, source, vocabulary, threads, progress or (lambda rows: None))
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise UserError(f"the token cache: {error}; set CACHE_DIR") from None
        raise
    return folder


def _write(
    folder: Path,
    path: str,
    source: Source,
    vocabulary: Vocabulary,
    threads: int,
    progress: Progress,
) -> None:
    dtype = "<u2" if vocabulary.size <= 1 << 16 else "<u4"
    known = stamp(path)
    manifests.check_content(path, source.strict)
    tally = tables.Tally()
    tokens = documents = 0
    hashed = {"tokens.bin": hashlib.sha256(), "ends.bin": hashlib.sha256()}
    with (
        open(folder / "tokens.bin", "wb") as token_file,
        open(folder / "ends.bin", "wb") as end_file,
    ):
        for ids in _encoded(path, source, vocabulary, threads, tally):
            sizes = np.fromiter(map(len, ids), np.int64, len(ids))
            ends = (tokens + np.cumsum(sizes)).astype("<i8").tobytes()
            flat = np.fromiter(
                itertools.chain.from_iterable(ids), dtype, int(sizes.sum())
            ).tobytes()
            for name, file, data in (
                ("tokens.bin", token_file, flat),
                ("ends.bin", end_file, ends),
            ):
                file.write(data)
                hashed[name].update(data)
            tokens, documents = tokens + int(sizes.sum()), documents + len(ids)
            progress(len(ids))
            shared.check()
    if tally.dropped.keys() - _EXPECTED:
        _log.warning("%s: %s", path, tally.summary())
    if stamp(path) != known:
        raise UserError(f"{path} changed while it was read; start again when nothing writes to it")
    files = {}
    for name, digest in hashed.items():
        status = os.stat(folder / name)
        size, mtime = status.st_size, status.st_mtime_ns
        files[name] = {"size": size, "mtime_ns": mtime, "sha256": digest.hexdigest()}
    facts = {
        "source": known,
        "tokens": tokens,
        "documents": documents,
        "dtype": dtype,
        "vocabulary": vocabulary.digest,
        "settings": dataclasses.asdict(source),
        "left_out": dict(tally.dropped),
        "places": tally.places,
        "files": files,
    }
    text = json.dumps(facts, ensure_ascii=False, indent=1)
    (folder / FACTS).write_text(text, encoding="utf-8")


def _encoded(
    path: str, source: Source, vocabulary: Vocabulary, threads: int, tally: tables.Tally
) -> Iterator[list[list[int]]]:
    chunks = tables.read_chunks(
        path, [source.column], strict=source.strict, encoding=source.encoding, tally=tally
    )
    row = 0
    for chunk in chunks:
        texts = []
        for text in chunk[source.column]:
            row += 1
            place = f"{path}, row {row}"
            if text is None:
                tally.drop("null", place)
            elif not isinstance(text, str):
                if source.strict:
                    raise UserError(f"{place}: column {source.column} is {text!r}, not text")
                tally.drop("not text", place)
            elif not text or text.isspace():
                tally.drop("empty", place)
            elif len(text) > MAX_CHARACTERS:
                tally.drop("too long", place)
            elif source.keeps(text):
                texts.append(text)
        yield [ids for ids in vocabulary.encode_batch(texts, threads) if ids]

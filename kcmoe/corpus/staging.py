# SPDX-License-Identifier: Apache-2.0
"""First half of `kcmoe data prepare`: input files -> cleaned texts with a key, one staged file each.

The key is a keyed hash of the cleaned text: sorting by it shuffles the corpus and puts equal texts side by
side. Cleaning runs in worker processes, a bounded number of chunks at a time. A staged file appears
whole, with its counts, or not at all, so an interrupted run goes on with the next input.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kcmoe.corpus.cleaning import Cleaner
from kcmoe.data import parquet, tables
from kcmoe.errors import UserError
from kcmoe.io import durable, processes

WAYS = tables.Ways(
    "give --lenient", "give --encoding={0} (for this file alone --encoding='{1}={0}')"
)
_ROW_BITS = 40  # ordinal = file number << 40 | row: which of two equal texts came first


@dataclasses.dataclass(frozen=True)
class Reading:
    """How inputs are read and cleaned; part of what decides the output."""

    cleaner: Cleaner
    column: str = "text"
    encoding: str = "utf-8"
    strict: bool = True
    seed: int = 0


def text_key(text: str, seed: int) -> int:
    """Place of a text in the shuffled corpus, an unsigned 64-bit number."""
    salt = seed.to_bytes(8, "little", signed=True)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=salt)
    return int.from_bytes(digest.digest(), "little")


def clean_chunk(
    reading: Reading, texts: Sequence[Any]
) -> tuple[list[int], list[str], list[int], dict[str, int]]:
    """Cleans texts in a worker: keys, texts and places in the chunk of what is kept, and drops by reason."""
    keys: list[int] = []
    kept: list[str] = []
    places: list[int] = []
    dropped: collections.Counter[str] = collections.Counter()
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            if text is not None and reading.strict:
                raise UserError(
                    f"column {reading.column} holds {text!r}, not text; mend it, or {WAYS.lenient} to leave "
                    "such rows out"
                )
            dropped["null" if text is None else "not text"] += 1
            continue
        cleaned = reading.cleaner.clean(text)
        reason = reading.cleaner.reason_to_drop(cleaned)
        if reason:
            dropped[reason] += 1
            continue
        keys.append(text_key(cleaned, reading.seed))
        kept.append(cleaned)
        places.append(place)
    return keys, kept, places, dict(dropped)


class Stage:
    """The staged files of a run, below one folder."""

    def __init__(self, folder: Path, reading: Reading, workers: int):
        self._folder, self._reading, self._workers = folder, reading, max(workers, 1)

    def path(self, number: int) -> Path:
        """Staged file of input `number`."""
        return self._folder / f"stage-{number:05d}.parquet"

    def counts(self, number: int) -> dict[str, Any]:
        """What was read, kept and dropped from input `number`."""
        return json.loads(self.path(number).with_suffix(".json").read_text(encoding="utf-8"))

    def run(self, files: Sequence[str], progress: Callable[[int], object]) -> None:
        """Stages every file that is not staged yet; `progress` is told of rows read."""
        todo = [n for n in range(len(files)) if not self.path(n).with_suffix(".json").exists()]
        if not todo:
            return
        if self._workers == 1:
            for number in todo:
                self._stage_file(files[number], number, None, progress)
            return
        with processes.Pool(self._workers) as pool:
            for number in todo:
                self._stage_file(files[number], number, pool, progress)

    def _stage_file(
        self,
        file: str,
        number: int,
        pool: concurrent.futures.Executor | None,
        progress: Callable[[int], object],
    ) -> None:
        import pyarrow as pa

        schema = pa.schema([("key", pa.uint64()), ("ordinal", pa.uint64()), ("text", pa.string())])
        tally = tables.Tally()
        dropped: collections.Counter[str] = collections.Counter()
        row = number << _ROW_BITS
        writer = parquet.Writer(self.path(number), schema)
        try:
            for count, (keys, texts, places, reasons) in self._cleaned(file, pool, tally):
                ordinals = row + np.array(places, np.uint64)
                table = pa.table(
                    [pa.array(keys, pa.uint64()), ordinals, pa.array(texts, pa.string())],
                    schema=schema,
                )
                writer.write(table)
                dropped.update(reasons)
                row += count
                progress(count)
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        counts = {
            "file": os.path.basename(file),
            "rows": tally.rows + sum(tally.dropped.values()),
            "kept": writer.rows,
            "dropped": dict(dropped + tally.dropped),
            "places": tally.places,
        }
        text = json.dumps(counts, ensure_ascii=False)
        durable.write_file(self.path(number).with_suffix(".json"), text.encode())

    def _cleaned(
        self, file: str, pool: concurrent.futures.Executor | None, tally: tables.Tally
    ) -> Iterator[tuple[int, tuple[list[int], list[str], list[int], dict[str, int]]]]:
        """Cleaned chunks in order, with the number of rows each was made of."""
        reading = self._reading
        chunks = tables.read_chunks(
            file,
            [reading.column],
            strict=reading.strict,
            encoding=reading.encoding,
            tally=tally,
            ways=WAYS,
        )
        waiting: collections.deque[tuple[int, concurrent.futures.Future[Any]]] = collections.deque()
        try:
            for chunk in chunks:
                texts = chunk[reading.column]
                if pool is None:
                    yield len(texts), clean_chunk(reading, texts)
                    continue
                waiting.append((len(texts), pool.submit(clean_chunk, reading, texts)))
                if len(waiting) > 2 * self._workers:  # bounds memory whatever the file's size
                    count, future = waiting.popleft()
                    yield count, future.result()
            while waiting:
                count, future = waiting.popleft()
                yield count, future.result()
        except UserError as error:
            raise UserError(f"{file}: {error}" if file not in str(error) else str(error)) from None
        finally:
            for _, future in waiting:
                future.cancel()

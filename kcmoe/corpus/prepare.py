# SPDX-License-Identifier: Apache-2.0
"""`kcmoe data prepare`: any texts -> cleaned, deduplicated, shuffled, sharded parquet and a manifest.

Two passes over the disk, neither holding the corpus: `staging` cleans, DuckDB sorts the staged files by
the hash of the text within its memory limit, spilling to disk. Equal texts come out next to each other,
so duplicates fall away while the shards are written. The result depends on texts, settings and seed
alone, not on workers, memory or where the run was interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kcmoe.corpus import exclusion
from kcmoe.corpus.staging import Reading, Stage
from kcmoe.data import manifest as manifests
from kcmoe.data import parquet
from kcmoe.data.token_cache import stamp
from kcmoe.errors import UserError
from kcmoe.io import durable
from kcmoe.io.hashing import facts_digest, file_digest
from kcmoe.io.wording import first_line

# What Python, PyArrow and DuckDB take apart from the sort itself.
_OVERHEAD_BYTES = 400 << 20
MIN_MEMORY_BYTES = 700 << 20


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What to make of which files.

    Attributes:
      files: inputs.
      output: folder of the shards.
      reading: columns, cleaning, seed.
      shard_rows: rows per shard.
      validation_rows: rows set apart as validation.parquet.
      exclude: texts that must not occur, e.g. of evaluation sets.
      memory_bytes: for the whole process.
      workers: cleaning processes.
    """

    files: Sequence[str]
    output: Path
    reading: Reading
    shard_rows: int = 1_000_000
    validation_rows: int = 0
    exclude: Sequence[exclusion.Excluded] = ()
    memory_bytes: int = 4 << 30
    workers: int = 1

    def facts(self) -> dict[str, Any]:
        """Everything that decides the output."""
        reading = dataclasses.asdict(self.reading)
        reading["cleaner"]["rules"] = sorted(reading["cleaner"]["rules"])
        return {
            "inputs": [stamp(file) for file in self.files],
            "exclude": [each.facts() for each in self.exclude],
            "reading": reading,
            "shard_rows": self.shard_rows,
            "validation_rows": self.validation_rows,
        }


def prepare(plan: Preparation) -> dict[str, Any]:
    """Makes the shards, or goes on where an interrupted run stopped, and returns the manifest.

    Raises:
      UserError: bad input, a full disk, too little memory, or an output folder that holds something else.
    """
    from tqdm import tqdm

    if plan.memory_bytes < MIN_MEMORY_BYTES:
        raise UserError(f"--memory must be at least {MIN_MEMORY_BYTES >> 20}MB")
    facts = plan.facts()
    digest = facts_digest(facts)
    done = manifests.read(plan.output)
    if done is not None:
        if done.get("plan") == digest:
            return done
        raise UserError(
            f"{plan.output} already holds a prepared corpus made from other files or settings; "
            "choose another --output or remove that folder"
        )
    made = _missing_folders(plan.output / ".prepare")
    try:
        _clear_output(plan.output)
        excluded_keys, excluded_texts = exclusion.keys(plan.exclude, plan.reading)
        work = _work_folder(plan.output, digest)
        with tqdm(desc="cleaning", unit="row", unit_scale=True, disable=None, delay=1) as bar:
            stage = Stage(work, plan.reading, plan.workers)
            stage.run(plan.files, bar.update)
        counts = [stage.counts(number) for number in range(len(plan.files))]
        expected = sum(c["kept"] for c in counts)
        shards, duplicates, excluded = _write_shards(plan, stage, expected, excluded_keys)
        result = _manifest(plan, digest, counts, shards, duplicates, excluded, excluded_texts)
        manifests.write(work, result)  # says which shards are ours, if this stops half-way
        for shard in shards:
            durable.finish_file(work / shard["part"], plan.output / shard["file"])
        durable.finish_file(work / manifests.NAME, plan.output / manifests.NAME)
    except OSError as error:
        raise UserError(f"{plan.output}: {error.strerror or error}; nothing was finished") from None
    finally:
        _remove_empty(made)
    shutil.rmtree(work, ignore_errors=True)
    return result


def _missing_folders(path: Path) -> list[Path]:
    """The folders that have to be made for `path` to be one, innermost first."""
    return [each for each in (path, *path.parents) if not os.path.exists(each)]


def _remove_empty(made: Sequence[Path]) -> None:
    """Removes folders that a run made and left without anything to go on from."""
    for folder in made:
        with contextlib.suppress(OSError):
            if {path.name for path in folder.iterdir()} == {"plan"}:
                (folder / "plan").unlink()
            folder.rmdir()  # fails, as it should, where anything is in it


def _clear_output(output: Path) -> None:
    """Removes shards that an interrupted run of ours left without a manifest; `UserError` for any others.

    A task reads `train-*`, so what stays here would be trained on with the new shards.
    """
    manifest = manifests.read(output / ".prepare") or {"shards": []}
    ours = {shard["file"]: shard["sha256"] for shard in manifest["shards"]}
    found = [*output.glob("train-*"), *output.glob("validation.parquet")]
    foreign = [
        path for path in found if path.name not in ours or file_digest(path) != ours[path.name]
    ]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UserError(
            f"{min(foreign)}{more}: not listed by a {manifests.NAME}, so training would read it beside the "
            "new shards; move it away or choose another --output"
        )
    for path in found:
        path.unlink()


def _work_folder(output: Path, digest: str) -> Path:
    """A folder inside the output that belongs to this plan; another plan's leftovers are removed."""
    work = output / ".prepare"
    name = work / "plan"
    if work.exists() and (not name.exists() or name.read_text() != digest):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    name.write_text(digest)
    for leftover in [*work.glob("*.part"), *work.glob("shard-*")]:
        leftover.unlink()
    shutil.rmtree(work / "sort", ignore_errors=True)
    return work


def _write_shards(
    plan: Preparation, stage: Stage, expected: int, excluded_keys: np.ndarray
) -> tuple[list[dict[str, Any]], int, int]:
    """Sorts, drops duplicates and excluded texts, writes shards under working names."""
    from tqdm import tqdm

    work = plan.output / ".prepare"
    shards = _Shards(work, plan.validation_rows, plan.shard_rows)
    keep_equal = "duplicates" not in plan.reading.cleaner.rules
    duplicates = excluded = 0
    previous: tuple[int, set[str]] = (-1, set())
    try:
        with tqdm(
            total=expected, desc="shuffling", unit="row", unit_scale=True, disable=None
        ) as bar:
            for keys, texts in _sorted(plan, stage):
                keep = np.ones(len(keys), bool)
                if not keep_equal:
                    previous = _mark_duplicates(keys, texts, keep, previous)
                    duplicates += int((~keep).sum())
                if excluded_keys.size:
                    hit = np.isin(keys, excluded_keys) & keep
                    excluded += int(hit.sum())
                    keep &= ~hit
                shards.write(texts, keep)
                bar.update(len(keys))
        return shards.close(), duplicates, excluded
    except BaseException:
        shards.abandon()
        raise


def _sorted(plan: Preparation, stage: Stage) -> Iterator[tuple[np.ndarray, Any]]:
    """Keys, uint64 [N], and texts, a PyArrow array, in the order of the keys."""
    import duckdb

    limit = max(plan.memory_bytes - _OVERHEAD_BYTES, 256 << 20)
    spill = plan.output / ".prepare" / "sort"
    spill.mkdir(exist_ok=True)
    files = [str(stage.path(number)) for number in range(len(plan.files))]
    connection = duckdb.connect(
        config={
            "memory_limit": f"{limit >> 20}MiB",
            "temp_directory": str(spill),
            "threads": max(1, min(plan.workers, limit >> 28)),
            "preserve_insertion_order": True,
        }
    )
    try:
        query = "SELECT key, text FROM read_parquet(?) ORDER BY key, ordinal"
        for batch in connection.sql(query, params=[files]).to_arrow_reader(50_000):
            if batch.num_rows:
                yield batch.column(0).to_numpy(), batch.column(1)
    except duckdb.Error as error:
        message = first_line(error)
        raise UserError(f"sorting failed: {message}; give more --memory or disk space") from None
    finally:
        connection.close()
        shutil.rmtree(spill, ignore_errors=True)


def _mark_duplicates(
    keys: np.ndarray, texts: Any, keep: np.ndarray, previous: tuple[int, set[str]]
) -> tuple[int, set[str]]:
    """Clears `keep` where a text with the same key came before; texts themselves are compared."""
    same = np.empty(len(keys), bool)
    same[0] = int(keys[0]) == previous[0]
    same[1:] = keys[1:] == keys[:-1]
    seen = previous[1]
    for place in np.flatnonzero(same).tolist():
        if place and not same[place - 1]:
            seen = {texts[place - 1].as_py()}
        text = texts[place].as_py()
        keep[place] = text not in seen
        seen.add(text)
    last = len(keys) - 1
    return int(keys[last]), seen if same[last] else {texts[last].as_py()}


class _Shards:
    """Writes texts to validation first, then to one shard after the other, under working names."""

    def __init__(self, folder: Path, validation_rows: int, shard_rows: int):
        import pyarrow as pa

        self._schema = pa.schema([("text", pa.string())])
        self._folder, self._shard_rows = folder, shard_rows
        self._room = validation_rows
        self._written: list[dict[str, Any]] = []
        self._writer = self._open("validation" if validation_rows else "train")

    def _open(self, split: str) -> parquet.Writer:
        part = f"shard-{len(self._written):05d}"
        self._room = self._room if split == "validation" else self._shard_rows
        self._written.append({"part": part, "split": split, "rows": 0, "characters": 0})
        return parquet.Writer(self._folder / part, self._schema)

    def write(self, texts: Any, keep: np.ndarray) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        kept = texts.cast(pa.string()).filter(pa.array(keep))
        while len(kept):
            if not self._room:
                self._finish()
                self._writer = self._open("train")
            part, kept = kept[: self._room], kept[self._room :]
            self._writer.write(pa.table([part], schema=self._schema))
            self._room -= len(part)
            self._written[-1]["rows"] += len(part)
            self._written[-1]["characters"] += pc.sum(pc.utf8_length(part)).as_py()

    def _finish(self) -> None:
        self._writer.close()
        shard, path = self._written[-1], Path(self._writer.path)
        shard |= {"bytes": path.stat().st_size, "sha256": file_digest(path)}

    def close(self) -> list[dict[str, Any]]:
        self._finish()
        train = [shard for shard in self._written if shard["split"] == "train" and shard["rows"]]
        if not train:
            # With other settings or files nothing that was staged could be used again.
            shutil.rmtree(self._folder, ignore_errors=True)
            raise UserError(
                "nothing is left to train on after cleaning and setting validation apart"
            )
        for number, shard in enumerate(train):
            shard["file"] = f"train-{number:05d}-of-{len(train):05d}.parquet"
        named = [
            s | {"file": "validation.parquet"} for s in self._written if s["split"] == "validation"
        ]
        return named + train

    def abandon(self) -> None:
        self._writer.abandon()


def _manifest(
    plan: Preparation,
    digest: str,
    counts: Sequence[dict[str, Any]],
    shards: Sequence[dict[str, Any]],
    duplicates: int,
    excluded: int,
    excluded_texts: int,
) -> dict[str, Any]:
    dropped: dict[str, int] = {}
    for each in counts:
        for reason, count in each["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + count
    dropped |= {"duplicate": duplicates, "excluded": excluded}
    settings = {k: v for k, v in plan.facts().items() if k not in ("inputs", "exclude")}
    return {
        "format": 1,
        "plan": digest,
        "rows_read": sum(each["rows"] for each in counts),
        "rows_kept": sum(shard["rows"] for shard in shards),
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "settings": settings,
        "inputs": list(counts),
        "excluded_texts_of": [os.path.basename(each.file) for each in plan.exclude],
        "excluded_texts": excluded_texts,
        "order": "by keyed blake2b-64 of the text: a global shuffle, a function of text and seed",
        "shards": [{k: shard[k] for k in shard if k not in ("split", "part")} for shard in shards],
    }

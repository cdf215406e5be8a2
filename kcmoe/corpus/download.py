# SPDX-License-Identifier: Apache-2.0
"""`kcmoe data download`: fetches a set of the catalogue and turns it into the parquet that tasks read.

Originals stay in `<set>/raw/`; the tables beside them get a manifest with rows, checksums and where they
came from and of what they were made. What is whole is never fetched or made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kcmoe.corpus import bucket, fetch
from kcmoe.corpus.catalogue import DATA_SETS
from kcmoe.corpus.convert import convert
from kcmoe.corpus.types import DataSet, Table
from kcmoe.data import manifest, parquet
from kcmoe.errors import UserError, near_misses


def data_set(name: str) -> DataSet:
    """The set of this name; `UserError` with near misses if there is none."""
    if name not in DATA_SETS:
        raise UserError(
            f"nothing is called {name}.{near_misses(name, DATA_SETS)} Known: {', '.join(DATA_SETS)}"
        )
    return DATA_SETS[name]


def present(each: DataSet, data_dir: Path) -> bool:
    """Whether the set is in `data_dir`, whoever put it there."""
    if each.tables:
        return all((data_dir / table.file).is_file() for table in each.tables)
    return any(path.is_file() for path in data_dir.glob(each.present))


def presence(each: DataSet, data_dir: Path) -> str:
    """ "present", "absent" or which tables are there; of a corpus made by `data prepare`, its rows."""
    if not present(each, data_dir):
        found = [Path(t.file).stem for t in each.tables if (data_dir / t.file).is_file()]
        return f"partly: {', '.join(found)}" if found else "absent"
    if each.tables or each.bucket:
        return "present"
    try:
        made = manifest.read((data_dir / each.present).parent)
        rows = None if made is None else sum(shard["rows"] for shard in made["shards"])
    except (UserError, KeyError, TypeError):
        return f"present, damaged {manifest.NAME}"
    return f"present, no {manifest.NAME}" if rows is None else f"present, {rows:,} rows"


def download(
    each: DataSet, data_dir: Path, mirrors: Sequence[str] = (), say: Callable[[str], object] = print
) -> None:
    """Fetches, checks and converts one set.

    Args:
      each: from `data_set`.
      data_dir: DATA_DIR.
      mirrors: base addresses tried first; a mirror holds `<set>/<file name>`.
      say: told of each finished file.

    Raises:
      UserError: what has to be done by hand, or why it could not be fetched.
    """
    for mirror in mirrors:
        _check_address(mirror)
    if each.by_hand:
        raise UserError(f"{each.name} cannot be fetched by itself. {each.by_hand}")
    if each.bucket:
        bucket.copy(each.bucket, data_dir / each.name, say)
        return
    raw = data_dir / each.name / "raw"
    for file in each.files:
        urls = [f"{mirror.rstrip('/')}/{each.name}/{file.name}" for mirror in mirrors]
        fetched = fetch.fetch([*urls, file.url], raw / file.name, file.git_blob, size=file.size)
        say(f"{raw / file.name}: {'fetched' if fetched else 'already there'}, checksum is right")
    _make_tables(each, raw, data_dir, say)


def _check_address(mirror: str) -> None:
    with contextlib.suppress(ValueError):
        if urllib.parse.urlsplit(mirror).scheme in ("http", "https", "file"):
            return
    raise UserError(f"--mirror={mirror} is no address; it begins with https:// or http://")


def _make_tables(each: DataSet, raw: Path, data_dir: Path, say: Callable[[str], object]) -> None:
    """Makes the tables that are not there, or not as this catalogue has them, and the manifest."""
    done = None
    with contextlib.suppress(UserError):  # a damaged manifest is written anew
        done = manifest.read(data_dir / each.name)
    known = {shard["file"]: shard for shard in done["shards"]} if done else {}
    shards = []
    for table in each.tables:
        path = data_dir / table.file
        made_of = _made_of(each, table)
        shard = known.get(path.name, {})
        with _disk_errors(path):
            whole = made_of.items() <= shard.items() and _is_whole(path, shard["sha256"])
            if not whole:
                rows, dropped = convert(table, raw, data_dir)
                size, sha256 = path.stat().st_size, manifest.sha256(path)
                shard = {"file": path.name, "rows": rows, "bytes": size, "sha256": sha256}
                shard |= made_of | {"left_out": dropped}
        left_out = f", left out {shard['left_out']}" if shard["left_out"] else ""
        there = ", already there, checksum is right" if whole else ""
        say(f"{path}: {shard['rows']:,} rows{left_out}{there}")
        shards.append(shard)
    about = {"format": 1, "set": each.name, "licence": each.licence, "homepage": each.homepage}
    if done != about | {"shards": shards}:
        with _disk_errors(data_dir / each.name / manifest.NAME):
            manifest.write(data_dir / each.name, about | {"shards": shards})


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {parquet.one_line(error)}; what was fetched is kept"
        ) from None


def _made_of(each: DataSet, table: Table) -> dict[str, Any]:
    """Everything that decides what is in a table, for its manifest."""
    files = {file.name: file for file in each.files}
    sources = [{"url": files[n].url, "git_blob": files[n].git_blob} for n in table.sources]
    made_of: dict[str, Any] = {
        "sources": sources,
        "columns": dict(table.columns),
        "types": dict(table.types),
    }
    if table.layout:
        made_of["layout"] = dataclasses.asdict(table.layout)
    if table.validation_share:
        made_of["validation_share"] = table.validation_share
    return json.loads(json.dumps(made_of))  # tuples become lists, as when it is read back


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and manifest.sha256(path) == sha256

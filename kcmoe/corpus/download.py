# SPDX-License-Identifier: Apache-2.0
"""`kcmoe data download`: fetches a set of the catalogue and turns it into the parquet that tasks read.

Originals stay in `<set>/raw/`; the tables beside them get a manifest with rows, checksums and where they
came from and of what they were made. What is whole is never fetched or made again.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kcmoe.corpus import fetch
from kcmoe.corpus.catalogue import DATA_SETS, DataSet, Table
from kcmoe.data import manifest, parquet, tables
from kcmoe.errors import UserError, near_misses
from kcmoe.io import remote

_BLOCK = 1 << 22


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
        copy_bucket(each.bucket, data_dir / each.name, say)
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
    return {"sources": sources, "columns": dict(table.columns), "types": dict(table.types)}


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and manifest.sha256(path) == sha256


def convert(table: Table, raw: Path, data_dir: Path) -> tuple[int, str]:
    """Makes one parquet file; returns its rows and a line on what was left out."""
    import pyarrow as pa

    schema = pa.schema(
        [(c, getattr(pa, _ARROW.get(table.types.get(c, ""), "string"))()) for c in table.columns]
    )
    report = tables.Report()
    target = data_dir / table.file
    writer = parquet.Writer(target, schema)
    try:
        for source in table.sources:
            columns = list(table.columns.values())
            path = str(raw / source)
            for chunk in tables.read_chunks(path, columns, strict=False, report=report):
                values = [
                    [_PARSE[table.types.get(name, "")](value) for value in chunk[column]]
                    for name, column in table.columns.items()
                ]
                arrays = [pa.array(v, field.type) for v, field in zip(values, schema, strict=True)]
                writer.write(pa.table(arrays, schema=schema))
        writer.close()
    except (ValueError, KeyError) as error:
        writer.abandon()
        raise UserError(
            f"{target}: a value of {table.sources} is not as expected ({error})"
        ) from None
    except BaseException:
        writer.abandon()
        raise
    return writer.rows, report.summary()


_ARROW = {"int64": "int64", "float64": "float64", "bool": "bool_"}
_PARSE: dict[str, Callable[[Any], Any]] = {
    "": str,
    "int64": int,
    "float64": float,
    "bool": {"True": True, "False": False}.__getitem__,
}


def copy_bucket(address: str, target: Path, say: Callable[[str], object] = print) -> None:
    """Copies a bucket's folder, file by file, each checked against the bucket's MD5 where it has one.

    A file that is there with the right size and checksum is not copied again; a cut one is resumed.

    Raises:
      UserError: if the bucket cannot be read, a checksum differs, or the disk is full.
    """
    options = (
        {"token": "anon", "session_kwargs": {"trust_env": True}}
        if address.startswith("gs:")
        else {}
    )
    try:
        filesystem, root = remote.fsspec().core.url_to_fs(address, **options)
        found = filesystem.find(root, detail=True)
        if not found:
            raise UserError(f"{address} is empty or not public")
        total = sum(info["size"] for info in found.values())
        target.mkdir(parents=True, exist_ok=True)
        fetch.check_room(target, total - _bytes_below(target))
        for name, info in sorted(found.items()):
            local = target / os.path.relpath(name, root)
            copied = _copy_file(filesystem, name, info, local)
            checked = (
                "checksum is right" if info.get("md5Hash") else "size is right (no checksum given)"
            )
            say(f"{local}: {'copied' if copied else 'already there'}, {checked}")
    except UserError:
        raise
    except Exception as error:  # gcsfs raises its own HTTP errors as well as OSError
        if "ENOSPC" in repr(error) or getattr(error, "errno", None) == 28:
            raise UserError(f"the disk of {target} is full; start again to resume") from None
        raise UserError(
            f"{address} cannot be copied: {parquet.one_line(error)}; start again to resume"
        ) from None


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _copy_file(filesystem: Any, name: str, info: dict[str, Any], local: Path) -> bool:
    wanted = info.get("md5Hash")
    if local.exists() and local.stat().st_size == info["size"] and wanted in (None, _md5(local)):
        return False
    local.parent.mkdir(parents=True, exist_ok=True)
    part = local.with_name(local.name + ".part")
    start = part.stat().st_size if part.exists() and part.stat().st_size < info["size"] else 0
    with open(part, "ab" if start else "wb") as file:
        for block in _blocks(filesystem, name, start, info["size"], local.name):
            file.write(block)
    if part.stat().st_size != info["size"] or wanted not in (None, _md5(part)):
        part.unlink()
        raise UserError(f"{name} came with another checksum than the bucket's; start again")
    os.replace(part, local)
    return True


def _blocks(filesystem: Any, name: str, start: int, size: int, label: str) -> Iterator[bytes]:
    from tqdm import tqdm

    with tqdm(
        total=size, initial=start, desc=label, unit="B", unit_scale=True, disable=None, delay=1
    ) as bar:
        while start < size:
            block = filesystem.cat_file(name, start=start, end=min(start + _BLOCK, size))
            if not block:
                raise OSError(f"{name} ends after {start} of {size} bytes")
            start += len(block)
            bar.update(len(block))
            yield block


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()

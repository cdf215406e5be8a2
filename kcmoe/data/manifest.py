# SPDX-License-Identifier: Apache-2.0
"""`manifest.json` beside the shards of a corpus or labelled set: files, sizes, checksums, where from.

Compared with the files whenever a corpus is opened (presence and size) and whenever a shard is tokenized
(checksum). A folder without a manifest is read as it is.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kcmoe.errors import UserError
from kcmoe.io import durable, json_text, remote
from kcmoe.io.hashing import file_digest
from kcmoe.io.wording import first_line

NAME = "manifest.json"
_log = logging.getLogger(__name__)


def read(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The manifest of a folder, or None where there is none.

    Raises:
      UserError: if it cannot be read as a manifest.
    """
    path = Path(folder) / NAME
    try:
        manifest = json_text.parse(remote.read_bytes(str(path)))
        {shard["file"]: (shard["bytes"], shard["sha256"]) for shard in manifest["shards"]}
        return manifest
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise UserError(
            f"{path} is not what `kcmoe data prepare` writes ({what}); move it away, and the folder is read "
            "without it"
        ) from None


def write(folder: str | os.PathLike[str], manifest: dict[str, Any]) -> None:
    """Writes the manifest; it appears whole or not at all. Raises `UserError` if the disk refuses."""
    text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
    durable.write_file(Path(folder) / NAME, text.encode())


def check(files: Sequence[str], strict: bool = True) -> None:
    """Compares `files` with the manifests beside them.

    Raises:
      UserError: in strict reading, if a listed shard of the same split is missing or has another size,
        or if one of `files` is of a listed split but not listed itself.
    """
    problems: list[str] = []
    unlisted: list[str] = []
    for folder in dict.fromkeys(os.path.dirname(f) for f in files if not remote.is_remote(f)):
        manifest = read(folder)
        if manifest is None:
            continue
        present = {os.path.basename(f) for f in files if os.path.dirname(f) == folder}
        listed = {shard["file"]: shard["bytes"] for shard in manifest["shards"]}
        splits = {_split(name) for name in present & listed.keys()}
        for name, size in listed.items():
            path = os.path.join(folder, name)
            if _split(name) not in splits:
                continue
            if not os.path.exists(path):
                problems.append(f"{path} is gone")
            elif name in present and os.path.getsize(path) != size:
                problems.append(f"{path} has {os.path.getsize(path)} bytes, not {size}")
        # Left by another run, so that texts would be read twice, or put there by hand.
        more = [name for name in sorted(present - listed.keys()) if _split(name) in splits]
        unlisted += [f"{os.path.join(folder, name)} is none of the shards written" for name in more]
    _report(problems, strict)
    _report(unlisted, strict, "move it away")


def _split(name: str) -> str:
    """ "train" of train.parquet and of train-00000-of-00001.parquet."""
    return name.partition("-")[0].partition(".")[0]


def check_content(file: str, strict: bool = True) -> None:
    """Compares the checksum of one shard with the manifest beside it, if that lists it."""
    if remote.is_remote(file):
        return
    manifest = read(os.path.dirname(file))
    known = {shard["file"]: shard["sha256"] for shard in manifest["shards"]} if manifest else {}
    name = os.path.basename(file)
    if name in known and file_digest(file) != known[name]:
        _report([f"{file} is not the shard that was written: its checksum differs"], strict)


def _report(problems: Sequence[str], strict: bool, mend: str = "prepare the corpus again") -> None:
    for problem in problems:
        if strict:
            raise UserError(
                f"{problem}, so the folder is not as its {NAME} says; {mend}, or set DATA_STRICT = "
                "False to go on with what is there"
            )
        _log.warning("%s", problem)

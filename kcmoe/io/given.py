# SPDX-License-Identifier: Apache-2.0
"""What a person gives as a path, a name or an encoding -> what is meant by it, with one message each.

A path that exists is that path, whatever signs its name has; a pattern is what remains. `~` is the home
folder. Names are compared composed (NFC), as macOS hands out Hangul decomposed. Whoever takes a path from a
flag, a setting or an environment variable asks here and does not look for itself.
"""

from __future__ import annotations

import codecs
import fnmatch
import functools
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence

from kcmoe.errors import UserError, near_misses
from kcmoe.io import remote
from kcmoe.io.wording import first_line, shortened, shown

# Codecs of Python that are no encoding of a text file: they keep no line, or need the whole file at once.
_NO_FILE_ENCODINGS = {"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"}

# Columns follow a file's ending or a wildcard: C:\a.tsv, gs://b/c.tsv and samples:a.txt name none.
_WITH_COLUMNS = re.compile(r"(.+(?:\.\w+|[*?\]])):([^:/\\]+)")


def composed(name: str) -> str:
    """Returns a name as it is compared: Hangul and accents in one sign each (NFC)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def path(text: str | os.PathLike[str]) -> str:
    """Returns the path that `text` means: `~` becomes home, and names get the spelling that is there.

    What is not there stays as given, below folders in the spelling that is there, so that the result serves
    for outputs as well. Addresses of buckets are returned as they are.

    Raises:
      UserError: for nothing at all, which would mean the current folder, for a NUL character, which no
        path can hold, and for the home of nobody.
    """
    given = os.fspath(text)
    if not given.strip():
        raise UserError("a path is needed, and this is empty (the current folder is called .)")
    if "\0" in given:
        raise UserError(f"{given!r} is no path: it holds a NUL character")
    if remote.is_remote(given):
        return given
    plain = os.path.expanduser(given)
    owner, slash, _ = plain.partition("/")
    if owner.startswith("~") and (slash or owner == "~") and not os.path.lexists(plain):
        raise UserError(f"{given} is no path: nobody's home is {owner}")
    if plain.isascii() or os.path.lexists(plain):
        return plain
    return _spelt_as_there(plain)


def _spelt_as_there(plain: str) -> str:
    done = "/" if plain.startswith("/") else ""
    parts = [part for part in plain.split("/") if part]
    for number, part in enumerate(parts):
        step = os.path.join(done, part)
        if not os.path.lexists(step):
            names = _names(done or ".")
            alike = [name for name in names if composed(name) == composed(part)]
            if not alike:
                return os.path.join(done, *parts[number:])
            step = os.path.join(done, alike[0])
        done = step
    return done


def _names(folder: str) -> list[str]:
    """Names in a folder, sorted; none where it is no folder or cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def files(pattern: str, folder: str | os.PathLike[str] = "") -> list[str]:
    """Returns the files and folders that a path or a pattern names, sorted; none where nothing matches.

    Args:
      pattern: a path, or one with the wildcards *, ?, [] and ** that is taken as a path first, part by part.
      folder: what a relative one is below; never a pattern itself.

    Raises:
      UserError: if a bucket or server cannot be listed, or a folder that a pattern leads to.
    """
    if remote.is_remote(pattern):
        return _in_bucket(pattern)
    pattern = path(pattern)
    if remote.is_remote(os.fspath(folder)) and not os.path.isabs(pattern):
        return _in_bucket(os.path.join(folder, pattern))
    whole = path(os.path.join(path(folder) if folder else "", pattern))
    if os.path.lexists(whole):
        return [whole]
    if not has_wildcard(pattern):
        return []
    start = "/" if os.path.isabs(pattern) else path(folder) if folder else ""
    parts = [part for part in pattern.split("/") if part]
    found = {match for match in _matches(start, parts) if not os.path.isdir(match)}
    return sorted(found)


def _matches(folder: str, parts: Sequence[str]) -> Iterator[str]:
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if part in (".", "..") or os.path.lexists(os.path.join(folder, part)):
        yield from _matches(os.path.join(folder, part), rest)
        return
    names = [
        n for n in _looked_into(folder or ".") if part.startswith(".") or not n.startswith(".")
    ]
    if part == "**":
        yield from _matches(folder, rest or ["*"])
        for name in names:
            below = os.path.join(folder, name)
            if os.path.isdir(below) and not os.path.islink(below):
                yield from _matches(below, parts)
        return
    fits = re.compile(fnmatch.translate(composed(part))).match
    for name in names:
        if fits(composed(name)):
            yield from _matches(os.path.join(folder, name), rest)


def _looked_into(folder: str) -> list[str]:
    """As `_names`; `UserError` for a folder that may not be looked into, whose files would not be missed."""
    try:
        return sorted(os.listdir(folder))
    except PermissionError:
        raise UserError(f"there is no permission to look into {folder}") from None
    except OSError:
        return []


def _in_bucket(address: str) -> list[str]:
    try:
        with remote.os_errors():
            return _listed(address)
    except FileNotFoundError as error:
        if error.__cause__ is None:
            return []
        raise UserError(f"{address} cannot be read: {error.__cause__}") from None
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{address} cannot be listed: {first_line(error)}") from None


def _listed(address: str) -> list[str]:
    filesystem, name = remote.fsspec().core.url_to_fs(address)
    on_server = address.lower().startswith(("http://", "https://"))
    # On a server ? begins a query, and `exists` is False for whatever the server refuses.
    if not has_wildcard(address.replace("?", "") if on_server else address):
        filesystem.info(name)
        return [filesystem.unstrip_protocol(name)]
    if filesystem.exists(name):
        return [filesystem.unstrip_protocol(name)]
    found = sorted(filesystem.unstrip_protocol(path) for path in filesystem.glob(name))
    if not found and on_server:
        raise OSError("the server names no such file; give whole addresses")
    return found


def has_wildcard(text: str) -> bool:
    """Returns whether a text can be a pattern."""
    return any(c in text for c in "*?[")


def absent(pattern: str, folder: str | os.PathLike[str] = "") -> str:
    """Returns the sentence that nothing matches, and what a look at its folder tells."""
    whole = pattern if remote.is_remote(pattern) else os.path.join(folder, pattern)
    place, named = os.path.dirname(whole) or ".", shortened(whole, 300)
    if remote.is_remote(whole) or has_wildcard(os.path.dirname(pattern)):
        return f"no file matches {named}."
    if (there := _nearest(path(place))) and not os.access(there, os.R_OK | os.X_OK):
        return f"no file matches {named}: there is no permission to look into {there}."
    if not os.path.isdir(path(place)):
        return f"no file matches {named}: there is no folder {place}."
    return f"no file matches {named}.{near_misses(os.path.basename(whole), _names(path(place)))}"


def _nearest(folder: str) -> str:
    """The folder, or the nearest one above it that is there."""
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def with_columns(text: str) -> tuple[str, tuple[str, ...]]:
    """Returns the path or pattern and the columns of "FILE" or "FILE:COLUMN,COLUMN".

    A file that exists has no columns in its name.
    """
    there = not remote.is_remote(text) and os.path.lexists(path(text))
    match = None if there else _WITH_COLUMNS.fullmatch(text)
    if match is None:
        return text, ()
    return match[1], tuple(name for name in match[2].split(",") if name)


def encoding(text: str, path: str = "") -> str:
    """Returns the encoding that is meant for a file: Python's name, e.g. "cp949" for "MS949".

    Args:
      text: one name for all files, or several by commas of which some are FILE=NAME, e.g.
        "utf-8,old*.txt=cp949". FILE may have wildcards and is compared with the name and with the path.
      path: the file; "" checks the names and returns that of all files.

    Raises:
      UserError: if Python knows no such encoding, or it is none that a file of lines can have.
    """
    chosen, whole = "utf-8", composed(path)
    for part in text.split(","):
        pattern, _, name = part.strip().rpartition("=")
        known, pattern = _encoding(name), composed(pattern)
        names = (whole, os.path.basename(whole))
        if not pattern or pattern in names or any(fnmatch.fnmatchcase(n, pattern) for n in names):
            chosen = known
    return chosen


def check_encoding(setting: str, text: str) -> None:
    """Raises `UserError` that names the flag or setting, unless `text` is what `encoding` takes."""
    try:
        encoding(text)
    except UserError as error:
        raise UserError(f"{setting} = {shown(text)}: {error}") from None


@functools.cache
def holds_hangul(name: str) -> bool:
    """Returns whether an encoding has Korean letters."""
    try:
        return bool("가".encode(name))
    except (UnicodeError, LookupError):
        return False


@functools.cache
def _encoding(name: str) -> str:
    known, of_texts = None, False
    try:
        known = codecs.lookup(name)
        "".encode(name)  # refuses hex, base64, rot13 and the like with a LookupError
        b"".decode(name)
        of_texts = known.name.replace("_", "-") not in _NO_FILE_ENCODINGS
    except (LookupError, ValueError, TypeError):
        pass
    if known is None or not of_texts:
        usual = ("utf-8", "cp949", "euc-kr", "utf-16", "johab", "iso2022-kr")
        hint = near_misses(name, usual) or f" Usual are {', '.join(usual[:4])}"
        what = f"{name} is no encoding of text files" if known else f"no encoding is called {name}"
        raise UserError(f"{what if name else 'an encoding has no name'}.{hint}")
    return known.name

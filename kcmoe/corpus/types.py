# SPDX-License-Identifier: Apache-2.0
"""What the catalogue is made of: a data set, the files to fetch, and the tables made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Remote:
    """One file to fetch.

    Attributes:
      url: the official address.
      git_blob: git's id of the file: sha1 of "blob <size>\\0" and the content.
      size: bytes, 0 where the authors do not say.
    """

    url: str
    git_blob: str
    size: int = 0

    @property
    def name(self) -> str:
        """File name, under which it is kept in `<set>/raw/`."""
        return self.url.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a fetched text file is laid out, where its ending does not say so.

    Attributes:
      separator: between the cells of a line.
      columns: names of the cells where no header line names them; all but one hold no separator.
      text_first: whether the cell that may hold the separator is the first one rather than the last.
      quoted: whether cells may be quoted as in CSV.
    """

    separator: str
    columns: tuple[str, ...] = ()
    text_first: bool = False
    quoted: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """One parquet file made of fetched ones.

    Attributes:
      file: below DATA_DIR.
      sources: names of fetched files, read one after another.
      columns: column of the parquet -> column of the source; "a.b" is b of the object a.
      types: type of columns that are not text: int64, float64, bool, or labels (a list of int64).
      layout: of the sources, where their ending does not say it.
      validation_share: share of the rows that belongs to validation, chosen by the hash of the first
        column, where the authors published one file; 0 takes every row.
    """

    file: str
    sources: tuple[str, ...]
    columns: Mapping[str, str]
    types: Mapping[str, str] = dataclasses.field(default_factory=dict)
    layout: Layout | None = None
    validation_share: float = 0.0

    @property
    def split(self) -> str:
        """The split that the file's name says: "train" of nsmc/train.parquet."""
        return self.file.rpartition("/")[2].removesuffix(".parquet")


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One set that can be had.

    Attributes:
      name: as typed.
      about: one line.
      licence: of the data.
      homepage: where it is described.
      files: to fetch over HTTP.
      tables: made of them.
      bucket: a bucket folder to copy instead.
      by_hand: what a person has to do where a login stands between.
      present: file below DATA_DIR that shows it is there, where there is no table.
    """

    name: str
    about: str
    licence: str
    homepage: str
    files: tuple[Remote, ...] = ()
    tables: tuple[Table, ...] = ()
    bucket: str = ""
    by_hand: str = ""
    present: str = ""

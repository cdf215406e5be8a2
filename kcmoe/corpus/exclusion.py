# SPDX-License-Identifier: Apache-2.0
"""Texts that a prepared corpus must not hold, such as those of evaluation sets, and where they stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kcmoe.corpus.staging import WAYS, Reading, text_key
from kcmoe.data import tables
from kcmoe.data.token_cache import stamp
from kcmoe.errors import UserError
from kcmoe.io import given


@dataclasses.dataclass(frozen=True)
class Excluded:
    """One file whose texts, cleaned as the corpus is, must not occur.

    Attributes:
      file: any that `tables` reads.
      columns: each holds texts; none is the column of the corpus.
    """

    file: str
    columns: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Everything that decides which texts these are."""
        return stamp(self.file) | {"columns": list(self.columns)}


def parse(argument: str) -> list[Excluded]:
    """The files of "FILE" or "FILE:COLUMN,COLUMN"; FILE may have wildcards.

    Raises:
      UserError: if there is no such file.
    """
    pattern, columns = given.with_columns(argument)
    return [Excluded(file, columns) for file in tables.expand([pattern])]


def keys(excluded: Sequence[Excluded], reading: Reading) -> tuple[np.ndarray, int]:
    """Keys (`staging.text_key`) of the texts that must not occur, uint64, sorted; and how many were read.

    Raises:
      UserError: a missing column or file; in strict reading also a bad row.
    """
    found: set[int] = set()
    count = 0
    for each in excluded:
        for chunk in tables.read_chunks(
            each.file,
            each.columns or (reading.column,),
            strict=reading.strict,
            encoding=reading.encoding,
            ways=WAYS,
        ):
            for texts in chunk.values():
                odd = next((t for t in texts if not isinstance(t, str | None)), None)
                if odd is not None and reading.strict:
                    raise UserError(f"--exclude={each.file}: {odd!r} is not text; name a column")
                cleaned = [reading.cleaner.clean(text) for text in texts if isinstance(text, str)]
                found.update(text_key(text, reading.seed) for text in cleaned)
                count += len(cleaned)
    return np.array(sorted(found), np.uint64), count

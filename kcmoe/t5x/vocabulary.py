# SPDX-License-Identifier: Apache-2.0
"""Our vocabulary as SeqIO's class, for T5X's models, metrics and span corruption.

Only decoding and the sentinel count go through this object. Text becomes ids by `kcmoe.vocabulary`, so
that a comment containing `<unused3>` is plain text here too, whatever the file says of its sentinels.
"""

from __future__ import annotations

import functools

import seqio

from kcmoe.vocabulary import Vocabulary


@functools.lru_cache(maxsize=8)
def engine_vocabulary(path: str | None = None) -> Vocabulary:
    """The engine's vocabulary, read once per file."""
    return Vocabulary(path)


@functools.lru_cache(maxsize=8)
def seqio_vocabulary(path: str | None = None) -> seqio.SentencePieceVocabulary:
    """SeqIO's view of the same file; sentinel 0 is its last id, as t5's span corruption counts.

    Raises:
      UserError: if the file is missing or is no vocabulary of ours.
    """
    return seqio.SentencePieceVocabulary(engine_vocabulary(path).path)

# SPDX-License-Identifier: Apache-2.0
"""Our corpora as a SeqIO data source: the engine's readers, prompts and token ids, shared out over hosts.

Rows, held-out splits and ids come from `kcmoe.data` and `kcmoe.vocabulary`, so a labelled example has
the same ids under T5X as under the engine. Whole chunks of rows are tokenized at once, and the texts of a
corpus reach TensorFlow joined, since one call per text, Python's or TensorFlow's, would starve a pod.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import seqio
import tensorflow as tf

from kcmoe.data import labelled, splits, tables
from kcmoe.errors import UserError
from kcmoe.io import remote
from kcmoe.t5x import vocabulary as vocabularies
from kcmoe.tasks.registry import Task

_PARALLEL_FILES = 8
_TOKENIZER_THREADS = 4
_JOINED_TOKENS = 65_536  # as long as t5 lets a text be
_Row = TypeVar("_Row")


class TextSource(seqio.DataSource):
    """Token ids of one task; the features are int32 [length], without EOS.

    A span corruption task gives `targets`: texts joined up to `_JOINED_TOKENS`, for t5 to cut into rows. t5
    itself joins 128 texts, which of comments leaves an eighth of each row empty. A labelled task gives
    `inputs`, `targets` and both as text under `inputs_pretokenized` and `targets_pretokenized`.
    """

    def __init__(
        self, task: Task, data_dir: str, vocabulary_file: str | None = None, *, strict: bool = True
    ):
        """Opens nothing yet.

        Args:
          task: what to read.
          data_dir: local folder or bucket address that relative files are below.
          vocabulary_file: None is the shipped one.
          strict: stop at rows that cannot be read rather than leave them out.
        """
        super().__init__(splits=task.splits)
        self._task = task
        self._data_dir = data_dir
        self._vocabulary_file = vocabulary_file
        self._strict = strict

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True  # SeqIO would prepare every row on every host and throw most away

    def list_shards(self, split: str) -> Sequence[str]:
        """The files that hold `split`; `UserError` where there is none."""
        files = splits.split_files(self._task, split, self._data_dir)
        return [file if remote.is_remote(file) else os.path.abspath(file) for file in files]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: object,
    ) -> tf.data.Dataset:
        """Examples of `split` in file order, or several files at a time in a shuffled order.

        With `shard_info` those of one host; no two hosts have a row in common, and all have equally many.
        """
        files = list(self.list_shards(split))
        part = RowShare()
        if shard_info:
            files, part = part_of(files, shard_info.index, shard_info.num_shards)
        dataset = tf.data.Dataset.from_tensor_slices(files)
        if shuffle:
            dataset = dataset.shuffle(len(files), seed=seed)
        joined = self._task.kind == "span_corruption"
        pieces = self._joined if joined else self._examples

        def pieces_of(file: tf.Tensor) -> tf.data.Dataset:
            return tf.data.Dataset.from_generator(
                lambda path: pieces(path.decode(), split, part),
                args=(file,),
                output_signature=_JOINED if joined else _EXAMPLES,
            )

        dataset = dataset.interleave(
            pieces_of,
            cycle_length=_PARALLEL_FILES if shuffle else 1,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return dataset if joined else dataset.map(_ragged).unbatch()

    def _joined(self, path: str, split: str, part: RowShare) -> Iterator[dict[str, np.ndarray]]:
        """The texts of one file, tokenized a chunk at a time and joined."""
        column = self._task.text_column
        chunks = tables.read_chunks(
            path, [column], strict=self._strict, encoding=self._task.encoding
        )
        rows = part.of(itertools.chain.from_iterable(chunk[column] for chunk in chunks))
        texts = (
            text
            for text in map(self._as_text, itertools.repeat(path), rows)
            if text.strip() and splits.in_split(self._task, split, text)
        )
        while chunk := list(itertools.islice(texts, tables.CHUNK_ROWS)):
            ids, _ = self._tokenized(chunk)
            for start in range(0, len(ids), _JOINED_TOKENS):
                yield {"targets": ids[start : start + _JOINED_TOKENS]}

    def _as_text(self, path: str, value: object) -> str:
        """A value of the text column; "" where it is missing, or is no text and reading is lenient."""
        if self._strict and not isinstance(value, str | None):
            raise UserError(f"{path}: column {self._task.text_column} is {value!r}, not text")
        return value if isinstance(value, str) else ""

    def _examples(self, path: str, split: str, part: RowShare) -> Iterator[dict[str, np.ndarray]]:
        """The labelled examples of one file, a chunk at a time."""
        key = "train" if self._task.is_held_out(split) else split
        task = dataclasses.replace(self._task, files={**self._task.files, key: (path,)})
        examples = part.of(labelled.iter_examples(task, split, self._data_dir, strict=self._strict))
        while chunk := list(itertools.islice(examples, tables.CHUNK_ROWS)):
            columns = {
                "inputs": [example.inputs_text for example in chunk],
                "targets": [self._as_answered(example.target_text) for example in chunk],
            }
            features = {}
            for feature, texts in columns.items():
                features[f"{feature}/ids"], features[f"{feature}/lengths"] = self._tokenized(texts)
                features[f"{feature}_pretokenized"] = np.array(
                    [text.encode() for text in texts], object
                )
            yield features

    def _as_answered(self, text: str) -> str:
        """The answer as a perfect model would give it: free text may not survive the vocabulary."""
        if self._task.labels or self._task.target_step:
            return text
        vocabulary = vocabularies.engine_vocabulary(self._vocabulary_file)
        return vocabulary.decode(vocabulary.encode(text))

    def _tokenized(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts (int32) and how many each has (int64)."""
        vocabulary = vocabularies.engine_vocabulary(self._vocabulary_file)
        ids = vocabulary.encode_batch(texts, threads=_TOKENIZER_THREADS)
        flat = np.array(list(itertools.chain.from_iterable(ids)), np.int32)
        return flat, np.array([len(row) for row in ids], np.int64)


_JOINED = {"targets": tf.TensorSpec([None], tf.int32)}
_EXAMPLES = {
    feature + part: tf.TensorSpec([None], dtype)
    for feature in ("inputs", "targets")
    for part, dtype in (("/ids", tf.int32), ("/lengths", tf.int64), ("_pretokenized", tf.string))
}


@dataclasses.dataclass(frozen=True)
class RowShare:
    """Which rows of its files a host has: every `of_parts`-th."""

    index: int = 0
    of_parts: int = 1

    def of(self, rows: Iterable[_Row]) -> Iterator[_Row]:
        """Those of this host."""
        return itertools.islice(rows, self.index, None, self.of_parts)


def part_of(files: Sequence[str], host: int, num_hosts: int) -> tuple[list[str], RowShare]:
    """The files that a host reads, and its part of their rows.

    Files are dealt whole where their number is a multiple of that of the hosts. Otherwise several hosts
    read the same ones, as few as give all hosts the same share.
    """
    groups = math.gcd(len(files), num_hosts)
    return list(files[host % groups :: groups]), RowShare(host // groups, num_hosts // groups)


def _ragged(chunk: dict[str, tf.Tensor]) -> dict[str, tf.Tensor | tf.RaggedTensor]:
    features = {}
    for name, value in chunk.items():
        feature, _, part = name.partition("/")
        if part == "ids":
            features[feature] = tf.RaggedTensor.from_row_lengths(value, chunk[f"{feature}/lengths"])
        elif not part:
            features[name] = value
    return features

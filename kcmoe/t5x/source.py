# SPDX-License-Identifier: Apache-2.0
"""Our corpora as a SeqIO data source: the engine's readers, prompts and token ids, one shard per file.

Rows, held-out splits and ids come from `kcmoe.data` and `kcmoe.vocabulary`, so a labelled example has
the same ids under T5X as under the engine. Whole chunks of rows are tokenized at once and taken apart
by TensorFlow, since one Python call per row would starve a pod.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence

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


class TextSource(seqio.DataSource):
    """Token ids of one task; the features are int32 [length], without EOS.

    A span corruption task gives `targets`; a labelled one `inputs`, `targets` and both as text under
    `inputs_pretokenized` and `targets_pretokenized`.
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
        return False

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
        """Examples of `split` in file order, or several files at a time in a shuffled order."""
        files = list(self.list_shards(split))
        if shard_info:
            files = files[shard_info.index :: shard_info.num_shards]
        dataset = tf.data.Dataset.from_tensor_slices(files)
        if shuffle:
            dataset = dataset.shuffle(len(files), seed=seed)

        def chunks_of(file: tf.Tensor) -> tf.data.Dataset:
            return tf.data.Dataset.from_generator(
                lambda path: self._chunks(path.decode(), split),
                args=(file,),
                output_signature=self._signature(),
            )

        dataset = dataset.interleave(
            chunks_of, cycle_length=_PARALLEL_FILES if shuffle else 1, deterministic=True
        )
        return dataset.map(_ragged).unbatch()

    def _signature(self) -> dict[str, tf.TensorSpec]:
        ids = {"/ids": tf.int32, "/lengths": tf.int64}
        features = ["targets"] if self._task.kind == "span_corruption" else ["inputs", "targets"]
        signature = {
            feature + part: tf.TensorSpec([None], dtype)
            for feature in features
            for part, dtype in ids.items()
        }
        if self._task.kind == "labelled":
            texts = {
                f"{feature}_pretokenized": tf.TensorSpec([None], tf.string) for feature in features
            }
            signature.update(texts)
        return signature

    def _chunks(self, path: str, split: str) -> Iterator[dict[str, np.ndarray]]:
        if self._task.kind == "span_corruption":
            for texts in self._texts(path, split):
                yield self._tokenized("targets", texts)
            return
        key = "train" if self._task.is_held_out(split) else split
        task = dataclasses.replace(self._task, files={**self._task.files, key: (path,)})
        examples = labelled.iter_examples(task, split, self._data_dir, strict=self._strict)
        while chunk := list(itertools.islice(examples, tables.CHUNK_ROWS)):
            inputs = [example.inputs_text for example in chunk]
            targets = [self._as_answered(example.target_text) for example in chunk]
            yield {
                **self._tokenized("inputs", inputs),
                **self._tokenized("targets", targets),
                "inputs_pretokenized": np.array([text.encode() for text in inputs], object),
                "targets_pretokenized": np.array([text.encode() for text in targets], object),
            }

    def _as_answered(self, text: str) -> str:
        """The answer as a perfect model would give it: free text may not survive the vocabulary."""
        if self._task.labels or self._task.target_step:
            return text
        vocabulary = vocabularies.engine_vocabulary(self._vocabulary_file)
        return vocabulary.decode(vocabulary.encode(text))

    def _texts(self, path: str, split: str) -> Iterator[list[str]]:
        """Documents of one file that belong to `split`, chunk by chunk, empty ones left out."""
        column = self._task.text_column
        chunks = tables.read_chunks(
            path, [column], strict=self._strict, encoding=self._task.encoding
        )
        for chunk in chunks:
            odd = next((t for t in chunk[column] if not isinstance(t, str | None)), None)
            if odd is not None and self._strict:
                raise UserError(f"{path}: column {column} is {odd!r}, not text")
            texts = [text for text in chunk[column] if isinstance(text, str) and text.strip()]
            yield [text for text in texts if splits.in_split(self._task, split, text)]

    def _tokenized(self, feature: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
        vocabulary = vocabularies.engine_vocabulary(self._vocabulary_file)
        ids = vocabulary.encode_batch(texts, threads=_TOKENIZER_THREADS)
        flat = list(itertools.chain.from_iterable(ids))
        return {
            f"{feature}/ids": np.array(flat, np.int32),
            f"{feature}/lengths": np.array([len(row) for row in ids], np.int64),
        }


def _ragged(chunk: dict[str, tf.Tensor]) -> dict[str, tf.Tensor | tf.RaggedTensor]:
    features = {}
    for name, value in chunk.items():
        feature, _, part = name.partition("/")
        if part == "ids":
            features[feature] = tf.RaggedTensor.from_row_lengths(value, chunk[f"{feature}/lengths"])
        elif not part:
            features[name] = value
    return features

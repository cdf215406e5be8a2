# SPDX-License-Identifier: Apache-2.0
"""Batches for training and evaluation: tasks + vocabulary + lengths -> arrays by step.

`Batches.at(step)` is a pure function, so resuming is asking for the next step; `Batches.iterate` makes
steps ahead in Grain worker processes, which changes the speed but not the batches. The number of hosts and
devices plays no part: a host asks for the rows of the batch that it needs.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import numpy as np

from kcmoe.config.data import DataConfig
from kcmoe.data import labelled, splits
from kcmoe.data.features import Features, Lengths, Ragged, with_eos
from kcmoe.data.rows import CorpusRows, LabelledRows, MixedRows, Rows, RowSettings
from kcmoe.data.span_corruption import Noise
from kcmoe.data.token_cache import Source, TokenCache
from kcmoe.data.tokenizing import open_cache
from kcmoe.errors import UserError
from kcmoe.io import given
from kcmoe.tasks.registry import Mixture, Task
from kcmoe.vocabulary import Vocabulary

_log = logging.getLogger(__name__)
_CHECK_STEPS = 1000  # how often a running job looks whether its files are still the same
_BATCHES_AHEAD = 4


def default_cache_dir() -> str:
    """Below $KCMOE_CACHE_DIR, else below ~/.cache/kcmoe."""
    base = os.environ.get("KCMOE_CACHE_DIR") or "~/.cache/kcmoe"
    return os.path.join(given.path(base), "tokens")


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches of `batch_size` rows by step.

    Attributes:
      rows: the endless list of rows.
      batch_size: rows per step.
      first_row: row number of step 0; not 0 where the batch size changed on the way.
      seed: for `position`.
      part: which rows of each batch are made, int64 [b]; None for all.
    """

    rows: Rows
    batch_size: int
    seed: int
    first_row: int = 0
    part: np.ndarray | None = dataclasses.field(default=None, compare=False)

    @property
    def steps_per_epoch(self) -> float:
        """Steps after which every row has been seen once."""
        return self.rows.rows_per_epoch / self.batch_size

    def at(self, step: int) -> Features:
        """The batch of `step`, int32 [batch_size, length] each, or the rows `part` of it."""
        start = self.first_row + step * self.batch_size
        numbers = np.arange(start, start + self.batch_size)
        return self.rows.take(numbers if self.part is None else numbers[self.part])

    def only(self, rows: np.ndarray) -> Batches:
        """These batches, but of each only the rows with these numbers: what one of many hosts needs."""
        return dataclasses.replace(self, part=rows)

    def iterate(
        self, start_step: int = 0, stop_step: int | None = None, workers: int = 0
    ) -> Generator[Features, None, None]:
        """Yields the batches from `start_step` on, made ahead by `workers` processes (0: by a thread).

        A shard that vanishes or changes while this runs is reported; training goes on from the cache.
        """
        import grain

        steps = grain.MapDataset.source(_Steps(self, start_step, stop_step)).to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=_BATCHES_AHEAD)
        )
        if workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # Grain hands its absl flags to workers; we have none
                flags.FLAGS.mark_as_parsed()
            steps = steps.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=workers, per_worker_buffer_size=_BATCHES_AHEAD
                ),
                _start_worker,
            )
        iterator = iter(steps)
        warned: set[str] = set()
        try:
            for count, batch in enumerate(iterator):
                if count % _CHECK_STEPS == _CHECK_STEPS - 1:
                    for line in set(self.rows.changed_sources()) - warned:
                        _log.warning("%s since it was read; this run goes on from its cache", line)
                        warned.add(line)
                yield batch
        finally:
            iterator.close()  # ends the workers, also when the loop is left early

    def position(self, step: int) -> dict[str, Any]:
        """Where the data stands before `step`, for the checkpoint: plain JSON values."""
        row = self.first_row + step * self.batch_size
        return {
            "step": step,
            "row": row,
            "epoch": row / self.rows.rows_per_epoch,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "data": self.rows.fingerprint,
        }

    def resume(self, position: Mapping[str, Any]) -> Batches:
        """These batches, going on where `position` stands, also with another batch size.

        Raises:
          UserError: if the data, its order or the lengths are not those of the position.
        """
        if position["data"] != self.rows.fingerprint:
            changed = "; ".join(self.rows.changed_sources())
            raise UserError(
                f"the data is not what step {position['step']} was trained on (files, vocabulary, lengths, "
                f"PACK or RANDOM_SEED differ{': ' + changed if changed else ''}); go on with the same, or "
                "start a new MODEL_DIR from this checkpoint with INITIAL_CHECKPOINT_PATH"
            )
        first = int(position["row"]) - int(position["step"]) * self.batch_size
        return dataclasses.replace(self, first_row=first)


def _start_worker(index: int, count: int) -> None:
    """Prepares a worker: signals sent to the whole process group are left to the parent."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker with its parent; Grain's workers go on waiting for a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Steps:
    """Gives Grain the batch of any step."""

    def __init__(self, batches: Batches, start: int, stop: int | None):
        self._batches, self._start = batches, start
        self._stop = 1 << 40 if stop is None else stop

    def __len__(self) -> int:
        return max(self._stop - self._start, 0)

    def __getitem__(self, index: int) -> Features:
        return self._batches.at(self._start + int(index))


def train_batches(
    task: Task | Mixture,
    vocabulary: Vocabulary,
    lengths: Mapping[str, int] | Lengths,
    batch_size: int,
    seed: int,
    data: DataConfig,
) -> Batches:
    """Shuffled, endless batches of the train split of a task or mixture.

    Args:
      task: from `tasks.get_task`.
      vocabulary: turns text into ids.
      lengths: tokens of inputs and targets per row, EOS included.
      batch_size: rows per step.
      seed: decides order, packing and noise.
      data: where the files are, how they are read, whether rows are packed, and the noise.

    Raises:
      UserError: for anything about files, columns, labels or lengths that does not fit.
    """
    if batch_size < 1:
        raise UserError(f"BATCH_SIZE = {batch_size}, but it must be at least 1")
    sizes = Lengths.of(lengths)
    settings = RowSettings(sizes, seed, data.pack, noise=noise_of(data))

    def rows(one: Task) -> Rows:
        if one.kind == "span_corruption":
            cache = corpus(one, "train", vocabulary, data)
            return CorpusRows(one.name, cache, vocabulary, settings)
        labelled.check_answers(one, vocabulary, sizes.targets)
        inputs, targets = tokenize_examples(
            labelled.iter_examples(one, "train", data.data_dir, strict=data.strict),
            vocabulary,
            sizes,
        )
        if not inputs.lengths.size:
            raise UserError(labelled.no_rows(one, "train"))
        return LabelledRows(one.name, inputs, targets, settings)

    if isinstance(task, Mixture):
        parts = [(rows(one), weight) for one, weight in task.weights]
        return Batches(MixedRows(task.name, parts, seed), batch_size, seed)
    return Batches(rows(task), batch_size, seed)


def noise_of(data: DataConfig) -> Noise:
    """The noise of span corruption that the settings ask for."""
    return Noise(data.noise_density, data.mean_noise_span_length)


def corpus(task: Task, split: str, vocabulary: Vocabulary, data: DataConfig) -> TokenCache:
    """The tokens of one split of a span corruption task, tokenizing what is not in the cache."""
    source = Source(
        column=task.text_column,
        encoding=task.encoding,
        holdout=task.holdout if splits.is_divided(task, split) else 0.0,
        keep_held_out=split == "validation",
        strict=data.strict,
    )
    files = splits.split_files(task, split, data.data_dir)
    return open_cache(files, source, vocabulary, given.path(data.cache_dir or default_cache_dir()))


def tokenize_examples(
    examples: Iterator[labelled.Example], vocabulary: Vocabulary, lengths: Lengths
) -> tuple[Ragged, Ragged]:
    """Ids of inputs and targets, each with EOS and cut to `lengths`, with progress for large sets."""
    from tqdm import tqdm

    dtype = np.uint16 if vocabulary.size <= 1 << 16 else np.uint32
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    chunk: list[labelled.Example] = []

    def flush() -> None:
        texts = ([e.inputs_text for e in chunk], [e.target_text for e in chunk])
        for side, text, length in zip(sides, texts, (lengths.inputs, lengths.targets), strict=True):
            ids = vocabulary.encode_batch(text, os.cpu_count() or 1)
            side += [np.array(with_eos(i, length, vocabulary.eos_id), dtype) for i in ids]
        chunk.clear()

    for example in tqdm(
        examples, desc="tokenizing", unit="row", disable=None, leave=False, delay=2
    ):
        chunk.append(example)
        if len(chunk) == 4096:
            flush()
    flush()
    return Ragged.of(sides[0], dtype), Ragged.of(sides[1], dtype)


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """The batches of one evaluation split, in file order; the last one is filled up with empty rows.

    Attributes:
      examples: of a labelled task, row by row; () for span corruption.
      num_rows: real rows over all batches.
      batch_size: rows per batch.
    """

    examples: tuple[labelled.Example, ...]
    num_rows: int
    batch_size: int
    _make: Callable[[np.ndarray, int], Features]

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[Features]:
        for start in range(0, self.num_rows, self.batch_size):
            count = min(self.batch_size, self.num_rows - start)
            yield self._make(np.arange(start, start + count), self.batch_size)


def eval_batches(
    task: Task,
    split: str,
    vocabulary: Vocabulary,
    lengths: Mapping[str, int] | Lengths,
    batch_size: int,
    data: DataConfig,
    *,
    max_batches: int | None = None,
    spread: bool = False,
) -> EvalBatches:
    """Unshuffled, unpacked batches of a split, every example once; noise is the same every time.

    Empty rows of the last batch are all 0, their loss weights too. Arguments as in `train_batches`.
    With `max_batches` these are the first examples, with `spread` as many from all over the split: the
    first 1,280 held out of NSMC are 77 % positive, all of them 49 %.
    """
    sizes = Lengths.of(lengths)
    settings = RowSettings(sizes, shuffle=False, noise=noise_of(data))
    limit = max_batches * batch_size if max_batches else None
    if task.kind == "span_corruption":
        cache = corpus(task, split, vocabulary, data)
        segments = CorpusRows(task.name, cache, vocabulary, settings)
        count = min(segments.rows_per_epoch, limit or segments.rows_per_epoch)
        return EvalBatches((), count, batch_size, lambda r, size: _fill(segments.take(r), size))
    labelled.check_answers(task, vocabulary, sizes.targets)
    every = labelled.labelled_examples(task, split, data.data_dir, strict=data.strict)
    count = min(len(every), limit or len(every))
    examples = tuple(labelled.spread(every, count) if spread else every[:count])
    inputs, targets = tokenize_examples(iter(examples), vocabulary, sizes)
    rows = LabelledRows(task.name, inputs, targets, settings)
    return EvalBatches(
        examples, len(examples), batch_size, lambda r, size: rows.place(r, np.arange(r.size), size)
    )


def _fill(features: Features, size: int) -> Features:
    return {n: np.pad(x, ((0, size - x.shape[0]), (0, 0))) for n, x in features.items()}

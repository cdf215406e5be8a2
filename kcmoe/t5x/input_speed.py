# SPDX-License-Identifier: Apache-2.0
"""SeqIO's batches of one of our tasks, for `kcmoe bench data` to time beside the engine's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import seqio

from kcmoe.t5x import tasks as seqio_tasks
from kcmoe.tasks.registry import Mixture, Task


def batches(
    task: Task | Mixture,
    vocabulary_file: str | None,
    lengths: Mapping[str, int],
    batch_size: int,
    data_dir: str,
    pack: bool,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled training batches, as T5X would get them."""
    name = seqio_tasks.register(task, data_dir, vocabulary_file)
    dataset = seqio.get_dataset(
        name,
        task_feature_lengths=dict(lengths),
        dataset_split="train",
        shuffle=True,
        num_epochs=None,
        feature_converter=seqio.EncDecFeatureConverter(pack=pack),
        seed=0,
    )
    return dataset.batch(batch_size, drop_remainder=True).prefetch(2).as_numpy_iterator()

# SPDX-License-Identifier: Apache-2.0
"""Settings of the data of a run: where they are, how they are read, and the noise of pretraining."""

from __future__ import annotations

import dataclasses
import os

from kcmoe.config.fields import GinConfig, macro


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(GinConfig):
    """Where the data is, how it is read, and the noise of pretraining."""

    data_dir: str = macro("DATA_DIR", default="data", help="folder or bucket of the task's files")
    vocabulary_file: str | None = macro(
        "VOCABULARY_FILE", default=None, help="SentencePiece model; None is the shipped one"
    )
    vocabulary_sha256: str | None = macro(
        "VOCABULARY_SHA256", default=None, help="recorded in config.gin by `kcmoe train`, not set"
    )
    cache_dir: str | None = macro(
        "CACHE_DIR", default=None, help="where token ids are kept; None is the user's cache folder"
    )
    strict: bool = macro(
        "DATA_STRICT", default=True, help="stop at damaged data; False leaves it out and counts it"
    )
    pack: bool = macro("PACK", default=False, help="several examples to a row, with segment ids")
    noise_density: float = macro(
        "NOISE_DENSITY",
        above=0,
        below=1,
        default=0.15,
        help="share of the tokens that span corruption removes",
    )
    mean_noise_span_length: float = macro(
        "MEAN_NOISE_SPAN_LENGTH",
        least=1,
        most=1000,
        default=3.0,
        help="mean length of a removed span, in tokens",
    )
    workers: int | None = macro(
        "DATA_WORKERS",
        least=0,
        most=256,
        default=None,
        help="processes that make batches ahead; None chooses, 0 is a thread",
    )

    @property
    def num_workers(self) -> int:
        """DATA_WORKERS; unless said, a process of its own where there are cores to spare."""
        if self.workers is not None:
            return self.workers
        # One process makes several million tokens a second, more than one machine trains on.
        return 1 if (os.cpu_count() or 1) > 4 else 0

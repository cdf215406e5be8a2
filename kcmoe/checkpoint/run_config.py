# SPDX-License-Identifier: Apache-2.0
"""The `config.gin` beside a checkpoint: where it is, and which vocabulary the weights belong to."""

from __future__ import annotations

import os

from kcmoe import gin_files
from kcmoe.errors import UserError
from kcmoe.vocabulary import Vocabulary

CONFIG_FILE = "config.gin"
DIGEST = "VOCABULARY_SHA256"  # macro under which the engine records the vocabulary of a run


def find_config(checkpoint: str) -> str | None:
    """`config.gin` in the folder of the checkpoint or the one above it, None if there is none."""
    if "://" in checkpoint:
        return f"{os.path.dirname(checkpoint)}/{CONFIG_FILE}"
    folder = os.path.abspath(checkpoint)
    for place in (folder, os.path.dirname(folder)):
        if os.path.isfile(os.path.join(place, CONFIG_FILE)):
            return os.path.join(place, CONFIG_FILE)
    return None


def check_vocabulary(checkpoint: str, vocabulary: Vocabulary) -> None:
    """Compares `vocabulary` with the one the checkpoint was trained with, as far as that can be known.

    The engine records a digest; T5X's config.gin names a file, which is read if it is there.

    Raises:
      UserError: if they differ. Every row of the embedding would stand for another piece.
    """
    config = find_config(checkpoint)
    if config is None:
        return
    try:
        macros = gin_files.parse([config], foreign=True)
        digest, name = macros.get(DIGEST), macros.get("VOCABULARY_FILE")
        digest = str(digest) if digest else Vocabulary(name).digest
    except UserError:
        return  # nothing there, or nothing that can be read from here
    if digest != vocabulary.digest:
        raise UserError(
            f"{checkpoint} was trained with the vocabulary {name or 'that was shipped then'} (sha256 "
            f"{digest[:12]}…), not with {vocabulary.path} ({vocabulary.digest[:12]}…); set "
            "VOCABULARY_FILE to the former"
        )

# SPDX-License-Identifier: Apache-2.0
"""Label words as a tree of their beginnings, so that what several share is computed once. NumPy alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class LabelTree:
    """The beginnings of K labels, each after its own beginnings.

    Attributes:
      ids: int32[P], the last id of each beginning; 0 for the empty one, which is the first.
      depths: int32[P], ids of each beginning.
      within: bool[P, P], whether the column's beginning is one of the row's, or the row's itself.
      nodes: int32[K, J], per label the beginning before each of its ids.
      targets: int32[K, J], its ids, then 0.
    """

    ids: np.ndarray
    depths: np.ndarray
    within: np.ndarray
    nodes: np.ndarray
    targets: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """As `score.label_log_likelihoods` takes them."""
        return self.ids, self.depths, self.within, self.nodes, self.targets

    @classmethod
    def of(cls, labels: Sequence[Sequence[int]]) -> LabelTree:
        """The tree of labels, each with end of sequence.

        Zeros behind a label count for nothing; where there are any, the tree gets the size that labels of
        these lengths could have at most, so that others of these lengths are computed by the same program.
        """
        words = [tuple(np.trim_zeros(np.asarray(label), "b").tolist()) for label in labels]
        places: dict[tuple[int, ...], int] = {(): 0}
        for word in words:
            for end in range(1, len(word)):
                places.setdefault(word[:end], len(places))
        longest = max(map(len, labels))
        filled = any(len(word) < len(label) for word, label in zip(words, labels, strict=True))
        most = 1 + sum(len(label) - 1 for label in labels)
        size = max(len(places), most) if filled else len(places)
        tree = cls(
            ids=np.zeros(size, np.int32),
            depths=np.zeros(size, np.int32),
            within=np.eye(size, dtype=bool),
            nodes=np.zeros((len(labels), longest), np.int32),
            targets=np.zeros((len(labels), longest), np.int32),
        )
        for beginning, place in places.items():
            tree.ids[place] = beginning[-1] if beginning else 0
            tree.depths[place] = len(beginning)
            for end in range(len(beginning)):
                tree.within[place, places[beginning[:end]]] = True
        for row, word in enumerate(words):
            tree.targets[row, : len(word)] = word
            tree.nodes[row, : len(word)] = [places[word[:end]] for end in range(len(word))]
        return tree

# SPDX-License-Identifier: Apache-2.0
"""Labels as a tree: each beginning once, each seeing its own beginnings only."""

from __future__ import annotations

from kcmoe.inference.labels import LabelTree


def test_what_labels_share_stands_once() -> None:
    tree = LabelTree.of([[5, 9, 1], [5, 8, 1], [7, 1]])
    # "", 5, 5 9, 5 8, 7
    assert tree.ids.tolist() == [0, 5, 9, 8, 7]
    assert tree.depths.tolist() == [0, 1, 2, 2, 1]
    assert tree.within.astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 0, 0, 0, 1],
    ]
    assert tree.nodes.tolist() == [[0, 1, 2], [0, 1, 3], [0, 4, 0]]
    assert tree.targets.tolist() == [[5, 9, 1], [5, 8, 1], [7, 1, 0]]


def test_labels_filled_to_one_length_have_trees_of_one_size() -> None:
    sizes = {
        tuple(array.shape for array in LabelTree.of(labels).arrays)
        for labels in ([[5, 1, 0], [7, 1, 0]], [[5, 9, 1], [7, 1, 0]], [[5, 9, 1], [5, 1, 0]])
    }
    assert len(sizes) == 1

# SPDX-License-Identifier: Apache-2.0
"""The model's sizes, read off the shapes of its parameters, under the macro names of the gin files.

Used to say in words how two trees differ, and to record the sizes with a converted checkpoint. What no
shape tells (how many experts a token takes, capacity factors) is not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from kcmoe.checkpoint.leaves import PARAMETER_PREFIX, ShapeDtype

_LAYER = re.compile(r"target/(encoder|decoder)/layers_(\d+)/(mlp/(?:router|expert)/)?")


def sizes_of(tree: Mapping[str, ShapeDtype]) -> dict[str, int]:
    """Returns macro name -> size for all that the tree tells; {} for a tree of another model."""
    sizes: dict[str, int] = {}
    for stack in ("encoder", "decoder"):
        layers, sparse = set(), set()
        for found in filter(None, map(_LAYER.match, tree)):
            if found[1] == stack:
                layers.add(found[2])
                if found[3]:
                    sparse.add(found[2])
        if layers:
            sizes[f"NUM_{stack.upper()}_LAYERS"] = len(layers)
            sizes[f"NUM_{stack.upper()}_SPARSE_LAYERS"] = len(sparse)
    sizes.update(_dimensions(tree))
    return sizes


def _dimensions(tree: Mapping[str, ShapeDtype]) -> dict[str, int]:
    found: dict[str, int] = {}
    for path, leaf in tree.items():
        if not path.startswith(PARAMETER_PREFIX):
            continue
        if path.endswith("token_embedder/embedding") and len(leaf.shape) == 2:
            found["NUM_EMBEDDINGS"], found["EMBED_DIM"] = leaf.shape
        elif path.endswith("relpos_bias/rel_embedding") and len(leaf.shape) == 2:
            found["NUM_HEADS"] = leaf.shape[0]
        elif path.endswith("attention/query/kernel") and len(leaf.shape) == 2:
            found["joined"] = leaf.shape[1]
        elif path.endswith("mlp/expert/wi_0/kernel") and len(leaf.shape) == 3:
            found["NUM_EXPERTS"], _, found["EXPERT_MLP_DIM"] = leaf.shape
        elif path.endswith("mlp/wi_0/kernel") and len(leaf.shape) == 2:
            found["MLP_DIM"] = leaf.shape[1]
    joined = found.pop("joined", None)
    if joined and found.get("NUM_HEADS"):
        found["HEAD_DIM"] = joined // found["NUM_HEADS"]
    return found


def explain_difference(here: Mapping[str, ShapeDtype], wanted: Mapping[str, ShapeDtype]) -> str:
    """Returns " (another size: EMBED_DIM 32 here, 128 expected)", or "" if the sizes agree."""
    theirs, ours = sizes_of(here), sizes_of(wanted)
    names = [name for name in ours if name in theirs and theirs[name] != ours[name]]
    if not names:
        return ""
    listed = ", ".join(f"{name} {theirs[name]} here, {ours[name]} expected" for name in names)
    return f" (another size: {listed}; take the gin file of that checkpoint's size)"

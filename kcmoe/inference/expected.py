# SPDX-License-Identifier: Apache-2.0
"""Which parameters a model has: asked of the model once, and kept on disk, as asking takes JAX and Flax."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from kcmoe.config.model import ModelConfig
from kcmoe.inference.surroundings import surroundings
from kcmoe.io.kept import Kept
from kcmoe.tree import ShapeDtype, shape_dtype


def param_shapes(config: ModelConfig, kept: Kept) -> dict[str, ShapeDtype]:
    """`interface.param_shapes` of the model: path -> shape and dtype."""
    facts = {"what": "parameters", "model": dataclasses.asdict(config), **surroundings()}
    found = kept.find(facts)
    if found is not None:
        return {
            path: ShapeDtype(tuple(shape), np.dtype(dtype))
            for path, (shape, dtype) in json.loads(found).items()
        }
    from kcmoe.model import interface

    shapes = {path: shape_dtype(leaf) for path, leaf in interface.param_shapes(config).items()}
    rows = {path: ([*leaf.shape], leaf.dtype.name) for path, leaf in shapes.items()}
    kept.keep(facts, json.dumps(rows).encode())
    return shapes

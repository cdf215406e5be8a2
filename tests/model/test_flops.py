# SPDX-License-Identifier: Apache-2.0
"""The FLOP formula against hand arithmetic and against what XLA counts."""

from __future__ import annotations

from collections.abc import Callable

import jax
import pytest

from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.model import flops
from kcmoe.model.interface import param_shapes


def config(size: str, **changes: object) -> ModelConfig:
    files = ["configs/engine/engine.gin", f"configs/sizes/{size}.gin"]
    return ModelConfig.from_macros(
        gin_files.parse(files, [f"{k} = {v!r}" for k, v in changes.items()])
    )


def test_published_size_by_hand() -> None:
    base = config("base")
    d, f, x = 768, 2048, 1.25
    mlp, moe = 6 * d * f, 2 * d * 16 + x * 6 * d * f
    s, t = 512, 114
    encoder = s * (12 * 8 * d * d + 12 * mlp + 3 * moe) + 12 * 4 * s * s * d
    self_attention = t * 8 * d * d + 4 * t * t * d
    cross_attention = (t + s) * 4 * d * d + 4 * t * s * d
    decoder = 12 * (self_attention + cross_attention) + t * (12 * mlp + 3 * moe)
    head = t * 2 * d * 32128
    expected = 256 * (encoder + decoder + head)
    assert flops.forward_flops(base, 256, s, t) == pytest.approx(expected, rel=1e-12)
    assert flops.train_step_flops(base, 256, s, t) == pytest.approx(3 * expected, rel=1e-12)


def test_capacity_bounds_what_experts_do() -> None:
    assert flops.expert_slots_per_token(config("base"), train=True) == 1.25
    assert flops.expert_slots_per_token(config("base"), train=False) == 2.0
    assert flops.expert_slots_per_token(config("base", ROUTING="dropless"), train=True) == 2.0
    roomy = config("base", TRAIN_EXPERT_CAPACITY_FACTOR=5.0)
    assert flops.expert_slots_per_token(roomy, train=True) == 2.0


def test_dense_forward_pass_is_what_xla_counts() -> None:
    from kcmoe.model.encoder_decoder import EncoderDecoder
    from kcmoe.tree import nested

    dense = config("tiny_dense", NUM_EMBEDDINGS=512)
    model = EncoderDecoder(dense)
    shapes = nested(param_shapes(dense))
    ids = {n: jax.ShapeDtypeStruct((4, n), "int32") for n in (64, 32)}
    lowered = jax.jit(lambda p, a, b: model.apply({"params": p}, a, b, b)).lower(
        shapes, ids[64], ids[32]
    )
    counted = lowered.cost_analysis()["flops"]
    ours = flops.forward_flops(dense, 4, 64, 32)
    assert ours == pytest.approx(counted, rel=0.1)  # XLA also counts softmax, norms and GELU
    assert ours < counted


def test_parameters_in_all_and_per_token(toy: Callable[..., ModelConfig]) -> None:
    base = config("base")
    total, active = flops.parameter_counts(base, param_shapes(base))
    assert total == 700_641_024
    assert active == 700_641_024 - 6 * 14 * 3 * 768 * 2048
    small = toy()  # experts in one encoder and one decoder layer
    total, active = flops.parameter_counts(small, param_shapes(small))
    assert total - active == 2 * 2 * 3 * 16 * 24

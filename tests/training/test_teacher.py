# SPDX-License-Identifier: Apache-2.0
"""TEACHER: the loss is the one of distillation, and a student comes nearer to its teacher by it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcmoe.errors import UserError
from kcmoe.training import losses
from kcmoe.training import state as states
from kcmoe.training.loop import train
from kcmoe.training.teacher import likeliest, open_teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model, trained a little, of other sizes than the student."""
    from tests.training import conftest as toy

    folder = tmp_path_factory.mktemp("teacher")
    train(toy.settings(folder, MLP_DIM=48, TRAIN_STEPS=12), toy.inputs(), say=lambda line: None)
    return folder / "checkpoint_12"


@pytest.mark.parametrize("chunk", [4, 2048])
def test_the_difference_of_the_two_cross_entropies(monkeypatch, chunk: int) -> None:
    """With all pieces, against log-softmax written down plainly; gradients too."""
    monkeypatch.setattr(losses, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(11, 5)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(5, 13)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 13, 11), jnp.int32)
    weights = jnp.asarray(rng.integers(0, 2, 11) / 7, jnp.float32)
    ids, probs = likeliest(hidden + 1.0, kernel, 13)
    assert (jnp.diff(probs, axis=1) <= 0).all()

    def ours(h, k):
        return losses.towards_teacher(h, k, targets, weights, ids, probs)

    def plain(h, k):
        logs = jax.nn.log_softmax(h @ k)
        soft = jax.nn.softmax((hidden + 1.0) @ kernel)
        hard = jax.nn.one_hot(targets, 13)
        return jnp.sum(weights * jnp.sum((hard - soft) * logs, axis=-1))

    np.testing.assert_allclose(ours(hidden, kernel), plain(hidden, kernel), rtol=1e-5)
    got, expected = (jax.grad(f, (0, 1))(hidden, kernel) for f in (ours, plain))
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_student_comes_nearer_to_its_teacher(
    toy: ModuleType, tmp_path: Path, teacher: Path
) -> None:
    """Both runs start alike; only the one with a teacher is told that model's probabilities."""
    changes = {"TRAIN_STEPS": 12, "NUM_ENCODER_SPARSE_LAYERS": 0, "NUM_DECODER_SPARSE_LAYERS": 0}
    taught = toy.settings(
        tmp_path / "taught",
        **changes,
        TEACHER=str(teacher),
        TEACHER_WEIGHT=1.0,
        TEACHER_TOP=64,
        NUM_MICROBATCHES=2,
    )
    said: list[str] = []
    ended = train(taught, toy.inputs(), say=said.append)
    records = toy.records(tmp_path / "taught")
    soft = [record["teacher_cross_ent_loss"] for record in records]
    assert soft[-1] < soft[0]
    assert "64 likeliest pieces of each position count 100% of the loss" in " ".join(said)
    alone = train(
        toy.settings(tmp_path / "alone", **changes, NUM_MICROBATCHES=2),
        toy.inputs(),
        say=lambda line: None,
    )

    from kcmoe.model.encoder_decoder import EncoderDecoder
    from kcmoe.model.interface import features
    from kcmoe.training import sharding
    from kcmoe.tree import nested

    mesh = sharding.make_mesh(taught.model, 1)
    model = open_teacher(taught.macros, taught.model, None, mesh)
    batch = {name: jnp.asarray(x) for name, x in toy.inputs().held_out[0].items()}

    def probabilities(config, params):
        logits = EncoderDecoder(config).apply({"params": nested(params)}, **features(batch))
        return jax.nn.log_softmax(logits.astype(jnp.float32))

    goal = probabilities(model.config, model.params)

    def distance(run):
        given = probabilities(taught.model, states.for_use(run.state))
        return float(jnp.mean(jnp.sum(jnp.exp(goal) * (goal - given), axis=-1)))

    assert distance(ended) < 0.9 * distance(alone)


@pytest.mark.slow
def test_without_a_share_of_its_own_it_changes_nothing(
    toy: ModuleType, tmp_path: Path, teacher: Path
) -> None:
    """A teacher's share of 0 is no setting, but the limit of one: the targets' loss is reported as before."""
    once = {"TRAIN_STEPS": 1}
    train(toy.settings(tmp_path / "a", **once), toy.inputs(), say=lambda line: None)
    changed = toy.settings(tmp_path / "b", **once, TEACHER=str(teacher), TEACHER_WEIGHT=0.25)
    train(changed, toy.inputs(), say=lambda line: None)
    (plain,), (taught,) = (toy.records(tmp_path / name) for name in "ab")
    np.testing.assert_allclose(taught["cross_ent_loss"], plain["cross_ent_loss"], rtol=1e-6)
    excess = taught["teacher_cross_ent_loss"] - taught["cross_ent_loss"]
    np.testing.assert_allclose(taught["loss"], plain["loss"] + 0.25 * excess, rtol=1e-5)


def test_what_cannot_teach_is_refused(toy: ModuleType, tmp_path: Path, teacher: Path) -> None:
    def run(**changes: object) -> None:
        train(toy.settings(tmp_path / "run", **changes), toy.inputs(), say=lambda line: None)

    with pytest.raises(UserError, match=r"another vocabulary|same vocabulary"):
        run(TEACHER=str(teacher), NUM_EMBEDDINGS=80)
    with pytest.raises(UserError, match=r"there is no checkpoint .*nobody"):
        run(TEACHER=str(tmp_path / "nobody"))
    with pytest.raises(UserError, match="two ways to soften"):
        run(TEACHER=str(teacher), LABEL_SMOOTHING=0.1)
    with pytest.raises(UserError, match="TEACHER_TOP = 65"):
        run(TEACHER=str(teacher), TEACHER_TOP=65)
    assert not (tmp_path / "run").exists()

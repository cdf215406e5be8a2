# SPDX-License-Identifier: Apache-2.0
"""The exported model computes what ours computes: logits, routers, losses, gradients; padded, in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from kcmoe.checkpoint.huggingface import names
from kcmoe.config.training import LossConfig
from kcmoe.inference.predict import LanguageModel
from kcmoe.training.losses import loss_and_metrics
from kcmoe.tree import nested

pytestmark = pytest.mark.huggingface

LENGTHS = [(17, 6), (9, 11), (23, 2), (5, 9), (1, 1)]  # inputs and targets, EOS included


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """T5X's features of five padded examples; the longest target fills its row in none of them."""
    rng = np.random.default_rng(2)
    inputs = np.zeros((len(LENGTHS), 24), np.int32)
    targets = np.zeros((len(LENGTHS), 12), np.int32)
    for row, (source, target) in enumerate(LENGTHS):
        inputs[row, :source] = [*rng.integers(3, 32_000, source - 1), 1]
        targets[row, :target] = [*rng.integers(3, 32_000, target - 1), 1]
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": targets,
    }


def load(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


def arguments(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    import torch

    inputs = torch.tensor(batch["encoder_input_tokens"], dtype=torch.long)
    labels = torch.tensor(batch["decoder_target_tokens"], dtype=torch.long)
    labels[labels == 0] = -100
    return {"input_ids": inputs, "attention_mask": (inputs != 0).long(), "labels": labels}


def our_logits(lm: LanguageModel, batch: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(lm.model.apply({"params": nested(lm.loaded.params)}, **batch))


@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm", "eager"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("known_targets", [True, False])
def test_logits_are_ours(
    sparse: Path, ours: LanguageModel, batch: Any, experts: str, attention: str, known_targets: bool
) -> None:
    import torch

    model = load(sparse, experts_implementation=experts, attn_implementation=attention)
    assert model.config._experts_implementation == experts
    given = arguments(batch)
    if not known_targets:
        del given["labels"]
        given["decoder_input_ids"] = torch.tensor(batch["decoder_input_tokens"], dtype=torch.long)
    with torch.no_grad():
        theirs = model(**given).logits.numpy()
    expected = our_logits(ours, batch)
    real = batch["decoder_target_tokens"] != 0
    assert np.abs(theirs - expected)[real].max() <= 1e-5 * np.abs(expected[real]).max()


def test_routers_choose_as_ours(sparse: Path, ours: LanguageModel, batch: Any) -> None:
    """Also at padding, which both send to the first experts."""
    import torch

    with torch.no_grad():
        found = load(sparse)(**arguments(batch), output_router_logits=True)
    _, sown = ours.model.apply(
        {"params": nested(ours.loaded.params)}, **batch, mutable=["intermediates"]
    )
    stacks = {"encoder": found.encoder_router_logits, "decoder": found.decoder_router_logits}
    for stack, layers in stacks.items():
        sparse_layers = ours.loaded.config.sparse_layers(stack)
        assert len(layers) == len(sparse_layers)
        for number, logits in zip(sparse_layers, layers, strict=True):
            report = sown["intermediates"][stack][f"layers_{number}"]["mlp"]
            assert logits.shape[:2] == batch[f"{stack}_input_tokens"].shape
            order = np.argsort(-torch.softmax(logits, -1).numpy(), axis=-1, kind="stable")[..., :2]
            share = np.bincount(order.reshape(-1), minlength=4) / order.size
            np.testing.assert_allclose(share, np.asarray(report["expert_load"]), atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_loss_and_gradients_are_ours(
    sparse: Path, ours: LanguageModel, batch: Any, attention: str, checkpointing: bool
) -> None:
    """Targets are padded too, whose first position behind the end counts in the routers' losses."""
    model = load(sparse, attn_implementation=attention).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    found = model(**arguments(batch))
    found.loss.backward()
    config = LossConfig.from_macros(ours.loaded.macros)

    def loss(params: Any) -> Any:
        return loss_and_metrics(ours.model, params, batch, config, None)

    (expected, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(ours.loaded.params)
    assert found.loss.item() == pytest.approx(float(expected), rel=1e-6)
    balance = (2 * found.encoder_aux_loss.item() + found.decoder_aux_loss.item()) / 3
    assert 0.01 * balance == pytest.approx(float(metrics["experts/auxiliary_loss"]), rel=1e-5)
    z = (2 * found.encoder_z_loss.item() + found.decoder_z_loss.item()) / 3
    assert 1e-4 * z == pytest.approx(float(metrics["experts/router_z_loss"]), rel=1e-5)
    theirs = {name: value.grad.numpy() for name, value in model.named_parameters()}
    for name, value in gradients.items():
        place = names.place(name)
        gradient = theirs[place.tensor]
        if place.half is not None:
            gradient = np.split(gradient, 2, axis=1)[place.half]
        expected_gradient = np.asarray(value)
        if place.transposed:
            expected_gradient = expected_gradient.swapaxes(-1, -2)
        difference = np.abs(gradient - expected_gradient).max()
        assert difference <= 1e-4 * np.abs(expected_gradient).max(), name


def test_without_router_logits_the_loss_is_cross_entropy(sparse: Path, batch: Any) -> None:
    import torch

    model, given = load(sparse), arguments(batch)
    with torch.no_grad():
        plain = model(**given, output_router_logits=False)
        full = model(**given)
    entropy = torch.nn.functional.cross_entropy(
        plain.logits.flatten(0, 1), given["labels"].flatten()
    )
    assert float(plain.loss) == pytest.approx(float(entropy), rel=1e-6)
    assert plain.encoder_router_logits is None
    assert float(full.loss) > float(plain.loss)


def test_bfloat16_is_ours_within_its_rounding(
    sparse: Path, sparse_checkpoint: Path, batch: Any
) -> None:
    import torch

    model = load(sparse, dtype=torch.bfloat16)
    kept = {name for name, value in model.named_parameters() if value.dtype == torch.float32}
    assert {name.split(".")[-2] for name in kept} == {"router", "lm_head"}
    lower = LanguageModel.load(
        sparse_checkpoint, ACTIVATION_DTYPE="bfloat16", MOE_TRUNCATED_DTYPE="bfloat16"
    )
    with torch.no_grad():
        theirs = model(**arguments(batch)).logits
    assert theirs.dtype == torch.float32
    real = batch["decoder_target_tokens"] != 0
    expected = our_logits(lower, batch)[real]
    scale = np.abs(expected).max()
    exact = our_logits(LanguageModel.load(sparse_checkpoint), batch)[real]
    rounding = np.abs(expected - exact).mean()
    assert np.abs(theirs.numpy()[real] - exact).mean() < 1.5 * rounding
    assert np.abs(theirs.numpy()[real] - expected).mean() < 0.01 * scale


def test_float64_runs_where_experts_are_grouped(sparse: Path) -> None:
    """torch has no grouped products of float64, but would take them for these sizes."""
    import torch

    ids = torch.tensor([[5, 6, 7, 1]])
    logits = {}
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            found = load(sparse, dtype=dtype)(input_ids=ids, decoder_input_ids=ids * 0)
        logits[dtype] = found.logits.double().numpy()
    np.testing.assert_allclose(*logits.values(), atol=1e-5 * np.abs(logits[torch.float64]).max())


def test_capacity_routing_by_argument_is_refused(sparse: Path) -> None:
    with pytest.raises(ValueError, match="routing is 'capacity', but Kc-MoE models are 'dropless'"):
        load(sparse, routing="capacity")


def test_dense_twin_is_plain_t5(dense: Path, ours_dense: LanguageModel, batch: Any) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

    model = AutoModelForSeq2SeqLM.from_pretrained(dense).eval()
    assert type(model) is T5ForConditionalGeneration
    assert not list(dense.glob("*.py"))
    with torch.no_grad():
        theirs = model(**arguments(batch)).logits.numpy()
    expected = our_logits(ours_dense, batch)
    real = batch["decoder_target_tokens"] != 0
    assert np.abs(theirs - expected)[real].max() <= 1e-5 * np.abs(expected[real]).max()


def test_encoder_alone_is_the_encoder(sparse: Path, ours: LanguageModel, batch: Any) -> None:
    import torch
    from transformers import AutoModel, AutoModelForTextEncoding

    given = arguments(batch)
    del given["labels"]
    expected = np.asarray(
        ours.model.apply(
            {"params": nested(ours.loaded.params)}, batch["encoder_input_tokens"], method="encode"
        )
    )
    encoder = AutoModelForTextEncoding.from_pretrained(sparse, trust_remote_code=True).eval()
    with torch.no_grad():
        found = encoder(**given).last_hidden_state.numpy()
        both = AutoModel.from_pretrained(sparse, trust_remote_code=True).eval()
        hidden = both(**given, decoder_input_ids=given["input_ids"][:, :3])
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(hidden.encoder_last_hidden_state.numpy(), found, rtol=1e-6)

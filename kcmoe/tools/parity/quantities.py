# SPDX-License-Identifier: Apache-2.0
"""What this engine computes for a reference case, under the names the case uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kcmoe.inference.decode import beam_search
from kcmoe.inference.score import target_log_likelihoods
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.tools.parity.case import Arrays, Case
from kcmoe.training import adafactor
from kcmoe.training.losses import features, loss_and_metrics
from kcmoe.training.state import TrainState, to_flat
from kcmoe.tree import nested

# Flaxformer's sown metrics; ours besides these have no counterpart there.
ROUTER_METRICS = (
    "auxiliary_loss",
    "router_z_loss",
    "fraction_tokens_left_behind",
    "router_confidence",
    "expert_usage",
)
UNPACKED = (
    "encoder_input_tokens",
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_loss_weights",
)
BEAM_SIZES = (1, 4)


def outputs(case: Case) -> Arrays:
    """Everything `outputs.npz` of the case holds, computed here."""
    return {name: np.asarray(value) for name, value in _outputs(case).items()}


def output_names(case: Case) -> list[str]:
    """The names of `outputs`, without computing anything."""
    return list(jax.eval_shape(lambda: _outputs(case)))


def _outputs(case: Case) -> dict[str, Any]:
    model = EncoderDecoder(case.model)
    params = {path: jnp.asarray(value) for path, value in case.params.items()}
    batch = {name: jnp.asarray(value) for name, value in case.batches[0].items()}
    dropout_key = jax.random.key(0)

    train_loss = jax.jit(
        jax.value_and_grad(
            lambda p: loss_and_metrics(model, p, batch, case.loss, dropout_key), has_aux=True
        )
    )
    (loss, metrics), grads = train_loss(params)
    eval_loss, _ = jax.jit(lambda p: loss_and_metrics(model, p, batch, case.loss, None))(params)
    variables = {"params": nested(params)}
    logits_train = jax.jit(
        lambda v: model.apply(
            v, **features(batch), enable_dropout=True, rngs={"dropout": dropout_key}
        )
    )(variables)
    logits_eval = jax.jit(lambda v: model.apply(v, **features(batch)))(variables)

    result: dict[str, Any] = {
        "logits_train": logits_train,
        "logits_eval": logits_eval,
        "loss": loss,
        "eval_loss": eval_loss,
        "scores": target_log_likelihoods(model, params, {name: batch[name] for name in UNPACKED}),
    }
    for path, value in metrics.items():
        if path.startswith("router/") and path.rsplit("/", 1)[-1] in ROUTER_METRICS:
            result[f"intermediates/{path.removeprefix('router/')}"] = value.reshape(1, 1)
    result |= {f"metrics/{name}": value for name, value in t5x_metrics(metrics, batch).items()}
    result |= {f"grads/{path}": grad for path, grad in grads.items()}
    for beams in BEAM_SIZES:
        tokens, scores = beam_search(
            model,
            params,
            batch["encoder_input_tokens"],
            max_decode_len=batch["decoder_input_tokens"].shape[1],
            beam_size=beams,
        )
        result |= {f"decode{beams}/tokens": tokens, f"decode{beams}/scores": scores}
    return result


def t5x_metrics(metrics: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    """Our metrics as the accumulators T5X reports (t5x@cc342d4:t5x/models.py::compute_base_metrics)."""
    sequences, tokens = batch["decoder_target_tokens"].shape[0], batch["decoder_target_tokens"].size
    per_step = {
        name: metrics[name]
        for name in metrics
        if name in ("loss", "z_loss", "cross_ent_loss") or name.startswith("experts/")
    }
    result: dict[str, Any] = {}
    for name, value in per_step.items():
        result |= {f"{name}/total": value, f"{name}/steps": 1}
    for name in ("loss", "z_loss", "cross_ent_loss"):
        result |= {
            f"{name}_per_all_target_tokens/total": metrics[name],
            f"{name}_per_all_target_tokens/count": tokens,
        }
    devices = 1  # a case is computed on one device
    return result | {
        "accuracy/total": metrics["correct"],
        "accuracy/count": metrics["weights"],
        "loss_per_nonpadding_target_token/total": metrics["loss"],
        "loss_per_nonpadding_target_token/count": metrics["weights"],
        "non_padding_fraction/loss_weights/total": metrics["weights"],
        "non_padding_fraction/loss_weights/count": tokens,
        "timing/seqs/total": sequences,
        "timing/seqs_per_second/numerator": sequences,
        "timing/seqs_per_second_per_core/numerator": sequences / devices,
        "timing/steps_per_second/steps": 1,
        "timing/target_tokens_per_second/numerator": tokens,
        "timing/target_tokens_per_second_per_core/numerator": tokens / devices,
    }


def trajectory(case: Case) -> tuple[list[float], Arrays]:
    """Losses of each step, and the state after the last in T5X's flat paths."""
    model = EncoderDecoder(case.model)
    dropout_key = jax.random.key(0)

    @jax.jit
    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, jax.Array]:
        (loss, _), grads = jax.value_and_grad(
            lambda p: loss_and_metrics(model, p, batch, case.loss, dropout_key), has_aux=True
        )(state.params)
        params, param_states = adafactor.update(
            state.params,
            state.param_states,
            grads,
            state.step,
            jnp.asarray(case.learning_rate, jnp.float32),
            case.adafactor,
        )
        return TrainState(state.step + 1, params, param_states), loss

    params = {path: jnp.asarray(value) for path, value in case.params.items()}
    state = TrainState(jnp.zeros((), jnp.int32), params, adafactor.init(params))
    losses = []
    for batch in case.batches:
        state, loss = step(state, {name: jnp.asarray(value) for name, value in batch.items()})
        losses.append(float(loss))
    return losses, {path: np.asarray(leaf) for path, leaf in to_flat(state).items()}

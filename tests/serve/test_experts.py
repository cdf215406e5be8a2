# SPDX-License-Identifier: Apache-2.0
"""The map of experts against the model itself, and that it needs no JAX once its programs are kept."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from kcmoe.inference.predict import LanguageModel
from kcmoe.model import routing
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.model.router_logits import by_row, caught
from kcmoe.serve import experts

TEXT = [7, 9, 11, 13, 15, 1]
BESIDE = [[*range(5, 25)], [*range(30, 45)], [21] * 16]
LENGTH = 16


def test_the_map_is_what_the_model_computes(model: LanguageModel) -> None:
    found = experts.text_map(model, TEXT, LENGTH, BESIDE)
    alone = np.zeros((1, LENGTH), np.int32)
    alone[0, : len(TEXT)] = TEXT
    params, config = model.loaded.params, model.loaded.config
    logits = [*caught(model.model, params, jnp.asarray(alone), method="encode").values()]
    for layer, expected in enumerate(logits):
        rows = np.asarray(by_row(config, alone.shape, expected))[0, : len(TEXT)]
        chosen = np.argsort(-rows, axis=-1, kind="stable")[:, :2]
        assert np.array_equal(found["chosen"][layer], chosen)
        probs = np.exp(rows) / np.exp(rows).sum(axis=-1, keepdims=True)
        weights = np.take_along_axis(probs, chosen, axis=-1)
        np.testing.assert_allclose(found["weights"][layer], weights, rtol=1e-5)
    whole = np.zeros((4, LENGTH), np.int32)
    for row, one in enumerate([*BESIDE, TEXT]):
        whole[row, : min(len(one), LENGTH)] = one[:LENGTH]
    limited = EncoderDecoder(dataclasses.replace(config, routing="capacity"))
    grouped = [*caught(limited, params, jnp.asarray(whole), method="encode").values()]
    groups, tokens, _ = grouped[0].shape
    room = routing.expert_capacity(config.eval_expert_capacity_factor, tokens, config.num_experts)
    about = found["capacity"]
    assert (about["groups"], about["tokens_per_group"], about["places_per_expert"]) == (
        groups, tokens, room,
    )  # fmt: skip
    for layer, expected in enumerate(grouped):
        places = by_row(config, whole.shape, np.asarray(routing.route(expected, 2).place_GxTxA))
        assert np.array_equal(found["dropped"][layer], places[-1, : len(TEXT)] >= room)
    assert found["dropped"].any()


def test_choices_are_those_of_the_map(model: LanguageModel) -> None:
    ids = np.zeros((2, LENGTH), np.int32)
    ids[0, : len(TEXT)] = TEXT
    ids[1] = BESIDE[0][:LENGTH]
    found = experts.choices(model, ids)
    assert found[0].shape == (2, LENGTH, 2)
    alone = experts.text_map(model, TEXT, LENGTH, BESIDE)["chosen"]
    assert np.array_equal(found[0][:, : len(TEXT)], alone)


def test_the_second_process_draws_the_map_without_jax(model_dir: Path) -> None:
    code = (
        "import sys; import kcmoe; from kcmoe.serve import experts; "
        f"lm = kcmoe.load({str(model_dir)!r}); "
        f"print(experts.text_map(lm, {TEXT}, {LENGTH}, {BESIDE})['chosen'].tolist()); "
        "print('jax' in sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    first, second = (run.stdout.splitlines() for run in runs)
    assert first[0] == second[0]
    assert second[1] == "False"

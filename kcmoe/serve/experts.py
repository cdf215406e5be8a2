# SPDX-License-Identifier: Apache-2.0
"""Which experts the encoder's routers choose, token by token, and what capacity routing would drop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from kcmoe.inference.compute import fetched
from kcmoe.inference.predict import LanguageModel

_SEEN_OFTEN = 8  # a piece met less often says nothing about an expert
_TOP = 12


def choices(lm: LanguageModel, ids: np.ndarray) -> list[np.ndarray]:
    """The experts chosen in each row of `ids` [B, S]: int32 [layers, S, A], best first."""
    logits = _logits(lm, ids).swapaxes(0, 1)
    return list(_best(lm, logits))


def _logits(lm: LanguageModel, ids: np.ndarray) -> np.ndarray:
    """int32 [B, S] -> float32 [layers, B, S, E]"""
    found: np.ndarray = fetched(lm.loaded.compute("routers", ids))[0]
    return found


def _best(lm: LanguageModel, logits: np.ndarray) -> np.ndarray:
    count = lm.loaded.config.num_selected_experts
    return np.argsort(-logits, axis=-1, kind="stable")[..., :count].astype(np.int32)


def text_map(
    lm: LanguageModel, ids: Sequence[int], length: int, beside: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """What the routers do with one text, alone and under capacity routing in company.

    Args:
      lm: the model.
      ids: the text, with EOS.
      length: tokens per row, padding included.
      beside: other texts of the batch whose capacity is shared; cut to `length`. The text is its last row.

    Returns:
      chosen: int [layers, S, A], experts, best first.
      weights: float [layers, S, A], the router's probabilities of them.
      entropy: float [layers, S], nats.
      dropped: bool [layers, S, A], what capacity routing drops.
      capacity: the batch that `dropped` is about: rows, tokens, groups, places per expert and group.
    """
    real, config = len(ids), lm.loaded.config
    batch = np.zeros((len(beside) + 1, length), np.int32)
    for row, one in enumerate([*beside, ids]):
        batch[row, : min(len(one), length)] = one[:length]
    logits = _logits(lm, batch[-1:])[:, 0, :real]
    chosen = _best(lm, logits)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probs = powers / powers.sum(axis=-1, keepdims=True)
    places, about = fetched(lm.loaded.compute("places", batch))
    groups, tokens, room = map(int, about)
    return {
        "chosen": chosen,
        "weights": np.take_along_axis(probs, chosen, axis=-1),
        "entropy": -np.sum(probs * np.log(np.maximum(probs, 1e-30)), axis=-1),
        "dropped": places[:, -1, :real] >= room,
        "capacity": {
            "rows": len(batch),
            "tokens": int(batch.size),
            "groups": groups,
            "tokens_per_group": tokens,
            "places_per_expert": room,
            "factor": config.eval_expert_capacity_factor,
        },
    }


def preferences(
    names: Sequence[str], ids: Sequence[Sequence[int]], chosen: Sequence[np.ndarray],
    num_experts: int, piece: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Per sparse layer and expert: its share of the choices, and the pieces it gets more than its share of.

    Args:
      names: of the layers.
      ids: N texts.
      chosen: per text int [layers, S, A], from `choices`.
      num_experts: E.
      piece: spelling of an id.

    Pieces are ordered by (times seen - times expected) / sqrt(times expected).
    """
    found = []
    for layer, name in enumerate(names):
        pairs: Counter[tuple[int, int]] = Counter()
        for text, experts in zip(ids, chosen, strict=True):
            for token, those in zip(text, experts[layer], strict=False):
                pairs.update((int(expert), int(token)) for expert in those)
        per_expert: Counter[int] = Counter()
        per_piece: Counter[int] = Counter()
        for (expert, token), count in pairs.items():
            per_expert[expert] += count
            per_piece[token] += count
        total = max(1, sum(per_expert.values()))
        listed = []
        for expert in range(num_experts):
            share = per_expert[expert] / total
            scored = []
            for (who, token), count in pairs.items():
                if who == expert and per_piece[token] >= _SEEN_OFTEN:
                    expected = per_piece[token] * share
                    scored.append(((count - expected) / expected**0.5, token, count))
            top = [one for one in sorted(scored, key=lambda s: (-s[0], s[1]))[:_TOP] if one[0] > 0]
            pieces = [
                {"piece": piece(token), "times": count, "of": per_piece[token]}
                for _, token, count in top
            ]
            listed.append({"expert": expert, "share": share, "pieces": pieces})
        found.append({"layer": name, "experts": listed})
    return found

# SPDX-License-Identifier: Apache-2.0
"""What deserves attention in a run, as sentences with the step at which it began, gravest first."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from kcmoe.tools.report.reading import Run

_DEAD_STEPS = 100  # an expert may well be idle for a few steps of small batches
_SPIKE = 20.0  # a gradient norm so many times its median is a spike
_WORSE = 0.02  # held-out loss above its best by this share, to the end, is no noise
_MANY_DROPPED = 0.5
Grave = Literal["bad", "note"]


@dataclasses.dataclass(frozen=True)
class Alarm:
    """One sentence in two languages.

    Attributes:
      grave: "bad" for what spoils a run, "note" for what one should know.
      step: where it began.
    """

    grave: Grave
    step: int
    ko: str
    en: str


def alarms(run: Run) -> list[Alarm]:
    """All sentences about a run."""
    found = [*_not_finite(run), *_collapsed(run), *_dead(run), *_worse(run), *_spikes(run),
             *_dropped(run), *_unreadable(run)]  # fmt: skip
    return sorted(found, key=lambda alarm: (alarm.grave != "bad", alarm.step))


def _not_finite(run: Run) -> list[Alarm]:
    found = []
    for name in ("loss", "grad_norm", "param_norm"):
        series = run.train.get(name)
        step = series.first_not_finite if series else None
        if step is not None:
            found.append(
                Alarm(
                    "bad",
                    step,
                    f"{step:,}스텝에서 {name} 값이 유한한 수가 아니게 되었습니다. 그 앞 체크포인트에서 "
                    "LEARNING_RATE를 낮춰 이어 가세요.",
                    f"At step {step:,} {name} stopped being a finite number. Go on from the checkpoint "
                    "before with a lower LEARNING_RATE.",
                )
            )
    return found


def _collapsed(run: Run) -> list[Alarm]:
    found = []
    for layer, loads in run.loads.items():
        for begin, end, fewest in loads.collapses[:3]:
            experts = len(loads.last_seen)
            ko_end = "끝까지 그대로입니다" if end is None else f"{end:,}스텝에서 풀렸습니다"
            en_end = "it lasted to the end" if end is None else f"it ended at step {end:,}"
            found.append(
                Alarm(
                    "bad" if end is None else "note",
                    begin,
                    f"{layer}의 라우터가 {begin:,}스텝부터 무너졌습니다: 전문가 {experts}명 가운데 "
                    f"실제로 일한 것은 가장 적을 때 {fewest:.1f}명 몫이고, {ko_end}. "
                    "AUX_LOSS_FACTOR를 올리거나 LEARNING_RATE를 낮춰 보세요.",
                    f"The router of {layer} collapsed from step {begin:,} on: at worst {fewest:.1f} of "
                    f"{experts} experts carried the load, and {en_end}. Raise AUX_LOSS_FACTOR or "
                    "lower LEARNING_RATE.",
                )
            )
    return found


def _dead(run: Run) -> list[Alarm]:
    found = []
    last = run.intervals.last
    for layer, loads in run.loads.items():
        dead = [int(e) for e in np.flatnonzero(last - loads.last_seen >= _DEAD_STEPS)]
        if not dead:
            continue
        begins = {e: max(run.intervals.first, int(loads.last_seen[e]) + 1) for e in dead}
        shown = dict(sorted(begins.items(), key=lambda pair: pair[1])[:6])
        more = len(dead) - len(shown)
        ko = ", ".join(f"{e}번({step:,}스텝부터)" for e, step in shown.items())
        en = ", ".join(f"number {e} since step {step:,}" for e, step in shown.items())
        found.append(
            Alarm(
                "bad",
                min(begins.values()),
                f"{layer}에서 전문가 {len(dead)}명이 토큰을 하나도 받지 못합니다: {ko}"
                f"{f' 외 {more}명' if more else ''}.",
                f"In {layer} {len(dead)} expert{'s get' if len(dead) > 1 else ' gets'} no token: {en}"
                f"{f', and {more} more' if more else ''}.",
            )
        )
    return found


def _worse(run: Run) -> list[Alarm]:
    steps, values = run.evaluations.get("cross_ent_loss", ([], []))
    finite = [(v, s) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    if len(finite) < 4:
        return []
    best, at = min(finite)
    after = [v for v, s in finite if s > at]
    if len(after) < 3 or min(after) < best * (1 + _WORSE):
        return []
    return [
        Alarm(
            "note",
            at,
            f"검증 손실은 {at:,}스텝({best:.4f})에서 가장 낮았고 그 뒤로는 내내 더 높습니다"
            f"(마지막 {after[-1]:.4f}). 과적합일 수 있으니 best.json의 체크포인트를 쓰세요.",
            f"Held-out loss was lowest at step {at:,} ({best:.4f}) and higher ever after "
            f"(last {after[-1]:.4f}): the model may overfit, so use the checkpoint in best.json.",
        )
    ]


def _spikes(run: Run) -> list[Alarm]:
    series = run.train.get("grad_norm")
    if series is None:
        return []
    value, step = series.highest
    typical = float(np.nanmedian(series.mean()))
    if not typical > 0 or value < _SPIKE * typical or step < run.intervals.first + 100:
        return []
    return [
        Alarm(
            "note",
            step,
            f"{step:,}스텝에서 기울기 노름이 {value:.3g}까지 튀었습니다(보통 {typical:.3g}).",
            f"The gradient norm jumped to {value:.3g} at step {step:,} (usually {typical:.3g}).",
        )
    ]


def _dropped(run: Run) -> list[Alarm]:
    found = []
    for layer in run.loads:
        series = run.train.get(f"router/{layer}/second_choice_dropped")
        share = series.recent() if series else float("nan")
        if share >= _MANY_DROPPED:
            found.append(
                Alarm(
                    "note",
                    run.intervals.first,
                    f"{layer}에서는 마지막 10분의 1 동안 둘째 선택의 {share:.0%}가 자리가 없어 버려졌습니다. "
                    "TRAIN_EXPERT_CAPACITY_FACTOR를 올리면 줄어듭니다.",
                    f"In {layer} {share:.0%} of the second choices found no place over the last tenth "
                    "of the run. A larger TRAIN_EXPERT_CAPACITY_FACTOR drops fewer.",
                )
            )
    return found


def _unreadable(run: Run) -> list[Alarm]:
    found = []
    last = run.intervals.last
    if run.broken:
        found.append(
            Alarm(
                "note",
                last,
                f"metrics.jsonl의 {run.broken:,}줄은 읽을 수 없어 뺐습니다.",
                f"{run.broken:,} lines of metrics.jsonl could not be read and are left out.",
            )
        )
    if run.cut:
        found.append(
            Alarm(
                "note",
                last,
                "metrics.jsonl의 마지막 줄이 끝나지 않았습니다. 학습이 아직 돌고 있거나 갑자기 "
                "멈춘 것입니다.",
                "The last line of metrics.jsonl has no end: the run is still going on, or was killed.",
            )
        )
    return found

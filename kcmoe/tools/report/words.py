# SPDX-License-Identifier: Apache-2.0
"""How to read each picture, for somebody who meets it for the first time: Korean and English."""

from __future__ import annotations

import math

LEGEND = (
    "가로축 step은 스텝, 선은 학습(train), 점은 검증(eval)에서 잰 값입니다. 옅은 띠는 여러 스텝을 "
    "하나로 줄인 곳의 최솟값과 최댓값, 세로 점선은 학습을 다시 시작한 스텝, 위나 아래 끝의 세모는 "
    "그림 밖에 있는 값입니다.",
    "Lines are training, dots held-out data (eval). A pale band spans the smallest and largest value "
    "where many steps are drawn as one, a dotted vertical line is a step at which the run was "
    "restarted, and a triangle at an edge is a value outside the picture.",
)
LOG = ("세로축은 로그 눈금입니다.", "The vertical axis is logarithmic.")
_NOTES = {
    "cross_ent_loss": (
        "정답 토큰을 얼마나 못 맞히는지입니다. 낮을수록 좋습니다. 학습에서는 내려가는데 검증에서 "
        "올라가면 과적합입니다.",
        "How badly the target tokens are predicted; lower is better. Held-out values that rise while "
        "training falls mean overfitting.",
    ),
    "token_accuracy": (
        "가장 그럴듯하다고 본 토큰이 정답인 비율로, 1이면 모두 맞힌 것입니다.",
        "Share of target tokens whose likeliest prediction is right; 1 is all of them.",
    ),
    "loss": (
        "교차 엔트로피에 라우터의 손실 같은 보조 손실을 더한 값으로, 학습이 실제로 줄이는 것입니다.",
        "What training minimises: cross-entropy and further losses, such as the routers'.",
    ),
    "learning_rate": (
        "한 스텝에 파라미터를 얼마나 크게 바꾸는지입니다.",
        "How far one step moves the parameters.",
    ),
    "grad_norm": (
        "손실이 파라미터에 얼마나 민감한지입니다. 높이 튄 곳은 학습이 흔들린 스텝입니다.",
        "How sensitive the loss is to the parameters. Spikes are steps at which training shook.",
    ),
    "param_norm": (
        "모든 파라미터를 합친 크기입니다. 서서히 변하면 괜찮고, 갑자기 뛰면 문제입니다.",
        "The size of all parameters together. Slow changes are fine, a jump is not.",
    ),
    "router_entropy": (
        "라우터가 토큰 하나를 누구에게 줄지 얼마나 망설이는지입니다. 모두 똑같이 그럴듯하면 "
        "{most:.2f}, 하나로 정했으면 0입니다.",
        "How undecided the router is about one token: {most:.2f} if all experts are equally likely, 0 "
        "if one is sure.",
    ),
    "effective_experts": (
        "토큰이 얼마나 고르게 나뉘었는지를 전문가 수로 나타냈습니다. 고르면 {experts}, 하나에 몰리면 "
        "1입니다.",
        "How evenly tokens are shared, as a number of experts: {experts} if evenly, 1 if one gets all.",
    ),
    "first_choice_dropped": (
        "첫째로 고른 전문가에 자리가 없어서 그 전문가를 거치지 못한 토큰의 비율입니다. 0에 가까울수록 "
        "좋습니다.",
        "Share of tokens whose first expert had no place left for them. The nearer 0, the better.",
    ),
    "second_choice_dropped": (
        "둘째로 고른 전문가에 자리가 없었던 토큰의 비율입니다. 첫째 선택이 자리를 먼저 차지하므로 "
        "첫째보다 높습니다.",
        "Share of tokens whose second expert had no place left. First choices go first, so this is "
        "the higher one.",
    ),
    "auxiliary_loss": (
        "전문가마다 받은 토큰이 고르지 않으면 커지는 손실입니다. 꾸준히 오르면 몇 전문가에 몰리고 "
        "있는 것입니다.",
        "Grows as tokens are shared less evenly. A steady rise means that they gather at a few experts.",
    ),
    "router_z_loss": (
        "라우터가 내는 수가 너무 커지지 않게 하는 손실입니다. 내려가거나 그대로면 괜찮고, 계속 오르면 "
        "불안정해질 수 있습니다.",
        "Keeps the numbers of the router small. Falling or flat is fine; a steady rise can become unstable.",
    ),
}  # fmt: skip


def note(name: str, experts: int = 0) -> tuple[str, str]:
    """How to read the picture of a metric, in Korean and English; empty for one that is not known.

    experts: of its layer, for the metrics of routers.
    """
    ko, en = _NOTES.get(name.rpartition("/")[2], ("", ""))
    values = {"experts": experts, "most": math.log(experts) if experts else 0.0}
    return ko.format(**values), en.format(**values)

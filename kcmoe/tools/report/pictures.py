# SPDX-License-Identifier: Apache-2.0
"""Which pictures a report has, made from the runs. What they look like is `kcmoe.io.drawing`'s."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from kcmoe.io.drawing import RARE, Heat, Line, Mark, Picture
from kcmoe.tools.report import words
from kcmoe.tools.report.reading import Run

_DECADE = 10.0  # a logarithmic axis over less has no round numbers to show
_SETTLED = 0.1  # of the steps; a loss mostly falls so far within them that nothing later is seen
_FLATTENED = 3.0  # times as much range with these steps as without: then both are drawn
_SHOWN_FIRST = ("accuracy", "macro_f1", "pearson", "spearman")


@dataclasses.dataclass(frozen=True)
class Titled:
    """A picture with what it is called in both languages and a sentence about how to read it."""

    picture: Picture
    ko: str
    en: str
    ko_note: str = ""
    en_note: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """Pictures that belong together."""

    name: str
    ko: str
    en: str
    pictures: Sequence[Titled]


def sections(runs: Sequence[Run], peak_flops: float | None) -> list[Section]:
    """All sections that the runs have numbers for."""
    found = [
        Section("learning", "학습 곡선", "Learning", _learning(runs)),
        Section("speed", "속도", "Speed", _speed(runs, peak_flops)),
        Section("norms", "노름", "Norms", _norms(runs)),
        *_experts(runs),
    ]
    return [section for section in found if section.pictures]


def _lines(runs: Sequence[Run], name: str, factor: float = 1.0) -> list[Line]:
    """The training curves of a metric, one per run; each run keeps its colour everywhere."""
    found = []
    for place, run in enumerate(runs):
        series = run.train.get(name)
        if series is None or not np.isfinite(series.mean()).any():
            continue
        whole = run.intervals.exact
        label = "train" if len(runs) == 1 else run.name
        found.append(
            Line(
                label,
                run.intervals.centres(),
                factor * series.mean(),
                low=None if whole else factor * series.low(),
                high=None if whole else factor * series.high(),
                colour=place,
            )
        )
    return found


def _evaluated(runs: Sequence[Run], name: str) -> list[Line]:
    """The evaluation points of a metric, one line per run."""
    found = []
    for place, run in enumerate(runs):
        steps, values = run.evaluations.get(name, ([], []))
        if steps:
            label = "eval" if len(runs) == 1 else f"{run.name} eval"
            colour = 1 if len(runs) == 1 else place
            x, y = np.array(steps, np.float64), np.array(values, np.float64)
            found.append(Line(label, x, y, dots=True, colour=colour))
    return found


def _marks(runs: Sequence[Run]) -> list[Mark]:
    return [
        Mark(step, f"restart: {run.name}, step {step:,}") for run in runs for step in run.restarts
    ]


def _curve(
    runs: Sequence[Run],
    name: str,
    ko: str,
    en: str,
    *,
    note: tuple[str, str] | None = None,
    scale: str = "linear",
    factor: float = 1.0,
    evaluated: bool = True,
    file: str = "",
) -> list[Titled]:
    """One picture of a metric over the steps; none if no run has it."""
    lines = _lines(runs, name, factor) + (_evaluated(runs, name) if evaluated else [])
    if not lines:
        return []
    log = scale == "log" and _spread(lines) > _DECADE
    picture = Picture(
        file or name.replace("/", "-").replace("_", "-"),
        ko,
        x="step",
        lines=lines,
        marks=_marks(runs),
        scale="log" if log else "linear",
    )
    said = words.note(name) if note is None else note
    if log:
        said = (f"{said[0]} {words.LOG[0]}".strip(), f"{said[1]} {words.LOG[1]}".strip())
    return [Titled(picture, ko, en, *said)]


def _later(titled: Titled) -> list[Titled]:
    """The same picture without the first steps, where with them the rest is nearly a straight line."""
    picture = titled.picture
    first, last = (end([end(line.x) for line in picture.lines]) for end in (min, max))
    begin = first + _SETTLED * (last - first)
    kept = [(line, np.asarray(line.x) >= begin) for line in picture.lines]
    lines = [
        dataclasses.replace(
            line,
            x=line.x[late],
            y=line.y[late],
            low=None if line.low is None else line.low[late],
            high=None if line.high is None else line.high[late],
        )
        for line, late in kept
        if late.sum() > 1 or (line.dots and late.any())
    ]
    if not lines or _range(picture.lines) < _FLATTENED * _range(lines):
        return []
    ko, en = f"{titled.ko}, 처음 10%는 빼고", f"{titled.en}, without the first 10%"
    later = dataclasses.replace(picture, name=f"{picture.name}-later", title=ko, lines=lines)
    return [
        Titled(later, ko, en, "같은 값을 가까이서 본 것입니다.", "The same values, seen closer.")
    ]


def _range(lines: Sequence[Line]) -> float:
    """Between the lowest and the highest value, but for the rare ones that pictures leave outside."""
    values = np.concatenate([np.asarray(line.y, np.float64) for line in lines])
    values = values[np.isfinite(values)]
    return float(np.ptp(np.quantile(values, (RARE, 1 - RARE)))) if len(values) else 0.0


def _spread(lines: Sequence[Line]) -> float:
    """Largest value above zero over the smallest; 1 where there is none."""
    values = np.concatenate([np.asarray(line.y, np.float64) for line in lines])
    values = values[np.isfinite(values) & (values > 0)]
    return float(values.max() / values.min()) if len(values) else 1.0


def _learning(runs: Sequence[Run]) -> list[Titled]:
    found = _curve(runs, "cross_ent_loss", "토큰당 교차 엔트로피", "Cross-entropy per target token")
    if not found:
        found = _curve(runs, "loss", "손실", "Loss")
    found += [later for titled in found for later in _later(titled)]
    others = {
        name for run in runs for name in run.evaluations if name not in run.train
    } - {"target_tokens", "token_accuracy", "cross_ent_loss"}  # fmt: skip
    ordered = [n for n in _SHOWN_FIRST if n in others] + sorted(others - {*_SHOWN_FIRST})
    for name in ordered:
        found += _curve(
            runs,
            name,
            f"검증 {name}",
            f"Held-out {name}",
            file=f"eval-{name}".replace("_", "-"),
            note=("검증 데이터에서 잰 값입니다.", "Measured on held-out data."),
        )
    found += _curve(runs, "token_accuracy", "토큰 정확도", "Token accuracy")
    found += _curve(runs, "loss", "손실 전체(보조 손실 포함)", "Whole loss, router losses included")
    found += _curve(runs, "learning_rate", "학습률", "Learning rate", evaluated=False)
    return list({titled.picture.name: titled for titled in found}.values())


def _speed(runs: Sequence[Run], peak_flops: float | None) -> list[Titled]:
    found = _curve(
        runs, "tokens_per_s", "초당 토큰", "Tokens per second", evaluated=False,
        note=("패딩까지 센 자리 수입니다.", "Positions, padding included."),
    )  # fmt: skip
    if peak_flops:
        of = f"{peak_flops / 1e9:,.0f} GFLOP/s"
        found += _curve(
            runs, "model_flops_per_s", "행렬곱 최고 속도에 견준 비율, %", "Share of the matmul peak, %",
            factor=100 / peak_flops, evaluated=False, file="share-of-peak",
            note=(f"최고 {of} 기준입니다.", f"Of {of}."),
        )  # fmt: skip
    else:
        found += _curve(
            runs, "model_flops_per_s", "모델 GFLOP/s", "Model GFLOP/s", factor=1e-9, evaluated=False,
            note=(
                "이 기계의 최고 속도를 --peak_gflops로 주면 비율로 그립니다(kcmoe bench train이 잽니다).",
                "Give --peak_gflops (kcmoe bench train measures it) to see it as a share of the peak.",
            ),
        )  # fmt: skip
    return found


def _norms(runs: Sequence[Run]) -> list[Titled]:
    return [
        *_curve(runs, "grad_norm", "기울기 노름", "Gradient norm", scale="log", evaluated=False),
        *_curve(runs, "param_norm", "파라미터 노름", "Parameter norm", evaluated=False),
    ]


_ROUTER = (
    ("router_entropy", "라우터 엔트로피(내트)", "Router entropy, nats"),
    ("effective_experts", "실제로 일한 전문가 수", "Effective experts"),
    ("first_choice_dropped", "버려진 첫째 선택", "First choices dropped"),
    ("second_choice_dropped", "버려진 둘째 선택", "Second choices dropped"),
    ("auxiliary_loss", "균형 손실", "Load balance loss"),
    ("router_z_loss", "라우터 z 손실", "Router z-loss"),
)


def _experts(runs: Sequence[Run]) -> list[Section]:
    layers = list(dict.fromkeys(layer for run in runs for layer in run.loads))
    if not layers:
        return []
    found = []
    for layer in layers:
        short = layer.removesuffix("/mlp")
        pictures = [_heat(run, layer, short, len(runs) > 1) for run in runs if layer in run.loads]
        for name, ko, en in _ROUTER:
            file = f"{short}-{name}".replace("/", "-").replace("_", "-")
            experts = max(len(run.loads[layer].last_seen) for run in runs if layer in run.loads)
            note = words.note(name, experts)
            pictures += _curve(runs, f"router/{layer}/{name}", ko, en, file=file, note=note)
        found.append(
            Section(short.replace("/", "-"), f"전문가: {short}", f"Experts: {short}", pictures)
        )
    return found


def _heat(run: Run, layer: str, short: str, several: bool) -> Titled:
    loads = run.loads[layer]
    values = loads.heat()
    fair = 1 / len(values)
    top = float(min(1.0, max(2 * fair, np.nanquantile(values, 0.995))))
    of = f" · {run.name}" if several else ""
    ko, en = f"전문가마다 받은 몫{of}", f"Load of each expert{of}"
    heat = Heat(values, run.intervals.first - 0.5, run.intervals.last + 0.5, top)
    file = f"{short}-load{'-' + run.name if several else ''}".replace("/", "-").replace("_", "-")
    picture = Picture(file, ko, x="step", y="expert", heat=heat)
    return Titled(
        picture, ko, en,
        f"고르게 나누면 모두 {fair:.3f}입니다. 밝을수록 많이 받았습니다.",
        f"An even load is {fair:.3f} everywhere; the brighter, the more tokens.",
    )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file: style, script, pictures and numbers inside, nothing from elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from kcmoe import __version__
from kcmoe.io.drawing import Line, number
from kcmoe.io.drawing_svg import plot_of, svg
from kcmoe.tools.report import words
from kcmoe.tools.report.alarms import Alarm, alarms
from kcmoe.tools.report.pictures import Section, Titled
from kcmoe.tools.report.reading import Run

_UNSET = "—"


def page(runs: Sequence[Run], shown: Sequence[Section], language: str) -> str:
    """The whole document.

    Args:
      runs: what it is about.
      shown: their pictures.
      language: "ko" or "en", shown first.
    """
    title = " · ".join(run.name for run in runs)
    links = [f'<a href="#{s.name}">{_both(s.ko, s.en)}</a>' for s in shown]
    links.append(f'<a href="#settings">{_both("설정", "Settings")}</a>')
    body = [
        f"<header><div><p class=kind>{_both('학습 보고서', 'Training report')}</p>"
        f"<h1>{escape(title)}</h1></div>"
        '<button type=button id=language data-ko="English" data-en="한국어"></button></header>',
        _attention(runs),
        _summary(runs),
        f"<nav>{''.join(links)}</nav>",
        f"<p class=legend>{_both(*words.LEGEND)}</p>",
        *(_section(section) for section in shown),
    ]
    if not any(run.loads for run in runs):
        body.append(
            f"<p class=empty>{_both('이 모델에는 전문가가 없습니다.', 'These runs have no experts.')}</p>"
        )
    body += [_settings(runs), f"<footer>Kc-MoE {escape(__version__)} · kcmoe report</footer>"]
    style, script = _asset("page.css"), _asset("page.js")
    return (
        f'<!doctype html>\n<html lang="{language}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">"
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>"
        + "\n".join(body)
        + f"<script>{script}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return (resources.files("kcmoe.tools.report") / name).read_text("utf-8")


def _both(ko: str, en: str) -> str:
    """A text in both languages, of which the page shows one."""
    return f'<span lang="ko">{escape(ko)}</span><span lang="en">{escape(en)}</span>'


def _attention(runs: Sequence[Run]) -> str:
    """Alarms as sentences."""
    listed: list[tuple[str, Alarm]] = [(run.name, alarm) for run in runs for alarm in alarms(run)]
    listed.sort(key=lambda pair: pair[1].grave != "bad")
    if not listed:
        quiet = _both(
            "눈에 띄는 문제가 없습니다: 손실은 유한하고, 무너진 라우터도 쉬는 전문가도 없습니다.",
            "Nothing stands out: finite losses, no collapsed router, no idle expert.",
        )
        return f"<section class=attention><p class=good>{quiet}</p></section>"
    items = []
    for name, alarm in listed:
        of = f"<b>{escape(name)}</b> " if len(runs) > 1 else ""
        sign = _both("경고", "Alarm") if alarm.grave == "bad" else _both("참고", "Note")
        items.append(
            f"<li class={alarm.grave}><span class=sign>{sign}</span><span>{of}"
            f"{_both(alarm.ko, alarm.en)}</span></li>"
        )
    return f"<section class=attention><ul>{''.join(items)}</ul></section>"


def _summary(runs: Sequence[Run]) -> str:
    """The numbers everybody looks for first, one column per run."""
    rows: list[tuple[str, str, list[str | tuple[str, str]]]] = [
        ("스텝", "Steps", [f"{r.intervals.first:,} – {r.intervals.last:,}" for r in runs]),
        ("기록된 스텝", "Steps recorded", [f"{r.records:,}" for r in runs]),
        ("다시 시작한 스텝", "Restarted at step",
         [", ".join(f"{s:,}" for s in r.restarts[:6]) or _UNSET for r in runs]),
        ("걸린 시간(평가와 저장은 빼고)", "Time, without evaluating and saving",
         [_duration(r.seconds) for r in runs]),
        ("목표 토큰", "Target tokens", [number(r.tokens) for r in runs]),
        ("마지막 10%의 손실", "Loss over the last 10%", [_recent(r, "cross_ent_loss") for r in runs]),
        ("초당 토큰", "Tokens per second", [_recent(r, "tokens_per_s") for r in runs]),
    ]  # fmt: skip
    metrics = dict.fromkeys(
        name for r in runs for name in r.evaluations
        if name == "cross_ent_loss" or name not in r.train
    )  # fmt: skip
    for name in metrics:
        rows.append(
            (f"가장 좋은 검증 {name}", f"Best held-out {name}", [_best(r, name) for r in runs])
        )
    head = "".join(f"<th scope=col>{escape(run.name)}</th>" for run in runs)
    body = "".join(
        f"<tr><th scope=row>{_both(ko, en)}</th>{''.join(map(_cell, values))}</tr>"
        for ko, en, values in rows
    )
    header = f"<thead><tr><td></td>{head}</tr></thead>" if len(runs) > 1 else ""
    table = f"<table class=numbers>{header}<tbody>{body}</tbody></table>"
    return f"<section><div class=scroll>{table}</div></section>"


def _cell(value: str | tuple[str, str]) -> str:
    return f"<td>{escape(value) if isinstance(value, str) else _both(*value)}</td>"


def _recent(run: Run, name: str) -> str:
    series = run.train.get(name)
    value = series.recent() if series else float("nan")
    if not math.isfinite(value):
        return _UNSET
    return f"{value:.4f}" if "loss" in name else number(value)


def _best(run: Run, name: str) -> str | tuple[str, str]:
    steps, values = run.evaluations.get(name, ([], []))
    finite = [(v, s) for v, s in zip(values, steps, strict=True) if math.isfinite(v)]
    if not finite:
        return _UNSET
    lower = "loss" in name
    value, step = min(finite) if lower else max(finite, key=lambda pair: (pair[0], -pair[1]))
    return f"{value:.4f} ({step:,}스텝)", f"{value:.4f} (step {step:,})"


def _duration(seconds: float) -> tuple[str, str]:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours:,}시간 {minutes}분", f"{hours:,} h {minutes:02d} min"
    return f"{minutes}분 {seconds}초", f"{minutes} min {seconds:02d} s"


def _section(section: Section) -> str:
    figures = "".join(_figure(titled) for titled in section.pictures)
    return (
        f'<section id="{section.name}"><h2>{_both(section.ko, section.en)}</h2>'
        f"<div class=figures>{figures}</div></section>"
    )


def _figure(titled: Titled) -> str:
    picture = titled.picture
    note = f"<p class=note>{_both(titled.ko_note, titled.en_note)}</p>" if titled.ko_note else ""
    data = ""
    if picture.lines:
        values: dict[str, Any] = {
            "plot": plot_of(picture),
            "lines": [_numbers(line) for line in picture.lines],
        }
        data = f"<script type=application/json>{_json(values)}</script>"
    drawn = svg(picture, titled=False)
    wide = " class=wide" if picture.heat is not None else ""
    return f"<figure{wide}><figcaption>{_both(titled.ko, titled.en)}</figcaption>{drawn}{note}{data}</figure>"


def _numbers(line: Line) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": line.name,
        "x": [_short(v, 8) for v in line.x],
        "y": [_short(v) for v in line.y],
    }
    if line.low is not None and line.high is not None:
        found |= {"low": [_short(v) for v in line.low], "high": [_short(v) for v in line.high]}
    return found


def _short(value: float, digits: int = 5) -> float | int | None:
    if not np.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _settings(runs: Sequence[Run]) -> str:
    """What differs between runs first; all settings folded away below."""
    head = f'<section id="settings"><h2>{_both("설정", "Settings")}</h2>'
    names = sorted({name for run in runs for name in run.settings})
    if not names:
        none = _both(
            "config.gin이 없어 설정을 알 수 없습니다.",
            "There is no config.gin, so settings are unknown.",
        )
        return f"{head}<p class=empty>{none}</p></section>"
    differing = [
        name for name in names if len({repr(run.settings.get(name, _UNSET)) for run in runs}) > 1
    ]
    parts = [head]
    if len(runs) > 1:
        parts.append(f"<h3>{_both('서로 다른 설정', 'What differs')}</h3>")
        same = _both("모든 설정이 같습니다.", "All settings are equal.")
        parts.append(_table(runs, differing) if differing else f"<p class=empty>{same}</p>")
    everything = _both(f"모든 설정 {len(names)}개", f"All {len(names)} settings")
    parts.append(
        f"<details><summary>{everything}</summary>{_table(runs, names)}</details></section>"
    )
    return "".join(parts)


def _table(runs: Sequence[Run], names: Sequence[str]) -> str:
    head = "".join(f"<th scope=col>{escape(run.name)}</th>" for run in runs)
    rows = []
    for name in names:
        values = [run.settings.get(name, _UNSET) for run in runs]
        cells = "".join(f"<td>{escape(v if v is _UNSET else repr(v))}</td>" for v in values)
        rows.append(f"<tr><th scope=row><code>{escape(name)}</code></th>{cells}</tr>")
    return (
        f"<div class=scroll><table class=settings><thead><tr><td></td>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )

# SPDX-License-Identifier: Apache-2.0
"""Measures of vocabularies as tables side by side, as JSON, and as a plot."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from kcmoe.io import drawing, drawing_svg, durable
from kcmoe.io.wording import markdown
from kcmoe.tokenizer.report import KINDS, Measures

_ABSENT = "no MeCab"


def _percent(share: float | None) -> str:
    return _ABSENT if share is None else f"{share:.2%}"


def _rows() -> list[tuple[str, Callable[[Measures], str]]]:
    rows: list[tuple[str, Callable[[Measures], str]]] = [
        ("pieces", lambda m: f"{m.pieces:,}"),
        ("tokens per character", lambda m: f"{m.tokens_per_char:.4f}"),
        ("tokens per line", lambda m: f"{m.tokens_per_line:.2f}"),
        ("tokens across a morpheme boundary", lambda m: _percent(m.across)),
        ("… among tokens with Hangul", lambda m: _percent(m.across_hangul)),
        ("token boundaries that are MeCab's", lambda m: _percent(m.boundaries_agree)),
        ("unknown tokens", lambda m: f"{m.unknown_tokens:.4%}"),
    ]
    for kind in KINDS:
        rows.append((f"unknown characters: {kind}", lambda m, k=kind: f"{m.unknown[k]:.3%}"))  # type: ignore[misc]
    for kind in KINDS:
        rows.append((f"spelled in bytes: {kind}", lambda m, k=kind: f"{m.in_bytes[k]:.3%}"))  # type: ignore[misc]
    rows += [
        ("round trip, lines without unknowns", lambda m: f"{m.round_trip:.3%}"),
        ("round trip, all lines", lambda m: f"{m.round_trip_all:.3%}"),
        ("pieces never used", lambda m: _percent(m.never_used)),
    ]
    return rows


def names(measures: Sequence[Measures]) -> list[str]:
    """What to call each model: its file's name, with its folder where two are called alike."""
    stems = [Path(m.model).stem for m in measures]
    return [
        stem if stems.count(stem) == 1 else f"{Path(m.model).parent.name}/{stem}"
        for stem, m in zip(stems, measures, strict=True)
    ]


def tables(measures: Sequence[Measures]) -> str:
    """One Markdown table per text, models side by side, and how each cuts a few lines."""
    parts: list[str] = []
    for text, group in itertools.groupby(measures, key=lambda m: m.text):
        models = list(group)
        header = [
            f"{text}: {models[0].lines:,} lines, {models[0].chars:,} characters",
            *names(models),
        ]
        cells = [header, *([label, *map(show, models)] for label, show in _rows())]
        parts += ["\n".join(markdown(cells)), _examples(models)]
    return "\n\n".join(part for part in parts if part)


def _examples(models: Sequence[Measures]) -> str:
    blocks = []
    for number in range(len(models[0].examples)):
        lines = [
            f"  {name}: {model.examples[number]}"
            for name, model in zip(names(models), models, strict=True)
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def write_json(measures: Sequence[Measures], path: Path) -> None:
    """Writes every measure, one object per model and text."""
    text = json.dumps([dataclasses.asdict(m) for m in measures], ensure_ascii=False, indent=2)
    durable.write_file(path, f"{text}\n".encode())


def write_plot(measures: Sequence[Measures], path: Path) -> None:
    """Draws bars, one picture per measure: models below each other, texts side by side.

    Raises:
      UserError: if the ending of `path` is neither .svg nor .png, or what draws a PNG is missing.
    """
    panels: list[tuple[str, Callable[[Measures], float]]] = [
        ("tokens per character", lambda m: m.tokens_per_char),
        ("tokens across a morpheme boundary, %", lambda m: 100 * (m.across or 0.0)),
        ("unknown tokens, %", lambda m: 100 * m.unknown_tokens),
        ("lines that round-trip, %", lambda m: 100 * m.round_trip_all),
    ]
    texts = list(dict.fromkeys(m.text for m in measures))
    found = {(m.model, m.text): m for m in measures}
    models = list(dict.fromkeys(m.model for m in measures))
    groups = names([next(m for m in measures if m.model == model) for model in models])
    pictures = []
    for title, value in panels:
        series = [
            (text, [value(found[m, text]) if (m, text) in found else float("nan") for m in models])
            for text in texts
        ]
        pictures.append(drawing.Picture("measure", title, bars=drawing.Bars(groups, series)))
    drawing_svg.save(pictures, path, "--plot")

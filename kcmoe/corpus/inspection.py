# SPDX-License-Identifier: Apache-2.0
"""`kcmoe data inspect`: what a task's data looks like before a run spends hours on it.

Measures lengths, truncation, unknown pieces, packing and duplicates, and shows rows as the model gets
them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from kcmoe.config.data import DataConfig
from kcmoe.data import labelled, packing, splits, tables
from kcmoe.data.features import Lengths, Ragged, with_eos
from kcmoe.data.pipeline import corpus, noise_of, tokenize_examples
from kcmoe.data.rows import CorpusRows, RowSettings
from kcmoe.errors import UserError
from kcmoe.io import drawing, drawing_svg
from kcmoe.tasks.registry import Task
from kcmoe.vocabulary import Vocabulary

_SAMPLE = 200_000  # documents whose lengths are measured; a corpus may have a hundred million
_BAR = "▏▎▍▌▋▊▉█"


@dataclasses.dataclass(frozen=True)
class Findings:
    """What was measured on one split.

    Attributes:
      title: task and split.
      lines: facts to print.
      lengths: "documents", "inputs" or "targets" -> int64 tokens of each.
      limits: the same names -> length after which a row is cut; 0 for none.
      shown: rows as text.
    """

    title: str
    lines: list[str]
    lengths: Mapping[str, np.ndarray]
    limits: Mapping[str, int]
    shown: list[str]


def inspect(
    task: Task,
    split: str,
    lengths: Lengths,
    data: DataConfig,
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    shown: int = 3,
    scan_rows: int = 1_000_000,
) -> Findings:
    """Measures one split of one task; `scan_rows` bounds the search for duplicates across splits."""
    look = _inspect_corpus if task.kind == "span_corruption" else _inspect_labelled
    findings = look(task, split, lengths, data, vocabulary, seed, shown)
    findings.lines.extend(duplicates(task, split, data, scan_rows))
    return findings


def _inspect_corpus(
    task: Task,
    split: str,
    lengths: Lengths,
    data: DataConfig,
    vocabulary: Vocabulary,
    seed: int,
    shown: int,
) -> Findings:
    cache = corpus(task, split, vocabulary, data)
    settings = RowSettings(lengths, seed, data.pack, noise=noise_of(data))
    rows = CorpusRows(task.name, cache, vocabulary, settings)
    counts = rows.counts
    sizes = cache.document_lengths(_SAMPLE)
    sample = rows.segments(np.arange(min(64, rows.rows_per_epoch)))
    filled = counts.inputs / lengths.inputs, counts.targets / lengths.targets
    left_out: dict[str, int] = {}
    for shard in cache.shards:
        for reason, count in shard.facts["left_out"].items():
            left_out[reason] = left_out.get(reason, 0) + count
    lines = [
        f"{len(cache.shards)} files, {cache.num_documents:,} documents, {cache.num_tokens:,} tokens",
        f"left out: {', '.join(f'{n:,} {r}' for r, n in left_out.items()) or 'nothing'}",
        f"rows of {counts.tokens} tokens: {rows.rows_per_epoch:,} per epoch, "
        f"{counts.tokens / max(sizes.mean(), 1):.1f} documents joined in each",
        f"noise: {counts.noise} tokens in {counts.spans} spans; inputs {counts.inputs}, "
        f"targets {counts.targets}",
        f"positions filled: inputs {filled[0]:.1%}, targets {filled[1]:.1%}; nothing is cut",
        f"unknown pieces: {(sample == vocabulary.unk_id).mean():.3%} of tokens",
    ]
    texts = []
    for row in range(shown):
        features = rows.take(np.array([row]))
        texts += [
            f"row {row} before   {vocabulary.decode(rows.segments(np.array([row]))[0])}",
            f"row {row} inputs   {vocabulary.decode(features['encoder_input_tokens'][0])}",
            f"row {row} targets  {vocabulary.decode(features['decoder_target_tokens'][0])}",
        ]
    return Findings(f"{task.name} {split}", lines, {"documents": sizes}, {"documents": 0}, texts)


def _inspect_labelled(
    task: Task,
    split: str,
    lengths: Lengths,
    data: DataConfig,
    vocabulary: Vocabulary,
    seed: int,
    shown: int,
) -> Findings:
    labelled.check_answers(task, vocabulary, lengths.targets)
    examples = labelled.labelled_examples(task, split, data.data_dir, strict=data.strict)
    whole = Lengths(1 << 30, 1 << 30)
    inputs, targets = tokenize_examples(iter(examples), vocabulary, whole)
    limits = {"inputs": lengths.inputs, "targets": lengths.targets}
    sizes = {"inputs": inputs.lengths, "targets": targets.lengths}
    cut = {name: np.minimum(sizes[name], limits[name]) for name in sizes}
    packed = packing.first_fit(cut["inputs"], cut["targets"], lengths, np.arange(len(examples)))
    answers: dict[str, int] = {}
    for example in examples:
        answers[example.target_text] = answers.get(example.target_text, 0) + 1
    common = sorted(answers.items(), key=lambda item: -item[1])[:8]
    lines = [
        f"{len(examples):,} examples" + (" (held out of train)" if task.is_held_out(split) else ""),
        "answers: " + ", ".join(f"{word} {count / len(examples):.1%}" for word, count in common),
        f"empty inputs: {sum(not _own_text(task, e) for e in examples):,}",
        f"unknown pieces: {(inputs.tokens == vocabulary.unk_id).mean():.3%} of tokens",
        *(
            f"{name}: mean {sizes[name].mean():.1f}, 99 % within {np.percentile(sizes[name], 99):.0f}, "
            f"longest {sizes[name].max()}; cut at {limits[name]}: {_share(sizes[name] > limits[name])}"
            for name in sizes
        ),
        *(
            f"positions filled, {what}: "
            + "".join(
                f"{name} {packing.efficiency(int(cut[name].sum()), rows, limits[name]):.1%}, "
                for name in sizes
            )
            + f"{len(examples) / rows:.2f} examples to a row"
            for what, rows in (("one example to a row", len(examples)), ("packed", packed.num_rows))
        ),
    ]
    chosen = np.random.default_rng(seed).permutation(len(examples))[:shown]
    texts = []
    for number in chosen.tolist():
        name = examples[number].id
        texts += [
            f"{name} inputs   {_as_read(inputs, number, lengths.inputs, vocabulary)}",
            f"{name} targets  {_as_read(targets, number, lengths.targets, vocabulary)}",
        ]
    return Findings(f"{task.name} {split}", lines, sizes, limits, texts)


def _share(rows: np.ndarray) -> str:
    """The number and the share of the rows that are True, bool [N]; both, as one row of many is 0.00%."""
    count = int(rows.sum())
    return f"{count:,} row{'' if count == 1 else 's'} ({rows.mean():.2%})"


def _as_read(whole: Ragged, number: int, limit: int, vocabulary: Vocabulary) -> str:
    """Text of the ids the model gets of a sequence, and whether that is all of it."""
    ids = whole.tokens[whole.starts[number] : whole.starts[number + 1]].tolist()
    text = vocabulary.decode(with_eos(ids[:-1], limit, vocabulary.eos_id))
    return f"{text} <- cut, {limit} of {len(ids)} tokens" if len(ids) > limit else text


def _own_text(task: Task, example: labelled.Example) -> bool:
    return all(str(example.fields[name]).strip() for name in task.input_columns)


def _texts(task: Task, split: str, data: DataConfig) -> Iterator[str]:
    """What makes two rows of a task equal: the document, or the inputs."""
    if task.kind == "labelled":
        for example in labelled.iter_examples(task, split, data.data_dir, strict=data.strict):
            yield example.inputs_text
        return
    for file in splits.split_files(task, split, data.data_dir):
        chunks = tables.read_chunks(
            file, [task.text_column], strict=data.strict, encoding=task.encoding
        )
        for chunk in chunks:
            for text in chunk[task.text_column]:
                if isinstance(text, str) and text.strip() and splits.in_split(task, split, text):
                    yield text


def _hashes(texts: Iterable[str], limit: int) -> np.ndarray:
    digests = (
        int.from_bytes(
            hashlib.blake2b(t.encode("utf-8", "replace"), digest_size=8).digest(), "little"
        )
        for t in itertools.islice(texts, limit)
    )
    return np.fromiter(digests, np.uint64)


def duplicates(task: Task, split: str, data: DataConfig, limit: int) -> list[str]:
    """Lines on rows that repeat within a split or stand in another split as well."""
    own = _hashes(_texts(task, split, data), limit)
    asked = f" (first {limit:,} rows)" if own.size == limit else ""
    lines = [
        f"repeated within {split}{asked}: {own.size - np.unique(own).size:,} of {own.size:,} rows"
    ]
    for other in task.splits:
        if other == split:
            continue
        try:
            theirs = _hashes(_texts(task, other, data), limit)
        except UserError as error:
            lines.append(f"also in {other}: not known, {str(error).partition('. ')[0]}")
            continue
        both = int(np.isin(theirs, own).sum())
        lines.append(f"also in {split}: {both:,} of {theirs.size:,} {other} rows")
    return lines


def histogram(values: np.ndarray, limit: int, bins: int = 12, width: int = 40) -> list[str]:
    """A histogram in text, one line a bin; the last bin takes the longest 0.1 %."""
    top = max(int(np.percentile(values, 99.9)), 1)
    bins = min(bins, top)
    edges = np.linspace(0, top, bins + 1).astype(int)
    edges[-1] = int(values.max()) + 1
    counts = np.histogram(values, edges)[0]
    first = int(np.argmax(counts > 0))  # what is shorter than all has no lines
    lines = []
    for low, high, count in zip(edges[first:-1], edges[first + 1 :], counts[first:], strict=True):
        eighths = round(float(count) / max(int(counts.max()), 1) * width * 8)
        bar = "█" * (eighths // 8) + (_BAR[eighths % 8 - 1] if eighths % 8 else "")
        mark = " <- cut" if limit and low >= limit else ""
        lines.append(f"{low:>6}-{high - 1:<6} {count:>9,} {bar}{mark}")
    return lines


def plot(findings: Iterable[Findings], path: str) -> None:
    """Writes the histograms of all findings as one picture.

    Raises:
      UserError: if the ending of `path` is neither .svg nor .png, or it cannot be written.
    """
    pictures = []
    for each in findings:
        for name, values in each.lengths.items():
            top, limit = max(int(np.percentile(values, 99.9)), 2), each.limits[name]
            x, y = drawing.histogram(np.minimum(values, top), min(60, top))
            marks = [drawing.Mark(limit, f"cut at {limit}")] if limit and limit <= top else []
            cut = f", cut at {limit}" if marks else ""
            lines = [drawing.Line("rows", x, y)]
            pictures.append(
                drawing.Picture(name, f"{each.title}: {name}{cut}", "tokens", "rows", lines, marks)
            )
    drawing_svg.save(pictures, path, "--plot")

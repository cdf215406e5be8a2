# SPDX-License-Identifier: Apache-2.0
"""Does the exported `tokenizer.json` give SentencePiece's ids, and does decoding give its text?

    python benchmarks/tokenizer_ids.py --data=data

Takes every text column of every parquet file below --data, and prints for each folder how many texts have the
same ids, how many differ only because two segmentations have the same score (SentencePiece adds up in
float32, so sums that agree to 1e-5 are the same), how many differ otherwise, and how many are decoded
otherwise. --decomposed asks the same of each text in decomposed Hangul (NFD). Exit status 1 if anything but
ties differs. Needs the extra [huggingface].
"""

from __future__ import annotations

import argparse
import collections
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kcmoe.checkpoint.huggingface import tokenizer  # noqa: E402
from kcmoe.errors import UserError  # noqa: E402
from kcmoe.vocabulary import Vocabulary  # noqa: E402

_BATCH = 20_000  # texts
COLUMNS = ("texts", "same ids", "ties", "other ids", "decoded otherwise")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data", help="folder of parquet files (default: data)")
    parser.add_argument("--vocabulary", help="a SentencePiece model (default: the one that ships)")
    parser.add_argument("--decomposed", action="store_true", help="ask of decomposed Hangul")
    parser.add_argument("--show", type=int, default=5, help="texts to print that differ, no ties")
    args = parser.parse_args(argv)
    files = sorted(Path(args.data).rglob("*.parquet"))
    if not files:
        parser.error(f"no .parquet file below {args.data}")
    try:
        comparison = Comparison(args.vocabulary)
    except UserError as error:
        parser.error(str(error))
    print("| set |", " | ".join(COLUMNS), "|\n|---|" + "---:|" * len(COLUMNS), flush=True)
    total: collections.Counter[str] = collections.Counter()
    for folder in dict.fromkeys(file.parent for file in files):
        counts: collections.Counter[str] = collections.Counter()
        for file in files:
            if file.parent == folder:
                for texts in _texts(file, args.decomposed):
                    counts += comparison.count(texts)
        _row(str(folder.relative_to(args.data)), counts)
        total += counts
    _row("all", total)
    for text, ours, theirs in comparison.different[: args.show]:
        print(f"{text!r}: {ours} {theirs}")
    return int(bool(total["other ids"] or total["decoded otherwise"]))


def _row(name: str, counts: collections.Counter[str]) -> None:
    print(f"| {name} |", " | ".join(f"{counts[one]:,}" for one in COLUMNS), "|", flush=True)


def _texts(file: Path, decomposed: bool) -> Iterator[list[str]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        schema = opened.schema_arrow
        for name in (
            field.name for field in schema if str(field.type) in ("string", "large_string")
        ):
            for batch in opened.iter_batches(_BATCH, columns=[name]):
                texts = [text for text in batch.column(0).to_pylist() if text is not None]
                yield (
                    [unicodedata.normalize("NFD", text) for text in texts] if decomposed else texts
                )


class Comparison:
    """SentencePiece beside `tokenizers`, of one vocabulary.

    Attributes:
      different: texts whose ids differ without a tie, with the ids of both.
    """

    def __init__(self, vocabulary: str | None):
        import tokenizers
        from sentencepiece import sentencepiece_model_pb2

        self._ours = Vocabulary(vocabulary)
        model = Path(self._ours.path).read_bytes()
        content = tokenizer.files(model, self._ours.path, 512)[tokenizer.FILE]
        self._theirs: Any = tokenizers.Tokenizer.from_buffer(content)
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        self._scores = [piece.score for piece in proto.pieces]
        self.different: list[tuple[str, list[int], list[int]]] = []

    def count(self, texts: list[str]) -> collections.Counter[str]:
        """How many of the texts fall under which of `COLUMNS`."""
        encoded = self._theirs.encode_batch_fast(texts, add_special_tokens=False)
        ours = self._ours.encode_batch(texts)
        counts = collections.Counter({"texts": len(texts)})
        for text, ids, other in zip(texts, ours, encoded, strict=True):
            counts[self._kind(text, ids, other.ids)] += 1
        decoded = self._theirs.decode_batch(ours, skip_special_tokens=False)
        for ids, found in zip(ours, decoded, strict=True):
            counts["decoded otherwise"] += found != self._ours.decode(ids)
        return counts

    def _kind(self, text: str, ours: list[int], theirs: list[int]) -> str:
        if ours == theirs:
            return "same ids"
        sums = [sum(self._scores[token] for token in ids) for ids in (ours, theirs)]
        if abs(sums[0] - sums[1]) <= 1e-5 * abs(sums[0]):
            return "ties"
        self.different.append((text, ours, theirs))
        return "other ids"


if __name__ == "__main__":
    sys.exit(main())

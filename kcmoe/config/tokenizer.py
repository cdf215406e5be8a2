# SPDX-License-Identifier: Apache-2.0
"""Settings of `kcmoe tokenizer train`. The values stand in `configs/tokenizer/`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from kcmoe.config.fields import GinConfig, macro
from kcmoe.errors import UserError
from kcmoe.io import given
from kcmoe.io.remote import is_remote

TWIN_SUFFIX = "extra"

Segmentation = Literal["morphemes", "delimiter", "spaces", "none"]
Normalization = Literal["comments", "identity", "nfkc", "nmt_nfkc"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig(GinConfig):
    """One vocabulary: from which text, how it is cut, and where it goes."""

    data_dir: str = macro(
        "DATA_DIR", help="folder of prepared data; relative corpus paths start here"
    )
    corpus: tuple[str, ...] = macro(
        "TOKENIZER_CORPUS", help="parquet and text files (.gz too), * allowed, local or gs://"
    )
    text_column: str = macro(
        "TOKENIZER_TEXT_COLUMN", help="column of parquet files that holds the text"
    )
    strict: bool = macro(
        "DATA_STRICT", help="stop at damaged data; False leaves it out and counts it"
    )
    encoding: str | None = macro(
        "TASK_ENCODING", default=None, help="of text files; utf-8 unless said"
    )
    output: str = macro(
        "TOKENIZER_OUTPUT", help="the .model file to write; its twin goes beside it"
    )
    vocab_size: int = macro(
        "TOKENIZER_VOCAB_SIZE", least=4, most=1 << 24, help="pieces, without the sentinels"
    )
    sentinels: int = macro(
        "TOKENIZER_SENTINELS",
        least=0,
        most=10_000,
        help="<unusedN> pieces that the twin has on top",
    )
    sample_lines: int = macro(
        "TOKENIZER_SAMPLE_LINES",
        least=1,
        most=10**12,
        help="most lines to learn from; more are sampled, which bounds memory",
    )
    max_line_chars: int = macro(
        "TOKENIZER_MAX_LINE_CHARS", least=16, most=10**9, help="longer lines are cut at a space"
    )
    seed: int = macro("TOKENIZER_SEED", least=0, most=2**63 - 1, help="chooses the sample")
    segmentation: Segmentation = macro(
        "TOKENIZER_SEGMENTATION",
        help="'morphemes' (ours), 'delimiter' (SentencePiece's own), 'spaces' (the published way), 'none'",
    )
    min_inside_share: float = macro(
        "TOKENIZER_MIN_INSIDE_SHARE",
        least=0,
        most=1,
        help="least share of a piece's occurrences that lie inside one morpheme ('morphemes' only)",
    )
    normalization: Normalization = macro(
        "TOKENIZER_NORMALIZATION", help="'comments' (ours), 'identity', 'nfkc' or 'nmt_nfkc'"
    )
    character_coverage: float = macro(
        "TOKENIZER_CHARACTER_COVERAGE",
        least=0,
        most=1,
        help="share of the characters in running text that get a piece",
    )
    byte_fallback: bool = macro("TOKENIZER_BYTE_FALLBACK", help="spell other characters in bytes")
    max_piece_chars: int = macro(
        "TOKENIZER_MAX_PIECE_CHARS", least=1, most=10_000, help="longest piece in characters"
    )
    workers: int = macro(
        "TOKENIZER_WORKERS",
        least=0,
        most=1024,
        help="MeCab processes; 0 is one per core; never shows",
    )
    threads: int = macro(
        "TOKENIZER_THREADS",
        least=1,
        most=1024,
        help="threads of SentencePiece; sums are rounded by thread, so it may show",
    )

    @property
    def twin(self) -> Path:
        """kcmoe_32k.model -> kcmoe_32k.100extra.model."""
        path = Path(self.output)
        return path.with_name(f"{path.stem}.{self.sentinels}{TWIN_SUFFIX}{path.suffix}")

    def check(self) -> None:
        if not self.corpus or not all(name.strip() for name in self.corpus):
            raise UserError(
                f"TOKENIZER_CORPUS = {self.corpus!r}, but it must name at least one file, and none by an "
                "empty text"
            )
        if self.encoding is not None:
            given.check_encoding("TASK_ENCODING", self.encoding)
        if not self.output.endswith(".model"):
            raise UserError(f"TOKENIZER_OUTPUT = {self.output!r}, but it must end in .model")
        if is_remote(self.output):
            raise UserError(
                f"TOKENIZER_OUTPUT = {self.output!r} is in a bucket; write the vocabulary to a local "
                "folder and copy it"
            )

# SPDX-License-Identifier: Apache-2.0
"""How much memory and time a vocabulary will take, told before it starts.

The rates were measured on the 697,033 lines of `vocab/README.md` with two cores. They are rough: enough to
see beforehand that a run would take hours or not fit in memory.
"""

from __future__ import annotations

from kcmoe.config.tokenizer import TokenizerConfig
from kcmoe.tokenizer.corpus import Size

# One Python string of the sample: its object, its place in the list, and two bytes a character.
_SAMPLE_BYTES_PER_LINE = 120
_SAMPLE_BYTES_PER_TEXT_BYTE = 0.8
# MeCab's dictionary is mapped once for all processes, each has its own lattice and buffers.
_BYTES_PER_WORKER = 150e6
_BASE_BYTES = 200e6
# Counting keeps distinct morphemes and their parts; SentencePiece without morphemes keeps every line.
_COUNTING_BYTES_PER_TEXT_BYTE = 8.0
_LINES_BYTES_PER_TEXT_BYTE = 24.0

_READ_LINES_PER_S = 400_000.0
_MECAB_TEXT_BYTES_PER_S = 1_000_000.0
_COUNTING_TEXT_BYTES_PER_S = 1_300_000.0
_LINES_TEXT_BYTES_PER_S = 500_000.0


def learned_bytes(size: Size, config: TokenizerConfig) -> float:
    """Bytes of text that will be learned from: all, or the sample's share."""
    return size.text_bytes * min(1.0, config.sample_lines / max(size.lines, 1))


def memory_bytes(size: Size, config: TokenizerConfig, workers: int) -> float:
    """Most memory at one time: the sample with MeCab's processes, or what follows them."""
    text = learned_bytes(size, config)
    lines = min(size.lines, config.sample_lines)
    marking = _SAMPLE_BYTES_PER_LINE * lines + _SAMPLE_BYTES_PER_TEXT_BYTE * text
    marking += _BYTES_PER_WORKER * workers
    per_byte = (
        _COUNTING_BYTES_PER_TEXT_BYTE
        if config.segmentation == "morphemes"
        else _LINES_BYTES_PER_TEXT_BYTE
    )
    return _BASE_BYTES + max(marking, per_byte * text)


def seconds(size: Size, config: TokenizerConfig, workers: int) -> float:
    """Wall time on cores like those measured, if they have nothing else to do."""
    text = learned_bytes(size, config)
    total = size.lines / _READ_LINES_PER_S
    if config.segmentation != "none":
        total += text / _MECAB_TEXT_BYTES_PER_S / workers
    rate = (
        _COUNTING_TEXT_BYTES_PER_S
        if config.segmentation == "morphemes"
        else _LINES_TEXT_BYTES_PER_S
    )
    return total + text / rate


def describe(size: Size, config: TokenizerConfig, workers: int) -> list[str]:
    """The lines printed before the work starts."""
    share = min(1.0, config.sample_lines / max(size.lines, 1))
    part = (
        "all of it" if share == 1.0 else f"a sample of {config.sample_lines:,} lines ({share:.1%})"
    )
    processes = f"{workers} MeCab process" + ("es" if workers > 1 else "")
    return [
        f"corpus: {size.files} files, about {size.lines:,} lines, {size.text_bytes / 1e6:,.1f} MB of text; "
        f"learning from {part}",
        f"expected: {memory_bytes(size, config, workers) / 1e9:.1f} GB of memory at most, "
        f"{max(seconds(size, config, workers) / 60, 0.1):.1f} minutes with {processes}; "
        "memory grows with TOKENIZER_SAMPLE_LINES, not with the corpus",
    ]

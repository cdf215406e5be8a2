# SPDX-License-Identifier: Apache-2.0
"""Runs SentencePiece's trainer in a process of its own and tells how far it is.

The trainer is C++ that answers neither Ctrl-C nor Python's threads, and a shortage of memory kills it
without a word. As a child it can be stopped at once, its log becomes a progress bar, and its death
becomes a message. `python -m kcmoe.tokenizer.fit OPTIONS.json LINES MODEL MARK` is the child.
"""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kcmoe.errors import UserError
from kcmoe.tokenizer.normalization import DELIMITER

_SEEDS = re.compile(r"Initialized (\d+) seed")
_PIECES = re.compile(r"EM sub_iter=\d+ size=(\d+)")
_TOO_LARGE = re.compile(r"Vocabulary size too high .* value <= (\d+)")
_TOO_SMALL = re.compile(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)")
_LOG_TAIL = 12


class VocabularySizeError(UserError):
    """The text does not give a vocabulary of the size asked for; `nearest` is the size that works."""

    def __init__(self, message: str, nearest: int):
        super().__init__(message)
        self.nearest = nearest


def train(options: Mapping[str, Any], lines: Path, model: Path, mark: str = DELIMITER) -> int:
    """Trains on the lines of a file, with a progress bar, and writes `model`.

    Args:
      options: SentencePiece's trainer options without input and output.
      lines: UTF-8 text, or text, tab and count where the options say so.
      model: file to write.
      mark: what the marks between morphemes become.

    Returns:
      Most memory that the child held, in bytes.

    Raises:
      VocabularySizeError: too few or too many different strings for the size.
      UserError: if the child was killed.
    """
    options_file = model.with_suffix(".json")
    options_file.write_text(json.dumps(dict(options)), encoding="utf-8")
    child = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "kcmoe.tokenizer.fit",
            str(options_file),
            str(lines),
            str(model),
            mark,
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    with child:
        try:
            log = _follow(child, int(options["vocab_size"]))
            peak = child.stdout.read() if child.stdout else ""
            status = child.wait()
        finally:
            child.kill()  # Ctrl-C here must not leave it running; no effect once it is done
    if status:
        raise _explanation(status, log, int(options["vocab_size"]))
    return int(peak)


def _follow(child: subprocess.Popen[str], vocab_size: int) -> list[str]:
    """Shows progress from the child's log until it ends; returns the last lines of the log.

    The trainer starts with many seeds and drops a quarter of the pieces per round until about 1.1 times
    the size is left, so the logarithm of their number moves evenly.
    """
    from tqdm import tqdm

    assert child.stderr is not None
    tail: list[str] = []
    target, start = math.log(1.1 * vocab_size), 0.0
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
    with tqdm(total=1.0, desc="learning pieces", disable=None, bar_format=layout) as bar:
        for line in child.stderr:
            tail = [*tail[1 - _LOG_TAIL :], line.strip()]
            if found := _SEEDS.search(line) or _PIECES.search(line):
                pieces = int(found[1])
                start = start or math.log(max(pieces, 2))
                done = (start - math.log(max(pieces, 2))) / max(start - target, 1e-9)
                bar.set_postfix_str(f"{pieces:,} pieces left", refresh=False)
                bar.n = min(max(done, 0.0), 1.0)
                bar.refresh()
    return tail


def _explanation(status: int, log: list[str], vocab_size: int) -> Exception:
    text = "\n".join(log)
    if found := _TOO_LARGE.search(text):
        return VocabularySizeError(
            f"TOKENIZER_VOCAB_SIZE = {vocab_size:,}, but this corpus has too few different strings for "
            f"it: the largest size that works is {int(found[1]):,}; give more text or set it to that",
            int(found[1]),
        )
    if found := _TOO_SMALL.search(text):
        return VocabularySizeError(
            f"TOKENIZER_VOCAB_SIZE = {vocab_size:,}, but single characters and reserved pieces alone "
            f"need more than {int(found[1]):,}; raise it, or lower TOKENIZER_CHARACTER_COVERAGE",
            int(found[1]) + 1,
        )
    if status == -9:
        return UserError(
            "the system killed SentencePiece's trainer, most often because memory ran out; "
            "set TOKENIZER_SAMPLE_LINES lower"
        )
    return RuntimeError(f"SentencePiece's trainer ended with status {status}:\n{text}")


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a spooled file, without their ends."""
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.rstrip("\n")


def _child(options_file: str, lines: str, model: str, mark: str) -> None:
    import resource

    import sentencepiece

    options = json.loads(Path(options_file).read_text(encoding="utf-8"))
    text = (line.replace(DELIMITER, mark) for line in read_lines(lines))
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=text, model_writer=written, **options
        )
    except (RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    Path(model).write_bytes(written.getvalue())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    _child(*sys.argv[1:])

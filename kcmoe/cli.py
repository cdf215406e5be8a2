# SPDX-License-Identifier: Apache-2.0
"""`kcmoe <verb>`: the table of verbs and the three exit statuses. Each verb lives in its own module."""

from __future__ import annotations

import codecs
import contextlib
import errno
import importlib
import io
import locale
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from kcmoe import __version__
from kcmoe.errors import UserError, near_misses
from kcmoe.io.wording import shortened
from kcmoe.model.cpu.memory import restart_with_huge_pages

# verb -> (module with `main(argv) -> int`, one line of help)
VERBS = {
    "train": ("kcmoe.train", "pretrain, continue or fine-tune; resumes by itself"),
    "evaluate": ("kcmoe.evaluation.command", "task metrics of a checkpoint, as a table and JSON"),
    "predict": ("kcmoe.inference.command", "labels with probabilities, or filled sentinels"),
    "serve": ("kcmoe.serve.command", "HTTP interface and a page to try a model"),
    "report": ("kcmoe.tools.report.command", "curves and router health of runs, as one file"),
    "data": (
        "kcmoe.corpus.command",
        "list, download, prepare and inspect corpora and labelled sets",
    ),
    "tokenizer": ("kcmoe.tokenizer.command", "train and compare morpheme-aware vocabularies"),
    "checkpoint": ("kcmoe.checkpoint.command", "inspect and convert checkpoints"),
    "prune": ("kcmoe.tools.prune.command", "a smaller model: the experts used most, or none"),
    "parity": ("kcmoe.tools.parity.command", "compare with numbers that T5X + Flaxformer computed"),
    "plan": ("kcmoe.tools.plan.command", "memory, time and device-hours of a run before it starts"),
    "bench": ("kcmoe.tools.bench.command", "speed of training, prediction and the data pipeline"),
}

_MOST = 1500  # characters of a message
_NO_OUTPUT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
INTERRUPTED = 130  # the exit status after Ctrl-C

# Verbs that multiply matrices for longer than a moment.
COMPUTING = ("train", "evaluate", "predict", "serve", "prune", "bench")


def _usage() -> str:
    lines = ["usage: kcmoe <verb> [options]", "", "verbs:"]
    lines += [f"  {verb:<12}{help_line}" for verb, (_, help_line) in VERBS.items()]
    lines += [
        "",
        "`kcmoe <verb> --help` explains a verb, with an example. A first run:",
        "  kcmoe train --gin_file=configs/runs/pretrain_sample.gin --gin.MODEL_DIR='\"runs/first\"'",
    ]
    return "\n".join(lines)


def run(argv: Sequence[str]) -> int:
    """Runs one verb and returns its exit status: 0 success, 1 our failure, 2 a user's mistake."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"kcmoe {__version__}")
        return 0
    verb, rest = argv[0], list(argv[1:])
    try:
        if verb not in VERBS:
            raise UserError(f"no verb {verb}.{near_misses(verb, VERBS)} See `kcmoe --help`")
        return importlib.import_module(VERBS[verb][0]).main(rest)
    except UserError as error:
        return _refused(f"kcmoe {verb}" if verb in VERBS else "kcmoe", error)
    except PermissionError as error:
        place = f" {error.filename}" if error.filename else ""
        return _refused(f"kcmoe {verb}", f"there is no permission to use{place}: {error.strerror}")
    except (KeyboardInterrupt, ImportError) as error:
        if not _by_interrupt(error):
            raise
        print(f"kcmoe {verb}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _by_interrupt(error: BaseException | None) -> bool:
    """Whether this is Ctrl-C, or what it made of a module that was being imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _keep_interrupts() -> None:
    """Asks again for a Ctrl-C that came where Python only mentions it: in a callback of JAX, for instance."""
    before = sys.unraisablehook

    def again(unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            main = threading.main_thread().ident
            # A moment later, outside of that callback.
            later = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
            later.daemon = True
            later.start()
        else:
            before(unraisable)

    sys.unraisablehook = again


def _refused(name: str, message: object) -> int:
    """Says what a user can mend; returns the status for that."""
    print(f"{name}: {_one_line(message)}", file=sys.stderr)
    return 2


def _one_line(error: object) -> str:
    """The message without line breaks and control characters; one of a hundred kilobytes tells nothing."""
    text = " ".join(str(error).split())
    return shortened("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text), _MOST)


def _any_terminal() -> None:
    """Lets every text be printed and every file be opened, whatever the locale says.

    Where it is another encoding than UTF-8, signs that it lacks come out as "?". Names of files are taken for
    UTF-8 all the same, as JAX takes them, in a second start of Python.
    """
    there = codecs.lookup(locale.getencoding()).name
    if not sys.flags.utf8_mode and there != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        if there != "ascii":  # which is what a terminal without a locale says, whatever it can show
            os.environ.setdefault("PYTHONIOENCODING", f"{there}:replace")
        os.execv(sys.executable, [sys.executable, *_arguments_as_given()[1:]])
    sys.argv[1:] = [_meant(word, there) for word in sys.argv[1:]]
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _arguments_as_given() -> list[bytes] | list[str]:
    """Those of this process; as bytes, since what C decoded Python cannot always encode again."""
    with contextlib.suppress(OSError), open("/proc/self/cmdline", "rb") as file:
        return file.read().split(b"\0")[:-1]
    return sys.orig_argv


def _meant(word: str, encoding: str) -> str:
    """An argument that is no UTF-8 as what it is in the terminal's encoding, unless a file is called so."""
    if word.isascii() or not any("\udc80" <= sign <= "\udcff" for sign in word):
        return word
    if any(os.path.lexists(part.strip("\"'")) for part in (word, word.partition("=")[2])):
        return word
    return os.fsencode(word).decode(encoding, "surrogateescape")


class _Quiet(io.FileIO):
    """Standard error: where nothing can be said, that is no reason to stop, or to end with another status."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _open_streams() -> bool:
    """Opens those standard streams that are closed, or the next file to be opened would be one of them.

    Returns whether what is printed would be lost, as standard output was closed.
    """
    lost = sys.stdout is None
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Quiet(2, "w", closefd=False)), sys.stderr.encoding, line_buffering=True
    )
    return lost


def main() -> None:
    """Entry point of the `kcmoe` command. Python prints our own failures and exits with status 1."""
    name = " ".join(["kcmoe", *sys.argv[1:2]])
    if _open_streams():
        sys.exit(
            _refused(name, "standard output is closed: redirect it, to /dev/null if to nowhere")
        )
    _any_terminal()
    _keep_interrupts()
    if sys.argv[1:2] and sys.argv[1] in COMPUTING:
        restart_with_huge_pages(training=sys.argv[1] == "train")
    try:
        try:
            status: int | str | None = run(sys.argv[1:])
        except SystemExit as stop:  # argparse's way of ending
            status = stop.code
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OSError as error:
        status = 0  # `kcmoe … | head` is no failure
        if error.errno in _NO_OUTPUT and error.filename is None:
            status = _refused(name, f"standard output cannot be written to: {error.strerror}")
        elif not isinstance(error, BrokenPipeError):
            raise
        for stream in (sys.stdout, sys.stderr):  # Python flushes them once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if status == INTERRUPTED:
        # Threads may be compiling or tokenizing still, and Python aborts where it ends beside them.
        os._exit(INTERRUPTED)
    sys.exit(status)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Ends this process, with one line that says why, when another one is lost or has failed.

A host that dies leaves the others waiting in a collective for ever (gloo) or until JAX aborts them
without a name. So each host counts up a number in the key-value store every second, from a thread of its own,
and one whose number stands still for too long is lost. Only one's own clock is read, so clocks may differ; a
host that was asleep itself accuses nobody.

Process 0 runs the store. Where it dies, JAX ends the others within the same second by SIGABRT, and nothing in
Python is asked before; `on_abort` prints a line then.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kcmoe.errors import UserError
from kcmoe.hosts.group import PREFIX

GO_ON = "the same command, started on all hosts, goes on from the newest checkpoint"
_PERIOD_S = 1.0
_GRACE_S = 3.0  # in which a process that fails for the same reason may say so itself


class Watch:
    """Watches the other hosts of a run.

    Attributes:
      names: what messages call the hosts, by index.
    """

    def __init__(self, client: Any, index: int, count: int, timeout_s: float):
        self.names: Sequence[str] = [f"host {number}" for number in range(count)]
        self._client, self._index, self._count = client, index, count
        self._timeout_s = timeout_s
        self._stopped = threading.Event()
        self._telling = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Begins to watch, and to be seen."""
        self._thread.start()

    def stop(self) -> None:
        """Ends watching: all are done."""
        self._stopped.set()
        self._thread.join()

    def tell(self, error: BaseException) -> None:
        """Tells the others why this process ends, and returns when they know.

        Where JAX failed because another host is gone, this does not return: the watch finds out who.
        """
        # A collective that breaks raises JaxRuntimeError or, from a compiled program, ValueError.
        by_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
        if (by_jax and "RESOURCE_EXHAUSTED" not in str(error)) or "Gloo " in str(error):
            time.sleep(self._timeout_s + 2 * _PERIOD_S)
        self._end({"text": _reason(error), "status": 2 if isinstance(error, UserError) else 1})
        self._stopped.set()

    def _watch(self) -> None:
        beat, seen, looked_s = 0, dict.fromkeys(range(self._count), ""), time.monotonic()
        heard_s = dict.fromkeys(range(self._count), looked_s)
        while not self._stopped.wait(_PERIOD_S):
            beat += 1
            try:
                alive, ended = self._ask(beat)
            except Exception:  # process 0 is gone, or about to be: JAX or silence will tell
                alive, ended = {}, {}
            now_s = time.monotonic()
            if now_s - looked_s > max(5 * _PERIOD_S, self._timeout_s / 3):
                heard_s = dict.fromkeys(heard_s, now_s)  # it is this host that was away
            looked_s = now_s
            for index, number in alive.items():
                if number != seen[index]:
                    seen[index], heard_s[index] = number, now_s
            silent_s = {index: now_s - heard_s[index] for index in range(self._count)}
            silent_s.pop(self._index)
            if ended:
                self._follow(ended)
                return
            lost = max(silent_s, key=lambda index: silent_s[index])
            if silent_s[lost] > self._timeout_s:
                text = (
                    f"{self.names[lost]} was lost: nothing heard of it for {silent_s[lost]:.0f} s; "
                    f"{GO_ON}"
                )
                self._finish({"text": text, "status": 1, "lost": lost})

    def _ask(self, beat: int) -> tuple[dict[int, str], dict[int, dict[str, Any]]]:
        self._client.key_value_set(f"{PREFIX}/alive/{self._index}", str(beat), True)
        alive = _by_index(self._client.key_value_dir_get(f"{PREFIX}/alive/"))
        ended = _by_index(self._client.key_value_dir_get(f"{PREFIX}/ended/"))
        ended.pop(self._index, None)
        return alive, {index: json.loads(text) for index, text in ended.items()}

    def _follow(self, ended: Mapping[int, dict[str, Any]]) -> None:
        """Ends this process as others have ended, unless it is just ending itself."""
        if self._stopped.wait(_GRACE_S):
            return
        index, told = min(ended.items())
        text = told["text"] if "lost" in told else f"{self.names[index]} ended: {told['text']}"
        self._finish({**told, "text": text})

    def _finish(self, told: dict[str, Any]) -> None:
        print(f"\nkcmoe: {told['text']}", file=sys.stderr, flush=True)
        self._end(told)
        os._exit(told["status"])

    def _end(self, told: dict[str, Any]) -> None:
        """Leaves word for the others; process 0, which keeps it, stays until they have read it."""
        with self._telling:
            try:
                self._client.key_value_set(f"{PREFIX}/ended/{self._index}", json.dumps(told), True)
                deadline_s = time.monotonic() + 2 * _GRACE_S + 2 * _PERIOD_S
                expected = self._count - 1 - ("lost" in told)
                while self._index == 0 and time.monotonic() < deadline_s:
                    ended = self._client.key_value_dir_get(f"{PREFIX}/ended/")
                    if len(ended) > expected:
                        time.sleep(_PERIOD_S)  # for the last of them to be gone
                        return
                    time.sleep(0.2)
            except Exception:  # there is nobody left to tell
                return


def _by_index(pairs: Sequence[tuple[str, str]]) -> dict[int, Any]:
    return {int(key.rpartition("/")[2]): value for key, value in pairs}


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:500]}"


_last_words = ""


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _answer_abort(number: int) -> None:
    del number
    os.write(2, f"\nkcmoe: {_last_words}\n".encode())
    os._exit(1)


def on_abort(line: str) -> None:
    """Prints `line` when the process is aborted, and ends it with status 1 and no core.

    JAX aborts from a thread of C++ that holds no lock of Python's, and offers no other way to be asked.
    """
    global _last_words
    _last_words = line
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(_answer_abort, ctypes.c_void_p))

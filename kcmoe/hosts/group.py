# SPDX-License-Identifier: Apache-2.0
"""What one process knows of all processes of a run, and how they agree on small things.

A call of `each` or `first_does` is made by all processes in the same order, as collectives are. It returns
when all have made it, however long that takes: a slow host is waited for, a lost one ends the process
(`kcmoe.hosts.watching`). Alone, both just call what they are given.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from kcmoe.errors import UserError

PREFIX = "kcmoe"  # of all our keys; JAX and Orbax have theirs
_POLL_MS = 2_000
_SAY_AFTER_S = 30.0


class Hosts:
    """The processes of a run; one per host, so that messages call them hosts.

    Attributes:
      index: which one this is.
      count: how many there are.
      names: what messages call them, by index.
    """

    def __init__(self, index: int = 0, count: int = 1, client: Any = None):
        self.index, self.count = index, count
        self.names: Sequence[str] = [f"host {number}" for number in range(count)]
        self._client, self._round = client, 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes records, config and the names of checkpoints."""
        return self.index == 0

    def each(self, work: Callable[[], str | None]) -> list[str]:
        """Does `work` on every host; returns what it gave on each, by index.

        Raises:
          UserError: on every host, if `work` raised one on any; it says on which.
        """
        if self.count == 1:
            return [work() or ""]
        own, mine = None, {"gave": ""}
        try:
            mine["gave"] = work() or ""
        except UserError as error:
            own, mine = error, {"refused": str(error)}
        found = [json.loads(text) for text in self._exchange(json.dumps(mine))]
        if own is not None:
            raise own
        for name, one in zip(self.names, found, strict=True):
            if "refused" in one:
                raise UserError(f"{name}: {one['refused']}")
        return [one["gave"] for one in found]

    def first_does(self, work: Callable[[], str | None]) -> str:
        """Does `work` on the first host while the others wait; returns what it gave, on every host.

        Raises:
          UserError: on every host, if `work` raised one.
        """
        return self.each(work if self.first else lambda: None)[0]

    def wait(self) -> None:
        """Returns when every host has come here."""
        self.each(lambda: None)

    def devices(self) -> list[Any] | None:
        """All devices of all hosts, those of a host next to one another; None if this one is alone."""
        if self.count == 1:
            return None
        import jax

        return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))

    def _exchange(self, text: str) -> list[str]:
        """Gives `text` to all and returns everyone's."""
        now, before = self._round, self._round - 1
        self._round += 1
        self._client.key_value_set(f"{PREFIX}/{now}/{self.index}", text)
        found = [self._await(f"{PREFIX}/{now}/{index}", index) for index in range(self.count)]
        if before >= 0:  # all have been here since, so nobody reads it any more
            self._client.key_value_delete(f"{PREFIX}/{before}/{self.index}")
        return found

    def _await(self, key: str, index: int) -> str:
        started_s, told_s = time.monotonic(), _SAY_AFTER_S
        while True:
            try:
                value: str = self._client.blocking_key_value_get(key, _POLL_MS)
                return value
            except Exception as error:  # JAX has no class of its own for a deadline
                if "DEADLINE_EXCEEDED" not in str(error):
                    time.sleep(1)  # process 0 may be gone: `watching` says so
            waited_s = time.monotonic() - started_s
            if waited_s > told_s:
                told_s *= 2
                line = f"waiting     for {self.names[index]} since {waited_s:.0f} s"
                print(line, file=sys.stderr, flush=True)


ALONE = Hosts()
"""One process, which waits for nobody."""

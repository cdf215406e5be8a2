# SPDX-License-Identifier: Apache-2.0
"""Lines of many requests computed together, each request getting its share of the machine.

Four threads compute, so that no kind of work waits for another: one for answers that take a moment, one for
those that take longer (generation, the experts' map), and one each for those of their programs that are not
compiled yet; the last one also makes ready what nobody asked for. Each takes
the request that will have had least of the machine after its turn, so that a line overtakes a thousand, and
fills the batch with lines of the same program from other requests. Every fourth time it takes the one that
has waited longest, so that none starves. Knows keys, works and costs, not what they mean.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from kcmoe.serve.errors import ApiError
from kcmoe.serve.limits import Limits
from kcmoe.serve.work import Key, Work

_log = logging.getLogger(__name__)
Lane = Literal["quick", "long", "quick, new", "long, new"]
_NEW: tuple[Lane, Lane] = ("quick, new", "long, new")
_SMALL_COST = 8
_OFTEN = 20  # batches by which a program is worth seconds of trying for a faster one
LONG_KINDS = ("generate", "experts", "sample")


@dataclasses.dataclass(eq=False)
class _Job:
    """One request: its works, what is still to be taken, and what it has cost so far."""

    works: Sequence[Work]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[list[Any]]
    arrived_s: float
    waiting: dict[Key, collections.deque[int]]
    results: list[Any]
    missing: int
    used_s: float = 0.0
    gone: bool = False

    def settle(self, error: ApiError | None = None) -> None:
        """Wakes the request up, from any thread."""

        def wake() -> None:
            if self.done.done():
                return
            if error is None:
                self.done.set_result(self.results)
            else:
                self.done.set_exception(error)

        self.gone = True
        self.loop.call_soon_threadsafe(wake)


class Batcher:
    """Computes works in threads of its own.

    Args:
      compute: (key, works) -> one answer per work.
      rows: key -> most works in a batch.
      limits: bounds of the queue and of the wait for company.
      observe: told (kind, lines, seconds, program was compiled) after each batch.
      forget: drops all compiled programs, whose number clients could otherwise raise without end.
      improve: given works of a compiled program, and whether it is in use, when nobody waits for another
        one: to make it faster.
    """

    def __init__(
        self,
        compute: Callable[[Key, Sequence[Work]], list[Any]],
        rows: Callable[[Key], int],
        limits: Limits,
        observe: Callable[[str, int, float, bool], object] = lambda *_: None,
        forget: Callable[[], object] = lambda: None,
        improve: Callable[[Key, Sequence[Work], bool], object] = lambda *_: None,
    ):
        self._compute, self._rows, self._limits = compute, rows, limits
        self._observe, self._forget, self._improve = observe, forget, improve
        self._changed = threading.Condition()
        self._jobs: list[_Job] = []
        self._warm: set[tuple[Any, ...]] = set()
        self._spare: collections.deque[Work] = collections.deque()
        self._slow: collections.deque[Work] = collections.deque()  # one of each program to improve
        self._uses: collections.Counter[tuple[Any, ...]] = collections.Counter()
        self._queued_cost = 0
        self._cost_s = 0.01  # seconds per unit of cost, a moving average
        self._picks = 0
        self._wanted = False  # whether a program is being compiled that a line waits for
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"kcmoe-{lane}", daemon=True)
            for lane in ("quick", "long", *_NEW)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        """Cost of what waits."""
        return self._queued_cost

    @property
    def programs(self) -> int:
        """How many programs are compiled."""
        return len(self._warm)

    def warm_up(self, works: Sequence[Work]) -> None:
        """Compiles the programs of `works` in moments when nobody waits for one."""
        with self._changed:
            self._spare.extend(works)
            self._changed.notify_all()

    async def submit(self, works: Sequence[Work], *, patient: bool = False) -> list[Any]:
        """The answers of `works`, in order; `patient` waits as long as it takes.

        Raises:
          ApiError: 429 if the queue is full, 503 if the answer took too long or the server stops.
        """
        if not works:
            return []
        job = self._enqueue(works)
        try:
            async with asyncio.timeout(None if patient else self._limits.answer_s):
                return await job.done
        except TimeoutError:
            raise ApiError(
                503,
                f"the answer was not ready after {self._limits.answer_s:g} s",
                "server",
                "send fewer lines at a time, or try again later",
                retry_after_s=self._wait_s(),
            ) from None
        finally:
            self._withdraw(job)

    def _enqueue(self, works: Sequence[Work]) -> _Job:
        cost = sum(work.cost for work in works)
        waiting: dict[Key, collections.deque[int]] = {}
        for index, work in enumerate(works):
            waiting.setdefault(work.key, collections.deque()).append(index)
        loop = asyncio.get_running_loop()
        job = _Job(
            works, loop, loop.create_future(), time.monotonic(), waiting, [None] * len(works), len(works)
        )  # fmt: skip
        with self._changed:
            if self._stopped:
                raise ApiError(503, "the server is stopping", "server", "ask another one", 5)
            # An eighth more for small requests: who asks for a line finds a place beside those who fill it.
            room = self._limits.queue + (self._limits.queue // 8 if cost <= _SMALL_COST else 0)
            if self._queued_cost and self._queued_cost + cost > room:
                raise ApiError(
                    429,
                    f"{self._queued_cost:,} lines are waiting already, and {cost:,} more are too many",
                    "server",
                    "try again after the time in Retry-After, or send fewer lines at a time",
                    retry_after_s=self._wait_s(),
                )
            self._queued_cost += cost
            self._jobs.append(job)
            self._changed.notify_all()
        return job

    def _withdraw(self, job: _Job) -> None:
        """Forgets what is left of a request that is answered, too late, or whose client is gone."""
        with self._changed:
            job.gone = True
            for indices in job.waiting.values():
                self._queued_cost -= sum(job.works[i].cost for i in indices)
            job.waiting.clear()
            if job in self._jobs:
                self._jobs.remove(job)

    def _wait_s(self) -> int:
        return max(1, min(60, round(self._queued_cost * self._cost_s)))

    def stop(self) -> None:
        """Ends the threads after the batches they are at; what waits is answered with 503."""
        with self._changed:
            self._stopped = True
            for job in self._jobs:
                job.settle(ApiError(503, "the server is stopping", "server", "ask another one", 5))
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=2)

    @property
    def busy(self) -> bool:
        """Whether a thread is still at work, which after `stop` is a compiler that cannot be interrupted."""
        return any(thread.is_alive() for thread in self._threads)

    # --- In the threads.

    def _lane(self, key: Key) -> Lane:
        warm, long = key.program in self._warm, key.kind in LONG_KINDS
        if warm:
            return "long" if long else "quick"
        return "long, new" if long else "quick, new"

    def _run(self, lane: Lane) -> None:
        while (taken := self._take(lane)) is not None:
            key, members, works = taken
            if not works:
                self._make_faster()
                continue
            started_s = time.monotonic()
            error: ApiError | None = None
            try:
                answers = self._compute(key, works)
            except Exception:  # one bad batch must not end the thread
                _log.exception("a batch of %d lines (%s) failed", len(works), key)
                failed = ApiError(500, "the server failed", "server", "see its log, and report it")
                answers, error = [], failed
            seconds = time.monotonic() - started_s
            self._deliver(lane, key, members, works, answers, error, seconds)

    def _make_faster(self) -> None:
        work = self._slow.popleft()
        try:
            self._improve(work.key, [work], self._uses[work.key.program] >= _OFTEN)
        except Exception:  # it works as it is
            _log.exception("%s cannot be made faster", work.key)

    def _take(self, lane: Lane) -> tuple[Key, list[tuple[_Job, int]], list[Work]] | None:
        """The next batch of a lane, when there is one, or none of a program to improve; None at the end."""
        with self._changed:
            while not self._stopped:
                first = self._choose(lane)
                if first is None:
                    if lane == "long, new" and self._wanted:  # two compilers take twice as long
                        self._changed.wait()
                        continue
                    if lane == "long, new" and self._spare:
                        work = self._spare.popleft()
                        if work.key.program not in self._warm:
                            return work.key, [], [work]
                        continue
                    if lane == "long, new" and self._slow:
                        return self._slow[0].key, [], []
                    self._changed.wait()
                    continue
                job, key = first
                rows = self._rows(key)
                left_s = job.arrived_s + self._limits.window_ms / 1000 - time.monotonic()
                if left_s > 0 and self._waiting(key) < rows:
                    self._changed.wait(left_s)
                    continue
                members = self._gather(job, key, rows)
                self._wanted = self._wanted or lane == "quick, new"
                return key, members, [one.works[index] for one, index in members]
        return None

    def _choose(self, lane: Lane) -> tuple[_Job, Key] | None:
        """The request whose turn it is, and one of its programs that this lane computes."""
        self._picks += 1
        fair = self._picks % 4 != 0
        best: tuple[float, float] | None = None
        found = None
        for job in self._jobs:
            key = next((k for k in job.waiting if self._lane(k) == lane), None)
            if key is None:
                continue
            # What it would have had after its next batch: of two that had nothing yet, the smaller first.
            next_s = self._cost_s * min(len(job.waiting[key]), self._rows(key))
            rank = (job.used_s + next_s if fair else 0.0, job.arrived_s)
            if best is None or rank < best:
                best, found = rank, (job, key)
        return found

    def _waiting(self, key: Key) -> int:
        return sum(len(job.waiting.get(key, ())) for job in self._jobs)

    def _gather(self, first: _Job, key: Key, rows: int) -> list[tuple[_Job, int]]:
        """Up to `rows` lines of `key`: one of `first`, then one of each request in turn."""
        jobs = [first, *(job for job in self._jobs if job is not first and key in job.waiting)]
        members: list[tuple[_Job, int]] = []
        while jobs and len(members) < rows:
            for job in list(jobs):
                if len(members) == rows:
                    break
                index = job.waiting[key].popleft()
                self._queued_cost -= job.works[index].cost
                members.append((job, index))
                if not job.waiting[key]:
                    del job.waiting[key]
                    jobs.remove(job)
        return members

    def _deliver(
        self,
        lane: Lane,
        key: Key,
        members: Sequence[tuple[_Job, int]],
        works: Sequence[Work],
        answers: Sequence[Any],
        error: ApiError | None,
        seconds: float,
    ) -> None:
        cost = sum(work.cost for work in works)
        crowded = False
        with self._changed:
            self._wanted = self._wanted and lane != "quick, new"
            if lane in _NEW and error is None:
                self._warm.add(key.program)
                self._slow.append(works[0])
                crowded = len(self._warm) > self._limits.programs
                if crowded:
                    self._warm.clear()
                    self._slow.clear()
                    self._uses.clear()
            elif lane not in _NEW:
                self._uses[key.program] += 1
                if self._uses[key.program] == _OFTEN:
                    self._slow.append(works[0])
                self._cost_s += 0.1 * (seconds / cost - self._cost_s)
            for position, (job, index) in enumerate(members):
                # Compiling is nobody's fault: it is not counted against the request that came first.
                job.used_s += 0.0 if lane in _NEW else seconds / len(members)
                if job.gone:
                    continue
                if error is not None:
                    job.settle(error)
                    continue
                job.results[index] = answers[position]
                job.missing -= 1
                if not job.missing:
                    job.settle()
            self._changed.notify_all()
        if crowded:
            self._forget()
        self._observe(key.kind, len(works), seconds, lane in _NEW)

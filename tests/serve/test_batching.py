# SPDX-License-Identifier: Apache-2.0
"""The queue: lines of one program together, a share for every request, an end to everything."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs pip install -c constraints.txt '.[serve]'")

from kcmoe.serve.batching import Batcher
from kcmoe.serve.errors import ApiError
from kcmoe.serve.limits import Bodies, Limits
from kcmoe.serve.work import Key, Work

ROWS = 4


class Computer:
    """Answers with the first id, after a while, and remembers its batches."""

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds
        self.batches: list[tuple[Key, list[int]]] = []
        self._lock = threading.Lock()

    def __call__(self, key: Key, works: Sequence[Work]) -> list[Any]:
        time.sleep(self.seconds)
        ids = [work.ids[0][0] for work in works]
        with self._lock:
            self.batches.append((key, ids))
        if 666 in ids:
            raise RuntimeError("a bug")
        return ids


def works(*ids: int, kind: str = "classify", length: int = 16) -> list[Work]:
    return [Work(Key(kind, (), (length,)), ((one,),)) for one in ids]


def batcher(computer: Computer, **limits: Any) -> Batcher:
    given = {"window_ms": 30.0, **limits}
    return Batcher(computer, lambda key: ROWS, Limits(**given))


def test_lines_of_many_requests_share_batches_by_program() -> None:
    computer = Computer()
    queue = batcher(computer)

    async def ask() -> list[list[Any]]:
        await queue.submit([*works(0), *works(0, length=32)])  # both programs are warm from here on
        computer.batches.clear()
        mixed = [[*works(i), *works(100 + i, length=32)] for i in range(1, 5)]
        return await asyncio.gather(*(queue.submit(one) for one in mixed))

    assert asyncio.run(ask()) == [[i, 100 + i] for i in range(1, 5)]
    assert len(computer.batches) == 2
    assert all(len(ids) == ROWS for _, ids in computer.batches)
    queue.stop()


def test_programs_are_made_faster_when_nobody_waits_for_another() -> None:
    computer, improved = Computer(), list[tuple[Key, bool]]()
    done = threading.Event()

    def improve(key: Key, some: Sequence[Work], in_use: bool) -> None:
        improved.append((key, in_use))
        assert [work.key for work in some] == [key]
        if len(improved) == 3:
            done.set()
        raise RuntimeError("no harm is done")

    queue = Batcher(computer, lambda key: ROWS, Limits(), improve=improve)

    async def ask() -> None:
        for length in (16, 32, *[16] * 20):
            await queue.submit(works(1, length=length))

    asyncio.run(ask())
    assert done.wait(10)
    found = sorted((key.lengths[0], in_use) for key, in_use in improved)
    assert found == [(16, False), (16, True), (32, False)]
    queue.stop()


def test_a_small_request_does_not_wait_for_a_large_one() -> None:
    computer = Computer(0.02)
    queue = batcher(computer, window_ms=1.0)

    async def ask() -> tuple[float, float]:
        await queue.submit(works(0))
        started = time.monotonic()
        large = asyncio.create_task(queue.submit(works(*range(400))))
        await asyncio.sleep(0.1)
        asked = time.monotonic()
        await queue.submit(works(7))
        small_s = time.monotonic() - asked
        await large
        return small_s, time.monotonic() - started

    small_s, large_s = asyncio.run(ask())
    assert large_s > 1.5  # a hundred batches
    assert small_s < 0.5
    queue.stop()


def test_a_line_overtakes_many_that_came_before_it() -> None:
    computer = Computer(0.02)
    queue = batcher(computer, window_ms=1.0)

    async def ask() -> None:
        await queue.submit([*works(0), *works(0, length=32)])
        computer.batches.clear()
        large = [asyncio.create_task(queue.submit(works(*range(40)))) for _ in range(20)]
        await asyncio.sleep(0.01)
        before = len(computer.batches)
        await queue.submit(works(7, length=32))
        place = [key.lengths for key, _ in computer.batches].index((32,))
        assert place - before < 12  # not one for each of those before it
        for one in large:
            one.cancel()
        await asyncio.gather(*large, return_exceptions=True)

    asyncio.run(ask())
    queue.stop()


def test_a_program_that_is_being_compiled_holds_up_no_other() -> None:
    compiling, may_go = threading.Event(), threading.Event()

    def compute(key: Key, given: Sequence[Work]) -> list[Any]:
        if key.kind == "generate":
            compiling.set()
            may_go.wait(10)
        return [work.ids[0][0] for work in given]

    queue = Batcher(compute, lambda key: ROWS, Limits(window_ms=1.0))

    async def ask() -> None:
        await queue.submit(works(1))
        cold = asyncio.create_task(queue.submit(works(2, kind="generate")))
        while not compiling.is_set():
            await asyncio.sleep(0.01)
        assert await asyncio.wait_for(queue.submit(works(3)), 5) == [3]
        # A line of a length that is new, too, does not wait for the program of a search.
        assert await asyncio.wait_for(queue.submit(works(4, length=99)), 5) == [4]
        assert not cold.done()
        may_go.set()
        assert await cold == [2]

    asyncio.run(ask())
    queue.stop()


def test_nothing_is_made_ready_unasked_while_a_line_waits_for_its_program() -> None:
    compiling, may_go, warmed = threading.Event(), threading.Event(), threading.Event()

    def compute(key: Key, given: Sequence[Work]) -> list[Any]:
        if key.lengths == (99,):
            compiling.set()
            may_go.wait(10)
        if key.lengths == (32,):
            assert may_go.is_set()
            warmed.set()
        return [work.ids[0][0] for work in given]

    queue = Batcher(compute, lambda key: ROWS, Limits(window_ms=1.0))

    async def ask() -> None:
        waiting = asyncio.create_task(queue.submit(works(2, length=99)))
        while not compiling.is_set():
            await asyncio.sleep(0.01)
        queue.warm_up(works(1, length=32))
        assert not warmed.wait(0.2)
        may_go.set()
        assert await waiting == [2]
        assert warmed.wait(5)

    asyncio.run(ask())
    queue.stop()


def test_programs_are_dropped_where_clients_ask_for_ever_more() -> None:
    forgotten: list[int] = []
    queue = Batcher(
        Computer(), lambda key: ROWS, Limits(window_ms=1.0, programs=3),
        forget=lambda: forgotten.append(1),
    )  # fmt: skip

    async def ask() -> None:
        for length in (16, 32, 48, 16, 32, 48):
            await queue.submit(works(1, length=length))
        assert not forgotten and queue.programs == 3
        await queue.submit(works(1, length=64))
        await queue.submit(works(1, length=16))
        assert len(forgotten) == 1 and queue.programs == 1

    asyncio.run(ask())
    queue.stop()


def test_numbers_divide_batches_but_need_no_program() -> None:
    computer = Computer()
    queue = batcher(computer)

    def valued(value: float) -> list[Work]:
        return [Work(Key("generate", (1,), (16,), (value,)), ((int(10 * value),),))]

    async def ask() -> None:
        await queue.submit(valued(0.5))
        found = await asyncio.gather(*(queue.submit(valued(v)) for v in (0.1, 0.2, 0.1)))
        assert found == [[1], [2], [1]]

    asyncio.run(ask())
    assert sorted(ids for _, ids in computer.batches[1:]) == [[1, 1], [2]]
    assert queue.programs == 1
    queue.stop()


def test_a_compiler_that_goes_on_at_the_end_is_told_of() -> None:
    """Python must not end such a thread, or the process aborts in C++; `kcmoe serve` leaves at once."""
    may_go = threading.Event()
    queue = Batcher(lambda key, given: [may_go.wait(30)], lambda key: ROWS, Limits(window_ms=1.0))

    async def ask() -> None:
        waiting = asyncio.create_task(queue.submit(works(1)))
        await asyncio.sleep(0.1)
        queue.stop()
        with pytest.raises(ApiError, match="stopping"):
            await waiting

    asyncio.run(ask())
    assert queue.busy
    may_go.set()
    for _ in range(100):
        time.sleep(0.02 if queue.busy else 0.0)
    assert not queue.busy


def test_the_queue_refuses_what_is_too_much_and_recovers() -> None:
    computer = Computer(0.05)
    queue = batcher(computer, queue=10, window_ms=200.0)

    async def ask() -> None:
        first = asyncio.create_task(queue.submit(works(*range(10))))
        await asyncio.sleep(0.02)
        with pytest.raises(ApiError) as refused:
            await queue.submit(works(*range(10)))
        assert refused.value.status == 429
        await queue.submit(works(3))  # a single line finds a place
        assert refused.value.retry_after_s is not None
        assert refused.value.retry_after_s >= 1
        await first
        assert queue.queued == 0
        assert await queue.submit(works(5)) == [5]

    asyncio.run(ask())
    queue.stop()


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    queue = batcher(Computer(0.05), answer_s=0.12, window_ms=1.0)

    async def ask() -> None:
        with pytest.raises(ApiError) as late:
            await queue.submit(works(*range(100)))
        assert late.value.status == 503
        assert queue.queued == 0

    asyncio.run(ask())
    queue.stop()


def test_a_failing_batch_is_a_500_and_the_next_one_works() -> None:
    queue = batcher(Computer())

    async def ask() -> None:
        with pytest.raises(ApiError) as failed:
            await queue.submit(works(666))
        assert failed.value.status == 500
        assert await queue.submit(works(1)) == [1]

    asyncio.run(ask())
    queue.stop()


def test_a_body_has_a_size_and_a_time() -> None:
    async def chunks(count: int, pause_s: float = 0.0) -> Any:
        for _ in range(count):
            await asyncio.sleep(pause_s)
            yield b"x" * 10

    async def status(bodies: Bodies, stream: Any, declared: str | None = None) -> int:
        try:
            await bodies.read(stream, declared)
        except ApiError as error:
            return error.status
        return 200

    bodies = Bodies(Limits(body_bytes=100, body_s=0.2))
    assert asyncio.run(status(bodies, chunks(10))) == 200
    assert asyncio.run(status(bodies, chunks(11))) == 413
    assert asyncio.run(status(bodies, chunks(1), "101")) == 413
    assert asyncio.run(status(bodies, chunks(10, 0.05))) == 408
    assert bodies.held_bytes == 0
    bodies = Bodies(Limits(bodies_bytes=15))
    assert asyncio.run(status(bodies, chunks(2))) == 503

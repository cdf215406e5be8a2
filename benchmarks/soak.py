# SPDX-License-Identifier: Apache-2.0
"""A server under mixed load for a long time: its memory, and the latency of a client that behaves.

  python benchmarks/soak.py --checkpoint=runs/quickstart/reviews --task=sample_reviews --minutes=60

Some clients classify, generate, embed and ask for maps; some send nonsense, vanish, or send a byte at a
time; one asks for a single line at intervals, and its latency is printed with the server's memory. The exit
status is 1 if memory grew by more than a twentieth after the first third. Reads /proc, so Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from serve import ask, lines_of_reviews, start, stop

_GROWTH = 0.05
_NONSENSE = [
    b"",
    b"{",
    b"\xff\xff",
    b'{"texts": 1}',
    b'{"texts": ["' + b"x" * 3_000_000 + b'"]}',
    b"[" * 9999,
]


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


async def good(port: int, task: str, texts: list[str], rng: random.Random) -> None:
    """One well-formed request of any kind."""
    text = rng.choice(texts)
    path, body = rng.choice(
        [
            ("/v1/classify", {"texts": rng.sample(texts, rng.randint(1, 40)), "task": task}),
            ("/v1/embed", {"texts": [text]}),
            ("/v1/score", {"inputs": [text], "targets": ["긍정적"]}),
            ("/v1/experts", {"text": text}),
            ("/v1/generate", {"texts": [text + " <extra_id_0>"], "beams": 2, "max_tokens": 16}),
        ]
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        await ask(reader, writer, path, body)


async def bad(port: int, task: str, texts: list[str], rng: random.Random) -> None:
    """One that means harm: nonsense, a client that vanishes, or one that sends a byte at a time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with contextlib.closing(writer):
        kind = rng.random()
        if kind < 0.2:
            for byte in head:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.2)
        body = rng.choice(_NONSENSE)
        writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        if kind > 0.5:
            await reader.read(100_000)


async def forever(
    act: Callable[[int, str, list[str], random.Random], Awaitable[None]],
    port: int, task: str, texts: list[str], seed: int, pause_s: float,
) -> None:  # fmt: skip
    """One client after the other."""
    rng = random.Random(seed)
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await act(port, task, texts, rng)
        await asyncio.sleep(rng.uniform(0, 2 * pause_s))


async def probe(port: int, task: str) -> float:
    """Milliseconds that one line takes, with its connection."""
    started_s = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        status, content = await ask(
            reader, writer, "/v1/classify", {"texts": ["재미있다"], "task": task}
        )
    if status != 200:
        print(content.decode(), file=sys.stderr)
    return 1000 * (time.monotonic() - started_s)


async def soak(port: int, pid: int, args: argparse.Namespace) -> list[float]:
    """Memory in MB at every interval."""
    texts = lines_of_reviews()
    jobs = [
        asyncio.create_task(forever(act, port, args.task, texts, seed, args.pause_s))
        for seed, act in enumerate([good] * args.clients + [bad] * args.clients)
    ]
    found, until_s = [], time.monotonic() + 60 * args.minutes
    print(f"{'minute':>8}{'MB':>9}{'p50 ms':>9}{'worst ms':>10}")
    while time.monotonic() < until_s:
        latencies = []
        for _ in range(20):
            latencies.append(await probe(port, args.task))
            await asyncio.sleep(args.interval_s / 20)
        found.append(memory_mb(pid))
        minute = args.minutes - (until_s - time.monotonic()) / 60
        middle = sorted(latencies)[len(latencies) // 2]
        print(f"{minute:>8.1f}{found[-1]:>9.0f}{middle:>9.1f}{max(latencies):>10.1f}", flush=True)
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    return found


def main() -> None:
    """Runs the soak."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--task", default="nsmc")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--interval_s", type=float, default=15.0)
    parser.add_argument("--clients", type=int, default=4, help="of each sort, good and bad")
    parser.add_argument(
        "--pause_s", type=float, default=0.01, help="mean, between a client's requests"
    )
    args = parser.parse_args()
    # It would warn of the sockets that clients drop on purpose.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    process, port = start(args.checkpoint)
    try:
        found = asyncio.run(soak(port, process.pid, args))
    finally:
        stop(process)
    early = max(found[: max(1, len(found) // 3)])
    growth = found[-1] / early - 1
    print(f"memory: {early:.0f} MB at most in the first third, {found[-1]:.0f} MB at the end")
    sys.exit(growth > _GROWTH)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Lines a second and latency of `kcmoe serve` at 1, 16 and 64 clients, beside a plain loop.

  python benchmarks/serve.py --checkpoint=runs/quickstart/reviews --task=sample_reviews

Each client sends one line, waits for its answer and sends the next. The loop calls `lm.classify([line])`, as
somebody without a server would; the last row classifies all lines at once, which is what batching could
reach at best. Everything stays on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence

from kcmoe.io import resources


def lines_of_reviews() -> list[str]:
    """The shipped reviews, in an order that is always the same."""
    rows = (
        (resources.find("kcmoe/samples") / "reviews_train.tsv").read_text("utf-8").splitlines()[1:]
    )
    texts = [row.split("\t")[-2] for row in rows]
    random.Random(0).shuffle(texts)
    return texts


def start(checkpoint: str, *options: str) -> tuple[subprocess.Popen[str], int]:
    """A server that has computed its first answer, and its port."""
    command = [
        sys.executable,
        "-m",
        "kcmoe",
        "serve",
        f"--checkpoint={checkpoint}",
        "--port=0",
        *options,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    assert process.stdout is not None
    port = int(process.stdout.readline().rsplit(":", 1)[1])
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz"):
                return process, port
        except OSError:
            time.sleep(0.05)


def first_answer_s(checkpoint: str, task: str) -> float:
    """From the start of a process to its first answer over HTTP."""
    started_s = time.monotonic()
    process, port = start(checkpoint)
    try:
        asyncio.run(client(port, ["정말 재미있다"], task, 0.0))
        return time.monotonic() - started_s
    finally:
        stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    """Ends a server."""
    process.send_signal(signal.SIGTERM)
    process.wait(60)


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: object
) -> tuple[int, bytes]:
    """Status and content of the answer to one request on an open connection."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    answer = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in answer.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    )
    return int(answer.split()[1]), await reader.readexactly(length)


async def client(port: int, texts: Sequence[str], task: str, until_s: float) -> list[float]:
    """Seconds that each request took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found: list[float] = []
    number = 0
    while not found or time.monotonic() < until_s:
        started_s = time.monotonic()
        body = {"texts": [texts[number % len(texts)]], "task": task}
        status, content = await ask(reader, writer, "/v1/classify", body)
        if status != 200:
            raise SystemExit(content.decode())
        found.append(time.monotonic() - started_s)
        number += 1
    writer.close()
    return found


async def measure(port: int, clients: int, task: str, seconds: float) -> list[float]:
    """Latencies of all requests of so many clients in so many seconds."""
    texts = lines_of_reviews()
    until_s = time.monotonic() + seconds
    jobs = [client(port, texts[n * 37 % 600 :], task, until_s) for n in range(clients)]
    return [one for found in await asyncio.gather(*jobs) for one in found]


def row(name: str, latencies: Sequence[float], seconds: float, lines: int = 0) -> str:
    """One line of the table."""
    ordered = sorted(latencies)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    rate = (lines or len(ordered)) / seconds
    return f"{name:<28}{rate:>9,.0f}{1000 * statistics.median(ordered):>9.1f}{1000 * p99:>9.1f}"


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--task", default="nsmc")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=10.0, help="per number of clients")
    args = parser.parse_args()

    seconds = [first_answer_s(args.checkpoint, args.task) for _ in range(4)][1:]
    print(f"start to first answer, warm: {statistics.median(seconds):.2f} s")
    print(f"{'':<28}{'lines/s':>9}{'p50 ms':>9}{'p99 ms':>9}", flush=True)
    process, port = start(args.checkpoint)
    try:
        asyncio.run(measure(port, 16, args.task, args.seconds / 2))  # compiles what is needed
        for clients in args.clients:
            found = asyncio.run(measure(port, clients, args.task, args.seconds))
            print(row(f"kcmoe serve, {clients} clients", found, args.seconds), flush=True)
    finally:
        stop(process)

    import kcmoe

    lm, texts = kcmoe.load(args.checkpoint), lines_of_reviews()
    for text in texts:
        lm.classify([text], task=args.task)
    found, until_s = [], time.monotonic() + args.seconds
    while time.monotonic() < until_s:
        started_s = time.monotonic()
        lm.classify([texts[len(found) % len(texts)]], task=args.task)
        found.append(time.monotonic() - started_s)
    print(row("loop over lm.classify", found, args.seconds), flush=True)
    started_s = time.monotonic()
    lm.classify(texts, task=args.task)
    seconds = time.monotonic() - started_s
    print(row("lm.classify, all at once", [seconds], seconds, len(texts)))


if __name__ == "__main__":
    main()

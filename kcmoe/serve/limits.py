# SPDX-License-Identifier: Apache-2.0
"""What one client, and all of them together, may ask of the server; and reading a body within it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

from kcmoe.serve.errors import ApiError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of the server; every one has an answer of its own when it is reached.

    Attributes:
      body_bytes: largest body of a request; 413.
      bodies_bytes: bodies held in memory at once; 503.
      lines: texts in one request; 413.
      characters: of one text; 413.
      queue: work that waits, in lines (a generated line counts once per beam); 429.
      beams: largest beam search; 422.
      new_tokens: longest generated answer; 422.
      body_s: time in which a body must have arrived; 408.
      answer_s: time from the last byte of a request to its answer; 503.
      connections: open at once; 503.
      programs: compiled and held at once, about 35 MB each at tiny, with the one for few lines beside it;
        beyond it all are dropped.
      window_ms: how long a line waits for others of its length.
    """

    body_bytes: int = 2_000_000
    bodies_bytes: int = 100_000_000
    lines: int = 1024
    characters: int = 20_000
    queue: int = 8192
    beams: int = 8
    new_tokens: int = 256
    body_s: float = 10.0
    answer_s: float = 60.0
    connections: int = 1000
    programs: int = 64
    window_ms: float = 2.0


class Bodies:
    """Reads bodies and knows how many bytes of them are held."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self.held_bytes = 0

    async def read(self, chunks: AsyncIterator[bytes], declared: str | None) -> bytes:
        """The whole body.

        Args:
          chunks: its parts as they arrive.
          declared: Content-Length, if the client sent it.

        Raises:
          ApiError: 408, 413 or 503.
        """
        limits = self._limits
        if declared is not None and declared.isdigit() and int(declared) > limits.body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(limits.body_s):
                async for chunk in chunks:
                    size += len(chunk)
                    self.held_bytes += len(chunk)
                    parts.append(chunk)
                    if size > limits.body_bytes:
                        raise self._too_large()
                    if self.held_bytes > limits.bodies_bytes:
                        raise ApiError(
                            503, "the server holds as many request bodies as it may", "server",
                            "try again", retry_after_s=2, close=True,
                        )  # fmt: skip
        except TimeoutError:
            raise ApiError(
                408, f"the body had not arrived after {limits.body_s:g} s", "request body",
                "send the request in one go", close=True,
            ) from None  # fmt: skip
        finally:
            self.held_bytes -= size
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is larger than {self._limits.body_bytes:,} bytes", "request body",
            f"send at most {self._limits.lines:,} texts at a time, in several requests", close=True,
        )  # fmt: skip

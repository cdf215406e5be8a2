# SPDX-License-Identifier: Apache-2.0
"""uvicorn's HTTP/1.1 protocol, with what it lacks: a time limit for headers, and its own errors as JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from kcmoe.serve.errors import ApiError
from kcmoe.serve.limits import Limits


def protocol_for(limits: Limits) -> type[H11Protocol]:
    """The protocol class under these limits."""

    class Protocol(H11Protocol):
        """Closes a connection that does not send the head of a request within `limits.body_s`."""

        _head_timer: asyncio.TimerHandle | None = None
        _was_slow = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                why = f"{limits.connections:,} connections are open already"
                self._send_whole(503, ApiError(503, why, "server", "try again", 2, close=True))
                return
            self._head_timer = self.loop.call_later(limits.body_s, self._give_up)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
            super().connection_lost(exc)

        def _give_up(self) -> None:
            """Looks at intervals: twice in the middle of a head, or nothing at all yet, is too slow."""
            idle = self.conn.their_state is h11.IDLE
            slow = idle and bool(self.conn.trailing_data[0])
            if (slow and self._was_slow) or (idle and self.cycle is None):
                self.transport.close()
                return
            self._was_slow = slow
            self._head_timer = self.loop.call_later(limits.body_s, self._give_up)

        def send_400_response(self, msg: str) -> None:
            error = ApiError(400, msg, "request head", "speak HTTP/1.1", close=True)
            self._send_whole(400, error)

        def _send_whole(self, status: int, error: ApiError) -> None:
            body = json.dumps(error.as_json()).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                *error.headers().items(),
            ]
            parts = (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            for part in parts:
                self.transport.write(self.conn.send(part) or b"")
            self.transport.close()

    return Protocol

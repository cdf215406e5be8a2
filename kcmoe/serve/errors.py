# SPDX-License-Identifier: Apache-2.0
"""What a client is told when it gets no answer: status, what is wrong, where, how to mend it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class ApiError(Exception):
    """Ends a request.

    Attributes:
      status: HTTP status.
      what: what is wrong, one sentence.
      where: the part of the request or of the server that is meant, e.g. "texts[3]".
      mend: what the client can do.
      retry_after_s: whole seconds after which another try may succeed, None where none will.
      close: whether the connection ends, because the rest of the request was not read.
    """

    status: int
    what: str
    where: str
    mend: str
    retry_after_s: int | None = None
    close: bool = False

    def as_json(self) -> dict[str, object]:
        """The body of the answer."""
        error: dict[str, object] = {
            "status": self.status,
            "what": self.what,
            "where": self.where,
            "mend": self.mend,
        }
        if self.retry_after_s is not None:
            error["retry_after_s"] = self.retry_after_s
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Further headers of the answer."""
        found = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return {**found, "connection": "close"} if self.close else found


def refused(what: str, where: str, mend: str) -> ApiError:
    """422: the request was understood and cannot be done."""
    return ApiError(422, what, where, mend)

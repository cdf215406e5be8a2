# SPDX-License-Identifier: Apache-2.0
"""JSON that others wrote, read so that only one kind of error can come of it."""

from __future__ import annotations

import json
from typing import Any


def parse(text: str | bytes) -> Any:
    """Returns the value of a JSON text, UTF-8 where it is bytes.

    Raises ValueError if it is not JSON, or nested deeper than anything real is.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("brackets or braces are nested too deeply") from None

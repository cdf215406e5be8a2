# SPDX-License-Identifier: Apache-2.0
"""The one exception that means "the person can mend this".

Everything a user can get wrong (a misspelt gin name, a cut checkpoint, a missing column) is raised as
`UserError`; the command line prints it as one line and exits with status 2. Any other exception is a
failure of ours and exits with status 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What is wrong, where, and how to mend it, in one line."""


def near_misses(name: str, candidates: Iterable[str], limit: int = 3, cutoff: float = 0.6) -> str:
    """Returns " Did you mean A or B?" for the candidates closest to `name`, or "" if none is close.

    `cutoff` is difflib's: 1 asks for the same letters in the same order.
    """
    by_folded = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), by_folded, n=limit, cutoff=cutoff)
    if not close:
        return ""
    return f" Did you mean {' or '.join(by_folded[folded] for folded in close)}?"

# SPDX-License-Identifier: Apache-2.0
"""How a run shows itself: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time

LINE_PERIOD_S = 10.0


class Progress:
    """Steps done of all, with loss, speed and time left."""

    def __init__(self, start_step: int, total_steps: int):
        from tqdm import tqdm

        self._total = total_steps
        self._bar = tqdm(
            initial=start_step, total=total_steps, disable=None, unit="step", dynamic_ncols=True
        )
        self._last_line_s = float("-inf")

    def update(
        self, step: int, loss: float, tokens_per_s: float, flops_per_s: float, step_s: float
    ) -> None:
        """Shows step `step`; `step_s` seconds per step give the time left."""
        speed = f"{tokens_per_s:,.0f} tokens/s, {_flops(flops_per_s)}"
        if not self._bar.disable:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {speed}", refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now_s = time.monotonic()
        if now_s - self._last_line_s >= LINE_PERIOD_S or step == self._total:
            self._last_line_s = now_s
            left = _duration((self._total - step) * step_s)
            self.say(f"step {step:,}/{self._total:,}  loss {loss:.4f}  {speed}  {left} left")

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar.disable:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


def _flops(per_second: float) -> str:
    """1.2e12 -> "1.20 TFLOP/s"."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if per_second >= factor:
            return f"{per_second / factor:.2f} {prefix}FLOP/s"
    return f"{per_second / 1e6:.2f} MFLOP/s"


def _duration(seconds: float) -> str:
    """3725 -> "1:02:05"."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"

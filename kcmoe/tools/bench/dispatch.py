# SPDX-License-Identifier: Apache-2.0
"""`kcmoe bench dispatch`: which way to the experts is fastest on this device.

Times one MoE block forward and backward, for each routing and dispatch and several numbers of tokens. What
`DISPATCH = 'auto'` would take is marked; where another one wins by more than the noise, that is worth a line
in kcmoe/model/dispatch_choice.py.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

from kcmoe.config.arguments import Parser, between
from kcmoe.errors import UserError
from kcmoe.io.drawing import Picture
from kcmoe.tools.bench import figures

_EPILOG = """\
examples:
  kcmoe bench dispatch --size=mini
  kcmoe bench dispatch --size=base --tokens=4096,32768
  kcmoe bench dispatch --gin NUM_EXPERTS=64
"""
ROUTINGS: tuple[Any, ...] = ("capacity", "dropless")
WAYS: tuple[Any, ...] = ("gather", "exchange", "einsum", "grouped", "ragged")


def main(argv: list[str]) -> int:
    """Runs `kcmoe bench dispatch`; returns the exit status."""
    parser = Parser(
        prog="kcmoe bench dispatch", description="ways to the experts, timed", epilog=_EPILOG
    )
    parser.add_argument("--size", default="tiny", help="a file of configs/sizes (default: tiny)")
    parser.add_argument("--tokens", default="64,512,4096", help="numbers of tokens, by commas")
    parser.add_argument("--gin", metavar="NAME=VALUE", action="append", default=[], help="a macro")
    parser.add_argument(
        "--repeats", type=between(int, 1, 10**6), default=7, help="timings each (default: 7)"
    )
    figures.add_outputs(parser)
    args = parser.parse_args(argv)
    try:
        tokens = [int(number) for number in args.tokens.split(",")]
    except ValueError:
        raise UserError(f"--tokens={args.tokens}, but it takes whole numbers by commas") from None
    if not all(1 <= count <= 1 << 24 for count in tokens):
        raise UserError(f"--tokens={args.tokens}, but each is from 1 to {1 << 24:,}")

    import jax

    from kcmoe.model import current_platform
    from kcmoe.model.dispatch import Dispatch
    from kcmoe.tools.bench.worker import StepShape, model_config

    config = model_config(StepShape(args.size, 1, 1, 1, tuple(args.gin)))
    rows: list[dict[str, Any]] = []
    for count in tokens:
        for routing in ROUTINGS:
            asked = dataclasses.replace(config, routing=routing, dispatch="auto")
            auto = Dispatch.of(asked, count, train=False, platform=current_platform()).way
            for way in WAYS:
                one = dataclasses.replace(config, routing=routing, dispatch=way)
                milliseconds = [s * 1e3 for s in _seconds(one, count, args.repeats)]
                rows.append(
                    {
                        "tokens": count,
                        "routing": routing,
                        "dispatch": way + (" (auto)" if way == auto else ""),
                        "ms": statistics.median(milliseconds),
                        "min": min(milliseconds),
                        "max": max(milliseconds),
                    }
                )
    title = f"one MoE block of {args.size}, forward and backward; {jax.devices()[0].device_kind}"
    print(title)
    print(figures.table(rows))
    figures.write(args, {"rows": rows}, lambda: _picture(title, rows))
    return 0


def _picture(title: str, rows: list[dict[str, Any]]) -> Picture:
    drawn = [
        {
            "work": f"{row['tokens']:,} tokens, {row['routing']}",
            "way": row["dispatch"].removesuffix(" (auto)"),
            "ms": row["ms"],
        }
        for row in rows
    ]
    return figures.bars("dispatch", f"Milliseconds: {title}", drawn, "work", "ms", "way")


def _seconds(config: Any, tokens: int, repeats: int) -> list[float]:
    """Seconds of each of `repeats` forward and backward passes, after a warm-up."""
    import jax
    import jax.numpy as jnp

    from kcmoe.model import current_platform
    from kcmoe.model.moe import MoeLayer

    layer = MoeLayer(config, current_platform())
    x = jax.random.normal(jax.random.key(0), (1, tokens, config.embed_dim))
    x = x.astype(config.activation_dtype)
    params = jax.jit(layer.init, static_argnums=2)(jax.random.key(1), x, True)["params"]

    @jax.jit
    def gradients(params: Any, x: jax.Array) -> Any:
        def loss(params: Any, x: jax.Array) -> jax.Array:
            return jnp.sum(layer.apply({"params": params}, x, True).astype(jnp.float32) ** 2)

        return jax.grad(loss, (0, 1))(params, x)

    jax.block_until_ready(gradients(params, x))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(gradients(params, x))
        seconds.append(time.perf_counter() - started)
    return seconds

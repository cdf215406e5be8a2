# SPDX-License-Identifier: Apache-2.0
"""ST-MoE in Flax Linen. Sees token ids, never text.

Read in this order: `encoder_decoder` (the whole model), `blocks`, `attention`, `layers`,
then `moe`, `routing`, `dispatch`. What is there for speed on CPUs only is in `cpu`, and may be skipped.

Shape letters used in names and docstrings throughout:
B batch, S input length, L target length, Q and S queries and keys of attention, D model width, H heads,
K head width, F mlp width, V vocabulary; E experts, G routing groups, T tokens per group, C slots per expert
and group, N = G * T tokens, M = E * G * C slots, A = choices per token (top-A routing).
"""


def current_platform() -> str:
    """What this process computes on: "cpu", "gpu" or "tpu". The only place where JAX is asked for it.

    Code that may plan for another machine takes the answer as an argument, `platform`.
    """
    import jax

    return jax.default_backend()

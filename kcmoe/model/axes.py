# SPDX-License-Identifier: Apache-2.0
"""Logical axes of every parameter, by path: what sharding and Adafactor's factoring are decided on.

Names are Flaxformer's; the full-size tree of T5X + Flaxformer guards them in a test. Kept apart from the
modules, so that a checkpoint's tree can be judged without building a model.
"""

from __future__ import annotations

import re

_RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"token_embedder/embedding", ("vocab", "embed")),
    (r".*/logits_dense/kernel", ("embed", "vocab")),
    (r".*/relpos_bias/rel_embedding", ("heads", "relpos_buckets")),
    (r".*attention/(query|key|value)/kernel", ("embed", "joined_kv")),
    (r".*attention/out/kernel", ("joined_kv", "embed")),
    (r".*/expert/wi_[01]/kernel", ("expert", "mlp_embed", "expert_mlp")),
    (r".*/expert/wo/kernel", ("expert", "expert_mlp", "mlp_embed")),
    (r".*mlp/wi_[01]/kernel", ("mlp_embed", "mlp")),
    (r".*mlp/wo/kernel", ("mlp", "mlp_embed")),
    (r".*/router/router_weights/w/kernel", ("embed", "unmodeled")),
    (r".*norm/scale", ("embed",)),
)


def logical_axes(path: str) -> tuple[str, ...]:
    """Axes of the parameter at `path`, e.g. ("expert", "mlp_embed", "expert_mlp").

    Raises:
      KeyError: for a path that is no parameter of this model.
    """
    for pattern, axes in _RULES:
        if re.fullmatch(pattern, path):
            return axes
    raise KeyError(f"no logical axes are known for parameter {path}")

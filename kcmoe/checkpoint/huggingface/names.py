# SPDX-License-Identifier: Apache-2.0
"""Where each parameter stands in transformers: its tensor there, and how it is laid out.

T5's names, and for sparse blocks those of `huggingface/modeling_kcmoe.py`. Kernels are [in, out] here and
[out, in] there. An expert's two input kernels are one tensor there, `gate_up_proj` [E, 2F, D], in which the
rows of `wi_0` come before those of `wi_1`. Knows names and shapes, no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class Place(NamedTuple):
    """One parameter in transformers.

    Attributes:
      tensor: its name.
      transposed: whether the last two axes are swapped.
      half: 0 or 1 if the parameter is that half of the tensor's axis 1, else None.
    """

    tensor: str
    transposed: bool = False
    half: int | None = None

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the part of the tensor that a parameter of shape `ours` fills."""
        return (*ours[:-2], ours[-1], ours[-2]) if self.transposed else ours


_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
# Of encoder and decoder layers: our module -> (sub-layer, module) in T5; -1 is the last sub-layer.
_ATTENTIONS = {
    "attention": (0, "SelfAttention"),
    "self_attention": (0, "SelfAttention"),
    "encoder_decoder_attention": (1, "EncDecAttention"),
}
_NORMS = {
    "pre_attention_layer_norm": (0, "layer_norm"),
    "pre_self_attention_layer_norm": (0, "layer_norm"),
    "pre_cross_attention_layer_norm": (1, "layer_norm"),
    "pre_mlp_layer_norm": (-1, "layer_norm"),
    "pre_extra_mlp_layer_norm": (-1, "extra_mlp.layer_norm"),
}
_FIXED = {
    "token_embedder/embedding": Place("shared.weight"),
    "decoder/logits_dense/kernel": Place("lm_head.weight", transposed=True),
    **{
        f"{stack}/{stack}_norm/scale": Place(f"{stack}.final_layer_norm.weight")
        for stack in ("encoder", "decoder")
    },
    **{
        f"{stack}/relpos_bias/rel_embedding": Place(
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", transposed=True
        )
        for stack in ("encoder", "decoder")
    },
}
_EXPERT = {
    "mlp/router/router_weights/w/kernel": Place("router.weight", transposed=True),
    "mlp/expert/wi_0/kernel": Place("experts.gate_up_proj", transposed=True, half=0),
    "mlp/expert/wi_1/kernel": Place("experts.gate_up_proj", transposed=True, half=1),
    "mlp/expert/wo/kernel": Place("experts.down_proj", transposed=True),
}
_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(.+)")
_DENSE = re.compile(r"(mlp|extra_mlp)/(wi_0|wi_1|wo)/kernel")


def place_of(parameter: str) -> Place | None:
    """Where `parameter` (Flaxformer's path) stands in transformers; None if it has no place there."""
    if parameter in _FIXED:
        return _FIXED[parameter]
    layer = _LAYER.fullmatch(parameter)
    if layer is None:
        return None
    stack, number, rest = layer.groups()
    found = _in_layer(rest)
    if found is None:
        return None
    sublayer, place = found
    last = 2 if stack == "decoder" else 1
    prefix = f"{stack}.block.{number}.layer.{last if sublayer < 0 else sublayer}."
    return place._replace(tensor=prefix + place.tensor)


def place(parameter: str) -> Place:
    """`place_of` for a parameter that is known to have one."""
    found = place_of(parameter)
    if found is None:
        raise KeyError(parameter)
    return found


def _in_layer(rest: str) -> tuple[int, Place] | None:
    if rest in _EXPERT:
        return -1, _EXPERT[rest]
    if dense := _DENSE.fullmatch(rest):
        module = "extra_mlp.DenseReluDense" if dense[1] == "extra_mlp" else "DenseReluDense"
        return -1, Place(f"{module}.{dense[2]}.weight", transposed=True)
    module, _, name = rest.partition("/")
    if module in _NORMS and name == "scale":
        sublayer, norm = _NORMS[module]
        return sublayer, Place(f"{norm}.weight")
    kernel = name.removesuffix("/kernel")
    if module in _ATTENTIONS and kernel in _ATTENTION and name != kernel:
        sublayer, attention = _ATTENTIONS[module]
        return sublayer, Place(f"{attention}.{_ATTENTION[kernel]}.weight", transposed=True)
    return None


def layout(parameters: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Tensor -> shape for the parameters of a model (path -> shape)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, ours in parameters.items():
        there = place(name)
        theirs = there.shape(ours)
        if there.half is not None:
            theirs = theirs[0], 2 * theirs[1], *theirs[2:]
        shapes[there.tensor] = theirs
    return shapes


def expected_parameters(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of the model with these sizes, by macro name."""
    width, joined = sizes["EMBED_DIM"], sizes["NUM_HEADS"] * sizes["HEAD_DIM"]
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedder/embedding": (sizes["NUM_EMBEDDINGS"], width),
        "decoder/logits_dense/kernel": (width, sizes["NUM_EMBEDDINGS"]),
    }
    for stack in ("encoder", "decoder"):
        shapes[f"{stack}/{stack}_norm/scale"] = (width,)
        shapes[f"{stack}/relpos_bias/rel_embedding"] = (sizes["NUM_HEADS"], 32)
        attentions = {"attention": "pre_attention_layer_norm"}
        if stack == "decoder":
            attentions = {
                "self_attention": "pre_self_attention_layer_norm",
                "encoder_decoder_attention": "pre_cross_attention_layer_norm",
            }
        layers = sizes[f"NUM_{stack.upper()}_LAYERS"]
        sparse = sizes[f"NUM_{stack.upper()}_SPARSE_LAYERS"]
        for i in range(layers):
            layer = f"{stack}/layers_{i}"
            for attention, norm in attentions.items():
                shapes[f"{layer}/{norm}/scale"] = (width,)
                for name in _ATTENTION:
                    shape = (joined, width) if name == "out" else (width, joined)
                    shapes[f"{layer}/{attention}/{name}/kernel"] = shape
            shapes |= _mlp(layer, sizes, bool(sparse) and (i + 1) % (layers // sparse) == 0)
    return shapes


def _mlp(layer: str, sizes: Mapping[str, Any], is_sparse: bool) -> dict[str, tuple[int, ...]]:
    width = sizes["EMBED_DIM"]
    dense = "extra_mlp" if is_sparse else "mlp"
    shapes: dict[str, tuple[int, ...]] = {f"{layer}/pre_{dense}_layer_norm/scale": (width,)}
    for name in ("wi_0", "wi_1", "wo"):
        shape = (width, sizes["MLP_DIM"])
        shapes[f"{layer}/{dense}/{name}/kernel"] = shape[::-1] if name == "wo" else shape
    if is_sparse:
        experts, hidden = sizes["NUM_EXPERTS"], sizes["EXPERT_MLP_DIM"]
        shapes[f"{layer}/pre_mlp_layer_norm/scale"] = (width,)
        shapes[f"{layer}/mlp/router/router_weights/w/kernel"] = (width, experts)
        for name in ("wi_0", "wi_1"):
            shapes[f"{layer}/mlp/expert/{name}/kernel"] = (experts, width, hidden)
        shapes[f"{layer}/mlp/expert/wo/kernel"] = (experts, hidden, width)
    return shapes

# SPDX-License-Identifier: Apache-2.0
"""Shape and routing of the model; macro names are Flaxformer's where it has one."""

from __future__ import annotations

import dataclasses
import typing

from kcmoe import fits
from kcmoe.config.fields import GinConfig, macro
from kcmoe.errors import UserError

Dtype = typing.Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(GinConfig):
    """Shape and routing of the model; macro names are Flaxformer's where it has one."""

    num_encoder_layers: int = macro(
        "NUM_ENCODER_LAYERS", least=1, most=1000, help="encoder layers, dense and sparse"
    )
    num_decoder_layers: int = macro(
        "NUM_DECODER_LAYERS", least=1, most=1000, help="decoder layers, dense and sparse"
    )
    num_encoder_sparse_layers: int = macro(
        "NUM_ENCODER_SPARSE_LAYERS",
        least=0,
        most=1000,
        help="encoder layers with a MoE block, evenly spaced; 0 is dense",
    )
    num_decoder_sparse_layers: int = macro(
        "NUM_DECODER_SPARSE_LAYERS",
        least=0,
        most=1000,
        help="decoder layers with a MoE block, evenly spaced; 0 is dense",
    )
    num_heads: int = macro("NUM_HEADS", least=1, most=1 << 16, help="attention heads")
    head_dim: int = macro("HEAD_DIM", least=1, most=1 << 16, help="size of one head")
    embed_dim: int = macro("EMBED_DIM", least=1, most=1 << 20, help="width of the model (d_model)")
    mlp_dim: int = macro(
        "MLP_DIM", least=1, most=1 << 24, help="hidden width of a dense MLP (d_ff)"
    )
    expert_mlp_dim: int = macro(
        "EXPERT_MLP_DIM", least=1, most=1 << 24, help="hidden width of one expert"
    )
    num_embeddings: int = macro(
        "NUM_EMBEDDINGS",
        least=1,
        most=1 << 24,
        help="rows of the embedding, at least the vocabulary",
    )
    num_experts: int = macro("NUM_EXPERTS", least=1, most=1 << 16, help="experts per sparse layer")
    num_selected_experts: int = macro(
        "NUM_SELECTED_EXPERTS", least=1, most=1 << 16, help="experts chosen per token (top-k)"
    )
    group_size: int = macro(
        "GROUP_SIZE", least=1, most=2**31 - 1, help="largest number of tokens routed together"
    )
    train_expert_capacity_factor: float = macro(
        "TRAIN_EXPERT_CAPACITY_FACTOR",
        above=0,
        most=1024,
        help="slots per expert / fair share of tokens, in training",
    )
    eval_expert_capacity_factor: float = macro(
        "EVAL_EXPERT_CAPACITY_FACTOR",
        above=0,
        most=1024,
        help="slots per expert / fair share of tokens, otherwise",
    )
    scale: float = macro(
        "SCALE", above=0, most=1000, help="scale of the variance-scaling initializers"
    )
    dropout_rate: float = macro(
        "DROPOUT_RATE", least=0, below=1, help="dropout everywhere but inside experts"
    )
    expert_dropout_rate: float = macro(
        "EXPERT_DROPOUT_RATE", least=0, below=1, help="dropout inside experts"
    )
    activation_dtype: Dtype = macro("ACTIVATION_DTYPE", help="dtype of activations")
    moe_truncated_dtype: Dtype = macro("MOE_TRUNCATED_DTYPE", help="dtype inside experts")
    num_expert_replicas: int = macro(
        "NUM_EXPERT_REPLICAS",
        least=1,
        most=1 << 16,
        help="copies of each expert that Flaxformer's group count assumes",
    )
    routing: typing.Literal["capacity", "dropless"] = macro(
        "ROUTING", help="'capacity' drops tokens as Flaxformer does, 'dropless' drops none"
    )
    dispatch: typing.Literal["auto", "gather", "exchange", "einsum", "grouped", "ragged"] = macro(
        "DISPATCH", help="how tokens travel to experts; 'auto' takes the fastest measured here"
    )
    remat: bool = macro("REMAT", help="recompute layers in the backward pass to save memory")

    @property
    def is_sparse(self) -> bool:
        """Whether any layer has a MoE block."""
        return bool(self.num_encoder_sparse_layers or self.num_decoder_sparse_layers)

    def sparse_layers(self, stack: typing.Literal["encoder", "decoder"]) -> tuple[int, ...]:
        """Indices of the sparse layers of a stack: every (layers / sparse layers)-th, the last included.

        Flaxformer's LayerLayout.MIXED (flaxformer@399ea3a:architectures/moe/moe_architecture.py).
        """
        layers = getattr(self, f"num_{stack}_layers")
        sparse = getattr(self, f"num_{stack}_sparse_layers")
        every = layers // sparse if sparse else 0
        return tuple(i for i in range(layers) if sparse and (i + 1) % every == 0)

    def check(self) -> None:
        for stack in ("encoder", "decoder"):
            layers = getattr(self, f"num_{stack}_layers")
            sparse = getattr(self, f"num_{stack}_sparse_layers")
            fits.check_sparse_layers(stack, layers, sparse)
        if self.num_selected_experts > self.num_experts:
            raise UserError(
                f"NUM_SELECTED_EXPERTS = {self.num_selected_experts} is more than "
                f"NUM_EXPERTS = {self.num_experts}"
            )

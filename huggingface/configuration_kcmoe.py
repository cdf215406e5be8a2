# SPDX-License-Identifier: Apache-2.0
"""Settings of a Kc-MoE model for transformers: T5's, and those of its sparse layers.

This file is copied beside the weights of an exported model. Read without torch.

The type stays "t5", so that tokenizers load without asking for trust in code, and tools that know T5 know
where its attention is. Loaded as T5 the model would be wrong without a word, so `feed_forward_proj` names no
function of T5's: the error then tells what is to be done.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import T5Config

TESTED = ("5.15", "5.23", "5.24")  # versions of transformers
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 15):
    # Older ones read no such configuration, or do not tell blocks where padding is.
    raise ImportError(
        f"a Kc-MoE model needs transformers {TESTED[0]} or newer, not {transformers.__version__} (tested: "
        f"{', '.join(TESTED)}): pip install 'transformers>={TESTED[0]}'"
    )
FEED_FORWARD = "gated-gelu of Kc_MoE (load with trust_remote_code=True)"


class KcMoeConfig(T5Config):
    """T5 v1.1 whose sparse layers hold a mixture of experts and, behind it, the usual MLP.

    Attributes:
      encoder_sparse_layers: indices of the encoder blocks with experts.
      decoder_sparse_layers: those of the decoder.
      num_experts: experts per sparse layer.
      num_experts_per_tok: experts that each token takes.
      moe_intermediate_size: hidden width of one expert.
      expert_dropout_rate: dropout inside experts.
      output_router_logits: return the router's logits, and add the losses below to that of `labels`.
      router_aux_loss_coef: weight of the load balance loss.
      router_z_loss_coef: weight of the router's z-loss.
      z_loss_coef: weight of the squared logarithm of the output softmax's normaliser.
      router_group_size: largest number of tokens over which the load is balanced together.
      num_expert_replicas: copies of each expert that the number of those groups assumes.
      routing: "dropless"; others are refused.
    """

    keys_to_ignore_at_inference = [  # noqa: RUF012, transformers reads a list
        *("past_key_values", "encoder_router_logits", "decoder_router_logits"),
        *("encoder_aux_loss", "decoder_aux_loss", "encoder_z_loss", "decoder_z_loss"),
    ]

    feed_forward_proj: str = FEED_FORWARD
    encoder_sparse_layers: list[int] | None = None
    decoder_sparse_layers: list[int] | None = None
    num_experts: int = 16
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 2048
    expert_dropout_rate: float | int = 0.0
    output_router_logits: bool = False
    router_aux_loss_coef: float | int = 0.01
    router_z_loss_coef: float | int = 1e-4
    z_loss_coef: float | int = 1e-4
    router_group_size: int = 4096
    num_expert_replicas: int = 1
    routing: str = "dropless"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.routing != "dropless":
            raise ValueError(f"routing is {self.routing!r}, but Kc-MoE models are 'dropless' here")
        super().__post_init__(**kwargs)
        self.is_gated_act, self.dense_act_fn = True, "gelu_new"
        # T5Config takes these two from one another; here the head is never tied and never scaled.
        self.scale_decoder_outputs = False
        self.encoder_sparse_layers = list(self.encoder_sparse_layers or [])
        self.decoder_sparse_layers = list(self.decoder_sparse_layers or [])

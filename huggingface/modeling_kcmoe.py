# SPDX-License-Identifier: Apache-2.0
"""Kc-MoE for transformers: T5 v1.1 in which some MLPs are mixtures of experts.

This file and the four it imports are copied beside the weights of an exported model; they need nothing
else of Kc-MoE. A sparse block ends in x + MoE(norm x), then x + MLP(norm x); all else, with caches, attention
kernels and gradient checkpointing, is T5's. Routing drops no token, gates are not renormalised, router and
head compute in float32. Tested with transformers 5.15, 5.23 and 5.24 and torch 2.13; older ones are refused,
others are tried, and what they lack is said.

Differences from T5ForConditionalGeneration:
- beams are scored as in T5X, see `generation_kcmoe.py`; `length_penalty` is 0.6 unless given;
- with `output_router_logits` (argument or config), the loss of `labels` is what Kc-MoE trains with:
  cross-entropy, z-loss of the logits, load balance and z-loss of the routers. Without it, only the first.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_kcmoe import TESTED, KcMoeConfig

try:
    from transformers import initialization as init
    from transformers.modeling_outputs import Seq2SeqMoEOutput
    from transformers.models.t5.modeling_t5 import (
        T5ClassificationHead,
        T5EncoderModel,
        T5ForConditionalGeneration,
        T5ForSequenceClassification,
        T5LayerNorm,
        T5Model,
        T5PreTrainedModel,
        T5Stack,
    )

    from .generation_kcmoe import BrevityPenalty
    from .layers_kcmoe import KcMoeBlock, KcMoeExperts, KcMoeHead
    from .routing_kcmoe import KcMoeRouter, report_routers
except (ImportError, AttributeError) as error:
    raise ImportError(
        f"modeling_kcmoe.py does not run with transformers {transformers.__version__} ({error}); "
        f"it was tested with {', '.join(TESTED)}: pip install 'transformers~={TESTED[-1]}.0'"
    ) from error


class KcMoePreTrainedModel(T5PreTrainedModel):
    """What all classes here share."""

    config: KcMoeConfig
    config_class = KcMoeConfig
    _no_split_modules = ["KcMoeBlock"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["router", "lm_head"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        factor = self.config.initializer_factor
        if isinstance(module, KcMoeRouter):
            init.normal_(module.weight, mean=0.0, std=factor * 0.02)
        elif isinstance(module, KcMoeExperts):
            init.normal_(module.gate_up_proj, std=factor * module.hidden_dim**-0.5)
            init.normal_(module.down_proj, std=factor * module.intermediate_dim**-0.5)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # transformers would look for its decorator in this file alone

    def _grouped_mm_can_dispatch(self) -> bool:
        """Grouped products need rows of whole 16 bytes, and no float64; else the default is "eager"."""
        if self.config.dtype == torch.float64:
            raise ValueError(
                'torch has no grouped products of float64: take experts_implementation="eager"'
            )
        for name in ("d_model", "moe_intermediate_size"):
            if (size := getattr(self.config, name)) % 8:
                raise ValueError(
                    f'{name} is {size}, no multiple of 8: take experts_implementation="eager"'
                )
        return super()._grouped_mm_can_dispatch()

    def _start(self, config: KcMoeConfig) -> None:
        """What T5's constructors do before they build anything: skips theirs, which build dense stacks."""
        if config.routing != "dropless":  # set after the configuration was made
            raise ValueError(
                f"routing is {config.routing!r}, but Kc-MoE models are 'dropless' here"
            )
        super(T5PreTrainedModel, self).__init__(config)


class KcMoeStack(KcMoePreTrainedModel, T5Stack):
    """T5's encoder or decoder, with experts in its sparse blocks."""

    def __init__(self, config: KcMoeConfig):
        self._start(config)
        sparse = config.decoder_sparse_layers if config.is_decoder else config.encoder_sparse_layers
        self.is_decoder = config.is_decoder
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.block = nn.ModuleList(
            KcMoeBlock(config, i, i in (sparse or ())) for i in range(config.num_layers)
        )
        self.final_layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.post_init()
        self.gradient_checkpointing = False

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        targets: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """T5's forward.

        `targets`, bool[B, L], says which positions of a decoder have a target; then what is computed at the
        others is Kc-MoE's too (it matters to the routers' losses alone).
        """
        real = None
        if not self.is_decoder:
            if attention_mask is not None and attention_mask.dim() == 2:
                real = attention_mask.bool()[..., None]
        elif targets is not None and input_ids is not None:
            real = _real_decoder_positions(input_ids, self.config.pad_token_id)[..., None]
            causal = torch.ones_like(targets[0]).expand(targets.shape[1], -1).tril()
            attention_mask = _masked(targets, targets, self.dtype, causal)
            if encoder_attention_mask is not None:
                encoder_attention_mask = _masked(targets, encoder_attention_mask, self.dtype)
        found = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_attention_mask=encoder_attention_mask,
            real=real,
            masked_rows=self.is_decoder and real is not None,
            **{**kwargs, "return_dict": True},
        )
        if real is not None and not self.is_decoder:
            found["last_hidden_state"] = found.last_hidden_state * real.to(found[0].dtype)
        return found


def _masked(queries: Tensor, keys: Tensor, dtype: torch.dtype, also: Any = True) -> Tensor:
    """[B, 1, Q, K]: 0 where query and key are real, -1e10 elsewhere, as in T5X: no row is empty."""
    allowed = queries[:, :, None] & keys.bool()[:, None, :] & also
    return torch.where(allowed, 0.0, max(-1e10, torch.finfo(dtype).min)).to(dtype)[:, None]


def _encoder(config: KcMoeConfig) -> KcMoeStack:
    config = copy.deepcopy(config)
    config.is_decoder = config.use_cache = False
    return KcMoeStack(config)


def _decoder(config: KcMoeConfig) -> KcMoeStack:
    config = copy.deepcopy(config)
    config.is_decoder, config.num_layers = True, config.num_decoder_layers
    return KcMoeStack(config)


class KcMoeModel(KcMoePreTrainedModel, T5Model):
    """Encoder and decoder without a head."""

    def __init__(self, config: KcMoeConfig):
        self._start(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder, self.decoder = _encoder(config), _decoder(config)
        self.post_init()


class KcMoeEncoderModel(KcMoePreTrainedModel, T5EncoderModel):
    """The encoder alone, for embeddings; its output at padding means nothing."""

    _keys_to_ignore_on_load_unexpected = [r"decoder", r"lm_head"]  # noqa: RUF012

    def __init__(self, config: KcMoeConfig):
        self._start(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = _encoder(config)
        self.post_init()


class KcMoeForConditionalGeneration(
    KcMoePreTrainedModel, BrevityPenalty, T5ForConditionalGeneration
):
    """Text to text: the model as Kc-MoE trains it."""

    accepts_loss_kwargs = False
    _tied_weights_keys = {  # noqa: RUF012
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }

    def __init__(self, config: KcMoeConfig):
        self._start(config)
        self.model_dim = config.d_model
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder, self.decoder = _encoder(config), _decoder(config)
        self.lm_head = KcMoeHead(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_router_logits: bool | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        encoder_outputs: Any = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """T5's forward; see the file's head for what `output_router_logits` adds.

        Returns:
          Seq2SeqMoEOutput; router logits are float32[B, L, E] per sparse layer.
        """
        if output_router_logits is None:  # no step of `generate` should pay for it
            output_router_logits = self.config.output_router_logits and labels is not None
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._shift_right(labels)
        known = output_router_logits and labels is not None and decoder_attention_mask is None
        targets = labels != -100 if known else None
        with report_routers(self.config, output_router_logits) as routers:
            found = super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                inputs_embeds=inputs_embeds,
                decoder_inputs_embeds=decoder_inputs_embeds,
                encoder_outputs=encoder_outputs,
                return_dict=True,
                targets=targets,
                **kwargs,
            )
        output = Seq2SeqMoEOutput(**found, **routers.fields())
        if labels is not None:
            loss = self._loss(output.logits, labels, output_router_logits)
            output["loss"] = loss + routers.loss()
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        return output if return_dict else output.to_tuple()

    def _loss(self, logits: Tensor, labels: Tensor, with_z_loss: bool) -> Tensor:
        labels = labels.to(logits.device)
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.reshape(-1))
        if with_z_loss and self.config.z_loss_coef:
            log_z = logits.logsumexp(dim=-1)[labels != -100]
            loss = loss + self.config.z_loss_coef * log_z.square().mean()
        return loss


class KcMoeForSequenceClassification(KcMoePreTrainedModel, T5ForSequenceClassification):
    """A classification head over the decoder's state at the end of the text."""

    accepts_loss_kwargs = False

    def __init__(self, config: KcMoeConfig):
        self._start(config)
        self.transformer = KcMoeModel(config)
        self.classification_head = T5ClassificationHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """T5's forward; with `output_router_logits` the loss of `labels` includes the routers' losses."""
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        if decoder_input_ids is None and input_ids is not None:
            decoder_input_ids = self._shift_right(input_ids)
        wanted = output_router_logits and labels is not None
        with report_routers(self.config, wanted) as routers:
            output = super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                labels=labels,
                **kwargs,
            )
        if not wanted:
            return output
        loss = routers.loss()
        if isinstance(output, tuple):
            return (output[0] + loss, *output[1:])
        output["loss"] = output["loss"] + loss
        return output


def _real_decoder_positions(ids: Tensor, pad: int) -> Tensor:
    """bool[B, L]: ids, the pad that each sequence starts with, and none of the padding behind its end."""
    following = F.pad(ids[:, 1:] != pad, (0, 1))
    return (ids != pad) | following | (torch.arange(ids.shape[1], device=ids.device) == 0)

# SPDX-License-Identifier: Apache-2.0
"""Kc-MoE for transformers: T5 v1.1 in which some MLPs are mixtures of experts.

This file and the three it imports are copied beside the weights of an exported model; they need nothing else
of Kc-MoE. A sparse block ends in x + MoE(norm x), then x + MLP(norm x); all else, with caches, attention kernels
and gradient checkpointing, is T5's. Routing drops no token, gates are not renormalised, router and head compute
in float32. Tested with the transformers version in `TESTED`; others are tried, and what they lack is said.

Differences from T5ForConditionalGeneration:
- beams are scored as in T5X, see `generation_kcmoe.py`; `length_penalty` is 0.6 unless given;
- with `output_router_logits` (argument or config), the loss of `labels` is what Kc-MoE trains with:
  cross-entropy, z-loss of the logits, load balance and z-loss of the routers. Without it, only the first.
"""

from __future__ import annotations

import contextlib
import copy
from contextvars import ContextVar
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .configuration_kcmoe import KcMoeConfig
from .generation_kcmoe import BrevityPenalty
from .routing_kcmoe import KcMoeRouter, choose, report_routers, tell

TESTED = "5.23"

try:
    from transformers import initialization as init
    from transformers.activations import ACT2FN
    from transformers.integrations import use_experts_implementation
    from transformers.modeling_outputs import Seq2SeqMoEOutput
    from transformers.models.t5.modeling_t5 import (
        T5Block,
        T5ClassificationHead,
        T5EncoderModel,
        T5ForConditionalGeneration,
        T5ForSequenceClassification,
        T5LayerFF,
        T5LayerNorm,
        T5Model,
        T5PreTrainedModel,
        T5Stack,
    )

    for _name in ("_update_finished_beams", "_check_early_stop_heuristic"):
        getattr(T5ForConditionalGeneration, _name)
except (ImportError, AttributeError) as error:
    raise ImportError(
        f"modeling_kcmoe.py does not run with transformers {transformers.__version__} ({error}); "
        f"it was tested with transformers {TESTED}: pip install 'transformers~={TESTED}.0'"
    ) from error

_real: ContextVar[Tensor | None] = ContextVar(
    "real", default=None
)  # bool[B, L, 1], of the running block


@use_experts_implementation
class KcMoeExperts(nn.Module):
    """E gated MLPs without biases: down(gelu(gate x) * up x)."""

    def __init__(self, config: KcMoeConfig):
        super().__init__()
        self.num_experts = config.num_experts
        self.hidden_dim = config.d_model
        self.intermediate_dim = config.moe_intermediate_size
        shape = config.num_experts, 2 * config.moe_intermediate_size, config.d_model
        self.gate_up_proj = nn.Parameter(torch.empty(shape))  # [E, 2F, D], the gate's F rows first
        self.down_proj = nn.Parameter(torch.empty(shape[0], shape[2], shape[1] // 2))
        self.act_fn = ACT2FN[config.dense_act_fn]
        self.dropout = nn.Dropout(config.expert_dropout_rate)

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.dropout(self.act_fn(gate) * up)

    def forward(self, x: Tensor, experts: Tensor, gates: Tensor) -> Tensor:
        """[N, D], int[N, A], float32[N, A] -> [N, D]; used with experts_implementation="eager"."""
        total = torch.zeros_like(x)
        for expert in experts.unique().tolist():
            token, choice = torch.where(experts == expert)
            hidden = self._apply_gate(F.linear(x[token], self.gate_up_proj[expert]))
            out = F.linear(hidden, self.down_proj[expert]) * gates[token, choice, None]
            total = total.index_add(0, token, out.to(total.dtype))
        return total


class KcMoeLayerNorm(T5LayerNorm):  # type: ignore[misc]
    """T5's norm, zero at padding, so that padding is routed as in Kc-MoE: to the first experts."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x, real = super().forward(hidden_states), _real.get()
        return x if real is None else x * real.to(x.dtype)


class KcMoeLayerSparse(nn.Module):
    """Takes the place of T5LayerFF in a sparse block: experts, then the MLP that every block has."""

    def __init__(self, config: KcMoeConfig):
        super().__init__()
        self.is_decoder = config.is_decoder
        self.num_selected = config.num_experts_per_tok
        self.layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.router = KcMoeRouter(config)
        self.experts = KcMoeExperts(config)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.extra_mlp = T5LayerFF(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x = self.layer_norm(hidden_states)
        rows = x.reshape(-1, x.shape[-1])
        logits = self.router(rows)
        tell(self.is_decoder, logits.view(*x.shape[:-1], -1))
        gates, experts = choose(logits.softmax(dim=-1), self.num_selected)
        x = self.experts(rows, experts, gates).view_as(x)
        return self.extra_mlp(hidden_states + self.dropout(x))


class KcMoeHead(nn.Linear):
    """The output head, in float32 whatever the dtype of the model."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> float32[..., V]."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float())


class KcMoePreTrainedModel(T5PreTrainedModel):  # type: ignore[misc]
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

    def _start(self, config: KcMoeConfig) -> None:
        """What T5's constructors do before they build anything: skips theirs, which build dense stacks."""
        super(T5PreTrainedModel, self).__init__(config)


class KcMoeBlock(T5Block):  # type: ignore[misc]
    """T5's block, with experts if it is sparse, told which positions are padding."""

    def __init__(self, config: KcMoeConfig, layer_idx: int, sparse: bool):
        super().__init__(config, has_relative_attention_bias=layer_idx == 0, layer_idx=layer_idx)
        if sparse:
            self.layer[-1] = KcMoeLayerSparse(config)
        for name, module in list(self.named_modules()):
            if name.endswith("layer_norm"):
                norm = KcMoeLayerNorm(config.d_model, eps=module.variance_epsilon)
                self.get_submodule(name.rpartition(".")[0]).layer_norm = norm

    def forward(
        self, *args: Any, real: Tensor | None = None, masked_rows: bool = False, **kwargs: Any
    ) -> Any:
        """T5's forward; real: bool[B, L, 1], None if there is no padding.

        `masked_rows` tells that some queries may see no key. Fused attention takes their gradient from a
        normaliser that -1e10 has rounded, so it is not used then.
        """
        fused = not (masked_rows and torch.is_grad_enabled())
        token = _real.set(real)
        try:
            with contextlib.nullcontext() if fused else sdpa_kernel(SDPBackend.MATH):
                return super().forward(*args, **kwargs)
        finally:
            _real.reset(token)


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
            **kwargs,
        )
        if real is not None and not self.is_decoder:
            found["last_hidden_state"] = found.last_hidden_state * real.to(found[0].dtype)
        return found


def _masked(queries: Tensor, keys: Tensor, dtype: torch.dtype, also: Any = True) -> Tensor:
    """[B, 1, Q, K]: 0 where query and key are real, -1e10 elsewhere, as in T5X: no row is empty."""
    allowed = queries[:, :, None] & keys.bool()[:, None, :] & also
    return torch.where(allowed, 0.0, -1e10).to(dtype)[:, None]


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

# SPDX-License-Identifier: Apache-2.0
"""Kc-MoE for transformers: T5 v1.1 in which some MLPs are mixtures of experts.

This file is copied beside the weights of an exported model and needs nothing else of Kc-MoE. A sparse block
ends in x + MoE(norm x), then x + MLP(norm x); all else, with caches, attention kernels and gradient
checkpointing, is T5's. Routing drops no token, gates are not renormalised, router and head compute in
float32. Tested with the transformers versions in `TESTED`; others are tried, and what they lack is said.

Differences from T5ForConditionalGeneration:
- beams are scored as in T5X: `length_penalty` is alpha in ((5 + tokens) / 6)^alpha (arXiv:1609.08144, eq. 14),
  0.6 unless given, and every ended beam among the 2 * num_beams best counts;
- with `output_router_logits` (argument or config), the loss of `labels` is what Kc-MoE trains with: cross-entropy,
  z-loss of the logits, load balance and z-loss of the routers. Without it, it is T5's cross-entropy.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_kcmoe import KcMoeConfig

TESTED = "5.23"
ALPHA = 0.6  # of the beam search's brevity penalty, where none is asked for

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

    _BEAMS = ("_update_finished_beams", "_check_early_stop_heuristic")
    for _name in _BEAMS:
        getattr(T5ForConditionalGeneration, _name)
except (ImportError, AttributeError) as error:
    raise ImportError(
        f"modeling_kcmoe.py does not run with transformers {transformers.__version__} ({error}); "
        f"it was tested with transformers {TESTED}: pip install 'transformers~={TESTED}.0'"
    ) from error

# Router logits of the sparse layers in the order in which they ran, while somebody listens.
_Heard = list[tuple[bool, Tensor]]  # of the decoder or not, float32[B, L, E]
_heard: ContextVar[_Heard | None] = ContextVar("router_logits", default=None)
_real: ContextVar[Tensor | None] = ContextVar("real", default=None)  # bool[B, L, 1], of the running block


@contextlib.contextmanager
def _listening(wanted: bool) -> Iterator[_Heard]:
    heard: _Heard = []
    token = _heard.set(heard if wanted else None)
    try:
        yield heard
    finally:
        _heard.reset(token)


class KcMoeRouter(nn.Module):
    """Logits of the experts, in float32 whatever the dtype of the model."""

    def __init__(self, config: KcMoeConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.d_model))

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> float32[N, E]."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float())


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
        if (heard := _heard.get()) is not None:
            heard.append((self.is_decoder, logits.view(*x.shape[:-1], -1)))
        gates, experts = _choose(logits.softmax(dim=-1), self.num_selected)
        x = self.experts(rows, experts, gates).view_as(x)
        return self.extra_mlp(hidden_states + self.dropout(x))


def _choose(probs: Tensor, num_selected: int) -> tuple[Tensor, Tensor]:
    """The largest probabilities and their experts, of equal ones the first: [..., E] -> two [..., A]."""
    found = probs.sort(dim=-1, descending=True, stable=True)
    return found.values[..., :num_selected], found.indices[..., :num_selected]


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
                setattr(self.get_submodule(name.rpartition(".")[0]), "layer_norm", norm)

    def forward(self, *args: Any, real: Tensor | None = None, **kwargs: Any) -> Any:
        """T5's forward; real: bool[B, L, 1], None if there is no padding."""
        token = _real.set(real)
        try:
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


class KcMoeForConditionalGeneration(KcMoePreTrainedModel, T5ForConditionalGeneration):
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
        with _listening(output_router_logits) as heard:
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
        output = Seq2SeqMoEOutput(**found)
        routers = RouterReport(self.config, heard)
        if output_router_logits:
            for name, value in routers.fields().items():
                output[name] = value
        if labels is not None:
            output["loss"] = self._loss(output.logits, labels, output_router_logits)
            if routers.loss is not None:
                output["loss"] = output["loss"] + routers.loss
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

    def _prepare_generation_config(self, generation_config: Any, **kwargs: Any) -> Any:
        beams = kwargs.get("num_beams") or self.generation_config.num_beams or 1
        if generation_config is None and beams > 1:
            kwargs.setdefault("length_penalty", self.generation_config.length_penalty or ALPHA)
        return super()._prepare_generation_config(generation_config, **kwargs)

    def _update_finished_beams(self, **kwargs: Any) -> Any:
        """T5X's: all ended beams compete, and one cut off at the longest length only where none ended."""
        tokens = kwargs["cur_len"] + 1 - kwargs["decoder_prompt_len"]
        log_probs = kwargs["topk_log_probs"] / _brevity(tokens, kwargs.pop("length_penalty"))
        last = kwargs["topk_running_sequences"][:, :, kwargs["cur_len"]]
        ends = torch.as_tensor(self.generation_config.eos_token_id, device=last.device)
        cut_off = kwargs["next_token_hits_stopping_criteria"] & ~torch.isin(last, ends)
        kwargs["topk_log_probs"] = log_probs - 1e7 * cut_off
        kwargs["top_num_beam_mask"] = torch.ones_like(kwargs["top_num_beam_mask"])
        return super()._update_finished_beams(length_penalty=0.0, **kwargs)

    @staticmethod
    def _check_early_stop_heuristic(**kwargs: Any) -> Any:
        """T5X's: the best that a running beam can still become is its score at the longest length."""
        longest = kwargs["max_length"] - kwargs["decoder_prompt_len"]
        penalty = _brevity(longest, kwargs.pop("length_penalty"))
        kwargs["running_beam_scores"] = kwargs["running_beam_scores"] / penalty
        return T5ForConditionalGeneration._check_early_stop_heuristic(length_penalty=0.0, **kwargs)


def _brevity(tokens: int, alpha: float) -> float:
    return float(((5.0 + tokens) / 6.0) ** alpha)


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
        with _listening(output_router_logits and labels is not None) as heard:
            output = super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                labels=labels,
                **kwargs,
            )
        loss = RouterReport(self.config, heard).loss
        if loss is None:
            return output
        if isinstance(output, tuple):
            return (output[0] + loss, *output[1:])
        output["loss"] = output["loss"] + loss
        return output


def _real_decoder_positions(ids: Tensor, pad: int) -> Tensor:
    """bool[B, L]: ids, the pad that each sequence starts with, and none of the padding behind its end."""
    following = F.pad(ids[:, 1:] != pad, (0, 1))
    return (ids != pad) | following | (torch.arange(ids.shape[1], device=ids.device) == 0)


class RouterReport:
    """Router logits of one forward pass, and the losses of T5X made from them.

    Attributes:
      loss: weighted sum of both losses, each the mean over sparse layers; None if nothing was heard.
    """

    def __init__(self, config: KcMoeConfig, heard: _Heard):
        self.logits: dict[bool, list[Tensor]] = {False: [], True: []}
        self.losses: dict[bool, list[tuple[Tensor, Tensor]]] = {False: [], True: []}
        for is_decoder, logits in heard:
            self.logits[is_decoder].append(logits)
            self.losses[is_decoder].append(router_losses(logits, config))
        found = self.losses[False] + self.losses[True]
        self.loss = None
        if found:
            balance, z = (torch.stack(values).mean() for values in zip(*found, strict=True))
            self.loss = config.router_aux_loss_coef * balance + config.router_z_loss_coef * z

    def fields(self) -> dict[str, Any]:
        """The fields of Seq2SeqMoEOutput; losses are means over the layers of a stack, not weighted."""
        found: dict[str, Any] = {}
        for is_decoder, stack in ((False, "encoder"), (True, "decoder")):
            if self.logits[is_decoder]:
                balance, z = zip(*self.losses[is_decoder], strict=True)
                found[f"{stack}_router_logits"] = tuple(self.logits[is_decoder])
                found[f"{stack}_aux_loss"] = torch.stack(balance).mean()
                found[f"{stack}_z_loss"] = torch.stack(z).mean()
        return found


def router_losses(logits: Tensor, config: KcMoeConfig) -> tuple[Tensor, Tensor]:
    """Load balance loss (arXiv:2101.03961, eq. 4-6, of all choices) and z-loss (arXiv:2202.08906, eq. 5).

    float32[B, L, E] -> two scalars. Both are means over groups of tokens, cut as Flaxformer's MoeLayer cuts
    them: batch or length is padded until the tokens divide by the experts.
    """
    batch, length, experts = logits.shape
    copies = experts * config.num_expert_replicas
    rows, columns = (
        next(n for n in range(copies + 1) if (batch + n) * length % copies == 0),
        next(n for n in range(copies + 1) if batch * (length + n) % copies == 0),
    )
    padding = (0, 0, 0, 0, 0, rows) if columns * batch > rows * length else (0, 0, 0, columns)
    logits = F.pad(logits, padding).reshape(-1, experts)
    tokens = logits.shape[0]
    groups = max(tokens // config.router_group_size, copies)
    while groups < tokens and (tokens % groups or groups % copies):
        groups += 1
    logits = logits.view(groups, -1, experts)
    probs = logits.softmax(dim=-1)
    chosen = _choose(probs, config.num_experts_per_tok)[1]
    share = F.one_hot(chosen, experts).sum(dim=2).to(probs.dtype).mean(dim=1)
    balance = (share * probs.mean(dim=1)).mean() * experts**2
    return balance, logits.logsumexp(dim=-1).square().mean()

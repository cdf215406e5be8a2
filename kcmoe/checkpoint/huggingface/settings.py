# SPDX-License-Identifier: Apache-2.0
"""`config.json` and `generation_config.json`: the model's settings under transformers' names, and back.

Sizes, routing and losses have fields of their own. What transformers does not know but T5X and the engine
need again (capacity factors, initial scale, digest of the vocabulary, step) is kept in the field `kcmoe`,
which transformers carries along when a tuned model is saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kcmoe.config.model import ModelConfig
from kcmoe.config.training import LossConfig
from kcmoe.errors import UserError

FILE, GENERATION_FILE = "config.json", "generation_config.json"
KEPT = "kcmoe"
FEED_FORWARD = (
    "gated-gelu of Kc_MoE (load with trust_remote_code=True)"  # see configuration_kcmoe.py
)
ALPHA = 0.6  # of the beam search's brevity penalty, as `LanguageModel.generate`
_TARGETS = 114  # tokens, of pretraining; where the settings do not say

# Field of ModelConfig or LossConfig -> field of the configuration there.
_SIZES = {
    "num_embeddings": "vocab_size",
    "embed_dim": "d_model",
    "head_dim": "d_kv",
    "mlp_dim": "d_ff",
    "num_encoder_layers": "num_layers",
    "num_decoder_layers": "num_decoder_layers",
    "num_heads": "num_heads",
    "dropout_rate": "dropout_rate",
}
_SPARSE = {
    "num_experts": "num_experts",
    "num_selected_experts": "num_experts_per_tok",
    "expert_mlp_dim": "moe_intermediate_size",
    "expert_dropout_rate": "expert_dropout_rate",
    "group_size": "router_group_size",
    "num_expert_replicas": "num_expert_replicas",
}
_LOSSES = {
    "aux_loss_factor": "router_aux_loss_coef",
    "router_z_loss_factor": "router_z_loss_coef",
    "z_loss": "z_loss_coef",
}
# What the engine and T5X compute in one way only, under the names there.
_ALWAYS: dict[str, Any] = {
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
_AUTO = {
    "AutoConfig": "configuration_kcmoe.KcMoeConfig",
    "AutoModel": "modeling_kcmoe.KcMoeModel",
    "AutoModelForSeq2SeqLM": "modeling_kcmoe.KcMoeForConditionalGeneration",
    "AutoModelForSequenceClassification": "modeling_kcmoe.KcMoeForSequenceClassification",
    "AutoModelForTextEncoding": "modeling_kcmoe.KcMoeEncoderModel",
}


def to_config(
    model: ModelConfig, losses: LossConfig, dtype: str, kept: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `config.json`; `kept` is what only Kc-MoE needs again."""
    fields: dict[str, Any] = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "dtype": dtype,
        **{theirs: getattr(model, ours) for ours, theirs in _SIZES.items()},
        # transformers' caches take the encoder's layers for the decoder's unless a field says this.
        "decoder_layers": model.num_decoder_layers,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,  # T5Config makes it True when it saves, with no effect there
        **_ALWAYS,
    }
    if model.is_sparse:
        fields |= {
            "architectures": ["KcMoeForConditionalGeneration"],
            "feed_forward_proj": FEED_FORWARD,
            "auto_map": _AUTO,
            "encoder_sparse_layers": list(model.sparse_layers("encoder")),
            "decoder_sparse_layers": list(model.sparse_layers("decoder")),
            **{theirs: getattr(model, ours) for ours, theirs in _SPARSE.items()},
            "routing": "dropless",
            "output_router_logits": True,
            **{theirs: getattr(losses, ours) for ours, theirs in _LOSSES.items()},
        }
    return {**fields, KEPT: dict(sorted(kept.items()))}


def kept_names(macros: Mapping[str, Any], sparse: bool) -> list[str]:
    """Those of `macros` that no field of the configuration of a sparse or dense model tells."""
    told = {_MACROS[name] for name in (*_SIZES, *(_SPARSE | _LOSSES if sparse else ()))}
    told |= {f"NUM_{stack}_SPARSE_LAYERS" for stack in ("ENCODER", "DECODER")}
    return [name for name in macros if name not in told]


def to_generation_config(lengths: Mapping[str, Any] | None) -> dict[str, Any]:
    """The content of `generation_config.json`; `lengths` is TASK_FEATURE_LENGTHS."""
    return {
        **{"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
        "max_new_tokens": int((lengths or {}).get("targets", _TARGETS)),
    }


def to_macros(fields: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Macros by name, for the content of the `config.json` at `place`.

    Raises:
      UserError: if it is not the configuration of a Kc-MoE model, or one that this project cannot compute.
    """
    kind, kept = fields.get("model_type"), fields.get(KEPT)
    if kind != "t5" or not isinstance(kept, Mapping):
        raise UserError(
            f"{place} is of another model (model_type {kind!r}), not one that was exported with "
            "`kcmoe checkpoint convert --format=huggingface`"
        )
    for name in fields.get("architectures") or []:
        if not str(name).endswith("ForConditionalGeneration"):
            raise UserError(
                f"{place} is of {name}, of which text-to-text weights are only a part; what comes back is a "
                "model saved as …ForConditionalGeneration"
            )
    for name, value in _ALWAYS.items():
        if fields.get(name, value) != value:
            raise UserError(
                f"{place}: {name} is {fields[name]!r}, but Kc-MoE computes with {value!r}"
            )
    sparse = "encoder_sparse_layers" in fields
    form = fields.get("feed_forward_proj")
    if form != (FEED_FORWARD if sparse else "gated-gelu"):
        raise UserError(f"{place}: feed_forward_proj is {form!r}, which is not known here")
    if fields.get("routing", "dropless") != "dropless":
        raise UserError(
            f"{place}: routing is {fields['routing']!r}, but models in transformers are always 'dropless'"
        )
    table = _SIZES | (_SPARSE | _LOSSES if sparse else {})
    macros = {name: value for name, value in kept.items() if name.isupper()}
    for ours, theirs in table.items():
        macros[_MACROS[ours]] = _number(fields, theirs, ours, place)
    if sparse and macros["NUM_SELECTED_EXPERTS"] > macros["NUM_EXPERTS"]:
        raise UserError(
            f"{place}: num_experts_per_tok is {macros['NUM_SELECTED_EXPERTS']}, but num_experts "
            f"{macros['NUM_EXPERTS']}"
        )
    for stack in ("encoder", "decoder"):
        layers = _layers(fields, f"{stack}_sparse_layers", place) if sparse else []
        macros[f"NUM_{stack.upper()}_SPARSE_LAYERS"] = len(layers)
        every = macros[f"NUM_{stack.upper()}_LAYERS"] // max(len(layers), 1)
        if layers != [every * (i + 1) - 1 for i in range(len(layers))]:
            raise UserError(
                f"{place}: {stack}_sparse_layers is {layers}, but sparse layers are evenly spaced here, "
                "the last one included"
            )
    return macros


_FIELDS = {
    field.name: field
    for kind in (ModelConfig, LossConfig)
    for field in kind.__dataclass_fields__.values()
}
_MACROS = {name: field.metadata["macro"] for name, field in _FIELDS.items()}


def _number(fields: Mapping[str, Any], theirs: str, ours: str, place: str) -> int | float:
    value = fields.get(theirs)
    whole = not ours.endswith(("rate", "factor", "z_loss"))
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise UserError(f"{place}: {theirs} is {value!r}, not a number that makes sense")
    if fault := _FIELDS[ours].metadata["range"].fault(value):
        raise UserError(f"{place}: {theirs} is {value!r}, but it must be {fault}")
    return value if whole else float(value)


def _layers(fields: Mapping[str, Any], name: str, place: str) -> list[int]:
    value = fields.get(name)
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise UserError(f"{place}: {name} is {value!r}, not a list of layers")
    return sorted(value)

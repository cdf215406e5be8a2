# SPDX-License-Identifier: Apache-2.0
"""gin macros -> frozen, checked dataclasses.

Each field names the macro it comes from, so the macro names, their types and their help stand once.
Values stand in `configs/`, never here. A module that needs settings of its own derives from
`GinConfig` and adds itself to `CONFIG_MODULES`, by which every known name is known everywhere.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from collections.abc import Mapping
from typing import Any, Self

from kcmoe.errors import UserError, near_misses
from kcmoe.gin_files import Macros

# Modules that define a `GinConfig`; imported only when names are checked.
CONFIG_MODULES = [
    "kcmoe.config",
    "kcmoe.training.config",
    "kcmoe.tasks",
    "kcmoe.data.settings",
    "kcmoe.inference.loading",
    "kcmoe.tokenizer.settings",
]

# Macros that only T5X + Flaxformer read; they may stand in shared files and mean nothing here.
T5X_ONLY = {
    "NUM_MODEL_PARTITIONS": "size of T5X's model-parallel submesh",
    "MODEL_PARALLEL_SUBMESH": "T5X's other way to say it",
    "USE_CACHED_TASKS": "SeqIO's offline caches; the engine keeps its own",
    "INFER_OUTPUT_DIR": "where t5x.infer writes",
    "EVAL_SPLIT": "split that t5x.eval and t5x.infer read",
    "INFER_MODE": "what t5x.infer does: 'predict', 'score' or 'predict_with_aux'",
}

_REGISTRY: dict[str, type[GinConfig]] = {}


def macro(name: str, *, help: str, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field filled from the gin macro `name`; without a default the macro is required."""
    return dataclasses.field(metadata={"macro": name, "help": help}, default=default)


class GinConfig:
    """Base of every settings dataclass: `from_macros` and the registry of names."""

    def __init_subclass__(cls) -> None:
        # Runs before @dataclass does, when the class attributes still are the Field objects.
        for field in vars(cls).values():
            if isinstance(field, dataclasses.Field) and "macro" in field.metadata:
                _REGISTRY.setdefault(field.metadata["macro"], cls)

    @classmethod
    def from_macros(cls, macros: Macros) -> Self:
        """Builds the dataclass from its macros.

        Raises:
          UserError: for a missing macro, a value of the wrong type, or one that `check` refuses.
        """
        hints = typing.get_type_hints(cls)
        values = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            name = field.metadata["macro"]
            if name not in macros and field.default is not dataclasses.MISSING:
                continue
            value = macros.require(name)
            values[field.name] = _typed(value, hints[field.name], name, macros.where(name))
        config = cls(**values)
        config.check()
        return config

    def check(self) -> None:
        """Raises `UserError` for values that do not go together; subclasses say which."""


def _typed(value: Any, hint: Any, name: str, where: str) -> Any:
    """Returns `value` as `hint` (int for float is fine, list for tuple too) or raises `UserError`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union or origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        hint = next(choice for choice in arguments if choice is not type(None))
        return _typed(value, hint, name, where)
    if origin is typing.Literal:
        if value in arguments:
            return value
        choices = ", ".join(map(repr, arguments))
        hint_text = near_misses(str(value), [str(choice) for choice in arguments])
        raise UserError(f"{where}: {name} = {value!r}, but it is one of {choices}.{hint_text}")
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(item, arguments[0], name, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = origin or hint
    if plain is Any or (
        isinstance(value, plain) and (plain is bool or not isinstance(value, bool))
    ):
        return value
    words = {
        int: "a whole number",
        float: "a number",
        str: "a text in quotes",
        bool: "True or False",
    }
    wanted = words.get(plain, f"a {plain.__name__}")
    raise UserError(f"{where}: {name} = {value!r}, but it must be {wanted}")


def known_macros() -> Mapping[str, str]:
    """Every macro name the package reads, with its help."""
    for module in CONFIG_MODULES:
        importlib.import_module(module)
    known = dict(T5X_ONLY)
    for name, cls in _REGISTRY.items():
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        known[name] = next(f.metadata["help"] for f in fields if f.metadata.get("macro") == name)
    return known


def check_names(macros: Macros) -> None:
    """Refuses macros that nothing reads, so that a misspelt name cannot pass silently.

    Raises:
      UserError: naming the macro, where it was set, and the nearest known names.
    """
    known = known_macros()
    for name in [*macros, *macros.required]:
        if name not in known and name not in macros.referenced:
            hint = near_misses(name, known)
            raise UserError(f"{macros.where(name)}: nothing is called {name}.{hint}")


Dtype = typing.Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(GinConfig):
    """Shape and routing of the model; macro names are Flaxformer's where it has one."""

    num_encoder_layers: int = macro("NUM_ENCODER_LAYERS", help="encoder layers, dense and sparse")
    num_decoder_layers: int = macro("NUM_DECODER_LAYERS", help="decoder layers, dense and sparse")
    num_encoder_sparse_layers: int = macro(
        "NUM_ENCODER_SPARSE_LAYERS",
        help="encoder layers with a MoE block, evenly spaced; 0 is dense",
    )
    num_decoder_sparse_layers: int = macro(
        "NUM_DECODER_SPARSE_LAYERS",
        help="decoder layers with a MoE block, evenly spaced; 0 is dense",
    )
    num_heads: int = macro("NUM_HEADS", help="attention heads")
    head_dim: int = macro("HEAD_DIM", help="size of one head")
    embed_dim: int = macro("EMBED_DIM", help="width of the model (d_model)")
    mlp_dim: int = macro("MLP_DIM", help="hidden width of a dense MLP (d_ff)")
    expert_mlp_dim: int = macro("EXPERT_MLP_DIM", help="hidden width of one expert")
    num_embeddings: int = macro(
        "NUM_EMBEDDINGS", help="rows of the embedding, at least the vocabulary"
    )
    num_experts: int = macro("NUM_EXPERTS", help="experts per sparse layer")
    num_selected_experts: int = macro(
        "NUM_SELECTED_EXPERTS", help="experts chosen per token (top-k)"
    )
    group_size: int = macro("GROUP_SIZE", help="largest number of tokens routed together")
    train_expert_capacity_factor: float = macro(
        "TRAIN_EXPERT_CAPACITY_FACTOR", help="slots per expert / fair share of tokens, in training"
    )
    eval_expert_capacity_factor: float = macro(
        "EVAL_EXPERT_CAPACITY_FACTOR", help="slots per expert / fair share of tokens, otherwise"
    )
    scale: float = macro("SCALE", help="scale of the variance-scaling initializers")
    dropout_rate: float = macro("DROPOUT_RATE", help="dropout everywhere but inside experts")
    expert_dropout_rate: float = macro("EXPERT_DROPOUT_RATE", help="dropout inside experts")
    activation_dtype: Dtype = macro("ACTIVATION_DTYPE", help="dtype of activations")
    moe_truncated_dtype: Dtype = macro("MOE_TRUNCATED_DTYPE", help="dtype inside experts")
    num_expert_replicas: int = macro(
        "NUM_EXPERT_REPLICAS", help="copies of each expert that Flaxformer's group count assumes"
    )
    routing: typing.Literal["capacity", "dropless"] = macro(
        "ROUTING", help="'capacity' drops tokens as Flaxformer does, 'dropless' drops none"
    )
    dispatch: typing.Literal["auto", "gather", "einsum", "grouped", "ragged"] = macro(
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
        for field in dataclasses.fields(self):
            value, name = getattr(self, field.name), field.metadata["macro"]
            lowest = 0 if "sparse_layers" in field.name else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < lowest:
                raise UserError(f"{name} = {value}, but it must be at least {lowest}")
            if field.name.endswith("dropout_rate") and not 0.0 <= value < 1.0:
                raise UserError(f"{name} = {value}, but a dropout rate is in [0, 1)")
        for stack in ("encoder", "decoder"):
            layers = getattr(self, f"num_{stack}_layers")
            sparse = getattr(self, f"num_{stack}_sparse_layers")
            if sparse and (sparse > layers or layers % sparse):
                raise UserError(
                    f"NUM_{stack.upper()}_SPARSE_LAYERS = {sparse} does not divide "
                    f"NUM_{stack.upper()}_LAYERS = {layers}"
                )
        if self.num_selected_experts > self.num_experts:
            raise UserError(
                f"NUM_SELECTED_EXPERTS = {self.num_selected_experts} is more than "
                f"NUM_EXPERTS = {self.num_experts}"
            )

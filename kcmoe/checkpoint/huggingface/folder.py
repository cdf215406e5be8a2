# SPDX-License-Identifier: Apache-2.0
"""A folder that transformers loads: written leaf by leaf from a checkpoint, and read as one.

Written are the weights (safetensors, in several files beyond `SHARD_BYTES`), the settings, the tokenizer, the
code of sparse models and a model card. Read are folders that were written so, whether or not transformers has
saved them again since; every tensor must be one that the settings announce.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kcmoe import tree as trees
from kcmoe.checkpoint import run_config, safetensors
from kcmoe.checkpoint.base import Format, Provenance, Writer
from kcmoe.checkpoint.huggingface import card, names, settings, tokenizer
from kcmoe.checkpoint.storage import Damaged, Folder
from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.config.training import LossConfig
from kcmoe.errors import UserError
from kcmoe.io import json_text, remote, resources
from kcmoe.tree import ShapeDtype
from kcmoe.vocabulary import Vocabulary

SHARD_BYTES = 5_000_000_000
"""Weights beyond it are spread over several files, as transformers does."""
CODE = tuple(
    f"{name}_kcmoe.py" for name in ("configuration", "generation", "layers", "modeling", "routing")
)
# The beam search, and where transformers looks for a `generate` of one's own (of a dense twin).
_SEARCH, _GENERATE = "generation_kcmoe.py", "custom_generate/generate.py"
_ADAPTER = "adapter_config.json"  # of PEFT
_ENGINE, _PUBLISHED = "configs/engine/engine.gin", "configs/sizes/base.gin"


def _config_of(folder: Folder) -> dict[str, Any]:
    """The `config.json`, {} if there is none; `UserError` if it is not one."""
    if not folder.exists(settings.FILE):
        return {}
    try:
        fields = json_text.parse(folder.read(settings.FILE))
    except ValueError as error:
        raise UserError(f"{folder.path}/{settings.FILE} is damaged ({error})") from error
    return fields if isinstance(fields, dict) else {}


def _recognises(folder: Folder) -> bool:
    if folder.exists(_ADAPTER):
        raise UserError(
            f"{folder.path} is a PEFT adapter without its model: load both in transformers, call "
            "merge_and_unload() and save_pretrained(), and take that folder"
        )
    if folder.exists(settings.GENERATION_FILE) and not folder.exists(settings.FILE):
        raise UserError(f"{folder.path} is a Hugging Face folder without its {settings.FILE}")
    # Our own config.json, beside safetensors under our names, has no architectures.
    found = "architectures" in _config_of(folder)
    if found and folder.remote:
        raise UserError(f"{folder.path} is a Hugging Face folder: copy it to this machine first")
    return found


def _finished(folder: Folder) -> bool:
    weights = folder.exists(safetensors.FILE) or folder.exists(safetensors.INDEX)
    return weights and folder.exists(settings.FILE)


class HuggingFaceReader(safetensors.SafetensorsReader):
    """Reads a folder of transformers as a checkpoint of parameters."""

    format = "huggingface"

    def __init__(self, folder: Folder):
        super().__init__(folder)
        self._fields = _config_of(folder)
        self._macros = settings.to_macros(self._fields, f"{folder.path}/{settings.FILE}")
        # That of the export: transformers counts its own steps from zero, and keeps none with a model.
        step = self._fields[settings.KEPT].get("step")
        self._step = np.asarray(step if isinstance(step, int) else 0, np.int32)

    def _scan(self) -> tuple[dict[str, ShapeDtype], dict[str, str]]:
        tensors, problems = super()._scan()
        if not tensors and not problems:
            raise UserError(
                f"{self.path} has no {safetensors.FILE}: copy it there, or save the model in "
                "transformers with save_pretrained(), which writes that format"
            )
        expected = names.expected_parameters(self._macros)
        self._parameters = {trees.PARAMETERS + name: name for name in expected}
        layout = names.layout(expected)
        _check_shapes(self.path, tensors, layout)
        for tensor in sorted(layout.keys() - tensors.keys() - problems.keys()):
            problems[tensor] = "missing"
        for tensor in sorted(tensors.keys() - layout.keys()):
            problems[tensor] = f"{tensors[tensor]} is no part of this model"
        found = {}
        for path, name in self._parameters.items():
            tensor = names.place(name).tensor
            if tensor in tensors:
                found[path] = ShapeDtype(expected[name], tensors[tensor].dtype)
        found[trees.STEP] = trees.shape_dtype(self._step)
        return found, problems

    def _read(self, path: str) -> np.ndarray:
        if path == trees.STEP:
            return self._step
        place = names.place(self._parameters[path])
        if place.half is None:
            values = super()._read(place.tensor)
            return np.ascontiguousarray(values.swapaxes(-1, -2)) if place.transposed else values
        file, leaf, start = self._places[place.tensor]
        experts, rows, width = leaf.shape
        part = ShapeDtype((rows // 2, width), leaf.dtype)
        values = np.empty((experts, width, rows // 2), leaf.dtype)
        for expert in range(experts):
            offset = start + (2 * expert + place.half) * part.nbytes
            read = np.fromfile(Path(self.path) / file, leaf.dtype, part.size, offset=offset)
            if read.size != part.size:
                raise Damaged(f"cut off ({place.tensor}, expert {expert})")
            values[expert] = read.reshape(part.shape).T
        return values

    def recorded(self) -> dict[str, Any]:
        """The macros that `config.json` tells."""
        return dict(self._macros)


def _check_shapes(
    path: str, tensors: Mapping[str, ShapeDtype], layout: Mapping[str, tuple[int, ...]]
) -> None:
    there = [(name, tensors[name], shape) for name, shape in layout.items() if name in tensors]
    wrong = [
        f"{name} is {leaf}, not {list(shape)}" for name, leaf, shape in there if leaf.shape != shape
    ]
    whole = [f"{name} is {leaf}" for name, leaf, _ in there if leaf.dtype.kind in "biu"]
    for found, what in (
        (wrong, f"{path}/{settings.FILE} contradicts the weights"),
        (whole, f"{path} has weights that are no floating-point numbers"),
    ):
        if found:
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            raise UserError(f"{what}: {found[0]}{more}")


class HuggingFaceWriter(Writer):
    """Writes parameters as a folder of transformers."""

    def __init__(self, folder: Path, tree: Mapping[str, ShapeDtype], about: Provenance):
        super().__init__(folder, tree, about)
        macros = _all_macros(about)
        self._model = ModelConfig.from_macros(macros)
        self._losses = LossConfig.from_macros(macros)
        self._vocabulary = _vocabulary(about, self._model.num_embeddings)
        parameters = trees.parameters(tree)
        expected = names.expected_parameters(macros)
        if {name: leaf.shape for name, leaf in parameters.items()} != expected:
            unequal = sorted(parameters.keys() ^ expected.keys()) or ["shapes"]
            raise UserError(
                f"{about.path} is not the model that is recorded beside it: {', '.join(unequal[:5])}"
            )
        dtypes = {leaf.dtype for leaf in parameters.values()}
        if len(dtypes) > 1:
            found = ", ".join(sorted(dtype.name for dtype in dtypes))
            raise UserError(f"{about.path} has parameters of several dtypes ({found}): add --dtype")
        self._dtype = dtypes.pop()
        self._shapes = {
            tensor: ShapeDtype(shape, self._dtype)
            for tensor, shape in names.layout(expected).items()
        }
        self._files = dict(self._open_files())

    def _open_files(self) -> Iterator[tuple[str, tuple[str, safetensors.TensorFile]]]:
        """Tensor -> its file's name and the file; the header of every file is written."""
        shards: list[dict[str, ShapeDtype]] = [{}]
        for tensor, leaf in self._shapes.items():
            if shards[-1] and trees.total_bytes([*shards[-1].values(), leaf]) > SHARD_BYTES:
                shards.append({})
            shards[-1][tensor] = leaf
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            name = safetensors.FILE if len(shards) == 1 else name
            file = safetensors.TensorFile(self.folder / name, shard, {"format": "pt"})
            yield from ((tensor, (name, file)) for tensor in shard)

    def add(self, path: str, array: np.ndarray) -> None:
        """Writes one parameter, an expert or a matrix at a time."""
        name = trees.parameter_of(path)
        assert name is not None
        place = names.place(name)
        file = self._files[place.tensor][1]
        matrices = array if array.ndim == 3 else array[None]
        skip = 1 if place.half is None else 2
        for number, matrix in enumerate(matrices):
            first = (skip * number + (place.half or 0)) * matrix.size
            file.write(place.tensor, matrix.T if place.transposed else matrix, first)

    def finish(self, final: str) -> None:
        """Writes all that is not weights."""
        for file in dict.fromkeys(file for _, file in self._files.values()):
            file.close()
        weights = {tensor: name for tensor, (name, _) in sorted(self._files.items())}
        if len(set(weights.values())) > 1:
            total = trees.total_bytes(self._shapes.values())
            self._write(
                safetensors.INDEX, {"metadata": {"total_size": total}, "weight_map": weights}
            )
        kept = run_config.to_keep(self.about.path or final, self.about.macros, {})
        told = settings.kept_names(kept, self._model.is_sparse)
        kept = {"step": self.about.step or 0, **{name: kept[name] for name in told}}
        lengths = self.about.macros.get("TASK_FEATURE_LENGTHS") or {}
        config = settings.to_config(self._model, self._losses, self._computes_in(), kept)
        self._write(settings.FILE, config)
        self._write(settings.GENERATION_FILE, settings.to_generation_config(lengths))
        model = remote.read_bytes(self._vocabulary.path)
        files = tokenizer.files(model, self._vocabulary.path, int(lengths.get("inputs", 512)))
        if self._model.is_sparse:
            files |= {name: resources.find(f"huggingface/{name}").read_bytes() for name in CODE}
        else:
            files[_GENERATE] = resources.find(f"huggingface/{_SEARCH}").read_bytes()
        parameters = trees.total_values(self._shapes.values())
        files["README.md"] = card.text(
            os.path.basename(final), self._model, self._vocabulary, parameters, self.about
        ).encode()
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)

    def _computes_in(self) -> str:
        """The dtype to load in, float32 where the run computed in it: weights in bfloat16 only save space."""
        names = (self._dtype.name, self._model.activation_dtype)
        return "float32" if "float32" in names else self._dtype.name

    def _write(self, name: str, fields: Mapping[str, Any]) -> None:
        text = json.dumps(fields, ensure_ascii=False, indent=2) + "\n"
        (self.folder / name).write_text(text, encoding="utf-8")


def _all_macros(about: Provenance) -> gin_files.Macros:
    """The engine's settings and over them the run's; weights of losses not told are the published ones."""
    engine, published = gin_files.parse([_ENGINE]), gin_files.parse([_PUBLISHED])
    required = ModelConfig.macro_names()
    missing = [name for name in required if name not in about.macros and name not in engine]
    if missing:
        raise UserError(
            f"no {run_config.CONFIG_FILE} is beside {about.path}, so {missing[0]} is unknown: put the run's "
            f"{run_config.CONFIG_FILE} (or a gin file of its size, under that name) into its folder"
        )
    defaults = {name: published[name] for name in LossConfig.macro_names()}
    return engine.replace(**{**defaults, **about.macros})


def _vocabulary(about: Provenance, rows: int) -> Vocabulary:
    vocabulary = Vocabulary(about.macros.get("VOCABULARY_FILE"))
    digest = about.macros.get(run_config.DIGEST)
    if digest and digest != vocabulary.digest:
        raise UserError(
            f"{about.path} was trained with another vocabulary (sha256 {str(digest)[:12]}…) than "
            f"{vocabulary.path} ({vocabulary.digest[:12]}…); name the former with --vocabulary"
        )
    if vocabulary.size > rows:
        raise UserError(
            f"{vocabulary.path} has {vocabulary.size:,} pieces, but the embedding of {about.path} has "
            f"{rows:,} rows; name its own vocabulary with --vocabulary"
        )
    return vocabulary


FORMAT = Format(
    name="huggingface",
    title="a Hugging Face folder (config.json with model.safetensors)",
    recognises=_recognises,
    finished=_finished,
    reader=HuggingFaceReader,
    writer=HuggingFaceWriter,
    parameters_only=True,
    foreign=True,
    read_by_t5x=False,
)

# SPDX-License-Identifier: Apache-2.0
"""From the path of a checkpoint to what inference needs: settings, parameters, vocabulary.

Settings are those recorded beside the checkpoint (or a file named instead), and over them those of the
caller. Routing is dropless unless the caller says otherwise, whatever the training run had: only then
is a line's answer its own. Optimizer state is not read.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kcmoe import fits, tree
from kcmoe.checkpoint import manage, run_config, shipped
from kcmoe.checkpoint.storage import step_of
from kcmoe.config import fields as configs
from kcmoe.config import gin_files
from kcmoe.config.inference import InferenceConfig
from kcmoe.config.model import ModelConfig
from kcmoe.config.task import TaskSettings
from kcmoe.errors import UserError
from kcmoe.inference import expected
from kcmoe.inference.compute import Compute, Jitted
from kcmoe.inference.programs import Programs
from kcmoe.inference.runtime import Runtime, computes_on_cpu
from kcmoe.io import compilation_cache
from kcmoe.io.remote import is_remote
from kcmoe.model import current_platform
from kcmoe.tasks.registry import TASKS, Task, named_task, one_task
from kcmoe.vocabulary import Vocabulary

if TYPE_CHECKING:
    from kcmoe.checkpoint.base import Reader

BASE = "configs/engine/engine.gin"


@dataclasses.dataclass(frozen=True)
class Found:
    """A checkpoint that is there, and all settings for using it; nothing of its weights is read.

    Attributes:
      checkpoint: its folder.
      macros: the engine's settings, then those of its run, then those of the caller.
    """

    checkpoint: str
    macros: gin_files.Macros


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint ready for use.

    Attributes:
      checkpoint: its folder.
      step: training step.
      macros: all settings.
      config: the model as inference runs it.
      weights: path -> float32 array in memory, not to be changed.
      vocabulary: of the texts.
      lengths: {"inputs": tokens, "targets": tokens}, EOS included; longer texts are cut.
      tokens: tokens to compute at once.
    """

    checkpoint: str
    step: int
    macros: gin_files.Macros
    config: ModelConfig
    weights: dict[str, np.ndarray]
    vocabulary: Vocabulary
    lengths: Mapping[str, int]
    tokens: int

    @functools.cached_property
    def params(self) -> dict[str, Any]:
        """The weights on JAX's device: path -> float32 array."""
        import jax

        compilation_cache.enable()
        params: dict[str, Any] = jax.device_put(self.weights)
        return params

    @functools.cached_property
    def compute(self) -> Compute:
        """What runs the model's functions; see `compute`."""
        return compute_of(self.config, self.weights, lambda: self.params)


def compute_of(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    params: Callable[[], Mapping[str, Any]] | None = None,
) -> Compute:
    """What runs the functions of a model: programs kept on disk on a CPU, JAX elsewhere.

    Args:
      config: the model as inference runs it.
      weights: path -> array.
      params: gives the same on JAX's device, where somebody has it already.
    """
    runtime = Runtime.of()
    if runtime is not None:
        return Programs(config, weights, runtime, compilation_cache.kept())
    import jax

    from kcmoe.model.encoder_decoder import EncoderDecoder

    return Jitted(EncoderDecoder(config), jax.device_put(weights) if params is None else params())


def find_checkpoint(path: str | os.PathLike[str]) -> str:
    """`path`, the newest checkpoint of the model directory `path`, or the folder of a model that ships.

    Raises:
      UserError: if there is nothing of that name.
    """
    text = shipped.resolve(path).rstrip("/") or "/"
    if is_remote(text):
        listed = step_of(text) is None and not text.startswith(("http://", "https://"))
        newest = manage.latest(text) if listed else None
        return text if newest is None else str(newest)
    if not os.path.exists(text):
        parent = os.path.dirname(os.path.abspath(text))
        names = ", ".join(one.name for one in manage.all_checkpoints(parent)[-5:])
        hint = f" There are {names} in {parent}." if names else ""
        raise UserError(f"there is no checkpoint {text}.{hint}{shipped.hint(text)}")
    newest = manage.latest(text)
    return text if newest is None else str(newest)


def read_settings(
    checkpoint: str, config: str | None = None, given: Mapping[str, Any] | None = None
) -> gin_files.Macros:
    """All settings for using `checkpoint`: the engine's, then those of its run, then `given`.

    Raises:
      UserError: if no config is beside the checkpoint and none is named, a given name is unknown, or a value
        is not what its setting takes.
    """
    given = given or {}
    found = config or run_config.find_config(checkpoint)
    beside = run_config.read_json(checkpoint) if found is None else {}
    files = [BASE] if found is None else [BASE, found]
    # `foreign`: T5X's config.gin has imports and bindings beside the macros.
    macros = gin_files.parse(files, foreign=True, includes=config is not None)
    if given:
        configs.check_all(gin_files.parse().updated(given))
    dropped = _of_another_task(macros, given)
    macros = macros.updated(beside, f"{checkpoint}/{run_config.JSON_FILE}")
    own = {"ROUTING": "dropless", **dropped}
    if config is None:
        own |= _harmless(checkpoint, macros, given)
    macros = macros.replace(**own).updated(given)
    unknown = [name for name in ModelConfig.macro_names() if name not in macros]
    if found is None and unknown:
        if os.path.isfile(os.path.join(checkpoint, "generation_config.json")):
            raise UserError(
                f"{checkpoint} is for transformers; `kcmoe checkpoint convert {checkpoint} OUT "
                "--format=t5x_orbax` makes what this reads"
            )
        from kcmoe.checkpoint.reading import open_checkpoint

        open_checkpoint(checkpoint)  # which says so where there is none
        raise UserError(
            f"there is no {run_config.CONFIG_FILE} beside {checkpoint}, so {unknown[0]} is unknown; "
            "name a gin file that has it, e.g. --config=configs/sizes/base.gin"
        )
    run_config.check(macros)
    return macros


def _harmless(
    checkpoint: str, recorded: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """What is used in place of the places that the settings beside a checkpoint name.

    They may have been downloaded with it: they choose nothing to write to, and open no address.
    """
    places: dict[str, Any] = {
        name: None for name in ("EVAL_OUTPUT_DIR", "CACHE_DIR") if recorded.get(name)
    }
    if "VOCABULARY_FILE" in recorded and "VOCABULARY_FILE" not in given:
        places["VOCABULARY_FILE"] = run_config.vocabulary_of(checkpoint, recorded)
    return places


def refuse_addresses(found: Found, given: Mapping[str, Any]) -> None:
    """Raises `UserError` if data are at an address that only the settings beside a checkpoint name."""
    for name in ("DATA_DIR", "TASK_TRAIN_FILES", "TASK_VALIDATION_FILES", "TASK_TEST_FILES"):
        value = None if name in given else found.macros.get(name)
        for place in value if isinstance(value, list | tuple) else [value]:
            if is_remote(str(place)) or (os.path.exists(str(place)) and not _on_disk(str(place))):
                raise UserError(
                    f"the settings of {found.checkpoint} say {name} = {value!r}, which is not a folder or "
                    f"file of this machine; if you trust that place, add --gin.{name}='\"{place}\"'"
                )


def _on_disk(path: str) -> bool:
    return os.path.isfile(path) or os.path.isdir(path)


def _of_another_task(macros: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, None]:
    """TASK_… and MIXTURE taken back where `given` names a task that the run's do not describe."""
    name, *rest = TaskSettings.macro_names()
    if given.get(name, macros.get(name)) == macros.get(name):
        return {}
    return {other: None for other in rest if other in macros}


def find(
    path: str | os.PathLike[str],
    config: str | None = None,
    given: Mapping[str, Any] | None = None,
) -> Found:
    """Finds a checkpoint and its settings.

    Args:
      path: a checkpoint, a model directory for its newest one, or the name of a model that ships; a bucket
        works too.
      config: gin file with the sizes, where no config.gin is beside the checkpoint.
      given: macros that win over those of the file.

    Raises:
      UserError: as `find_checkpoint` and `read_settings`.
    """
    checkpoint = find_checkpoint(path)
    return Found(checkpoint, read_settings(checkpoint, config, given))


def load(found: Found) -> Loaded:
    """Reads the weights of a checkpoint for inference.

    Raises:
      UserError: for anything missing, damaged or unfit, with what and where.
    """
    from kcmoe.checkpoint.reading import open_checkpoint
    from kcmoe.inference.batching import default_tokens, inference_config

    checkpoint, macros = found.checkpoint, found.macros
    model = ModelConfig.from_macros(macros)
    vocabulary = Vocabulary(macros.get("VOCABULARY_FILE"))
    fits.check_vocabulary(vocabulary.path, vocabulary.size, model.num_embeddings, checkpoint)
    run_config.check_vocabulary(checkpoint, vocabulary)
    reader = open_checkpoint(checkpoint)
    settings = InferenceConfig.from_macros(macros)
    weights = narrowed(_read_weights(reader, model), settings.weights)
    return Loaded(
        checkpoint=checkpoint,
        step=reader.step,
        macros=macros,
        config=inference_config(model, model.routing, _platform()),
        weights=weights,
        vocabulary=vocabulary,
        lengths=_lengths(macros),
        tokens=settings.tokens
        or default_tokens(sum(leaf.size for leaf in weights.values()), _platform()),
    )


def narrowed(weights: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """The weights with the matrices of products in `kind`; the router stays in float32, as in training.

    The experts' bfloat16 matrices are held as uint16 of the same bits (`model.cpu.used_blocks`).
    """
    if kind == "float32":
        return weights
    narrow = {
        path: array.astype(np.dtype(kind))
        for path, array in weights.items()
        if path.endswith("/kernel") and "/router/" not in path
    }
    experts = {path: array.view(np.uint16) for path, array in narrow.items() if "/expert/" in path}
    return {**weights, **narrow, **experts}


def _platform() -> str:
    if computes_on_cpu():
        return "cpu"
    return current_platform()


def _read_weights(reader: Reader, model: ModelConfig) -> dict[str, np.ndarray]:
    """path -> float32 array; a checkpoint in bfloat16 or float16 is widened."""
    from kcmoe.checkpoint.reading import restore_parameters

    shapes = tree.as_state(expected.param_shapes(model, compilation_cache.kept()))
    return tree.parameters(restore_parameters(reader, shapes))


def chosen_task(of: Found | Loaded, name: str | None) -> Task:
    """The task of this name, or that of the model's run for None; gin settings of the run's own task count.

    Raises:
      UserError: for an unknown name, None where the run names no task, or settings that do not go together.
    """
    own = of.macros.get("MIXTURE_OR_TASK_NAME")
    if name is None and own is None:
        learnt = run_config.learnt_tasks(of.macros)
        known = f" of {', '.join(learnt)}" if learnt else ""
        raise UserError(
            f'{of.checkpoint} names no task; say which{known}, e.g. task="nsmc" (--task=nsmc)'
        )
    return one_task(of.macros) if name in (None, own) else named_task(str(name))


def unlearnt(checkpoint: str, macros: Mapping[str, Any], task: str) -> str:
    """What to say before a model answers `task`, which it never learnt; "" if it did or nothing is known.

    A task that puts the question of a learnt one, with the same answers, is learnt.
    """
    learnt = run_config.learnt_tasks(macros)
    if not learnt or task in learnt or _question(task) in [_question(name) for name in learnt]:
        return ""
    return (
        f"{checkpoint} was trained on {', '.join(learnt)}, not on {task}: its answers are guesses"
    )


def _question(name: str) -> tuple[str, frozenset[str]] | str:
    """Prompt without the names of columns, and the label words; the name itself where there is no prompt."""
    task = TASKS.get(name)
    if task is None or not task.prompt:
        return name
    return re.sub(r"\{\w+\}", "{}", task.prompt), frozenset(task.labels.values())


def _lengths(macros: Mapping[str, Any]) -> Mapping[str, int]:
    """The run's; where its settings lack them, those of pretraining."""
    name = "TASK_FEATURE_LENGTHS"
    pretraining = gin_files.parse(["configs/tasks/pretrain.gin"])[name]
    return fits.check_lengths({**pretraining, **(macros.get(name) or {})})

# SPDX-License-Identifier: Apache-2.0
"""Registers the tasks of `kcmoe.tasks.registry` with SeqIO: span corruption and metrics by t5.

A task is known to SeqIO under its own name, with the data folder and vocabulary given when it was
registered; registering it again replaces it. What a task is stands in `kcmoe.tasks.registry`, never here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import seqio
import t5.data.postprocessors
import t5.data.preprocessors
import t5.evaluation.metrics

from kcmoe.data import labelled
from kcmoe.data.span_corruption import PRETRAINING, Noise
from kcmoe.t5x import vocabulary as vocabularies
from kcmoe.t5x.source import TextSource
from kcmoe.tasks.registry import Mixture, Task


def register(
    task: Task | Mixture,
    data_dir: str = "data",
    vocabulary_file: str | None = None,
    *,
    strict: bool = True,
    noise: Noise = PRETRAINING,
    targets: int = 0,
) -> str:
    """Makes `task` known to SeqIO, replacing one of the same name.

    Args:
      task: a task or mixture of `kcmoe.tasks.registry`.
      data_dir: local folder or bucket address that relative files are below.
      vocabulary_file: SentencePiece model; None is the shipped one.
      strict: stop at rows that cannot be read rather than leave them out.
      noise: what span corruption removes.
      targets: tokens of a target, EOS included, to which label words are not to be cut; 0 if that is not
        known here.

    Returns:
      The name to give to `seqio.get_mixture_or_task` and T5X.

    Raises:
      UserError: if the vocabulary cannot be read, or does not give back the labels.
    """
    if isinstance(task, Task) and task.kind == "labelled":
        engine = vocabularies.engine_vocabulary(vocabulary_file)
        labelled.check_answers(task, engine, targets)
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        if task.name in registry.names():
            registry.remove(task.name)
    if isinstance(task, Mixture):
        alike: dict[str, Any] = {"strict": strict, "noise": noise, "targets": targets}
        rates = [
            (register(part, data_dir, vocabulary_file, **alike), weight)
            for part, weight in task.weights
        ]
        seqio.MixtureRegistry.add(task.name, rates)
        return task.name
    vocabulary = vocabularies.seqio_vocabulary(vocabulary_file)
    seqio.TaskRegistry.add(
        task.name,
        source=TextSource(task, data_dir, vocabulary_file, strict=strict),
        preprocessors=_preprocessors(task, noise),
        output_features={
            name: seqio.Feature(vocabulary=vocabulary, add_eos=True)
            for name in ("inputs", "targets")
        },
        postprocess_fn=_postprocessor(task),
        metric_fns=_metrics(task),
    )
    return task.name


def _preprocessors(task: Task, noise: Noise) -> Sequence[Callable[..., Any]]:
    steps: list[Callable[..., Any]] = [seqio.CacheDatasetPlaceholder()]
    if task.kind == "span_corruption":
        steps.append(
            functools.partial(
                t5.data.preprocessors.span_corruption,
                noise_density=noise.density,
                mean_noise_span_length=noise.mean_span,
                merge_examples_to_reduce_padding=False,  # the source has joined them
            )
        )
    return [*steps, seqio.preprocessors.append_eos_after_trim]


def _postprocessor(task: Task) -> Callable[..., Any] | None:
    if task.target_step:
        return t5.data.postprocessors.string_to_float
    if task.multi_label:
        return functools.partial(_zeros_and_ones, task)
    if task.label_words:
        return functools.partial(
            t5.data.postprocessors.string_label_to_class_id, label_classes=list(task.label_words)
        )
    return None


def _zeros_and_ones(task: Task, answer: str, **unused: object) -> list[int]:
    """One number per label word, 1 where the answer names it; no answer of the task is all zeros."""
    named = task.labels_in(answer)
    return [int(label in named) for label in range(len(task.label_words))]


def _metrics(task: Task) -> list[Callable[..., Any]]:
    """t5's metrics, in per cent; an answer that is no label counts as wrong (class -1)."""
    by_name = {
        "accuracy": t5.evaluation.metrics.accuracy,
        "macro_f1": t5.evaluation.metrics.mean_multiclass_f1(max(len(task.label_words), 1)),
        "pearson": t5.evaluation.metrics.pearson_corrcoef,
        "spearman": t5.evaluation.metrics.spearman_corrcoef,
    }
    if task.multi_label:
        by_name |= {f"{average}_f1": _multi_label_f1(average) for average in ("micro", "macro")}
    return [by_name[name] for name in task.metrics]


def _multi_label_f1(average: str) -> Callable[..., Any]:
    return t5.evaluation.metrics.sklearn_metrics_wrapper(
        "f1_score",
        metric_dict_str=f"{average}_f1",
        metric_post_process_fn=lambda value: 100 * value,
        average=average,
        zero_division=0,
    )

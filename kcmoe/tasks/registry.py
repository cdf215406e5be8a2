# SPDX-License-Identifier: Apache-2.0
"""Every task as data: where its files are, columns, prompt, label words, metrics.

Nothing here opens a file, knows ids or imports more than the standard library, so that the engine
(`kcmoe/data`) and SeqIO (`kcmoe/t5x`) build the same examples from the same table. A task of one's own is
written in gin with the `TASK_…` macros of `kcmoe.config.task`; they also change single fields of a task
listed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kcmoe.config.task import TaskSettings
from kcmoe.errors import UserError, near_misses
from kcmoe.tasks import types as task_types
from kcmoe.tasks.macros import is_number, task_fields
from kcmoe.tasks.types import Mixture, Task, format_number

__all__ = [
    "TASKS",
    "Mixture",
    "Task",
    "format_number",
    "get_task",
    "named_task",
    "one_task",
]


def _files(folder: str, *splits: str) -> dict[str, tuple[str, ...]]:
    return {split: (f"{folder}/{split}.parquet",) for split in splits}


_SENTIMENT_PROMPT = "다음 리뷰가 긍정적인지 부정적인지 판단하세요. 리뷰: {document}"
_SENTIMENT = {"0": "부정적", "1": "긍정적"}
_HATE_PROMPT = "다음 글이 혐오 표현인지 판단하세요. 글: {%s}"
_STS_PROMPT = (
    "두 문장의 뜻이 얼마나 비슷한지 0.0에서 5.0 사이의 점수로 답하세요. "
    "문장 1: {sentence1} 문장 2: {sentence2}"
)
_NLI_PROMPT = "전제와 가설의 관계를 판단하세요. 전제: {premise} 가설: {hypothesis}"
_NLI = {"entailment": "함의", "neutral": "중립", "contradiction": "모순"}

_NSMC = Task(
    name="nsmc",
    kind="labelled",
    files=_files("nsmc", "train", "test"),
    prompt=_SENTIMENT_PROMPT,
    target="label",
    labels=_SENTIMENT,
    metrics=("accuracy",),
    id_column="id",
    holdout=0.02,  # no official validation split: 3,000 of 150,000, chosen by hash, never the test split
)
_KORNLI = Task(
    name="kornli",
    kind="labelled",
    files=_files("kornli", "train", "validation", "test"),
    prompt=_NLI_PROMPT,
    target="label",
    labels=_NLI,
    metrics=("accuracy",),
)
_KORSTS = Task(
    name="korsts",
    kind="labelled",
    files=_files("korsts", "train", "validation", "test"),
    prompt=_STS_PROMPT,
    target="score",
    target_step=0.2,
    target_range=(0.0, 5.0),
    metrics=("spearman", "pearson"),
)
_HATE_SPEECH = Task(
    name="hate_speech",
    kind="labelled",
    files=_files("hate_speech", "train", "validation"),  # the official test labels are not public
    prompt="다음 댓글이 혐오 표현인지, 공격적인 표현인지, 문제가 없는지 판단하세요. 댓글: {comments}",
    target="hate",
    labels={"hate": "혐오", "offensive": "공격적", "none": "문제없음"},
    metrics=("macro_f1", "accuracy"),
)
_MORE_LABELLED = (
    # KorNLI's own training pairs were machine-translated; KLUE's were written in Korean.
    dataclasses.replace(
        _KORNLI,
        name="kornli_from_klue",
        files={**_KORNLI.files, "train": ("klue_nli/train.parquet",)},
    ),
    # Scored in steps of 0.2 as in korsts, so that one model answers both.
    dataclasses.replace(
        _KORSTS,
        name="klue_sts",
        files=_files("klue_sts", "train", "validation"),
        target="label",
        id_column="guid",
        metrics=("pearson", "spearman"),
    ),
    Task(
        name="kmhas",
        kind="labelled",
        files=_files("kmhas", "train", "validation", "test"),
        prompt="다음 댓글에 담긴 혐오의 종류를 모두 고르세요. 댓글: {text}",
        target="labels",
        labels={
            "0": "출신",
            "1": "외모",
            "2": "정치",
            "3": "욕설",
            "4": "나이",
            "5": "성별",
            "6": "인종",
            "7": "종교",
            "8": "문제없음",
        },
        multi_label=True,
        metrics=("micro_f1", "macro_f1"),
    ),
    Task(
        name="apeach",
        kind="labelled",
        files=_files("apeach", "test"),
        prompt=_HATE_PROMPT % "text",
        target="label",
        labels={"Default": "문제없음", "Spoiled": "혐오"},
        metrics=("macro_f1", "accuracy"),
    ),
    # What APEACH trains on: the comments of hate_speech, asked APEACH's question.
    dataclasses.replace(
        _HATE_SPEECH,
        name="hate_speech_binary",
        prompt=_HATE_PROMPT % "comments",
        labels={"none": "문제없음", "offensive": "혐오", "hate": "혐오"},
    ),
    Task(
        name="curse",
        kind="labelled",
        files=_files("curse", "train", "validation"),
        prompt="다음 댓글에 욕설이나 비하가 있는지 판단하세요. 댓글: {text}",
        target="label",
        labels={"0": "문제없음", "1": "욕설"},
        metrics=("macro_f1", "accuracy"),
    ),
    Task(
        name="three_i_four_k",
        kind="labelled",
        files=_files("three_i_four_k", "train", "test"),
        prompt="다음 말의 의도를 판단하세요. 말: {text}",
        target="label",
        labels={
            "0": "구절",
            "1": "서술",
            "2": "질문",
            "3": "명령",
            "4": "수사의문",
            "5": "수사명령",
            "6": "억양의존",  # a question or a statement, as it is spoken
        },
        metrics=("accuracy", "macro_f1"),
        holdout=0.02,  # no official validation split, as with nsmc
    ),
    Task(
        name="question_pair",
        kind="labelled",
        files=_files("question_pair", "train", "validation", "test"),
        prompt="두 질문의 뜻이 같은지 판단하세요. 질문 1: {question1} 질문 2: {question2}",
        target="is_duplicate",
        labels={"0": "같음", "1": "다름"},  # sic: the published files write 0 for the same question
        metrics=("accuracy", "macro_f1"),
    ),
)
_PRETRAIN = Task(
    name="pretrain",
    kind="span_corruption",
    files={"train": ("comments/train-*.parquet",), "validation": ("comments/validation.parquet",)},
    text_column="text",
)
_SAMPLES = (
    Task(
        name="sample_pretrain",
        kind="span_corruption",
        files={"train": ("samples:comments.txt",)},
        text_column="text",
        holdout=0.05,
    ),
    dataclasses.replace(
        _NSMC,
        name="sample_reviews",
        files={s: (f"samples:reviews_{s}.tsv",) for s in ("train", "validation")},
        id_column="",
        holdout=0.0,
    ),
    dataclasses.replace(
        _KORNLI,
        name="sample_nli",
        files={s: (f"samples:nli_{s}.tsv",) for s in ("train", "validation")},
    ),
)

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (_PRETRAIN, _NSMC, _KORNLI, _KORSTS, _HATE_SPEECH, *_MORE_LABELLED, *_SAMPLES)
}


def get_task(name_or_macros: str | Mapping[str, Any]) -> Task | Mixture:
    """The task of this name, or the task or mixture that the macros describe.

    Raises:
      UserError: for an unknown name, or a task in gin that lacks something.
    """
    if isinstance(name_or_macros, str):
        return named_task(name_or_macros)
    settings = TaskSettings.from_macros(name_or_macros)  # type: ignore[arg-type]
    fields = task_fields(settings)
    if settings.name in ("", ".", "..") or "/" in settings.name:
        raise UserError(
            f"MIXTURE_OR_TASK_NAME = {settings.name!r} is no name: files are called so, and it may have no /"
        )
    own = _build(settings.name, fields) if fields else None
    for name in settings.mixture or ():
        if not isinstance(name, str):
            raise UserError(f"MIXTURE = {settings.mixture!r}, but {name!r} is no name of a task")
    if settings.mixture is None:
        return own or named_task(settings.name)
    if own and own.name not in settings.mixture:
        raise UserError(
            f"TASK_… settings describe {own.name}, which MIXTURE leaves out; give the mixture the name "
            "of your own task and name that in MIXTURE as well"
        )
    pairs = [
        (own if own and n == own.name else named_task(n), w) for n, w in settings.mixture.items()
    ]
    if not pairs or not all(_is_weight(weight) for _, weight in pairs):
        raise UserError(f"MIXTURE = {settings.mixture!r}, but every weight is a number above zero")
    return Mixture(settings.name, tuple((task, float(weight)) for task, weight in pairs))


def one_task(macros: Mapping[str, Any]) -> Task:
    """The task that the macros describe; of a mixture, the one that has the mixture's name.

    Raises:
      UserError: as `get_task`, and for a mixture none of whose tasks has its name.
    """
    found = get_task(macros)
    if isinstance(found, Task):
        return found
    tasks = {task.name: task for task, _ in found.weights}
    if found.name not in tasks:
        raise UserError(
            f"{found.name} is a mixture; say which of its tasks is meant, {', '.join(tasks)}, "
            "by --task or MIXTURE_OR_TASK_NAME"
        )
    return tasks[found.name]


def _is_weight(value: Any) -> bool:
    return is_number(value) and value > 0


def named_task(name: str) -> Task:
    """The task listed in this file under `name`; `UserError` with near misses if there is none."""
    if name not in TASKS:
        raise UserError(
            f"no task is called {name}.{near_misses(name, TASKS)} Known: {', '.join(TASKS)}; "
            "a task of your own needs TASK_TRAIN_FILES and TASK_PROMPT or TASK_TEXT_COLUMN, and has the name "
            "that its MIXTURE_OR_TASK_NAME gives it"
        )
    return TASKS[name]


def _build(name: str, fields: Mapping[str, Any]) -> Task:
    """A task from gin: the listed one with changes, or a new one; checked."""
    if name in TASKS:
        base = TASKS[name]
        task = dataclasses.replace(
            base, **{**fields, "files": {**base.files, **fields.get("files", {})}}
        )
    else:
        kind = "span_corruption" if "text_column" in fields else "labelled"
        defaults: dict[str, Any] = {"kind": kind, "files": {}, "keep_empty": False}
        if kind == "labelled" and "metrics" not in fields:
            defaults["metrics"] = (
                ("spearman", "pearson") if "target_step" in fields else ("accuracy",)
            )
        if "validation" not in fields.get("files", {}):
            defaults["holdout"] = 0.05
        task = Task(name=name, **{**defaults, **fields})
    task_types.check(task)
    return task

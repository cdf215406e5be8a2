# SPDX-License-Identifier: Apache-2.0
"""Tasks: prompts, words, gin, and mistakes in gin."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kcmoe.config import gin_files
from kcmoe.errors import UserError
from kcmoe.inference.answers import answers
from kcmoe.tasks import registry as tasks
from kcmoe.tasks import types as task_types
from kcmoe.vocabulary import Vocabulary

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/tasks/*.gin"))


def own(**macros):
    bindings = [f"{name}={value!r}" for name, value in macros.items()]
    return tasks.get_task(gin_files.parse([], bindings))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_task_file_gives_a_task(path):
    task = tasks.get_task(gin_files.parse([path]))
    assert isinstance(task, tasks.Task | tasks.Mixture)


def test_prompts_and_words():
    assert tasks.TASKS["nsmc"].inputs({"document": "재밌어요"}).endswith("리뷰: 재밌어요")
    assert tasks.TASKS["nsmc"].label_words == ("부정적", "긍정적")
    assert tasks.TASKS["nsmc"].answer(1) == "긍정적"
    kornli = tasks.TASKS["kornli"]
    assert kornli.input_columns == ("premise", "hypothesis")
    assert [kornli.answer(x) for x in kornli.labels] == ["함의", "중립", "모순"]


@pytest.mark.parametrize(
    ("score", "text"),
    [(0.0, "0.0"), (2.5, "2.4"), (0.3, "0.4"), (3.6, "3.6"), (4.75, "4.8"), (5.0, "5.0")],
)
def test_scores_are_rounded_as_t5_rounds_stsb(score, text):
    assert tasks.TASKS["korsts"].answer(score) == text


def test_the_same_label_from_any_format():
    task = tasks.TASKS["nsmc"]
    assert task.answer(1) == task.answer("1") == task.answer(1.0) == "긍정적"
    with pytest.raises(ValueError, match="'2' is none of '0', '1'"):
        task.answer(2)


def test_nsmc_never_validates_on_test():
    task = tasks.TASKS["nsmc"]
    assert task.is_held_out("validation")
    assert task.splits == ("train", "validation", "test")
    assert not task.is_held_out("test")


def test_a_task_of_ones_own():
    task = own(
        MIXTURE_OR_TASK_NAME="mine",
        TASK_TRAIN_FILES="a.csv",
        TASK_TEST_FILES=["b.csv", "c.csv"],
        TASK_PROMPT="상품평: {text}",
        TASK_TARGET_COLUMN="stars",
        TASK_LABELS={1: "불만", 5: "만족"},
    )
    assert task.files == {"train": ("a.csv",), "test": ("b.csv", "c.csv")}
    assert task.splits == ("train", "validation", "test")
    assert task.answer(5) == "만족"
    assert task.metrics == ("accuracy",)
    assert own(
        MIXTURE_OR_TASK_NAME="t", TASK_TRAIN_FILES="x.txt", TASK_TEXT_COLUMN="text"
    ).kind == ("span_corruption")


def test_one_field_of_a_listed_task_changes_alone():
    task = own(MIXTURE_OR_TASK_NAME="kornli", TASK_TRAIN_FILES="klue_nli/train.parquet")
    assert task.files["train"] == ("klue_nli/train.parquet",)
    assert task.files["test"] == tasks.TASKS["kornli"].files["test"]
    assert task.prompt == tasks.TASKS["kornli"].prompt


def test_mixtures():
    mixture = own(MIXTURE_OR_TASK_NAME="m", MIXTURE={"pretrain": 3, "sample_pretrain": 1.0})
    assert [(task.name, weight) for task, weight in mixture.weights] == [
        ("pretrain", 3.0),
        ("sample_pretrain", 1.0),
    ]
    with pytest.raises(UserError, match="above zero"):
        own(MIXTURE_OR_TASK_NAME="m", MIXTURE={"pretrain": 0})


def test_a_mixture_means_the_task_of_its_own_name():
    mixture = {"MIXTURE": {"mine": 1, "nsmc": 2}, "MIXTURE_OR_TASK_NAME": "mine"}
    fields = {"TASK_TRAIN_FILES": "a.csv", "TASK_PROMPT": "{a}", "TASK_TARGET_COLUMN": "b"}
    macros = gin_files.parse().replace(**mixture, **fields)
    assert tasks.one_task(macros).prompt == "{a}"
    assert tasks.one_task(gin_files.parse().replace(MIXTURE_OR_TASK_NAME="nsmc")).name == "nsmc"
    with pytest.raises(UserError, match=r"m is a mixture; .* meant, nsmc, korsts, by --task or"):
        tasks.one_task(
            gin_files.parse([], ["MIXTURE_OR_TASK_NAME='m'", "MIXTURE={'nsmc': 1, 'korsts': 1}"])
        )


@pytest.mark.parametrize("task", tasks.TASKS.values(), ids=lambda task: task.name)
def test_listed_tasks_are_sound(task):
    task_types.check(task)


@pytest.mark.parametrize("task", tasks.TASKS.values(), ids=lambda task: task.name)
def test_label_words_survive_the_vocabulary(task):
    vocabulary = Vocabulary()
    for text in answers(task):
        ids = vocabulary.encode(text)
        assert vocabulary.unk_id not in ids
        assert vocabulary.decode(ids) == text
    assert len({tuple(vocabulary.encode(text)) for text in answers(task)}) == len(answers(task))


@pytest.mark.parametrize("value", [[2, 3], (3, 2, 3), "2,3", "3, 2", ["3", "2"]])
def test_several_labels_become_a_joined_text(value):
    task = tasks.TASKS["kmhas"]
    assert task.answer(value) == "정치, 욕설"
    assert task.labels_in("정치, 욕설") == task.labels_in("욕설, 정치") == (2, 3)
    assert task.answer(8) == task.answer([8]) == "문제없음"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "no label"),
        ("", "no label"),
        ([2, 9], "'9' is none of '0'"),
        ([None], "no label"),
    ],
)
def test_several_labels_without_a_known_one(value, message):
    with pytest.raises(ValueError, match=message):
        tasks.TASKS["kmhas"].answer(value)


@pytest.mark.parametrize("answer", ["", "정치,욕설", "정치, ", "글쎄", "정치, 글쎄"])
def test_answers_that_name_no_label(answer):
    assert tasks.TASKS["kmhas"].labels_in(answer) == ()


def test_rank_chooses_among_labels_and_pairs():
    task = tasks.TASKS["kmhas"]
    assert len(answers(task)) == len(set(answers(task))) == 9 + 36
    assert answers(task)[:9] == task.label_words
    assert answers(task)[9] == "출신, 외모"


def test_several_values_may_share_a_word():
    task = tasks.TASKS["hate_speech_binary"]
    assert task.label_words == ("문제없음", "혐오")
    assert task.answer("offensive") == task.answer("hate") == "혐오"
    apeach = tasks.TASKS["apeach"]
    assert (apeach.inputs({"text": "글"}), set(apeach.label_words)) == (
        task.inputs({"comments": "글"}),
        set(task.label_words),
    )


def test_question_pair_writes_zero_for_the_same_question():
    assert [tasks.TASKS["question_pair"].answer(value) for value in (0, 1)] == ["같음", "다름"]


@pytest.mark.parametrize("step", [0.1, 0.2, 0.5, 1])
def test_every_step_gives_as_many_answers_as_numbers(step):
    task = own(MIXTURE_OR_TASK_NAME="korsts", TASK_TARGET_STEP=step)
    found = answers(task)
    assert len(set(found)) == len(found) == round(5 / step) + 1
    assert all(task.answer(text) == text for text in found)


@pytest.mark.parametrize("step", [2, 0.25, 0.05, 0.3, -0.5])
def test_steps_that_one_decimal_cannot_write(step):
    with pytest.raises(UserError, match=rf"TASK_TARGET_STEP = {step}.* one of 0.1, 0.2, 0.5, 1.0"):
        own(MIXTURE_OR_TASK_NAME="korsts", TASK_TARGET_STEP=step)


@pytest.mark.parametrize(
    ("task", "changes", "metric", "said"),
    [
        ("nsmc", {}, "spearman", "whose answers are labels; take accuracy or macro_f1"),
        ("korsts", {}, "accuracy", "are numbers .*; take pearson or spearman"),
        ("nsmc", {"TASK_LABELS": {}}, "macro_f1", "whose answers are free text; take accuracy"),
        ("pretrain", {}, "accuracy", "which is plain text for pretraining; take none"),
        ("nsmc", {}, "micro_f1", "whose answers are labels; take accuracy or macro_f1"),
        ("kmhas", {}, "spearman", "one label or more .*; take micro_f1 or macro_f1 or accuracy"),
    ],
)
def test_metrics_suit_the_answers(task, changes, metric, said):
    with pytest.raises(UserError, match=f"TASK_METRICS: {metric} does not suit {task}, .*{said}"):
        own(MIXTURE_OR_TASK_NAME=task, TASK_METRICS=[metric], **changes)


@pytest.mark.parametrize(
    ("macros", "message"),
    [
        ({"MIXTURE_OR_TASK_NAME": "nsmk"}, "no task is called nsmk. Did you mean nsmc"),
        ({"MIXTURE_OR_TASK_NAME": "x", "TASK_PROMPT": "{a}"}, "has no files"),
        ({"MIXTURE_OR_TASK_NAME": "x", "TASK_TRAIN_FILES": "a.csv"}, "TASK_PROMPT"),
        (
            {"MIXTURE_OR_TASK_NAME": "x", "TASK_TRAIN_FILES": "a", "TASK_PROMPT": "{a}"},
            "TASK_TARGET_COLUMN",
        ),
        ({"MIXTURE_OR_TASK_NAME": "nsmc", "TASK_PROMPT": "{"}, "brace"),
        (
            {"MIXTURE_OR_TASK_NAME": "nsmc", "TASK_LABELS": {0: "가", 1: "가"}},
            "two different words",
        ),
        ({"MIXTURE_OR_TASK_NAME": "kmhas", "TASK_LABELS": {0: "가", 1: "나, 다"}}, "has a comma"),
        ({"MIXTURE_OR_TASK_NAME": "korsts", "TASK_MULTI_LABEL": True}, "needs TASK_LABELS"),
        ({"MIXTURE_OR_TASK_NAME": "nsmc", "TASK_METRICS": "acuracy"}, "Did you mean accuracy"),
        ({"MIXTURE_OR_TASK_NAME": "nsmc", "TASK_HOLDOUT": 1.5}, "TASK_HOLDOUT"),
        ({"MIXTURE_OR_TASK_NAME": "m", "MIXTURE": {"nsmc": "1"}}, "a number above zero"),
        (
            {"MIXTURE_OR_TASK_NAME": "nsmc", "TASK_HOLDOUT": 0.1, "MIXTURE": {"korsts": 1}},
            "which MIXTURE leaves out",
        ),
    ],
)
def test_mistakes_are_named(macros, message):
    with pytest.raises(UserError, match=message.replace("{", r"\{")):
        own(**macros)


def test_tasks_import_nothing_heavy():
    heavy = ("numpy", "jax", "pyarrow", "grain", "tensorflow")
    code = f"import sys, kcmoe.tasks.registry; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("macros", "message"),
    [
        ({"TASK_TRAIN_FILES": 3}, "TASK_TRAIN_FILES = 3, but it must be a text"),
        ({"TASK_TRAIN_FILES": []}, "TASK_TRAIN_FILES = .* names no file: leave it out"),
        ({"TASK_ENCODING": ""}, "TASK_ENCODING = '': an encoding has no name"),
        ({"TASK_ENCODING": "utf-8,"}, "TASK_ENCODING = 'utf-8,': an encoding has no name"),
        ({"TASK_TEXT_COLUMN": "text"}, "TASK_TEXT_COLUMN, .*and TASK_PROMPT"),
        ({"TASK_TRAIN_FILES": ["a.tsv", 3]}, "TASK_TRAIN_FILES = .*a list of texts"),
        ({"TASK_METRICS": 3}, "TASK_METRICS = 3"),
        ({"TASK_METRICS": [["accuracy"]]}, "TASK_METRICS = "),
        ({"TASK_LABELS": {0: 0, 1: 1}}, "the word 0, but a word is a text"),
        ({"TASK_LABELS": {0: ["부정"], 1: "긍정"}}, "a word is a text"),
        ({"TASK_LABELS": {0: " ", 1: "긍정"}}, "the word ' ', which is empty"),
        ({"TASK_LABELS": {None: "부정", 1: "긍정"}}, "None, but a label is a text or a number"),
        ({"TASK_LABELS": {1: "부정", "1": "긍정"}}, "1 and '1', which are the same label"),
        ({"TASK_LABELS": {"1.0": "부정", 1: "긍정"}}, "'1.0' and 1, which are the same label"),
        ({"TASK_LABELS": {"가": "부정", "\u1100\u1161": "긍정"}}, "are the same label"),
        ({"TASK_TARGET_RANGE": 5}, "TASK_TARGET_RANGE = 5"),
        ({"TASK_TARGET_RANGE": (5.0, 0.0)}, "lowest and the highest"),
        ({"TASK_TARGET_RANGE": (0, 10**400)}, "TASK_TARGET_RANGE = "),
        ({"TASK_TARGET_RANGE": ("a", "b")}, "TASK_TARGET_RANGE = "),
        ({"TASK_ENCODING": "cp9499"}, "no encoding is called cp9499. Did you mean cp949"),
        (
            {"TASK_PROMPT": "{}"},
            "{} names no column; a prompt is text with {column} and nothing else",
        ),
        ({"TASK_PROMPT": "{document} }"}, "a } stands alone"),
        ({"MIXTURE": {3: 1.0}}, "3 is no name of a task"),
    ],
)
def test_settings_of_other_types_are_refused(macros, message):
    fields = {
        "MIXTURE_OR_TASK_NAME": "mine",
        "TASK_TRAIN_FILES": "a.tsv",
        "TASK_PROMPT": "{document}",
        "TASK_TARGET_COLUMN": "label",
    }
    with pytest.raises(UserError) as refused:
        own(**fields | macros)
    assert re.search(message.replace("{", r"\{").replace("}", r"\}"), str(refused.value))


@pytest.mark.parametrize("name", ["a.b", "review[ko]", "0", "x:d", "document!r", "한글 이름"])
def test_any_column_can_stand_in_a_prompt(name):
    task = own(
        MIXTURE_OR_TASK_NAME="mine",
        TASK_TRAIN_FILES="a.tsv",
        TASK_PROMPT=f"{{{{글}}}}: {{{name}}} 끝",
        TASK_TARGET_COLUMN="label",
    )
    assert task.input_columns == (name,)
    assert task.inputs({name: "좋다 {0}"}) == "{글}: 좋다 {0} 끝"


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", "1e0", True and 1])
def test_numbers_are_one_label_however_they_are_written(value):
    task = own(
        MIXTURE_OR_TASK_NAME="mine",
        TASK_TRAIN_FILES="a.tsv",
        TASK_PROMPT="{document}",
        TASK_TARGET_COLUMN="label",
        TASK_LABELS={0.0: "부정", 1.0: "긍정", "01": "다른 것"},
    )
    assert task.answer(value) == "긍정"
    assert task.answer("01") == "다른 것"


def test_scores_outside_their_range_are_refused():
    with pytest.raises(ValueError, match=r"5.2 is not in the range 0.0 to 5.0"):
        tasks.TASKS["korsts"].answer(5.2)

# SPDX-License-Identifier: Apache-2.0
"""What counting character n-grams scores on each task: the least that a trained model should beat.

    python benchmarks/ngram_baseline.py --data=data                # all tasks of the suite
    python benchmarks/ngram_baseline.py --data=data --task=nsmc    # one, with naive Bayes beside it

Logistic regressions on TF-IDF, one for each label against the rest; ridge regression where the answer is a
number. Of a pair of texts both sides' n-grams count, their products and differences, and how much they
overlap. Learns from the rows that `kcmoe train` learns from; settings are chosen on rows held out of them, a
tenth where the task holds out none, and the evaluation splits are scored once with the best. With --output
the scores are written into that file, which `kcmoe evaluate --suite` reads. Needs scikit-learn (in the extra
`dev`) and up to 4 GB of memory.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import MultinomialNB

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kcmoe.data.labelled import Example, labelled_examples
from kcmoe.data.splits import held_out
from kcmoe.evaluation import multi_label
from kcmoe.evaluation.protocol import ProtocolResult, measure_texts
from kcmoe.evaluation.suite_tasks import SUITE
from kcmoe.tasks.registry import Task, named_task

# Tasks without rows to learn from, and the task with the same question that has some.
TRAIN_ON = {"kornli": "kornli_from_klue", "klue_sts": "korsts", "apeach": "hate_speech_binary"}
LONGEST, STRENGTHS, PENALTIES = (3, 4), (1.0, 4.0, 10.0), (0.3, 1.0, 3.0, 10.0)
_COMMAND = "python benchmarks/ngram_baseline.py --data=data"
_HELD_OUT = 0.1


class Features:
    """TF-IDF of character n-grams of one text or of two: `fit` learns the n-grams of the training rows."""

    def __init__(self, task: Task, longest: int):
        self.columns = task.input_columns
        grams: dict[str, Any] = {"ngram_range": (1, longest), "dtype": np.float32}
        self.vectorizers = [TfidfVectorizer(analyzer="char", sublinear_tf=True, **grams)]
        if len(self.columns) > 1:
            self.vectorizers.append(TfidfVectorizer(token_pattern=r"\S+", dtype=np.float32))

    def _sides(self, examples: Sequence[Example]) -> list[list[str]]:
        return [[str(one.fields[name]) for one in examples] for name in self.columns]

    def fit(self, examples: Sequence[Example]) -> Features:
        """Learns which n-grams there are and how rare each is."""
        for vectorizer in self.vectorizers:
            vectorizer.fit([text for side in self._sides(examples) for text in side])
        return self

    def of(self, examples: Sequence[Example]) -> Any:
        """Sparse float32 [N, features]."""
        sides = self._sides(examples)
        if len(sides) == 1:
            return self.vectorizers[0].transform(sides[0])
        overlaps, blocks = [], []
        for vectorizer in self.vectorizers:
            one, two = map(vectorizer.transform, sides)
            both = one.multiply(two).tocsr()
            blocks = blocks or [one, two, both, abs(one - two)]
            cosine = np.asarray(both.sum(axis=1)).ravel()
            overlaps += [cosine, cosine**2, *(_share(a, b) for a, b in ((one, two), (two, one)))]
        lengths = [np.array([len(text) for text in side], np.float32) + 1 for side in sides]
        ratio = np.log(lengths[0] / lengths[1])
        overlaps += [ratio, abs(ratio), *(np.log(each) / 4 for each in lengths)]
        # Twice, so that the few dense features cost little under one penalty with the many sparse ones.
        dense = sparse.csr_matrix(2 * np.stack(overlaps, axis=1).astype(np.float32))
        return sparse.hstack([*blocks, dense], format="csr")


def _share(one: Any, two: Any) -> np.ndarray:
    """How much of the distinct n-grams of `one` `two` has as well, float [N]."""
    here = (one > 0).astype(np.float32)
    common = np.asarray(here.multiply(two > 0).sum(axis=1)).ravel()
    return common / np.maximum(1, np.asarray(here.sum(axis=1)).ravel())


class LabelModel:
    """A logistic regression for each label against the rest; for two labels a single one."""

    def __init__(self, task: Task, strength: float):
        self.task, self.strength = task, strength

    def fit(self, features: Any, answers: Sequence[str]) -> None:
        """Learns from features [N, F] and N answers as the task writes them."""
        true = multi_label.named(self.task, answers)
        self.alone = true.shape[1] == 2 and not self.task.multi_label
        self.models: list[LogisticRegression | None] = []
        for label in true.T[1:] if self.alone else true.T:
            regression = LogisticRegression(C=self.strength, solver="liblinear")
            known = label.any() and not label.all()
            self.models.append(regression.fit(features, label) if known else None)

    def answer(self, features: Any) -> list[str]:
        """The likeliest label, or every label that is likelier than not."""
        absent = np.full(features.shape[0], -30.0)
        odds = [absent if m is None else m.decision_function(features) for m in self.models]
        each = 1 / (1 + np.exp(-np.stack([-odds[0], odds[0]] if self.alone else odds, axis=1)))
        if self.task.multi_label:
            return [multi_label.text(self.task, row) for row in multi_label.likely(each)]
        return [self.task.label_words[i] for i in each.argmax(axis=1)]


class NumberModel:
    """A ridge regression."""

    def __init__(self, task: Task, penalty: float):
        self.ridge = Ridge(alpha=penalty, solver="sparse_cg")

    def fit(self, features: Any, answers: Sequence[str]) -> None:
        """Learns from features [N, F] and N numbers as text."""
        self.ridge.fit(features, np.array(answers, np.float64))

    def answer(self, features: Any) -> list[str]:
        """Numbers as text."""
        return [f"{value:.4f}" for value in self.ridge.predict(features)]


Model = LabelModel | NumberModel


def _models(task: Task, args: argparse.Namespace) -> Iterator[tuple[str, Model]]:
    for value in PENALTIES if task.target_step else args.strengths:
        if task.target_step:
            yield f"penalty {value:g}", NumberModel(task, value)
        else:
            yield f"C {value:g}", LabelModel(task, value)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one row per setting, then the scores of each task's best."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data", help="DATA_DIR")
    parser.add_argument("--task", choices=SUITE, action="append", help="default: all; repeatable")
    parser.add_argument("--longest", type=int, nargs="+", default=LONGEST, help="n-grams tried")
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=STRENGTHS, help="C of the regressions tried"
    )
    parser.add_argument("--output", type=Path, help="JSON file into which the scores are written")
    args = parser.parse_args(argv)
    for name in args.task or SUITE:
        entry = _measure(named_task(name), named_task(TRAIN_ON.get(name, name)), args)
        if args.output:
            _write(args.output, name, entry)
        if args.task == ["nsmc"]:
            _naive_bayes(named_task(name), args.data)
    return 0


def _measure(task: Task, source: Task, args: argparse.Namespace) -> dict[str, Any]:
    """Chooses the setting, learns with it and scores the splits of `task`."""
    data = args.data
    train = labelled_examples(source, "train", data)
    if source.is_held_out("validation"):
        choosing, kept = labelled_examples(source, "validation", data), train
    else:
        choosing = [one for one in train if held_out(one.inputs_text, _HELD_OUT)]
        kept = [one for one in train if not held_out(one.inputs_text, _HELD_OUT)]
    print(f"{task.name}: {len(kept):,} rows of {source.name}, {len(choosing):,} held out")
    settings = [(longest, *each) for longest in args.longest for each in _models(source, args)]
    if len(settings) > 1:
        settings = [_best(source, settings, kept, choosing)]
    ((longest, setting, model),) = settings
    if not source.is_held_out("validation"):
        kept = train
    features = Features(source, longest).fit(kept)
    model.fit(features.of(kept), [one.target_text for one in kept])
    setting = f"1-{longest}-grams, {setting}"
    splits = {}
    for split in SUITE[task.name]:
        examples = labelled_examples(task, split, data)
        # The texts under the names of the columns that were learnt from.
        renamed = dict(zip(task.input_columns, source.input_columns, strict=True))
        answers = model.answer(features.of([_renamed(one, renamed) for one in examples]))
        found = _scored(task, examples, answers).metrics
        shown = ", ".join(
            f"{n} {100 * m.value:.2f} ± {100 * m.standard_error:.2f}" for n, m in found.items()
        )
        print(f"  {setting:24} {split}: {shown}", flush=True)
        metrics = {name: [round(number, 6) for number in one] for name, one in found.items()}
        splits[split] = {"rows": len(examples), "metrics": metrics}
    method = "ridge regression" if task.target_step else "logistic regression"
    return {
        "method": f"{method}, {setting}",
        "learnt_from": source.name,
        "train_rows": len(train),
        "command": " ".join([_COMMAND, f"--task={task.name}", *_changed(args)]),
        "measured": datetime.date.today().isoformat(),
        "splits": splits,
    }


def _best(
    task: Task,
    settings: Sequence[tuple[int, str, Model]],
    kept: Sequence[Example],
    choosing: Sequence[Example],
) -> tuple[int, str, Model]:
    """The setting with the best first metric on `choosing` after learning from `kept`."""
    values = []
    for longest, same in itertools.groupby(settings, lambda each: each[0]):
        features = Features(task, longest).fit(kept)
        inputs, held = features.of(kept), features.of(choosing)
        for _, setting, model in same:
            started_s = time.perf_counter()
            model.fit(inputs, [one.target_text for one in kept])
            found = _scored(task, choosing, model.answer(held))
            values.append(found.metrics[task.metrics[0]].value)
            name, seconds = f"1-{longest}-grams, {setting}", time.perf_counter() - started_s
            print(f"  {name:24} held out {values[-1]:.4f}  {seconds:4.0f} s", flush=True)
    return settings[int(np.argmax(values))]


def _changed(args: argparse.Namespace) -> list[str]:
    """The options that say what is tried, where they are not the usual ones."""
    usual = {"longest": LONGEST, "strengths": STRENGTHS}
    given = {name: getattr(args, name) for name in usual}
    return [
        f"--{name} {' '.join(f'{value:g}' for value in values)}"
        for name, values in given.items()
        if tuple(values) != usual[name]
    ]


def _renamed(example: Example, names: dict[str, str]) -> Example:
    fields = {names.get(name, name): value for name, value in example.fields.items()}
    return Example(example.id, example.inputs_text, example.target_text, fields)


def _scored(task: Task, examples: Sequence[Example], answers: Sequence[str]) -> ProtocolResult:
    return measure_texts(task, [one.target_text for one in examples], answers)


def _write(path: Path, name: str, entry: dict[str, Any]) -> None:
    content: dict[str, Any] = {"tasks": {}}
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
    content["tasks"][name] = entry
    ordered = {task: content["tasks"][task] for task in SUITE if task in content["tasks"]}
    content["tasks"] = ordered
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    text = re.sub(r"\[\s+(\S+),\s+(\S+)\s+\]", r"[\1, \2]", text)  # two numbers in one line
    path.write_text(text, encoding="utf-8")


def _naive_bayes(task: Task, data: str) -> None:
    """The same for naive Bayes on which n-grams are there."""
    (column,) = task.input_columns
    splits = {}
    for split in ("train", "validation", "test"):
        examples = labelled_examples(task, split, data)
        splits[split] = [str(one.fields[column]) for one in examples], examples
    for longest in LONGEST:
        grams = CountVectorizer(analyzer="char", ngram_range=(1, longest), binary=True)
        texts, examples = splits["train"]
        model = MultinomialNB().fit(
            grams.fit_transform(texts), [one.target_text for one in examples]
        )
        scores = [
            f"{split} {100 * model.score(grams.transform(texts), [one.target_text for one in examples]):.2f}"
            for split, (texts, examples) in list(splits.items())[1:]
        ]
        print(f"  naive Bayes, 1-{longest}-grams: {', '.join(scores)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""What counting character n-grams scores on NSMC: the least that a trained model should beat.

    python benchmarks/ngram_baseline.py --data=data

Naive Bayes on which n-grams are there, and a logistic regression on their TF-IDF. Both learn from the
reviews that `kcmoe train` learns from, their settings are chosen on the ones it holds out, and the
test split is scored once with each. Needs scikit-learn (in the extra `dev`) and 4 GB of memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import Pipeline, make_pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kcmoe.data.labelled import labelled_examples
from kcmoe.tasks.registry import named_task


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one row per setting, then the test score of each method's best."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data", help="folder of nsmc/")
    data = parser.parse_args(argv).data
    train, held_out, test = (_split(name, data) for name in ("train", "validation", "test"))
    print(f"{len(train[0]):,} train, {len(held_out[0]):,} held out, {len(test[0]):,} test")
    best: dict[str, tuple[float, str, Pipeline]] = {}
    for method, setting, classifier in _candidates():
        start = time.perf_counter()
        classifier.fit(*train)
        seconds, accuracy = time.perf_counter() - start, classifier.score(*held_out)
        print(f"{method:20} {setting:18} held out {accuracy:.4f}  {seconds:4.0f} s", flush=True)
        if method not in best or accuracy > best[method][0]:
            best[method] = accuracy, setting, classifier
    for method, (_, setting, classifier) in best.items():
        print(f"{method:20} {setting:18} test {100 * classifier.score(*test):.2f}")
    return 0


def _split(name: str, data: str) -> tuple[list[str], list[str]]:
    examples = labelled_examples(named_task("nsmc"), name, data)
    texts = [str(example.fields["document"]) for example in examples]
    return texts, [example.target_text for example in examples]


def _candidates() -> Iterator[tuple[str, str, Pipeline]]:
    for longest in (3, 4):
        grams: dict[str, Any] = {"analyzer": "char", "ngram_range": (1, longest)}
        counts = CountVectorizer(**grams, binary=True)
        yield "naive Bayes", f"1-{longest}-grams", make_pipeline(counts, MultinomialNB())
        for c in (1, 4, 10):
            regression = LogisticRegression(C=c, solver="liblinear")
            model = make_pipeline(TfidfVectorizer(**grams, sublinear_tf=True), regression)
            yield "logistic regression", f"1-{longest}-grams, C {c}", model


if __name__ == "__main__":
    sys.exit(main())

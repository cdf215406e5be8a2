# SPDX-License-Identifier: Apache-2.0
"""`LanguageModel`: texts in, labels, texts or log-likelihoods out.

Results come in the order of the inputs, and each is a function of its own text: every length of text has
one fixed shape (`batching.py`) and routing drops no token. Imports no TensorFlow and no MeCab.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from kcmoe.errors import UserError
from kcmoe.inference import answers as answers_lib
from kcmoe.inference import filling, loading
from kcmoe.inference import texts as texts_lib
from kcmoe.inference.batching import PATIENCE, Advance, BatchedModel
from kcmoe.tasks.registry import Task

if TYPE_CHECKING:
    from kcmoe.model.encoder_decoder import EncoderDecoder

_log = logging.getLogger(__name__)
_LONGEST_TARGET = 512  # tokens that `score` takes; training never saw longer ones


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One classified text.

    Attributes:
      label: the likeliest label word; where several labels may be right, the likeliest set of them.
      probabilities: label word, or set of them -> probability among all of these; they sum to 1.
      per_label: where several labels may be right, label word -> probability that it is one of them.
    """

    label: str
    probabilities: dict[str, float]
    per_label: dict[str, float] = dataclasses.field(default_factory=dict)

    def as_json(self, digits: int | None = 6) -> dict[str, Any]:
        """As `kcmoe predict` prints it, all digits for None; `per_label` only where it says something."""
        found: dict[str, Any] = {"label": self.label}
        for name in ("probabilities", "per_label"):
            if values := getattr(self, name):
                found[name] = {
                    word: value if digits is None else round(value, digits)
                    for word, value in values.items()
                }
        return found


class LanguageModel:
    """A checkpoint in use; made by `kcmoe.load`.

    Args:
      loaded: what was loaded.
      patience: see `Compute.few`.

    Attributes:
      loaded: settings, parameters and vocabulary.
      batched: the model with its parameters, for ids.
    """

    def __init__(self, loaded: loading.Loaded, patience: int | None = PATIENCE):
        self.loaded = loaded
        longest, tokens = loaded.lengths["inputs"], loaded.tokens
        self.batched = BatchedModel(loaded.compute, longest, tokens, patience=patience)

    @functools.cached_property
    def model(self) -> EncoderDecoder:
        """The Flax module."""
        from kcmoe.model.encoder_decoder import EncoderDecoder

        return EncoderDecoder(self.loaded.config)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], config: str | None = None, **settings: object
    ) -> Self:
        """See `kcmoe.load`."""
        return cls(loading.load(loading.find(path, config, settings)))

    def classify(
        self, texts: Iterable[texts_lib.Row], task: str | Task | None = None
    ) -> list[Prediction]:
        """The likeliest label of each text, with the probability of every label.

        Args:
          texts: texts; for a task with several input columns, mappings by column or tuples in their order.
            A `<extra_id_0>` inside is plain text.
          task: name of a task with labels; by default that of the run.

        Raises:
          UserError: for an unknown task, one without labels, or an input that is no text.
        """
        chosen = self.task(task)
        self.answers(chosen)
        if warning := self.unlearnt(chosen.name):
            _log.warning(warning)
        return self.classify_ids(self.encode(texts_lib.prompts(chosen, texts)), chosen)

    def generate(
        self,
        texts: Iterable[str],
        beam_size: int = 1,
        *,
        max_tokens: int | None = None,
        alpha: float = 0.6,
    ) -> list[str]:
        """What the model continues each text with.

        Args:
          texts: inputs as the model was trained on; `<extra_id_0>` (or `<unused0>`) is a sentinel.
          beam_size: beams of the search; 1 is greedy.
          max_tokens: longest answer, by default that of training.
          alpha: strength of the brevity penalty of the search.

        Raises:
          UserError: for an input that is no text, or a sentinel that the vocabulary lacks.
        """
        ids = self.encode(texts_lib.checked(texts), sentinels=True)
        return self.generate_ids(ids, beam_size, max_tokens=max_tokens, alpha=alpha)

    def fill(
        self,
        texts: Iterable[str],
        candidates: int = 4,
        *,
        max_tokens: int | None = None,
        alpha: float = 0.6,
    ) -> list[list[filling.Candidate]]:
        """What may stand in the blanks of each text, the likeliest first; all come from one search.

        Args:
          texts: with `<extra_id_0>`, `<extra_id_1>` and so on where words are missing.
          candidates: at most so many for each text, which are the beams of the search.
          max_tokens: longest answer, by default that of training.
          alpha: strength of the brevity penalty of the search.

        Raises:
          UserError: for an input that is no text, has no blank, or a sentinel that the vocabulary lacks.
        """
        given = texts_lib.checked(texts)
        for number, text in enumerate(given):
            if problem := filling.problem(self.loaded.vocabulary, text):
                raise UserError(f"texts[{number}]: {problem}")
        ids = self.encode(given, sentinels=True)
        return self.fill_ids(given, ids, candidates, max_tokens=max_tokens, alpha=alpha)

    def score(self, inputs: Iterable[str], targets: Iterable[str]) -> np.ndarray:
        """Log-likelihood of each target given its input, end of sequence included.

        Args:
          inputs: as for `generate`: `<extra_id_0>` is a sentinel.
          targets: as many texts, `<extra_id_0>` likewise.

        Returns:
          float32 [N].

        Raises:
          UserError: for inputs that are no texts, or not as many as targets.
        """
        given = texts_lib.checked(inputs, "inputs")
        wanted = texts_lib.checked(targets, "targets")
        if len(given) != len(wanted):
            raise UserError(f"there are {len(given)} inputs but {len(wanted)} targets")
        return self.batched.score(
            self.encode(given, sentinels=True, name="inputs"),
            self.encode(wanted, sentinels=True, longest=_LONGEST_TARGET, name="targets"),
            _LONGEST_TARGET,
        )

    def task(self, task: str | Task | None) -> Task:
        """The task meant: by name, that of the run for None; gin settings of the run's own task count."""
        if isinstance(task, Task):
            return task
        return loading.chosen_task(self.loaded, task)

    def unlearnt(self, name: str) -> str:
        """What to say before the model answers task `name`, which it never learnt; "" if it did."""
        return loading.unlearnt(self.loaded.checkpoint, self.loaded.macros, name)

    def answers(self, task: Task) -> tuple[str, ...]:
        """What `classify` chooses among; `UserError` if the task has no labels."""
        found = answers_lib.answers(task)
        if not found:
            raise UserError(f"task {task.name} has no labels to choose from; use generate")
        return found

    def encode(
        self,
        texts: Sequence[str],
        *,
        sentinels: bool = False,
        longest: int | None = None,
        name: str = "texts",
    ) -> list[list[int]]:
        """Ids of each text with EOS, cut to `longest` tokens; says how many were cut."""
        ids, cut = self.encode_counted(texts, sentinels=sentinels, longest=longest)
        if cut:
            first, tokens = next(iter(cut.items()))
            _log.warning(
                "%s of %s %s are longer than %s tokens and were cut, the first being number %s "
                "with %s tokens",
                *(f"{n:,}" for n in (len(cut), len(ids))),
                name,
                *(f"{n:,}" for n in (len(ids[first]) - 1, first + 1, tokens)),
            )
        return ids

    def encode_counted(
        self, texts: Sequence[str], *, sentinels: bool = False, longest: int | None = None
    ) -> tuple[list[list[int]], dict[int, int]]:
        """As `encode`, but says nothing: ids, and the places of texts that were cut -> their tokens."""
        vocabulary = self.loaded.vocabulary
        longest = longest or self.loaded.lengths["inputs"]
        if sentinels:
            ids = [vocabulary.encode_with_sentinels(text) for text in texts]
        else:
            ids = vocabulary.encode_batch(texts, threads=os.cpu_count() or 1)
        cut = {i: len(one) for i, one in enumerate(ids) if len(one) >= longest}
        return [[*one[: longest - 1], vocabulary.eos_id] for one in ids], cut

    def classify_ids(
        self, ids: Sequence[Sequence[int]], task: Task, advance: Advance | None = None
    ) -> list[Prediction]:
        """`classify` for prompts from `encode`; `advance` is told how many are done."""
        words = self.answers(task)
        labels = self.encode(words, longest=_LONGEST_TARGET)
        log_likelihoods = self.batched.rank(ids, labels, advance)
        found = []
        for row in probabilities(log_likelihoods):
            named = dict(zip(words, row.tolist(), strict=True))
            found.append(
                Prediction(words[int(np.argmax(row))], named, answers_lib.per_label(task, named))
            )
        return found

    def generate_ids(
        self,
        ids: Sequence[Sequence[int]],
        beam_size: int = 1,
        *,
        max_tokens: int | None = None,
        alpha: float = 0.6,
        advance: Advance | None = None,
    ) -> list[str]:
        """`generate` for inputs from `encode`; `advance` is told how many are done."""
        max_tokens = self._search_length(max_tokens, beam_size)
        found = self.batched.generate(
            ids, max_tokens, beam_size=beam_size, alpha=alpha, advance=advance
        )
        return [self.loaded.vocabulary.decode(row) for row in found]

    def fill_ids(
        self,
        texts: Sequence[str],
        ids: Sequence[Sequence[int]],
        candidates: int,
        *,
        max_tokens: int | None = None,
        alpha: float = 0.6,
        advance: Advance | None = None,
    ) -> list[list[filling.Candidate]]:
        """`fill` for texts and their ids from `encode`; `advance` is told how many are done."""
        vocabulary = self.loaded.vocabulary
        max_tokens = self._search_length(max_tokens, candidates, "candidates")
        found: list[list[filling.Candidate]] = [[] for _ in texts]
        ends = [filling.end(vocabulary, text) for text in texts]
        for end in dict.fromkeys(ends):  # texts with as many blanks are searched together
            places = [place for place, one in enumerate(ends) if one == end]
            results = self.batched.search(
                [ids[place] for place in places],
                max_tokens,
                beam_size=candidates,
                alpha=alpha,
                end=end,
                advance=advance,
            )
            for place, tokens, scores in zip(places, *results, strict=True):
                beams = filling.beams(vocabulary, tokens, scores, alpha, end)
                found[place] = filling.candidates(texts[place], beams)
        return found

    def _search_length(self, max_tokens: int | None, beams: int, name: str = "beam_size") -> int:
        length = self.loaded.lengths["targets"] if max_tokens is None else max_tokens
        for what, value in ((name, beams), ("max_tokens", length)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{what} is {value!r}, but it must be a whole number above zero")
        if not 2 * beams <= self.loaded.config.num_embeddings:
            raise UserError(f"{name} {beams} is more than half the vocabulary")
        return length


def probabilities(log_likelihoods: np.ndarray) -> np.ndarray:
    """Softmax over labels: float32 [N, K] -> float64 [N, K], rows adding up to 1."""
    shifted = log_likelihoods.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True, initial=-np.inf)
    weights = np.exp(shifted)
    result: Any = weights / weights.sum(axis=1, keepdims=True)
    return result

# SPDX-License-Identifier: Apache-2.0
"""What a task asks of the rows of a file, and which columns its answers become.

Rows without text get no answer. What is wrong with a row is said before a model sees it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kcmoe.errors import UserError
from kcmoe.inference import filling, loading
from kcmoe.inference.answers import answers
from kcmoe.inference.batching import Advance
from kcmoe.tasks.registry import Task

if TYPE_CHECKING:
    from kcmoe.inference.loading import Found
    from kcmoe.inference.predict import LanguageModel
    from kcmoe.vocabulary import Vocabulary

GENERATE = "generate"
FILL = "fill"
FREE = (GENERATE, FILL)  # what any model can be asked, whatever it was trained for
TEXT_COLUMN = "text"  # what these read
_CANDIDATES = 4  # of a blank, unless told
# A model reads some hundred tokens. SentencePiece would take gigabytes for a text without end.
MAX_CHARACTERS = 100_000

Row = tuple[
    Any, ...
]  # the columns of one row in the order of `Question.columns`; None for a missing one
Cells = list[
    Any
]  # the answer to one row in the order of `Question.answers`, and 1 if its text was cut


@dataclasses.dataclass(frozen=True)
class AnswerColumn:
    """One column that answers get.

    Attributes:
      name: in a table.
      kind: "text" or "number".
      within: in JSON lines, the object that has it, and its name there.
    """

    name: str
    kind: str
    within: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Question:
    """A task as it is put to the rows of a file.

    Attributes:
      name: of the task, "generate" or "fill".
      task: the task; None to continue or fill the text itself, in which `<extra_id_0>` is a sentinel.
      beam_size: of generated answers; of a blank, how many candidates.
      max_tokens: longest generated answer; None for that of training.
    """

    name: str
    task: Task | None
    beam_size: int = 1
    max_tokens: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (TEXT_COLUMN,) if self.task is None else self.task.input_columns

    @property
    def fills(self) -> bool:
        """Whether the blanks of a text are filled."""
        return self.name == FILL and self.task is None

    @property
    def generates(self) -> bool:
        """Whether answers are free text."""
        return self.task is None or not answers(self.task)

    @property
    def answers(self) -> tuple[AnswerColumn, ...]:
        """The columns of the answers."""
        if self.fills:
            kinds = {"filled": "text", "probability": "number"}
            return tuple(
                AnswerColumn(f"{name}_{number}", kind)
                for number in range(1, self.beam_size + 1)
                for name, kind in kinds.items()
            )
        if self.task is None or self.generates:
            return (AnswerColumn("generated", "text"),)
        if self.task.target_step:
            return (AnswerColumn("score", "number"),)
        within = "per_label" if self.task.multi_label else "probabilities"
        words = self.task.label_words
        each = (AnswerColumn(f"probability_{w}", "number", (within, w)) for w in words)
        return (AnswerColumn("label", "text"), *each)

    @staticmethod
    def is_silent(row: Row) -> bool:
        """Whether a text of the row is missing or blank."""
        return any(cell is None or (isinstance(cell, str) and not cell.strip()) for cell in row)

    def prompt(self, row: Row) -> str | None:
        """The model's input for a row; None where it has no answer."""
        if self.is_silent(row):
            return None
        if self.task is None:
            return str(row[0])[:MAX_CHARACTERS]
        named = dict(zip(self.columns, row, strict=True))
        return self.task.inputs(named)[:MAX_CHARACTERS]

    def check(self, row: Row, vocabulary: Vocabulary | None) -> None:
        """Raises `UserError` for what is no text, has no blank, or a sentinel that the vocabulary lacks."""
        if len(row) == 1 and not isinstance(row[0], str | None):
            raise UserError(f"{row[0]!r} is no text; write it as text, or name another column")
        if vocabulary is None or self.is_silent(row):
            return
        if self.fills and (problem := filling.problem(vocabulary, row[0])):
            raise UserError(problem)
        filling.end(vocabulary, row[0])


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Rows as ids.

    Attributes:
      rows: how many.
      places: which of them have a text, ascending.
      texts: of these.
      ids: of these.
      cut: those of these that were longer than the model reads.
    """

    rows: int
    places: list[int]
    texts: list[str]
    ids: list[list[int]]
    cut: set[int]


def question(
    found: Found, name: str | None, beam_size: int | None = None, max_tokens: int | None = None
) -> Question:
    """The question that a task name means for a model; None is what it was trained for.

    Raises:
      UserError: for an unknown name, or a task whose settings do not go together.
    """
    task = None
    if name not in FREE:
        task = loading.chosen_task(found, name)
        if task.kind == "span_corruption":
            if name is not None:
                raise UserError(f"task {name} has no labels to choose from; use --task={GENERATE}")
            task = None  # all that a pretrained run has learnt
    free = FILL if name == FILL else GENERATE
    beam_size = beam_size or (_CANDIDATES if name == FILL else 1)
    return Question(task.name if task else free, task, beam_size, max_tokens)


def encode(model: LanguageModel, asked: Question, rows: Sequence[Row]) -> Encoded:
    """Turns rows into ids; needs no accelerator."""
    prompts = [asked.prompt(row) for row in rows]
    places = [place for place, prompt in enumerate(prompts) if prompt is not None]
    texts = [prompt for prompt in prompts if prompt is not None]
    ids, cut = model.encode_counted(texts, sentinels=asked.task is None)
    return Encoded(len(rows), places, texts, ids, {places[i] for i in cut})


def answer(
    model: LanguageModel, asked: Question, given: Encoded, advance: Advance | None = None
) -> list[Cells | None]:
    """The answers to rows, None to those without text; `advance` is told how many are done."""
    found: list[Cells | None] = [None] * given.rows
    for place, cells in zip(given.places, _cells(model, asked, given, advance), strict=True):
        found[place] = [*cells, int(place in given.cut)]
    return found


def _cells(
    model: LanguageModel, asked: Question, given: Encoded, advance: Advance | None
) -> list[list[Any]]:
    if not given.ids:
        return []
    task = asked.task
    if asked.fills:
        return [
            _flat(one, asked.beam_size)
            for one in filled(model, asked, given.texts, given.ids, advance)
        ]
    if task is None or asked.generates:
        texts = model.generate_ids(
            given.ids, asked.beam_size, max_tokens=asked.max_tokens, advance=advance
        )
        return [[text] for text in texts]
    predictions = model.classify_ids(given.ids, task, advance)
    if task.target_step:
        # The mean of all numbers weighted by their probability, as `kcmoe evaluate` takes it.
        return [[round(_mean(one.probabilities), 4)] for one in predictions]
    return [
        [one.label, *(round(p, 6) for p in (one.per_label or one.probabilities).values())]
        for one in predictions
    ]


def filled(
    model: LanguageModel,
    asked: Question,
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    advance: Advance | None,
) -> list[list[filling.Candidate]]:
    """The candidates for each text, see `LanguageModel.fill`."""
    return model.fill_ids(texts, ids, asked.beam_size, max_tokens=asked.max_tokens, advance=advance)


def _flat(candidates: Sequence[filling.Candidate], count: int) -> list[Any]:
    cells: list[Any] = []
    for one in candidates:
        cells += [one.text, round(one.probability, 6)]
    return cells + [None, None] * (count - len(candidates))


def _mean(probabilities: Mapping[str, float]) -> float:
    return sum(float(number) * probability for number, probability in probabilities.items())

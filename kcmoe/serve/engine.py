# SPDX-License-Identifier: Apache-2.0
"""The only file of the server that knows the model: requests to ids, batches of ids to answers.

A line of text becomes a `Work`, whose `Key` says by which compiled program it is computed. Any lines of one
key may share a batch: every key has one fixed shape and routing drops no token, so an answer is bit for bit
what `kcmoe predict` gives, whoever else is in the batch.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from kcmoe.checkpoint import run_config
from kcmoe.errors import UserError
from kcmoe.inference import batching, filling
from kcmoe.inference import texts as texts_lib
from kcmoe.inference.predict import LanguageModel
from kcmoe.io import resources
from kcmoe.model.cpu import memory
from kcmoe.serve import experts
from kcmoe.serve.errors import refused
from kcmoe.serve.work import Key, Work
from kcmoe.tasks.registry import TASKS, Task

LONGEST_TARGET = 512  # tokens of a target, as `LanguageModel.score` takes
_SAMPLES = "kcmoe/samples/comments.txt"
BEAMS = (1, 2, 4, 8)  # each is a program of its own, so there are a few of them
NEW_TOKENS = (8, 16, 32, 64, 128, 256)


class Engine:
    """A `LanguageModel` as the server uses it; may be called from several threads."""

    def __init__(self, lm: LanguageModel):
        # Nobody's lines wait for a program that would only be faster: `improve` makes those.
        self.lm = LanguageModel(lm.loaded, patience=None)
        self.vocabulary = lm.loaded.vocabulary
        self.longest = lm.loaded.lengths["inputs"]
        self.sparse_layers = lm.loaded.config.sparse_layers("encoder")
        self._samples: list[list[int]] = []

    # --- What there is.

    @property
    def default_task(self) -> str | None:
        """The task that the model was trained for, if it has labels."""
        names = run_config.learnt_tasks(self.lm.loaded.macros)
        return next((name for name in names if self._words(name)), None)

    def _words(self, name: str) -> tuple[str, ...]:
        try:
            return self.lm.answers(self.lm.task(name))
        except UserError:
            return ()

    def tasks(self) -> list[dict[str, Any]]:
        """Tasks with labels, those that the model has learnt first."""
        learnt = run_config.learnt_tasks(self.lm.loaded.macros)
        found = []
        for name in dict.fromkeys((*learnt, *TASKS)):
            words = self._words(name)
            if words:
                task = self.lm.task(name)
                several = task.multi_label
                entry = {"name": name, "columns": list(task.input_columns), "several": several}
                shown = task.label_words if several else words
                found.append({**entry, "labels": list(shown), "learnt": name in learnt})
        return found

    def describe(self) -> dict[str, Any]:
        """What a client may want to know of the model before it asks anything."""
        loaded = self.lm.loaded
        return {
            "name": "/".join(loaded.checkpoint.rstrip("/").split("/")[-2:]),
            "step": loaded.step,
            "parameters": sum(leaf.size for leaf in loaded.weights.values()),
            "longest_input_tokens": self.longest - 1,
            "embedding_size": loaded.config.embed_dim,
            "default_task": self.default_task,
            "tasks": self.tasks(),
            "experts": loaded.config.num_experts if self.sparse_layers else 0,
            "experts_per_token": loaded.config.num_selected_experts,
            "sparse_encoder_layers": [f"encoder/layers_{i}" for i in self.sparse_layers],
            "beams": list(BEAMS),
            "new_tokens": sorted({*NEW_TOKENS, loaded.lengths["targets"]}),
            "default_new_tokens": loaded.lengths["targets"],
            "sentinels": self.vocabulary.num_sentinels,
        }

    # --- Requests to work. All of these raise `UserError` or `ApiError` for what a client can mend.

    def task(self, name: str | None) -> Task:
        """A task with labels, by default the model's own."""
        chosen = self.lm.task(self.default_task if name is None else name)
        self.lm.answers(chosen)
        return chosen

    def classify(self, rows: Sequence[Any], task: Task) -> list[Work]:
        """Work per row of input columns."""
        prompts = texts_lib.prompts(task, rows)
        shown = [row if isinstance(row, str) else "" for row in rows]
        return [
            self._work("classify", (task.name,), prompt, text)
            for prompt, text in zip(prompts, shown, strict=True)
        ]

    def generate(
        self,
        texts: Sequence[str],
        beams: int,
        max_tokens: int | None,
        alpha: float,
        fill: bool = False,
    ) -> list[Work]:
        """Work per text with sentinels; with `fill` the answer ends where the last blank is filled."""
        longest = self.lm.loaded.lengths["targets"] if max_tokens is None else max_tokens
        allowed = {*NEW_TOKENS, self.lm.loaded.lengths["targets"]}
        if beams not in BEAMS:
            raise refused(f"beams is {beams}", "beams", f"take one of {_listed(BEAMS)}")
        if longest not in allowed:
            raise refused(
                f"max_tokens is {longest}", "max_tokens", f"take one of {_listed(sorted(allowed))}"
            )
        found = []
        for number, text in enumerate(texts_lib.checked(texts)):
            stop = self._end(text, f"texts[{number}]")
            one = self._work("generate", (beams, longest), text, text, sentinels=True, cost=beams)
            values = (alpha, stop if fill else self.vocabulary.eos_id)
            found.append(dataclasses.replace(one, key=dataclasses.replace(one.key, values=values)))
        return found

    def _end(self, text: str, place: str) -> int:
        try:
            return filling.end(self.vocabulary, text)
        except UserError as error:
            count = self.vocabulary.num_sentinels
            mend = f"use <extra_id_0> to <extra_id_{count - 1}>" if count else "write no sentinel"
            raise refused(str(error), place, mend) from None

    def score(self, inputs: Sequence[str], targets: Sequence[str]) -> list[Work]:
        """Work per pair."""
        if len(inputs) != len(targets):
            raise refused(
                f"there are {len(inputs)} inputs but {len(targets)} targets", "targets",
                "give as many targets as inputs",
            )  # fmt: skip
        found = []
        for kind, given in (("inputs", inputs), ("targets", targets)):
            for number, text in enumerate(given):
                self._end(text, f"{kind}[{number}]")  # refuses what is none
        for text, target in zip(
            texts_lib.checked(inputs, "inputs"), texts_lib.checked(targets, "targets"), strict=True
        ):
            one = self._work("score", (), text, text, sentinels=True)
            ids = self.vocabulary.encode_with_sentinels(target)
            end = [*ids[: LONGEST_TARGET - 1], self.vocabulary.eos_id]
            lengths = (*one.key.lengths, batching.padded_length(len(end), LONGEST_TARGET))
            found.append(
                dataclasses.replace(
                    one,
                    key=dataclasses.replace(one.key, lengths=lengths),
                    ids=(*one.ids, end),
                    notes={**one.notes, "target_tokens": len(end)},
                )
            )
        return found

    def embed(self, texts: Sequence[str]) -> list[Work]:
        """Work per text."""
        return [self._work("embed", (), t, t) for t in texts_lib.checked(texts)]

    def experts(self, row: Any, task: Task | None) -> Work:
        """Work for the map of one text, or of one row of `task` in its prompt."""
        if not self.sparse_layers:
            raise refused(
                "the encoder of this model has no experts",
                "model",
                "serve a model with sparse layers",
            )
        if task is None:
            if not isinstance(row, str):
                raise refused(
                    "text has several columns", "text", "give one text, or name the task in task"
                )
            self._end(row, "text")
            return self._work("experts", (), row, row, sentinels=True)
        text = row if isinstance(row, str) else ""
        return self._work("experts", (), texts_lib.prompts(task, [row], "text")[0], text)

    def pieces(self, work: Work, row: Any, task: Task | None) -> list[dict[str, Any]]:
        """What the ids of an experts' map are: piece, the text it stands for, whether it is the prompt's."""
        text = row if isinstance(row, str) else ""
        prompt = texts_lib.prompts(task, [row], "text")[0] if task else text
        surfaces = self.vocabulary.surfaces(prompt, sentinels=task is None)[: self.longest - 1]
        begin = max(0, prompt.find(text)) if text else 0
        end = begin + len(text) if text else len(prompt)
        found, place = [], 0
        for token, surface in surfaces:
            outside = place + len(surface) <= begin or place >= end
            place += len(surface)
            piece = self.vocabulary.piece(token)
            found.append({"piece": piece, "text": surface, "prompt": outside and task is not None})
        return [*found, {"piece": "</s>", "text": "", "prompt": False}][: len(work.ids[0])]

    def lengthened(self, work: Work, length: int) -> Work:
        """`work` as if it were longer: the same kind in a program of another length."""
        key = dataclasses.replace(work.key, lengths=(length, *work.key.lengths[1:]))
        ids = [*work.ids[0][:-1], *[work.ids[0][0]] * (length - len(work.ids[0])), work.ids[0][-1]]
        return Work(key, (ids, *work.ids[1:]))

    def samples(self) -> list[Work]:
        """Work for the shipped comments, from which the experts' preferences are counted."""
        count = 256 if self.lm.loaded.tokens > 256 else 96
        return [
            Work(Key("sample", (), (batching.padded_length(len(ids), self.longest),)), (ids,))
            for ids in self._sample_ids()[:count]
        ]

    def _sample_ids(self) -> list[list[int]]:
        if not self._samples:
            texts = [
                line
                for line in resources.find(_SAMPLES).read_text("utf-8").split("\n")
                if line.strip()
            ]
            ids = self.vocabulary.encode_batch(texts)
            self._samples = [[*one[: self.longest - 1], self.vocabulary.eos_id] for one in ids]
        return self._samples

    def _work(
        self,
        kind: str,
        options: tuple[Any, ...],
        prompt: str,
        text: str,
        *,
        sentinels: bool = False,
        cost: int = 1,
    ) -> Work:
        encode = self.vocabulary.encode_with_sentinels if sentinels else self.vocabulary.encode
        ids = encode(prompt)
        notes: dict[str, Any] = {"tokens": min(len(ids), self.longest - 1) + 1}
        if len(ids) >= self.longest:
            notes["cut"] = self._cut(prompt, text, len(ids), sentinels)
        kept = [*ids[: self.longest - 1], self.vocabulary.eos_id]
        key = Key(kind, options, (batching.padded_length(len(kept), self.longest),))
        return Work(key, (kept,), cost, notes)

    def _cut(self, prompt: str, text: str, tokens: int, sentinels: bool) -> dict[str, Any]:
        """Where a too long text was cut, in characters of the text itself where that can be told."""
        surfaces = self.vocabulary.surfaces(prompt, sentinels)
        read = sum(len(surface) for _, surface in surfaces[: self.longest - 1])
        begin = prompt.find(text) if text else -1
        place, whole = (read, prompt) if begin < 0 else (max(0, read - begin), text)
        place = min(place, len(whole))
        return {
            "tokens": tokens,
            "kept_tokens": self.longest - 1,
            "character": place,
            "characters": len(whole),
            "before": whole[max(0, place - 20) : place],
            "after": whole[place : place + 20],
        }

    # --- Work to answers, one batch at a time.

    def rows(self, key: Key) -> int:
        """Most lines of `key` in one batch."""
        if key.kind == "experts":
            return 1
        tokens = self.lm.loaded.tokens
        if key.kind == "generate":
            return batching.search_rows(key.lengths, tokens, int(key.options[0]))
        return batching.rows_of(key.lengths, tokens)

    def compute(self, key: Key, works: Sequence[Work]) -> list[Any]:
        """The answers of at most `rows(key)` lines of one key, in order."""
        return self._computed(self.lm, key, works)

    def improve(self, key: Key, works: Sequence[Work], in_use: bool) -> None:
        """Makes ready what is known to compute few lines sooner; tries what is not if `in_use`: seconds."""
        if key.kind not in ("experts", "sample"):
            # Trying a search would take many times as long as an answer.
            patience = 0 if in_use and key.kind != "generate" else sys.maxsize
            self._computed(LanguageModel(self.lm.loaded, patience=patience), key, works)
        memory.trim()  # making a program ready leaves as much behind as it takes

    def _computed(self, lm: LanguageModel, key: Key, works: Sequence[Work]) -> list[Any]:
        inputs = [work.ids[0] for work in works]
        if key.kind == "classify":
            return list(lm.classify_ids(inputs, lm.task(key.options[0])))
        if key.kind == "generate":
            return self._generate(lm, key, inputs)
        if key.kind == "score":
            targets = [work.ids[1] for work in works]
            return [float(one) for one in lm.batched.score(inputs, targets, LONGEST_TARGET)]
        if key.kind == "embed":
            return lm.batched.embed(inputs)
        if key.kind == "sample":
            batch = batching.PaddedBatch(np.arange(len(works)), self.rows(key), key.lengths)
            return experts.choices(lm, batch.pad(inputs))[: len(works)]
        rows_beside = batching.rows_of(key.lengths, self.lm.loaded.tokens) - 1
        return [experts.text_map(lm, inputs[0], key.lengths[0], self._sample_ids()[:rows_beside])]

    def forget(self) -> None:
        """Drops every compiled program from memory; the next batch of each reads it from disk again."""
        self.lm.loaded.compute.forget()
        memory.trim()

    def _generate(
        self, lm: LanguageModel, key: Key, inputs: Sequence[Sequence[int]]
    ) -> list[list[dict[str, Any]]]:
        """Per line its beams, the best first; the best is what `LanguageModel.generate` returns."""
        (beams, longest), (alpha, end) = key.options, key.values
        tokens, scores = lm.batched.search(
            inputs, longest, beam_size=beams, alpha=alpha, end=int(end)
        )
        return [
            [
                dataclasses.asdict(beam)
                for beam in filling.beams(self.vocabulary, *one, alpha, int(end))
            ]
            for one in zip(tokens, scores, strict=True)
        ]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))

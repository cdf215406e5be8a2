# SPDX-License-Identifier: Apache-2.0
"""The operations themselves: a checked request in, the JSON of its answer out."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kcmoe.errors import UserError
from kcmoe.inference import filling
from kcmoe.serve import experts
from kcmoe.serve.batching import Batcher
from kcmoe.serve.engine import Engine
from kcmoe.serve.errors import refused
from kcmoe.serve.limits import Limits
from kcmoe.serve.metrics import Metrics
from kcmoe.serve.operations import parse
from kcmoe.serve.work import Work

_SMALL_BYTES = 4096  # of a body: a few lines
_DIGITS = 6  # of probabilities, as `kcmoe predict` prints them
# So that the first answers wait for no compiler; comments and reviews are of these lengths.
_WARM_LENGTHS = (16, 20, 24, 28, 32, 40, 48, 64)


def as_json(value: Any) -> bytes:
    """JSON in UTF-8; `ValueError` for what JSON cannot say."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


class Service:
    """A model, the queue before it, and what is counted about both."""

    def __init__(self, engine: Engine, limits: Limits):
        self.engine, self.limits, self.metrics = engine, limits, Metrics()
        self.batcher = Batcher(
            engine.compute, engine.rows, limits, self.metrics.batch, engine.forget, engine.improve
        )
        # JSON and cutting text into pieces take a while for large requests: not on the event loop.
        # A small request does not wait for the large ones there.
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="kcmoe-read")
        self._small_readers = ThreadPoolExecutor(1, thread_name_prefix="kcmoe-read-small")
        self.ready = False
        self.stopping = False
        self._preferences: asyncio.Task[dict[str, Any]] | None = None
        self.metrics.gauges = {
            "kcmoe_queue_lines": ("Lines that wait.", lambda: self.batcher.queued),
            "kcmoe_programs": ("Compiled programs.", lambda: self.batcher.programs),
        }

    async def start(self) -> None:
        """Computes one answer, so that whoever sees `ready` gets the next one soon, and warms up."""
        engine, task = self.engine, self.engine.default_task
        if task is not None:
            works = engine.classify(self._example(task), engine.task(task))
        else:
            works = engine.embed([" "])
        await self.batcher.submit(works, patient=True)
        self.ready = True
        if task is not None:
            lengths = [
                length
                for length in _WARM_LENGTHS
                if works[0].key.lengths[0] < length <= engine.longest
            ]
            self.batcher.warm_up([engine.lengthened(works[0], length) for length in lengths])

    def _example(self, task: str) -> list[Any]:
        columns = self.engine.task(task).input_columns
        return [{column: "정말 재미있게 잘 봤어요" for column in columns}]

    def stop(self) -> None:
        """Ends the threads."""
        self.batcher.stop()
        for readers in (self._readers, self._small_readers):
            readers.shutdown(wait=False, cancel_futures=True)

    async def _read(self, function: Callable[..., Any], *args: Any, small: bool = False) -> Any:
        readers = self._small_readers if small else self._readers
        return await asyncio.get_running_loop().run_in_executor(readers, function, *args)

    async def answer(self, operation: str, body: bytes) -> bytes:
        """The answer to a POST to /v1/`operation`, as JSON.

        Raises:
          ApiError: for everything a client can be told.
        """
        started_s = time.monotonic()
        small = len(body) <= _SMALL_BYTES
        works, finish = await self._read(self._prepare, operation, body, small=small)
        answers = await self.batcher.submit(works)

        def write() -> bytes:
            seconds = round(time.monotonic() - started_s, 4)
            return as_json({**finish(answers), "seconds": seconds})

        content: bytes = await self._read(write, small=small)
        return content

    def _prepare(
        self, operation: str, body: bytes
    ) -> tuple[Sequence[Work], Callable[[Sequence[Any]], dict[str, Any]]]:
        """What to compute, and what to make of it."""
        given = parse(operation, body, self.limits)
        try:
            prepare = getattr(self, f"_{operation}")
            found: tuple[Sequence[Work], Callable[[Sequence[Any]], dict[str, Any]]] = prepare(given)
            return found
        except UserError as error:
            message, _, rest = str(error).partition("; ")
            place = re.match(r"texts?\[\d+\]|text\b", message)
            if place:  # a row that does not suit its task, whose name was right
                columns = self.engine.task(given["task"]).input_columns
                row = json.dumps(dict.fromkeys(columns, "…"), ensure_ascii=False)
                raise refused(
                    message, place[0], "give a text" if len(columns) == 1 else f"give {row}"
                ) from None
            names = [task["name"] for task in self.engine.tasks()]
            where = "task" if "task" in given else f"/v1/{operation}"
            raise refused(
                message, where, rest or f"tasks with labels: {', '.join(names)}"
            ) from None

    def _classify(self, given: Mapping[str, Any]) -> tuple[Sequence[Work], Any]:
        task = self.engine.task(given["task"])
        works = self.engine.classify(given["texts"], task)

        def finish(answers: Sequence[Any]) -> dict[str, Any]:
            predictions = []
            for work, answer in zip(works, answers, strict=True):
                one = answer.as_json(None if given["exact"] else _DIGITS)
                predictions.append({**one, **work.notes})
            return {"task": task.name, "predictions": predictions}

        return works, finish

    def _generate(self, given: Mapping[str, Any]) -> tuple[Sequence[Work], Any]:
        works = self.engine.generate(
            given["texts"],
            given["beams"],
            given["max_tokens"],
            float(given["alpha"]),
            given["fill"],
        )

        def finish(answers: Sequence[Any]) -> dict[str, Any]:
            generated = []
            for text, work, beams in zip(given["texts"], works, answers, strict=True):
                best = beams[0] if beams else {"text": "", "fills": {}}
                one = {"generated": best["text"], "fills": best["fills"]}
                if given["fill"]:
                    found = filling.candidates(text, [filling.Beam(**beam) for beam in beams])
                    one["candidates"] = [each.as_json() for each in found]
                generated.append({**one, "beams": beams, **work.notes})
            return {"beams": given["beams"], "results": generated}

        return works, finish

    def _score(self, given: Mapping[str, Any]) -> tuple[Sequence[Work], Any]:
        works = self.engine.score(given["inputs"], given["targets"])

        def finish(answers: Sequence[Any]) -> dict[str, Any]:
            scores = [
                {"log_likelihood": answer, **work.notes}
                for work, answer in zip(works, answers, strict=True)
            ]
            return {"scores": scores}

        return works, finish

    def _embed(self, given: Mapping[str, Any]) -> tuple[Sequence[Work], Any]:
        works = self.engine.embed(given["texts"])

        def finish(answers: Sequence[Any]) -> dict[str, Any]:
            vectors = [
                {"embedding": [float(x) for x in answer], **work.notes}
                for work, answer in zip(works, answers, strict=True)
            ]
            pooling = "mean of the encoder's output over the real tokens, end of sequence included"
            return {"size": self.engine.lm.loaded.config.embed_dim, "pooling": pooling,
                    "embeddings": vectors}  # fmt: skip

        return works, finish

    def _experts(self, given: Mapping[str, Any]) -> tuple[Sequence[Work], Any]:
        task = None if given["task"] is None else self.engine.task(given["task"])
        work = self.engine.experts(given["text"], task)

        def finish(answers: Sequence[Any]) -> dict[str, Any]:
            (found,) = answers
            layers = [
                {
                    "layer": f"encoder/layers_{index}",
                    "chosen": found["chosen"][i].tolist(),
                    "weights": found["weights"][i].round(_DIGITS).tolist(),
                    "entropy": found["entropy"][i].round(_DIGITS).tolist(),
                    "dropped": found["dropped"][i].tolist(),
                }
                for i, index in enumerate(self.engine.sparse_layers)
            ]
            return {
                "task": task.name if task else None,
                "num_experts": self.engine.lm.loaded.config.num_experts,
                "pieces": self.engine.pieces(work, given["text"], task),
                "layers": layers,
                "capacity": found["capacity"],
                **work.notes,
            }

        return [work], finish

    async def preferences(self) -> dict[str, Any]:
        """Which pieces of the sample comments each expert gets more often than its share; computed once."""
        if self._preferences is None or (
            self._preferences.done() and self._preferences.exception() is not None
        ):
            self._preferences = asyncio.ensure_future(self._count_preferences())
        return await asyncio.shield(self._preferences)

    async def _count_preferences(self) -> dict[str, Any]:
        if not self.engine.sparse_layers:
            raise refused(
                "the encoder of this model has no experts",
                "model",
                "serve a model with sparse layers",
            )
        works = await self._read(self.engine.samples)
        chosen = await self.batcher.submit(works, patient=True)
        names = [f"encoder/layers_{i}" for i in self.engine.sparse_layers]
        layers = await self._read(
            experts.preferences,
            names,
            [work.ids[0] for work in works],
            chosen,
            self.engine.lm.loaded.config.num_experts,
            self.engine.vocabulary.piece,
        )
        return {"comments": len(works), "layers": layers}

# SPDX-License-Identifier: Apache-2.0
"""Mutates every kind of input and looks at what the verbs make of it.

    python benchmarks/fuzz.py --rounds=1000 [--kind=gin --kind=tsv] [--seed=0]

A mutated input may be read, or refused with one line and status 2; nothing else: no traceback, no message
of several lines or of thousands of characters, no new or changed file beside the output, none at all after a
refusal, and no output of which a part has a temporary name.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gzip
import io
import json
import random
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

from kcmoe import cli
from kcmoe.checkpoint.base import Provenance
from kcmoe.checkpoint.writing import write_checkpoint
from kcmoe.io import durable, resources
from kcmoe.tree import shape_dtype

_SIGNS = "{}[]()'\"\\%@=:,.#\n\t \0\ufeff\r-+eE09a_/!;가\U0001f642|"
_MOST_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of input.

    Attributes:
      folder: where all of it happens.
      files: those that are mutated, one each time.
      command: arguments of `kcmoe`.
      output: what it writes or changes, if anything.
      text: mutates signs of the text besides bytes.
      piped: the file is its standard input.
    """

    folder: Path
    files: tuple[Path, ...]
    command: tuple[str, ...]
    output: Path | None = None
    text: bool = True
    piped: bool = False

    def run(self) -> int:
        """Runs the command and returns its status."""
        if not self.piped:
            return cli.run(self.command)
        before = sys.stdin
        try:
            with open(self.files[0]) as sys.stdin:
                return cli.run(self.command)
        finally:
            sys.stdin = before


def _mutated(content: bytes, text: bool, rng: random.Random) -> bytes:
    if text and rng.random() < 0.7:
        signs = list(content.decode("utf-8", "surrogateescape"))
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(signs) + 1)
            kind = rng.randrange(4)
            if kind == 0:
                signs.insert(place, rng.choice(_SIGNS))
            elif kind == 1:
                signs[place : place + 1] = rng.choice(_SIGNS)
            elif kind == 2:
                del signs[place : place + rng.randrange(1, 9)]
            else:
                signs[place:place] = signs[place : place + rng.randrange(1, 30)] * rng.randrange(
                    1, 9
                )
        return "".join(signs).encode("utf-8", "surrogateescape")
    data = bytearray(content)
    place = rng.randrange(len(data)) if data else 0
    kind = rng.randrange(6)
    if kind == 0:
        del data[place:]
    elif kind == 1 and data:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 2:
        data[place : place + 16] = bytes(16)
    elif kind == 3:
        data[place:place] = rng.randbytes(rng.randrange(1, 30))
    elif kind == 4:
        data[:] = rng.choice(
            [b"", b"[" * 100_000, b"\xff\xfe", b"\0" * 99, b"{" * 5000, b"\n" * 50]
        )
    else:
        del data[place : place + rng.randrange(1, 99)]
    return bytes(data)


def listing(folder: Path) -> dict[str, bytes]:
    """Every file and folder, with the content of the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def restore(folder: Path, original: dict[str, bytes]) -> None:
    """Makes everything what `listing` saw."""
    now = listing(folder)
    for name in sorted(now.keys() - original.keys(), reverse=True):  # what is in a folder before it
        path = folder / name
        path.rmdir() if path.is_dir() else path.unlink()
    for name, content in sorted(original.items()):
        if name not in now and any(other.startswith(f"{name}/") for other in original):
            (folder / name).mkdir()
        elif now.get(name) != content:
            (folder / name).write_bytes(content)


def one(case: Case, rng: random.Random) -> str:
    """Runs one mutation and returns what is wrong with the outcome, "" if nothing is."""
    original = listing(case.folder)
    file = rng.choice(case.files)
    file.write_bytes(_mutated(file.read_bytes(), case.text, rng))
    before = {**original, str(file.relative_to(case.folder)): file.read_bytes()}
    said, printed = io.StringIO(), io.StringIO()
    started_s = time.process_time()  # whatever else the machine does
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            status = case.run()
        if status not in (0, 2):
            return f"status {status}: {said.getvalue()}"
        if fault := _left(case, before, status):
            return f"{fault} with status {status}"
        lines = [line for line in said.getvalue().splitlines() if line.startswith("kcmoe ")]
        if status == 2 and (len(lines) != 1 or len(lines[0]) > 4000):
            return f"status 2 with {len(lines)} lines: {said.getvalue()[-500:]}"
        seconds = time.process_time() - started_s
        return f"took {seconds:.0f} s" if seconds > _MOST_SECONDS else ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error)[-3:])
    finally:
        restore(case.folder, original)


def _left(case: Case, before: dict[str, bytes], status: int) -> str:
    """What a command changed that it may not change, "" if nothing."""
    after = listing(case.folder)
    changed = {name for name in after.keys() | before.keys() if after.get(name) != before.get(name)}
    if status == 0 and case.output is not None:
        below = str(case.output.relative_to(case.folder))
        if any(durable.TEMPORARY in name or name.endswith(".part") for name in changed):
            return f"half-written {sorted(changed)[:5]}"
        changed = {name for name in changed if not name.startswith(below)}
    return f"left or changed {sorted(changed)[:5]}" if changed else ""


def _checkpoint(format: str, checksums: bool) -> Callable[[Path], Case]:
    def make(folder: Path) -> Case:
        rng = np.random.default_rng(0)
        state = {
            "state/step": np.asarray(7, np.int32),
            "target/encoder/layers_0/mlp/wi_0/kernel": rng.normal(size=(16, 24)).astype("f4"),
            "target/token_embedder/embedding": rng.normal(size=(48, 16)).astype("f4"),
            "state/param_states/token_embedder/embedding/v": rng.normal(size=(48, 16)).astype("f4"),
        }
        path = folder / "run" / "checkpoint_7"
        tree = {name: shape_dtype(array) for name, array in state.items()}
        write_checkpoint(path, format, tree, state.items(), about=Provenance(7))
        if not checksums:
            (path / "kcmoe.json").unlink()
        (folder / "run" / "config.gin").write_text(_GIN)
        files = tuple(sorted(each for each in (folder / "run").rglob("*") if each.is_file()))
        output = folder / "copy"
        command = ("checkpoint", "convert", str(path), str(output), "--format=t5x_legacy")
        return Case(folder, files, command, output, text=False)

    return make


_GIN = """# settings
MIXTURE_OR_TASK_NAME = 'own'
TASK_TRAIN_FILES = 'train.tsv'
TASK_PROMPT = '평: {document}'
TASK_TARGET_COLUMN = 'label'
TASK_LABELS = {'0': '부정', '1': '긍정'}
TASK_FEATURE_LENGTHS = {'inputs': 64, 'targets': 8}
TASK_HOLDOUT = 0.2
TASK_METRICS = ['accuracy']
"""
_ROWS = [
    ("재밌어요 정말", "1"),
    ('별로, "였다"', "0"),
    ("최고 🙂", "1"),
    ("지루함", "0"),
    ("보통", "1"),
]


def _tables(name: str, content: str | bytes) -> Callable[[Path], Case]:
    def make(folder: Path) -> Case:
        (folder / "own.gin").write_text(_GIN.replace("train.tsv", name), encoding="utf-8")
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        command = (
            "data",
            "inspect",
            f"--gin_file={folder / 'own.gin'}",
            f"--gin.DATA_DIR='{folder}'",
        )
        mutated = (
            (folder / "own.gin", folder / name) if isinstance(content, str) else (folder / name,)
        )
        return Case(folder, mutated, command, text=isinstance(content, str))

    return make


def _vocabulary(folder: Path) -> Case:
    model = folder / "v.model"
    model.write_bytes(resources.find("vocab/kcmoe_32k.model").read_bytes())
    output = folder / "out.model"
    return Case(
        folder, (model,), ("tokenizer", "add-sentinels", str(model), str(output)), output, False
    )


def _lines(folder: Path) -> Case:
    text = folder / "lines.txt"
    text.write_text("".join(f"{a}\n" for a, _ in _ROWS), encoding="utf-8")
    output = folder / "measures.json"
    command = ("tokenizer", "report", f"--text={text}", f"--json={output}")
    return Case(folder, (text,), command, output)


def _corpus(folder: Path) -> Case:
    text = folder / "corpus.jsonl"
    rows = ({"text": f"{a} 그리고 조금 더 긴 글입니다"} for a, _ in _ROWS)
    text.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = folder / "prepared"
    command = ("data", "prepare", str(text), f"--output={output}", "--workers=1")
    return Case(folder, (text,), command, output)


def _run(folder: Path) -> Case:
    """What a model directory has besides checkpoints, as `report` reads it."""
    run = folder / "run"
    run.mkdir()
    (run / "config.gin").write_text("NUM_SELECTED_EXPERTS = 2\nBATCH_SIZE = 8\n", encoding="utf-8")
    shown = {"split": "train", "cross_ent_loss": 5.0, "loss": 6.0, "grad_norm": 1.0, "step_s": 0.5}
    rows = [{"step": step, **shown, "router/a/expert_load": [0.5, 0.5]} for step in range(1, 9)]
    rows.append({"step": 8, "split": "eval", "loss": 5.0})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "metrics.jsonl").write_text(lines, encoding="utf-8")
    files = (run / "config.gin", run / "metrics.jsonl")
    output = folder / "page.html"
    return Case(folder, files, ("report", str(run), f"--output={output}"), output)


_SIZES = {
    "NUM_ENCODER_LAYERS": 1,
    "NUM_DECODER_LAYERS": 1,
    "NUM_HEADS": 2,
    "HEAD_DIM": 8,
    "EMBED_DIM": 16,
    "MLP_DIM": 32,
    "NUM_EXPERTS": 4,
    "GROUP_SIZE": 32,
    "TRAIN_STEPS": 2,
    "BATCH_SIZE": 2,
    "EVAL_STEPS": 1,
    "CHECKPOINT_PERIOD": 1,
    "LEARNING_RATE_FACTORS": "constant",
}


def _trained(folder: Path, name: str = "run") -> tuple[str, ...]:
    """Trains two steps of a small model and returns the command; `name`: its model directory."""
    (folder / "train.tsv").write_text(_separated("\t"), encoding="utf-8")
    settings = _GIN + "".join(f"{name} = {value!r}\n" for name, value in _SIZES.items())
    (folder / "own.gin").write_text(settings, encoding="utf-8")
    recipes = [
        resources.find(f"configs/{each}") for each in ("sizes/tiny.gin", "runs/pretrain.gin")
    ]
    command = (
        "train",
        *(f"--gin_file={each}" for each in (*recipes, folder / "own.gin")),
        f"--gin.DATA_DIR='{folder}'",
        f"--gin.MODEL_DIR='{folder / name}'",
    )
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        assert cli.run(command) == 0
    return command


def _resumed(folder: Path) -> Case:
    """A model directory of which everything is damaged in turn, and the command that goes on from it."""
    command = _trained(folder)
    run = folder / "run"
    files = tuple(
        sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    )
    return Case(folder, files, (*command, "--gin.TRAIN_STEPS=3"), run, text=False)


def _piped(folder: Path) -> Case:
    """Lines on standard input."""
    _trained(folder)
    lines = folder / "lines.txt"
    lines.write_text("".join(f"{a}\n" for a, _ in _ROWS), encoding="utf-8")
    command = ("predict", f"--checkpoint={folder / 'run'}", "-")
    return Case(folder, (lines,), command, piped=True)


def _columns(write: Callable[[pa.Table, io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    write(pa.table({"document": [a for a, _ in _ROWS], "label": [int(b) for _, b in _ROWS]}), file)
    return file.getvalue()


def _zip(name: str, content: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def _plan(folder: Path) -> Case:
    (folder / "base.gin").write_text("include 'configs/sizes/tiny.gin'\n", encoding="utf-8")
    file = folder / "run.gin"
    settings = (
        "BATCH_SIZE = 8\nGROUP_SIZE = 128\nMODEL_DIR = 'run'\nTRAIN_STEPS = 10\nPACK = False\n"
    )
    file.write_text(f"include '{folder / 'base.gin'}'\n{settings}", encoding="utf-8")
    files = ("configs/runs/pretrain.gin", file)
    command = (
        "plan",
        *(f"--gin_file={each}" for each in files),
        "--task=pretrain",
        "--hardware=cpu",
    )
    return Case(folder, (file,), command)


def _separated(sign: str) -> str:
    rows = [("document", "label"), *_ROWS]
    if sign == ",":
        rows = [('"' + text.replace('"', '""') + '"', label) for text, label in rows]
    return "".join(f"{text}{sign}{label}\n" for text, label in rows)


def _json_lines() -> str:
    return "".join(
        json.dumps({"document": a, "label": b}, ensure_ascii=False) + "\n" for a, b in _ROWS
    )


KINDS: dict[str, Callable[[Path], Case]] = {
    "corpus": _corpus,
    "csv": _tables("train.csv", _separated(",")),
    "csv.gz": _tables("train.csv.gz", gzip.compress(_separated(",").encode(), mtime=0)),
    "csv.zip": _tables("train.csv.zip", _zip("train.csv", _separated(","))),
    "csv.zst": _tables(
        "train.csv.zst", pa.compress(_separated(",").encode(), "zstd", asbytes=True)
    ),
    "feather": _tables("train.feather", _columns(pyarrow.feather.write_feather)),
    "gin": _plan,
    "json": _tables("train.json", json.dumps([{"document": a, "label": b} for a, b in _ROWS])),
    "jsonl": _tables("train.jsonl", _json_lines()),
    "lines": _lines,
    "legacy": _checkpoint("t5x_legacy", False),
    "orbax": _checkpoint("t5x_orbax", False),
    "orbax with checksums": _checkpoint("t5x_orbax", True),
    "parquet": _tables("train.parquet", _columns(pyarrow.parquet.write_table)),
    "piped": _piped,
    "resumed": _resumed,
    "run": _run,
    "safetensors": _checkpoint("safetensors", False),
    "tsv": _tables("train.tsv", _separated("\t")),
    "vocabulary": _vocabulary,
}


def main() -> None:
    """Prints a line for every fault, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=1000, help="mutations of each kind")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    faults: Counter[str] = Counter()
    for kind in args.kind or sorted(KINDS):
        with tempfile.TemporaryDirectory() as folder:
            case = KINDS[kind](Path(folder))
            for number in range(args.rounds):
                fault = one(case, random.Random(f"{args.seed} {kind} {number}"))
                if fault:
                    faults[kind] += 1
                    print(f"{kind} {number}: {fault}")
        print(f"{kind}: {args.rounds} mutations, {faults[kind]} faults", flush=True)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()

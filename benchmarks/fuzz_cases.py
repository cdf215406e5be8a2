# SPDX-License-Identifier: Apache-2.0
"""What `fuzz.py` mutates: every kind of input, small, and the command that reads it."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

from kcmoe import cli
from kcmoe.checkpoint.base import Provenance
from kcmoe.checkpoint.writing import write_checkpoint
from kcmoe.io import resources
from kcmoe.tree import shape_dtype


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

# SPDX-License-Identifier: Apache-2.0
"""`kcmoe checkpoint inspect|convert` as a person meets it: text, JSON, exit statuses, memory."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kcmoe import checkpoint
from kcmoe.checkpoint import run_config
from kcmoe.checkpoint.base import Provenance
from kcmoe.checkpoint.writing import write_checkpoint
from kcmoe.cli import run
from kcmoe.tree import ShapeDtype

State = dict[str, np.ndarray]
FORMATS = ["t5x_orbax", "t5x_legacy", "safetensors"]
NORM = "target/encoder/encoder_norm/scale"


@pytest.mark.parametrize("format", FORMATS)
def test_inspect_tells_what_a_checkpoint_holds(
    format: str, state: State, write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(state, format, extras={"training.json": b"{}"})
    assert run(["checkpoint", "inspect", str(path)]) == 0
    text = capsys.readouterr().out
    parameters = sum(a.size for p, a in state.items() if p.startswith("target/"))
    for words in (f"{format}\n", f"{parameters:,} in 9 leaves", "NUM_EXPERTS=4", "training.json"):
        assert words in text, words
    assert "finite      yes" in text
    assert all(name in text for name in state)
    assert run(["checkpoint", "inspect", str(path), "--json", "--no-finite"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["step"], found["format"], found["parameters"]) == (7, format, parameters)
    assert found["finite"] is None
    assert found["leaves"][NORM] == {"shape": [16], "dtype": "float32", "bytes": 64}
    assert found["total_bytes"] == sum(a.nbytes for a in state.values())


def test_inspect_shows_what_is_not_finite_and_exits_2(
    state: State, write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    state[NORM][2:4] = np.nan
    assert run(["checkpoint", "inspect", str(write(state))]) == 2
    shown = capsys.readouterr()
    assert "finite      no: 1 leaves, marked below" in shown.out
    assert shown.err.count("\n") == 1
    assert f"1 leaf: {NORM}: 2 of 16 values of float32[16] are not finite" in shown.err


@pytest.mark.parametrize(("source", "target"), [*itertools.product(FORMATS, FORMATS)])
def test_convert_there_and_back_keeps_every_bit(
    source: str,
    target: str,
    state: State,
    write: Callable[..., Path],
    tmp_path: Path,
    same: Callable[..., None],
) -> None:
    first = write(state, source, extras={"training.json": b"{}"})
    there, back = tmp_path / "there/checkpoint_7", tmp_path / "back/checkpoint_7"
    assert run(["checkpoint", "convert", str(first), str(there), f"--format={target}"]) == 0
    assert run(["checkpoint", "convert", str(there), str(back), f"--format={source}"]) == 0
    for path, format in ((there, target), (back, source)):
        reader = checkpoint.open_checkpoint(path)
        assert (reader.format, reader.step) == (format, 7)
        assert reader.extras()["training.json"] == b"{}"
        same(state, dict(reader.read_all(reader.tree())))


def test_safetensors_come_with_the_models_macros(
    state: State, write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(state, name="run/checkpoint_7")
    config = tmp_path / "run/config.gin"
    config.write_text("NUM_EXPERTS = 4\nNUM_SELECTED_EXPERTS = 2\nMODEL_DIR = '/private'\n")
    arguments = ["checkpoint", "convert", str(path), str(tmp_path / "out"), "--format=safetensors"]
    assert run(arguments) == 0
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["NUM_SELECTED_EXPERTS"] == 2  # only the file knows
    assert (written["EMBED_DIM"], written["NUM_EMBEDDINGS"], written["step"]) == (16, 48, 7)
    assert "MODEL_DIR" not in written
    config.write_text("NUM_EXPERTS = 8\n")
    arguments[3] = str(tmp_path / "other")
    assert run(arguments) == 2
    assert "config.gin does not belong to the checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_what_is_recorded_survives_conversions(
    state: State, write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(state, name="run/checkpoint_7")
    kept = {
        "NUM_SELECTED_EXPERTS": 2,
        "GROUP_SIZE": 64,
        "ACTIVATION_DTYPE": "bfloat16",
        "VOCABULARY_SHA256": "12ab",
        "TASK_FEATURE_LENGTHS": {"inputs": 48, "targets": 4},
    }
    lines = [f"{name} = {value!r}" for name, value in kept.items()]
    (tmp_path / "run/config.gin").write_text("\n".join(lines))
    for number, format in enumerate(["safetensors", "safetensors", "t5x_orbax", "safetensors"]):
        new = str(tmp_path / f"{number}/checkpoint_7")
        assert run(["checkpoint", "convert", str(path), new, f"--format={format}"]) == 0
        found = run_config.recorded(new)
        assert {name: found[name] for name in kept} == kept, format
        path = Path(new)


def test_parameters_alone_in_half_precision(
    state: State, write: Callable[..., Path], tmp_path: Path
) -> None:
    target = tmp_path / "small"
    arguments = [str(write(state)), str(target), "--format=safetensors", "--params_only"]
    assert run(["checkpoint", "convert", *arguments, "--dtype=bfloat16"]) == 0
    reader = checkpoint.open_checkpoint(target)
    assert reader.step == 7
    assert {p.split("/")[0] for p in reader.tree() if p != "state/step"} == {"target"}
    assert reader.tree()[NORM].dtype == "bfloat16"
    np.testing.assert_array_equal(reader.read(NORM), state[NORM].astype("bfloat16"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "{tmp}/absent"], "there is no checkpoint"),
        (["convert", "{good}", "{tmp}/new", "--format=orbax"], "Did you mean t5x_orbax?"),
        (["convert", "{good}", "{good}", "--format=t5x_orbax"], "exists already"),
        (["convert", "{good}", "{tmp}/new"], "required: --format"),
        (["convert", "{good}", "gs://b/new", "--format=safetensors"], "gs://b/new is not on this"),
        (["convert", "{bad}", "{tmp}/new", "--format=t5x_orbax"], f"{NORM}: 1 of 16 values"),
        (["inspct"], "invalid choice"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str],
    words: str,
    state: State,
    new_state: Callable[..., State],
    write: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = new_state()
    broken[NORM][0] = np.inf
    good, bad = write(state), write(broken, name="bad/checkpoint_7")
    filled = [a.format(tmp=tmp_path, good=good, bad=bad) for a in arguments]
    assert run(["checkpoint", *filled]) == 2
    error = capsys.readouterr().err
    assert error.startswith("kcmoe checkpoint: ")
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_conversion_needs_the_memory_of_a_few_leaves(format: str, tmp_path: Path) -> None:
    """400 MB of leaves pass through a process that may hold far less beyond what it imports."""
    leaf = ShapeDtype((1024, 4096), np.dtype(np.float32))
    tree = {f"target/layers_{number}": leaf for number in range(24)}
    row = np.tile(np.arange(512, dtype=np.float32), (1024, 8))  # packs well, so it is quick
    leaves = ((path, row) for path in tree)
    write_checkpoint(tmp_path / "checkpoint_1", "t5x_orbax", tree, leaves, about=Provenance(1))
    measure = (
        "import resource, sys; from kcmoe.cli import run; "
        "import kcmoe.checkpoint.writing; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "assert run(['checkpoint', 'convert', *sys.argv[1:]]) == 0; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    arguments = [str(tmp_path / "checkpoint_1"), str(tmp_path / "new"), f"--format={format}"]
    output = subprocess.check_output(
        [sys.executable, "-c", measure, *arguments], text=True, cwd=Path(__file__).parents[2]
    )
    grown_kb = int(output.split()[-1])
    assert 24 * leaf.nbytes > 400_000_000
    assert grown_kb < 350_000, grown_kb


def test_a_file_is_no_checkpoint(
    state: dict[str, np.ndarray], write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the folder that it lies in either; a checkpoint's own file stands for it."""
    folder = write(state, "safetensors")
    (folder / "a.tsv").touch()
    assert run(["checkpoint", "inspect", str(folder / "a.tsv")]) == 2
    error = capsys.readouterr().err
    assert "a.tsv is a file and no checkpoint" in error and error.count("\n") == 1
    assert run(["checkpoint", "inspect", str(folder / "model.safetensors")]) == 0

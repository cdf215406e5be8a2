# SPDX-License-Identifier: Apache-2.0
"""The engine against numbers that T5X + Flaxformer computed, and the comparison against itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kcmoe import cli
from kcmoe.tools.parity import compare


def test_golden_case_holds(golden, capsys):
    assert cli.run(["parity", str(golden)]) == 0
    printed = capsys.readouterr().out
    for quantity in compare.OUTPUTS:
        assert quantity in printed
    assert "optimizer state in t5x_orbax" in printed
    assert "FAIL" not in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dispatch"),
    [("packed_top2", way) for way in ("gather", "exchange", "einsum", "grouped", "ragged")]
    + [("factored_unpacked", "gather")],
)
def test_reference_cases_hold_whatever_the_dispatch(reference, name, dispatch):
    assert cli.run(["parity", str(reference / name), f"--dispatch={dispatch}"]) == 0


@pytest.fixture
def case(golden, tmp_path) -> Path:
    """A copy of the golden case, to be spoilt."""
    return Path(shutil.copytree(golden, tmp_path / "case"))


def change(case: Path, file: str, key: str) -> None:
    """Changes one array a little, or drops it if the key begins with "-"."""
    with np.load(case / file) as archive:
        arrays = dict(archive)
    if key.startswith("-"):
        del arrays[key[1:]]
    else:
        moved = np.asarray(1e-3 * np.max(np.abs(arrays[key])))
        arrays[key] = arrays[key] + moved.astype(arrays[key].dtype)
    np.savez(case / file, **arrays)


def test_a_wrong_number_fails(case, capsys):
    key = "grads/encoder/layers_1/mlp/expert/wi_0/kernel"
    change(case, "outputs.npz", key)
    assert cli.run(["parity", str(case)]) == 1
    assert f"FAIL at {key}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("outputs.npz", "-decode4/scores"),
        ("outputs.npz", "-intermediates/encoder/layers_1/mlp/expert_usage"),
        ("trajectory.npz", "-token_embedder/embedding"),
        ("batches.npz", "-2/decoder_loss_weights"),
    ],
)
def test_an_incomplete_case_is_refused(case, capsys, file, key):
    change(case, file, key)
    assert cli.run(["parity", str(case)]) == 2
    error = capsys.readouterr().err
    assert file in error
    assert key.rpartition("/")[2] in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("missing", ["case.json", "params.npz", "t5x_orbax"])
def test_a_case_without_a_file_is_refused(case, capsys, missing):
    path = case / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert cli.run(["parity", str(case)]) == 2
    assert missing in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[]", "null", '{"gin": []}', "\N{HANGUL SYLLABLE GA}"]
)
def test_a_case_that_is_none_is_refused(case, capsys, content):
    (case / "case.json").write_text(content, encoding="utf-8")
    assert cli.run(["parity", str(case)]) == 2
    error = capsys.readouterr().err
    assert "case.json" in error and error.count("\n") == 1


def test_what_may_not_be_read_is_one_line(case, capsys):
    (case / "params.npz").unlink()
    (case / "params.npz").mkdir()
    assert cli.run(["parity", str(case)]) == 2
    assert "not a readable npz file (Is a directory" in capsys.readouterr().err


def test_a_case_with_an_unknown_macro_is_refused(case, capsys):
    spec = json.loads((case / "case.json").read_text())
    spec["gin"]["NUM_EXPERTZ"] = 4
    (case / "case.json").write_text(json.dumps(spec))
    assert cli.run(["parity", str(case)]) == 2
    assert "NUM_EXPERTS" in capsys.readouterr().err


def test_what_a_dense_model_does_not_have_is_not_compared():
    one = {"loss": np.ones(()), "grads/encoder/layers_0/mlp/wo/kernel": np.ones((2, 2))}
    assert [line.quantity for line in compare.of_outputs(one, one)] == ["loss", "gradients"]


def test_errors_are_relative_and_shapes_must_agree():
    expected = np.array([100.0, -200.0])
    assert compare.error(np.array([101.0, -200.0]), expected) == pytest.approx(1 / 200)
    assert compare.error(np.zeros(3), np.zeros(2)) == np.inf
    assert compare.error(np.full(2, 1e-3), np.zeros(2)) == pytest.approx(1e-3)
    assert not compare.Comparison("x", 1, float("nan"), "x", 1e-5).holds

# SPDX-License-Identifier: Apache-2.0
"""Mistakes that are found before a pod-hour is spent, each with the words that mend it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from kcmoe import checkpoint
from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.errors import UserError
from kcmoe.training import state as states
from kcmoe.training.optimizers.adafactor import Adafactor

Load = Callable[[str], ModuleType]


@pytest.fixture
def checks(load: Load) -> ModuleType:
    return load("checks")


@pytest.fixture
def macros(small: dict[str, int]) -> gin_files.Macros:
    files = [
        "configs/engine/engine.gin",
        "configs/runs/pretrain_sample.gin",
        "configs/t5x/train.gin",
    ]
    return gin_files.parse(
        files, [f"{name}={value}" for name, value in small.items()], foreign=True
    )


@pytest.fixture
def saved(macros: gin_files.Macros, tmp_path: Path) -> Path:
    optimizer = Adafactor.from_macros(macros)
    flat = states.to_flat(states.init_state(ModelConfig.from_macros(macros), 0, optimizer))
    return checkpoint.save(
        tmp_path / "run", 0, {path: np.asarray(leaf) for path, leaf in flat.items()}
    )


@pytest.mark.parametrize(
    "change",
    [
        {"ROUTING": "dropless"},
        {"FREEZE": ["encoder/.*"]},
        {"STEP_OFFSET": 9},
        {"OPTIMIZER": "adamw"},
    ],
)
def test_settings_that_t5x_would_ignore_are_refused(
    change: dict[str, object], checks: ModuleType, macros: gin_files.Macros
) -> None:
    checks.refuse_engine_only(macros)
    with pytest.raises(UserError, match=r"only the engine does; run it with `kcmoe train`"):
        checks.refuse_engine_only(macros.replace(**change))


def test_a_vocabulary_larger_than_the_embedding_is_refused(
    checks: ModuleType, macros: gin_files.Macros
) -> None:
    vocabulary = SimpleNamespace(path="v.model", size=32_118)
    checks.vocabulary_fits(vocabulary, macros)
    with pytest.raises(UserError, match=r"v\.model has 32,118 pieces, but NUM_EMBEDDINGS = 32,000"):
        checks.vocabulary_fits(vocabulary, macros.replace(NUM_EMBEDDINGS=32_000))


@pytest.mark.parametrize(
    ("devices", "change", "words"),
    [
        (8, {"NUM_MODEL_PARTITIONS": 3}, "NUM_MODEL_PARTITIONS = 3 does not divide the 8 devices"),
        (8, {"NUM_MODEL_PARTITIONS": 0}, "NUM_MODEL_PARTITIONS = 0 does not divide"),
        (8, {"NUM_MODEL_PARTITIONS": 4}, "NUM_MODEL_PARTITIONS = 4 does not divide NUM_HEADS = 2"),
        (
            8,
            {"NUM_MODEL_PARTITIONS": None},
            "one of NUM_MODEL_PARTITIONS and MODEL_PARALLEL_SUBMESH",
        ),
        (
            8,
            {"MODEL_PARALLEL_SUBMESH": (2, 1, 1, 1)},
            "one of NUM_MODEL_PARTITIONS and MODEL_PARALLEL",
        ),
        (
            8,
            {"NUM_MODEL_PARTITIONS": None, "MODEL_PARALLEL_SUBMESH": (3, 1, 1, 1)},
            r"MODEL_PARALLEL_SUBMESH = \(3, 1, 1, 1\) does not divide the 8 devices",
        ),
        (8, {"BATCH_SIZE": 12}, "BATCH_SIZE = 12 is not a multiple of 8"),
        (
            8,
            {"NUM_EXPERTS": 6, "NUM_EXPERT_PARTITIONS": 6},
            "NUM_EXPERTS = 6 cannot be divided over 4",
        ),
    ],
)
def test_what_does_not_divide_is_named(
    devices: int,
    change: dict[str, object],
    words: str,
    checks: ModuleType,
    macros: gin_files.Macros,
) -> None:
    with pytest.raises(UserError, match=words):
        checks.partitions_divide(macros.replace(**change), devices)


@pytest.mark.parametrize(
    ("devices", "change"),
    [
        (1, {}),
        (16, {}),
        (8, {"NUM_MODEL_PARTITIONS": 2}),
        (8, {"NUM_MODEL_PARTITIONS": None, "MODEL_PARALLEL_SUBMESH": (2, 1, 1, 1)}),
        (8, {"NUM_EXPERTS": 6, "NUM_EXPERT_PARTITIONS": 2}),
    ],
)
def test_what_divides_passes(
    devices: int, change: dict[str, object], checks: ModuleType, macros: gin_files.Macros
) -> None:
    checks.partitions_divide(macros.replace(**change), devices)


def test_microbatches_that_do_not_divide_are_refused(
    checks: ModuleType, macros: gin_files.Macros
) -> None:
    macros = macros.replace(BATCH_SIZE=32)
    checks.microbatches_divide(macros, 8)
    checks.microbatches_divide(macros.replace(NUM_MICROBATCHES=4), 8)
    checks.microbatches_divide(macros.replace(NUM_MICROBATCHES=8, NUM_MODEL_PARTITIONS=2), 8)
    for count in (3, 8):
        with pytest.raises(
            UserError, match=f"BATCH_SIZE = 32 is not a multiple of {8 * count}, .*"
        ):
            checks.microbatches_divide(macros.replace(NUM_MICROBATCHES=count), 8)


@pytest.mark.parametrize(
    ("evaluation", "saving", "fits"),
    [(1000, 5000, True), (500, 100, True), (0, 700, True), (1000, 1500, False)],
)
def test_periods_that_do_not_divide_are_refused(
    evaluation: int, saving: int, fits: bool, checks: ModuleType, macros: gin_files.Macros
) -> None:
    macros = macros.replace(EVAL_PERIOD=evaluation, CHECKPOINT_PERIOD=saving)
    if fits:
        checks.periods_divide(macros)
    else:
        with pytest.raises(UserError, match="EVAL_PERIOD = 1000 and CHECKPOINT_PERIOD = 1500"):
            checks.periods_divide(macros)


def test_a_checkpoint_of_this_model_passes_and_its_path_is_absolute(
    checks: ModuleType, macros: gin_files.Macros, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    assert checks.checkpoint_fits(saved.name, macros, optimizer=True) == str(saved)


def test_a_checkpoint_of_another_size_is_named_with_both_sizes(
    checks: ModuleType, macros: gin_files.Macros, saved: Path
) -> None:
    with pytest.raises(
        UserError, match=r"does not fit this model .*NUM_EXPERTS 4 here, 8 expected"
    ):
        checks.checkpoint_fits(str(saved), macros.replace(NUM_EXPERTS=8), optimizer=True)


def test_a_checkpoint_of_another_vocabulary_is_named_with_both(
    checks: ModuleType, macros: gin_files.Macros, saved: Path
) -> None:
    other = Path(__file__).parents[2] / "vocab/kcmoe_32k.model"
    (saved.parent / "config.gin").write_text(f"VOCABULARY_FILE = {str(other)!r}\n")
    with pytest.raises(
        UserError,
        match=r"trained with the vocabulary .*32k\.model \(sha256 [0-9a-f]{12}…\), not with",
    ):
        checks.checkpoint_fits(str(saved), macros, optimizer=False)
    (saved.parent / "config.gin").write_text("VOCABULARY_FILE = '/elsewhere/other.model'\n")
    checks.checkpoint_fits(str(saved), macros, optimizer=False)  # nothing to compare with


def test_weights_alone_do_for_evaluation_but_not_for_training(
    checks: ModuleType, macros: gin_files.Macros, saved: Path, tmp_path: Path
) -> None:
    reader = checkpoint.open_checkpoint(saved)
    weights = {path: reader.read(path) for path in reader.tree() if path.startswith("target/")}
    bare = checkpoint.save(tmp_path / "bare", 0, {**weights, "state/step": np.int32(0)})
    assert checks.checkpoint_fits(str(bare), macros, optimizer=False) == str(bare)
    with pytest.raises(UserError, match=r"state/param_states/.*missing"):
        checks.checkpoint_fits(str(bare), macros, optimizer=True)


def test_no_checkpoint_at_all(checks: ModuleType, macros: gin_files.Macros, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint"):
        checks.checkpoint_fits(str(tmp_path / "checkpoint_5"), macros, optimizer=True)


@pytest.mark.t5x
@pytest.mark.filterwarnings("default")
def test_a_folder_that_cannot_be_made_is_named(checks: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run cannot be used"):
        checks.folder_usable(str(tmp_path / "file/run"))
    assert checks.folder_usable(str(tmp_path / "new/run")) == str(tmp_path / "new/run")
    assert (tmp_path / "new/run").is_dir()

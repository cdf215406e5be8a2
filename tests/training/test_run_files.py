# SPDX-License-Identifier: Apache-2.0
"""Every file of configs/runs is complete, names only what is known, and opens with its contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kcmoe.config import fields as configs
from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.errors import UserError
from kcmoe.training.schedule import learning_rate
from kcmoe.training.settings import Settings

RUNS = Path(__file__).parents[2] / "configs" / "runs"
WHOLE = sorted(path.stem for path in RUNS.glob("*_*.gin"))
ENGINE = "configs/engine/engine.gin"
GIVEN = ['MODEL_DIR = "dir"', 'INITIAL_CHECKPOINT_PATH = "dir/checkpoint_1"']


def macros(name: str, given: list[str] = GIVEN) -> gin_files.Macros:
    return gin_files.parse([ENGINE, f"configs/runs/{name}.gin"], given)


@pytest.mark.parametrize("name", WHOLE)
def test_run_file_is_complete(name: str) -> None:
    read = macros(name, [*GIVEN, 'CHECKPOINT_PATH = "dir/checkpoint_1"'])
    configs.check_names(read)
    ModelConfig.from_macros(read)
    assert {"inputs", "targets"} == set(read["TASK_FEATURE_LENGTHS"])
    if name.startswith(("pretrain", "finetune")):
        Settings.from_macros(read)


@pytest.mark.parametrize("name", WHOLE)
def test_run_file_opens_with_its_contract(name: str) -> None:
    text = (RUNS / f"{name}.gin").read_text(encoding="utf-8")
    header = text.partition("\ninclude")[0]
    for word in ("Provides", "Required", "Commonly overridden", "Command", "Hardware", "Expect"):
        assert re.search(rf"^# {word}:", header, re.MULTILINE), word
    command = re.search(r"--gin_file=configs/runs/(\w+)\.gin", header)
    assert command is None or command[1] == name


def test_published_hyperparameters() -> None:
    pretrain = Settings.from_macros(macros("pretrain_base"))
    assert pretrain.run.tokens_per_step == 256 * (512 + 114)
    assert pretrain.run.train_steps == 1_000_000
    for step, rate in [(0, 0.01), (10_000, 0.01), (40_000, 0.005), (1_000_000, 0.001)]:
        assert float(learning_rate(step, pretrain.schedule)) == pytest.approx(rate)
    assert (pretrain.optimizer.decay_rate, pretrain.model.dropout_rate) == (0.8, 0.0)
    finetune = Settings.from_macros(macros("finetune_nsmc_base"))
    assert (finetune.run.batch_size, finetune.run.train_steps) == (64, 1_001_000)
    assert Settings.from_macros(macros("finetune_kornli_base")).run.train_steps == 1_006_000
    for step in (0, 500, 1_000_500):  # no warm-up, as in T5X
        assert float(learning_rate(step, finetune.schedule)) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "MODEL_DIR is not set"),
        (["MODLE_DIR = 'x'"], "Did you mean MODEL_DIR"),
        (
            [*GIVEN, "BATCH_SIZE = 10", "NUM_MICROBATCHES = 4"],
            "BATCH_SIZE = 10 is not a multiple of 4, which is NUM_MICROBATCHES = 4",
        ),
        ([*GIVEN, "TRAIN_STEPS = 'many'"], "must be a whole number"),
        ([*GIVEN, "CHECKPOINT_PERIOD = 0"], "must be at least 1"),
        ([*GIVEN, "TASK_FEATURE_LENGTHS = {'inputs': 64}"], "needs 'targets'"),
        ([*GIVEN, "NUM_EXPERT_PARTITIONS = 32"], "more than NUM_EXPERTS = 16"),
        ([*GIVEN, "NUM_ENCODER_SPARSE_LAYERS = 3"], "does not divide"),
    ],
)
def test_settings_that_do_not_go_together(given: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings.from_macros(macros("pretrain_tiny", given))


def test_a_default_of_every_run_has_one_home() -> None:
    """A later file would win over an earlier one without a word."""

    def own(path: Path) -> set[str]:
        return set(re.findall(r"^([A-Z][A-Z0-9_]*) *=", path.read_text("utf-8"), re.MULTILINE))

    configs_dir = RUNS.parent
    sizes = set().union(*map(own, (configs_dir / "sizes").glob("*.gin")))
    tasks = set().union(*map(own, (configs_dir / "tasks").glob("*.gin")))
    assert {"DECAY_RATE", "NUM_EXPERTS"} <= sizes
    for kind in ("pretrain", "finetune", "eval"):
        parts = [own(RUNS / f"{kind}.gin"), own(RUNS / "common.gin"), sizes, tasks]
        parts.append(own(RUNS.parents[1] / ENGINE))
        assert sum(map(len, parts)) == len(set().union(*parts)), kind

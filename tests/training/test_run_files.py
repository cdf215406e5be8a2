# SPDX-License-Identifier: Apache-2.0
"""Every file of configs/runs is complete, names only what is known, and opens with its contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kcmoe.config import fields as configs
from kcmoe.config import gin_files
from kcmoe.config.data import DataConfig
from kcmoe.config.model import ModelConfig
from kcmoe.errors import UserError
from kcmoe.tasks.registry import Task, get_task
from kcmoe.training.schedule import learning_rate
from kcmoe.training.settings import Settings

RUNS = Path(__file__).parents[2] / "configs" / "runs"
RECIPES = sorted(path.stem for path in RUNS.glob("*_*.gin"))  # whole runs, most of them measured
KINDS = ("pretrain", "finetune", "evaluate")  # which a size and a task make whole
SIZES = sorted(path.stem for path in RUNS.parent.glob("sizes/*.gin"))
TASKS = sorted(path.stem for path in RUNS.parent.glob("tasks/*.gin"))
ENGINE = "configs/engine/engine.gin"
GIVEN = ['MODEL_DIR = "dir"', 'INITIAL_CHECKPOINT_PATH = "dir/checkpoint_1"']


def macros(name: str, given: list[str] = GIVEN) -> gin_files.Macros:
    return gin_files.parse([ENGINE, f"configs/runs/{name}.gin"], given)


def combined(size: str, task: str, run: str, given: list[str] = GIVEN) -> gin_files.Macros:
    files = [f"configs/sizes/{size}.gin", f"configs/tasks/{task}.gin", f"configs/runs/{run}.gin"]
    return gin_files.parse([ENGINE, *files], given)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_complete(name: str) -> None:
    read = macros(name)
    assert {"inputs", "targets"} == set(read["TASK_FEATURE_LENGTHS"])
    settings = Settings.from_macros(read)
    promised = re.search(r"Provides: ([\d,]+) steps", (RUNS / f"{name}.gin").read_text("utf-8"))
    if name.startswith("finetune"):
        assert promised, "a recipe of fine-tuning says how many steps it takes"
        assert settings.run.train_steps == 1 + int(promised[1].replace(",", ""))


@pytest.mark.parametrize("run", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_goes_with_every_run(size: str, run: str) -> None:
    task = "pretrain" if run == "pretrain" else "nsmc"
    read = combined(size, task, run, [*GIVEN, 'CHECKPOINT_PATH = "dir/checkpoint_1"'])
    configs.check_all(read)
    ModelConfig.from_macros(read)
    if run != "evaluate":
        Settings.from_macros(read)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_says_how_long_it_is_learnt(task: str) -> None:
    read = gin_files.parse([f"configs/tasks/{task}.gin"])
    found = get_task(read)
    parts = [found] if isinstance(found, Task) else [part for part, _ in found.weights]
    if "train" not in {split for part in parts for split in part.splits}:
        return  # nothing to learn from
    if all(part.kind == "labelled" for part in parts):
        settings = Settings.from_macros(combined("tiny", task, "finetune"))
        assert settings.run.train_steps == 1 + read["FINETUNE_STEPS"]
    else:
        assert {"NOISE_DENSITY", "MEAN_NOISE_SPAN_LENGTH"} <= set(read)
        Settings.from_macros(combined("tiny", task, "pretrain"))


@pytest.mark.parametrize("name", [*RECIPES, *KINDS])
def test_run_file_opens_with_its_contract(name: str) -> None:
    text = (RUNS / f"{name}.gin").read_text(encoding="utf-8")
    header = text.partition("\ninclude")[0]
    for word in ("Provides", "Required", "Commonly overridden", "Command", "Hardware", "Expect"):
        assert re.search(rf"^# {word}:", header, re.MULTILINE), word
    command = re.search(r"# Command: .*--gin_file=configs/runs/(\w+)\.gin", header)
    assert command
    assert command[1] == name


def test_published_hyperparameters() -> None:
    pretrain = Settings.from_macros(combined("base", "pretrain", "pretrain"))
    assert pretrain.run.tokens_per_step == 256 * (512 + 114)
    assert pretrain.run.train_steps == 1_000_000
    noise = DataConfig.from_macros(pretrain.macros)
    assert (noise.noise_density, noise.mean_noise_span_length) == (0.15, 3.0)
    for step, rate in [(0, 0.01), (10_000, 0.01), (40_000, 0.005), (1_000_000, 0.001)]:
        assert float(learning_rate(step, pretrain.schedule)) == pytest.approx(rate)
    assert (pretrain.optimizer.decay_rate, pretrain.model.dropout_rate) == (0.8, 0.0)
    start = ['MODEL_DIR = "dir"', 'INITIAL_CHECKPOINT_PATH = "gs://b/checkpoint_1000000"']
    finetune = Settings.from_macros(combined("base", "nsmc", "finetune", start))
    assert (finetune.run.batch_size, finetune.run.train_steps) == (64, 1_001_000)
    kornli = Settings.from_macros(combined("base", "kornli", "finetune", start))
    assert kornli.run.train_steps == 1_006_000
    for step in (0, 500, 1_000_500):  # no warm-up, as in T5X
        assert float(learning_rate(step, finetune.schedule)) == pytest.approx(1e-3)


def test_measured_recipes_keep_their_numbers() -> None:
    start = ['MODEL_DIR = "dir"', 'INITIAL_CHECKPOINT_PATH = "runs/tiny/checkpoint_10000"']
    tuned, learnt = macros("finetune_nsmc_tiny", start), macros("pretrain_tiny")
    assert Settings.from_macros(tuned).run.train_steps == 14_000
    kept = {name: tuned[name] for name in ("BATCH_SIZE", "LEARNING_RATE", "EVAL_STEPS", "PACK")}
    assert kept == {"BATCH_SIZE": 16, "LEARNING_RATE": 0.01, "EVAL_STEPS": 125, "PACK": True}
    assert (learnt["BATCH_SIZE"], learnt["TRAIN_STEPS"]) == (32, 10_000)
    sample = macros(
        "finetune_sample_reviews", [GIVEN[0], "INITIAL_CHECKPOINT_PATH='checkpoint_300'"]
    )
    assert Settings.from_macros(sample).run.train_steps == 500


def test_steps_of_fine_tuning_count_from_where_it_starts(tmp_path: Path) -> None:
    task = "sample_reviews"
    assert Settings.from_macros(combined("tiny", task, "finetune")).run.train_steps == 201
    given = [*GIVEN, "FINETUNE_STEPS = 7"]
    assert Settings.from_macros(combined("tiny", task, "finetune", given)).run.train_steps == 8
    given = [*GIVEN, "TRAIN_STEPS = 7"]  # as T5X counts
    assert Settings.from_macros(combined("tiny", task, "finetune", given)).run.train_steps == 7
    with pytest.raises(UserError, match="INITIAL_CHECKPOINT_PATH is not set"):
        Settings.from_macros(combined("tiny", task, "finetune", GIVEN[:1]))
    with pytest.raises(UserError, match="neither TRAIN_STEPS nor FINETUNE_STEPS is set"):
        Settings.from_macros(combined("tiny", "pretrain", "finetune"))
    with pytest.raises(UserError, match="there is no checkpoint"):
        Settings.from_macros(
            combined("tiny", task, "finetune", [*GIVEN, "INITIAL_CHECKPOINT_PATH = 'exported'"])
        )
    # A run that has begun goes on without being told again where it started.
    begun = combined("tiny", task, "finetune").replace(MODEL_DIR=str(tmp_path))
    recorded = Settings.from_macros(begun).macros
    assert recorded["TRAIN_STEPS"] == 201
    (tmp_path / "config.gin").write_text(gin_files.dump(recorded), "utf-8")
    again = combined("tiny", task, "finetune", [f"MODEL_DIR = {str(tmp_path)!r}"])
    assert Settings.from_macros(again).run.train_steps == 201


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
    for kind in KINDS:
        parts = [own(RUNS / f"{kind}.gin"), own(RUNS / "common.gin"), sizes, tasks]
        parts.append(own(RUNS.parents[1] / ENGINE))
        assert sum(map(len, parts)) == len(set().union(*parts)), kind

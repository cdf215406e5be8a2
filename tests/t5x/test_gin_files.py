# SPDX-License-Identifier: Apache-2.0
"""The gin files of configs/t5x without T5X: they parse, include, and say what the engine's files say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kcmoe.config import gin_files
from kcmoe.config.fields import check_all
from kcmoe.config.model import ModelConfig

ROOT = Path(__file__).parents[2]
PARTS = sorted((ROOT / "configs/t5x").glob("*.gin"))  # what T5X is told, whatever the run
RECIPES = sorted((ROOT / "configs/runs").glob("*_*.gin"))


def combined(size: str, task: str, run: str, *parts: str) -> tuple[str, ...]:
    """The files of a command: a size, a task, a run, and then the parts for T5X."""
    shared = (f"configs/sizes/{size}.gin", f"configs/tasks/{task}.gin", f"configs/runs/{run}.gin")
    return (*shared, *(f"configs/t5x/{part}.gin" for part in parts))


# What people launch, as files in order.
RUNS = {
    "pretrain base": combined("base", "pretrain", "pretrain", "train"),
    "pretrain base_dense": combined("base_dense", "pretrain", "pretrain", "train", "dense"),
    **{
        f"{program} {task} base": combined("base", task, run, part)
        for program, run, part in (
            ("finetune", "finetune", "finetune"),
            ("evaluate", "evaluate", "evaluate"),
            ("infer", "evaluate", "infer"),
        )
        for task in ("nsmc", "kornli")
    },
    **{
        recipe.stem: (
            f"configs/runs/{recipe.name}",
            f"configs/t5x/{'finetune' if recipe.stem.startswith('finetune') else 'train'}.gin",
        )
        for recipe in RECIPES
    },
}
SHARED = [
    file for name in ("sizes", "runs", "tasks") for file in (ROOT / "configs" / name).glob("*.gin")
]
SHARED.append(
    ROOT / "configs/engine/engine.gin"
)  # a macro of that name would be lost to the engine
# Macros that a file of configs/t5x may set though a shared file sets them too, with the reason.
TAKEN_BACK = {
    "MODEL_DIR": "required for training, meaningless for evaluation",
    "INITIAL_CHECKPOINT_PATH": "the same",
    "CHECKPOINT_PATH": "required to evaluate, whichever run file is read before",
    "MODEL": "the dense twin is another class of T5X",
}


def name(path: Path) -> str:
    return path.stem


def own_macros(path: Path) -> set[str]:
    return set(re.findall(r"^([A-Z][A-Z0-9_]*) *=", path.read_text("utf-8"), re.MULTILINE))


def includes(path: Path) -> list[str]:
    return re.findall(r"^include '(.+)'", path.read_text("utf-8"), re.MULTILINE)


def including(path: Path) -> list[Path]:
    """The file and all it includes, directly or not."""
    found = [path]
    for include in includes(path):
        found += including(ROOT / include)
    return found


@pytest.mark.parametrize("path", PARTS, ids=name)
def test_every_part_parses_and_its_includes_are_ours_and_there(path: Path) -> None:
    gin_files.parse([str(path.relative_to(ROOT))], foreign=True)
    for include in includes(path):
        assert include.startswith("configs/"), (
            "neither Flaxformer's nor T5X's gin files are included"
        )
        assert (ROOT / include).is_file()


@pytest.mark.parametrize("run", RUNS)
def test_every_macro_used_is_set_and_every_macro_set_is_known(run: str) -> None:
    files = [found for file in RUNS[run] for found in including(ROOT / file)]
    text = "\n".join(re.sub(r"#.*", "", file.read_text("utf-8")) for file in files)
    used = set(re.findall(r"%([A-Z][A-Z0-9_]*)", text))
    assert len(used) > 25  # the bindings really are written with macros
    assert used <= set().union(*map(own_macros, files))
    check_all(gin_files.parse(RUNS[run], foreign=True))


@pytest.mark.parametrize("run", RUNS)
def test_the_macros_equal_those_of_the_engine(run: str) -> None:
    shared = [file for file in RUNS[run] if not file.startswith("configs/t5x/")]
    theirs, ours = gin_files.parse(RUNS[run], foreign=True), gin_files.parse(shared)
    assert len(ours) > 35
    for macro in ours:
        if macro not in TAKEN_BACK:
            assert theirs[macro] == ours[macro], macro
    engine = ["configs/engine/engine.gin"]
    of_t5x, of_engine = (
        ModelConfig.from_macros(gin_files.parse([*engine, *files], foreign=True))
        for files in (RUNS[run], shared)
    )
    assert of_t5x == of_engine


def test_more_experts_are_one_override() -> None:
    more = gin_files.parse(RUNS["pretrain base"], ["NUM_EXPERTS=64"], foreign=True)
    assert more["NUM_EXPERTS"] == more["NUM_EXPERT_PARTITIONS"] == 64


def test_no_number_stands_twice() -> None:
    shared = set().union(*map(own_macros, SHARED))
    for path in PARTS:
        twice = own_macros(path) & shared - set(TAKEN_BACK)
        assert not twice, f"{path.name} sets what a shared file sets: {twice}"
    # In the bindings themselves a number is one that ST-MoE fixes for every size.
    numbers = re.findall(
        r"^ *[\w/.]+ = (-?[\d.]+(?:e-?\d+)?)(?=\s|$)",
        "".join(p.read_text("utf-8") for p in PARTS),
        re.MULTILINE,
    )
    assert set(numbers) <= {"0", "0.0", "1", "1.0", "1e-6", "2e-2", "32", "42", "100", "128"}, (
        numbers
    )


@pytest.mark.parametrize("path", PARTS, ids=name)
def test_every_part_opens_with_its_contract(path: Path) -> None:
    text = path.read_text("utf-8")
    headings = ["# Provides: ", "# Required: "]
    if path.stem not in ("model", "dense"):
        headings += ["# Commonly overridden: ", "# Hardware: ", "# Wall time: ", "# Expect: "]
    for heading in headings:
        assert heading in text
    if path.stem != "model":
        program = {"evaluate": "eval", "infer": "infer"}.get(path.stem, "train")
        command = text.partition(f"# Command:   python -m t5x.{program} \\\n")[2]
        files = re.findall(r"^#  +--gin_file=(\S+) \\", command, re.MULTILINE)
        assert files[-1] == f"configs/t5x/{path.name}"
        assert tuple(files) in RUNS.values(), "the command is one of those tested here"


def test_commands_in_documents_and_headers_name_files_that_exist() -> None:
    texts = [
        *ROOT.glob("*.md"),
        *(ROOT / "configs").rglob("*.gin"),
        *(ROOT / "scripts").glob("*.sh"),
    ]
    named = {
        (text.name, file)
        for text in texts
        for file in re.findall(
            r"(?:configs|scripts)/[\w/.-]*\.(?:gin|sh)\b", text.read_text("utf-8")
        )
    }
    assert len(named) > 50
    assert not {
        (where, file)
        for where, file in named
        if not (ROOT / file).is_file() and "X.gin" not in file
    }

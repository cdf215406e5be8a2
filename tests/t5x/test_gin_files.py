# SPDX-License-Identifier: Apache-2.0
"""The gin files of configs/t5x without T5X: they parse, include, and say what the engine's files say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kcmoe.config import gin_files
from kcmoe.config.fields import check_names
from kcmoe.config.model import ModelConfig

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs/t5x").glob("*.gin"))
RUNS = [file for file in FILES if "_" in file.stem]  # what people launch: pretrain_base, …
PARTS = [file for file in FILES if "_" not in file.stem]  # what those include: model, train, …
SHARED = [
    file for name in ("sizes", "runs", "tasks") for file in (ROOT / "configs" / name).glob("*.gin")
]
# Macros that a file of configs/t5x may set though a shared file sets them too, with the reason.
TAKEN_BACK = {
    "MODEL_DIR": "required for training, meaningless for evaluation",
    "INITIAL_CHECKPOINT_PATH": "the same; required to continue",
    "CHECKPOINT_PATH": "required to evaluate, whichever run file is read before",
    "TRAIN_STEPS": "counts on from the checkpoint that is continued",
    "MODEL": "the dense twin is another class of T5X",
}


def name(path: Path) -> str:
    return path.stem


def macros_of(path: Path) -> gin_files.Macros:
    return gin_files.parse([str(path.relative_to(ROOT))], foreign=True)


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


def test_there_is_a_file_for_everything_people_do() -> None:
    wanted = {"pretrain_base", "continue_base"}
    wanted |= {
        f"{verb}_{task}_base"
        for verb in ("finetune", "evaluate", "infer")
        for task in ("nsmc", "kornli")
    }
    assert wanted <= {file.stem for file in RUNS}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file_parses_and_its_includes_are_ours_and_there(path: Path) -> None:
    macros_of(path)
    for include in includes(path):
        assert include.startswith("configs/"), (
            "neither Flaxformer's nor T5X's gin files are included"
        )
        assert (ROOT / include).is_file()


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_every_macro_used_is_set_and_every_macro_set_is_known(path: Path) -> None:
    macros = macros_of(path)
    text = "\n".join(re.sub(r"#.*", "", file.read_text("utf-8")) for file in including(path))
    used = set(re.findall(r"%([A-Z][A-Z0-9_]*)", text))
    anything_set = set().union(*map(own_macros, including(path)))
    assert len(used) > 25  # the bindings really are written with macros
    assert used <= anything_set
    check_names(macros)


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_the_macros_equal_those_of_the_engine(path: Path) -> None:
    (run,) = [file for file in including(path) if file.parent.name == "runs" and "_" in file.stem]
    theirs = macros_of(path)
    ours = gin_files.parse([str(run.relative_to(ROOT))])
    assert len(ours) > 35
    for macro in ours:
        if macro not in TAKEN_BACK:
            assert theirs[macro] == ours[macro], macro
    engine = ["configs/engine/engine.gin"]
    of_t5x, of_engine = (
        ModelConfig.from_macros(gin_files.parse([*engine, str(f.relative_to(ROOT))], foreign=True))
        for f in (path, run)
    )
    assert of_t5x == of_engine


def test_more_experts_are_one_override() -> None:
    more = gin_files.parse(["configs/t5x/pretrain_base.gin"], ["NUM_EXPERTS=64"], foreign=True)
    assert more["NUM_EXPERTS"] == more["NUM_EXPERT_PARTITIONS"] == 64


def test_no_number_stands_twice() -> None:
    shared = set().union(*map(own_macros, SHARED))
    for path in FILES:
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


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file_opens_with_its_contract(path: Path) -> None:
    text = path.read_text("utf-8")
    for heading in ("# Provides: ", "# Required: "):
        assert heading in text
    if path in RUNS:
        for heading in (
            "# Commonly overridden: ",
            "# Command: ",
            "# Hardware: ",
            "# Wall time: ",
            "# Expect: ",
        ):
            assert heading in text
        program = {"evaluate": "eval", "infer": "infer"}.get(path.stem.split("_")[0], "train")
        assert (
            f"python -m t5x.{program} \\\n#              --gin_file=configs/t5x/{path.name}" in text
        )


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

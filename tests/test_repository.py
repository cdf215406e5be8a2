# SPDX-License-Identifier: Apache-2.0
"""Rules of the repository that a reviewer would otherwise have to remember."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(
    path
    for folder in ("kcmoe", "tests", "benchmarks", "scripts")
    for path in (ROOT / folder).rglob("*.py")
)
SHELL = sorted((ROOT / "scripts").glob("*.sh"))
DOCUMENTS = sorted(ROOT.glob("*.md")) + sorted((ROOT / "vocab").glob("*.md"))
TEXTS = [*CODE, *SHELL, *DOCUMENTS, *sorted((ROOT / "configs").rglob("*.gin"))]
CEILING_LINES = 350

# What loading and predicting must do without: neither TensorFlow's world nor the morpheme analyser.
FOREIGN = ("tensorflow", "tensorflow_text", "seqio", "t5", "t5x", "flaxformer", "MeCab")
# Layers from top to bottom; a module imports its own layer and those below.
LAYERS = (
    {"__main__", "cli"},
    {"tools", "t5x"},
    {"evaluation"},
    {"training", "inference"},
    {"corpus", "tokenizer"},
    {"data", "checkpoint"},
    {"model", "tasks", "vocabulary"},
    {"config", "tree"},
    {"fits"},
    {"io"},
    {"errors"},
)
# Imports across layers that are meant, each with its reason.
ALLOWED = {
    (
        "training",
        "evaluation",
    ): "evaluation during training runs the evaluation of `kcmoe evaluate`",
    ("checkpoint", "training"): "the train state's tree is the checkpoint's",
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports_of(path: Path) -> set[str]:
    """Modules imported anywhere in the file, but not those only for the type checker."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer_of(part: str) -> int | None:
    return next((i for i, parts in enumerate(LAYERS) if part in parts), None)


@pytest.mark.parametrize("path", CODE, ids=name)
def test_files_stay_short_and_carry_the_licence(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= CEILING_LINES, f"{len(lines)} lines; split the file by idea"
    assert lines[0] == "# SPDX-License-Identifier: Apache-2.0"


@pytest.mark.parametrize("path", SHELL, ids=name)
def test_scripts_carry_the_licence_and_parse(path: Path) -> None:
    assert "# SPDX-License-Identifier: Apache-2.0" in path.read_text("utf-8").splitlines()[:2]
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_no_machine_paths(path: Path) -> None:
    # The first alternative is split so that this file does not find itself.
    pattern = re.compile(r"(?<![\w.}])/(wor" r"k|roo" r"t|hom" r"e|opt|User" r"s)/\w")
    found = [line for line in path.read_text("utf-8").splitlines() if pattern.search(line)]
    assert not found


def test_every_package_folder_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "kcmoe").rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_every_module_has_a_layer() -> None:
    package = ROOT / "kcmoe"
    parts = {
        path.relative_to(package).parts[0].removesuffix(".py") for path in package.rglob("*.py")
    }
    assert parts - {"__init__"} == set().union(*LAYERS)


def test_layers_point_one_way() -> None:
    wrong = []
    for path in CODE:
        if path.relative_to(ROOT).parts[0] != "kcmoe" or len(path.relative_to(ROOT).parts) == 1:
            continue
        part = path.relative_to(ROOT / "kcmoe").parts[0].removesuffix(".py")
        own = layer_of(part)
        for module in imports_of(path):
            pieces = module.split(".")
            other = layer_of(pieces[1]) if pieces[0] == "kcmoe" and len(pieces) > 1 else None
            upwards = own is not None and other is not None and other < own
            if upwards and (part, pieces[1]) not in ALLOWED:
                wrong.append(f"{name(path)} imports {module}")
    assert not wrong


def test_only_t5x_imports_the_other_stack() -> None:
    wrong = [
        f"{name(path)} imports {module}"
        for path in CODE
        if path.is_relative_to(ROOT / "kcmoe") and not path.is_relative_to(ROOT / "kcmoe/t5x")
        for module in imports_of(path)
        if module.split(".")[0] in set(FOREIGN) - {"MeCab"}
        or (module.split(".")[0] == "MeCab" and not path.is_relative_to(ROOT / "kcmoe/tokenizer"))
    ]
    assert not wrong


def test_buckets_have_one_door() -> None:
    """fsspec is imported where it is set up for them, and nowhere else."""
    wrong = [
        name(path)
        for path in CODE
        if path.is_relative_to(ROOT / "kcmoe") and path != ROOT / "kcmoe/io/remote.py"
        if {module.split(".")[0] for module in imports_of(path)} & {"fsspec", "gcsfs"}
    ]
    assert not wrong


def test_engine_imports_with_the_other_stack_blocked() -> None:
    """Every module but `kcmoe.t5x` imports where TensorFlow, T5X and MeCab cannot be found."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in CODE
        if path.is_relative_to(ROOT / "kcmoe")
        and not path.is_relative_to(ROOT / "kcmoe/t5x")
        and path.name != "__main__.py"
    ]
    program = f"""
import importlib, sys
for blocked in {FOREIGN!r}:
    sys.modules[blocked] = None  # makes `import blocked` fail
for module in {modules!r}:
    importlib.import_module(module)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_help_needs_no_jax() -> None:
    """`--help` answers at once, since it imports nothing heavy."""
    program = """
import contextlib, io, sys
sys.modules["jax"] = sys.modules["grain"] = None
from kcmoe import cli
assert cli.run(["--help"]) == 0
for verb in cli.VERBS:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        assert cli.run([verb, "--help"]) == 0, verb
    assert "kcmoe " + verb in out.getvalue(), verb
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_the_tests_can_run_on_four_devices() -> None:
    import jax

    assert len(jax.devices()) >= 4 or "cpu" not in {d.platform for d in jax.devices()}


def test_wheel_carries_configs_vocabulary_and_samples(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="building needs setuptools")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={tmp_path}"],
        check=True,
        cwd=ROOT,
    )
    shipped = [p for folder in ("configs", "vocab") for p in (ROOT / folder).rglob("*.*")]
    shipped += list((ROOT / "kcmoe").rglob("*.tsv"))
    assert len(shipped) > 20
    for path in shipped:
        inside = path.relative_to(ROOT)
        inside = inside if inside.parts[0] == "kcmoe" else Path("kcmoe") / inside
        assert (tmp_path / inside).exists()

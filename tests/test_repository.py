# SPDX-License-Identifier: Apache-2.0
"""Rules of the repository that a reviewer would otherwise have to remember."""

from __future__ import annotations

import ast
import functools
import graphlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kcmoe

ROOT = Path(__file__).parents[1]
CODE = sorted(
    path
    for folder in ("kcmoe", "huggingface", "tests", "benchmarks", "scripts")
    for path in (ROOT / folder).rglob("*.py")
)
PACKAGE = [path for path in CODE if path.is_relative_to(ROOT / "kcmoe")]
SHELL = sorted((ROOT / "scripts").glob("*.sh"))
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "vocab").glob("*.md"), *(ROOT / "weights").rglob("*.md")]
TEXTS = [*CODE, *SHELL, *DOCUMENTS, *sorted((ROOT / "configs").rglob("*.gin"))]
CEILING_LINES = 350

# What loading and predicting must do without: neither TensorFlow's world nor the morpheme analyser.
FOREIGN = ("tensorflow", "tensorflow_text", "seqio", "t5", "t5x", "flaxformer", "MeCab")
# From the ground up; a package or module imports only what stands before it. The first lines are the
# spine, the last are the wings, which nothing else needs.
FLOORS = (
    *("errors", "io", "tree", "fits", "config", "hosts", "vocabulary", "tasks"),
    *("model", "checkpoint", "data", "training", "inference", "evaluation"),
    *("train", "serve", "corpus", "tokenizer", "t5x", "tools", "cli", "__main__"),
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def part_of(module: str) -> str:
    """The package or module directly below kcmoe; "" for kcmoe itself, the door that `kcmoe.load` is."""
    return ".".join(module.split(".")[1:2])


MODULES = {module_of(path): path for path in PACKAGE}


def imports_of(path: Path) -> set[str]:
    """Names imported anywhere in the file: at the top, inside functions, and for the type checker."""
    own = list(path.relative_to(ROOT).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*own[: len(own) - node.level], *([node.module] if node.module else [])]
            module = ".".join(base) if node.level else node.module
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def modules_in_strings(path: Path) -> set[str]:
    """Modules of ours that the file names in a string: for importlib, `python -m`, or a table of both."""
    tree = ast.parse(path.read_text("utf-8"))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]  # docstrings
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in texts:
            found |= {node.value} if node.value in MODULES and "." in node.value else set()
            # A program given to `python -c`, or lines given to gin.
            for module, what in re.findall(r"\bfrom (kcmoe[\w.]*) import (\w+)", node.value):
                found.add(f"{module}.{what}")
        elif isinstance(node, ast.List | ast.Tuple):
            words = [getattr(item, "value", None) for item in node.elts]
            pairs = itertools.pairwise(words)
            found |= {
                f"{module}.__main__" for flag, module in pairs if (flag, module) == ("-m", "kcmoe")
            }
    return found


def resolved(imported: str) -> str | None:
    """The module of ours that an imported name is, or is in; None for other people's."""
    if imported in MODULES:
        return imported
    parent = imported.rpartition(".")[0]
    # The version is a fact about the whole package, no floor of it.
    return parent if parent in MODULES and imported != "kcmoe.__version__" else None


@functools.cache
def import_graph() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, in whatever way."""
    graph = {}
    for module, path in MODULES.items():
        names = imports_of(path) | modules_in_strings(path)
        graph[module] = {found for one in names if (found := resolved(one))} - {module}
    return graph


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Circles of the graph, one at a time: each is broken at its last arrow before the next is looked for."""
    graph = {module: set(others) for module, others in graph.items()}
    while True:
        try:
            graphlib.TopologicalSorter(graph).prepare()
            return
        except graphlib.CycleError as error:
            circle = error.args[1][::-1]  # each imports the next
            yield circle
            graph[circle[0]].remove(circle[1])


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
    assert all((path.parent / "__init__.py").exists() for path in PACKAGE)


def test_every_part_has_a_floor() -> None:
    assert {part_of(module) for module in MODULES} - {""} == set(FLOORS)


@pytest.mark.parametrize("part", FLOORS)
def test_imports_point_down(part: str) -> None:
    """Also those inside functions, for the type checker, and by the name of a module in a string."""
    below = FLOORS[: FLOORS.index(part) + 1]
    wrong = [
        f"{module} imports {other}"
        for module, others in import_graph().items()
        if part_of(module) == part
        for other in sorted(others)
        if part_of(other) not in below
    ]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_one_another_in_a_circle() -> None:
    found = [" -> ".join(circle) for circle in circles(import_graph())]
    assert not found, "\n".join(found)


def test_the_import_graph_sees_every_kind_of_import(tmp_path, monkeypatch) -> None:
    """Of a toy package: at the top, in a function, for the type checker, relative, and in strings."""
    files = {
        "__init__": "",
        "a": "from kcmoe import b\ndef f():\n    import kcmoe.c",
        "b": "if TYPE_CHECKING:\n    from kcmoe.c import Thing",
        "c": "from . import d\nfrom .e import thing",
        "d": "run(['-m', 'kcmoe.a'])",
        "e": '"""Like kcmoe.a."""\nTABLE = {"x": "kcmoe.f"}',
        "f": "PROGRAM = 'from kcmoe.b import x'\nrun(['python', '-m', 'kcmoe'])",
        "__main__": "",
    }
    for module, text in files.items():
        (tmp_path / "kcmoe" / f"{module}.py").parent.mkdir(exist_ok=True)
        (tmp_path / "kcmoe" / f"{module}.py").write_text(text)
    paths = sorted(tmp_path.rglob("*.py"))
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "MODULES", {module_of(path): path for path in paths})
    graph = {
        module.removeprefix("kcmoe."): found for module, found in import_graph.__wrapped__().items()
    }
    graph = {m: {other.removeprefix("kcmoe.") for other in found} for m, found in graph.items()}
    assert graph == {
        "kcmoe": set(),
        **{"a": {"b", "c"}, "b": {"c"}, "c": {"d", "e"}, "d": {"a"}, "e": {"f"}},
        **{"f": {"b", "__main__"}, "__main__": set()},
    }
    # a -> (b ->) c -> d -> a, and c -> e -> f -> b -> c
    assert {frozenset(circle) for circle in circles(graph)} >= {frozenset("bcef")}
    assert not list(circles({"a": {"b"}, "b": set()}))


def test_only_t5x_imports_the_other_stack() -> None:
    wrong = [
        f"{name(path)} imports {module}"
        for path in PACKAGE
        if not path.is_relative_to(ROOT / "kcmoe/t5x")
        for module in imports_of(path)
        if module.split(".")[0] in set(FOREIGN) - {"MeCab"}
        or (module.split(".")[0] == "MeCab" and not path.is_relative_to(ROOT / "kcmoe/tokenizer"))
    ]
    assert not wrong


def test_buckets_have_one_door() -> None:
    """fsspec is imported where it is set up for them, and nowhere else."""
    wrong = [
        name(path)
        for path in PACKAGE
        if path != ROOT / "kcmoe/io/remote.py"
        if {module.split(".")[0] for module in imports_of(path)} & {"fsspec", "gcsfs"}
    ]
    assert not wrong


def test_engine_imports_with_the_other_stack_blocked() -> None:
    """Every module but `kcmoe.t5x` imports where TensorFlow, T5X and MeCab cannot be found."""
    modules = [m for m in MODULES if part_of(m) not in ("t5x", "__main__")]
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


def test_dataclasses_have_names_of_their_own() -> None:
    """Two of one name make a reader look twice."""
    found: dict[str, list[str]] = {}
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                marks = [ast.unparse(mark) for mark in (*node.decorator_list, *node.bases)]
                if any("dataclass" in mark or mark == "NamedTuple" for mark in marks):
                    found.setdefault(node.name, []).append(name(path))
    twice = [f"{each}: {', '.join(paths)}" for each, paths in found.items() if len(paths) > 1]
    assert not twice, "\n".join(twice)


def test_the_hosted_checks_are_the_first_commands_of_the_readme_on_every_python() -> None:
    workflow = (ROOT / ".github/workflows/tests.yml").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8").partition("## First five minutes")[2]
    commands = re.findall(r"^(bash \S+)", readme.partition("```bash")[2].partition("```")[0], re.M)
    assert len(commands) == 2
    assert json.loads(re.search(r"command: (\[.*\])", workflow)[1]) == commands
    pythons = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.py").read_text("utf-8"))
    assert json.loads(re.search(r"python: (\[.*\])", workflow)[1]) == pythons


def test_the_citation_names_this_version_the_paper_and_the_original() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {kcmoe.__version__}\n" in citation
    assert "arXiv:2202.08906" in citation
    assert "https://github.com/Quasar-Kim/kc-moe" in citation


def test_wheel_carries_configs_vocabulary_and_samples(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="building needs setuptools")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={tmp_path}"],
        check=True,
        cwd=ROOT,
    )
    folders = ("configs", "huggingface", "vocab", "weights")
    shipped = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
    shipped += list((ROOT / "kcmoe").rglob("*.tsv"))
    assert len(shipped) > 20
    for path in shipped:
        inside = path.relative_to(ROOT)
        inside = inside if inside.parts[0] == "kcmoe" else Path("kcmoe") / inside
        assert (tmp_path / inside).exists()

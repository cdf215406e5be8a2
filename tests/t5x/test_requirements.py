# SPDX-License-Identifier: Apache-2.0
"""What a person reads where SeqIO, T5X or Flaxformer is missing or of another version."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from kcmoe.errors import UserError

Load = Callable[[str], ModuleType]
NAMES = ["t5x", "flaxformer", "airio", "jestimator"]


@pytest.fixture
def requirements(load: Load) -> ModuleType:
    return load("requirements")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Lays packages of these names before the real ones, with the record pip keeps of a git address."""
    monkeypatch.syspath_prepend(tmp_path)
    for module in [name for name in sys.modules if name.split(".")[0] in NAMES]:
        monkeypatch.delitem(sys.modules, module)

    def installer(
        package: str, commit: str | None, interface: tuple[tuple[str, str], ...] = ()
    ) -> None:
        record = tmp_path / f"{package}-0.1.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
        if commit:
            source = {"url": "https://x", "vcs_info": {"vcs": "git", "commit_id": commit}}
            (record / "direct_url.json").write_text(json.dumps(source))
        (tmp_path / package).mkdir()
        for module, name in interface:
            if module.split(".")[0] == package:
                file = tmp_path / (module.replace(".", "/") + ".py")
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("a") as text:
                    text.write(f"{name} = object()\n")
        for folder in [tmp_path / package, *(tmp_path / package).rglob("*/")]:
            (folder / "__init__.py").touch()
        importlib.invalidate_caches()

    yield installer
    for module in [name for name in sys.modules if name.split(".")[0] in NAMES]:
        del sys.modules[module]


def test_all_four_packages_are_pinned_to_a_commit(requirements: ModuleType) -> None:
    commits = requirements.tested_commits()
    assert list(commits) == NAMES
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in commits.values())


def test_without_seqio_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seqio", None)
    for module in [name for name in sys.modules if name.startswith("kcmoe.t5x")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(
        UserError, match=r"seqio.*pip install 'kcmoe\[seqio\]'.*t5x@cc342d4"
    ) as caught:
        importlib.import_module("kcmoe.t5x")
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize("missing", NAMES)
def test_a_missing_package_is_named_with_the_tested_commits(
    missing: str,
    requirements: ModuleType,
    install: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in set(NAMES) - {missing}:
        install(name, None)
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not there, where it is
    with pytest.raises(UserError, match=rf"^{missing} not installed: .*flaxformer@399ea3a"):
        requirements.check_t5x()


def test_another_commit_is_a_warning_that_names_both(
    requirements: ModuleType, install: Callable[..., None]
) -> None:
    for name, tested in requirements.tested_commits().items():
        commit = "1234567" + "0" * 33 if name == "t5x" else tested
        install(name, commit, requirements.INTERFACE)
    with pytest.warns(
        UserWarning, match=r"^t5x is at 1234567, tested was cc342d4\. If it fails: pip"
    ):
        requirements.check_t5x()


def test_the_tested_commits_pass_without_a_word(
    requirements: ModuleType, install: Callable[..., None]
) -> None:
    for name, commit in requirements.tested_commits().items():
        install(name, commit, requirements.INTERFACE)
        assert requirements.installed_commit(name) == commit
    requirements.check_t5x()  # pytest turns warnings into errors


@pytest.mark.parametrize("lost", [0, -1])
def test_a_version_without_what_we_call_is_an_error(
    lost: int, requirements: ModuleType, install: Callable[..., None]
) -> None:
    module, name = requirements.INTERFACE[lost]
    for package, commit in requirements.tested_commits().items():
        install(package, commit, tuple(set(requirements.INTERFACE) - {(module, name)}))
    package = module.split(".")[0]
    with pytest.raises(UserError, match=rf"{package} does not work with Kc-MoE .*t5x@cc342d4"):
        requirements.check_t5x()


def test_a_package_without_a_record_has_no_commit(
    requirements: ModuleType, install: Callable[..., None]
) -> None:
    install("t5x", None)
    assert requirements.installed_commit("t5x") is None
    assert requirements.installed_commit("never_installed_anywhere") is None


@pytest.mark.t5x
@pytest.mark.filterwarnings("default")  # T5X uses what JAX deprecates
def test_the_t5x_installed_here_is_one_that_works(requirements: ModuleType) -> None:
    requirements.check_seqio()
    requirements.check_t5x()

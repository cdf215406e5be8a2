# SPDX-License-Identifier: Apache-2.0
"""What a person reads where SeqIO, T5X or Flaxformer is missing or of another version."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from kcmoe.errors import UserError

Load = Callable[[str], ModuleType]
NAMES = ["t5x", "flaxformer", "airio", "jestimator"]


@pytest.fixture
def requirements(load: Load) -> ModuleType:
    return load("requirements")


def pretend_installed(folder: Path, package: str, commit: str | None) -> None:
    """Lays down the record pip keeps of a package installed from a git address."""
    record = folder / f"{package}-0.1.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
    if commit:
        source = {"url": "https://x", "vcs_info": {"vcs": "git", "commit_id": commit}}
        (record / "direct_url.json").write_text(json.dumps(source))


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
    missing: str, requirements: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "_is_here", lambda name: name != missing)
    with pytest.raises(UserError, match=rf"^{missing} not installed: .*flaxformer@399ea3a"):
        requirements.check_t5x()


def test_another_commit_is_a_warning_that_names_both(
    requirements: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name in NAMES:
        commit = "1234567" + "0" * 33 if name == "t5x" else requirements.tested_commits()[name]
        pretend_installed(tmp_path, name, commit)
    monkeypatch.setattr(requirements, "_is_here", lambda name: True)
    monkeypatch.setattr(requirements, "_INTERFACE", (("json", "loads"),))
    with pytest.warns(
        UserWarning, match=r"^t5x is at 1234567, tested was cc342d4\. If it fails: pip"
    ):
        requirements.check_t5x()


def test_the_tested_commits_pass_without_a_word(
    requirements: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, commit in requirements.tested_commits().items():
        pretend_installed(tmp_path, name, commit)
        assert requirements.installed_commit(name) == commit
    monkeypatch.setattr(requirements, "_is_here", lambda name: True)
    monkeypatch.setattr(requirements, "_INTERFACE", (("json", "loads"),))
    requirements.check_t5x()  # pytest turns warnings into errors


@pytest.mark.parametrize("interface", [("json", "no_such_name"), ("no_such_module", "x")])
def test_a_version_without_what_we_call_is_an_error(
    interface: tuple[str, str], requirements: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "_is_here", lambda name: True)
    monkeypatch.setattr(requirements, "_INTERFACE", (interface,))
    monkeypatch.setattr(requirements, "installed_commit", lambda name: None)
    with pytest.raises(UserError, match=rf"{interface[0]} does not work with Kc-MoE .*t5x@cc342d4"):
        requirements.check_t5x()


def test_a_package_without_a_record_has_no_commit(
    requirements: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    pretend_installed(tmp_path, "checkout", None)
    assert requirements.installed_commit("checkout") is None
    assert requirements.installed_commit("never_installed_anywhere") is None


@pytest.mark.t5x
def test_the_t5x_installed_here_is_one_that_works(requirements: ModuleType) -> None:
    requirements.check_seqio()
    requirements.check_t5x()

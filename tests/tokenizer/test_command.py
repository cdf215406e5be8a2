# SPDX-License-Identifier: Apache-2.0
"""`kcmoe tokenizer`: what it prints, its exit statuses, and that help needs nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kcmoe import cli
from kcmoe.config import gin_files
from kcmoe.config.tokenizer import TokenizerConfig
from kcmoe.errors import UserError
from kcmoe.io import resources
from kcmoe.tokenizer import model_file, report
from kcmoe.vocabulary import Vocabulary


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "--help"], ["report", "--help"]])
def test_help_has_an_example(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):  # how argparse ends after --help
        assert cli.run(["tokenizer", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "kcmoe tokenizer" in printed
    assert "example" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tran"], "Did you mean train?"),
        (["train"], "--gin_file=configs/tokenizer/unigram_32k.gin"),
        (["train", "--gin_file=configs/tokenizer/unigram_32k.gin", "--gin.TOKENIZER_VOCAB=1"],
         "nothing is called TOKENIZER_VOCAB"),
        (["train", "--gin_file=configs/tokenizer/unigram_32k.gin", "--gin.DATA_DIR='nowhere'"],
         "no file matches"),
        (["train", "--gin_file=configs/tokenizer/unigram_32k.gin",
          "--gin.TOKENIZER_SEGMENTATION='morpheme'"], "Did you mean morphemes"),
        (["train", "--gin_file=configs/tokenizer/unigram_32k.gin", "--gin.TOKENIZER_CORPUS=[]"],
         "must name at least one file"),
        (["report"], "add --text=FILE"),
        (["report", "absent.model", "--text=absent.txt"], "absent.txt"),
        (["report", "absent.model", "--text=samples:comments.txt"], "absent.model is not there"),
        (["report", "/dev/null", "--text=samples:comments.txt"], "/dev/null cannot be read: it is a device"),
        (["report", "--text=samples:comments.txt", "--encoding=hex"],
         "--encoding = 'hex': hex is no encoding of text files. Usual are utf-8"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["tokenizer", *arguments]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("kcmoe tokenizer: ")
    assert message in printed
    assert "\n" not in printed


def test_train_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = resources.find("kcmoe/samples/comments.txt")
    arguments = [
        "train",
        "--gin_file=configs/tokenizer/unigram_32k.gin",
        f'--gin.TOKENIZER_CORPUS=["{samples}"]',
        f'--gin.TOKENIZER_OUTPUT="{tmp_path / "mine.model"}"',
        "--gin.TOKENIZER_VOCAB_SIZE=2000",
        "--gin.TOKENIZER_SEGMENTATION='none'",
        "--gin.TOKENIZER_WORKERS=1",
    ]
    assert cli.run(["tokenizer", *arguments]) == 0
    printed = capsys.readouterr().out
    assert printed.index("expected: ") < printed.index("\nread ")
    assert "mine.100extra.model" in printed
    before = (tmp_path / "mine.model").read_bytes()
    assert cli.run(["tokenizer", *arguments]) == 2
    assert "mine.model exists already" in capsys.readouterr().err
    assert (tmp_path / "mine.model").read_bytes() == before
    models = [str(tmp_path / "mine.model"), str(resources.find("vocab/kcmoe_32k.model"))]
    assert cli.run(["tokenizer", "report", *models, f"--text={samples}", "--lines=50"]) == 0
    printed = capsys.readouterr().out
    made = (tmp_path / "mine.model").read_bytes()
    assert cli.run(["tokenizer", *arguments]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "mine.model").read_bytes() == made
    assert "tokens per character" in printed
    assert "| mine | kcmoe_32k |" in " ".join(printed.split())


def test_damaged_lines_are_left_out_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "t.txt"
    text.write_bytes("재미있는 영화\n".encode() * 9 + b"\xff bad\n")
    assert cli.run(["tokenizer", "report", f"--text={text}"]) == 2
    assert "or give --lenient to leave such places out" in capsys.readouterr().err
    assert cli.run(["tokenizer", "report", f"--text={text}", "--lenient"]) == 0
    shown = capsys.readouterr()
    assert "left out 1 x not in the encoding; first at" in shown.err and "line 10" in shown.err
    assert "9 lines" in shown.out


def test_another_encoding_and_a_named_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    korean = tmp_path / "k.txt"
    korean.write_bytes("글자 문장입니다 그래요 정말로\n".encode("cp949") * 50)
    assert cli.run(["tokenizer", "report", f"--text={korean}"]) == 2
    assert "It looks like CP949 (EUC-KR); give --encoding=cp949" in capsys.readouterr().err
    assert cli.run(["tokenizer", "report", f"--text={korean}", "--encoding=cp949"]) == 0
    train = ["tokenizer", "train", "--gin_file=configs/tokenizer/unigram_32k.gin"]
    train += [
        f'--gin.TOKENIZER_CORPUS=["{korean}"]',
        f'--gin.TOKENIZER_OUTPUT="{tmp_path}/m.model"',
    ]
    train += ["--gin.TOKENIZER_SEGMENTATION='none'"]
    assert cli.run(train) == 2
    assert "give --encoding=cp949" in capsys.readouterr().err
    assert cli.run([*train, "--encoding=cp949"]) == 2
    assert "TOKENIZER_VOCAB_SIZE" in capsys.readouterr().err
    table = tmp_path / "x.txt"
    table.write_text("id\tdocument\n1\t정말 재미있었어요\n", encoding="utf-8")
    assert report.read_text(f"{table}:document").lines == ["정말 재미있었어요"]
    assert cli.run(["tokenizer", "report", f"--text={table}:body"]) == 2
    assert "has no column body" in capsys.readouterr().err


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let children be interrupted: a shell that starts the tests in the background ignores SIGINT,
    and children inherit what is ignored, but not what is handled."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, stop: signal.Signals) -> None:
    (tmp_path / "temporary").mkdir()
    command = [
        *(sys.executable, "-u", "-m", "kcmoe", "tokenizer", "train"),
        "--gin_file=configs/tokenizer/unigram_32k.gin",
        f'--gin.TOKENIZER_CORPUS=["{resources.find("kcmoe/samples/comments.txt")}"]',
        f'--gin.TOKENIZER_OUTPUT="{tmp_path / "out" / "a.model"}"',
        "--gin.TOKENIZER_SEGMENTATION='none'",
    ]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("corpus: ")
        running.send_signal(stop)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert errors.strip() == "kcmoe tokenizer: interrupted"
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_parsing_loads_no_tokenizer() -> None:
    program = (
        "import sys; from kcmoe.tokenizer import command; command.main(['--help']); "
        "sys.exit(str({'sentencepiece', 'MeCab', 'pyarrow', 'jax'} & set(sys.modules) or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""


def test_no_default_output_is_what_ships() -> None:
    macros = gin_files.parse(["configs/tokenizer/unigram_32k.gin"])
    settings = TokenizerConfig.from_macros(macros)
    for path in (settings.output, settings.twin):
        assert not any((root / path).exists() for root in resources.roots()), path


def test_a_report_does_not_replace_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("mine")
    samples = resources.find("kcmoe/samples/comments.txt")
    arguments = ["tokenizer", "report", f"--text={samples}", "--lines=5", f"--json={kept}"]
    assert cli.run(arguments) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert kept.read_text() == "mine"
    assert cli.run([*arguments, "--overwrite"]) == 0
    assert kept.read_text() != "mine"
    assert cli.run([*arguments[:-1], f"--json={tmp_path}", "--overwrite"]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_sentinels_are_appended_to_the_model_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = resources.find("vocab/kcmoe_32k.model")
    output = tmp_path / "new" / "theirs.model"
    command = ["tokenizer", "add-sentinels", str(plain), str(output)]
    assert cli.run([*command, "--count=7"]) == 0
    before, after = Vocabulary(plain), Vocabulary(output)
    assert (before.num_sentinels, after.num_sentinels) == (0, 7)
    assert after.size == before.size + 7
    text = "정말 재밌어요 <unused3>"
    assert after.encode(text) == before.encode(text)
    capsys.readouterr()
    for arguments, words in (
        (command, "exists already"),
        ([*command[:2], str(output), str(tmp_path / "b.model")], "7 sentinels already"),
        ([*command[:3], str(tmp_path / "b.bin")], "must end in .model"),
        ([*command[:2], str(Path(__file__)), str(tmp_path / "b.model")], "not a SentencePiece"),
    ):
        assert cli.run(arguments) == 2
        assert words in capsys.readouterr().err


def test_a_model_with_other_ids_names_the_flags(tmp_path: Path) -> None:
    proto = model_file.parse(resources.find("vocab/kcmoe_32k.model").read_bytes())
    proto.pieces[0].type, proto.pieces[1].type = proto.pieces[1].type, proto.pieces[0].type
    proto.pieces[0].piece, proto.pieces[1].piece = "</s>", "<pad>"
    proto.trainer_spec.pad_id, proto.trainer_spec.eos_id = 1, 0
    (tmp_path / "other.model").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match="--pad_id=0 --eos_id=1 --bos_id=-1"):
        Vocabulary(tmp_path / "other.model")

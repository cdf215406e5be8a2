# SPDX-License-Identifier: Apache-2.0
"""`kcmoe data` as a person types it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from kcmoe import cli
from kcmoe.corpus import command, inspection


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KCMOE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def run(capsys, *argv):
    status = cli.run(["data", *map(str, argv)])
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.mark.parametrize("action", ["list", "download", "prepare", "inspect"])
def test_every_action_has_help_with_an_example(action, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([action, "--help"])
    assert stop.value.code == 0
    assert f"kcmoe data {action}" in capsys.readouterr().out.partition("example")[2]


def test_list_says_source_licence_and_presence(capsys, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "nsmc").mkdir(exist_ok=True)
        (tmp_path / "nsmc" / f"{split}.parquet").touch()
    status, out, _ = run(capsys, "list", f"--data_dir={tmp_path}")
    assert status == 0
    lines = {
        line.split()[0]: line.split()[1] for line in out.splitlines() if not line.startswith(" ")
    }
    assert (lines["nsmc"], lines["kornli"]) == ("present", "absent")
    assert "CC0 1.0" in out
    assert "gs://kc-moe/checkpoint" in out
    assert "not verified: no public checksum" in out


def test_list_says_which_tables_and_how_many_rows(capsys, tmp_path):
    for name in ("kornli/test", "kornli/validation", "comments/train-0"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.parquet").touch()

    def shown(name):
        _, out, _ = run(capsys, "list", f"--data_dir={tmp_path}")
        return (
            next(line for line in out.splitlines() if line.startswith(name + " "))
            .partition(" ")[2]
            .lstrip()
        )

    assert shown("kornli").startswith("partly: validation, test ")
    assert shown("comments").startswith("present, no manifest.json ")
    shards = [{"file": f"train-{i}", "bytes": 1, "sha256": "", "rows": 1500} for i in range(2)]
    manifest = tmp_path / "comments" / "manifest.json"
    manifest.write_text(json.dumps({"shards": shards}), encoding="utf-8")
    assert shown("comments").startswith("present, 3,000 rows ")
    manifest.write_text("{", encoding="utf-8")
    assert shown("comments").startswith("present, damaged manifest.json ")


@pytest.mark.parametrize(("text", "hits"), [("이런 글은 말뭉치에 없습니다", 0), ("", 1)])
def test_exclude_says_what_it_did(capsys, tmp_path, text, hits):
    corpus, held = tmp_path / "corpus.txt", tmp_path / "held.txt"
    texts = ["첫째 댓글입니다 아주 좋네요", "둘째 댓글입니다 아주 좋네요"]
    corpus.write_text("\n".join(texts), encoding="utf-8")
    held.write_text(f"{text or texts[0]}\n아무 글\n", encoding="utf-8")
    argv = ["prepare", corpus, f"--output={tmp_path}/out", f"--exclude={held}", "--workers=1"]
    for _ in range(2):  # made, and found made
        status, out, _ = run(capsys, *argv)
        assert status == 0
        assert f"  left out: {hits} excluded (2 texts of {held})\n" in out


def test_the_sample_is_prepared_and_then_trained_on(capsys, tmp_path):
    status, out, _ = run(
        capsys, "prepare", "--sample", f"--output={tmp_path}", "--validation=50", "--workers=1"
    )
    assert status == 0
    assert "train-00000-of-00001.parquet" in out
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["rows_kept"] > 500
    assert manifest["shards"][0]["rows"] == 50
    own = [
        "--gin.MIXTURE_OR_TASK_NAME='mine'",
        f"--gin.DATA_DIR='{tmp_path}'",
        "--gin.TASK_TRAIN_FILES='train-*.parquet'",
        "--gin.TASK_VALIDATION_FILES='validation.parquet'",
        "--gin.TASK_TEXT_COLUMN='text'",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 128, 'targets': 32}",
    ]
    status, out, err = run(capsys, "inspect", *own, "--examples=1")
    assert (status, err) == (0, "")
    assert "also in train: 0 of 50 validation rows" in out
    assert "row 0 inputs" in out
    assert "<extra_id_0>" in out


def test_inspect_shows_rows_as_the_model_gets_them(capsys):
    """What a cut removes is not shown: of KorNLI's prompt, the hypothesis at the end."""
    nli = ["--gin_file=configs/tasks/sample_nli.gin", "--split=validation", "--examples=1"]
    status, whole, _ = run(capsys, "inspect", *nli)
    assert status == 0
    assert "가설:" in whole
    assert "cut, " not in whole
    short = "--gin.TASK_FEATURE_LENGTHS={'inputs': 20, 'targets': 8}"
    status, out, _ = run(capsys, "inspect", *nli, short)
    assert status == 0
    shown = next(line for line in out.splitlines() if " inputs   " in line)
    assert re.search(r"cut at 20: [\d,]+ rows \(", out)
    assert re.search(r"전제: .* <- cut, 20 of \d+ tokens$", shown)
    assert "가설:" not in shown


@pytest.mark.parametrize("task", ["sample_pretrain", "sample_nli"])
def test_inspect_without_examples(capsys, task):
    gin = f"--gin_file=configs/tasks/{task}.gin"
    status, out, _ = run(capsys, "inspect", gin, "--split=validation", "--examples=0")
    assert status == 0
    assert " inputs   " not in out
    assert not out.endswith("\n\n")


def test_inspect_a_labelled_task_with_a_plot(capsys, tmp_path):
    png = tmp_path / "lengths.png"
    gin = "--gin_file=configs/tasks/sample_reviews.gin"
    status, out, _ = run(capsys, "inspect", gin, "--split=validation", f"--plot={png}")
    assert status == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "positions filled, packed" in out
    assert "also in validation: 0 of" in out
    assert "긍정적" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["lst"], "no action lst. Did you mean list"),
        (["download", "nsmk"], "nothing is called nsmk. Did you mean nsmc"),
        (["prepare", "--output=x"], "give either input files or --sample"),
        (["prepare", "nowhere.txt", "--output=x"], "no file matches nowhere.txt.\n"),
        (
            ["prepare", "--sample", "--output=x", "--exclude=no.tsv:text"],
            "no file matches no.tsv.\n",
        ),
        (["prepare", "--sample", "--output=gs://b/x"], "not on this machine"),
        (["prepare", "--sample", "--output=x", "--memory=lots"], "--memory=lots is not a size"),
        (["prepare", "--sample", "--output=x", "--without=url"], "Did you mean urls"),
        (["inspect", "--gin_file=configs/tasks/nsmc.gin", "--splt=test"], "--splt=test"),
        (
            ["inspect", "--gin_file=configs/tasks/nsmc.gin", "--examples=-1"],
            "--examples: -1 is not",
        ),
        (
            ["inspect", "--gin_file=configs/tasks/nsmc.gin", "--scan_rows=-1"],
            "--scan_rows: -1 is not",
        ),
        (
            ["download", "nsmc", "--mirror=example.org/x"],
            "--mirror=example.org/x is not an address",
        ),
        (["inspect", "--gin.DATA_DIRR='x'", "--gin_file=configs/tasks/nsmc.gin"], "DATA_DIRR"),
    ],
)
def test_mistakes_are_one_line_and_status_2(argv, message, capsys):
    status, out, err = run(capsys, *argv)
    assert status == 2
    assert out == ""
    assert message in err
    assert err.startswith("kcmoe data: ")
    assert err.count("\n") == 1


def test_sizes():
    assert command.parse_bytes("500MB") == 500 << 20
    assert command.parse_bytes("2.5GiB") == int(2.5 * (1 << 30))
    assert command.parse_bytes("1024") == 1024


def test_one_cut_row_of_very_many_is_seen():
    cut = np.zeros(50_000, bool)
    assert inspection._share(cut) == "0 rows (0.00%)"
    cut[7] = True
    assert inspection._share(cut) == "1 row (0.00%)"


def test_histograms_count_every_value():
    values = np.array([1, 1, 2, 5, 9, 300])
    lines = inspection.histogram(values, limit=8)
    assert sum(int(line.split()[1].replace(",", "")) for line in lines) == 6
    assert "<- cut" in lines[-1]
    assert len(inspection.histogram(np.full(5, 3), 0)) == 1  # shorter than all are none

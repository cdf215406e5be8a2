# SPDX-License-Identifier: Apache-2.0
"""`kcmoe plan --compile`: what is read of a program, what is kept, what is said without a compiler."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from kcmoe import cli
from kcmoe.errors import UserError
from kcmoe.tools.plan import compiled, compiler, hardware, hlo, pace

BASE = ("plan", "--size=base", "--task=pretrain", "--gin_file=configs/runs/pretrain.gin")
TOY = (
    *("plan", "--size=tiny", "--task=pretrain", "--gin_file=configs/runs/pretrain.gin"),
    *("--gin.NUM_ENCODER_LAYERS=1", "--gin.NUM_DECODER_LAYERS=1", "--gin.NUM_EMBEDDINGS=512"),
    *("--gin.BATCH_SIZE=16", "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 32}"),
    *("--stack=engine", "--hardware=v3-8", "--compile"),
)
PROGRAM = """\
HloModule step

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %ar = f32[2,3]{1,0:T(2,128)} all-reduce(%x), to_apply=%add
  %f = f32[8]{0} fusion(%ar), calls=%fused, backend_config={"estimated_cycles":"100"}
}

%condition.1 (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(256)} constant(5)
}

%fused (q: f32[8]) -> f32[8] {
  %inner = f32[8]{0} add(%q, %q), backend_config={"estimated_cycles":"7"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%condition.1, body=%body.1
  %s = (bf16[4,2]{1,0}, bf16[8,2]{1,0}) all-gather-start(%a), dimensions={0}
  %t2 = (bf16[16]{0}, /*index=1*/bf16[16]{0}) all-to-all(%b, %c), dimensions={0}
  %g = f32[8]{0} fusion(%w), calls=%fused, backend_config={"estimated_cycles":"1000"}
}
"""
ANSWER = {
    **{"mesh": {"data": 1, "expert": 8}, "compile_s": 3.0, "trace_s": 1.0, "flops": 1e12},
    **{"arguments_bytes": 2**30, "temporaries_bytes": 8 * 2**30, "code_bytes": 2**27},
    **{"peak_bytes": 9 * 2**30, "accessed_bytes": 1e11, "optimal_s": 0.25, "loops": 1.5},
    "exchanges": [{"kind": "all-to-all", "times": 24, "bytes_each": 2**24}],
}
FULL = {"mesh": {}, "compile_s": 1.0, "trace_s": 1.0, "error": "needs 18.4GiB of memory"}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """In place of the compiler: the requests made, each answered by `ANSWER`, or `FULL` at one microbatch."""
    asked: list[dict[str, Any]] = []

    def ask(request: dict[str, Any], name: str) -> dict[str, Any]:
        asked.append(request)
        short = "REMAT = True" not in request["macros"] and "NO_ROOM" in request["macros"]
        return dict(FULL if short else ANSWER)

    monkeypatch.setenv("KCMOE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled, "check", lambda *_: None)
    monkeypatch.setattr(compiled, "other_version", lambda: "")
    monkeypatch.setattr(compiled, "_versions", lambda stack: {"libtpu": "1", "jax": "2"})
    monkeypatch.setattr(compiled, "_ask", ask)
    return asked


def test_loops_count_as_often_as_they_run_and_exchanges_with_their_sizes() -> None:
    program = hlo.read(PROGRAM)
    assert (program.cycles_once, program.cycles) == (1100, 1500)
    assert set(program.exchanges) == {
        hlo.Exchange("all-reduce", 5, 24),
        hlo.Exchange("all-gather", 1, 24),  # operand and result together are 48
        hlo.Exchange("all-to-all", 1, 64),
    }


def test_why_there_is_no_program_in_one_line() -> None:
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.36G of 15.48G hbm. "
        "Exceeded hbm capacity by 2.87G.\n\n  1. Size: 3.00G\n     Shape: bf16[32,12,512,512]{3,2}\n"
    )
    refused = compiler._refused(message)
    assert refused["error"] == "needs 18.36GiB of memory, and a device has 15.48GiB"
    assert refused["largest"] == ["3.00GiB bf16[32,12,512,512]"]
    early = "the total memory required for HLO temporaries (50.96G) exceeds available HBM (15.48G)."
    assert compiler._refused(early)["error"].startswith("needs 50.96GiB of memory")
    assert compiler._refused("INTERNAL:\n no such thing")["error"] == "INTERNAL: no such thing"


@pytest.mark.parametrize(
    ("name", "topology"),
    [
        ("v3-8", "v3:2x2"),
        ("v4-32", "v4:2x2x4"),
        ("v5litepod-8", "v5e:2x4"),
        ("v6e-256", "v6e:16x16"),
    ],
)
def test_slices_have_the_shape_that_google_gives_them(name: str, topology: str) -> None:
    machine = hardware.parse(name)
    assert machine.topology == topology
    sides = [int(n) for n in topology.partition(":")[2].split("x")]
    chips = machine.devices // (2 if name.startswith("v3") else 1)
    assert chips == sides[0] * sides[1] * (sides[2] if len(sides) > 2 else 1)


@pytest.mark.parametrize(
    ("name", "said"),
    [("v3-12", "v3-8 or v3-32"), ("v4-7", "v4-8 or v4-16"), ("v5e-2", "v5e-1 or v5e-4")],
)
def test_a_slice_that_does_not_exist_names_its_neighbours(name: str, said: str) -> None:
    with pytest.raises(UserError, match=f"no such slice. Did you mean {said}"):
        hardware.parse(name)


def test_an_answer_is_kept_and_read_again(
    answers: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*BASE, "--hardware=v3-8", "--compile"]) == 0
    first = capsys.readouterr().out
    assert cli.run([*BASE, "--hardware=v3-8", "--compile", "--gin.TRAIN_STEPS=7"]) == 0
    assert len(answers) == 1
    assert "kept from before" in capsys.readouterr().out
    assert "24 all-to-all of 16.8 MB" in first
    assert "0.375 s a step, the compiler's estimate" in first  # 0.25 s with loops counted once
    assert cli.run([*BASE, "--hardware=v3-8", "--compile", "--gin.BATCH_SIZE=128"]) == 0
    assert len(answers) == 2


def test_a_compiler_without_an_estimate_is_not_quoted(
    answers: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(ANSWER, "optimal_s", 0.0)
    assert cli.run([*BASE, "--hardware=v5e-8", "--compile"]) == 0
    assert "the compiler gives no estimate for this slice; by" in capsys.readouterr().out
    assert len(answers) == 1


def test_a_damaged_answer_is_asked_for_again(answers: list[dict[str, Any]], tmp_path: Path) -> None:
    run = [*BASE, "--hardware=v3-8", "--compile"]
    assert cli.run(run) == 0
    (kept,) = (tmp_path / "plan").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    assert cli.run(run) == 0
    assert len(answers) == 2


def test_an_answer_that_cannot_be_kept_is_given(
    answers: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan").write_text("no folder")
    assert cli.run([*BASE, "--hardware=v3-8", "--compile"]) == 0
    captured = capsys.readouterr()
    assert "0.375 s a step, the compiler's estimate" in captured.out
    assert "not kept for the next time: " in captured.err


def test_without_t5x_the_engine_is_offered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: (
            object() if name == "libtpu" else None if name == "t5x" else find(name, *a)
        ),
    )
    assert cli.run([*BASE, "--hardware=v3-8", "--compile"]) == 2
    assert "compile the engine's step: --stack=engine" in capsys.readouterr().err


@pytest.mark.t5x
def test_a_copy_of_t5x_without_a_version_is_told_by_its_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kcmoe.t5x import requirements

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1")
    monkeypatch.setattr(requirements, "installed_commit", lambda name: None)
    versions = compiled._versions("t5x")
    assert len(versions["t5x"]) == len(versions["flaxformer"]) == 64
    assert versions["t5x"] != versions["flaxformer"]


@pytest.mark.slow
def test_what_does_not_fit_ends_with_settings_that_compile(
    answers: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*BASE, "--hardware=v3-8", "--compile", "--stack=engine", "--gin.TASK_METRICS='NO_ROOM'"]
    assert cli.run(run) == 1
    printed = capsys.readouterr().out
    assert "no program needs 18.4GiB of memory" in printed
    verdict = printed.split("fits ")[1]
    assert "no, says the compiler" in verdict
    assert "room with  --gin.REMAT=True" in verdict
    assert verdict.count("room with") == 1  # nothing else compiled


def test_the_report_is_json(
    answers: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*BASE, "--hardware=v3-8", "--compile", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["compiled"]["temporaries_bytes"] == 8 * 2**30
    assert report["fits"] == "yes"


@pytest.mark.parametrize(
    ("arguments", "libtpu", "said"),
    [
        (["--hardware=v3-8"], None, "pip install 'kcmoe[tpu]'"),
        (["--hardware=h100"], object(), "h100 is no TPU"),
    ],
)
def test_without_a_compiler(
    arguments: list[str],
    libtpu: object,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: libtpu if name == "libtpu" else find(name, *a)
    )
    assert cli.run([*BASE, *arguments, "--compile"]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert not captured.out


@pytest.mark.parametrize(("found", "fits"), [("0.0.42.1", True), ("0.0.4", False)])
def test_libtpu_of_another_version_is_said(
    found: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"libtpu": found, "jax": "0.10.2"}
    monkeypatch.setattr(importlib.metadata, "version", versions.get)
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda _: ['libtpu==0.0.42.*; extra == "tpu"']
    )
    note = compiled.other_version()
    assert (note == "") == fits
    assert fits or "pip install 'libtpu==0.0.42.*'" in note


def test_the_hosts_may_set_the_pace() -> None:
    machine = hardware.parse("v6e-8")
    slow = pace.of(machine, "t5x", batch_size=25_600, row_tokens=6_260, step_s=0.5)
    assert slow.slowdown > 1
    assert "the hosts set the pace" in pace.lines(slow, "t5x")[1]
    enough = pace.of(machine, "t5x", batch_size=256, row_tokens=626, step_s=0.039)
    assert enough.slowdown == 1
    assert enough.cores == pytest.approx(6_550 / 1120, rel=0.01)
    assert pace.of(machine, "engine", 25_600, 6_260, 0.5).slowdown == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_compiler_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a minute: a toy's step for the eight cores of a v3-8."""
    monkeypatch.setenv("KCMOE_CACHE_DIR", str(tmp_path))
    assert cli.run([*TOY, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["compiled"]
    assert not answer["error"]
    assert answer["mesh"] == {"data": 1, "expert": 8}
    assert answer["optimal_s"] > 0
    kinds = {exchange["kind"] for exchange in answer["exchanges"]}
    assert "all-to-all" in kinds  # tokens travel to experts, not to everybody

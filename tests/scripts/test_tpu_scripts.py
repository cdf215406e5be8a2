# SPDX-License-Identifier: Apache-2.0
"""The TPU scripts against a fake gcloud whose workers really run what they are told."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("tpu_*.sh"))
NEW = "--accelerator-type=v3-8 --version=image"
NO_CAPACITY = "ERROR: there is no more capacity in the zone"
NO_NETWORK = "ERROR: (gcloud.compute.tpus.tpu-vm.describe) There was a problem refreshing tokens"
NO_SSH = "ERROR: [0] ssh exited with return code [255]."


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_bucket_zone_or_project_is_written_into_a_script(script: Path) -> None:
    text = script.read_text("utf-8")
    assert "gs://" not in text
    assert not re.search(r"\b(us|europe|asia)-\w+\d-[a-f]\b", text)
    assert not re.findall(r"--(?:zone|project)=(?!ZONE|PROJECT|\$|\*)\S", text)


@pytest.mark.parametrize("name", ["common", "launch", "machine", "setup"])
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (r'in "\$\{\w+\[@\]\}"|\w=\(\)', "takes an empty array for an unset variable"),
        (r"=~ [^$\n]*\(.*\]\]", "reads a parenthesis of a pattern only from a variable"),
        (r"//\\'", "reads the backslashes of such a replacement otherwise"),
        (r"\b(mapfile|readarray|declare -A|local -n)\b|\$\{\w+(,|\^)|&>>", "has none of this"),
    ],
)
def test_the_bash_of_a_mac_reads_what_runs_at_home(name: str, words: str, why: str) -> None:
    text = (ROOT / f"scripts/tpu_{name}.sh").read_text("utf-8")
    found = re.findall(f"^.*(?:{words}).*$", text, re.MULTILINE)
    assert not found, f"bash 3.2 {why}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run(
        ["shellcheck", "-x", str(script)], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("tpu_setup.sh", "--tpu=t --zone=z --project=p --dry-run"),
        ("tpu_setup.sh", "--here --dry-run"),
        ("tpu_launch.sh", "start --tpu=t --zone=z --project=p --dry-run -- python -m t5x.train"),
        (
            "tpu_launch.sh",
            f"resume --tpu=t --zone=z --project=p --dry-run {NEW} -- python -m t5x.train",
        ),
        ("tpu_launch.sh", "create --tpu=t --zone=z --project=p --dry-run --accelerator-type=v4-8"),
        ("tpu_launch.sh", "check --tpu=t --zone=z --project=p --dry-run"),
        ("tpu_launch.sh", "logs --tpu=t --zone=z --project=p --dry-run"),
        ("tpu_launch.sh", "delete --tpu=t --zone=z --project=p --dry-run"),
        ("tpu_launch.sh", "status --tpu=t --zone=z --project=p --dry-run"),
        ("tpu_launch.sh", "tail --tpu=t --zone=z --project=p --dry-run"),
        ("tpu_launch.sh", "stop --tpu=t --zone=z --project=p --dry-run"),
    ],
)
def test_a_dry_run_prints_the_commands_and_runs_none(
    script: str, arguments: str, cloud: Any
) -> None:
    done = cloud.run(script, arguments)
    assert done.returncode == 0, done.stderr
    assert cloud.calls == []
    assert not (cloud.folder / "installed").exists()
    commands = [line for line in done.stdout.splitlines() if line.startswith("gcloud")]
    assert commands or "--here" in arguments
    assert all(command.endswith("--zone=z --project=p") for command in commands)


def test_what_a_dry_run_prints_can_be_pasted(cloud: Any) -> None:
    binding = """--gin.MODEL_DIR='"gs://b/it s"'"""
    printed = cloud.run(
        "tpu_launch.sh", f"start --tpu=t --dry-run -- echo '{binding}' 'a b' \"it's\" >&2"
    ).stdout
    environment = {"PATH": f"{cloud.folder}/bin:/usr/bin:/bin", "FAKE": str(cloud.folder)}
    subprocess.run(["bash", "-c", printed], env=environment, check=True, timeout=20)
    log = cloud.home / "kcmoe-runs/train.log"
    wait_for(lambda: log.exists() and "it's" in log.read_text())


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("tpu_launch.sh", "", "say what to do: create, check, start"),
        ("tpu_launch.sh", "begin --tpu=t", "say what to do"),
        ("tpu_launch.sh", "start -- echo", "--tpu=NAME"),
        ("tpu_launch.sh", "stop --tpu=T1", "--tpu=T1 cannot be a TPU's name: small letters"),
        ("tpu_launch.sh", "stop --tpu=--zone", "--tpu=--zone cannot be a TPU's name"),
        ("tpu_launch.sh", "stop --tpu=이름", "--tpu=이름 cannot be a TPU's name"),
        ("tpu_setup.sh", "--tpu=../t", "--tpu=../t cannot be a TPU's name"),
        ("tpu_launch.sh", "logs --tpu=t --run=..", "a letter or digit first"),
        ("tpu_launch.sh", "start --tpu=t", "say what to run"),
        ("tpu_launch.sh", "stop --tpu=t -- echo", "stop takes no command"),
        ("tpu_launch.sh", "start --tpu=t --bucket=b -- echo", "unknown option --bucket=b"),
        ("tpu_launch.sh", "start --tpu=t --run=../x -- echo", "may only have letters"),
        ("tpu_launch.sh", "resume --tpu=t --watch=soon -- echo", "must be a number of seconds"),
        ("tpu_launch.sh", "create --tpu=t --accelerator-type=v5e-8", "(v5e is called v5litepod-8)"),
        ("tpu_launch.sh", "create --tpu=t --accelerator-type=v5litepod-", "no image is known"),
        ("tpu_launch.sh", "create --tpu=t --accelerator-type=v4-0", "no image is known"),
        ("tpu_launch.sh", "create --tpu=t --flex-start=0h", "must be a time such as 24h"),
        ("tpu_launch.sh", "create --tpu=t", "say which kind: --accelerator-type"),
        ("tpu_launch.sh", "create --tpu=t --spot --flex-start", "take one"),
        ("tpu_launch.sh", "create --tpu=t --flex-start=soon", "must be a time such as 24h"),
        ("tpu_launch.sh", "create --tpu=t --flex-start --accelerator-type=v4-8", "not v4-8"),
        ("tpu_launch.sh", "start --tpu=t --engine=torch -- echo", "none of --engine=t5x and"),
        ("tpu_launch.sh", "start --tpu=t -- kcmoe train", "add --engine=kcmoe"),
        ("tpu_launch.sh", "start --tpu=t --engine=kcmoe -- python -m t5x.train", "leave --engine"),
        ("tpu_setup.sh", "", "--tpu=NAME"),
        ("tpu_setup.sh", "--tpu=t --commit=x", "unknown option --commit=x"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    script: str, arguments: str, words: str, cloud: Any
) -> None:
    done = cloud.run(script, arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"{script}: ")
    assert words in done.stderr
    assert cloud.calls == []


@pytest.mark.parametrize("script", ["tpu_launch.sh", "tpu_setup.sh"])
def test_help_shows_the_commands(script: str, cloud: Any) -> None:
    done = cloud.run(script, "--help")
    assert done.returncode == 0
    assert f"bash scripts/{script} " in done.stdout
    assert "set -euo" not in done.stdout


def test_setup_copies_the_last_commit_and_installs_the_pinned_packages(cloud: Any) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone, so there is no commit to copy")
    done = cloud.run("tpu_setup.sh", "--tpu=t --zone=z")
    assert done.returncode == 0, done.stderr
    assert cloud.verbs == ["scp", "ssh"]
    assert all("--worker=all" in call and call.endswith("--zone=z") for call in cloud.calls)
    assert (cloud.home / "kcmoe/kcmoe/__init__.py").is_file()
    installed = (cloud.folder / "installed").read_text().splitlines()
    assert installed[0].endswith("--constraint constraints.txt --editable .[t5x,tpu]")
    assert installed[1].endswith("--no-deps --requirement kcmoe/t5x/requirements.txt")
    assert "import kcmoe.t5x.bindings" in installed[2]
    assert not list(cloud.temporary.iterdir()), "the archive is removed afterwards"


def test_a_run_outlives_the_connection_and_is_seen_to_end(cloud: Any) -> None:
    wait = "until [[ -e ../enough ]]; do sleep 0.1; done"
    command = f"bash -c 'echo $KCMOE_DISTRIBUTED $PWD \"$0\"; {wait}; exit 7' 'two words'"
    done = cloud.run("tpu_launch.sh", f"start --tpu=t --run=first -- {command}")
    assert done.returncode == 0, done.stderr
    assert (
        "TPU VM READY\n0: running\n"
        in cloud.run("tpu_launch.sh", "status --tpu=t --run=first").stdout
    )
    again = cloud.run("tpu_launch.sh", f"start --tpu=t --run=first -- {command}")
    assert again.returncode == 1
    assert "first is already running" in again.stderr
    (cloud.home / "enough").touch()
    wait_for(lambda: "ended 7" in cloud.run("tpu_launch.sh", "status --tpu=t --run=first").stdout)
    log = (cloud.home / "kcmoe-runs/first.log").read_text()
    assert log == f"1 {cloud.home}/kcmoe two words\n"


STUBBORN = "bash -c 'trap : TERM; setsid sleep 60 & while :; do sleep 0.1; done'"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("bash -c 'sleep 60 & sleep 60'", "stopped train\n"),
        (STUBBORN, "stopped train by SIGKILL: it did not end within 1 s of SIGTERM"),
    ],
    ids=["heeds SIGTERM", "ignores SIGTERM"],
)
def test_stop_leaves_nothing_running(command: str, words: str, cloud: Any) -> None:
    """Nor what went into a session of its own; and it says what it did once it is done."""
    cloud.set_workers(2)
    cloud.run("tpu_launch.sh", f"start --tpu=t -- {command}")
    wait_for(lambda: all(len(cloud.processes(worker)) > 1 for worker in range(2)))
    done = cloud.run("tpu_launch.sh", "stop --tpu=t")
    assert not cloud.processes(0) + cloud.processes(1)
    assert done.returncode == 0
    assert done.stdout.count(words) == 2
    assert cloud.run("tpu_launch.sh", "status --tpu=t").stdout.count("stopped") == 2
    assert "nothing to stop" in cloud.run("tpu_launch.sh", "stop --tpu=t").stdout


def test_stop_tells_of_a_worker_that_it_did_not_reach(cloud: Any) -> None:
    cloud.set_workers(2)
    cloud.run("tpu_launch.sh", "start --tpu=t -- sleep 60")
    cloud.fail("ssh_1", NO_SSH)
    done = cloud.run("tpu_launch.sh", "stop --tpu=t")
    assert done.returncode == 1
    assert "was not ended on every worker" in done.stderr
    assert cloud.processes(1)
    assert not cloud.processes(0)
    assert cloud.run("tpu_launch.sh", "stop --tpu=t").returncode == 0
    assert not cloud.processes(1)


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED", ""])
def test_resume_makes_a_preempted_tpu_again(state: str, cloud: Any) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone, so there is no commit to copy")
    cloud.set_state(state)
    done = cloud.run("tpu_launch.sh", f"resume --tpu=t {NEW} -- echo back")
    assert done.returncode == 0, done.stderr
    deleted = ["delete"] if state else []
    assert cloud.verbs == ["describe", "queue-describe", *deleted, "create", "scp", *["ssh"] * 3]
    assert f"create t {NEW}" in cloud.calls
    log = cloud.home / "kcmoe-runs/train.log"
    wait_for(lambda: log.exists() and log.read_text() == "back\n")


def test_resume_needs_the_type_to_make_a_tpu_again(cloud: Any) -> None:
    cloud.set_state("PREEMPTED")
    done = cloud.run("tpu_launch.sh", "resume --tpu=t -- echo")
    assert done.returncode == 2
    assert "t is PREEMPTED; to make it again say --accelerator-type=TYPE" in done.stderr
    assert cloud.verbs == ["describe"], "nothing was deleted"


def test_resume_leaves_a_run_that_goes_on_alone(cloud: Any) -> None:
    cloud.run("tpu_launch.sh", "start --tpu=t -- sleep 60")
    before = (cloud.home / "kcmoe-runs/train.id").read_text()
    done = cloud.run("tpu_launch.sh", f"resume --tpu=t {NEW} -- sleep 60")
    assert "train is running" in done.stdout
    assert (cloud.home / "kcmoe-runs/train.id").read_text() == before
    cloud.run("tpu_launch.sh", "stop --tpu=t")


def test_watching_restarts_a_run_until_it_ends_well(cloud: Any) -> None:
    # Fails twice, as a run does when its TPU goes away for a moment, then ends well.
    command = "bash -c 'echo x >>../tries; [[ $(wc -l <../tries) -eq 3 ]]'"
    done = cloud.run("tpu_launch.sh", f"resume --tpu=t --watch=1 {NEW} -- {command}")
    assert done.returncode == 0, done.stderr
    assert "train has ended well" in done.stdout
    assert (cloud.home / "tries").read_text() == "x\n" * 3


def test_watching_gives_up_when_the_run_itself_fails(cloud: Any) -> None:
    done = cloud.run("tpu_launch.sh", f"resume --tpu=t --watch=1 {NEW} -- false")
    assert done.returncode == 1
    assert "train failed 3 times on a healthy TPU VM" in done.stderr


@pytest.mark.parametrize("state", ["PREEMPTED", ""])
def test_resume_stops_where_no_tpu_can_be_made(state: str, cloud: Any) -> None:
    cloud.set_state(state)
    cloud.fail("create", NO_CAPACITY)
    cloud.fail("ssh", NO_SSH, times=5)
    done = cloud.run("tpu_launch.sh", f"resume --tpu=t {NEW} -- echo back")
    assert done.returncode == 1
    assert cloud.verbs[-1] == "create", "nothing is installed or started on a TPU that is not there"
    assert "Started" not in done.stdout
    assert NO_CAPACITY in done.stderr


def test_a_start_that_fails_does_not_say_started(cloud: Any) -> None:
    cloud.run("tpu_launch.sh", "start --tpu=t -- false")
    wait_for(lambda: "ended 1" in cloud.run("tpu_launch.sh", "status --tpu=t").stdout)
    (cloud.home / "kcmoe/scripts/tpu_worker.sh").write_text(
        "case $1 in state) echo ended 1 ;; check) cat .venv/made-of ;; *) exit 1 ;; esac\n"
    )
    done = cloud.run("tpu_launch.sh", f"resume --tpu=t {NEW} -- echo back")
    assert done.returncode == 1
    assert "train is ended 1: starting it" in done.stdout
    assert "Started" not in done.stdout


@pytest.mark.parametrize("new", ["", NEW])
def test_a_describe_that_fails_is_no_missing_tpu(new: str, cloud: Any) -> None:
    cloud.run("tpu_launch.sh", "start --tpu=t -- sleep 60")
    before = len(cloud.calls)
    cloud.fail("describe", NO_NETWORK)
    once = cloud.run("tpu_launch.sh", f"resume --tpu=t {new} -- sleep 60")
    assert once.returncode == 1
    assert NO_NETWORK in once.stderr
    assert cloud.verbs[before:] == ["describe"], "the live TPU VM and its run are left alone"
    cloud.run("tpu_launch.sh", "stop --tpu=t")


@pytest.mark.parametrize(("verb", "message"), [("describe", NO_NETWORK), ("ssh", NO_SSH)])
def test_watching_outlives_hiccups_and_does_not_count_them(
    verb: str, message: str, cloud: Any
) -> None:
    command = "bash -c 'echo x >>../tries; until [[ -e ../enough ]]; do sleep 0.1; done'"
    cloud.run("tpu_launch.sh", f"start --tpu=t -- {command}")
    wait_for((cloud.home / "tries").exists)
    cloud.fail(verb, message, times=5)
    # The first look that is answered ends the run.
    script = cloud.home / "kcmoe/scripts/tpu_worker.sh"
    script.write_text(f"touch ~/enough\n{script.read_text()}")
    done = cloud.run("tpu_launch.sh", f"resume --tpu=t --watch=0 -- {command}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("waiting") == 5
    assert (cloud.home / "tries").read_text() == "x\n", "never started a second time"


def test_watching_sets_a_new_tpu_up_again_where_that_failed(cloud: Any) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone, so there is no commit to copy")
    cloud.set_state("PREEMPTED")
    cloud.fail("scp", NO_SSH)
    done = cloud.run("tpu_launch.sh", f"resume --tpu=t --watch=1 {NEW} -- echo back")
    assert done.returncode == 0, done.stderr
    assert "t is not set up on every worker: setting it up" in done.stdout
    assert (cloud.home / "kcmoe-runs/train.log").read_text() == "back\n"


def test_a_run_that_went_well_may_fail_anew(cloud: Any) -> None:
    # Of six starts only the third is seen running for long; the sixth ends well.
    command = """bash -c '
      looks() { grep -c "state train" $FAKE/calls; }
      echo x >>../tries
      n=$(wc -l <../tries)
      if [[ $n -eq 3 ]]; then
        end=$(($(looks) + 12))
        until [[ $(looks) -ge $end ]]; do sleep 0.05; done
      fi
      [[ $n -eq 6 ]]'"""
    done = cloud.run("tpu_launch.sh", f"resume --tpu=t --watch=0 -- {command}")
    assert done.returncode == 0, done.stderr
    assert (cloud.home / "tries").read_text() == "x\n" * 6

# SPDX-License-Identifier: Apache-2.0
"""The TPU scripts where workers fail one by one, machines queue, or systems are not ready."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

NO_SSH = "ERROR: [0] ssh exited with return code [255]."
V6E = "--accelerator-type=v6e-16 --spot"


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("v3-8", "tpu-ubuntu2204-base"),
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-32", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_each_kind_gets_its_image(kind: str, image: str, cloud: Any) -> None:
    cloud.run("tpu_launch.sh", f"create --tpu=t --accelerator-type={kind}")
    cloud.run("tpu_launch.sh", f"create --tpu=t --accelerator-type={kind} --version=mine")
    assert cloud.calls == [
        f"create t --accelerator-type={kind} --version={image}",
        f"create t --accelerator-type={kind} --version=mine",
    ]


def test_spot_and_flex_start_come_through_the_queue(cloud: Any) -> None:
    done = cloud.run("tpu_launch.sh", f"create --tpu=t --zone=z {V6E}")
    assert "t is in the queue" in done.stdout
    cloud.run(
        "tpu_launch.sh", "create --tpu=t --flex-start=7d --accelerator-type=v5litepod-8 --zone=z"
    )
    new = "queued-resources create t --node-id=t"
    assert cloud.calls == [
        f"{new} --accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot --zone=z",
        f"alpha {new} --accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite "
        "--provisioning-model=flex-start --max-run-duration=7d --zone=z",
    ]


@pytest.mark.parametrize("queue", ["WAITING_FOR_RESOURCES", "PROVISIONING", "SUSPENDING"])
def test_resume_waits_in_the_queue(queue: str, cloud: Any) -> None:
    cloud.set_state("")
    cloud.set_state(queue, "queue")
    done = cloud.run("tpu_launch.sh", f"resume --tpu=t {V6E} -- echo")
    assert done.returncode == 0
    assert f"t is in the queue ({queue}): waiting" in done.stdout
    assert cloud.verbs == ["describe", "queue-describe"], "nothing is deleted or asked for twice"


@pytest.mark.parametrize("state", ["PREEMPTED", ""])
def test_resume_asks_the_queue_again_after_a_preemption(state: str, cloud: Any) -> None:
    """The old request is deleted after its machine, or the name would be taken."""
    cloud.set_state(state)
    cloud.set_state("SUSPENDED", "queue")
    done = cloud.run("tpu_launch.sh", f"resume --tpu=t {V6E} -- echo")
    assert done.returncode == 0, done.stderr
    deleted = ["delete"] if state else []
    assert cloud.verbs[2:] == [*deleted, "queue-delete", "queue-create"]
    assert cloud.calls[-2] == "queued-resources delete t --quiet --force"


def test_delete_takes_the_machine_and_then_its_request(cloud: Any) -> None:
    cloud.set_state("ACTIVE", "queue")
    done = cloud.run("tpu_launch.sh", "delete --tpu=t")
    assert done.returncode == 0, done.stderr
    assert "Nothing called t is left to pay for" in done.stdout
    assert [verb for verb in cloud.verbs if "delete" in verb] == ["delete", "queue-delete"]
    assert "There is no t" in cloud.run("tpu_launch.sh", "delete --tpu=t").stdout


def test_delete_says_what_is_still_there(cloud: Any) -> None:
    (cloud.folder / "stuck").write_text("yes")
    done = cloud.run("tpu_launch.sh", "delete --tpu=t")
    assert done.returncode == 1
    assert "t is still there (TPU VM: READY, queued resource: gone)" in done.stderr
    cloud.fail("describe", "ERROR: no network", times=2)
    assert cloud.run("tpu_launch.sh", "delete --tpu=t").returncode == 1


def test_check_shows_every_worker(cloud: Any) -> None:
    cloud.set_workers(3)
    done = cloud.run("tpu_launch.sh", "check --tpu=t")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line[:2] for line in lines] == ["0:", "1:", "2:"]
    for line in lines:
        assert "commit abc1234, engine t5x, Python 3.11.9, jax 0.10.2; 4 chips; " in line
        assert line.endswith("absent")


def unplug(cloud: Any) -> None:
    for worker in range(2):
        for device in (cloud.folder / f"dev{worker}").iterdir():
            device.unlink()


FAULTS: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "commit": (lambda cloud: cloud.set_up(1, "fff0000"), "", "the 2 workers differ"),
    "chip": (
        lambda cloud: (cloud.folder / "dev1/accel2").unlink(),
        "",
        "the 2 workers differ",
    ),
    "chips": (unplug, "", "see no TPU chips"),
    "engine": (
        lambda cloud: [cloud.set_up(worker, engine="kcmoe") for worker in range(2)],
        "",
        "--engine=t5x",
    ),
    "not reached": (lambda cloud: cloud.fail("ssh_1", NO_SSH), "", "not every worker"),
    "not set up": (
        lambda cloud: (cloud.home_of(1) / "kcmoe/.venv/made-of").unlink(),
        "",
        "the 2 workers differ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_does_not_start_on_workers_that_are_not_fit(fault: str, cloud: Any) -> None:
    cloud.set_workers(2)
    break_it, options, words = FAULTS[fault]
    break_it(cloud)
    done = cloud.run("tpu_launch.sh", f"start --tpu=t {options} -- sleep 60")
    assert done.returncode == 1
    assert words in done.stderr
    assert not (cloud.home / "kcmoe-runs/train.id").exists(), "started nowhere"


def test_the_engine_runs_where_t5x_is_set_up_too(cloud: Any) -> None:
    done = cloud.run("tpu_launch.sh", "check --tpu=t --engine=kcmoe")
    assert done.returncode == 0, done.stderr


def test_a_start_that_fails_on_one_worker_leaves_nothing_running(cloud: Any) -> None:
    cloud.set_workers(2)
    script = cloud.home_of(1) / "kcmoe/scripts/tpu_worker.sh"
    script.write_text(script.read_text().replace("start() {", "start() {\n  exit 9"))
    done = cloud.run("tpu_launch.sh", "start --tpu=t -- sleep 60")
    assert done.returncode == 1
    assert "could not be started on every worker" in done.stderr
    assert not cloud.processes(0)


def test_resume_starts_all_again_where_one_worker_was_lost(cloud: Any) -> None:
    cloud.set_workers(3)
    cloud.run("tpu_launch.sh", "start --tpu=t -- sleep 60")
    before = {worker: cloud.processes(worker) for worker in range(3)}
    for process in before[1]:
        os.kill(process, signal.SIGKILL)
    wait_for(lambda: not cloud.processes(1))
    done = cloud.run("tpu_launch.sh", "resume --tpu=t -- sleep 60")
    assert done.returncode == 0, done.stderr
    assert "train is killed on 1,running on 2: ending it and starting it" in done.stdout
    for worker in range(3):
        assert cloud.processes(worker)
        assert not set(cloud.processes(worker)) & set(before[worker])


def test_resume_lets_workers_end_one_after_another(cloud: Any) -> None:
    cloud.set_workers(2)
    cloud.run("tpu_launch.sh", "start --tpu=t -- bash -c '[[ $HOME != *home1 ]] || sleep 60'")
    wait_for(lambda: "0: ended 0" in cloud.run("tpu_launch.sh", "status --tpu=t").stdout)
    done = cloud.run("tpu_launch.sh", "resume --tpu=t -- echo")
    assert done.returncode == 0
    assert "has ended well on some workers" in done.stdout
    assert cloud.processes(1)


def test_logs_of_all_workers_are_fetched(cloud: Any) -> None:
    cloud.set_workers(2)
    cloud.run("tpu_launch.sh", "start --tpu=t --run=a -- bash -c 'echo I am $HOME'")
    wait_for(lambda: "running" not in cloud.run("tpu_launch.sh", "status --tpu=t --run=a").stdout)
    folder = cloud.folder / "logs"
    done = cloud.run("tpu_launch.sh", f"logs --tpu=t --run=a --to={folder}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{folder}/0.log", f"{folder}/1.log"]
    for worker in range(2):
        assert f"I am {cloud.home_of(worker)}\n" in (folder / f"{worker}.log").read_text()


def test_workers_get_the_port_that_slices_reach_and_no_deaf_preemption_service(cloud: Any) -> None:
    command = "bash -c 'echo $JAX_COORDINATOR_PORT $JAX_ENABLE_PREEMPTION_SERVICE'"
    cloud.run("tpu_launch.sh", f"start --tpu=t -- {command}")
    log = cloud.home / "kcmoe-runs/train.log"
    wait_for(lambda: log.exists() and log.read_text() == "8476 false\n")


def test_the_log_of_a_run_that_jax_aborted_ends_in_words(cloud: Any) -> None:
    cloud.run("tpu_launch.sh", "start --tpu=t -- bash -c 'kill -ABRT $$'")
    log = cloud.home / "kcmoe-runs/train.log"
    wait_for(lambda: log.exists() and "another host was lost" in log.read_text())
    wait_for(lambda: "ended 134" in cloud.run("tpu_launch.sh", "status --tpu=t").stdout)


def test_setup_waits_for_the_system_and_takes_no_release_candidate(cloud: Any) -> None:
    (cloud.folder / "candidate").touch()
    (cloud.folder / "locked").write_text("x\n" * 3)
    done = cloud.run(str(cloud.home / "kcmoe/scripts/tpu_setup.sh"), "--here")
    assert done.returncode == 0, done.stderr
    asked = (cloud.folder / "sudo").read_text().splitlines()
    assert sum("update" in line for line in asked) == 5, "three times in vain, before and after"
    assert "add-apt-repository --yes ppa:deadsnakes/ppa" in asked
    assert asked[-1].endswith("install -qq -y python3.11 python3.11-venv")
    assert all("Lock::Timeout=600" in line for line in asked if "apt-get" in line)
    made = (cloud.home / "kcmoe/.venv/made-of").read_text()
    assert "engine t5x" in made


def test_setup_of_the_engine_leaves_t5x_out(cloud: Any) -> None:
    (cloud.home / "kcmoe/commit").write_text("1234567\n")
    done = cloud.run(str(cloud.home / "kcmoe/scripts/tpu_setup.sh"), "--here --engine=kcmoe")
    assert done.returncode == 0, done.stderr
    installed = (cloud.folder / "installed").read_text()
    assert "--editable .[tpu]" in installed
    assert "requirements.txt" not in installed
    assert "commit 1234567, engine kcmoe" in (cloud.home / "kcmoe/.venv/made-of").read_text()


@pytest.mark.parametrize(
    ("verb", "words"),
    [("stop", "train was stopped while this watched"), ("delete", "t was deleted while this")],
)
def test_a_watch_does_not_bring_back_what_somebody_ended(verb: str, words: str, cloud: Any) -> None:
    cloud.set_workers(2)
    options = "--tpu=t --accelerator-type=v4-16"
    with ThreadPoolExecutor() as pool:
        watch = pool.submit(cloud.run, "tpu_launch.sh", f"resume {options} --watch=1 -- sleep 60")
        wait_for(lambda: (cloud.home_of(1) / "kcmoe-runs/train.log").exists())
        ended = cloud.run("tpu_launch.sh", f"{verb} --tpu=t")
        assert ended.returncode == 0, ended.stderr
        done = watch.result()
    assert done.returncode == 1
    assert words in done.stderr
    assert "create" not in cloud.verbs
    if verb == "stop":
        assert not cloud.processes(0) + cloud.processes(1)
        again = cloud.run("tpu_launch.sh", f"resume {options} -- sleep 60")
        assert "train is stopped: starting it" in again.stdout
        assert cloud.processes(0)
        assert cloud.processes(1)


def test_a_watch_waits_while_a_machine_comes_or_goes(cloud: Any) -> None:
    """Its request is ACTIVE a little before it is there, and a little after `delete` took it away."""
    cloud.set_state("WAITING_FOR_RESOURCES", "queue")
    cloud.set_state("")
    with ThreadPoolExecutor() as pool:
        watch = pool.submit(cloud.run, "tpu_launch.sh", f"resume --tpu=t {V6E} --watch=0 -- echo")
        wait_for(lambda: cloud.verbs.count("queue-describe") > 1)
        cloud.set_state("ACTIVE", "queue")
        seen = len(cloud.calls)
        wait_for(lambda: cloud.verbs[seen:].count("queue-describe") > 2)
        cloud.set_state("", "queue")
        done = watch.result()
    assert "t is not there, its queued resource ACTIVE: waiting" in done.stdout
    assert "t was deleted while this watched" in done.stderr
    assert set(cloud.verbs) == {"describe", "queue-describe"}, "nothing was deleted or made"


def test_a_stop_waits_for_a_start_that_is_under_way(cloud: Any) -> None:
    slow = cloud.folder / "bin/date"  # which a start asks before there is a process
    slow.write_text('#!/bin/sh\ntouch "$FAKE/asked"\nsleep 1\nexec /bin/date "$@"\n')
    slow.chmod(0o755)
    with ThreadPoolExecutor() as pool:
        start = pool.submit(cloud.run, "tpu_launch.sh", "start --tpu=t -- sleep 60")
        wait_for((cloud.folder / "asked").exists)
        stopped = cloud.run("tpu_launch.sh", "stop --tpu=t")
        assert start.result().returncode == 0
    assert "0: stopped train" in stopped.stdout
    assert not cloud.processes()


def test_where_a_machine_is_not_made_again_the_watch_says_so_first(cloud: Any) -> None:
    done = cloud.run("tpu_launch.sh", "resume --tpu=t --watch=0 -- true")
    assert done.returncode == 0
    assert done.stderr.startswith("Note: without --accelerator-type a TPU VM that is taken away")


def test_what_comes_next_is_said_with_zone_and_project(cloud: Any) -> None:
    place = "--tpu=t --zone=z --project=p"
    made = cloud.run("tpu_launch.sh", f"create {place} --accelerator-type=v4-8")
    assert f"Next: bash scripts/tpu_setup.sh {place} --engine=t5x" in made.stdout
    begun = cloud.run("tpu_launch.sh", f"start {place} -- true")
    assert f"bash scripts/tpu_launch.sh tail {place} --run=train" in begun.stdout

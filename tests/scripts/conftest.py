# SPDX-License-Identifier: Apache-2.0
"""A fake gcloud: one TPU VM whose workers are this machine, each with a temporary folder for its home."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Notes each call, keeps the states of the TPU VM and of its queued resource in files, and does what ssh and
# scp would do, on each worker that --worker names.
GCLOUD = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >>"$FAKE/calls"
[[ $1 != alpha ]] || shift
[[ "$1 $2" == "compute tpus" ]] || exit 9
kind=$3 verb=$4 name=$5
shift 5
broken() { # each line of the file is one failure to come
  [[ -s $FAKE/fail_$1 ]] || return
  head -n 1 "$FAKE/fail_$1" >&2
  sed -i 1d "$FAKE/fail_$1"
}
file=$FAKE/state
[[ $kind == tpu-vm ]] || file=$FAKE/queue
! broken "$verb" || exit 1
option() {
  local argument
  for argument in "${@:2}"; do [[ $argument != "$1"=* ]] || echo "${argument#*=}"; done
}
home() { echo "$FAKE/home${1/#0/}"; }
workers=$(option --worker "$@")
[[ $workers != all ]] || workers=$(seq 0 $(($(cat "$FAKE/workers") - 1)))
case $verb in
describe)
  grep . "$file" && exit
  echo "ERROR: (gcloud.compute.tpus.$kind.describe) NOT_FOUND: Resource '$name' was not found" >&2
  exit 1
  ;;
create)
  if [[ $kind == tpu-vm ]]; then echo READY >"$file"; else echo WAITING_FOR_RESOURCES >"$file"; fi
  ;;
delete)
  [[ -s $FAKE/stuck ]] || rm -f "$file"
  if [[ $kind == tpu-vm ]]; then
    for w in $(seq 0 $(($(cat "$FAKE/workers") - 1))); do rm -rf "$(home $w)"; mkdir "$(home $w)"; done
  fi
  ;;
ssh | scp) [[ -s $FAKE/state ]] || exit 1 ;;& # a machine that is gone
scp) for w in ${workers:-0}; do cp "$name" "$(home $w)/${1#*:}"; done ;;
ssh)
  status=0
  output=$(option --output-directory "$@") command=$(option --command "$@")
  for w in ${workers:-0}; do
    broken "ssh_$w" && status=1 && continue
    log=/dev/stdout
    if [[ -n $output ]]; then
      log=$output/$w.log
      echo "Warning: Permanently added 'tpu.$w' (ED25519) to the list of known hosts." >"$log"
    fi
    (cd "$(home $w)" && HOME=$(home $w) KCMOE_DEV=$FAKE/dev$w bash -c "$command") >>"$log" 2>&1 || status=1
  done
  exit $status
  ;;
esac
"""
# A Python that makes no real environment: its pip and imports only leave a note.
PYTHON = r"""#!/usr/bin/env bash
[[ ! -e $FAKE/candidate || $1 != -c ]] || exit 1 # what is here is a release candidate
if [[ "$1 $2" == "-m venv" ]]; then
  mkdir -p "$3/bin"
  printf '#!/usr/bin/env bash\nprintf "%%s\\n" "python $*" >>"$FAKE/installed"\n' >"$3/bin/python"
  chmod +x "$3/bin/python"
fi
"""
# An Ubuntu 22.04 that is just updating itself: its lock is held as long as `locked` has lines, and its Python
# 3.11 is a release candidate until there is another place to get one from.
SUDO = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >>"$FAKE/sudo"
case $* in
*apt-get*)
  if [[ -s $FAKE/locked ]]; then
    sed -i 1d "$FAKE/locked"
    echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (unattended-upgr)" >&2
    exit 100
  fi
  if [[ $* == *install* && -e $FAKE/ppa ]]; then rm "$FAKE/candidate"; fi
  ;;
add-apt-repository*) touch "$FAKE/ppa" ;;
esac
"""
APT_CACHE = "#!/bin/sh\necho '  Candidate: 3.11.0~rc1-1~22.04.1~esm7'\n"


@dataclasses.dataclass
class Cloud:
    """The fake, and what happened to it."""

    folder: Path

    @property
    def temporary(self) -> Path:
        return self.folder / "for a while"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def home_of(self, worker: int) -> Path:
        return self.folder / f"home{worker or ''}"

    def set_workers(self, count: int) -> None:
        """So many workers, each with chips and with everything set up."""
        (self.folder / "workers").write_text(str(count))
        for worker in range(count):
            scripts = self.home_of(worker) / "kcmoe/scripts"
            scripts.mkdir(parents=True, exist_ok=True)
            for file in (ROOT / "scripts").glob("tpu_*.sh"):
                (scripts / file.name).write_bytes(file.read_bytes())
            self.set_up(worker)
            for chip in range(4):
                device = self.folder / f"dev{worker}/accel{chip}"
                device.parent.mkdir(exist_ok=True)
                device.touch()

    def set_up(self, worker: int, commit: str = "abc1234", engine: str = "t5x") -> None:
        """What tpu_setup.sh leaves on a worker."""
        file = self.home_of(worker) / "kcmoe/.venv/made-of"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"commit {commit}, engine {engine}, Python 3.11.9, jax 0.10.2\n")

    def processes(self, worker: int = 0, run: str = "train") -> list[int]:
        """Every process of the run that lives."""
        mark = (self.home_of(worker) / f"kcmoe-runs/{run}.id").read_text().strip()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if f"KCMOE_RUN_ID={mark}\0".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    @property
    def calls(self) -> list[str]:
        """Arguments of every gcloud call so far, "compute tpus" and "tpu-vm" left out."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [re.sub(r"^(alpha )?compute tpus (tpu-vm )?", r"\1", line) for line in lines]

    @property
    def verbs(self) -> list[str]:
        """The verb of each; of queued resources "queue-" and the verb."""
        calls = [call.removeprefix("alpha ").split() for call in self.calls]
        return [f"queue-{w[1]}" if w[0] == "queued-resources" else w[0] for w in calls]

    def set_state(self, state: str, kind: str = "state") -> None:
        """Of the TPU VM, or (`queue`) of its queued resource; "" where there is none."""
        new = self.folder / f"{kind}.new"
        new.write_text(f"{state}\n")
        new.replace(self.folder / kind)  # somebody may be looking

    def fail(self, verb: str, message: str, times: int = 1) -> None:
        """The next `times` calls of `verb` fail with this line; `ssh_N` is ssh at worker N alone."""
        (self.folder / f"fail_{verb}").write_text(f"{message}\n" * times)

    def run(self, script: str, arguments: str) -> subprocess.CompletedProcess[str]:
        """bash scripts/SCRIPT ARGUMENTS, with the fakes first on the path."""
        self.temporary.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "FAKE": str(self.folder),
            "TMPDIR": str(self.temporary),
            "KCMOE_STOP_S": "1",
            "KCMOE_LOCK_S": "0",
        }
        return subprocess.run(
            ["bash", str(ROOT / "scripts" / script), *shlex.split(arguments)],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    programs = {"gcloud": GCLOUD, "python3.11": PYTHON, "sudo": SUDO, "apt-cache": APT_CACHE}
    for name, text in programs.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    fake = Cloud(tmp_path)
    fake.set_workers(1)
    fake.set_state("READY")
    yield fake
    for mark in tmp_path.glob("home*/kcmoe-runs/*.id"):
        worker = int(mark.parts[-3].removeprefix("home") or 0)
        for process in fake.processes(worker, mark.stem):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

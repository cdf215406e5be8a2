# SPDX-License-Identifier: Apache-2.0
"""A fake gcloud: one TPU VM whose home folder is a temporary one and whose workers are this machine."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Notes each call, keeps the state of the TPU VM in a file, and does what ssh and scp would do.
GCLOUD = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >>"$FAKE/calls"
[[ "$1 $2 $3" == "compute tpus tpu-vm" ]] || exit 9
verb=$4
shift 4
if [[ -s $FAKE/fail_$verb ]]; then # each line is one failure to come
  head -n 1 "$FAKE/fail_$verb" >&2
  sed -i 1d "$FAKE/fail_$verb"
  exit 1
fi
case $verb in
describe)
  grep . "$FAKE/state" && exit
  echo "ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource '$1' was not found" >&2
  exit 1
  ;;
create) echo READY >"$FAKE/state" ;;
delete) rm -rf "$FAKE/state" "$FAKE/home" && mkdir "$FAKE/home" ;;
scp) cp "$1" "$FAKE/home/${2#*:}" ;;
ssh)
  for argument in "$@"; do
    case $argument in --command=*) cd "$FAKE/home" && HOME=$FAKE/home bash -c "${argument#*=}" ;; esac
  done
  ;;
esac
"""
# A Python that makes no real environment: its pip and imports only leave a note.
PYTHON = r"""#!/usr/bin/env bash
if [[ "$1 $2" == "-m venv" ]]; then
  mkdir -p "$3/bin"
  printf '#!/usr/bin/env bash\nprintf "%%s\\n" "python $*" >>"$FAKE/installed"\n' >"$3/bin/python"
  chmod +x "$3/bin/python"
fi
"""


@dataclasses.dataclass
class Cloud:
    """The fake, and what happened to it."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def calls(self) -> list[str]:
        """Arguments of every gcloud call so far, "compute tpus tpu-vm" left out."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.removeprefix("compute tpus tpu-vm ") for line in lines]

    @property
    def verbs(self) -> list[str]:
        return [call.split()[0] for call in self.calls]

    def set_state(self, state: str) -> None:
        (self.folder / "state").write_text(f"{state}\n")

    def fail(self, verb: str, message: str, times: int = 1) -> None:
        """The next `times` calls of `verb` fail with this line."""
        (self.folder / f"fail_{verb}").write_text(f"{message}\n" * times)

    def run(self, script: str, arguments: str) -> subprocess.CompletedProcess[str]:
        """bash scripts/SCRIPT ARGUMENTS, with the fakes first on the path."""
        environment = {
            **os.environ,
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "FAKE": str(self.folder),
            "TMPDIR": str(self.folder),
        }
        return subprocess.run(
            ["bash", str(ROOT / "scripts" / script), *shlex.split(arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    for name, text in (("gcloud", GCLOUD), ("python3.11", PYTHON)):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    scripts = tmp_path / "home/kcmoe/scripts"
    scripts.mkdir(parents=True)
    for file in (ROOT / "scripts").glob("tpu_*.sh"):
        (scripts / file.name).write_bytes(file.read_bytes())
    fake = Cloud(tmp_path)
    fake.set_state("READY")
    return fake

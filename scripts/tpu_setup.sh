#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Kc-MoE, T5X and Flaxformer on every worker of a TPU VM, at the commits that were tested.
#
#   bash scripts/tpu_setup.sh --tpu=NAME [--zone=ZONE] [--project=PROJECT] [--dry-run]
#       from your own machine: copies the last commit of this clone to all workers, installs it there
#   bash scripts/tpu_setup.sh --here [--dry-run]
#       on the machine you are logged into
#
# Takes a few minutes; can be run again. The virtual environment is ~/kcmoe/.venv. Zone and project may
# also stand in gcloud's settings (`gcloud config set compute/zone …`).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/tpu_common.sh

HERE=''
for argument in "$@"; do
  case $argument in
  --here) HERE=1 ;;
  --help | -h)
    sed -n '3,12s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  *) common_option "$argument" || fail "unknown option $argument; see --help" ;;
  esac
done

# T5X was tested with Python 3.11, which TPU images before Ubuntu 24.04 do not bring.
install_python() {
  if ! command -v python3.11 >/dev/null; then
    if ! apt-cache show python3.11-venv >/dev/null 2>&1; then
      run sudo add-apt-repository --yes ppa:deadsnakes/ppa
    fi
    run sudo apt-get update -qq
    run sudo apt-get install -qq -y python3.11 python3.11-venv
  fi
}

install_here() {
  install_python
  [[ -x .venv/bin/python ]] || run python3.11 -m venv .venv
  run .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[t5x,tpu]"
  run .venv/bin/python -m pip install --quiet --no-deps --requirement kcmoe/t5x/requirements.txt
  run .venv/bin/python -c "import kcmoe.t5x.bindings; print('Kc-MoE, T5X and Flaxformer are installed')"
}

install_on_workers() {
  need_tpu
  git rev-parse --verify --quiet HEAD >/dev/null || fail "run it from a git clone; the last commit is what gets installed"
  git diff --quiet HEAD || echo "Note: changes that are not committed stay here; the workers get the last commit." >&2
  local archive
  archive=${TMPDIR:-/tmp}/kcmoe-$(git rev-parse --short HEAD).tar.gz
  run git archive --format=tar.gz "--output=$archive" HEAD
  tpu_vm scp "$archive" "$TPU:kcmoe.tar.gz" --worker=all
  on_worker all "mkdir -p $TREE && tar -xzf kcmoe.tar.gz -C $TREE && bash $TREE/scripts/tpu_setup.sh --here"
  run rm "$archive"
}

if [[ -n $HERE ]]; then
  install_here
else
  install_on_workers
fi

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Kc-MoE, T5X and Flaxformer on every worker of a TPU VM, at the commits that were tested.
#
#   bash scripts/tpu_setup.sh --tpu=NAME [--engine=t5x|kcmoe] [--zone=ZONE] [--project=PROJECT] [--dry-run]
#       from your own machine: copies the last commit of this clone to all workers, installs it there
#   bash scripts/tpu_setup.sh --here [--engine=t5x|kcmoe] [--dry-run]
#       on the machine you are logged into
#
# Takes a few minutes; can be run again. --engine=kcmoe leaves T5X, Flaxformer and TensorFlow out. The virtual
# environment is ~/kcmoe/.venv. Zone and project may also stand in gcloud's settings (`gcloud config set
# compute/zone …`).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/tpu_common.sh

HERE=''
for argument in "$@"; do
  case $argument in
  --here) HERE=1 ;;
  --help | -h)
    sed -n '3,13s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  *) common_option "$argument" || fail "unknown option $argument; see --help" ;;
  esac
done

# T5X was tested with Python 3.11. Ubuntu 22.04 has a release candidate of it, later ones another Python.
has_python() {
  python3.11 -c 'import sys; sys.exit(sys.version_info.releaselevel != "final")' 2>/dev/null
}

# A machine that has just started updates itself, and apt-get would fail while that goes on.
apt_get() {
  local complaint
  if [[ -n $DRY_RUN ]]; then
    run sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 "$@"
    return
  fi
  for _ in {1..60}; do
    complaint=$(sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 "$@" 2>&1) && return
    [[ $complaint == *"Could not get lock"* ]] || break
    sleep "${KCMOE_LOCK_S:-10}"
  done
  echo "$complaint" >&2
  return 1
}

install_python() {
  has_python && return
  apt_get update -qq
  if ! apt-cache policy python3.11-venv 2>/dev/null | grep -qE 'Candidate: 3\.11\.[0-9]+[^~]*$'; then
    run sudo add-apt-repository --yes ppa:deadsnakes/ppa
    apt_get update -qq
  fi
  apt_get install -qq -y python3.11 python3.11-venv
  [[ -n $DRY_RUN ]] || has_python || fail "python3.11 is $(python3.11 -V 2>&1 || true), not a final 3.11; install one by hand"
}

install_here() {
  local extras=tpu
  [[ $ENGINE != t5x ]] || extras=t5x,tpu
  install_python
  run rm -f .venv/made-of
  [[ -x .venv/bin/python ]] || run python3.11 -m venv .venv
  run .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$extras]"
  if [[ $ENGINE == t5x ]]; then
    run .venv/bin/python -m pip install --quiet --no-deps --requirement kcmoe/t5x/requirements.txt
    run .venv/bin/python -c "import kcmoe.t5x.bindings; print('Kc-MoE, T5X and Flaxformer are installed')"
  else
    run .venv/bin/python -c "import kcmoe.train; print('Kc-MoE is installed')"
  fi
  # What `tpu_launch.sh check` compares among workers. Written last: without it the worker is not ready.
  [[ -n $DRY_RUN ]] || echo "commit $(cat commit 2>/dev/null || git rev-parse --short HEAD), engine $ENGINE, \
$(.venv/bin/python -V), jax $(.venv/bin/python -c 'import jax; print(jax.__version__)')" >.venv/made-of
}

install_on_workers() {
  need_tpu
  git rev-parse --verify --quiet HEAD >/dev/null || fail "run it from a git clone; the last commit is what gets installed"
  git diff --quiet HEAD || echo "Note: changes that are not committed stay here; the workers get the last commit." >&2
  local archive commit
  commit=$(git rev-parse --short HEAD)
  archive=${TMPDIR:-/tmp}/kcmoe-$commit.tar.gz
  run git archive --format=tar.gz "--output=$archive" HEAD
  tpus tpu-vm scp "$archive" "$TPU:kcmoe.tar.gz" --worker=all
  on_worker all "mkdir -p $TREE && tar -xzf kcmoe.tar.gz -C $TREE && echo $commit >$TREE/commit && \
bash $TREE/scripts/tpu_setup.sh --here --engine=$ENGINE"
  run rm "$archive"
}

if [[ -n $HERE ]]; then
  install_here
else
  install_on_workers
fi

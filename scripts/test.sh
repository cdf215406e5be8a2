#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Format, lint, types and the tests, but those that take minutes each. About ten minutes on two idle cores.
#
#   bash scripts/test.sh                  what continuous integration runs
#   bash scripts/test.sh -m ""            the slow tests as well, about twice as long
#   bash scripts/test.sh -k router -x     further arguments go to pytest
#
# Sets up its own virtual environment, .venv-test, and can be run again at any time.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

use_environment .venv-test dev

echo "== ruff"
ruff format --check --quiet . || {
  echo "Some files are not formatted; run: .venv-test/bin/ruff format ." >&2
  exit 1
}
ruff check --quiet .

echo "== mypy"
mypy

echo "== pytest"
python -m pytest -n 2 --dist=worksteal -m "not slow" "$@"  # two processes: most of the time is spent compiling

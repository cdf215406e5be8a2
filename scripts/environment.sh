# SPDX-License-Identifier: Apache-2.0
# Sourced by quickstart.sh and test.sh: a virtual environment with Kc-MoE in it, made once.
#
# use_environment FOLDER [EXTRA]   e.g.  use_environment .venv-test dev
#
# The environment is made again only when what decides its contents changes (Python, setup.py,
# constraints.txt). PYTHON=… chooses the interpreter; otherwise the first of 3.11 and newer is taken.

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "No Python 3.11 or newer found. Install one, or name it: PYTHON=/path/to/python3 bash $0" >&2
  return 2
}

use_environment() {
  local folder=$1 extra=${2:-} python wanted
  python=$(find_python) || return
  wanted="$("$python" -c 'import sys; print(sys.version)') $extra
$(cat setup.py pyproject.toml constraints.txt)"
  if [[ ! -x $folder/bin/kcmoe ]] || [[ "$(cat "$folder/made-from" 2>/dev/null)" != "$wanted" ]]; then
    echo "Installing Kc-MoE into $folder (once; a minute or two) ..."
    # An environment that somebody else made is added to, never emptied.
    local clear=--clear
    [[ -e $folder && ! -e $folder/made-from ]] && clear=
    if ! "$python" -m venv $clear "$folder"; then
      echo "Python cannot make virtual environments here. On Debian: apt-get install python3-venv" >&2
      return 2
    fi
    # --no-compile: most modules are never imported, and the others compile when they are.
    "$folder/bin/python" -m pip install --quiet --no-compile --constraint constraints.txt --editable ".${extra:+[$extra]}"
    printf '%s\n' "$wanted" >"$folder/made-from"
  fi
  PATH="$PWD/$folder/bin:$PATH"
  export PATH
}

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What tpu_launch.sh asks of each worker: run a command that outlives the connection, look at it, end it.
#
#   bash scripts/tpu_worker.sh start|state|tail|stop RUN [COMMAND…]
#
# Works on any Linux machine. A run keeps RUN.log, RUN.pid and RUN.status (its exit status) in ~/kcmoe-runs.
set -euo pipefail
cd "$(dirname "$0")/.."

VERB=$1 RUN=$2
shift 2
FOLDER=~/kcmoe-runs
mkdir -p "$FOLDER"
LOG="$FOLDER/$RUN.log" PID="$FOLDER/$RUN.pid" STATUS="$FOLDER/$RUN.status"

# The process group, so that a run counts as alive while any of its processes is.
is_alive() { [[ -s $PID ]] && kill -0 -- "-$(cat "$PID")" 2>/dev/null; }

start() {
  if is_alive; then
    echo "$RUN is already running" >&2
    return 1
  fi
  rm -f "$STATUS"
  PATH=$PWD/.venv/bin:$PATH
  # Orbax saves from several hosts only where JAX's distributed service runs; kcmoe.t5x starts it then.
  export PATH KCMOE_DISTRIBUTED=${KCMOE_DISTRIBUTED-1}
  # shellcheck disable=SC2016  # the inner shell expands these
  setsid nohup bash -c '"${@:2}"; echo $? >"$1"' run "$STATUS" "$@" >>"$LOG" 2>&1 </dev/null &
  echo $! >"$PID"
}

state() {
  if is_alive; then
    echo running
  elif [[ -s $STATUS ]]; then
    echo "ended $(cat "$STATUS")"
  elif [[ -e $PID ]]; then
    echo killed
  else
    echo absent
  fi
}

stop() {
  if is_alive; then
    kill -TERM -- "-$(cat "$PID")"
    echo "stopped $RUN"
  else
    echo "$RUN is $(state), nothing to stop"
  fi
}

case $VERB in
start) start "$@" ;;
state) state ;;
tail) tail -n 50 -F "$LOG" ;;
stop) stop ;;
*) echo "tpu_worker.sh: unknown verb $VERB" >&2 && exit 2 ;;
esac

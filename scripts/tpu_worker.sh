#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What tpu_launch.sh asks of each worker: run a command that outlives the connection, look at it, end it.
#
#   bash scripts/tpu_worker.sh start|state|check|tail|log|stop|end RUN [COMMAND…]
#
# Works on any Linux machine. A run keeps RUN.log, RUN.id and RUN.status (its exit status) in ~/kcmoe-runs,
# and RUN.stopped where `stop` was said and nothing has started it since; `end` leaves that out.
set -euo pipefail
cd "$(dirname "$0")/.."

VERB=$1 RUN=$2
shift 2
FOLDER=~/kcmoe-runs
mkdir -p "$FOLDER"
LOG="$FOLDER/$RUN.log" ID="$FOLDER/$RUN.id" STATUS="$FOLDER/$RUN.status" STOPPED="$FOLDER/$RUN.stopped"
STOP_S=${KCMOE_STOP_S:-120}   # for a run to save and end after SIGTERM, before SIGKILL
KILLED_S=${KCMOE_KILLED_S:-20} # for the system to clear away what SIGKILL ended

# Numbers of all processes of the run, also those that left its process group: each has RUN's mark.
processes() {
  local path
  [[ -s $ID ]] || return 0
  grep -lzxsF "KCMOE_RUN_ID=$(cat "$ID")" /proc/[0-9]*/environ | while read -r path; do
    path=${path#/proc/}
    echo "${path%/environ}"
  done
}

is_alive() { [[ -n $(processes) ]]; }

start() {
  if is_alive; then
    echo "$RUN is already running" >&2
    return 1
  fi
  rm -f "$STATUS" "$STOPPED"
  echo "$RUN.$$.$(date +%s)" >"$ID"
  PATH=$PWD/.venv/bin:$PATH
  # KCMOE_DISTRIBUTED: Orbax saves from several hosts only where JAX's distributed service runs. 8476 is the port
  # for it that Google's own firewall rule opens between slices. JAX's preemption service would swallow SIGTERM.
  export PATH KCMOE_DISTRIBUTED=${KCMOE_DISTRIBUTED-1} JAX_COORDINATOR_PORT=${JAX_COORDINATOR_PORT-8476} \
    JAX_ENABLE_PREEMPTION_SERVICE=${JAX_ENABLE_PREEMPTION_SERVICE-false}
  # shellcheck disable=SC2016  # the inner shell expands these
  KCMOE_RUN_ID=$(cat "$ID") setsid nohup bash -c '"${@:2}"; status=$?; case $status in
    134) echo "tpu_worker.sh: JAX gave up, most often because another host was lost. tpu_launch.sh resume starts all again" ;;
    137) echo "tpu_worker.sh: the run was killed (SIGKILL): by stop, or by Linux, which was short of memory" ;;
  esac; echo $status >"$1"' run "$STATUS" "$@" >>"$LOG" 2>&1 </dev/null 9>&- &
  until is_alive || [[ -s $STATUS ]]; do sleep 0.05; done
}

state() {
  if is_alive; then
    echo running
  elif [[ -e $STOPPED ]]; then
    echo stopped
  elif [[ -s $STATUS ]]; then
    echo "ended $(cat "$STATUS")"
  elif [[ -e $ID ]]; then
    echo killed
  else
    echo absent
  fi
}

# One line: what must be the same on all workers, then what must be enough on each, then the run.
check() {
  local chips=0 made='' free device
  for device in "${KCMOE_DEV:-/dev}"/accel[0-9]* "${KCMOE_DEV:-/dev}"/vfio/[0-9]*; do
    [[ -e $device ]] && chips=$((chips + 1))
  done
  made=$(cat .venv/made-of 2>/dev/null) || true
  free=$(df -BG --output=avail ~ | tail -n 1 | tr -dc 0-9)
  echo "${made:-nothing installed}; $chips chips; $free GB free; $(state)"
}

# gone_within SECONDS [SIGNAL]: waits until nothing of the run is left, sending the signal to what is; status 1 if
# that takes longer.
# shellcheck disable=SC2046  # numbers
gone_within() {
  local end=$((SECONDS + $1))
  while is_alive; do
    [[ $# -lt 2 ]] || kill "-$2" $(processes) 2>/dev/null || true
    [[ $SECONDS -lt $end ]] || return 1
    sleep 0.2
  done
}

# shellcheck disable=SC2046  # numbers
end() {
  if ! is_alive; then
    echo "$RUN is $(state), nothing to stop"
    return
  fi
  kill -TERM $(processes) 2>/dev/null || true
  if gone_within "$STOP_S"; then
    echo "stopped $RUN"
    return
  fi
  if gone_within "$KILLED_S" KILL; then
    echo "stopped $RUN by SIGKILL: it did not end within $STOP_S s of SIGTERM"
    return
  fi
  echo "$RUN is STILL RUNNING as $(processes | tr '\n' ' '): not even SIGKILL ended it; restart the machine" >&2
  return 1
}

stop() {
  [[ $(state) == "absent" || $(state) == "ended 0" ]] || touch "$STOPPED"
  end
}

# One at a time, or a stop could come before the process that a start is just making.
case $VERB in
start | stop | end) exec 9>"$FOLDER/$RUN.lock" && flock 9 ;;
esac
case $VERB in
start) start "$@" ;;
state) state ;;
check) check ;;
tail) tail -n 50 -F "$LOG" ;;
log) cat "$LOG" ;;
stop) stop ;;
end) end ;;
*) echo "tpu_worker.sh: unknown verb $VERB" >&2 && exit 2 ;;
esac

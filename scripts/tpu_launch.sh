#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Starts a command on every worker of a TPU VM, and brings it back after a preemption.
#
#   bash scripts/tpu_launch.sh start  --tpu=NAME [--run=NAME] -- python -m t5x.train --gin_file=configs/t5x/… …
#   bash scripts/tpu_launch.sh resume --tpu=NAME [--run=NAME] --accelerator-type=v3-8 --version=tpu-ubuntu2204-base \
#       [--spot] [--watch[=SECONDS]] -- the same command
#   bash scripts/tpu_launch.sh status|tail|stop --tpu=NAME [--run=NAME]
#
# All take --zone=ZONE --project=PROJECT --dry-run (prints the commands and does nothing). `start` needs
# scripts/tpu_setup.sh to have run. `resume` does what is needed: nothing where the run goes on or has
# ended well, a start where it ended badly, and a new TPU VM with everything on it where the old one was
# preempted; T5X then goes on from the newest checkpoint in MODEL_DIR, which must be in a bucket. With
# --watch it looks again every 60 seconds until the run has ended.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/tpu_common.sh

RUN=train ACCELERATOR='' VERSION='' SPOT='' WATCH=''
RESTARTS_ALLOWED=3 # while the TPU VM itself is well; after that the fault is in the run

VERB=${1:-}
[[ $# -eq 0 ]] || shift
case $VERB in
start | resume | status | tail | stop) ;;
--help | -h)
  sed -n '3,16s/^# \{0,1\}//p' "$0"
  exit 0
  ;;
*) fail "say what to do: start, resume, status, tail or stop; see --help" ;;
esac
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
  --run=*) RUN=${1#*=} ;;
  --accelerator-type=*) ACCELERATOR=${1#*=} ;;
  --version=*) VERSION=${1#*=} ;;
  --spot) SPOT=1 ;;
  --watch) WATCH=60 ;;
  --watch=*) WATCH=${1#*=} ;;
  *) common_option "$1" || fail "unknown option $1; see --help" ;;
  esac
  shift
done
[[ $# -eq 0 ]] || shift # the --
COMMAND=("$@")
need_tpu
[[ $RUN =~ ^[A-Za-z0-9_.-]+$ ]] || fail "--run=$RUN may only have letters, digits, dots, _ and -"
[[ -z $WATCH || $WATCH =~ ^[0-9]+$ ]] || fail "--watch=$WATCH must be a number of seconds"
case $VERB in
start | resume) [[ ${#COMMAND[@]} -gt 0 ]] || fail "say what to run: … -- python -m t5x.train --gin_file=configs/t5x/…" ;;
*) [[ ${#COMMAND[@]} -eq 0 ]] || fail "$VERB takes no command" ;;
esac

# worker NUMBER|all VERB ARGUMENT…: what tpu_worker.sh does, there.
worker() {
  on_worker "$1" "$(quoted bash "$TREE/scripts/tpu_worker.sh" "$2" "$RUN" "${@:3}")"
}

start() {
  worker all start "${COMMAND[@]}"
  [[ -n $DRY_RUN ]] || echo "Started. Follow it with: bash scripts/tpu_launch.sh tail --tpu=$TPU --run=$RUN"
}

# Prints "running", "ended 0", "ended N", "killed" or "absent", as worker 0 has it.
run_state() {
  DRY_RUN='' worker 0 state
}

# Prints READY, PREEMPTED, …, or nothing where there is no such TPU VM.
tpu_state() {
  DRY_RUN='' tpu_vm describe "$TPU" "--format=value(state)" 2>/dev/null || true
}

create_and_start() {
  [[ -n $ACCELERATOR && -n $VERSION ]] ||
    fail "the TPU VM $TPU is ${1:-not there}; to make it again say --accelerator-type=TYPE --version=IMAGE"
  [[ -z $1 ]] || tpu_vm delete "$TPU" --quiet
  tpu_vm create "$TPU" "--accelerator-type=$ACCELERATOR" "--version=$VERSION" ${SPOT:+--spot}
  bash scripts/tpu_setup.sh "--tpu=$TPU" ${ZONE:+"--zone=$ZONE"} ${PROJECT:+"--project=$PROJECT"} ${DRY_RUN:+--dry-run}
  start
}

# Looks once and does what is needed; status 0 while there is something to watch, 3 when the run ended well.
restarts=0
resume_once() {
  local state run_now
  state=$(tpu_state)
  case $state in
  READY)
    run_now=$(run_state)
    case $run_now in
    running) echo "$(date +%H:%M:%S) $RUN is running" ;;
    "ended 0") echo "$RUN has ended well" && return 3 ;;
    *)
      restarts=$((restarts + 1))
      if [[ $restarts -gt $RESTARTS_ALLOWED ]]; then
        echo "${0##*/}: $RUN failed $RESTARTS_ALLOWED times on a healthy TPU VM; see why with: tail" >&2
        return 1
      fi
      echo "$RUN is $run_now: starting it"
      start
      ;;
    esac
    ;;
  "" | PREEMPTED | TERMINATED)
    echo "$TPU is ${state:-not there}: making it again"
    restarts=0
    create_and_start "$state"
    ;;
  STOPPED) tpu_vm start "$TPU" && start ;;
  *) echo "$(date +%H:%M:%S) $TPU is $state: waiting" ;;
  esac
}

resume() {
  if [[ -n $DRY_RUN ]]; then # what a preempted TPU VM would need
    tpu_vm describe "$TPU" "--format=value(state)"
    create_and_start PREEMPTED
    return
  fi
  local outcome
  while true; do
    outcome=0
    resume_once || outcome=$?
    [[ $outcome -ne 3 ]] || return 0
    # A TPU VM that is preempted this very moment makes single commands fail; look again.
    [[ $outcome -eq 0 || -n $WATCH && $restarts -le $RESTARTS_ALLOWED ]] || return "$outcome"
    [[ -n $WATCH ]] || return 0
    sleep "$WATCH"
  done
}

case $VERB in
start) start ;;
resume) resume ;;
status)
  tpu_vm describe "$TPU" "--format=value(state)"
  worker all state
  ;;
tail) worker 0 tail ;;
stop) worker all stop ;;
esac

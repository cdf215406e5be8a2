#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Starts a command on every worker of a TPU VM, and brings it back after a preemption.
#
#   bash scripts/tpu_launch.sh start  --tpu=NAME [--run=NAME] -- python -m t5x.train --gin_file=configs/… …
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
RESTARTS_ALLOWED=3         # while the TPU VM itself is well; after that the fault is in the run
LOOKS_OF_A_GOOD_RUN=10     # a run seen running so often since its start goes well; it may fail anew
ENDED_WELL=100 GAVE_UP=101 # statuses that neither gcloud nor ssh ends with
restarts=0 looks=0 BARE='' # BARE: the TPU VM was made here, and its setup has not ended well yet

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
for argument in "${COMMAND[@]}"; do # found here rather than on every worker
  file=${argument#--gin_file=}
  [[ $argument != --gin_file=configs/* || -e $file ]] ||
    fail "there is no $file; a run is --gin_file=configs/sizes/X.gin --gin_file=configs/tasks/X.gin \
--gin_file=configs/runs/X.gin --gin_file=configs/t5x/X.gin, see how-to-train.md"
done

# worker NUMBER|all VERB ARGUMENT…: what tpu_worker.sh does, there.
worker() {
  on_worker "$1" "$(quoted bash "$TREE/scripts/tpu_worker.sh" "$2" "$RUN" "${@:3}")"
}

# Below here every step says `|| return`: bash forgets `set -e` in a function whose status is looked at.
start() {
  worker all start "${COMMAND[@]}" || return
  [[ -n $DRY_RUN ]] || echo "Started. Follow it with: bash scripts/tpu_launch.sh tail --tpu=$TPU --run=$RUN"
}

# Prints "running", "ended 0", "ended N", "killed" or "absent", as worker 0 has it; nothing where it is not reached.
run_state() {
  DRY_RUN='' worker 0 state || true
}

# Prints READY, PREEMPTED, …, nothing where there is no such TPU VM, or UNKNOWN where gcloud could not say.
tpu_state() {
  local complaint
  { complaint=$(DRY_RUN='' tpu_vm describe "$TPU" "--format=value(state)" 2>&1 >&3) && return; } 3>&1
  [[ $complaint == *NOT_FOUND* ]] && return
  echo "$complaint" >&2
  echo UNKNOWN
}

setup_and_start() {
  bash scripts/tpu_setup.sh "--tpu=$TPU" ${ZONE:+"--zone=$ZONE"} ${PROJECT:+"--project=$PROJECT"} \
    ${DRY_RUN:+--dry-run} || return
  BARE=''
  start
}

create_and_start() {
  [[ -n $ACCELERATOR && -n $VERSION ]] ||
    fail "the TPU VM $TPU is ${1:-not there}; to make it again say --accelerator-type=TYPE --version=IMAGE"
  if [[ -n $1 ]]; then tpu_vm delete "$TPU" --quiet || return; fi
  tpu_vm create "$TPU" "--accelerator-type=$ACCELERATOR" "--version=$VERSION" ${SPOT:+--spot} || return
  BARE=1
  setup_and_start
}

# Looks once and does what is needed. Status 0: well so far; ENDED_WELL and GAVE_UP: nothing more to watch; any
# other: a command failed, or gcloud could not say; look again.
resume_once() {
  local state run_now
  state=$(tpu_state)
  case $state in
  READY)
    run_now=$(run_state)
    case $run_now in
    running)
      echo "$(date +%H:%M:%S) $RUN is running"
      looks=$((looks + 1))
      [[ $looks -lt $LOOKS_OF_A_GOOD_RUN ]] || restarts=0
      ;;
    "ended 0") echo "$RUN has ended well" && return "$ENDED_WELL" ;;
    *)
      if [[ -n $BARE ]]; then
        try_again "$TPU is new and its setup has not ended well: again" setup_and_start
      elif [[ -z $run_now ]]; then
        echo "$(date +%H:%M:%S) $TPU is $state, but its worker gives no answer (was scripts/tpu_setup.sh run?): waiting"
        return 1
      else
        try_again "$RUN is $run_now: starting it" start
      fi
      ;;
    esac
    ;;
  "" | PREEMPTED | TERMINATED)
    echo "$TPU is ${state:-not there}: making it again"
    restarts=0 looks=0
    create_and_start "$state"
    ;;
  STOPPED) tpu_vm start "$TPU" && start ;;
  UNKNOWN)
    echo "$(date +%H:%M:%S) the state of $TPU is not known: waiting"
    return 1
    ;;
  *) echo "$(date +%H:%M:%S) $TPU is $state: waiting" ;;
  esac
}

# try_again WHY FUNCTION: does it, unless the run failed too often since it last went well.
try_again() {
  if [[ $restarts -ge $RESTARTS_ALLOWED ]]; then
    echo "${0##*/}: $RUN failed $RESTARTS_ALLOWED times on a healthy TPU VM; see why with: tail" >&2
    return "$GAVE_UP"
  fi
  restarts=$((restarts + 1)) looks=0
  echo "$1"
  "$2"
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
    [[ $outcome -ne $ENDED_WELL ]] || return 0
    [[ $outcome -ne $GAVE_UP ]] || return 1
    # A TPU VM that is preempted this very moment makes single commands fail; look again.
    [[ -n $WATCH ]] || return "$outcome"
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

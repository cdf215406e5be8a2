#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Starts a command on every worker of a TPU VM, brings it back after a preemption, ends it, and what costs money.
#
#   bash scripts/tpu_launch.sh create --tpu=NAME --accelerator-type=v5litepod-16 [--spot | --flex-start=24h]
#   bash scripts/tpu_launch.sh check  --tpu=NAME [--engine=t5x|kcmoe]
#   bash scripts/tpu_launch.sh start  --tpu=NAME [--run=NAME] [--engine=t5x|kcmoe] -- python -m t5x.train …
#   bash scripts/tpu_launch.sh resume --tpu=NAME [--run=NAME] [--engine=t5x|kcmoe] --accelerator-type=v5litepod-16 \
#       [--spot | --flex-start=24h] [--watch[=SECONDS]] -- the same command
#   bash scripts/tpu_launch.sh status|tail|stop --tpu=NAME [--run=NAME]
#   bash scripts/tpu_launch.sh logs   --tpu=NAME [--run=NAME] [--to=FOLDER]
#   bash scripts/tpu_launch.sh delete --tpu=NAME
#
# All take --zone=ZONE --project=PROJECT --dry-run (prints the commands and does nothing). A new machine has the
# image Google names for its kind, or --version=IMAGE; --queued asks through the queue, as --spot and --flex-start do.
# `start` needs scripts/tpu_setup.sh to have run. --engine=kcmoe is for `kcmoe train` and the like. `resume` does
# what is needed: nothing where the run goes on or has ended well; where it ended badly on one worker, an end and
# a start on all; and a new TPU VM with everything on it where the old one was preempted. The run then goes on from
# the newest checkpoint in MODEL_DIR, which must be in a bucket. With --watch it looks again every 60 seconds until
# the run has ended, or somebody has said `stop` or `delete` elsewhere. `logs` fetches those of all workers (into
# tpu-logs/); `stop` says only what is true, and fails where something runs on; `delete` takes the TPU VM and its
# queued resource away, and the bill with them.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/tpu_common.sh
source scripts/tpu_machine.sh

RUN=train WATCH='' TO=''
RESTARTS_ALLOWED=3         # while the TPU VM itself is well; after that the fault is in the run
LOOKS_OF_A_GOOD_RUN=10     # a run seen running so often since its start goes well; it may fail anew
DISK_NEEDED_GB=5           # logs and compiled programs; checkpoints are in the bucket
ENDED_WELL=100 GAVE_UP=101 # statuses that neither gcloud nor ssh ends with
restarts=0 looks=0 settled=''

VERB=${1:-}
[[ $# -eq 0 ]] || shift
case $VERB in
create | check | start | resume | status | tail | logs | stop | delete) ;;
--help | -h)
  sed -n '3,25s/^# \{0,1\}//p' "$0"
  exit 0
  ;;
*) fail "say what to do: create, check, start, resume, status, tail, logs, stop or delete; see --help" ;;
esac
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
  --run=*) RUN=${1#*=} ;;
  --to=*) TO=${1#*=} ;;
  --watch) WATCH=60 ;;
  --watch=*) WATCH=${1#*=} ;;
  *) common_option "$1" || machine_option "$1" || fail "unknown option $1; see --help" ;;
  esac
  shift
done
[[ $# -eq 0 ]] || shift # the --
COMMAND=("$@")
need_tpu
check_machine_options
[[ $RUN =~ ^[A-Za-z0-9][A-Za-z0-9_.-]*$ ]] ||
  fail "--run=$RUN may only have letters, digits, dots, _ and -, a letter or digit first"
[[ -z $WATCH || $WATCH =~ ^[0-9]+$ ]] || fail "--watch=$WATCH must be a number of seconds"
case $VERB in
start | resume)
  [[ ${#COMMAND[@]} -gt 0 ]] || fail "say what to run: … -- python -m t5x.train --gin_file=configs/t5x/…"
  [[ $ENGINE != t5x || ${COMMAND[*]} != *kcmoe\ train* ]] || fail "that is the engine's command: add --engine=kcmoe"
  [[ $ENGINE != kcmoe || ${COMMAND[*]} != *-m\ t5x.* ]] || fail "that is T5X's command: leave --engine=kcmoe out"
  ;;
*) [[ ${#COMMAND[@]} -eq 0 ]] || fail "$VERB takes no command" ;;
esac
for argument; do # found here rather than on every worker
  file=${argument#--gin_file=}
  [[ $argument != --gin_file=configs/* || -e $file ]] ||
    fail "there is no $file; a run is --gin_file=configs/sizes/X.gin --gin_file=configs/tasks/X.gin \
--gin_file=configs/runs/X.gin --gin_file=configs/t5x/X.gin, see how-to-train.md"
done

# at VERB ARGUMENT…: the command line for what tpu_worker.sh does on a worker.
at() {
  quoted bash "$TREE/scripts/tpu_worker.sh" "$1" "$RUN" "${@:2}"
}

# Looks at all workers, says how each is, and fails where they differ or one is not fit.
check() {
  local found lines made
  if [[ -n $DRY_RUN ]]; then
    on_each "$(at check)"
    return
  fi
  found=$(on_each "$(at check)") || {
    echo "${found:-no worker answers}"
    echo "${0##*/}: not every worker of $TPU answers; was scripts/tpu_setup.sh run, and did it end well on all?" >&2
    return 1
  }
  echo "$found"
  lines=$(wc -l <<<"$found")
  made=$(sed 's/^[0-9]*: //; s/; [0-9]* GB free.*//' <<<"$found" | sort | uniq -c | sort -rn)
  if [[ $(wc -l <<<"$made") -gt 1 ]]; then
    echo "${0##*/}: the $lines workers differ; run scripts/tpu_setup.sh again:" >&2
    echo "$made" >&2
  elif [[ $made != *"engine $ENGINE"* && ($ENGINE == t5x || $made != *"engine t5x"*) ]]; then
    echo "${0##*/}: the workers are not set up for this; run scripts/tpu_setup.sh --tpu=$TPU --engine=$ENGINE" >&2
  elif [[ $made == *" 0 chips"* ]]; then
    echo "${0##*/}: the workers see no TPU chips; is $TPU the name of a TPU VM, and its image one for TPUs?" >&2
  elif awk -F'; ' -v need="$DISK_NEEDED_GB" '$3 + 0 < need {exit 1}' <<<"$found"; then
    return 0
  else
    echo "${0##*/}: a worker has less than $DISK_NEEDED_GB GB free in its home folder" >&2
  fi
  return 1
}

# Below here every step says `|| return`: bash forgets `set -e` in a function whose status is looked at.
start() {
  local found
  found=$(check) || {
    echo "$found"
    return 1
  }
  echo "$found"
  if grep -q '; running$' <<<"$found"; then
    echo "${0##*/}: $RUN is already running; end it with stop, or start another with --run=NAME" >&2
    return 1
  fi
  on_each "$(at start "${COMMAND[@]}")" || {
    echo "${0##*/}: $RUN could not be started on every worker; ending it where it was" >&2
    stop end
    return 1
  }
  [[ -n $DRY_RUN ]] || echo "Started. Follow it with: bash scripts/tpu_launch.sh tail $(place) --run=$RUN"
}

# stop [end]: with "end" nobody asked for it, and whoever watches the run may start it again.
stop() {
  on_each "$(at "${1:-stop}")" && return
  echo "${0##*/}: $RUN was not ended on every worker, see above; try again, or end it for good with: delete" >&2
  return 1
}

setup_and_start() {
  bash scripts/tpu_setup.sh "--tpu=$TPU" "--engine=$ENGINE" ${ZONE:+"--zone=$ZONE"} ${PROJECT:+"--project=$PROJECT"} \
    ${DRY_RUN:+--dry-run} || return
  start
}

# A run that goes on at some workers waits there for the others, for a minute or for ever.
stop_and_start() { stop end && start; }

# What is true of the run on all workers: running, ending (well on some, running on the others), ended well, stopped
# (by `stop`), bare (a worker is not set up), unknown (not all answer), or else how many are in which state.
run_state() {
  local states kinds
  states=$(on_each "if test -e $TREE/.venv/made-of; then $(at state); else echo bare; fi") || {
    echo unknown
    return
  }
  kinds=$(cut -d' ' -f2- <<<"$states" | sort -u | paste -sd,)
  case $kinds in
  "ended 0") echo "ended well" ;;
  "ended 0,running") echo ending ;;
  "") echo unknown ;;
  *bare*) echo bare ;;
  *,*) cut -d' ' -f2- <<<"$states" | sort | uniq -c | awk '{n = $1; $1 = ""; print substr($0, 2) " on " n}' | paste -sd, ;;
  *) echo "$kinds" ;;
  esac
}

# make_again TPU_STATE: what is done where there is no machine that works.
make_again() {
  local queue
  [[ -n $ACCELERATOR ]] ||
    fail "the TPU VM $TPU is ${1:-not there}; to make it again say --accelerator-type=TYPE"
  queue=$(queue_state)
  [[ -z $settled || -n $1$queue ]] || over "$TPU was deleted" || return
  if [[ -n $settled && -z $1 && $queue == ACTIVE ]]; then # it is just coming, or `delete` is taking both away
    echo "$(date +%H:%M:%S) $TPU is not there, its queued resource ACTIVE: waiting"
    return
  fi
  case $queue in
  UNKNOWN) return 1 ;;
  ACCEPTED | CREATING | WAITING_FOR_RESOURCES | PROVISIONING | SUSPENDING | DELETING)
    echo "$(date +%H:%M:%S) $TPU is in the queue ($queue): waiting"
    settled=1
    return
    ;;
  esac
  echo "$TPU is ${1:-not there}${queue:+, its queued resource $queue}: making it again"
  restarts=0 looks=0 settled=''
  take_away "$1" "$queue" || return
  make_machine || return
  settled=1
  if [[ -n $QUEUED ]]; then
    echo "$TPU is in the queue"
  else
    setup_and_start
  fi
}

# Looks once and does what is needed. Status 0: well so far; ENDED_WELL and GAVE_UP: nothing more to watch; any
# other: a command failed, or gcloud could not say; look again.
resume_once() {
  local state run_now
  state=$(tpu_state)
  case $state in
  READY)
    run_now=$(run_state)
    [[ -z $settled || $run_now != *stopped* ]] || over "$RUN was stopped" || return
    case $run_now in
    running)
      echo "$(date +%H:%M:%S) $RUN is running"
      looks=$((looks + 1)) settled=1
      [[ $looks -lt $LOOKS_OF_A_GOOD_RUN ]] || restarts=0
      ;;
    ending) echo "$(date +%H:%M:%S) $RUN has ended well on some workers" ;;
    "ended well") echo "$RUN has ended well" && return "$ENDED_WELL" ;;
    unknown)
      echo "$(date +%H:%M:%S) $TPU is $state, but not every worker gives an answer: waiting"
      return 1
      ;;
    bare) try_again "$TPU is not set up on every worker: setting it up" setup_and_start ;;
    *running*) try_again "$RUN is $run_now: ending it and starting it" stop_and_start ;;
    *) try_again "$RUN is $run_now: starting it" start ;;
    esac
    ;;
  "" | PREEMPTED | TERMINATED) make_again "$state" ;;
  STOPPED) tpus tpu-vm start "$TPU" && start ;;
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
    echo "${0##*/}: $RUN failed $RESTARTS_ALLOWED times on a healthy TPU VM; see why with: logs" >&2
    return "$GAVE_UP"
  fi
  restarts=$((restarts + 1)) looks=0
  echo "$1"
  "$2" || return
  settled=1
}

# What was well a while ago was ended by somebody, not by chance: whoever did it did not want it back.
over() {
  echo "${0##*/}: $1 while this watched: it is left alone; resume starts it again" >&2
  return "$GAVE_UP"
}

resume() {
  if [[ -n $DRY_RUN ]]; then # what a preempted TPU VM would need
    tpus tpu-vm describe "$TPU" "--format=value(state)"
    take_away PREEMPTED "${QUEUED:+SUSPENDED}"
    make_machine
    setup_and_start
    return
  fi
  local outcome
  [[ -z $WATCH || -n $ACCELERATOR ]] ||
    echo "Note: without --accelerator-type a TPU VM that is taken away will not be made again." >&2
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

create() {
  [[ -n $ACCELERATOR ]] || fail "say which kind: --accelerator-type=v5litepod-16, v4-32, …"
  make_machine || return
  [[ -z $QUEUED || -n $DRY_RUN ]] || echo "$TPU is in the queue; status says when it is there."
  [[ -n $DRY_RUN ]] || echo "Next: bash scripts/tpu_setup.sh $(place) --engine=$ENGINE"
}

# The log of worker N goes to N.log.
logs() {
  local status=0
  [[ -n $TO ]] || TO=tpu-logs/$TPU/$RUN
  [[ -n $DRY_RUN ]] || mkdir -p "$TO"
  on_worker all "$(at log)" "--output-directory=$TO" || status=1
  [[ -n $DRY_RUN ]] || ls "$TO"/*.log
  return "$status"
}

status() {
  if [[ -n $DRY_RUN ]]; then
    tpus tpu-vm describe "$TPU" "--format=value(state)"
    tpus queued-resources describe "$TPU" "--format=value(state.state)"
    on_each "$(at state)"
    return
  fi
  local machine queue
  machine=$(tpu_state) queue=$(queue_state)
  echo "TPU VM ${machine:-not there}${queue:+, queued resource $queue}"
  [[ $machine != READY ]] || on_each "$(at state)"
}

case $VERB in
tail) on_worker 0 "$(at tail)" ;;
delete) delete_machine ;;
*) "$VERB" ;;
esac

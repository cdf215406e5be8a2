# SPDX-License-Identifier: Apache-2.0
# Sourced by tpu_launch.sh: makes a TPU VM, at once or through the queue, says how it stands, and takes it away.
#
# Spot and flex-start machines come through a queued resource, which gets the name of the TPU VM. It stays when
# the machine is taken away, and must be deleted, after the machine, before another can have the name.
# Checked against Google's pages "Manage queued resources", "Request Cloud TPUs using Flex-start" and "TPU
# software versions" of 2025.
# shellcheck shell=bash disable=SC2034  # tpu_launch.sh reads these

ACCELERATOR='' VERSION='' SPOT='' QUEUED='' FLEX=''

machine_option() {
  case $1 in
  --accelerator-type=*) ACCELERATOR=${1#*=} ;;
  --version=*) VERSION=${1#*=} ;;
  --spot) SPOT=1 QUEUED=1 ;;
  --queued) QUEUED=1 ;;
  --flex-start) FLEX=24h QUEUED=1 ;;
  --flex-start=*) FLEX=${1#*=} QUEUED=1 ;;
  *) return 1 ;;
  esac
}

check_machine_options() {
  [[ -z $SPOT || -z $FLEX ]] || fail "--spot and --flex-start are two ways of asking: take one"
  [[ -z $FLEX || $FLEX =~ ^0*[1-9][0-9]*[smhd]$ ]] || fail "--flex-start=$FLEX must be a time such as 24h, 7d at most"
  [[ -z $FLEX || $ACCELERATOR != v[234]-* ]] || fail "flex-start has v5e, v5p and v6e, not $ACCELERATOR"
  [[ -z $ACCELERATOR || -n $VERSION ]] || VERSION=$(image_of "$ACCELERATOR") ||
    fail "no image is known for $ACCELERATOR; name one with --version=IMAGE (v5e is called v5litepod-8)"
}

# The image of a kind of TPU, on which JAX is then installed.
image_of() {
  case $1 in
  *-*[!0-9]* | *- | *-0*) return 1 ;; # cores or chips are a number
  v[234]-*) echo tpu-ubuntu2204-base ;;
  v5litepod-*) echo v2-alpha-tpuv5-lite ;;
  v5p-*) echo v2-alpha-tpuv5 ;;
  v6e-*) echo v2-alpha-tpuv6e ;;
  *) return 1 ;;
  esac
}

# state_of tpu-vm|queued-resources FORMAT: what gcloud says; nothing where there is no such thing, UNKNOWN where
# it could not say.
state_of() {
  local complaint
  { complaint=$(DRY_RUN='' tpus "$1" describe "$TPU" "--format=value($2)" 2>&1 >&3) && return; } 3>&1
  [[ $complaint == *NOT_FOUND* ]] && return
  echo "$complaint" >&2
  echo UNKNOWN
}

tpu_state() { state_of tpu-vm state; }          # READY, PREEMPTED, …
queue_state() { state_of queued-resources state.state; } # WAITING_FOR_RESOURCES, ACTIVE, SUSPENDED, …

make_machine() {
  if [[ -z $QUEUED ]]; then
    tpus tpu-vm create "$TPU" "--accelerator-type=$ACCELERATOR" "--version=$VERSION"
    return
  fi
  # The maximal time of flex-start is known to the alpha commands alone.
  tpus ${FLEX:+alpha} queued-resources create "$TPU" "--node-id=$TPU" "--accelerator-type=$ACCELERATOR" \
    "--runtime-version=$VERSION" ${SPOT:+--spot} \
    ${FLEX:+--provisioning-model=flex-start "--max-run-duration=$FLEX"}
}

# take_away TPU_STATE QUEUE_STATE: deletes what there is; a state is "" where there is nothing.
take_away() {
  if [[ -n $1 ]]; then tpus tpu-vm delete "$TPU" --quiet || return; fi
  if [[ -n $2 ]]; then tpus queued-resources delete "$TPU" --quiet --force || return; fi
}

delete_machine() {
  local machine queue
  if [[ -n $DRY_RUN ]]; then
    take_away READY ACTIVE
    return
  fi
  machine=$(tpu_state) queue=$(queue_state)
  [[ $machine != UNKNOWN && $queue != UNKNOWN ]] || return 1
  [[ -n $machine$queue ]] || echo "There is no $TPU, neither a TPU VM nor a queued resource."
  take_away "$machine" "$queue" || return
  machine=$(tpu_state) queue=$(queue_state)
  if [[ -n $machine$queue ]]; then
    echo "${0##*/}: $TPU is still there (TPU VM: ${machine:-gone}, queued resource: ${queue:-gone}); look again" >&2
    return 1
  fi
  echo "Nothing called $TPU is left to pay for."
}

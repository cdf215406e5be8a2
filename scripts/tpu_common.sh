# SPDX-License-Identifier: Apache-2.0
# Sourced by tpu_setup.sh and tpu_launch.sh: options both take, and gcloud on every worker of a TPU.
#
# Nothing here names a bucket, zone or project: they come from the options, or from gcloud's own settings.
# shellcheck shell=bash

TPU='' ZONE='' PROJECT='' DRY_RUN=''
export TREE=kcmoe # folder of the repository, below the home folder of each worker

fail() {
  echo "${0##*/}: $1" >&2
  exit 2
}

# Takes one option that both scripts know; says no (status 1) to any other.
common_option() {
  case $1 in
  --tpu=*) TPU=${1#*=} ;;
  --zone=*) ZONE=${1#*=} ;;
  --project=*) PROJECT=${1#*=} ;;
  --dry-run) DRY_RUN=1 ;;
  *) return 1 ;;
  esac
}

need_tpu() {
  [[ -n $TPU ]] || fail "say which TPU VM: --tpu=NAME"
  [[ -n $DRY_RUN ]] || command -v gcloud >/dev/null || fail "gcloud is not installed: https://cloud.google.com/sdk"
}

# Its arguments as a shell would read them back, quoted only where needed.
quoted() {
  local argument line=''
  for argument in "$@"; do
    [[ $argument =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || argument="'${argument//\'/\'\\\'\'}'"
    line+="${line:+ }$argument"
  done
  echo "$line"
}

# Runs a command, or prints it so that it can be pasted into a shell.
run() {
  if [[ -n $DRY_RUN ]]; then
    quoted "$@"
  else
    "$@"
  fi
}

# tpu_vm VERB ARGUMENT…  e.g.  tpu_vm describe "$TPU"
tpu_vm() {
  run gcloud compute tpus tpu-vm "$@" ${ZONE:+"--zone=$ZONE"} ${PROJECT:+"--project=$PROJECT"}
}

on_worker() {
  tpu_vm ssh "$TPU" "--worker=$1" "--command=$2"
}

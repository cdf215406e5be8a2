# SPDX-License-Identifier: Apache-2.0
# Sourced by tpu_setup.sh and tpu_launch.sh: options both take, and gcloud on every worker of a TPU.
#
# Nothing here names a bucket, zone or project: they come from the options, or from gcloud's own settings.
# shellcheck shell=bash

TPU='' ZONE='' PROJECT='' DRY_RUN=''
export ENGINE=t5x
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
  --engine=t5x | --engine=kcmoe) ENGINE=${1#*=} ;;
  --engine=*) fail "${1} is none of --engine=t5x and --engine=kcmoe" ;;
  --dry-run) DRY_RUN=1 ;;
  *) return 1 ;;
  esac
}

need_tpu() {
  local LC_ALL=C names='^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$' # C, or letters would be those of one's language
  [[ -n $TPU ]] || fail "say which TPU VM: --tpu=NAME"
  [[ $TPU =~ $names ]] ||
    fail "--tpu=$TPU cannot be a TPU's name: small letters, digits and -, a letter first, no - last"
  [[ -n $DRY_RUN ]] || command -v gcloud >/dev/null || fail "gcloud is not installed: https://cloud.google.com/sdk"
}

# Its arguments as a shell would read them back, quoted only where needed.
quoted() {
  local argument line='' quote="'" escaped="'\\''" # named, for the bash of a Mac reads them otherwise
  for argument in "$@"; do
    [[ $argument =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || argument="'${argument//$quote/$escaped}'"
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

# The options that every further command for this TPU needs again.
place() { echo "--tpu=$TPU${ZONE:+ --zone=$ZONE}${PROJECT:+ --project=$PROJECT}"; }

# tpus ARGUMENT…  e.g.  tpus tpu-vm describe "$TPU"; "alpha" may stand first
tpus() {
  local track='' # no array: the bash of a Mac (3.2) takes an empty one for an unset variable
  [[ $1 != alpha ]] || { track=alpha && shift; }
  run gcloud ${track:+"$track"} compute tpus "$@" ${ZONE:+"--zone=$ZONE"} ${PROJECT:+"--project=$PROJECT"}
}

on_worker() {
  tpus tpu-vm ssh "$TPU" "--worker=$1" "--command=$2" "${@:3}"
}

# on_each COMMAND: runs it on all workers at once and prints what each printed, "NUMBER: line". Status 1 if one
# of them was not reached or failed.
on_each() {
  local folder file worker status=0
  if [[ -n $DRY_RUN ]]; then
    on_worker all "$1"
    return
  fi
  folder=$(mktemp -d)
  # gcloud writes a file for each worker, where ssh may say things too: our lines have a mark.
  on_worker all "{ $1; } 2>&1 | sed 's/^/kcmoe> /'; exit \"\${PIPESTATUS[0]}\"" "--output-directory=$folder" \
    >/dev/null || status=1
  find "$folder" -name '*.log' | sort -V | while read -r file; do
    worker=$(basename "$file" .log)
    sed -n "s/^kcmoe> /$worker: /p" "$file"
    [[ $status -eq 0 ]] || sed "/^kcmoe> /d; s/^/$worker: /" "$file" >&2
  done
  rm -rf "$folder"
  return "$status"
}

#!/usr/bin/env bash
# A run on a Cloud TPU: makes a TPU VM (or a slice of a pod, which has several hosts), installs jaxneg on all its hosts,
# runs a command on all of them, brings the results back, deletes the TPU. Only prints the commands unless --yes is given.
#
#   bash launch/tpu_vm.sh --name=NAME --zone=ZONE [OPTIONS] [STEP ...] [-- COMMAND ...]
#
#   bash launch/tpu_vm.sh --name=jaxneg --zone=us-west4-a --delete --yes \
#       -- python -m jaxneg.main --config=configs/quickstart.py:mixed --workdir=runs/mixed
#
# Steps, done in the order in which they are named (default: create install run fetch):
#   create    the TPU VM, of --type with the software --version
#   install   packs the checkout, copies it to every host, and makes its .venv there (extra: tpu)
#   run       COMMAND on every host at once, in the checkout, its .venv active; with several hosts it needs --multihost
#   fetch     the folder --results of the first host, into the folder of the same name here
#   delete    the TPU VM
#
# Options:
#   --name=NAME --zone=ZONE   which TPU VM; both are needed
#   --type=TYPE               accelerator type (v5litepod-8)
#   --version=VERSION         software version (v2-alpha-tpuv5-lite)
#   --project=PROJECT         default: gcloud's own
#   --spot                    a spot TPU: cheaper, and may be taken away
#   --repo=DIR                checkout to copy (default: the one of this script), without .git, .venv and runs
#   --results=DIR             relative to the checkout (runs)
#   --retries=N               COMMAND is started again so often where it fails (0): the same command resumes
#   --delete                  deletes the TPU VM at the end, however this script ends (but not where `create` failed:
#                             another TPU may have that name)
#   --yes                     does it; without it the commands are only printed
#
# With several hosts the command's --workdir must be a folder that all of them see (Filestore, or a bucket mounted by
# gcsfuse), for all of them write checkpoints. A TPU VM costs money from `create` until it is deleted.
set -euo pipefail

name='' zone='' type=v5litepod-8 version=v2-alpha-tpuv5-lite project='' results=runs retries=0
spot='' delete=no yes=no
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
steps=()

refuse() {
  echo "jaxneg: $1" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case $1 in
    --name=* | --zone=* | --type=* | --version=* | --project=* | --repo=* | --results=* | --retries=*)
      option=${1%%=*}
      [ -n "${1#*=}" ] || refuse "$option is empty"
      printf -v "${option#--}" %s "${1#*=}"
      ;;
    --spot) spot=--spot ;;
    --delete) delete=yes ;;
    --yes) yes=yes ;;
    --help | -h)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    create | install | run | fetch | delete) steps+=("$1") ;;
    --)
      shift
      break
      ;;
    *) refuse "unexpected argument '$1': --help tells what there is; the command comes after --" ;;
  esac
  shift
done
[ ${#steps[@]} -gt 0 ] || steps=(create install run fetch)
[ -n "$name" ] || refuse "--name is needed, as in --name=jaxneg"
[ -n "$zone" ] || refuse "--zone is needed, as in --zone=us-west4-a"
[[ $name =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] || refuse "--name=$name: small letters, digits and -, a letter first"
[[ $retries =~ ^[0-9]{1,3}$ ]] || refuse "--retries=$retries is not a whole number from 0 to 999"
[[ $results =~ ^[A-Za-z0-9_][A-Za-z0-9_./-]*$ && $results != *..* ]] ||
  refuse "--results=$results is no folder in the checkout"
[ -f "$repo/launch/setup.sh" ] || refuse "--repo=$repo is no checkout of jaxneg: it has no launch/setup.sh"
case " ${steps[*]} " in
  *" run "*) [ $# -gt 0 ] || refuse "what is to be run comes after --, as in -- python -m jaxneg.main --help" ;;
esac
if [ $yes = yes ] && ! command -v gcloud >/dev/null; then
  refuse "there is no gcloud on PATH: install the Google Cloud CLI, or leave out --yes to see the commands"
fi

where=(--zone="$zone" ${project:+--project="$project"})

# Prints a command, and with --yes runs it.
call() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  [ $yes = no ] || "$@"
}

tpu_vm() { call gcloud compute tpus tpu-vm "$@"; }

on_all_hosts() { tpu_vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }

create() {
  tpu_vm create "$name" "${where[@]}" --accelerator-type="$type" --version="$version" ${spot:+"$spot"}
  delete_at_end
}

install() {
  local packed
  packed=${TMPDIR:-/tmp}/jaxneg-$name.tar.gz
  call tar --exclude=.git --exclude=.venv --exclude=./runs --exclude=__pycache__ -czf "$packed" -C "$repo" .
  tpu_vm scp "$packed" "$name:jaxneg.tar.gz" "${where[@]}" --worker=all
  call rm -f "$packed"
  on_all_hosts "$INSTALL"
}

# The images of TPU VMs may have a Python that is too old; pip's venv module is a package of its own there.
INSTALL='set -e
mkdir -p jaxneg && tar -xzf jaxneg.tar.gz -C jaxneg && cd jaxneg
if ! python3 -c "import sys, ensurepip; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
  sudo apt-get update -q && sudo apt-get install -q -y python3.11 python3.11-venv
  export PYTHON=python3.11
fi
exec bash -ec "source launch/setup.sh; setup_jaxneg tpu"'

run() {
  local command tries=0
  printf -v command '%q ' "$@"
  command="cd jaxneg && source .venv/bin/activate && ${command% }"
  until on_all_hosts "$command"; do
    [ "$tries" -lt "$retries" ] || return 1
    tries=$((tries + 1))
    echo "the command failed; try $tries of $retries goes on from its last checkpoint" >&2
  done
}

fetch() {
  call mkdir -p "$repo/$results"
  tpu_vm scp --recurse "$name:jaxneg/$results/*" "$repo/$results" "${where[@]}" --worker=0
}

delete() {
  trap - EXIT
  tpu_vm delete "$name" "${where[@]}" --quiet
}

delete_at_end() {
  [ $delete = yes ] || return 0
  trap delete EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

[ $yes = yes ] || echo "# nothing is done; --yes runs these commands"
case " ${steps[*]} " in
  *" create "*) ;;
  *) delete_at_end ;;
esac
for step in "${steps[@]}"; do
  "$step" "$@"
done

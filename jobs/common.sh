# shellcheck shell=bash
# What the job scripts share; they source it. See README.md in this folder.

complain() {
  echo "error: $*" >&2
  exit 2
}

# Splits a list of words into the array `words`.
split() { # LIST
  read -r -a words <<<"$1"
}

# Sets `index` to the number of this task of the array, and refuses one beyond `last`.
array_index() { # LAST WHAT
  index=${SLURM_ARRAY_TASK_ID:?this job is an array: sbatch --array=1-$1}
  if [ "$index" -lt 1 ] || [ "$index" -gt "$1" ]; then
    complain "task $index of the array has no work: there are $1 $2; sbatch --array=1-$1"
  fi
}

# Sets `go_on` to the options by which a run is begun or, when it was begun before, continued.
# shellcheck disable=SC2034 # for the scripts
continue_run() { # FOLDERS: a pattern below OUT/embedding, or below another PLACE
  local found=() place="$OUT/${2:-embedding}"
  if [ -d "$place" ]; then
    mapfile -t found < <(cd "$place" && compgen -G "$1/$RUN_NAME/config.json")
  fi
  if [ "${#found[@]}" -gt 1 ]; then
    complain "RUN_NAME=$RUN_NAME is the name of several runs in $place: ${found[*]%/config.json}; give another"
  fi
  go_on=(--run-name "$RUN_NAME")
  if [ "${#found[@]}" -eq 1 ]; then
    go_on=(--continue-model-dir "$place/${found[0]%/config.json}")
  fi
}

# EdgeL3's name of a folder of training data: music of music_train.
subset() { # FOLDER
  local name
  name=$(basename "$(realpath -m "$1")")
  echo "${name%_*}"
}

# Stops this job and queues it again; SLURM appends to its log.
requeue() {
  local restarts=${SLURM_RESTART_COUNT:-0}
  if [ "$restarts" -ge "$L3PRUNE_RESTARTS" ]; then
    complain "stopped after $restarts restarts; submit it again with more --time (L3PRUNE_RESTARTS=$L3PRUNE_RESTARTS)"
  fi
  echo "time is nearly over: queued again"
  scontrol requeue "${task:-$SLURM_JOB_ID}"
  exit 75
}

# Tells the step to stop.
pass_on() {
  sleep 1 # a srun that has just begun takes no notice
  kill -USR1 "$step" 2>/dev/null || true
}

# Has `run` start a task for each of the job's, which train together.
share() {
  local count=${SLURM_NTASKS:-${SLURM_JOB_NUM_NODES:-1}}
  if [ "$count" -gt 1 ]; then
    # Those that outlive one of them for a minute do not know that it is gone.
    tasks=(--ntasks="$count" --wait=60)
    distribute=(--distribute multiworker)
  elif [ "${SLURM_GPUS_ON_NODE:-1}" -gt 1 ]; then
    distribute=(--distribute mirrored)
  fi
}

# Runs one command as a step of the job. A command that USR1 stopped queues the job again; what ends
# otherwise ends the job with its exit code.
run() { # COMMAND...
  local code=0
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  [ -z "$asked" ] || requeue
  srun "${tasks[@]}" "$@" </dev/null &
  step=$!
  [ -z "$asked" ] || pass_on # told while it was being started
  while :; do
    trapped=
    code=0
    wait "$step" || code=$?
    [ -n "$trapped" ] || break # else it was the trap that ended the waiting
  done
  step=
  case $code in
    0) ;;
    75 | 138) # EX_TEMPFAIL: a checkpoint is written; 128 + USR1: there was nothing to write
      [ -n "$cancelled" ] || requeue
      exit "$code"
      ;;
    *) exit "$code" ;;
  esac
}

asked='' cancelled='' trapped='' step=''
# Unless they share, a command runs once, however many tasks the job has.
tasks=(--nodes=1 --ntasks=1)
# shellcheck disable=SC2034 # for the scripts
distribute=()
trap 'asked=1 trapped=1; [ -z "$step" ] || pass_on' USR1
# Not passed on: SLURM tells the steps itself, and a srun that is told twice kills them.
trap 'cancelled=1 trapped=1' TERM

L3PRUNE_RESTARTS=${L3PRUNE_RESTARTS:-100}

# Python: an environment module, a virtual environment, both, or what is there.
if [ -n "${L3PRUNE_MODULE:-}" ]; then
  type module >/dev/null 2>&1 ||
    complain "L3PRUNE_MODULE=$L3PRUNE_MODULE, but this host has no environment modules; set L3PRUNE_VENV instead"
  set +u # the command uses what may be unset
  split "$L3PRUNE_MODULE"
  module load "${words[@]}" || complain "module load $L3PRUNE_MODULE failed"
  set -u
fi
if [ -z "${L3PRUNE_VENV:-}" ] && [ -z "${L3PRUNE_MODULE:-}" ] && [ -f "$home/.venv/bin/activate" ]; then
  L3PRUNE_VENV=$home/.venv # which make makes
fi
if [ -n "${L3PRUNE_VENV:-}" ]; then
  [ -f "$L3PRUNE_VENV/bin/activate" ] ||
    complain "L3PRUNE_VENV=$L3PRUNE_VENV is no virtual environment: it has no bin/activate"
  # shellcheck disable=SC1091 # it is the user's
  source "$L3PRUNE_VENV/bin/activate"
fi
type python >/dev/null 2>&1 || complain "there is no python; set L3PRUNE_VENV or L3PRUNE_MODULE"

home=$(realpath "$home")
export PYTHONPATH="$home${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
# A step does not inherit the processors of a task from the job. TensorFlow would start a thread for
# each processor of the host, the job's or not.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}
export TF_NUM_INTRAOP_THREADS=${TF_NUM_INTRAOP_THREADS:-$SRUN_CPUS_PER_TASK}

# Of an array, one task has the job id of the array, and it would queue all of it again by that.
task=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
# A run's name stays the same when its job is queued again.
RUN_NAME=${RUN_NAME:-job${task:-$SLURM_JOB_ID}}

# EdgeL3's recipe; arguments of the script come later and win.
# shellcheck disable=SC2034 # for the scripts
edgel3_recipe=(
  --num-epochs 300 --learning-rate 0.00001 --random-state 20180216 --checkpoint-interval 10
  --train-epoch-size 4096 --train-batch-size 64
  --validation-epoch-size 1024 --validation-batch-size 64
)

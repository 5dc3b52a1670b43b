#!/usr/bin/env bash
# Which runs make the table: trains the configurations that experiment.py lists, all with the same
# settings, shows SRCC and PLCC of each run, and makes the report. --help says how, and how long it takes.

# Without what the caller's shell hands on: CDPATH, options such as noclobber, functions; and in
# bash, also when called by sh.
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail

# A console that has gone away stops nothing; one that is closed is /dev/null.
trap '' PIPE
[[ -e /dev/fd/1 ]] || exec >/dev/null
[[ -e /dev/fd/2 ]] || exec 2>/dev/null

if ((BASH_VERSINFO[0] < 4 || (BASH_VERSINFO[0] == 4 && BASH_VERSINFO[1] < 4))); then
  echo "error: this script needs bash 4.4 or newer, and this is $BASH_VERSION" >&2
  exit 2
fi
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly HERE
readonly PYTHON=${PYTHON:-python3}
# How the closing lines of a log begin, in the order of the table's columns, and the line that may
# stand for the third. training/records.py writes them (closing_lines); a test compares the two.
readonly CLOSING_LINES=(
  'Best Test SRCC: '
  'Best Test PLCC: '
  'Validation-Chosen Test SRCC: '
  'Last Test SRCC: '
)
readonly FIRST_SEED=42
# What may follow --resume DIR.
readonly MORE='--seeds, --controls, --backbones, --gpus, --parallel or --no_page'
readonly NO_VALIDATION='No validation images: '

usage() {
  cat <<'END'
usage: bash run_resnet_ablation.sh [--demo] [--seeds N,N,...] [--gpus N,N,...] [--controls]
                                   [--backbones NAME,NAME,...] [--with_neighbours] [--no_page]
                                   [FLAG...]
       bash run_resnet_ablation.sh --resume LOG_DIR/resnet_ablation_YYYYMMDD_HHMMSS
                                   [--seeds N,N,...] [--controls] [--backbones NAME,NAME,...]
                                   [--gpus N,N,...] [--parallel N] [--no_page]

Trains the three configurations one at a time, prints their figures and makes the report.

  --demo          on a small synthetic data set, on a CPU, in at most 8 minutes on two cores with
                  bfloat16 (12 without)
  --seeds N,N,... repeat each configuration with these seeds; the report gives mean and spread
  --controls      two more configurations that isolate causes: the parameters of multi-scale fusion
                  on stage 4 only, and fusion with weights that are the same for all images
  --backbones NAME,NAME,...
                  the configurations on each of these backbones: resnet50, or timm's names; then
                  --backbone_weights NAME=FILE gives one of them its weights
  --with_neighbours, --neighbours NAME
                  HyperIQA and a SMART-IQA as well (the smallest, or NAME), trained alike: six runs,
                  and in the report the effects of the backbone and of the improvements
  --model MODEL, --preset PRESET
                  another model alone, or a recipe (docs/recipes.md) and its model: the runs that
                  'python3 experiment.py --model MODEL --preset PRESET' lists
  --gpus N,N,...  several runs at once, one on each of these GPUs
  --parallel N    N runs at once, which share this machine's cores
  --no_page       without progress.html, which shows in a browser how far the runs are
  --resume DIR    continue an ablation that was interrupted, with its own flags: finished runs are
                  kept, the interrupted run continues where it was; with --seeds, --controls or
                  --backbones it becomes larger, in the same folder (--seeds and --backbones name
                  the earlier ones too)
  -h, --help      this text
  FLAG...         given to every run: see 'python3 train_resnet_improved.py --help'

Without arguments: KonIQ-10k in ./koniq-10k with the experiment's settings, about 15 minutes per
configuration on a data-centre GPU (an estimate), one to two days each on two CPU cores.

Examples:
  bash run_resnet_ablation.sh --demo
  bash run_resnet_ablation.sh --data_path /data/koniq-10k --seeds 42,43,44 --gpus 0,1,2
  bash run_resnet_ablation.sh --dataset biq2021 --data_path /data/biq2021 --epochs 5
  bash run_resnet_ablation.sh --preset hyperiqa_paper --seeds 1,2,3,4,5,6,7,8,9,10

Yields LOG_DIR/resnet_ablation_YYYYMMDD_HHMMSS/ (a log, a record and the predictions of each run,
the arguments for --resume, and the report: table.txt, intervals, figures, verdict) and
CHECKPOINT_DIR/MODEL_*.pth; with several seeds each seed has its own folder seed_N under
CHECKPOINT_DIR. LOG_DIR is logs and CHECKPOINT_DIR checkpoints (of the demo: demo/checkpoints)
unless --log_dir and --checkpoint_dir say otherwise. The exit status is 0 only if every run has its
figures.
END
}

say() { # WORD...: a line on the console, if there is one
  printf '%s\n' "$*" 2>/dev/null || true
}

fail() {
  say "error: $*" >&2
  exit 2
}

list_runs() { # sets `runs`, and flags and seed of each; the user can't give these flags as well
  local listed flag seed name own run
  listed=$("$PYTHON" "$HERE/experiment.py" "${chosen[@]}" "${neighbours[@]}" "${rows[@]}") || exit
  for flag in "${flags[@]}"; do
    if [[ $flag == --* && " ${listed//$'\n'/ } " == *" $flag "* ]]; then
      fail "$flag is what this script sets for each run"
    fi
  done
  for seed in "${seeds[@]}"; do
    while read -r name own; do
      run=$name
      if ((${#seeds[@]} > 1)); then run+=_seed$seed; fi
      runs+=("$run")
      flags_of[$run]=$own
      seed_of[$run]=$seed
    done <<<"$listed"
  done
}

name_before() { # RUN: its name so far, if it is of an ablation of one seed that gets more seeds
  local run=${1%_seed*}
  if ((${#seeds[@]} > 1 && ${#seeds_before[@]} == 1)) &&
    [[ $1 == *_seed"${seeds_before[0]}" && -e $log_dir/$run.jsonl ]]; then
    echo "$run"
  else
    echo "$1"
  fi
}

take_in_seeds() { # the runs of an ablation of one seed are named as those of several
  local run before file status
  for run in "${runs[@]}"; do
    before=$(name_before "$run") status=0
    [[ $before != "$run" ]] || continue
    flock -n "$log_dir/.${before}_state.lock" true || status=$?
    ((status != 1)) || fail "$before is still being trained" # others: a file system without locks
    for file in "$log_dir/$before"{.log,.jsonl,_predictions.csv,_state.pth,_state_before.pth}; do
      if [[ -e $file ]]; then mv -n "$file" "${file/"$before"/$run}"; fi
    done
  done
}

prepare() { # RUN: sets `command`, which trains it
  local run=$1 folder=$checkpoint_dir own
  if ((${#seeds[@]} > 1)); then folder=$checkpoint_dir/seed_${seed_of[$run]}; fi
  read -ra own <<<"${flags_of[$run]}"
  command=("$PYTHON" "$HERE/train_resnet_improved.py" "${flags[@]}" "${own[@]}"
    --seed "${seed_of[$run]}" --run_name "$run" --log_dir "$log_dir" --checkpoint_dir "$folder")
  if [[ -e $log_dir/$run.jsonl ]]; then command+=(--resume); fi
  say "$run: training ($(date +%H:%M:%S)), log in $log_dir/$run.log"
}

run_one_at_a_time() { # RUN...: each with its console on this one and in its log
  local run status tee_pid
  for run in "$@"; do
    say
    prepare "$run"
    exec {log}> >(trap '' HUP INT TERM && exec tee -a "$log_dir/$run.log")
    tee_pid=$! status=0
    watched "${command[@]}" >&"$log" 2>&1 || status=$?
    exec {log}>&-
    wait "$tee_pid" || true # the log has its last line now, whatever became of the console
    if ((status)); then note_failure "$run"; fi
  done
}

run_side_by_side() { # RUN...: as many at once as there are slots; one line per minute on each
  local slot run status spoken=$SECONDS run_of=()
  while (($# || ${#children[@]})); do
    for slot in "${!slots[@]}"; do
      if [[ -z ${children[slot]:-} ]]; then
        (($#)) || continue
        prepare "$1"
        run_of[slot]=$1
        env "${slots[slot]}" "${command[@]}" >>"$log_dir/$1.log" 2>&1 &
        children[slot]=$!
        shift
      elif ! kill -0 "${children[slot]}" 2>/dev/null; then
        run=${run_of[slot]} status=0
        wait "${children[slot]}" || status=$?
        unset "children[slot]"
        if ((status)); then
          note_failure "$run"
        else
          say "$run: $(grep -m 1 "^${CLOSING_LINES[0]}" "$log_dir/$run.log")"
        fi
      fi
    done
    if ((SECONDS - spoken >= 60)); then
      spoken=$SECONDS
      for slot in "${!children[@]}"; do
        say "$(date +%H:%M) ${run_of[slot]}: $(tail -n 1 "$log_dir/${run_of[slot]}.log")"
      done
    fi
    sleep 0.5
  done
}

note_failure() { # RUN
  failed[$1]=1
  say "$1: FAILED, see $log_dir/$1.log" >&2
}

watched() { # COMMAND...: run it in the background, where the traps below can end it
  local status=0
  "$@" &
  children=($!)
  wait "${children[0]}" || status=$?
  children=()
  return "$status"
}

# shellcheck disable=SC2317 # called by the traps
stop() { # SIGNAL STATUS
  trap 'kill -KILL "${children[@]}" 2>/dev/null; exit 130' INT # a second Ctrl-C
  trap '' TERM HUP
  say "stopped by $1" >&"$console"
  if ((${#children[@]})); then
    kill -TERM "${children[@]}" 2>/dev/null || true
    # Not by wait: within a trap it can miss that a child has ended.
    while kill -0 "${children[@]}" 2>/dev/null; do sleep 0.1; done
  fi
  if [[ -n ${log_dir:-} ]]; then
    say "to continue: $(printf 'bash %q --resume %q' "$0" "$log_dir")" >&"$console"
  fi
  exit "$2"
}

begin_page() { # keep progress.html up to date until this script ends, whatever ends it
  printf '%s\n' "${runs[@]}" >"$log_dir/runs.part"
  mv "$log_dir/runs.part" "$log_dir/runs"
  ((with_page)) || return 0
  trap end_page EXIT
  (
    trap '' HUP INT
    exec nice -n 10 "$PYTHON" "$HERE/report_resnet_ablation.py" "$log_dir" --watch $$
  ) >/dev/null &
  page=$!
  say "progress: $log_dir/progress.html"
}

# shellcheck disable=SC2317 # called by a trap
end_page() { # it is written once more; what takes longer than five seconds is ended
  local tenth
  kill -TERM "$page" 2>/dev/null || return 0
  for ((tenth = 0; tenth < 50; tenth++)); do
    kill -0 "$page" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL "$page" 2>/dev/null || true
}

figure() { # CLOSING_LINE LOG: the figure that follows it; status 1 if there is none
  local line
  if [[ $1 == Validation* ]] && grep -qs "^$NO_VALIDATION" "$2"; then
    echo none
    return
  fi
  line=$(grep -s "^$1" "$2" | tail -n 1) || return 1
  line=${line#"$1"}
  echo "${line%% *}"
  [[ $line =~ ^-?[0-9] || $1 == Validation* ]] # validation images may be too few to choose by
}

# shellcheck disable=SC2059
table() { # one row per run: its closing figures; status 1 if a run failed or lacks a figure
  local run line figures status=0 row='%-32s %14s %14s %14s %12s'
  say "$(printf "$row" "" "best on test" "best on test" "chosen by val" "last epoch")"
  say "$(printf "$row" run SRCC PLCC SRCC SRCC)"
  for run in "${runs[@]}"; do
    figures=()
    for line in "${CLOSING_LINES[@]}"; do
      figures+=("$(figure "$line" "$log_dir/$run.log")") || failed[$run]=1
    done
    if [[ -z ${failed[$run]:-} ]]; then
      say "$(printf "$row" "$run" "${figures[@]}")"
    else
      say "$(printf '%-32s FAILED: see %s' "$run" "$log_dir/$run.log")"
      status=1
    fi
  done
  return "$status"
}

seeds=()
seeds_before=() # those of an earlier --seeds: the seeds of a folder that --resume makes larger
flags=(--save_model)
chosen=()     # --model and --preset, as given
neighbours=() # --neighbours, with a name or without
rows=()       # --controls and --backbones, as given
log_root=logs
log_dir=
checkpoint_dir=
demo=0
with_page=1
page= # the process that writes progress.html
slots=() # of runs side by side: an environment variable for each
runs=()
children=()
declare -A flags_of=() seed_of=() failed=() checked=()

if [[ ${1:-} == --resume=* ]]; then set -- --resume "${1#*=}" "${@:2}"; fi
if [[ ${1:-} == --resume ]]; then
  [[ -r ${2:-}/arguments ]] || fail "--resume ${2:-}: no file 'arguments' of an ablation there"
  log_dir=$(cd "$2" && pwd)
  mapfile -d '' -t arguments <"$2/arguments"
  [[ " ${*:3}" =~ ^(\ --(controls|no_page)|\ --(seeds|gpus|parallel)[\ =][0-9,]+|\ --backbones[\ =][^ ]+)*\ ?$ ]] ||
    fail "--resume $2 keeps its own flags: only $MORE may follow"
  cd "${arguments[0]}" || fail "--resume $2: its working folder ${arguments[0]} is gone"
  if (($# > 2)) && [[ " ${arguments[*]:1}" != *' --seed'* ]]; then
    arguments=("${arguments[0]}" --seeds "$FIRST_SEED" "${arguments[@]:1}")
  fi
  set -- "${arguments[@]:1}" "${@:3}"
fi
arguments=("$PWD" "$@")

while (($#)); do
  if [[ $1 == --*=* ]]; then set -- "${1%%=*}" "${1#*=}" "${@:2}"; fi
  case $1 in
    -h | --help) usage; exit 0 ;;
    --demo) demo=1; shift ;;
    --seeds | --seed)
      [[ ${2:-} =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "$1 takes whole numbers, such as 42,43,44"
      seeds_before=("${seeds[@]}")
      IFS=, read -ra seeds <<<"$2"
      seeds=("${seeds[@]/#/10#}") # 042 is 42
      for i in "${!seeds[@]}"; do seeds[i]=$((seeds[i])); done
      shift 2
      ;;
    --controls) rows+=("$1"); shift ;;
    --no_page) with_page=0; shift ;;
    --backbones)
      [[ ${2:-} ]] || fail "--backbones takes names, such as resnet50,tf_efficientnet_lite0"
      rows+=("$1" "$2")
      shift 2
      ;;
    --with_neighbours)
      if ((${#neighbours[@]} == 0)); then neighbours=(--neighbours); fi
      shift
      ;;
    --model | --preset | --neighbours)
      [[ ${2:-} ]] || fail "$1 takes a name: see 'python3 experiment.py --help'"
      if [[ $1 == --neighbours ]]; then neighbours=("$1" "$2"); else chosen+=("$1" "$2"); fi
      shift 2
      ;;
    --gpus)
      [[ ${2:-} =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "$1 takes numbers of GPUs, such as 0,1,2"
      IFS=, read -ra slots <<<"$2"
      slots=("${slots[@]/#/CUDA_VISIBLE_DEVICES=}")
      shift 2
      ;;
    --parallel)
      [[ ${2:-} =~ ^[1-9][0-9]{0,3}$ ]] || fail "$1 takes a number of runs, such as 2"
      threads=$(($(nproc) / $2)) slots=()
      for ((i = 0; i < $2; i++)); do slots+=("OMP_NUM_THREADS=$((threads > 0 ? threads : 1))"); done
      shift 2
      ;;
    --log_dir | --checkpoint_dir)
      [[ -n ${2:-} ]] || fail "$1 takes a folder"
      if [[ $1 == --log_dir ]]; then log_root=$2; else checkpoint_dir=$2; fi
      shift 2
      ;;
    --run_name | --resume | --check) fail "$1 is what this script sets for each run" ;;
    *) flags+=("$1"); shift ;;
  esac
done
if ((${#seeds[@]} == 0)); then seeds=("$FIRST_SEED"); fi
if (($(printf '%s\n' "${seeds[@]}" | sort -u | wc -l) < ${#seeds[@]})); then
  fail "--seeds names a seed twice"
fi
for seed in "${seeds_before[@]}"; do
  [[ " ${seeds[*]} " == *" $seed "* ]] || fail "--seeds leaves out $seed, which was given before"
done
if ((demo && ${#chosen[@]} + ${#neighbours[@]})); then
  fail "--demo can't be combined with --model, --preset or neighbours: their crops are 224, the demo's are 64"
fi
if ((${#neighbours[@]})); then
  if ((${#chosen[@]})); then
    fail "--with_neighbours trains all models alike, without --model and --preset"
  fi
  for i in "${!flags[@]}"; do # rather than after three runs
    case ${flags[i]} in
      --dropout_rate | --patch_size)
        fail "--with_neighbours goes without ${flags[i]}: each model has its own"
        ;;
      --backbone_weights)
        [[ ${flags[i + 1]:-} =~ ^(none|imagenet|imagenet1k_v1)$ ]] ||
          fail "--with_neighbours takes --backbone_weights none or imagenet, which all have"
        ;;
    esac
  done
fi
flags+=("${chosen[@]}")
command -v "$PYTHON" >/dev/null || fail "there is no $PYTHON: set PYTHON to a Python 3.10 or newer"
list_runs

exec {console}>&2 # a trap that runs within a run would write to its log
trap 'stop SIGINT 130' INT
trap 'stop SIGTERM 143' TERM
trap 'stop SIGHUP 129' HUP # of a terminal that is closed

if ((demo)); then
  watched "$PYTHON" "$HERE/demo_dataset.py" demo/koniq-10k
  demo_flags=(
    --data_path demo/koniq-10k --store_dir demo/pixel_store --device cpu
    --resize 384 512 --patch_size 64 --train_patch_num 6 --test_patch_num 6
    --backbone_weights none --epochs 3 --lr 1e-3 --lr_ratio 1
  )
  flags=("${flags[0]}" "${demo_flags[@]}" "${flags[@]:1}") # the user's come last and hold
  checkpoint_dir=${checkpoint_dir:-demo/checkpoints}
fi
checkpoint_dir=${checkpoint_dir:-checkpoints}

waiting=()
for run in "${runs[@]}"; do
  if [[ -n $log_dir ]] && grep -qs "^${CLOSING_LINES[-1]}" "$log_dir/$(name_before "$run").log"; then
    say "$run: finished already, see $log_dir/$run.log"
  else
    waiting+=("$run")
  fi
done
# What all runs of a backbone need is checked once, before anything is made.
for run in "${waiting[@]}"; do
  own=()
  if [[ ${flags_of[$run]} =~ --backbone\ [^\ ]+ ]]; then read -ra own <<<"${BASH_REMATCH[0]}"; fi
  if [[ -z ${checked[${own[*]}-]:-} ]]; then
    checked[${own[*]}-]=1
    watched "$PYTHON" "$HERE/train_resnet_improved.py" "${flags[@]}" "${own[@]}" \
      --seed "${seeds[0]}" --log_dir "${log_dir:-$log_root}" --checkpoint_dir "$checkpoint_dir" \
      --check
  fi
done

if [[ -z $log_dir ]]; then
  log_dir=$log_root/resnet_ablation_$(date +%Y%m%d_%H%M%S)
  mkdir -p "$log_root"
  mkdir "$log_dir" || fail "$log_dir can't be made, or another ablation began in the same second"
fi
take_in_seeds
printf '%s\0' "${arguments[@]}" >"$log_dir/arguments.part"
mv "$log_dir/arguments.part" "$log_dir/arguments"
begin_page

if ((${#slots[@]})); then
  run_side_by_side "${waiting[@]}"
else
  run_one_at_a_time "${waiting[@]}"
fi

say
status=0
table || status=1
if ((demo)); then
  say "DEMO: synthetic images with known distortions; these figures are not KonIQ-10k figures."
fi
if grep -qs "^${CLOSING_LINES[-1]}" "$log_dir"/*.log; then # a finished run
  say
  "$PYTHON" "$HERE/report_resnet_ablation.py" "$log_dir" || status=1
fi
exit "$status"

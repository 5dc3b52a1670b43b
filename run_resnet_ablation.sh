#!/usr/bin/env bash
# Which runs make the table: trains ResNet-50 three times (baseline, + multi-scale fusion,
# + multi-scale fusion and channel attention) alike, and compares SRCC and PLCC.
set -euo pipefail

if ((BASH_VERSINFO[0] < 4 || (BASH_VERSINFO[0] == 4 && BASH_VERSINFO[1] < 4))); then
  echo "error: this script needs bash 4.4 or newer, and this is $BASH_VERSION" >&2
  exit 2
fi
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly HERE
readonly PYTHON=${PYTHON:-python3}
names=(exp1_baseline exp2_multiscale exp3_multiscale_attention)
titles=("baseline" "+ multi-scale" "+ attention")
readonly HYPERIQA=0.8998 SMART_IQA=0.9378 # published SRCC on KonIQ-10k's test images

usage() {
  cat <<'END'
usage: bash run_resnet_ablation.sh [--demo] [--seeds N,N,...] [--gpus N,N,...] [--with_neighbours]
                                   [FLAG...]
       bash run_resnet_ablation.sh --resume LOG_DIR/resnet_ablation_YYYYMMDD_HHMMSS

Trains the three configurations one after the other and prints their table.

  --demo          on a small data set drawn on the spot, on a CPU, in at most 8 minutes on two
                  cores with bfloat16 (12 without)
  --seeds N,N,... repeat each configuration with these seeds; the table gives mean and spread
  --with_neighbours
                  HyperIQA and SMART-IQA as well, trained alike: six runs, and in the report the
                  effect of the backbone, of the improvements, and their interaction
  --neighbours SMART_IQA
                  which SMART-IQA that is: smart_iqa_tiny (the default), _small or _base
  --model MODEL, --preset PRESET
                  another model alone, or a published recipe with its model: the three
                  configurations of a SMART-IQA, or HyperIQA; with --preset hyperiqa_paper each
                  seed has a random split of its own, and the table gives medians
  --gpus N,N,...  runs side by side, one on each of these GPUs
  --parallel N    N runs side by side, sharing out this machine's cores
  --resume DIR    go on with an ablation that was interrupted, with the flags that it began with:
                  finished runs are kept, the interrupted one goes on where it was
  -h, --help      this text
  FLAG...         given to every run: see 'python3 train_resnet_improved.py --help'

Without arguments: KonIQ-10k in ./koniq-10k with the experiment's settings, about 15 minutes a
configuration on a data-centre GPU (an estimate), one to two days each on two CPU cores.

Examples:
  bash run_resnet_ablation.sh --demo
  bash run_resnet_ablation.sh --seeds 42,43,44 --gpus 0,1,2
  bash run_resnet_ablation.sh --data_path /data/koniq-10k --seeds 42,43,44
  bash run_resnet_ablation.sh --dataset biq2021 --data_path /data/biq2021 --epochs 5
  bash run_resnet_ablation.sh --preset hyperiqa_paper --seeds 1,2,3,4,5,6,7,8,9,10

Yields LOG_DIR/resnet_ablation_YYYYMMDD_HHMMSS/ (a log, a record and the predictions of each run,
table.txt, the arguments for --resume, and the report: intervals, figures, verdict) and
CHECKPOINT_DIR/MODEL_*.pth; with several seeds each seed has its own folder seed_N under
CHECKPOINT_DIR. LOG_DIR is logs and CHECKPOINT_DIR checkpoints (of the demo: demo/checkpoints)
unless --log_dir and --checkpoint_dir say otherwise. The exit status is 0 only if every run has its
figures.
END
}

fail() {
  echo "error: $*" >&2
  exit 2
}

configuration_flags() { # NAME
  case $1 in
    exp1_baseline) echo --no-use_multiscale ;;
    exp2_multiscale) echo --use_multiscale --no-use_attention ;;
    exp3_multiscale_attention) echo --use_multiscale --use_attention ;;
    exp4_hyperiqa) echo --model hyperiqa ;;
    exp5_smart_iqa_*) echo --model "${1#exp5_}" ;;
    exp6_smart_iqa_*) echo --model "${1#exp6_}" --no-use_multiscale ;;
  esac
}

run_name() { # NAME SEED: with one seed just NAME, as the log is called
  if ((${#seeds[@]} == 1)); then echo "$1"; else echo "$1_seed$2"; fi
}

prepare() { # NAME SEED: sets `run`, its name, and `command`; status 1 when it is finished already
  local name=$1 seed=$2 folder=$checkpoint_dir
  run=$(run_name "$name" "$seed")
  if finished "$run"; then
    echo "$run: finished already, see $log_dir/$run.log"
    return 1
  fi
  if ((${#seeds[@]} > 1)); then folder=$checkpoint_dir/seed_$seed; fi
  read -ra command < <(configuration_flags "$name")
  command=("$PYTHON" "$HERE/train_resnet_improved.py" "${flags[@]}" "${command[@]}"
    --seed "$seed" --run_name "$run" --log_dir "$log_dir" --checkpoint_dir "$folder")
  if [[ -e $log_dir/$run.jsonl ]]; then command+=(--resume); fi
  echo "$run: training ($(date +%H:%M:%S)), log in $log_dir/$run.log"
}

run_in_turn() { # all jobs, each with its console on this one and in its log
  local job status tee_pid
  for job in "${jobs[@]}"; do
    echo
    # shellcheck disable=SC2086
    prepare $job || continue
    # tee has its last line before the log is read
    exec {log}> >(exec tee -a "$log_dir/$run.log")
    tee_pid=$! status=0
    watched "${command[@]}" >&"$log" 2>&1 || status=$?
    exec {log}>&-
    wait "$tee_pid" || status=1
    if ((status)); then note_failure "$job"; fi
  done
}

run_side_by_side() { # as many jobs at once as there are slots; a line a minute on each
  local next=0 slot status spoken=$SECONDS setting job_of=() run_of=()
  while ((next < ${#jobs[@]} || ${#children[@]})); do
    for slot in "${!slots[@]}"; do
      if [[ -n ${children[slot]:-} ]]; then
        if kill -0 "${children[slot]}" 2>/dev/null; then continue; fi
        status=0
        wait "${children[slot]}" || status=$?
        unset "children[slot]"
        if ((status)); then
          note_failure "${job_of[slot]}"
        else
          echo "${run_of[slot]}: $(grep -m 1 '^Best Test SRCC' "$log_dir/${run_of[slot]}.log")"
        fi
      fi
      while ((next < ${#jobs[@]})) && [[ -z ${children[slot]:-} ]]; do
        job_of[slot]=${jobs[next]}
        next=$((next + 1))
        # shellcheck disable=SC2086
        prepare ${job_of[slot]} || continue
        run_of[slot]=$run
        setting=${slots[slot]}
        env "$setting" "${command[@]}" >>"$log_dir/$run.log" 2>&1 &
        children[slot]=$!
      done
    done
    if ((SECONDS - spoken >= 60)); then
      spoken=$SECONDS
      for slot in "${!children[@]}"; do
        echo "$(date +%H:%M) ${run_of[slot]}: $(tail -n 1 "$log_dir/${run_of[slot]}.log")"
      done
    fi
    sleep 0.5
  done
}

note_failure() { # 'NAME SEED'
  local run
  # shellcheck disable=SC2086
  run=$(run_name $1)
  failed[${1% *}]+="${failed[${1% *}]:+, }$log_dir/$run.log"
  echo "$run: FAILED, see $log_dir/$run.log" >&2
}

finished() { # RUN: whether its log has the closing lines
  grep -qs '^Last Test SRCC:' "$log_dir/$1.log"
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
  trap '' TERM
  echo "stopped by $1" >&"$console"
  if ((${#children[@]})); then
    kill -TERM "${children[@]}" 2>/dev/null || true
    wait "${children[@]}" 2>/dev/null || true
  fi
  if [[ -n ${log_dir:-} ]]; then
    printf 'to go on: bash %q --resume %q\n' "$0" "$log_dir" >&"$console"
  fi
  exit "$2"
}

metric() { # LABEL METRIC LOG: the figure of a closing line; status 1 where there is none
  grep -soE "^$1 Test $2: -?[0-9]+[.][0-9]+" "$3" | tail -n 1 | grep -oE -- '-?[0-9.]+$'
}

figures() { # LABEL METRIC NAME: 'mean spread' over the seeds, or 'median spread' over $splits > 1;
  # status 1 where one is missing
  local seed values=() value
  for seed in "${seeds[@]}"; do
    value=$(metric "$1" "$2" "$log_dir/$(run_name "$3" "$seed").log") || return 1
    values+=("$value")
  done
  printf '%s\n' "${values[@]}" | LC_ALL=C sort -g | LC_ALL=C awk -v median="$((splits > 1))" '
    { x[NR] = $1; sum += $1 }
    END { mean = sum / NR
          middle = median ? (x[int((NR + 1) / 2)] + x[int(NR / 2) + 1]) / 2 : mean
          for (i = 1; i <= NR; i++) squares += (x[i] - mean) ^ 2
          if (NR == 1) printf "%.4f -\n", mean
          else printf "%.4f %.4f\n", middle, sqrt(squares / (NR - 1)) }'
}

chosen_figures() { # NAME: as figures; 'none -' where no run has validation images, and
  # 'undefined -' where those of a run are too few, or alike, to choose an epoch by
  figures Validation-Chosen SRCC "$1" && return
  local seed log word=none
  for seed in "${seeds[@]}"; do
    log=$log_dir/$(run_name "$1" "$seed").log
    if grep -qs "^Validation-Chosen Test SRCC: " "$log"; then
      word=undefined
    else
      grep -qs "^No validation images" "$log" || return 1
    fi
  done
  echo "$word -"
}

cell() { # 'mean spread' -> what the table shows
  local mean=${1% *} spread=${1#* }
  if [[ $spread == - ]]; then echo "$mean"; else echo "$mean+-$spread"; fi
}

table() { # prints the table; status 1 when a figure is missing
  local name srcc plcc base='' change relative chosen last logs
  local row='%-16s %16s %16s %10s %10s %16s %16s\n' complete=0 i splits
  splits=$(grep -h -m 1 '^split ' "$log_dir"/exp*.log 2>/dev/null | sort -u | wc -l)
  echo "$title, ${#seeds[@]} seed(s): ${seeds[*]}"
  echo "flags: ${flags[*]}"
  grep -m 1 -h '^data ' "$log_dir"/exp*.log 2>/dev/null | tr -s ' ' | head -n 1 || true
  echo
  # shellcheck disable=SC2059
  {
    printf "$row" "" "best on test" "best on test" "to the" "relative" "chosen by val" "last epoch"
    printf "$row" "configuration" "SRCC" "PLCC" "baseline" "in %" "SRCC" "SRCC"
    for i in "${!names[@]}"; do
      name=${names[i]}
      if [[ -n ${failed[$name]:-} ]] || ! srcc=$(figures Best SRCC "$name") ||
        ! plcc=$(figures Best PLCC "$name") || ! last=$(figures Last SRCC "$name") ||
        ! chosen=$(chosen_figures "$name"); then
        logs=$(printf '%s ' "$log_dir/$name"*.log)
        printf '%-16s FAILED: see %s\n' "${titles[i]}" "${failed[$name]:-$logs}"
        complete=1
        continue
      fi
      read -r change relative < <(difference "${srcc% *}" "$base")
      if ((i == 0)); then base=${srcc% *}; fi
      printf "$row" "${titles[i]}" "$(cell "$srcc")" "$(cell "$plcc")" "$change" "$relative" \
        "$(cell "$chosen")" "$(cell "$last")"
    done
  }
  echo
  echo "Published SRCC on KonIQ-10k, best on test: HyperIQA (ResNet-50, this setting) $HYPERIQA," \
    "SMART-IQA (Swin-Base) $SMART_IQA."
  echo "Best on test takes the epoch that the test images like best: the field's habit, and optimistic."
  if ((splits > 1)); then
    echo "Each seed has a random split of its own: medians over the splits, +- their standard deviation."
  elif ((${#seeds[@]} > 1)); then
    echo "After +- stands the standard deviation over the seeds."
  fi
  if ((demo)); then
    echo "DEMO: drawn scenes with known damage; these figures are not KonIQ-10k figures."
  fi
  return "$complete"
}

difference() { # SRCC BASE: '+0.0012 +0.13', or dashes where there is none to compare with
  LC_ALL=C awk -v x="$1" -v base="$2" 'BEGIN {
    if (base == "") print "- -"
    else if (base <= 0) printf "%+.4f -\n", x - base
    else printf "%+.4f %+.2f\n", x - base, 100 * (x - base) / base }'
}

seeds=(42)
flags=(--save_model)
log_root=logs
checkpoint_dir=
demo=0
children=()
slots=()
declare -A failed=()
log_dir=
neighbour=
model=
recipe=
title="ResNet-50 ablation"

if [[ ${1:-} == --resume=* ]]; then set -- --resume "${1#*=}" "${@:2}"; fi
resumed=
if [[ ${1:-} == --resume ]]; then
  (($# == 2)) || fail "--resume takes the folder of an ablation, and no other flags"
  [[ -r $2/arguments ]] || fail "--resume $2: no file 'arguments' of an ablation there"
  resumed=$(cd "$2" && pwd)
  mapfile -d '' -t arguments <"$2/arguments"
  cd "${arguments[0]}" || fail "--resume $2: its working folder ${arguments[0]} is gone"
  set -- "${arguments[@]:1}"
fi
arguments=("$PWD" "$@")

while (($#)); do
  if [[ $1 == --*=* ]]; then set -- "${1%%=*}" "${1#*=}" "${@:2}"; fi
  case $1 in
    -h | --help) usage; exit 0 ;;
    --demo) demo=1; shift ;;
    --seeds | --seed)
      [[ ${2:-} =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "$1 takes whole numbers, such as 42,43,44"
      IFS=, read -ra seeds <<<"$2"
      seeds=("${seeds[@]/#/10#}") # 042 is 42
      for i in "${!seeds[@]}"; do seeds[i]=$((seeds[i])); done
      shift 2
      ;;
    --with_neighbours) neighbour=${neighbour:-smart_iqa_tiny}; shift ;;
    --neighbours)
      [[ ${2:-} =~ ^smart_iqa_(tiny|small|base)$ ]] || fail "$1 takes smart_iqa_tiny, _small or _base"
      neighbour=$2
      shift 2
      ;;
    --model | --preset)
      [[ ${2:-} ]] || fail "$1 takes a name: see 'python3 train_resnet_improved.py --help'"
      if [[ $1 == --model ]]; then model=$2; else recipe=$2; fi
      flags+=("$1" "$2")
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
      threads=$(($(nproc) / $2))
      for ((i = 0; i < $2; i++)); do slots+=("OMP_NUM_THREADS=$((threads > 0 ? threads : 1))"); done
      shift 2
      ;;
    --log_dir)
      log_root=${2:-}
      [[ -n $log_root ]] || fail "$1 takes a folder"
      shift 2
      ;;
    --checkpoint_dir)
      checkpoint_dir=${2:-}
      [[ -n $checkpoint_dir ]] || fail "$1 takes a folder"
      shift 2
      ;;
    --use_multiscale | --use_attention | --no-use_multiscale | --no-use_attention | --run_name | --resume)
      fail "$1 is what this script sets for each run"
      ;;
    *) flags+=("$1"); shift ;;
  esac
done
if (($(printf '%s\n' "${seeds[@]}" | sort -u | wc -l) < ${#seeds[@]})); then
  fail "--seeds names a seed twice"
fi

exec {console}>&2 # a trap that runs within a run would write to its log
trap 'stop SIGINT 130' INT
trap 'stop SIGTERM 143' TERM

if ((demo)) && [[ -n $model$recipe$neighbour ]]; then
  fail "--demo goes without --model and --preset, and without neighbours: its crops are of 64, and those models take 224"
fi
if [[ -n $neighbour && -n $model$recipe ]]; then
  fail "--with_neighbours trains all models alike, without --model and --preset"
fi
case ${model:-$recipe} in # a recipe has a model of its own, unless --model names another
  hyperiqa*) names=(exp4_hyperiqa) titles=(HyperIQA) title=HyperIQA ;;
  smart_iqa*) title="SMART-IQA ablation" ;;
esac
if [[ -n $neighbour ]]; then
  for flag in --dropout_rate --patch_size; do # rather than after three runs
    if [[ " ${flags[*]} " == *" $flag "* ]]; then fail "--with_neighbours goes without $flag: each model has its own"; fi
  done
  for i in "${!flags[@]}"; do
    if [[ ${flags[i]} == --backbone_weights && ! ${flags[i + 1]:-} =~ ^(none|imagenet1k_v1)$ ]]; then
      fail "--with_neighbours takes --backbone_weights none or imagenet1k_v1, which both backbones have"
    fi
  done
  names+=(exp4_hyperiqa "exp5_$neighbour" "exp6_$neighbour")
  titles+=(HyperIQA "${neighbour#smart_iqa_} SMART-IQA" "- improvements")
fi
if ((demo)); then
  watched "$PYTHON" "$HERE/demo_dataset.py" demo/koniq-10k
  demo_flags=(
    --device cpu
    --data_path demo/koniq-10k
    --store_dir demo/pixel_store
    --backbone_weights none
    --resize 384 512
    --patch_size 64
    --train_patch_num 6
    --test_patch_num 6
    --epochs 3
    --lr 1e-3
    --lr_ratio 1
  )
  flags=("${flags[0]}" "${demo_flags[@]}" "${flags[@]:1}") # what the user gives comes last and holds
  checkpoint_dir=${checkpoint_dir:-demo/checkpoints}
fi
checkpoint_dir=${checkpoint_dir:-checkpoints}

if [[ -n $resumed ]]; then
  log_dir=$resumed
else
  log_dir=$log_root/resnet_ablation_$(date +%Y%m%d_%H%M%S)
  mkdir -p "$log_root"
  mkdir "$log_dir" || fail "$log_dir can't be made, or another ablation began in the same second"
  printf '%s\0' "${arguments[@]}" >"$log_dir/arguments"
fi

jobs=()
for seed in "${seeds[@]}"; do
  for name in "${names[@]}"; do jobs+=("$name $seed"); done
done
if ((${#slots[@]})); then run_side_by_side; else run_in_turn; fi

echo
status=0
table >"$log_dir/table.txt.tmp" || status=1
mv "$log_dir/table.txt.tmp" "$log_dir/table.txt"
cat "$log_dir/table.txt"
echo "This table is in $log_dir/table.txt."
if grep -qs '"type": "epoch"' "$log_dir"/*.jsonl; then
  echo
  "$PYTHON" "$HERE/report_resnet_ablation.py" "$log_dir" || status=1
fi
exit "$status"

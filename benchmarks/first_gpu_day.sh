#!/usr/bin/env bash
# What is only known with a GPU at hand: the tests that need one, what launching costs, the rates of
# the loops, and a short ablation, one run at a time and three at once on one GPU:
#
#   bash benchmarks/first_gpu_day.sh
#   bash benchmarks/first_gpu_day.sh --data_path /data/koniq-10k
#
# It ends with one table to paste. About 20 minutes (an estimate: it has never run). Without
# --data_path the demo data set is generated. Logs and figures go to first_gpu_day/ in the present
# folder. A part that fails says so in its row, and the others go on.

# Without what the caller's shell hands on, such as CDPATH, noclobber and functions; and in bash.
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly HERE PYTHON=${PYTHON:-python3} OUT=first_gpu_day
rows=()

fail() {
  echo "error: $*" >&2
  exit 1
}

part() { # NAME COMMAND...: run it with its console in OUT/NAME.log; a row of the table if it fails
  local name=$1 status=0 began=$SECONDS
  shift
  echo "$name: $*"
  "$@" >"$OUT/$name.log" 2>&1 || status=$?
  seconds=$((SECONDS - began))
  if ((status)); then rows+=("| $name | FAILED, see $OUT/$name.log |"); fi
  return "$status"
}

rates() { # NAME: rows of OUT/NAME.json: rate and ratio to the bare network, by configuration
  "$PYTHON" - "$1" "$OUT/$1.json" <<'END'
import json, statistics, sys

name, path = sys.argv[1:]
found = json.load(open(path))
for part in ("training", "evaluation"):
    rates = found.get(part, {})
    for title, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["bare ResNet-50"]))
        rate = statistics.median(values)
        print(f"| {name}, {part}: {title} | {rate:,.0f} crops/s, {ratio:.2f} of bare |")
END
}

data=()
while (($#)); do
  case $1 in
    -h | --help) sed -n '/^$/q; s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | tail -n +2; exit ;;
    --data_path) [[ ${2:-} ]] || fail "$1 takes a folder"; data=(--data_path "$2"); shift 2 ;;
    *) fail "$1 is not known: see --help" ;;
  esac
done
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  fail "PyTorch sees no CUDA device here"
mkdir -p "$OUT"

machine=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count(), "x",
  torch.cuda.get_device_name(), "| torch", torch.__version__, "| CUDA", torch.version.cuda)')
rows+=("| GPUs | ${machine//|/,} |")

if part tests "$PYTHON" -m pytest "$HERE/tests/test_cuda.py" -n 0 -m "slow or not slow"; then
  rows+=("| tests | $(tail -n 1 "$OUT/tests.log") |")
fi
if part launches "$PYTHON" "$HERE/benchmarks/launches.py"; then
  rows+=("| launches of bare; baseline; + attention | $(awk '/^bare|ss_noatt|ms_att/ {printf "%s%s", s, $2; s = "; "}' "$OUT/launches.log") |")
fi
for way in "loop:" "loop_graph:--cuda_graph auto" "loop_compiled:--compile"; do
  name=${way%%:*}
  read -ra more <<<"${way#*:}"
  if part "$name" "$PYTHON" "$HERE/benchmarks/loop.py" --json "$OUT/$name.json" "${data[@]}" "${more[@]}"; then
    mapfile -t found < <(rates "$name")
    rows+=("${found[@]}")
  fi
done

short=(--epochs 2 --train_patch_num 5 --test_patch_num 5 --backbone_weights none --device cuda)
short+=(--checkpoint_dir "$OUT/checkpoints")
if ((${#data[@]})); then short+=("${data[@]}"); else short+=(--data_path demo/koniq-10k --store_dir demo/pixel_store); fi
for way in "one_at_a_time:" "three_at_once:--gpus 0,0,0" "graph:--cuda_graph auto"; do
  name=ablation_${way%%:*}
  read -ra more <<<"${way#*:}"
  if part "$name" bash "$HERE/run_resnet_ablation.sh" "${short[@]}" --log_dir "$OUT/$name" "${more[@]}"; then
    rows+=("| $name | $seconds s for three runs |")
  fi
done

printf '\n| what | measured |\n|---|---|\n'
printf '%s\n' "${rows[@]}"

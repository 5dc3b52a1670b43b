"""A stand-in for Python in tests of the shell script, and what the script prints."""

import re

# Takes the place of python3: writes what a run's console shows, or fails, hangs, forgets a figure.
STAND_IN = """#!/usr/bin/env bash
all=$*
[[ $all == *" --check" ]] && { echo "$all" >>"$CALLS.checked"; exit; }
case $1 in
  *experiment.py) exec PYTHON "$@" ;;
  *demo_dataset.py) echo "make $2" >>"$CALLS"; exit ;;
  *report_resnet_ablation.py) echo "report on $2"; exit 0 ;;
esac
while (($#)); do
  case $1 in --run_name) name=$2 ;; --seed) seed=$2 ;; --log_dir) dir=$2 ;; esac
  [[ $1 == --resume ]] && resumed=" resumed"
  shift
done
echo "$name${resumed:-}" >>"$CALLS"
touch "$dir/$name.jsonl"
echo "called with $all"
echo "on gpu ${CUDA_VISIBLE_DEVICES:-}, ${OMP_NUM_THREADS:-} threads"
echo "data        a data set"
[[ $all == *hyperiqa_paper* ]] && echo "split       random by --split_seed $seed"
case "$name" in
  $FAILING*) echo "error: this run fails"; exit 1 ;;
  $HANGING*) exec sleep 60 ;;
  $FORGETTING*) exit 0 ;;
esac
srcc=0.9$((seed % 10))${name:3:1}0
echo "Best Test SRCC: $srcc  (epoch 2, chosen on the test images themselves: optimistic)"
echo "Best Test PLCC: 0.9500  (epoch 2, chosen on the test images themselves: optimistic)"
chosen="0.8$((seed % 10))00  (epoch 1, chosen on the validation images)"
if [[ ${CHOSEN:-} == none ]]; then
  echo "No validation images: no epoch is chosen by them."
else
  echo "Validation-Chosen Test SRCC: ${CHOSEN:-$chosen}"
fi
echo "Last Test SRCC: -0.0100  (epoch 3, not chosen)"
"""


def rows(console: str) -> dict[str, list[str]]:
    """The table's cells by run: test SRCC, PLCC, SRCC chosen by val, of the last epoch."""
    found = re.findall(r"^(exp\w+) +(-?\d.*|FAILED: see .*)", console, re.MULTILINE)
    return {run: cells.split() for run, cells in found}

"""The example for a cluster, with stand-ins for sbatch, srun and scontrol."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

SCRIPT = ROOT / "slurm" / "ablation.sbatch"
SBATCH = '#!/usr/bin/env bash\necho "sbatch $*" >>"$CALLS"\necho "${JOB:-77};a_cluster"\n'
# As since Slurm 22.05, srun gives a step one core unless it is told.
SRUN = """#!/usr/bin/env bash
if [[ ${SLURM_CPUS_PER_TASK:-1} != 1 && $1 != --cpus-per-task="$SLURM_CPUS_PER_TASK" ]]; then
  echo "one core of $SLURM_CPUS_PER_TASK" >&2
  exit 1
fi
echo "srun $*" >>"$CALLS"
exit "${STATUS:-0}"
"""
SCONTROL = '#!/usr/bin/env bash\necho "scontrol $*" >>"$CALLS"\n'


@pytest.fixture
def cluster(tmp_path):
    """Run the script in an empty folder, on a cluster of stand-ins; (process, what was called)."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    calls = tmp_path / "calls"

    def run(*flags, script=SCRIPT, **environment):
        calls.write_text("")
        python = Path(sys.executable).parent
        own = {"PATH": f"{tools}:{python}:{os.environ['PATH']}", "CALLS": str(calls)}
        done = subprocess.run(
            ["bash", script, *flags],
            cwd=tmp_path,
            env=os.environ | own | environment,
            capture_output=True,
            text=True,
        )
        return done, calls.read_text().splitlines()

    return run


def test_it_submits_an_array_and_then_the_report(cluster, tmp_path):
    done, (array, report) = cluster("--data_path", "/data/koniq 10k", SEEDS="42,43")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "logs").iterdir()
    assert "--array=0-5" in array and f"LOG_DIR=logs/{folder.name}" in array
    assert array.endswith(f"{SCRIPT} --data_path /data/koniq 10k")
    assert "--dependency=afterany:77 " in report
    assert f"--wrap=python3 {ROOT}/report_resnet_ablation.py logs/{folder.name}" in report
    assert f"6 runs, logs and report in logs/{folder.name}" in done.stdout


def test_each_task_trains_its_configuration_and_seed_and_can_be_resumed(cluster):
    task = {"SLURM_ARRAY_JOB_ID": "77", "LOG_DIR": "logs/here", "SEEDS": "42,43"}
    seen = set()
    for number in range(6):
        done, (call,) = cluster("--lr", "1e-4", SLURM_ARRAY_TASK_ID=str(number), **task)
        assert done.returncode == 0 and "--lr 1e-4 " in call and call.endswith("--resume")
        words = call.split()
        seen.add((words[words.index("--run_name") + 1], words[words.index("--seed") + 1]))
        assert ("--use_attention" in words) == ("attention" in call.split("--run_name ")[1])
        assert ("--no-use_multiscale" in words) == ("exp1" in call)
    assert len(seen) == 6 and ("exp3_multiscale_attention_seed43", "43") in seen


def test_a_task_uses_all_cores_of_its_job(cluster):
    task = {"SLURM_ARRAY_TASK_ID": "0", "LOG_DIR": "logs/here", "SLURM_CPUS_PER_TASK": "8"}
    done, (call,) = cluster(**task)
    assert done.returncode == 0, done.stderr
    assert call.startswith("srun --cpus-per-task=8 python3 ")


def test_a_task_runs_from_a_copy_of_the_script(cluster, tmp_path):
    copy = shutil.copy(SCRIPT, tmp_path / "slurm_script")
    task = {"SLURM_ARRAY_TASK_ID": "0", "LOG_DIR": "logs/here", "IQA_CHECKOUT": str(ROOT)}
    done, (call,) = cluster(script=copy, **task)
    assert done.returncode == 0 and f"srun python3 {ROOT}/train_resnet_improved.py " in call


def test_the_callers_shell_changes_nothing(cluster, tmp_path):
    (tmp_path / "a check out").symlink_to(ROOT)
    (tmp_path / "stray" / "a check out" / "slurm").mkdir(parents=True)
    caller = {"CDPATH": str(tmp_path / "stray"), "SHELLOPTS": "noclobber:noglob"}
    caller |= {"BASH_FUNC_sbatch%%": "() { echo no; }", "IQA_CHECKOUT": "/nowhere"}
    done, (array, report) = cluster(script="a check out/slurm/ablation.sbatch", **caller)
    assert done.returncode == 0 and "--array=0-2" in array and "a\\ check\\ out/report" in report


def test_two_ablations_of_one_second_never_share_a_folder(cluster, tmp_path):
    (tmp_path / "tools" / "date").write_text("#!/usr/bin/env bash\necho 20260102_030405\n")
    (tmp_path / "tools" / "date").chmod(0o755)
    assert cluster()[0].returncode == 0
    done, calls = cluster()
    assert done.returncode == 1 and calls == [] and "20260102_030405" in done.stderr


def test_a_preempted_task_is_queued_again_and_a_failed_one_is_not(cluster):
    task = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "1", "LOG_DIR": "logs"}
    done, calls = cluster(**task, STATUS="143")
    assert done.returncode == 143 and calls[-1] == "scontrol requeue 77_1"
    done, calls = cluster(**task, STATUS="1")
    assert done.returncode == 1 and len(calls) == 1


def test_another_models_rows_are_its_tasks(cluster):
    _, (array, _) = cluster("--model", "hyperiqa", "--lr", "1e-5", SEEDS="1,2,3")
    assert "--array=0-2" in array
    task = {"SLURM_ARRAY_TASK_ID": "2", "LOG_DIR": "logs/here", "SEEDS": "1,2,3"}
    _, (call,) = cluster("--model", "hyperiqa", "--lr", "1e-5", **task)
    assert "--model hyperiqa --lr 1e-5 --seed 3 --run_name exp4_hyperiqa_seed3 " in call


def test_what_cannot_be_listed_is_not_submitted(cluster, tmp_path):
    done, calls = cluster("--model", "swin")
    assert done.returncode != 0 and calls == [] and "invalid choice: 'swin'" in done.stderr
    assert not (tmp_path / "logs").exists()


def test_help_submits_nothing(cluster):
    done, calls = cluster("--help")
    assert done.returncode == 0 and calls == [] and "SEEDS=42,43,44 bash slurm/" in done.stdout


def test_the_seeds_are_not_given_to_sbatch_which_would_split_them_at_commas(cluster):
    _, (array, _) = cluster(SEEDS="42,43")
    assert "SEEDS" not in array and "--export=ALL," in array


def test_the_script_is_clean():
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    assert subprocess.run([checker, SCRIPT]).returncode == 0

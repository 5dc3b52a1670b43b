"""The shell script, with real short runs and with a stand-in for Python that ends as told."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import train_resnet_improved as train
from conftest import ROOT, TINY

# Takes the place of python3: writes what a run's console shows, or fails, hangs, forgets a figure.
STAND_IN = """#!/usr/bin/env bash
all=$*
case $1 in *demo_dataset.py) echo "draw $2" >>"$CALLS"; exit ;; esac
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
echo "Validation-Chosen Test SRCC: ${CHOSEN:-$chosen}"
echo "Last Test SRCC: -0.0100  (epoch 3, not chosen)"
"""


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / "stand_in"
    path.write_text(STAND_IN)
    path.chmod(0o755)
    return path


@pytest.fixture
def ablation(run_script, stand_in, tmp_path):
    """Run the script with the stand-in; returns the process, with `.folder` of its logs."""

    def run(*arguments, failing="none", hanging="none", forgetting="none", **environment):
        done = run_script(
            "run_resnet_ablation.sh",
            *arguments,
            PYTHON=str(stand_in),
            CALLS=str(tmp_path / "calls"),
            FAILING=failing,
            HANGING=hanging,
            FORGETTING=forgetting,
            **environment,
        )
        folders = sorted((run_script.folder / "logs").glob("resnet_ablation_*"))
        done.folder = folders[-1] if folders else None
        return done

    run.calls = tmp_path / "calls"
    return run


def rows(table: str) -> dict[str, list[str]]:
    """The table's cells by configuration."""
    titles = ("baseline", "+ multi-scale", "+ attention")
    found = {}
    for line in table.splitlines():
        for title in titles:
            if line.startswith(f"{title}  "):
                found[title] = line[len(title) :].split()
    return found


def test_the_three_configurations_end_in_a_table(koniq10k, run_script):
    done = run_script(
        "run_resnet_ablation.sh", *TINY, "--data_path", koniq10k, "--epochs", 1, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (run_script.folder / "logs").iterdir()
    assert re.fullmatch(r"resnet_ablation_\d{8}_\d{6}", folder.name)
    names = ["exp1_baseline", "exp2_multiscale", "exp3_multiscale_attention"]
    suffixes = [".jsonl", ".log", "_predictions.csv"]
    of_the_report = ["report.md", "report.html", "table.tex", "paragraph.tex", "results.json"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [n + s for n in names for s in suffixes]
        + ["arguments", "table.txt", "figures", *of_the_report]
    )
    assert "not decided by these runs" in done.stdout  # on three test images
    table = (folder / "table.txt").read_text()
    assert table in done.stdout and "0.8998" in table and "0.9378" in table
    cells = rows(table)
    for name, title in zip(names, cells):
        log = (folder / f"{name}.log").read_text()
        assert log in done.stdout  # what the console showed
        assert f"Best Test SRCC: {cells[title][0]} " in log
        assert f"Best Test PLCC: {cells[title][1]} " in log
    assert len(cells) == 3
    kinds = ("ss_noatt", "ms_noatt", "ms_att")
    wanted = [f"resnet_improved_{k}_{w}.pth" for k in kinds for w in ("best", "last")]
    written = (run_script.folder / "checkpoints").glob("resnet*")
    assert sorted(p.name for p in written) == sorted(wanted)


def test_differences_are_to_the_baseline(ablation):
    done = ablation()
    assert done.returncode == 0
    assert rows(done.stdout) == {
        "baseline": ["0.9210", "0.9500", "-", "-", "0.8200", "-0.0100"],
        "+ multi-scale": ["0.9220", "0.9500", "+0.0010", "+0.11", "0.8200", "-0.0100"],
        "+ attention": ["0.9230", "0.9500", "+0.0020", "+0.22", "0.8200", "-0.0100"],
    }


def test_figures_keep_their_point_where_numbers_are_written_with_a_comma(ablation, tmp_path):
    made = ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")]
    if not shutil.which("localedef") or subprocess.run(made, capture_output=True).returncode:
        pytest.skip("no locale with a decimal comma can be made on this machine")
    german = {"LOCPATH": str(tmp_path), "LC_ALL": "de_DE.UTF-8"}
    done = ablation("--seeds", "41,43", **german)
    assert rows(done.stdout)["baseline"][:2] == ["0.9210+-0.0141", "0.9500+-0.0000"]
    assert rows(done.stdout)["+ attention"][2:4] == ["+0.0020", "+0.22"]


def test_a_run_whose_validation_images_choose_nothing_is_no_failure(ablation):
    done = ablation(CHOSEN="undefined (fewer than two images)")
    assert done.returncode == 0
    assert rows(done.stdout)["+ attention"][4:] == ["undefined", "-0.0100"]


def test_the_demo_draws_its_data_and_says_that_it_is_a_demo(ablation):
    done = ablation("--demo", "--epochs", "1")
    assert done.returncode == 0
    assert ablation.calls.read_text().splitlines()[0] == "draw demo/koniq-10k"
    assert "these figures are not KonIQ-10k figures" in done.stdout
    call = (done.folder / "exp1_baseline.log").read_text().splitlines()[0]
    for text in ("--data_path demo/koniq-10k", "--backbone_weights none", "--device cpu"):
        assert text in call
    assert "--checkpoint_dir demo/checkpoints" in call  # never over an experiment's
    assert call.index("--epochs 3") < call.index("--epochs 1")  # the user's flag holds


def test_the_demos_flags_are_understood(ablation):
    import train_resnet_improved as train

    done = ablation("--demo")
    call = (done.folder / "exp3_multiscale_attention.log").read_text().splitlines()[0]
    args = train.parse_args(call.split("train_resnet_improved.py ")[1].split())
    assert args.use_attention and args.save_model and args.backbone_weights == "none"


def test_flags_with_an_equals_sign_hold_as_well(ablation, tmp_path):
    done = ablation("--seed=7", f"--log_dir={tmp_path / 'mine'}", "--lr=0.01")
    (folder,) = (tmp_path / "mine").iterdir()
    call = (folder / "exp1_baseline.log").read_text().splitlines()[0]
    assert done.returncode == 0 and "--lr 0.01" in call and "--seed 7 " in call


def test_a_figure_that_one_seed_lacks_fails_the_row(ablation):
    done = ablation("--seeds", "1,2", forgetting="exp2_multiscale_seed2")
    assert rows(done.stdout)["+ multi-scale"][0] == "FAILED:"


def test_several_seeds_give_mean_and_spread(ablation):
    done = ablation("--seeds", "41,43")
    assert done.returncode == 0
    assert rows(done.stdout)["baseline"][0] == "0.9210+-0.0141"
    assert rows(done.stdout)["+ attention"][2:4] == ["+0.0020", "+0.22"]
    assert len(ablation.calls.read_text().split()) == 6
    assert (done.folder / "exp2_multiscale_seed43.log").is_file()


def test_a_failed_run_leaves_the_others_and_is_named(ablation):
    done = ablation(failing="exp2")
    assert done.returncode == 1
    assert rows(done.stdout)["+ multi-scale"][0] == "FAILED:"
    assert f"logs/{done.folder.name}/exp2_multiscale.log" in done.stdout
    assert rows(done.stdout)["+ attention"][0] == "0.9230"
    assert len(ablation.calls.read_text().split()) == 3


def test_without_a_baseline_there_are_no_differences(ablation):
    done = ablation(failing="exp1")
    assert done.returncode == 1
    assert rows(done.stdout)["+ attention"][:4] == ["0.9230", "0.9500", "-", "-"]


def test_one_failed_seed_fails_its_row(ablation):
    done = ablation("--seeds", "1,2", failing="exp3_multiscale_attention_seed2")
    assert done.returncode == 1
    row = rows(done.stdout)["+ attention"]
    assert row[0] == "FAILED:" and row[-1].endswith("exp3_multiscale_attention_seed2.log")


def test_a_missing_figure_is_an_error_not_a_blank(ablation):
    done = ablation(forgetting="exp2")
    assert done.returncode == 1
    assert rows(done.stdout)["+ multi-scale"][0] == "FAILED:"


def test_wrong_data_fails_every_run_with_its_sentence(run_script):
    done = run_script("run_resnet_ablation.sh", "--data_path", "nowhere", timeout=120)
    assert done.returncode == 1
    assert done.stdout.count("error: --data_path nowhere: no such folder") == 3
    assert done.stdout.count("FAILED: see") == 3


@pytest.mark.parametrize("signal_number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_of_it(tmp_path, stand_in, signal_number, status):
    environment = {"PYTHON": stand_in, "CALLS": tmp_path / "calls", "HANGING": "exp1"}
    process = subprocess.Popen(
        ["bash", ROOT / "run_resnet_ablation.sh"],
        cwd=tmp_path,
        env=os.environ | {k: str(v) for k, v in environment.items()} | {"FAILING": "none"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "calls").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    if signal_number == signal.SIGINT:
        os.killpg(process.pid, signal_number)  # as a terminal does
    else:
        process.send_signal(signal_number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == status and "stopped by SIG" in errors
    assert (tmp_path / "calls").read_text().split() == ["exp1_baseline"]
    assert "best on test" not in output  # no table is announced


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seeds", "a"], "takes whole numbers"),
        (["--seeds"], "takes whole numbers"),
        (["--seeds", "1,1"], "names a seed twice"),
        (["--seeds", "42,042"], "names a seed twice"),
        (["--neighbours", "swin"], "--neighbours takes smart_iqa_tiny"),
        (["--gpus", "all"], "--gpus takes numbers of GPUs"),
        (["--parallel", "0"], "--parallel takes a number of runs"),
        (["--log_dir"], "--log_dir takes a folder"),
        (["--checkpoint_dir"], "--checkpoint_dir takes a folder"),
        (["--use_multiscale"], "is what this script sets"),
        (["--no-use_attention"], "is what this script sets"),
        (["--model"], "--model takes a name"),
        (["--with_neighbours", "--dropout_rate=0.1"], "goes without --dropout_rate"),
        (["--with_neighbours", "--backbone_weights", "r.pth"], "takes --backbone_weights none or"),
        (["--model", "hyperiqa", "--with_neighbours"], "without --model and --preset"),
        (["--preset", "smart_iqa", "--demo"], "--demo goes without --model and --preset"),
        (["--run_name", "x"], "is what this script sets"),
    ],
)
def test_wrong_arguments_get_one_sentence(ablation, arguments, message):
    done = ablation(*arguments)
    assert done.returncode == 2 and message in done.stderr and done.folder is None


def interrupted(command, cwd, seconds: float, **environment) -> None:
    """Kill the script and all that it has started, as a power cut does."""
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=cwd,
        env=os.environ | {k: str(v) for k, v in environment.items()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_resumed_it_keeps_what_is_finished_and_goes_on(ablation, run_script, stand_in):
    environment = {"PYTHON": stand_in, "CALLS": ablation.calls, "HANGING": "exp2", "FAILING": "no"}
    script = ["bash", ROOT / "run_resnet_ablation.sh"]
    flags = ["--seeds", "1,2", "--lr", "0.5", "--data_path", "a folder"]
    interrupted([*script, *flags], run_script.folder, 3, **environment, FORGETTING="no")
    (folder,) = (run_script.folder / "logs").iterdir()
    done = ablation("--resume", folder)
    assert done.returncode == 0 and done.folder == folder, done.stderr
    first = ["exp1_baseline_seed1", "exp2_multiscale_seed1"]
    later = [f"exp{n}_seed1" for n in ("3_multiscale_attention",)]
    later += [f"exp{n}_seed2" for n in ("1_baseline", "2_multiscale", "3_multiscale_attention")]
    calls = ablation.calls.read_text().splitlines()
    assert calls == [*first, "exp2_multiscale_seed1 resumed", *later]
    for log in folder.glob("exp*.log"):
        assert "--lr 0.5 --data_path a folder" in log.read_text()
    undisturbed = ablation(*flags, "--log_dir", "other")
    assert rows(undisturbed.stdout) == rows(done.stdout) and len(rows(done.stdout)) == 3


def test_neighbours_are_three_runs_more(ablation):
    done = ablation("--with_neighbours", "--neighbours", "smart_iqa_small")
    assert done.returncode == 0, done.stderr
    assert ablation.calls.read_text().split()[3:] == [
        "exp4_hyperiqa",
        "exp5_smart_iqa_small",
        "exp6_smart_iqa_small",
    ]
    call = (done.folder / "exp6_smart_iqa_small.log").read_text().splitlines()[0]
    assert "--model smart_iqa_small --no-use_multiscale" in call
    assert re.search(r"^HyperIQA +0\.9240 ", done.stdout, re.MULTILINE)
    done = ablation("--demo", "--with_neighbours", "--log_dir", "other")
    assert done.returncode == 2 and "take 224" in done.stderr


def test_the_papers_recipe_gives_medians_over_splits(ablation):
    done = ablation("--preset", "hyperiqa_paper", "--seeds", "41,42,49")
    assert done.returncode == 0, done.stderr
    assert {line.split("_seed")[0] for line in ablation.calls.read_text().split()} == {
        "exp4_hyperiqa"
    }
    assert done.stdout.count("HyperIQA, 3 seed(s): 41 42 49") == 1
    assert re.search(r"^HyperIQA +0\.9240\+-0\.0436 ", done.stdout, re.MULTILINE)
    assert "medians over the splits" in done.stdout


def test_a_smart_iqa_has_the_three_configurations_too(ablation):
    done = ablation("--model", "smart_iqa_tiny", "--preset=smart_iqa")
    assert done.returncode == 0, done.stderr
    assert len(rows(done.stdout)) == 3 and "SMART-IQA ablation, 1 seed(s)" in done.stdout
    for name, flags, wanted in (
        ("exp1_baseline", "--no-use_multiscale", (False, False)),
        ("exp2_multiscale", "--use_multiscale --no-use_attention", (True, False)),
        ("exp3_multiscale_attention", "--use_multiscale --use_attention", (True, True)),
    ):
        call = (done.folder / f"{name}.log").read_text().splitlines()[0]
        assert f" --model smart_iqa_tiny --preset smart_iqa {flags} --seed" in call
        args = train.parse_args(call.partition(".py ")[2].split())
        assert (args.use_multiscale, args.use_attention) == wanted and args.epochs == 10


def test_the_recipe_on_another_model_has_its_configurations(ablation):
    done = ablation("--model", "resnet_improved", "--preset", "hyperiqa_paper")
    assert len(rows(done.stdout)) == 3 and "ResNet-50 ablation, 1 seed(s)" in done.stdout


def test_side_by_side_gives_the_same_table(ablation):
    in_turn = ablation("--seeds", "1,2", "--log_dir", "other")
    done = ablation("--seeds", "1,2", "--gpus", "3,5")
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout) == rows(in_turn.stdout) and len(rows(done.stdout)) == 3
    used = [
        (log.stem, re.search(r"gpu (\S*),", log.read_text())[1])
        for log in done.folder.glob("exp*.log")
    ]
    assert len(used) == 6 and {gpu for _, gpu in used} == {"3", "5"}
    done = ablation("--parallel", "2", "--log_dir", "third", failing="exp2")
    assert done.returncode == 1 and rows(done.stdout)["+ multi-scale"][0] == "FAILED:"
    assert "exp2_multiscale: FAILED" in done.stderr
    assert "exp1_baseline: Best Test SRCC: 0.9210" in done.stdout


@pytest.mark.slow
def test_killed_in_each_of_its_runs_it_ends_in_the_same_table(koniq10k, run_script):
    flags = [*TINY, "--data_path", koniq10k, "--epochs", "12", "--save_minutes", "0.01"]
    script = ["bash", ROOT / "run_resnet_ablation.sh"]
    undisturbed = run_script("run_resnet_ablation.sh", *flags, "--log_dir", "other", timeout=900)
    (other,) = (run_script.folder / "other").iterdir()
    command, kills = [*script, *flags, "--checkpoint_dir", "its own"], 0
    names = ["exp1_baseline", "exp2_multiscale", "exp3_multiscale_attention"]
    killed_in = set()
    while killed_in != set(names):
        interrupted(command, run_script.folder, 14, PYTHON=sys.executable)
        (folder,) = (run_script.folder / "logs").iterdir()
        command = [*script, "--resume", folder]
        logs = {n: folder / f"{n}.log" for n in names}
        killed_in |= {
            n for n, log in logs.items() if log.exists() and "Last Test" not in log.read_text()
        }
        kills += 1
        assert kills < 40 and not (folder / "table.txt").exists()
    done = run_script("run_resnet_ablation.sh", "--resume", folder, timeout=900)
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout) == rows(undisturbed.stdout)
    for name in names:
        csv = f"{name}_predictions.csv"
        assert (folder / csv).read_bytes() == (other / csv).read_bytes()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--resume"], "takes the folder"),
        (["--resume", "nowhere"], "no file 'arguments'"),
        (["--resume", "nowhere", "--lr", "1"], "and no other flags"),
    ],
)
def test_what_cannot_be_resumed_is_said(ablation, arguments, message):
    done = ablation(*arguments)
    assert done.returncode == 2 and message in done.stderr and done.folder is None


def test_help_explains(ablation):
    done = ablation("-h")
    assert done.returncode == 0 and done.folder is None
    for text in ("--demo", "--seeds", "Examples:", "table.txt"):
        assert text in done.stdout


def test_arguments_with_spaces_arrive_whole(koniq10k, run_script, tmp_path):
    moved = koniq10k.rename(tmp_path / "my $(touch broken) data")
    done = run_script("run_resnet_ablation.sh", "--data_path", moved, "--epochs", "0", timeout=120)
    assert done.returncode == 1 and "--epochs: 0 is not" in done.stdout
    # a log folder of its own: two ablations of one second would be refused
    flags = ("--data_path", f"{moved}/no", "--log_dir", "other logs")
    done = run_script("run_resnet_ablation.sh", *flags, timeout=120)
    assert f"--data_path {moved}/no: no such folder" in done.stdout
    assert not (run_script.folder / "broken").exists()


def test_the_script_is_clean():
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    assert subprocess.run([checker, ROOT / "run_resnet_ablation.sh"]).returncode == 0

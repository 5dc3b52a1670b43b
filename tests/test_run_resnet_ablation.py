"""The shell script, with real short runs and with a stand-in for Python that ends as told."""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablations import rows
from conftest import ROOT, TINY
from training.flags import parse_args
from training.records import closing_lines


def test_the_three_configurations_end_in_a_table(koniq10k, run_script):
    done = run_script(
        "run_resnet_ablation.sh", *TINY, "--data_path", koniq10k, "--epochs", 1, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (run_script.folder / "logs").iterdir()
    assert re.fullmatch(r"resnet_ablation_\d{8}_\d{6}", folder.name)
    names = ["exp1_baseline", "exp2_multiscale", "exp3_multiscale_attention"]
    suffixes = [".jsonl", ".log", "_predictions.csv", "_state.pth"]
    of_the_report = ["report.md", "report.html", "table.tex", "paragraph.tex", "results.json"]
    seen = [p.name for p in folder.iterdir() if not p.name.startswith(".")]  # locks are hidden
    assert sorted(seen) == sorted(
        [n + s for n in names for s in suffixes]
        + ["arguments", "runs", "progress.html", "table.txt", "figures", *of_the_report]
    )
    assert "not decided" in done.stdout  # on three test images, by one seed
    table = (folder / "table.txt").read_text()
    assert table in done.stdout and "0.8998" in table and "0.9378" in table
    cells = rows(done.stdout)
    for name in names:
        log = (folder / f"{name}.log").read_text()
        assert log in done.stdout  # what the console showed
        assert f"Best Test SRCC: {cells[name][0]} " in log
        assert f"Best Test PLCC: {cells[name][1]} " in log
    assert len(cells) == 3
    kinds = ("ss_noatt", "ms_noatt", "ms_att")
    wanted = [f"resnet_improved_{k}_{w}.pth" for k in kinds for w in ("best", "last")]
    written = (run_script.folder / "checkpoints").glob("resnet*.pth")
    assert sorted(p.name for p in written) == sorted(wanted)


def processes_with(text: str) -> list[str]:
    """The command lines of all processes that have the text in theirs."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if text in line]


@pytest.fixture
def watching(stand_in):
    """The stand-in, but the real script writes progress.html; no run ends before that is there."""
    script = stand_in.read_text()
    real = f'[[ $* == *" --watch "* ]] && exec {sys.executable} "$@"\n'
    script = script.replace("all=$*\n", f"{real}all=$*\n", 1)
    wait = "until [[ -e $dir/progress.html ]]; do sleep 0.1; done\n"
    stand_in.write_text(script.replace('echo "$name${resumed', f'{wait}echo "$name${{resumed', 1))


def test_without_the_page_or_with_one_that_fails_the_table_is_the_same(ablation):
    for flags in (["--no_page"], []):  # the stand-in writes no page, and ends at once
        done = ablation(*flags, "--log_dir", f"logs{len(flags)}")
        assert done.returncode == 0 and len(rows(done.stdout)) == 3, done.stderr
        assert ("progress.html" in done.stdout) == (not flags)
    again = ablation("--resume", next(Path(ablation.folder / "logs1").iterdir()))
    assert again.returncode == 0 and "progress.html" not in again.stdout


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_page_of_the_progress_begins_and_ends_with_the_script(
    watching, stand_in, run_script, tmp_path, number
):
    environment = {"PYTHON": stand_in, "CALLS": tmp_path / "calls", "FORGETTING": "none"}
    environment |= {"FAILING": "none", "HANGING": "none" if number is None else "exp2"}
    script = subprocess.Popen(
        ["bash", ROOT / "run_resnet_ablation.sh"],
        cwd=run_script.folder,
        env=os.environ | {k: str(v) for k, v in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    logs = run_script.folder / "logs"
    try:
        while not (pages := list(logs.glob("*/progress.html"))):
            assert script.poll() is None
            time.sleep(0.1)
        assert processes_with(f"{pages[0].parent.name} --watch {script.pid}")
        if number is not None:
            os.kill(script.pid, number)
        script.wait(240)
        deadline = time.monotonic() + 60
        while processes_with(f"{pages[0].parent.name} --watch"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert "This page has stopped" in pages[0].read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)


def test_each_run_has_a_row_with_its_closing_figures(ablation):
    done = ablation()
    assert done.returncode == 0
    assert rows(done.stdout) == {
        "exp1_baseline": ["0.9210", "0.9500", "0.8200", "-0.0100"],
        "exp2_multiscale": ["0.9220", "0.9500", "0.8200", "-0.0100"],
        "exp3_multiscale_attention": ["0.9230", "0.9500", "0.8200", "-0.0100"],
    }
    assert done.stdout.endswith(f"\nreport on logs/{done.folder.name}\n")


def test_the_lines_that_it_looks_for_are_those_that_end_a_log():
    script = (ROOT / "run_resnet_ablation.sh").read_text()
    patterns = re.findall("'(.*)'", re.search(r"CLOSING_LINES=\((.*?)\)", script, re.DOTALL)[1])
    without = re.search("NO_VALIDATION='(.*)'", script)[1]
    epochs = [
        {"epoch": i, "val_srcc": x, "val_plcc": x, "test_srcc": x, "test_plcc": x}
        for i, x in enumerate((0.5, 0.9012, 0.7), 1)
    ]
    lines = closing_lines(epochs).splitlines()
    found = [line for pattern in patterns for line in lines if line.startswith(pattern)]
    assert len(patterns) == len(found) == 4, f"patterns {patterns} in {lines}"
    assert sorted(found, key=lines.index) == found and found[-1].split()[3] == "0.7000"
    assert [line.split(": ")[1][:6] for line in found] == ["0.9012", "0.9012", "0.9012", "0.7000"]
    for epoch in epochs:
        del epoch["val_srcc"], epoch["val_plcc"]
    lines = closing_lines(epochs).splitlines()
    assert sum(line.startswith(without) for line in lines) == 1, f"{without!r} in {lines}"
    assert not any(line.startswith(patterns[2]) for line in lines)


def test_figures_keep_their_point_where_numbers_are_written_with_a_comma(ablation, tmp_path):
    made = ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")]
    if not shutil.which("localedef") or subprocess.run(made, capture_output=True).returncode:
        pytest.skip("no locale with a decimal comma can be made on this machine")
    german = {"LOCPATH": str(tmp_path), "LC_ALL": "de_DE.UTF-8"}
    done = ablation("--seeds", "41,43", **german)
    assert rows(done.stdout)["exp1_baseline_seed41"][:2] == ["0.9110", "0.9500"]
    assert rows(done.stdout)["exp3_multiscale_attention_seed43"][:2] == ["0.9330", "0.9500"]


def test_a_run_whose_validation_images_choose_nothing_is_no_failure(ablation):
    done = ablation(CHOSEN="undefined (fewer than two images)")
    assert done.returncode == 0
    assert rows(done.stdout)["exp3_multiscale_attention"][2:] == ["undefined", "-0.0100"]


def test_a_run_without_validation_images_is_no_failure(ablation):
    done = ablation(CHOSEN="none")
    assert done.returncode == 0
    assert rows(done.stdout)["exp3_multiscale_attention"][2:] == ["none", "-0.0100"]


def test_the_demo_makes_its_data_and_says_that_it_is_a_demo(ablation):
    done = ablation("--demo", "--epochs", "1")
    assert done.returncode == 0
    assert ablation.calls.read_text().splitlines()[0] == "make demo/koniq-10k"
    assert "these figures are not KonIQ-10k figures" in done.stdout
    call = (done.folder / "exp1_baseline.log").read_text().splitlines()[0]
    for text in ("--data_path demo/koniq-10k", "--backbone_weights none", "--device cpu"):
        assert text in call
    assert "--checkpoint_dir demo/checkpoints" in call  # never over an experiment's
    assert call.index("--epochs 3") < call.index("--epochs 1")  # the user's flag holds


def test_the_demos_flags_are_understood(ablation):
    done = ablation("--demo")
    call = (done.folder / "exp3_multiscale_attention.log").read_text().splitlines()[0]
    args = parse_args(call.split("train_resnet_improved.py ")[1].split())
    assert args.use_attention and args.save_model and args.backbone_weights == "none"


def test_flags_with_an_equals_sign_hold_as_well(ablation, tmp_path):
    done = ablation("--seed=7", f"--log_dir={tmp_path / 'mine'}", "--lr=0.01")
    (folder,) = (tmp_path / "mine").iterdir()
    call = (folder / "exp1_baseline.log").read_text().splitlines()[0]
    assert done.returncode == 0 and "--lr 0.01" in call and "--seed 7 " in call


def test_a_figure_that_one_seed_lacks_fails_the_row(ablation):
    done = ablation("--seeds", "1,2", forgetting="exp2_multiscale_seed2")
    assert rows(done.stdout)["exp2_multiscale_seed2"][0] == "FAILED:"


def test_each_seed_of_each_configuration_has_its_row(ablation):
    done = ablation("--seeds", "41,43")
    assert done.returncode == 0
    assert rows(done.stdout)["exp1_baseline_seed41"][:2] == ["0.9110", "0.9500"]
    assert rows(done.stdout)["exp1_baseline_seed43"][:2] == ["0.9310", "0.9500"]
    assert rows(done.stdout)["exp3_multiscale_attention_seed43"][:2] == ["0.9330", "0.9500"]
    assert len(rows(done.stdout)) == 6
    assert len(ablation.calls.read_text().split()) == 6
    assert (done.folder / "exp2_multiscale_seed43.log").is_file()


def test_a_failed_run_leaves_the_others_and_is_named(ablation):
    done = ablation(failing="exp2")
    assert done.returncode == 1
    assert rows(done.stdout)["exp2_multiscale"][0] == "FAILED:"
    assert f"logs/{done.folder.name}/exp2_multiscale.log" in done.stdout
    assert rows(done.stdout)["exp3_multiscale_attention"][0] == "0.9230"
    assert len(ablation.calls.read_text().split()) == 3
    assert "report on" in done.stdout


def test_without_a_baseline_the_others_have_their_figures(ablation):
    done = ablation(failing="exp1")
    assert done.returncode == 1
    assert rows(done.stdout)["exp3_multiscale_attention"][:2] == ["0.9230", "0.9500"]


def test_without_a_finished_run_there_is_no_report(ablation):
    done = ablation(failing="exp")
    assert done.returncode == 1 and "report on" not in done.stdout
    assert [cells[0] for cells in rows(done.stdout).values()] == ["FAILED:"] * 3


def test_one_failed_seed_fails_its_row(ablation):
    done = ablation("--seeds", "1,2", failing="exp3_multiscale_attention_seed2")
    assert done.returncode == 1
    row = rows(done.stdout)["exp3_multiscale_attention_seed2"]
    assert row[0] == "FAILED:" and row[-1].endswith("exp3_multiscale_attention_seed2.log")
    assert rows(done.stdout)["exp3_multiscale_attention_seed1"][0] == "0.9130"


def test_a_missing_figure_is_an_error_not_a_blank(ablation):
    done = ablation(forgetting="exp2")
    assert done.returncode == 1
    assert rows(done.stdout)["exp2_multiscale"][0] == "FAILED:"


def test_what_all_runs_need_is_checked_once_before_anything_is_made(run_script):
    for flags in ([], ["--data_path", "nowhere", "--seeds", "1,2"]):
        done = run_script("run_resnet_ablation.sh", *flags, timeout=120)
        assert done.returncode == 1 and done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert "no such folder" in line and "run_resnet_ablation.sh --demo" in line
        assert list(run_script.folder.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seeds", "a"], "takes whole numbers"),
        (["--seeds"], "takes whole numbers"),
        (["--seeds", "1,1"], "names a seed twice"),
        (["--seeds", "42,042"], "names a seed twice"),
        (["--neighbours", "swin"], "argument --neighbours: invalid choice: 'swin' (choose from "),
        (["--model", "swin"], "argument --model: invalid choice: 'swin' (choose from "),
        (["--gpus", "all"], "--gpus takes numbers of GPUs"),
        (["--parallel", "0"], "--parallel takes a number of runs"),
        (["--log_dir"], "--log_dir takes a folder"),
        (["--checkpoint_dir"], "--checkpoint_dir takes a folder"),
        (["--use_multiscale"], "is what this script sets"),
        (["--no-use_attention"], "is what this script sets"),
        (["--model"], "--model takes a name"),
        (["--with_neighbours", "--dropout_rate=0.1"], "goes without --dropout_rate"),
        (
            ["--with_neighbours", "--backbone_weights", "r.pth"],
            "--backbone_weights none or imagenet",
        ),
        (["--model", "hyperiqa", "--with_neighbours"], "without --model and --preset"),
        (["--preset", "smart_iqa", "--demo"], "--demo can't be combined with --model"),
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
    assert rows(undisturbed.stdout) == rows(done.stdout) and len(rows(done.stdout)) == 6


def test_an_ablation_of_one_seed_gets_more_seeds_and_controls_in_its_folder(ablation):
    first = ablation("--lr", "0.5", "--data_path", "a folder")
    folder = first.folder
    kept = (folder / "exp1_baseline.log").read_text()
    done = ablation("--resume", folder, "--seeds", "42,43")
    assert done.returncode == 0 and done.folder == folder, done.stderr
    calls = ablation.calls.read_text().splitlines()
    assert len(calls) == 6 and calls[3:] == [run for run in calls if run.endswith("_seed43")]
    assert (folder / "exp1_baseline_seed42.log").read_text() == kept
    assert len(rows(done.stdout)) == 6 and not (folder / "exp1_baseline.log").exists()
    assert rows(done.stdout)["exp1_baseline_seed42"] == rows(first.stdout)["exp1_baseline"]
    done = ablation("--resume", folder, "--controls")
    assert done.returncode == 0 and len(rows(done.stdout)) == 10, done.stderr
    calls = ablation.calls.read_text().splitlines()
    assert len(calls) == 10 and {run[:4] for run in calls[6:]} == {"exp7", "exp8"}
    for log in folder.glob("exp*.log"):
        assert "--lr 0.5 --data_path a folder" in log.read_text()
    done = ablation("--resume", folder)
    assert done.returncode == 0 and ablation.calls.read_text().splitlines() == calls


@pytest.mark.parametrize(
    "added, message",
    [
        (["--lr", "1"], "keeps its own flags"),
        (["something"], "keeps its own flags"),
        (["--seeds", "43,44"], "--seeds leaves out 42"),
    ],
)
def test_what_an_ablation_does_not_get_when_it_is_resumed(ablation, added, message):
    first = ablation()
    before = sorted(first.folder.iterdir())
    done = ablation("--resume", first.folder, *added)
    assert done.returncode == 2 and message in done.stderr
    assert sorted(first.folder.iterdir()) == before


def test_a_run_that_is_being_trained_is_not_renamed(ablation):
    folder = ablation().folder
    with open(folder / ".exp2_multiscale_state.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = ablation("--resume", folder, "--seeds", "42,43")
    assert done.returncode == 2 and "exp2_multiscale is still being trained" in done.stderr


def test_backbones_have_runs_of_their_own(ablation):
    done = ablation("--backbones", "resnet50,resnet18", "--seeds", "1,2")
    assert done.returncode == 0 and len(rows(done.stdout)) == 12, done.stderr
    call = (done.folder / "exp2_multiscale_resnet18_seed2.log").read_text().splitlines()[0]
    assert "--use_multiscale --no-use_attention --backbone resnet18 --seed 2" in call
    checked = ablation.calls.with_name("calls.checked").read_text().splitlines()
    assert [line.split("--backbone ")[1].split()[0] for line in checked] == ["resnet50", "resnet18"]
    done = ablation("--resume", done.folder, "--backbones", "resnet50,resnet18,resnet34")
    assert done.returncode == 0 and len(rows(done.stdout)) == 18, done.stderr
    assert len(ablation.calls.read_text().splitlines()) == 18
    done = ablation("--backbones", "resnet18", "--backbone", "resnet34", "--log_dir", "other")
    assert done.returncode == 2 and "--backbone is what this script sets" in done.stderr


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
    assert rows(done.stdout)["exp4_hyperiqa"][0] == "0.9240"
    done = ablation("--demo", "--with_neighbours", "--log_dir", "other")
    assert done.returncode == 2 and "crops are 224" in done.stderr


def test_the_papers_recipe_trains_hyperiqa_alone(ablation):
    done = ablation("--preset", "hyperiqa_paper", "--seeds", "41,42,49")
    assert done.returncode == 0, done.stderr
    assert {line.split("_seed")[0] for line in ablation.calls.read_text().split()} == {
        "exp4_hyperiqa"
    }
    assert {run: cells[0] for run, cells in rows(done.stdout).items()} == {
        "exp4_hyperiqa_seed41": "0.9140",
        "exp4_hyperiqa_seed42": "0.9240",
        "exp4_hyperiqa_seed49": "0.9940",
    }


def test_a_smart_iqa_has_the_three_configurations_too(ablation):
    done = ablation("--model", "smart_iqa_tiny", "--preset=smart_iqa")
    assert done.returncode == 0, done.stderr
    assert len(rows(done.stdout)) == 3
    for name, flags, wanted in (
        ("exp1_baseline", "--no-use_multiscale --no-use_attention", (False, False)),
        ("exp2_multiscale", "--use_multiscale --no-use_attention", (True, False)),
        ("exp3_multiscale_attention", "--use_multiscale --use_attention", (True, True)),
    ):
        call = (done.folder / f"{name}.log").read_text().splitlines()[0]
        assert f" --model smart_iqa_tiny --preset smart_iqa {flags} --seed" in call
        args = parse_args(call.partition(".py ")[2].split())
        assert (args.use_multiscale, args.use_attention) == wanted and args.epochs == 10


def test_the_recipe_on_another_model_has_its_configurations(ablation):
    done = ablation("--model", "resnet_improved", "--preset", "hyperiqa_paper")
    assert len(rows(done.stdout)) == 3


def test_side_by_side_gives_the_same_table(ablation):
    sequential = ablation("--seeds", "1,2", "--log_dir", "other")
    done = ablation("--seeds", "1,2", "--gpus", "3,5")
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout) == rows(sequential.stdout) and len(rows(done.stdout)) == 6
    used = [
        (log.stem, re.search(r"gpu (\S*),", log.read_text())[1])
        for log in done.folder.glob("exp*.log")
    ]
    assert len(used) == 6 and {gpu for _, gpu in used} == {"3", "5"}
    done = ablation("--parallel", "2", "--log_dir", "third", failing="exp2")
    assert done.returncode == 1 and rows(done.stdout)["exp2_multiscale"][0] == "FAILED:"
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
        (["--resume"], "no file 'arguments'"),
        (["--resume", "nowhere"], "no file 'arguments'"),
        (["--resume", "nowhere", "--seeds", "1,2"], "no file 'arguments'"),
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
    assert done.returncode == 2 and "--epochs: 0 is not" in done.stderr
    flags = ("--data_path", f"{moved}/no", "--log_dir", "other logs")
    done = run_script("run_resnet_ablation.sh", *flags, timeout=120)
    assert f"--data_path {moved}/no: no such folder" in done.stderr
    assert list(run_script.folder.iterdir()) == []


def test_the_script_is_clean():
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    assert subprocess.run([checker, ROOT / "run_resnet_ablation.sh"]).returncode == 0

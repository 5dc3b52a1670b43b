"""The shell script, called from shells, consoles and terminals that disturb it."""

import os
import re
import signal
import subprocess
import time

import pytest

from ablations import rows
from conftest import ROOT

# What a caller's shell may hand on. Each breaks a script that is not immune to it.
CALLERS = {
    "CDPATH": {"CDPATH": "STRAY"},
    "options": {"SHELLOPTS": "noclobber:noglob:nounset", "BASHOPTS": "failglob:nocasematch"},
    "functions": {
        "BASH_FUNC_cd%%": '() { builtin cd "$@" && ls; }',
        "BASH_FUNC_date%%": "() { echo today; }",
        "BASH_FUNC_python3%%": "() { echo no; }",
    },
    "a startup file": {"BASH_ENV": "STRAY/startup", "ENV": "STRAY/startup"},
    "locale": {"LC_ALL": "de_DE.UTF-8", "IFS": ":", "POSIXLY_CORRECT": "1", "TMPDIR": "/nowhere"},
}


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("caller", CALLERS)
def test_the_callers_shell_changes_nothing(tmp_path, stand_in, shell, caller):
    work, stray = tmp_path / "work", tmp_path / "stray"
    work.mkdir()
    (work / "a check out").symlink_to(ROOT)
    for folder in ("a check out/slurm", "logs"):  # where CDPATH leads
        (stray / folder).mkdir(parents=True)
    (stray / "startup").write_text("set -f -C\nalias printf=false\ncd() { return 1; }\n")
    own = {k: v.replace("STRAY", str(stray)) for k, v in CALLERS[caller].items()}
    own |= {"PYTHON": str(stand_in), "CALLS": str(tmp_path / "calls"), "FAILING": "none"}
    own |= {"HANGING": "none", "FORGETTING": "none"}
    script = [shell, "a check out/run_resnet_ablation.sh"]

    def run(*arguments):
        command = [*script, *map(str, arguments)]
        return subprocess.run(
            command, cwd=work, env=os.environ | own, capture_output=True, text=True, timeout=60
        )

    done = run()
    assert done.returncode == 0, done.stderr
    (folder,) = (work / "logs").iterdir()
    assert re.fullmatch(r"resnet_ablation_\d{8}_\d{6}", folder.name)
    assert rows(done.stdout)["exp3_multiscale_attention"][0] == "0.9230"
    (folder / "exp3_multiscale_attention.log").unlink()
    done = run("--resume", folder.relative_to(work))
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[2:] == ["exp3_multiscale_attention", "exp3_multiscale_attention resumed"]


@pytest.mark.parametrize("console", [">/dev/full", "2>/dev/full", ">&-", "2>&-", "| head -n 1"])
def test_a_console_that_fails_stops_no_run(tmp_path, stand_in, console):
    own = {"PYTHON": str(stand_in), "CALLS": str(tmp_path / "calls"), "FAILING": "none"}
    own |= {"HANGING": "none", "FORGETTING": "none"}
    line = f"bash {ROOT}/run_resnet_ablation.sh --seeds 1,2 {console}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, env=os.environ | own, timeout=60
    )
    assert done.returncode == 0
    (folder,) = (tmp_path / "logs").iterdir()
    arguments = (folder / "arguments").read_text()
    assert arguments == "\0".join([str(tmp_path), "--seeds", "1,2", ""])  # and no lost lines
    logs = [log.read_text() for log in folder.glob("exp*.log")]
    assert len(logs) == 6 and all(log.count("Last Test SRCC: ") == 1 for log in logs)


@pytest.mark.parametrize(
    "signal_number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
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
    if signal_number != signal.SIGTERM:
        os.killpg(process.pid, signal_number)  # as a terminal does, also when it is closed
    else:
        process.send_signal(signal_number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == status and "stopped by SIG" in errors
    assert (tmp_path / "calls").read_text().split() == ["exp1_baseline"]
    assert "best on test" not in output  # no table is announced

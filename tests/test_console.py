"""A console that fails stops nothing: real processes, real pipes, full and closed streams."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT

SCRIPTS = ["train_resnet_improved.py", "predict_resnet_improved.py", "report_resnet_ablation.py"]
SCRIPTS += ["demo_dataset.py", "data_loader.py", "experiment.py"]
# What a script does with its console, and a line in a file once it has done all.
SCRIPT = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from console import check_shown, command

@command
def main():
    done = open("done", "w")
    assert done.fileno() > 2, "a file has the number of a standard stream"
    os.system("echo from a child >&2")
    print("a \\u00b1 b \\u56fe \\udce9", flush=True)
    print("x" * 100_000, flush=True)
    print("an error", file=sys.stderr)
    done.write("done")
    if "results" in sys.argv:
        check_shown()

sys.exit(main())
"""


@pytest.fixture
def in_shell(tmp_path):
    """Run the script by a line of bash; returns the process, after it has done all its work."""
    (tmp_path / "script.py").write_text(SCRIPT.format(root=str(ROOT)))

    def run(line: str, *, pass_fds=(), **environment):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line.replace("SCRIPT", f"{sys.executable} script.py")],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            pass_fds=pass_fds,
            timeout=60,
        )
        assert (tmp_path / "done").read_text() == "done", done.stderr
        assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
        return done

    return run


LINES = [
    "SCRIPT | head -c 1",
    "SCRIPT >/dev/full",
    "SCRIPT >&-",
    "SCRIPT 2>&-",
    "SCRIPT 2>/dev/full",
]
LINES += ["SCRIPT >&- 2>&- <&-", "SCRIPT 2>&1 | head -c 1", "SCRIPT >/dev/full 2>&1"]


@pytest.mark.parametrize("line", LINES)
def test_a_console_that_fails_stops_nothing(in_shell, line):
    assert in_shell(line).returncode == 0


def test_a_console_that_was_lost_is_said_once(in_shell):
    said = in_shell("SCRIPT >/dev/full").stderr.decode()
    assert said.count("note: standard output can't be written to (No space left on device)") == 1


def test_results_that_are_nowhere_else_have_to_be_shown(in_shell):
    done = in_shell("SCRIPT results >/dev/full")
    assert done.returncode == 1
    assert b"error: standard output: No space left on device" in done.stderr
    assert in_shell("SCRIPT results | head -c 1").returncode == 0  # its reader has read enough


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_a_console_lacks_are_escaped(in_shell, encoding):
    done = in_shell("SCRIPT", PYTHONIOENCODING=encoding)
    wanted = "a \u00b1 b \u56fe \udce9".encode(encoding, "backslashreplace")
    assert done.returncode == 0 and done.stdout.splitlines()[0] == wanted


def test_a_console_that_does_not_wait_is_waited_for(in_shell):
    """Some programs leave a pipe in non-blocking mode, where a long write is refused halfway."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    code = f"import os, time; time.sleep(1); n = 0\nwhile c := os.read({reader}, 9999): n += len(c)"
    code += "\nprint(n)"
    slow = subprocess.Popen(
        [sys.executable, "-c", code], pass_fds=[reader], stdout=subprocess.PIPE, text=True
    )
    os.close(reader)
    assert in_shell(f"SCRIPT >&{writer}", pass_fds=[writer]).returncode == 0
    os.close(writer)
    assert int(slow.communicate(timeout=30)[0]) > 100_000


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself_without_docstrings_and_streams(script, tmp_path):
    help_text = tmp_path / "help"
    command = f"{sys.executable} {ROOT / script} --help"
    environment = os.environ | {"PYTHONOPTIMIZE": "2", "PYTHONDONTWRITEBYTECODE": "1"}
    for line in (f"{command} >{help_text}", f"{command} >&- 2>&-", f"{command} >/dev/full"):
        done = subprocess.run(
            ["bash", "-c", line], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert help_text.read_text().startswith("usage:")

"""The two READMEs say the same, and what they and docs/ name is there."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys

import pytest

import export_resnet_improved as export
import predict_resnet_improved as predict
from conftest import ROOT
from datasets.labels import DATASETS
from experiment import MODELS, PRESETS, ablation, rows_of
from training.flags import parse_args

ENGLISH = (ROOT / "README.md").read_text()
CHINESE = (ROOT / "README.zh-CN.md").read_text()
PAGES = {f"docs/{path.name}": path.read_text() for path in sorted(ROOT.glob("docs/*.md"))}
EVERYTHING = {"README.md": ENGLISH, "README.zh-CN.md": CHINESE} | PAGES
ALL_ENGLISH = "\n".join([ENGLISH, *PAGES.values()])
BOTH = pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["en", "zh"])


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z_]+", text))


def figures(text: str) -> set[str]:
    """Every number of the tables and of the prose, but for those inside code."""
    prose = re.sub(
        r"^```.*?^```|`[^`]*`|\(https?:[^)]*\)", "", text, flags=re.MULTILINE | re.DOTALL
    )
    return set(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", prose))


def arguments_of(program: str, text: str) -> list[list[str]]:
    """The arguments of each command in the text that runs the program."""
    commands = re.findall(rf"^python3 {re.escape(program)} (.*)$", text, re.MULTILINE)
    return [command.split() for command in commands]


def anchors(text: str) -> set[str]:
    """What links to the headings of a page say after '#'."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_both_have_the_same_commands():
    assert code_blocks(ENGLISH) == code_blocks(CHINESE)


def test_both_have_the_same_flags():
    assert flags(ENGLISH) == flags(CHINESE)


def test_both_have_the_same_figures():
    assert figures(ENGLISH) == figures(CHINESE)


def test_both_have_the_same_links():
    target = re.compile(r"\]\((?!README)([^)]*)\)|src=\"([^\"]*)\"")
    assert target.findall(ENGLISH) == target.findall(CHINESE)


def test_every_flag_is_documented_and_no_other(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    of_training = flags(capsys.readouterr().out) - {"--help"}
    of_the_script = {
        "--demo",
        "--seeds",
        "--controls",
        "--backbones",
        "--gpus",
        "--parallel",
        "--help",
    }
    of_the_script |= {"--with_neighbours", "--neighbours", "--standalone"}
    of_the_script |= {"--nproc", "--max", "--shutdown"}  # the beginnings of torchrun's flags
    of_prediction = {"--checkpoint", "--output", "--heatmap", "--test_on", "--test_split"}
    of_prediction |= {"--skip_trained", "--sort", "--html"}
    of_the_script |= {"--no_page"}
    of_the_report = {"--resamples", "--leave_out", "--watch", "--predictions", "--skip_others"}
    of_the_report |= {"--cross_data_sets", "--other_recipe"}
    of_benchmarks = {"--out", "--target", "--recipes"}
    known = of_training | of_the_script | of_prediction | of_the_report | of_benchmarks
    assert of_training <= flags(PAGES["docs/flags.md"])
    assert of_training - {"--no"} <= flags(ENGLISH)  # of --no-use_multiscale
    assert flags(ALL_ENGLISH) <= known


@BOTH
def test_documented_training_commands_are_understood(text):
    commands = arguments_of("train_resnet_improved.py", text)
    assert len(commands) == 3
    for command in commands:
        parse_args(command)


def test_training_commands_of_all_pages_are_understood():
    commands = arguments_of("train_resnet_improved.py", ALL_ENGLISH)
    assert len(commands) == 11
    for command in commands:
        parse_args(command)


@pytest.mark.parametrize("script, count", [(predict, 7), (export, 2)])
def test_commands_of_all_pages_that_use_checkpoints_are_understood(monkeypatch, script, count):
    commands = arguments_of(f"{script.__name__}.py", ALL_ENGLISH)
    assert len(commands) == count
    for command in commands:
        monkeypatch.setattr(sys, "argv", [script.__name__, *command])
        script.parse_args()


@pytest.mark.parametrize("page", EVERYTHING)
def test_programs_of_commands_exist(page):
    blocks = "".join(code_blocks(EVERYTHING[page]))
    for program in re.findall(r"^(?:\w+=\S+ )?(?:python3|bash) ([\w/.]+)", blocks, re.MULTILINE):
        assert (ROOT / program).is_file(), program


@pytest.mark.parametrize("page", EVERYTHING)
def test_names_that_python_examples_import_exist(page):
    blocks = "".join(code_blocks(EVERYTHING[page]))
    for module, names in re.findall(r"^from ([\w.]+) import (.*)$", blocks, re.MULTILINE):
        for name in names.split(", "):
            found = hasattr(importlib.import_module(module), name)
            assert found or importlib.util.find_spec(f"{module}.{name}"), f"{module}.{name}"


@BOTH
def test_named_files_exist(text):
    table = text[text.index("## Files" if text is ENGLISH else "## 文件") :]
    cells = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(names) > 12
    for name in names:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", EVERYTHING)
def test_links_lead_somewhere(page):
    text, folder = EVERYTHING[page], (ROOT / page).parent
    for link in re.findall(r"\]\((?!https?:)([^)]*)\)|src=\"([^\"]*)\"", text):
        path, _, anchor = "".join(link).partition("#")
        assert (folder / path).is_file(), path
        if anchor:
            assert anchor in anchors((folder / path).read_text()), anchor


def test_every_page_is_listed():
    assert set(PAGES) == set(re.findall(r"^\| \[[\w -]+\]\((.*?)\)", ENGLISH, re.MULTILINE))


@BOTH
def test_the_two_commands_are_first(text):
    install_and_run, install_and_test = code_blocks(text)[:2]
    assert install_and_run == (
        "pip install -r requirements.txt && bash run_resnet_ablation.sh --demo\n"
    )
    assert install_and_test == "pip install -r requirements-dev.txt && python3 -m pytest\n"
    for command in (install_and_run, install_and_test):
        assert (ROOT / command.split()[3]).is_file()


@BOTH
def test_every_configuration_has_its_parameters(text):
    for row in rows_of("resnet_improved").values():
        assert f"| {row.parameters:,} |" in text, row.title


def test_every_model_recipe_and_data_set_is_documented():
    for model in MODELS:
        complete = [*ablation(model).values()][-1]
        assert f"`{model}`" in PAGES["docs/neighbours.md"], model
        assert f"{complete.parameters:,}" in PAGES["docs/neighbours.md"], model
    for preset in PRESETS:
        assert f"`{preset}`" in PAGES["docs/recipes.md"], preset
    for name in DATASETS:
        assert re.search(f"`(--dataset )?{name}`", PAGES["docs/data-sets.md"]), name


@BOTH
def test_the_readme_is_short(text):
    assert len(text.splitlines()) <= 200


@pytest.mark.parametrize("page", EVERYTHING)
def test_nothing_is_left_to_be_filled_in(page):
    assert "TODO" not in EVERYTHING[page]


def test_the_checks_run_in_the_checkout_whatever_the_callers_shell(tmp_path):
    for folder in ("work/.ci", "stray/.ci", "tools"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", tmp_path / "work" / ".ci")
    (tmp_path / "tools" / "python3").write_text("#!/usr/bin/env bash\npwd\nexit 7\n")
    (tmp_path / "tools" / "python3").chmod(0o755)
    caller = {"CDPATH": str(tmp_path / "stray"), "BASH_FUNC_cd%%": "() { builtin cd /; }"}
    caller |= {"PATH": f"{tmp_path / 'tools'}:{os.environ['PATH']}"}
    for shell in ("bash", "sh"):
        done = subprocess.run(
            [shell, ".ci/run"],
            cwd=tmp_path / "work",
            env=os.environ | caller,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (7, f"{tmp_path / 'work'}\n"), done.stderr


def test_source_files_are_ascii():
    places = ["*", "benchmarks/*", "datasets/*", "reporting/*", "tests/*", "training/*"]
    for path in [f for place in places for f in ROOT.glob(f"{place}.py")] + [*ROOT.glob("*.sh")]:
        if path.name != "test_readme.py":
            assert path.read_text().isascii(), path.name


def test_scripts_have_the_line_ends_that_bash_needs():
    scripts = ["run_resnet_ablation.sh", "slurm/ablation.sbatch", ".ci/run"]
    command = ["git", "-C", str(ROOT), "check-attr", "eol", *scripts]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode:
        pytest.skip("not a git checkout")
    assert said.stdout.splitlines() == [f"{script}: eol: lf" for script in scripts]

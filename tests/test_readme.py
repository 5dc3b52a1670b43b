"""The two READMEs say the same, and what they say is there."""

import re

import pytest

import train_resnet_improved as train
from conftest import ROOT

ENGLISH = (ROOT / "README.md").read_text()
CHINESE = (ROOT / "README.zh-CN.md").read_text()
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


def test_both_have_the_same_commands():
    assert code_blocks(ENGLISH) == code_blocks(CHINESE)


def test_both_have_the_same_flags():
    assert flags(ENGLISH) == flags(CHINESE)


def test_both_have_the_same_figures():
    assert figures(ENGLISH) - figures(CHINESE) == set()
    assert figures(CHINESE) - figures(ENGLISH) <= {"176"}  # 1.76 million, counted in 10,000s


def test_both_name_every_flag_and_no_other(capsys):
    with pytest.raises(SystemExit):
        train.parse_args(["--help"])
    of_training = flags(capsys.readouterr().out) - {"--help"}
    of_the_script = {"--demo", "--seeds", "--gpus", "--parallel", "--help"}
    of_the_script |= {"--with_neighbours", "--neighbours", "--standalone"}
    of_the_script |= {"--nproc", "--max"}  # the beginnings of two of torchrun's flags
    of_prediction = {"--checkpoint", "--output", "--heatmap", "--test_on"}
    assert of_training <= flags(ENGLISH) <= of_training | of_the_script | of_prediction


@BOTH
def test_documented_training_commands_are_understood(text):
    commands = re.findall(r"^python3 train_resnet_improved\.py (.*)$", text, re.MULTILINE)
    assert len(commands) == 6
    for command in commands:
        train.parse_args(command.split())


@BOTH
def test_named_files_exist(text):
    table = text[text.index("## Files" if text is ENGLISH else "## 文件") :]
    for name in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE):
        assert (ROOT / name).exists(), name


@BOTH
def test_the_two_commands_are_first(text):
    install_and_run, install_and_test = code_blocks(text)[:2]
    assert install_and_run == (
        "pip install -r requirements.txt && bash run_resnet_ablation.sh --demo\n"
    )
    assert install_and_test == "pip install -r requirements-dev.txt && python3 -m pytest\n"
    for command in (install_and_run, install_and_test):
        assert (ROOT / command.split()[3]).is_file()


def test_source_files_are_ascii():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.sh"), *ROOT.glob("tests/*.py")]:
        if path.name != "test_readme.py":
            assert path.read_text().isascii(), path.name

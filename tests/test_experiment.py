"""The one table of configurations, walked through everything that has to know it.

A failure names what was forgotten, and where.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter

import pytest
import torch

import predict_resnet_improved as predict
from conftest import ROOT
from datasets.labels import DATASETS
from evaluation import build_model
from experiment import (
    ANCHORS,
    BASELINE,
    BOTH,
    COMPARISONS,
    CONFIGURATIONS,
    CONTROLS,
    FULL,
    HYPERIQA,
    MODELS,
    MULTISCALE,
    NEIGHBOURS,
    PRESETS,
    SMART_IQA,
    Configuration,
    ablation,
    command_line,
    configuration_name,
    network_name,
    rows_of,
)
from report_runs import write_run
from training.flags import parse_args

ROWS = pytest.mark.parametrize("name", CONFIGURATIONS)
ABLATIONS = [(model, None) for model in MODELS] + [(MODELS[0], other) for other in NEIGHBOURS]


def controls_of(model: str) -> dict[str, Configuration]:
    return {name: row for name, row in rows_of(model).items() if name.endswith(CONTROLS)}


READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
DOCUMENTS = [*READMES, *sorted(ROOT.glob("docs/*.md"))]


def flags_of(name: str) -> dict:
    """A row's flags, as training reads them from the command line."""
    return vars(parse_args(command_line(CONFIGURATIONS[name], MODELS[0])))


def documented(name: str) -> bool:
    """Whether a document has the name as code: `name`, or after a flag."""
    in_code = re.compile(rf"`(--\w+ )?{re.escape(name)}`|--\w+ {re.escape(name)}(?![\w-])")
    return any(in_code.search(path.read_text()) for path in DOCUMENTS)


# The table itself


@ROWS
def test_each_row_has_its_exact_number_of_parameters(name):
    with torch.device("meta"):
        model = build_model(flags_of(name) | {"backbone_weights": "none"}, 50.0)
    count = sum(p.numel() for p in model.parameters())
    assert count == CONFIGURATIONS[name].parameters, f"experiment.py, ROWS: {name}"


@ROWS
def test_each_rows_flags_are_understood_and_name_it(name):
    assert configuration_name(flags_of(name)) == name, f"experiment.py, ROWS: {name}"


def test_flags_of_no_row_have_no_name():
    with pytest.raises(ValueError, match="no row"):
        configuration_name({"model": "resnet_improved", "use_multiscale": None})


def test_of_two_rows_that_fit_the_more_specific_one_is_meant(monkeypatch):
    row = CONFIGURATIONS[FULL]
    fourth = row._replace(flags={**row.flags, "control": "uniform"})
    monkeypatch.setitem(CONFIGURATIONS, "resnet_improved_uniform", fourth)
    assert configuration_name(dict(row.flags)) == FULL
    assert configuration_name(dict(fourth.flags)) == "resnet_improved_uniform"
    assert command_line(fourth, MODELS[0])[-2:] == ["--control", "uniform"]


@pytest.mark.parametrize("field", ["title", ("colour", "marker")])
def test_rows_can_be_told_apart(field):
    names = (field,) if isinstance(field, str) else field
    seen = Counter(tuple(getattr(row, n) for n in names) for row in CONFIGURATIONS.values())
    twice = [value for value, count in seen.items() if count > 1]
    assert twice == [], f"experiment.py, ROWS: rows share {field}"


@pytest.mark.parametrize("model, neighbours", ABLATIONS)
def test_an_ablation_has_a_run_of_its_own_for_each_row(model, neighbours):
    rows = ablation(model, neighbours, controls=True)
    missing = set(rows_of(model)) - set(map(name_of, rows.values()))
    assert missing == set(), f"experiment.py, KINDS: two kinds of {model} share the name of a run"
    assert len(rows) == len(rows_of(model)) + (3 if neighbours else 0)
    assert all(re.fullmatch(r"\w+", run) for run in rows)  # names of files


@pytest.mark.parametrize("model", MODELS)
def test_without_controls_they_are_left_out(model):
    rows = [*ablation(model).values()]
    assert rows == [r for r in rows_of(model).values() if r not in controls_of(model).values()]


def name_of(row: Configuration) -> str:
    return next(name for name, other in CONFIGURATIONS.items() if other is row)


def test_each_row_is_compared_with_another():
    compared = {name for _, *pair in COMPARISONS for name in pair}
    assert compared - set(CONFIGURATIONS) == set(), "experiment.py, COMPARISONS: no such rows"
    assert set(CONFIGURATIONS) - compared == set(), "experiment.py, COMPARISONS: not compared"
    labels = Counter(label for label, *_ in COMPARISONS)
    assert [label for label, count in labels.items() if count > 1] == []
    assert (BOTH, FULL, BASELINE) in COMPARISONS and MULTISCALE in CONFIGURATIONS


def test_the_published_figures_are_among_the_anchors():
    assert {HYPERIQA, SMART_IQA} <= {figure for _, figure in ANCHORS}


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_is_understood_and_documented(preset):
    args = parse_args(["--preset", preset])
    wanted = PRESETS[preset]
    assert {flag: getattr(args, flag) for flag in wanted} == wanted
    assert documented(preset), f"README*.md, docs/*.md: --preset {preset}"


# Script and cluster


def listed(*arguments) -> list[list[str]]:
    """The words of each line that experiment.py prints."""
    command = [sys.executable, ROOT / "experiment.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


def test_it_prints_the_runs_of_an_ablation():
    assert listed() == listed("--model", "resnet_improved", "--lr", "1e-3", "other flags")
    assert [run for run, *_ in listed()] == list(ablation("resnet_improved"))
    assert listed("--preset", "hyperiqa_paper") == [["exp4_hyperiqa"]]
    assert listed("--preset", "smart_iqa") == listed("--model", "smart_iqa_base")
    assert len(listed("--preset", "smart_iqa", "--model", "hyperiqa")) == 1
    assert listed("--neighbours") == listed("--neighbours", NEIGHBOURS[0])
    assert len(listed("--neighbours")) == 6
    rows = ablation("resnet_improved", controls=True)
    assert [run for run, *_ in listed("--controls")] == list(rows) and len(rows) == 5


def test_a_model_without_controls_refuses_them():
    command = [sys.executable, ROOT / "experiment.py", "--model", "hyperiqa", "--controls"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "--model hyperiqa has no controls" in done.stderr


def test_each_row_is_listed_on_each_backbone():
    lines = listed("--backbones", "resnet50,resnet18", "--controls", "--data_path", "x")
    assert len(lines) == 10 and lines[0][0] == "exp1_baseline"
    assert lines[5][0] == "exp1_baseline_resnet18" and lines[9][0] == "exp8_static_resnet18"
    for run, *words in lines:
        args = parse_args(words)
        assert args.backbone == ("resnet18" if run.endswith("_resnet18") else "resnet50")
        assert network_name(vars(args)).startswith(
            "resnet18_" if args.backbone == "resnet18" else "resnet_improved_"
        )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--backbones", "a,,b"], "takes names, each once"),
        (["--backbones", "a,a"], "takes names, each once"),
        (["--backbones", "a", "--neighbours"], "is for --model resnet_improved"),
        (["--backbones", "a", "--model", "hyperiqa"], "is for --model resnet_improved"),
    ],
)
def test_backbones_that_cannot_be_listed_get_one_sentence(arguments, message):
    done = subprocess.run(
        [sys.executable, ROOT / "experiment.py", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2 and message in done.stderr


def test_it_needs_nothing_installed():
    command = [sys.executable, "-I", "-S", ROOT / "experiment.py"]
    assert subprocess.run(command, capture_output=True).returncode == 0


# Takes the place of python3 and of srun, and notes with which arguments training would start.
STAND_IN = """#!/usr/bin/env bash
case $1 in
  *experiment.py) exec PYTHON "$@" ;;
  python3) shift ;;
esac
[[ $* == *" --check" ]] && exit
case $1 in *train_resnet_improved.py) shift; echo "${*@Q}" >>"$CALLS" ;; esac
"""


@pytest.fixture
def checkout(tmp_path):
    """(folder, environment, read) with stand-ins; read() gives each run's flags by its name."""
    tools, calls = tmp_path / "tools", tmp_path / "calls"
    tools.mkdir()
    for name in ("python3", "srun"):
        (tools / name).write_text(STAND_IN.replace("PYTHON", sys.executable))
        (tools / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHON": str(tools / "python3"),
        "CALLS": str(calls),
    }

    def read() -> dict[str, dict]:
        runs = [vars(parse_args(shlex.split(line))) for line in calls.read_text().splitlines()]
        return {run["run_name"]: run for run in runs}

    return tmp_path, environment, read


@pytest.mark.parametrize("model, neighbours", ABLATIONS)
def test_the_script_trains_every_row(checkout, model, neighbours):
    folder, environment, read = checkout
    flags = ["--neighbours", neighbours] if neighbours else ["--model", model]
    flags += ["--controls"] if controls_of(model) else []
    command = ["bash", ROOT / "run_resnet_ablation.sh", *flags]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    trained = {run: configuration_name(flags) for run, flags in read().items()}
    wanted = {run: name_of(row) for run, row in ablation(model, neighbours, controls=True).items()}
    assert trained == wanted, f"run_resnet_ablation.sh {' '.join(flags)}\n{done.stderr}"


@pytest.mark.parametrize("script", ["run_resnet_ablation.sh", "slurm/ablation.sbatch"])
def test_script_and_cluster_train_every_row_on_every_backbone(checkout, script):
    folder, environment, read = checkout
    names = ("resnet50", "resnet18", "convnext_tiny")
    flags = ["--backbones", ",".join(names), "--controls"]
    flags += ["--backbone_weights", "none", "--backbone_weights", "resnet18=my weights.pth"]
    command = ["bash", ROOT / script, *flags]
    runs = ablation(MODELS[0], controls=True, backbones=names)
    if script.endswith(".sh"):
        subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    else:
        (folder / "experiment.py").symlink_to(ROOT / "experiment.py")
        for task in range(len(runs)):
            own = {"SLURM_ARRAY_TASK_ID": str(task), "LOG_DIR": "logs", "SEEDS": "42"}
            subprocess.run(command, cwd=folder, env=environment | own, check=True)
    trained = {run: (args["backbone"], configuration_name(args)) for run, args in read().items()}
    assert len(trained) == 15 and set(trained) == set(runs)
    for run, args in read().items():
        assert trained[run][0] == runs[run].flags["backbone"]
        wanted = "my weights.pth" if args["backbone"] == "resnet18" else "none"
        assert args["backbone_weights"] == wanted


@pytest.mark.parametrize("model", MODELS)
def test_the_cluster_trains_every_row(checkout, model):
    folder, environment, read = checkout
    (folder / "experiment.py").symlink_to(ROOT / "experiment.py")
    wanted = {run: name_of(row) for run, row in ablation(model, controls=True).items()}
    command = ["bash", ROOT / "slurm" / "ablation.sbatch", "--model", model]
    command += ["--controls"] if controls_of(model) else []
    for task in range(len(wanted)):
        own = {"SLURM_ARRAY_TASK_ID": str(task), "LOG_DIR": "logs", "SEEDS": "42"}
        subprocess.run(command, cwd=folder, env=environment | own, check=True)
    trained = {run: configuration_name(flags) for run, flags in read().items()}
    assert trained == wanted, f"slurm/ablation.sbatch --model {model}"


@pytest.mark.parametrize(
    "path",
    ["run_resnet_ablation.sh", "slurm/ablation.sbatch"]
    + [f"benchmarks/{p.name}" for p in sorted((ROOT / "benchmarks").glob("*.py"))],
)
def test_no_second_table_names_rows_runs_titles_or_counts(path):
    text = (ROOT / path).read_text()
    known = set(CONFIGURATIONS)
    for row in CONFIGURATIONS.values():
        known |= {row.run, f'"{row.title}"', f"{row.parameters:_}", f"{row.parameters:,}"}
        known |= {f"--{flag}" for flag in row.flags if flag != "model"}
    found = {name for name in known if re.search(rf"(?<![\w-]){re.escape(name)}(?!\w)", text)}
    assert found == set(), f"{path}: names of experiment.py's table"


def test_the_loops_benchmark_takes_its_rows_from_the_table():
    text = (ROOT / "benchmarks" / "loop.py").read_text()
    assert re.search(r"from experiment import .*\b(rows_of|CONFIGURATIONS)\b", text)


# The report


def test_the_report_has_every_row_and_every_comparison(tmp_path):
    for name, row in CONFIGURATIONS.items():
        options = {"epochs": 1, "tests": 40, "vals": 0}
        write_run(tmp_path, name, name, 10, **options, **row.flags)
    command = [sys.executable, ROOT / "report_resnet_ablation.py", tmp_path, "--resamples", "400"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    missing = set(CONFIGURATIONS) - set(results["configurations"])
    assert missing == set(), "results.json: rows that the report leaves out"
    compared = {comparison["label"] for comparison in results["comparisons"]}
    assert {label for label, *_ in COMPARISONS} - compared == set(), "results.json: comparisons"
    for file in ("report.md", "report.html", "table.txt"):
        text = (tmp_path / file).read_text()
        missing = [row.title for row in CONFIGURATIONS.values() if row.title not in text]
        assert missing == [], f"{file}: rows that the report leaves out"


# Documents and data sets


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_both_readmes_have_the_experiments_rows(readme):
    text = readme.read_text()
    missing = [
        name
        for name, row in rows_of(MODELS[0]).items()
        if f"{row.parameters:,}" not in text and f"{row.parameters / 1e6:.2f} M" not in text
    ]
    assert missing == [], f"{readme.name}: the number of parameters of these rows"


@pytest.mark.parametrize("model", MODELS)
def test_each_model_is_documented_with_its_size(model):
    assert documented(model), f"README*.md, docs/*.md: --model {model}"
    complete = {"model": model, "use_multiscale": True, "use_attention": True}
    count = f"{CONFIGURATIONS[configuration_name(complete)].parameters:,}"
    where = [path.name for path in DOCUMENTS if count in path.read_text()]
    assert where, f"README*.md, docs/*.md: {count} parameters of {model}"


@pytest.mark.parametrize("dataset", DATASETS)
def test_each_data_set_is_read_documented_and_offered(dataset, monkeypatch, capsys):
    reader = DATASETS[dataset].read
    assert reader.__doc__, f"datasets/: {reader.__name__} doesn't say which files it reads"
    assert documented(dataset), f"README*.md, docs/*.md: --dataset {dataset}"
    assert parse_args(["--dataset", dataset]).dataset == dataset
    monkeypatch.setattr(
        sys, "argv", ["predict", "--checkpoint", "x.pth", "--test_on", f"{dataset}=DIR"]
    )
    try:
        predict.parse_args()
    except SystemExit:
        pytest.fail(f"predict --test_on {dataset}=DIR: {capsys.readouterr().err}")

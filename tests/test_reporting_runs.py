"""Which runs are finished, add up and can be compared."""

import json
import re

import pandas as pd
import pytest

from errors import ReportError
from experiment import CONFIGURATIONS, NEIGHBOURS, ablation
from experiment import MODELS as NETWORKS
from report_runs import MODELS, NAMES, change_record, reported, write_run, write_three
from reporting.runs import check_comparable, read_runs, stage_use


@pytest.fixture
def logs(tmp_path):
    return write_three(tmp_path / "logs")


def test_splits_that_do_not_pair_are_refused(tmp_path, capsys):
    for name, model, split in zip(NAMES, MODELS, (1, 2)):
        write_run(tmp_path, name, model, 9, split="random", split_seed=split)
    assert "can't be compared: --split_seed 1 and 2" in reported(tmp_path, capsys, status=1)[2]
    for seed, split in ((1, 1), (2, 1), (3, 2)):
        write_run(
            tmp_path / "other", f"s{seed}", MODELS[0], 9, seed=seed, split="random",
            split_seed=split,
        )  # fmt: skip
    told = reported(tmp_path / "other", capsys, status=1)[2]
    assert "the seeds do not each have a separate random split" in told


def test_failed_runs_and_lone_ones_still_give_a_report(logs, capsys):
    record = (logs / "exp2_multiscale.jsonl").read_text().splitlines()
    (logs / "exp2_multiscale.jsonl").write_text("\n".join(record[:2]) + "\n")
    (logs / "exp3_multiscale_attention.jsonl").unlink()
    results, out, err = reported(logs, capsys, draw=True)
    assert "exp2_multiscale.jsonl: ended after 1 of 2 epochs; left out" in err
    assert "exp3_multiscale_attention.log: failed before training started" in err
    assert "not both available" in out and list(results["configurations"]) == [MODELS[0]]
    assert "ended after 1 of 2 epochs" in (logs / "report.md").read_text()


def test_figures_that_do_not_add_up_are_named(logs, capsys):
    lines = (logs / "exp1_baseline.jsonl").read_text().splitlines()
    record = json.loads(lines[2])
    lines[2] = json.dumps(record | {"test_srcc": record["test_srcc"] + 0.01})
    (logs / "exp1_baseline.jsonl").write_text("\n".join(lines) + "\n")
    results, _, err = reported(logs, capsys)
    assert re.search(r"epoch 2: test SRCC is 0\.\d+ by the predictions and 0\.\d+ by the rec", err)
    assert len(results["problems"]) == 1


def test_stage_weights_that_do_not_add_up_are_named(logs):
    def claim(stages):
        return lambda config, epochs: epochs[1].update(effective_stages=stages, stage_spread=0.5)

    (found,) = [run for run in read_runs([logs]).finished if run.model == MODELS[2]]
    use = stage_use(found, 2)
    change_record(logs, NAMES[2], claim(use["effective_stages"]))
    (wrong,) = read_runs([logs]).wrong
    assert f"epoch 2: stage_spread is {use['stage_spread']:.4f} by the predictions and" in wrong
    change_record(logs, NAMES[2], lambda config, epochs: epochs[1].update(use))
    assert read_runs([logs]).wrong == []


def test_each_network_has_its_own_attention(tmp_path):
    write_run(tmp_path, "exp3", MODELS[2], 6, attention="scaled")
    write_run(tmp_path, "exp4", "hyperiqa", 6, attention="scaled")
    write_run(tmp_path, "exp5", "smart_iqa_tiny_ms_att", 6, attention="published")
    check_comparable(read_runs([tmp_path]).finished)
    write_run(tmp_path, "exp1", MODELS[0], 6, attention="published")
    with pytest.raises(ReportError, match="--attention published and scaled"):
        check_comparable(read_runs([tmp_path]).finished)


def test_other_settings_are_never_compared(logs, capsys):
    write_run(logs, "exp4", MODELS[1], 12, seed=1, lr=1e-3)
    assert "--lr 0.0001 and 0.001" in reported(logs, capsys, status=1)[2]
    write_run(logs, "exp4", MODELS[1], 12, seed=1, loss="nin")  # the others are older than --loss
    assert "--loss l1 and nin" in reported(logs, capsys, status=1)[2]
    write_run(logs, "exp4", MODELS[1], 12)
    assert "with seed 42 was found 2 times" in reported(logs, capsys, status=1)[2]


@pytest.mark.parametrize("first", [[], ["NA", "nan", "1e5", "", "True"]])
def test_names_of_images_are_strings_whatever_they_look_like(tmp_path, capsys, first):
    write_three(tmp_path, tests=60, vals=0)
    named = [*first, *(f"{i:04}" for i in range(60 - len(first)))]
    for name in NAMES:
        path = tmp_path / f"{name}_predictions.csv"
        table = pd.read_csv(path)
        table["image"] = table["image"].map(dict(zip(sorted(set(table["image"])), named)))
        table.to_csv(path, index=False)
    reported(tmp_path, capsys, draw=True)
    for run in read_runs([tmp_path]).finished:
        assert set(run.predictions["image"]) == set(named)


@pytest.mark.parametrize("key, values", [("precision", ("bf16", "off")), ("weights", "ab")])
def test_other_precisions_and_backbones_are_never_compared(logs, capsys, key, values):
    for name, value in zip(NAMES, (values[0], *values)):
        path = logs / f"{name}.jsonl"
        config, *rest = path.read_text().splitlines()
        config = json.loads(config)
        if key == "precision":
            config[key] = value
        else:
            config["flags"]["backbone_weights"] = f"folder_of_{name}/{value}.pth"
        path.write_text("\n".join([json.dumps(config), *rest]) + "\n")
    told = reported(logs, capsys, status=1)[2]
    assert f"{NAMES[0]} and {NAMES[2]} can't be compared" in told and key in told
    (logs / f"{NAMES[2]}.jsonl").unlink()
    reported(logs, capsys)  # the same file in another folder is the same


def test_auto_and_named_precision_are_comparable_if_both_ran_in_the_same(logs):
    for name, amp in zip(NAMES, ("auto", "bf16", "auto")):

        def ran_in_bf16(config, epochs, amp=amp):
            config["flags"]["amp"], config["precision"] = amp, "bf16"

        change_record(logs, name, ran_in_bf16)
    check_comparable(read_runs([logs]).finished)


def test_flags_of_a_row_are_no_difference(logs, monkeypatch):
    """A configuration of experiment.py that is made by another flag can be compared."""
    row = CONFIGURATIONS[MODELS[0]]
    other = row._replace(run="exp9_other", title="other", flags=row.flags | {"new_flag": True})
    monkeypatch.setitem(CONFIGURATIONS, "resnet_improved_other", other)
    for name in NAMES:
        change_record(logs, name, lambda config, _: config["flags"].update(new_flag=False))
    write_run(logs, "exp9_other", "resnet_improved_other", 9, new_flag=True)
    runs = read_runs([logs])
    check_comparable(runs.finished)
    assert [run.model for run in runs.finished] == [*MODELS, "resnet_improved_other"]


@pytest.mark.parametrize(
    "model, neighbours",
    [(model, None) for model in NETWORKS] + [("resnet_improved", n) for n in NEIGHBOURS],
)
def test_a_log_without_a_record_is_known_by_its_name(tmp_path, model, neighbours):
    rows = ablation(model, neighbours)
    for run in rows:
        (tmp_path / f"{run}_seed7.log").write_text("error: no data\n")
    first = next(iter(rows))
    finished = next(n for n, row in CONFIGURATIONS.items() if row is rows[first])
    write_run(tmp_path, f"{first}_seed8", finished, 9, seed=8)
    (tmp_path / "slurm_3.log").write_text("of a job\n")
    failed = {run.name: run for run in read_runs([tmp_path]).failed}
    assert list(failed) == sorted(f"{run}_seed7" for run in rows)
    for run, row in rows.items():
        assert CONFIGURATIONS[failed[f"{run}_seed7"].model] is row
        assert failed[f"{run}_seed7"].seed == 7


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        (".jsonl", "{", "cannot be read (JSONDecodeError"),
        (".jsonl", "", "cannot be read (ValueError"),
        (".jsonl", '{"model": "hyperiqa"}\n', "cannot be read (KeyError: 'flags'); left out"),
        ("_predictions.csv", None, "cannot be read (FileNotFoundError"),
        ("_predictions.csv", "", "cannot be read (EmptyDataError"),
        (
            "_predictions.csv",
            "epoch,split,image,mos,score\n1,test,a.jpg,50,4x\n",
            "cannot be read (V",
        ),
        ("_predictions.csv", "epoch,split\n1,test\n", "has no column image, mos, score; left out"),
    ],
)
def test_damaged_files_are_named(logs, name, text, sentence):
    path = logs / f"exp1_baseline{name}"
    path.unlink() if text is None else path.write_text(text)
    runs = read_runs([logs])
    assert [run.model for run in runs.finished] == list(MODELS[1:])
    (failed,) = runs.failed
    assert failed.reason.startswith(f"{path}: {sentence}") and failed.model == MODELS[0]
    assert failed.log == logs / "exp1_baseline.log"


def start_from(folder, name, **flags):
    """Record that a run has started from a checkpoint of a run with these flags."""

    def change(config, _):
        start = config | {"flags": config["flags"] | {"dataset": "spaq", "lr": 1e-4} | flags}
        own = {"backbone_weights": "init", "init_head": "mean", "init": f"{name}.pth"}
        config["flags"] |= own
        config["init"] = {"file": f"{name}.pth", "sha256": name, "epochs": 3, "config": start}

    change_record(folder, name, change)


def test_runs_with_and_without_a_checkpoint_to_start_from_are_not_mixed(logs, capsys):
    start_from(logs, NAMES[1])
    told = reported(logs, capsys, status=1)[2]
    assert "can't be compared: --init none and a checkpoint of 3 epochs" in told


def test_runs_from_checkpoints_of_one_recipe_are_compared(logs, capsys):
    for name in NAMES:  # each from a checkpoint of its own configuration
        start_from(logs, name)
    results, out, _ = reported(logs, capsys)
    assert list(results["configurations"]) == list(MODELS)
    assert "--backbone_weights init" in out and "--init_head mean" in out
    start_from(logs, NAMES[2], lr=3e-4)
    told = reported(logs, capsys, status=1)[2]
    assert "in the training of --init: --lr 0.0001 and 0.0003" in told

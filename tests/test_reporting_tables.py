"""table.txt: the row of each configuration, with known figures."""

import re

import numpy as np
import pandas as pd
import pytest

import metrics
from report_runs import MODELS, NAMES, change_record, write_five, write_run, write_three
from reporting.render import plain_table
from reporting.runs import read_runs
from reporting.statistics import Statistics
from reporting.tables import result_table
from reporting.text import verdict

TITLES = ("baseline", "+ multi-scale", "+ attention")


def table_of(*folders) -> str:
    """table.txt of the runs in these folders."""
    runs = read_runs(list(folders))
    if not runs.finished:
        return plain_table(result_table(None, runs), None)
    s = Statistics(runs.finished, resamples=400, seed=0)
    return plain_table(result_table(s, runs), verdict(s, runs))


def rows(table: str, titles=TITLES) -> dict[str, list[str]]:
    """The cells by configuration: SRCC, PLCC, difference, gain, SRCC of the other selections."""
    found = {}
    for line in table.splitlines():
        for title in titles:
            if line.startswith(f"{title}  "):
                found[title] = line[len(title) :].split()
    return found


def test_srcc(folder, name, epoch) -> dict[str, float]:
    table = pd.read_csv(folder / f"{name}_predictions.csv")
    table = table[(table["epoch"] == epoch) & (table["split"] == "test")]
    return metrics.agreement(table["score"].to_numpy(), table["mos"].to_numpy())


test_srcc.__test__ = False  # no test


def test_figures_are_to_the_baseline_and_of_the_selection_that_leads(tmp_path):
    write_three(tmp_path, (20, 12, 6), epochs=3)
    for name in NAMES:  # the validation images choose epoch 2, the test images 3
        change_record(tmp_path, name, lambda _, epochs: epochs[1].update(val_srcc=0.99))
    cells = rows(table_of(tmp_path))
    assert list(cells) == list(TITLES)
    base = test_srcc(tmp_path, NAMES[0], 2)["srcc"]
    for name, title in zip(NAMES, TITLES):
        found, last = test_srcc(tmp_path, name, 2), test_srcc(tmp_path, name, 3)["srcc"]
        change = ["-", "-"]
        if title != "baseline":
            gain = found["srcc"] - base
            change = [f"{gain:+.4f}", f"{100 * gain / base:+.2f}"]
        expected = [f"{found['srcc']:.4f}", f"{found['plcc']:.4f}", *change]
        assert cells[title] == [*expected, f"{last:.4f}", f"{last:.4f}"]
        assert found["srcc"] < last


def test_columns_are_aligned_and_nothing_is_blank(tmp_path):
    for seed in (1, 2):
        write_three(tmp_path, suffix=f"_seed{seed}", seed=seed)
    lines = table_of(tmp_path).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("configuration"))
    assert len({len(line) for line in lines[start - 1 : start + 4]}) == 1
    assert [len(line.split()) for line in lines[start + 1 : start + 4]] == [
        7,
        8,
        8,
    ]  # '+ attention'
    assert re.sub(" +", " ", lines[start - 1].strip()) == (
        "chosen by val chosen by val to the relative best on test last epoch"
    )


def test_head_and_notes_say_what_the_figures_are(tmp_path):
    write_three(tmp_path, lr=0.5, color_jitter=True, gradient_clip=0.0, resize=[384, 512])
    table = table_of(tmp_path)
    assert table.startswith("ResNet-50 ablation, 1 seed(s): 42\ndata: koniq-10k ")
    assert "800 train, 50 val, 200 test images" in table
    for flag in ("--epochs 2", "--lr 0.5", "--gradient_clip 0.0", "--resize 384 512"):
        assert flag in table
    assert "--color_jitter" in table and "--data_path" not in table and "--seed" not in table
    assert "0.8998" in table and "0.9378" in table
    assert "optimistic" in table and "chosen by val (the epoch with the highest" in table
    last = table.splitlines()[-1]
    assert last.startswith("Verdict on koniq-10k") and "chosen by val" in last


def test_several_seeds_give_mean_and_spread(tmp_path):
    for seed in (41, 43):
        write_three(tmp_path, suffix=f"_seed{seed}", seed=seed, epochs=1)
    table = table_of(tmp_path)
    assert table.startswith("ResNet-50 ablation, 2 seed(s): 41 43\n")
    cells = rows(table)
    each = {
        name: [test_srcc(tmp_path, f"{name}_seed{seed}", 1) for seed in (41, 43)] for name in NAMES
    }
    for position, metric in enumerate(("srcc", "plcc")):
        values = [found[metric] for found in each[NAMES[0]]]
        wanted = f"{np.mean(values):.4f}+-{np.std(values, ddof=1):.4f}"
        assert cells["baseline"][position] == wanted
    base, full = (np.mean([found["srcc"] for found in each[n]]) for n in (NAMES[0], NAMES[2]))
    assert cells["+ attention"][2:4] == [f"{full - base:+.4f}", f"{100 * (full / base - 1):+.2f}"]
    assert "paired over the seeds" in " ".join(table.split())


def test_random_splits_give_medians(tmp_path):
    for seed in (41, 42, 49):
        write_run(
            tmp_path, f"exp4_hyperiqa_seed{seed}", "hyperiqa", 8 + seed % 5, seed=seed, epochs=1,
            split="random", split_seed=seed,
        )  # fmt: skip
    table = table_of(tmp_path)
    assert table.count("HyperIQA, 3 seed(s): 41 42 49") == 1
    values = [test_srcc(tmp_path, f"exp4_hyperiqa_seed{seed}", 1)["srcc"] for seed in (41, 42, 49)]
    wanted = f"{np.median(values):.4f}+-{np.std(values, ddof=1):.4f}"
    assert rows(table, ["HyperIQA"])["HyperIQA"][0] == wanted
    assert "medians over the splits" in " ".join(table.split())


def test_validation_images_that_choose_nothing_are_undefined(tmp_path):
    write_three(tmp_path, vals=1)
    table = table_of(tmp_path)
    srcc = f"{test_srcc(tmp_path, NAMES[2], 2)['srcc']:.4f}"
    assert rows(table)["+ attention"][0] == srcc  # of the last epoch
    assert rows(table)["+ attention"][4:] == [srcc, "undefined"]
    assert "the last epoch, as there is no validation SRCC to choose by" in " ".join(table.split())
    assert "'chosen by val' is undefined" in " ".join(table.split())


def test_without_validation_images_there_is_a_dash_with_its_reason(tmp_path):
    write_three(tmp_path, vals=0)
    table = table_of(tmp_path)
    assert rows(table)["baseline"][2:4] == ["-", "-"] and rows(table)["baseline"][5] == "-"
    assert "'-' under 'chosen by val': there are no validation images." in table


def test_a_collapsed_run_is_undefined_with_its_reason(tmp_path):
    write_three(tmp_path, epochs=1)
    csv = tmp_path / "exp2_multiscale_predictions.csv"
    pd.read_csv(csv).assign(score=50.0).to_csv(csv, index=False)
    table = table_of(tmp_path)
    assert rows(table)["+ multi-scale"] == ["undefined"] * 6
    assert "SRCC of '+ multi-scale' is undefined: predictions that are all the same." in table
    assert rows(table)["+ attention"][2].startswith("+")
    assert "figure(s) do not add up: see Problems" in table


def test_a_baseline_that_knows_nothing_has_no_relative_gain(tmp_path):
    write_three(tmp_path, (5000, 12, 6))
    table = table_of(tmp_path)
    assert rows(table)["+ attention"][2].startswith("+")
    assert rows(table)["+ attention"][3] == "undefined" and "not clearly above 0" in table


def test_a_failed_run_leaves_the_others_and_is_named(tmp_path):
    write_three(tmp_path)
    whole = rows(table_of(tmp_path))
    record = tmp_path / "exp2_multiscale.jsonl"
    record.write_text("\n".join(record.read_text().splitlines()[:2]) + "\n")
    cells = rows(table_of(tmp_path))
    assert cells["+ multi-scale"] == ["FAILED:", "see", str(tmp_path / "exp2_multiscale.log")]
    assert cells["baseline"] == whole["baseline"]
    assert cells["+ attention"] == whole["+ attention"]
    record.unlink()  # failed before it had a record
    assert rows(table_of(tmp_path)) == cells


def test_one_failed_seed_fails_its_row(tmp_path):
    for seed in (1, 2):
        write_three(tmp_path, suffix=f"_seed{seed}", seed=seed)
    (tmp_path / f"{NAMES[2]}_seed2.jsonl").unlink()
    row = rows(table_of(tmp_path))["+ attention"]
    assert row[0] == "FAILED:" and row[-1].endswith("exp3_multiscale_attention_seed2.log")


def test_a_run_that_failed_in_one_folder_and_finished_in_another_has_not_failed(tmp_path):
    write_three(tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "exp2_multiscale.log").write_text("error: no space\n")
    assert "FAILED" not in table_of(tmp_path / "one", tmp_path / "two")


def test_a_missing_figure_is_an_error_not_a_blank(tmp_path):
    write_three(tmp_path)
    (tmp_path / f"{NAMES[1]}_predictions.csv").unlink()
    assert rows(table_of(tmp_path))["+ multi-scale"][0] == "FAILED:"


def test_without_a_baseline_there_are_no_differences(tmp_path):
    write_three(tmp_path)
    (tmp_path / f"{NAMES[0]}.jsonl").unlink()
    table = table_of(tmp_path)
    found = test_srcc(tmp_path, NAMES[2], 2)
    wanted = [f"{found['srcc']:.4f}", f"{found['plcc']:.4f}", "-", "-"]
    assert rows(table)["+ attention"][:4] == wanted
    assert rows(table)["baseline"][0] == "FAILED:"
    assert "there is no finished baseline" in table


def test_without_a_finished_run_every_row_has_failed(tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.log").write_text("error: no data\n")
    table = table_of(tmp_path)
    assert table.startswith("ResNet-50 ablation, no finished run\n")
    assert [rows(table)[title][0] for title in TITLES] == ["FAILED:"] * 3


def test_neighbours_have_rows_and_an_ablation_of_smart_iqa_its_own_baseline(tmp_path):
    logs = write_three(tmp_path / "neighbours")
    write_run(logs, "exp4_hyperiqa", "hyperiqa", 18)
    assert len(rows(table_of(logs), ["HyperIQA"])["HyperIQA"]) == 6
    logs = tmp_path / "smart_iqa"
    models = [f"smart_iqa_tiny_{kind}" for kind in ("ss_noatt", "ms_noatt", "ms_att")]
    for name, model, noise in zip(NAMES, models, (20, 12, 6)):
        write_run(logs, name, model, noise)
    table = table_of(logs)
    assert "SMART-IQA ablation, 1 seed(s)" in table
    titles = ["SMART-IQA tiny, no fusion", "SMART-IQA tiny, fusion", "SMART-IQA tiny"]
    cells = rows(table, titles)
    assert cells[titles[0]][2:4] == ["-", "-"]
    assert all(cells[title][2].startswith("+") for title in titles[1:])


def test_controls_have_rows_and_are_no_baseline(tmp_path):
    titles = ["control: wide", "control: static"]
    cells = rows(table_of(write_five(tmp_path)), titles)
    assert [cells[title][2][0] for title in titles] == ["+", "+"]
    (tmp_path / f"{NAMES[0]}.jsonl").unlink()
    assert rows(table_of(tmp_path), titles)["control: wide"][2:4] == ["-", "-"]
    for name in NAMES:
        for path in tmp_path.glob(f"{name}*"):
            path.unlink()
    assert "there is no finished baseline" in table_of(tmp_path)


def test_the_demo_is_never_called_koniq(tmp_path):
    write_three(tmp_path)
    for name in NAMES:
        change_record(tmp_path, name, lambda config, _: config.update(demo=True))
    text = " ".join(table_of(tmp_path).split())
    assert "DEMO: synthetic scenes with known distortions; these figures are not KonIQ-10k" in text
    assert "data: the demo's synthetic scenes" in text


@pytest.mark.parametrize("missing", MODELS)
def test_missing_seeds_are_told(tmp_path, missing):
    for seed in (1, 2):
        for name, model in zip(NAMES, MODELS):
            if (seed, model) != (2, missing):
                write_run(tmp_path, f"{name}_seed{seed}", model, 9, seed=seed)
    title = TITLES[MODELS.index(missing)]
    assert f"{title} (1 of 2 seeds)  " in table_of(tmp_path)

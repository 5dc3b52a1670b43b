"""Runs on disk with known figures, for the tests of the report."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd

import metrics
import report_resnet_ablation as report
from reporting.figures import Figure

MODELS = ("resnet_improved_ss_noatt", "resnet_improved_ms_noatt", "resnet_improved_ms_att")
NAMES = ("exp1_baseline", "exp2_multiscale", "exp3_multiscale_attention")
CONTROLS = {"exp7_wide": "resnet_improved_ss_wide", "exp8_static": "resnet_improved_ms_static"}


def write_run(
    folder, name, model, noise, /, *, seed=42, epochs=2, tests=200, vals=50, stages=(4, 3, 2, 1),
    **flags,
):  # fmt: skip
    """A run's record and predictions: scores are MOS with noise of `noise` points.

    stages: of the Dirichlet distribution of the stage weights; static ones are its mean.
    """
    flags = {"split": "auto", "split_seed": 0} | flags
    rng = np.random.default_rng(7 + flags["split_seed"])
    mos = {"test": rng.uniform(10, 90, tests).round(2), "val": rng.uniform(10, 90, vals).round(2)}
    own = np.random.default_rng([seed, MODELS.index(model) if model in MODELS else 9])
    frames, records = [], []
    for epoch in range(1, epochs + 1):
        record = {"type": "epoch", "epoch": epoch, "loss": 10 / epoch, "patches_per_second": 100.0}
        record |= {"test_patches_per_second": 300.0, "peak_memory_gb": 2.5}
        for split in ("val", "test"):
            if not len(mos[split]):
                continue
            score = mos[split] + own.normal(0, noise + 5 * (epochs - epoch), len(mos[split]))
            rows = {"epoch": epoch, "split": split, "mos": mos[split], "score": score.round(6)}
            first = 1000 * flags["split_seed"]  # each split has images of its own
            rows["image"] = [f"Images/{split}_{first + i:03}.jpg" for i in range(len(score))]
            if model.endswith("_att"):
                weights = own.dirichlet(stages, len(score)).round(6)
                rows |= {f"w{i + 1}": weights[:, i] for i in range(4)}
            if model.endswith("_static"):
                rows |= {f"w{i + 1}": stage / sum(stages) for i, stage in enumerate(stages)}
            frames.append(pd.DataFrame(rows))
            values = metrics.agreement(frames[-1]["score"].to_numpy(), mos[split])
            record |= {f"{split}_{k}": None if v != v else v for k, v in values.items()}
        records.append(record)
    config = {
        "type": "config",
        "model": model,
        "parameters": 25_000_000 + 1_000_000 * len(name),
        "multiply_adds": 4_000_000_000,
        "flags": {"seed": seed, "epochs": epochs, "dataset": "koniq-10k", "data_path": "nowhere"}
        | {"patch_size": 224, "lr": 1e-4}
        | flags,
        "label_source": "labels_of_a_test",
        "images": {"train": 4 * tests, "val": vals, "test": tests},
        "data_fingerprint": f"0123456789a{flags['split_seed']}",
        "device": "cpu",
        "device_name": "a machine",
        "precision": "off",
        "git_commit": "abc",
        "versions": {"torch": "2"},
        "started": "2026-01-02T03:04:05",
    }
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(line) for line in (config, *records)]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / f"{name}.log").write_text("a log\n")
    columns = ["epoch", "split", "image", "mos", "score"]
    columns += [c for c in frames[0].columns if c.startswith("w")]
    pd.concat(frames)[columns].to_csv(folder / f"{name}_predictions.csv", index=False)


def write_three(folder: Path, noises=(20, 12, 6), *, suffix: str = "", **options) -> Path:
    """Runs of the three configurations; returns the folder."""
    for name, model, noise in zip(NAMES, MODELS, noises):
        write_run(folder, name + suffix, model, noise, **options)
    return folder


def write_five(folder: Path, noises=(20, 12, 6, 15, 8), **options) -> Path:
    """Runs of the three configurations and of the two controls; returns the folder."""
    write_three(folder, noises[:3], **options)
    suffix = options.pop("suffix", "")
    for (name, model), noise in zip(CONTROLS.items(), noises[3:]):
        write_run(folder, name + suffix, model, noise, **options)
    return folder


def change_record(folder: Path, name: str, change) -> None:
    """Write a record again after `change(config, epochs)`."""
    path = folder / f"{name}.jsonl"
    config, *epochs = map(json.loads, path.read_text().splitlines())
    change(config, epochs)
    path.write_text("\n".join(map(json.dumps, [config, *epochs])) + "\n")


def reported(folder, capsys, *arguments, status=0, draw=False):
    """Run the report in this process: (results.json or None, stdout, stderr).

    draw: with its figures, which take most of its time.
    """
    sys.argv = ["report", "--resamples", "400", str(folder), *map(str, arguments)]
    none = [Figure("", "No figures in this test.")]
    with nullcontext() if draw else patch.object(report, "draw_figures", return_value=none):
        assert report.main() == status
    said = capsys.readouterr()
    path = folder / "results.json"
    return (json.loads(path.read_text()) if path.exists() else None), said.out, said.err

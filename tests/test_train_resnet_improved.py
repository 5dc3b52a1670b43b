"""A run from its flags to its record: real short runs in this process and in others."""

import json
import math
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import data_loader as data
import files
import train_resnet_improved as train
from conftest import ROOT, SMALL, TINY, make_koniq10k, photo
from errors import DataError, RunError
from evaluation import load_model
from metrics import agreement
from models_resnet_improved import ResNetImproved
from predict_resnet_improved import score_images
from training.flags import parse_args
from training.run_files import RunFiles

CLOCK = {"seconds", "patches_per_second", "test_patches_per_second", "started", "peak_memory_gb"}


def start(folder: Path, out: Path, *flags, dataset: str = "biq2021") -> Path:
    """Train in this process on `folder`; returns the folder of logs and checkpoints."""
    where = [
        "--dataset",
        dataset,
        "--data_path",
        str(folder),
        "--store_dir",
        str(folder) + ".store",
    ]
    where += ["--log_dir", str(out), "--checkpoint_dir", str(out), "--run_name", "run"]
    train.run(parse_args([*TINY, *where, *map(str, flags)]))
    return out


def records(out: Path, name: str = "run") -> tuple[dict, list[dict]]:
    config, *epochs = map(json.loads, (out / f"{name}.jsonl").read_text().splitlines())
    return config, epochs


def without_clock(epochs: list[dict]) -> list[dict]:
    return [{k: v for k, v in e.items() if k not in CLOCK} for e in epochs]


@pytest.mark.slow
def test_a_compiled_run_learns_what_an_uncompiled_one_does(tmp_path, biq2021):
    flags = ("--use_multiscale", "--use_attention", "--save_model")
    _, plain = records(start(biq2021, tmp_path / "plain", *flags))
    config, compiled = records(start(biq2021, tmp_path / "compiled", *flags, "--compile"))
    assert config["flags"]["compile"] is True
    losses = [[epoch["loss"] for epoch in epochs] for epochs in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    scores = [pd.read_csv(tmp_path / run / "run_predictions.csv") for run in ("plain", "compiled")]
    assert (scores[0]["image"] == scores[1]["image"]).all()


def test_a_store_on_cuda_needs_a_run_on_cuda(tmp_path, biq2021):
    with pytest.raises(RunError, match="--store_device cuda: this run is on the CPU"):
        start(biq2021, tmp_path / "out", "--store_device", "cuda")


def test_it_learns_what_the_labels_say(tmp_path, biq2021):
    # the labels follow the brightness of the photographs
    flags = ["--epochs", 8, "--train_patch_num", 4, "--lr", 1e-3, "--lr_ratio", 1]
    flags += ["--backbone", SMALL]
    _, epochs = records(start(biq2021, tmp_path / "out", *flags))
    assert epochs[-1]["train_srcc"] > 0.8
    assert epochs[-1]["loss"] < 0.6 * epochs[0]["loss"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, biq2021, monkeypatch):
    def breaks(scores, *_, **__):
        return (scores * math.nan).sum()

    monkeypatch.setattr(torch.nn.functional, "l1_loss", breaks)
    with pytest.raises(RunError, match="epoch 1, step 1 of 6: the loss is not finite"):
        start(biq2021, tmp_path / "out")
    with pytest.raises(RunError, match="epoch 1, step 1 of 6: the loss is not finite"):
        start(biq2021, tmp_path / "saving", "--save_minutes", 0, "--save_model")
    assert not list((tmp_path / "saving").glob("*.pth"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two runs of the full model with the same seed, one with worker processes."""
    base = tmp_path_factory.mktemp("finished")
    folder = base / "koniq-10k"
    folder.mkdir()
    make_koniq10k(folder)
    flags = ("--use_multiscale", "--use_attention", "--save_model")
    one = start(folder, base / "one", *flags, dataset="koniq-10k")
    two = start(folder, base / "two", *flags, "--workers", 2, dataset="koniq-10k")
    return one, two


def test_another_backbone_is_trained_recorded_and_used_again(finished, tmp_path, capsys):
    folder = finished[0].parent / "koniq-10k"
    where = ["--data_path", folder, "--store_dir", tmp_path, "--log_dir", tmp_path]
    where += ["--checkpoint_dir", tmp_path, "--save_model", "--run_name", "run"]
    flags = ["--backbone", "tf_efficientnet_lite0", "--use_multiscale", "--use_attention"]
    args = parse_args([*map(str, [*TINY, *where, *flags])])
    (config, *_), network = train.run(args)
    assert "tf_efficientnet_lite0_ms_att, 4.21 M parameters" in capsys.readouterr().out
    assert config["model"] == "resnet_improved_ms_att"
    assert config["normalisation"] == [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    model = load_model(tmp_path / "tf_efficientnet_lite0_ms_att_last.pth", "cpu")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images)[0], network.eval()(images)[0])
    table = score_images(
        model, [folder / image for image in pd.read_csv(tmp_path / "run_predictions.csv")["image"]]
    )
    assert table["score"].notna().all()


def test_same_seed_same_bits_whatever_the_number_of_workers(finished):
    (_, epochs), (_, again) = map(records, finished)
    assert without_clock(epochs) == without_clock(again)
    one, two = ((out / "run_predictions.csv").read_bytes() for out in finished)
    assert one == two
    one, two = (
        torch.load(out / "resnet_improved_ms_att_last.pth", weights_only=True) for out in finished
    )
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, two["model"][name]), name
    one, two = (torch.load(out / "run_state.pth", weights_only=True) for out in finished)
    assert torch.equal(one["rng"][0][0], two["rng"][0][0])


def test_the_record_says_what_the_result_stands_on(finished):
    config, epochs = records(finished[0])
    assert config["images"] == {"train": 6, "val": 2, "test": 3}
    assert config["flags"]["seed"] == 42 and config["flags"]["use_attention"] is True
    assert config["parameters"] == 28_649_749 and config["precision"] == "off"
    assert len(config["data_fingerprint"]) == 12 and config["git_commit"]
    assert {"python", "torch", "torchvision", "numpy", "pillow"} <= set(config["versions"])
    assert "koniq_train.json" in config["label_source"]
    assert [e["epoch"] for e in epochs] == [1, 2]
    assert epochs[0]["lr_backbone"] == 1e-4 and epochs[0]["lr_new"] == pytest.approx(1e-3)


def test_predictions_are_enough_to_recompute_every_figure(finished):
    _, epochs = records(finished[0])
    frame = pd.read_csv(finished[0] / "run_predictions.csv")
    assert list(frame.columns) == [
        "epoch",
        "split",
        "image",
        "mos",
        "score",
        "w1",
        "w2",
        "w3",
        "w4",
    ]
    assert frame.groupby(["epoch", "split"]).size().tolist() == [3, 2, 3, 2]
    sums = frame[["w1", "w2", "w3", "w4"]].sum(axis=1)
    assert sums.to_numpy() == pytest.approx(np.ones(10), abs=1e-5)
    for epoch in epochs:
        for split in ("val", "test"):
            rows = frame[(frame["epoch"] == epoch["epoch"]) & (frame["split"] == split)]
            for name, value in agreement(rows["score"], rows["mos"]).items():
                assert epoch[f"{split}_{name}"] == pytest.approx(value, rel=1e-12)


def test_checkpoints_load_safely_and_score_as_the_run_did(finished):
    content = torch.load(finished[0] / "resnet_improved_ms_att_last.pth", weights_only=True)
    config, epochs = records(finished[0])
    assert content["config"] == config and len(content["epochs"]) == len(epochs) == 2
    assert set(content) == {"model", "config", "epochs", "trained_on"}
    assert content["trained_on"].shape == (6 + 2, 8)  # training and validation images
    state = torch.load(finished[0] / "run_state.pth", weights_only=True)
    assert {"optimizer", "scheduler", "scaler", "rng"} <= set(state)
    model = ResNetImproved(use_multiscale=True, use_attention=True)
    model.load_state_dict(content["model"])
    best = torch.load(finished[0] / "resnet_improved_ms_att_best.pth", weights_only=True)
    srcc = [e["test_srcc"] for e in epochs]
    assert best["epochs"][-1]["epoch"] == 1 + srcc.index(max(srcc))


def spy(monkeypatch, look) -> None:
    """Call `look` with each batch of training and evaluation, until the test ends."""
    original = data.Batches.__getitem__

    def seen(self, index):
        batch = original(self, index)
        look(batch)
        return batch

    monkeypatch.setattr(data.Batches, "__getitem__", seen)


def test_configurations_see_the_same_patches_in_the_same_order(tmp_path, koniq10k, monkeypatch):
    seen = []
    spy(monkeypatch, lambda b: seen[-1].append((b["crops"].sum().item(), b["images"].tolist())))
    for name, flags in (("a", ()), ("b", ("--use_multiscale",))):
        seen.append([])
        start(koniq10k, tmp_path / name, *flags, dataset="koniq-10k")
    assert seen[0] == seen[1] and len(seen[0]) == 8  # 3 training batches and a test batch, twice


def test_other_seeds_see_other_patches_but_the_same_test_crops(tmp_path, koniq10k, monkeypatch):
    seen = []
    spy(monkeypatch, lambda batch: seen[-1].append(batch["crops"].sum().item()))
    for seed in (1, 2):
        seen.append([])
        start(koniq10k, tmp_path / str(seed), "--seed", seed, "--epochs", 1, dataset="koniq-10k")
    assert seen[0][:3] != seen[1][:3] and seen[0][3:] == seen[1][3:]


def test_the_console_is_quiet_in_a_log(koniq10k, run_script):
    flags = [*TINY, "--data_path", koniq10k, "--run_name", "quiet"]
    done = run_script("train_resnet_improved.py", *flags)
    assert done.returncode == 0 and done.stderr == "" and "\r" not in done.stdout
    lines = done.stdout.splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("epoch"))
    assert [line.split()[0] for line in lines[row + 1 : row + 3]] == ["1", "2"]
    assert len({len(line) for line in lines[row : row + 3]}) == 1  # aligned
    assert lines[row + 3].startswith("Best Test SRCC: ")
    assert "6 train, 2 val, 3 test images (not the counts of a published split)" in done.stdout
    assert sorted(p.name for p in (run_script.folder / "logs").iterdir()) == [
        "quiet.jsonl",
        "quiet_predictions.csv",
    ]
    assert not (run_script.folder / "checkpoints").exists()  # without --save_model


def test_an_existing_run_is_never_overwritten(tmp_path, koniq10k):
    (tmp_path / "run.jsonl").write_text("precious")
    with pytest.raises(RunError, match=r"run\.jsonl is there already"):
        start(koniq10k, tmp_path, dataset="koniq-10k")
    assert (tmp_path / "run.jsonl").read_text() == "precious"


def test_another_runs_checkpoints_are_kept(tmp_path, capsys):
    path = tmp_path / "resnet_improved_ss_noatt_best.pth"
    path.write_text("precious")
    RunFiles(tmp_path, tmp_path, "resnet_improved_ss_noatt", "run").make_way()
    (kept,) = tmp_path.iterdir()
    assert kept.read_text() == "precious" and kept.name != path.name
    assert f"is kept as {kept.name}" in capsys.readouterr().out


def test_kept_checkpoints_never_overwrite_each_other(tmp_path):
    """Object stores give every file the same time."""
    files = RunFiles(tmp_path, tmp_path, "resnet_improved_ss_noatt", "run")
    for content in ("one", "two", "three"):
        for path in (files.best, files.last, files.state):
            path.write_text(content)
            os.utime(path, (1, 1))
        files.make_way()
    kept = [path.read_text() for path in tmp_path.iterdir()]
    assert sorted(kept) == sorted(["one", "two", "three"] * 3)


@pytest.mark.parametrize(
    "console",
    [">/dev/full 2>&-", pytest.param("| head -n 11 >console", marks=pytest.mark.slow)],
)
def test_a_console_that_goes_away_loses_nothing(koniq10k, tmp_path, console):
    flags = ["--data_path", koniq10k, "--run_name", "run", "--save_model", "--backbone", SMALL]
    command = shlex.join([sys.executable, *map(str, [ROOT / "train_resnet_improved.py", *TINY])])
    command += f" {shlex.join(map(str, flags))} {console}"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, env=environment)
    assert done.returncode == 0
    _, epochs = records(tmp_path / "logs")
    state = torch.load(tmp_path / "logs" / "run_state.pth", weights_only=True)
    assert len(epochs) == len(state["epochs"]) == 2
    assert len(list((tmp_path / "checkpoints").glob("*.pth"))) == 2


def refused(done, *texts) -> None:
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    for text in texts:
        assert text in done.stderr


def test_a_missing_data_folder_is_said_before_torch_is_loaded(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['t']\n"
    code += "import train_resnet_improved as t; print(t.main(), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["1", "False"]
    assert done.stderr.startswith("error: --data_path ./koniq-10k: no such folder")


def test_koniq_with_five_of_its_photographs_stops(real_data, run_script):
    done = run_script("train_resnet_improved.py", "--data_path", real_data / "koniq-10k")
    refused(done, "of 10,056 images are missing: 1024x768/", "should lie under", "README.md")
    assert len(done.stderr.splitlines()) == 1


def test_what_a_run_needs_is_checked_without_writing_anything(
    koniq10k, run_script, tmp_path, monkeypatch
):
    flags = [*TINY, "--save_model", "--check", "--data_path"]
    done = run_script("train_resnet_improved.py", *flags, koniq10k)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(run_script.folder.iterdir()) == []
    monkeypatch.chdir(run_script.folder)
    (tmp_path / "file").write_text("")
    for more, text in (
        ((koniq10k, "--backbone_weights", "no.pth"), r"no\.pth"),
        ((koniq10k, "--batch_size", 11), "last batch of 1 crops"),
        ((koniq10k, "--checkpoint_dir", tmp_path / "file" / "a"), "--checkpoint_dir"),
        (("nowhere",), "no such folder"),
    ):
        with pytest.raises((DataError, RunError), match=text):
            train.check(parse_args([*map(str, (*flags, *more))]))
    assert list(run_script.folder.iterdir()) == []


def test_weights_that_cannot_be_had_stop_the_run(koniq10k, run_script, tmp_path):
    flags = [*TINY, "--data_path", koniq10k, "--backbone_weights", tmp_path / "no.pth"]
    refused(run_script("train_resnet_improved.py", *flags), "--backbone_weights", "no.pth")


def test_cuda_where_there_is_none_is_refused(koniq10k, run_script):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    flags = [*TINY, "--data_path", koniq10k, "--device", "cuda"]
    refused(run_script("train_resnet_improved.py", *flags), "--device cuda", "take auto or cpu")


def test_an_output_folder_that_cannot_be_made_is_found_before_training(koniq10k, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"--log_dir .*file/logs: can't be made"):
        start(koniq10k, tmp_path / "file" / "logs", dataset="koniq-10k")


@pytest.mark.parametrize(
    "signal_number, name, status",
    [
        # test_resume has these two, and the state that they leave
        pytest.param(signal.SIGINT, "SIGINT", 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "SIGTERM", 143, marks=pytest.mark.slow),
        (signal.SIGHUP, "SIGHUP", 129),  # of a terminal that is closed
    ],
)
def test_a_signal_ends_a_run_without_a_traceback(koniq10k, tmp_path, signal_number, name, status):
    flags = [*TINY, "--data_path", koniq10k, "--epochs", "1000", "--backbone", SMALL]
    process = subprocess.Popen(
        [sys.executable, ROOT / "train_resnet_improved.py", *map(str, flags)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.lstrip().startswith("1 "):
            break
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in errors
    assert f"stopped by {name}" in errors


def test_a_folder_of_one_colour_images_still_ends_in_a_record(tmp_path, koniq10k):
    for image in (koniq10k / "1024x768").iterdir():
        photo(image, 128)
    _, epochs = records(start(koniq10k, tmp_path / "out", "--epochs", 1, dataset="koniq-10k"))
    assert len(epochs) == 1


def test_other_crops_precision_and_jitter_run(tmp_path, koniq10k, capsys):
    flags = ["--test_crop", "grid", "--test_patch_num", 4, "--amp", "bf16", "--color_jitter"]
    out = start(koniq10k, tmp_path / "out", *flags, "--train_patch_num", 4, dataset="koniq-10k")
    config, epochs = records(out)
    assert config["precision"] == "bf16" and len(epochs) == 2
    console = capsys.readouterr().out
    assert "colour jitter on; test: 32 of 48 x 40 (H x W), grid, 4 per image\n" in console
    assert re.search(r"trains on the CPU, about \d+ s for 2 epochs at [\d.]+ crops/s", console)


def test_a_last_batch_that_cannot_be_normalised_is_refused(tmp_path, koniq10k):
    with pytest.raises(RunError, match="--batch_size 11 leaves a last batch of 1 crops"):
        start(koniq10k, tmp_path, "--batch_size", 11, dataset="koniq-10k")


def test_two_runs_never_write_the_same_checkpoints(tmp_path, koniq10k, monkeypatch):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.3)
    with (
        files.locked(tmp_path / ".resnet_improved_ss_noatt.lock"),
        pytest.raises(RunError, match="another run is writing"),
    ):
        start(koniq10k, tmp_path, "--save_model", dataset="koniq-10k")


def test_out_of_memory_is_one_sentence(koniq10k, tmp_path, monkeypatch, capsys):
    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines")

    monkeypatch.setattr(train, "run", no_memory)
    monkeypatch.setattr(sys, "argv", ["train", "--data_path", str(koniq10k)])
    assert train.main() == 1
    error = capsys.readouterr().err
    assert "give a smaller --batch_size" in error and len(error.splitlines()) == 1


def test_a_notebook_gets_record_and_network_and_keeps_its_children(tmp_path, koniq10k):
    child = multiprocessing.Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
    with pytest.raises(DataError, match="no such folder"):
        start(tmp_path / "nowhere", tmp_path / "out", dataset="koniq-10k")
    flags = [*TINY, "--data_path", koniq10k, "--store_dir", f"{koniq10k}.store", "--workers", 2]
    args = parse_args([*map(str, [*flags, "--log_dir", tmp_path / "out", "--run_name", "run"])])
    record, network = train.run(args)
    assert child.is_alive()
    child.kill()
    config, epochs = records(tmp_path / "out")
    assert record == [config, *epochs]
    assert sum(p.numel() for p in network.parameters()) == config["parameters"]

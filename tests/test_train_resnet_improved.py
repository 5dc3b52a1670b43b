import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import data_loader as data
import train_resnet_improved as train
from conftest import ROOT, TINY, make_koniq10k, photo
from metrics import agreement
from models_resnet_improved import ResNetImproved

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
    train.run(train.parse_args([*TINY, *where, *map(str, flags)]))
    return out


def records(out: Path, name: str = "run") -> tuple[dict, list[dict]]:
    config, *epochs = map(json.loads, (out / f"{name}.jsonl").read_text().splitlines())
    return config, epochs


def without_clock(epochs: list[dict]) -> list[dict]:
    return [{k: v for k, v in e.items() if k not in CLOCK} for e in epochs]


# Flags


def test_the_three_documented_commands_train_under_the_same_settings():
    commands = [
        "--dataset koniq-10k --data_path ./koniq-10k --epochs 10 --lr 1e-4 --batch_size 32 "
        "--no_color_jitter --test_random_crop --save_model --run_name r",
        "--dataset koniq-10k --use_multiscale --epochs 10 --lr 1e-4 --save_model --run_name r",
        "--dataset koniq-10k --use_multiscale --use_attention --epochs 10 --lr 1e-4 --save_model "
        "--run_name r",
    ]
    settings = [vars(train.parse_args(command.split())) for command in commands]
    models = [(s.pop("use_multiscale"), s.pop("use_attention")) for s in settings]
    assert models == [(False, False), (True, False), (True, True)]
    assert settings[0] == settings[1] == settings[2]


def test_defaults_are_the_experiments():
    args = train.parse_args([])
    wanted = {
        "train_patch_num": 25,
        "test_patch_num": 25,
        "test_crop": "random",
        "batch_size": 32,
        "epochs": 10,
        "lr": 1e-4,
        "lr_ratio": 10,
        "weight_decay": 1e-4,
        "dropout_rate": 0.3,
        "color_jitter": False,
        "patch_size": 224,
        "resize": (512, 384),
        "seed": 42,
        "backbone_weights": "imagenet1k_v1",
        "data_path": "./koniq-10k",
    }
    assert {name: getattr(args, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--use_attention", "give --use_multiscale as well"),
        ("--epochs 0", "--epochs: 0 is not a whole number of at least 1"),
        ("--epochs 2.5", "--epochs: 2.5 is not a whole number"),
        ("--batch_size -1", "--batch_size: -1 is not"),
        ("--lr nan", "--lr: nan is not a number"),
        ("--lr inf", "--lr: inf is not a number"),
        ("--lr 5", "at least 0 and at most 1"),
        ("--dropout_rate 1", "at least 0 and below 1"),
        ("--train_patch_num 0", "--train_patch_num: 0"),
        ("--patch_size 500", "--patch_size 500 is larger than the images"),
        ("--patch_size 8", "--patch_size: 8"),
        ("--test_crop grid --test_patch_num 24", "takes a square number, such as 16"),
        ("--test_crop grid --test_random_crop", "not allowed with"),
        ("--color_jitter --no_color_jitter", "not allowed with"),
        ("--run_name a/b", "a name, not a path"),
        ("--dataset imagenet", "invalid choice"),
        ("--epoch 3", "unrecognized arguments"),
        ("--val_fraction 0.9", "--val_fraction: 0.9"),
    ],
)
def test_wrong_flags_get_one_sentence(capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        train.parse_args(flags.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_center_takes_one_crop():
    assert train.parse_args(["--test_crop", "center"]).test_patch_num == 1


def test_help_names_every_flag_with_its_default_without_loading_torch():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import train_resnet_improved as t\n"
    code += "try: t.parse_args(['--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"
    for flag in ("--use_multiscale", "--test_crop", "--lr_ratio", "--amp", "--store_dir"):
        assert flag in done.stdout
    assert "(default: 25)" in done.stdout


# Learning


def test_the_rate_falls_from_the_start_to_one_percent_and_never_rises():
    factors = [train.learning_rate_factor(step, 100) for step in range(101)]
    assert factors[0] == 1 and factors[-1] == pytest.approx(0.01)
    assert factors == sorted(factors, reverse=True)


class Brightness(torch.nn.Module):
    """A network whose score is the mean of its own patch, to see whose score is whose."""

    def forward(self, images):
        mean = images.mean((1, 2, 3))
        return mean, mean[:, None].repeat(1, 4)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_evaluation_means_over_each_images_own_crops(tmp_path, batch_size):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 48, 40, 3), np.uint8)
    (tmp_path / "pixels.u8").write_bytes(pixels.tobytes())
    store = data.PixelStore(tmp_path / "pixels.u8", pixels.shape)
    images = np.array([4, 0, 5])
    plan = data.test_plan(images, crop="random", patches=5, resize=(48, 40), patch_size=32)
    loader = data.make_loader(
        data.Batches(store, np.arange(6), plan, patch_size=32, batch_size=batch_size),
        workers=0,
        pin=False,
    )
    scores, weights = train.evaluate(
        Brightness(), loader, 5, device=torch.device("cpu"), precision="off", watch=iter
    )
    normalised = (pixels / 255 - data.MEAN) / data.STD
    for score, image, crops in zip(scores, images, plan.reshape(3, 5, 4)):
        assert set(crops[:, 0]) == {image}
        means = [normalised[image, t : t + 32, c : c + 32].mean() for _, t, c, _ in crops]
        assert score == pytest.approx(np.mean(means), abs=1e-5)
    assert weights.shape == (3, 4) and weights[:, 2] == pytest.approx(scores, abs=1e-6)


def test_no_step_waits_for_the_device(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 48, 40, 3), np.uint8)
    (tmp_path / "pixels.u8").write_bytes(pixels.tobytes())
    store = data.DeviceStore(data.PixelStore(tmp_path / "pixels.u8", pixels.shape), "cpu")
    plan = data.test_plan(np.arange(6), crop="random", patches=4, resize=(48, 40), patch_size=32)
    jitter = data.jitter_plan(len(plan), seed=0, epoch=1)
    batches = data.Batches(store, np.arange(6), plan, patch_size=32, batch_size=6, jitter=jitter)
    model = ResNetImproved(use_multiscale=True, use_attention=True)
    args = train.parse_args(["--backbone_weights", "none"])
    optimizer, scheduler = train.build_optimizer(args, model, 4)
    data.to_network_input(batches[0], torch.device("cpu"))  # makes the constants once

    scores = []

    def steps_that_do_not_wait(loader):
        def waits(*_, **__):
            raise AssertionError("a step reads a value back from the device")

        with monkeypatch.context() as inside:
            for method in ("item", "cpu", "tolist", "numpy", "__float__", "__bool__", "nonzero"):
                inside.setattr(torch.Tensor, method, waits)
            inside.setattr(torch, "tensor", waits)  # a copy from the host, which waits as well
            yield from loader

    train.train_one_epoch(
        model,
        map(batches.__getitem__, range(len(batches))),
        torch.full((6,), 50.0),
        optimizer,
        scheduler,
        torch.amp.GradScaler("cpu", enabled=False),
        precision="off",
        gradient_clip=1.0,
        watch=steps_that_do_not_wait,
        keep=scores.append,
    )
    assert sum(map(len, scores)) == len(plan)
    train.evaluate(
        model,
        map(batches.__getitem__, range(len(batches))),
        4,
        device=torch.device("cpu"),
        precision="off",
        watch=steps_that_do_not_wait,
    )


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


@pytest.mark.slow
def test_compiled_gradients_differ_by_no_more_than_rounding_does():
    """BatchNorm over few values makes gradients sensitive: how far, weights a little off tell."""
    torch.manual_seed(0)
    patches, mos = torch.randn(8, 3, 64, 64), torch.linspace(10, 90, 8)
    models = [
        ResNetImproved(use_multiscale=True, use_attention=True, dropout_rate=0.0) for _ in range(3)
    ]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    with torch.no_grad():
        for weight in models[1].parameters():
            weight.mul_(1 + 1e-6 * torch.randn_like(weight))
    train.compile_in_place(models[2], torch.device("cpu"))
    gradients = []
    for model in models:
        (model(patches)[0] - mos).abs().mean().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    off, compiled = ((g - gradients[0]).norm() / gradients[0].norm() for g in gradients[1:])
    assert compiled < 2 * off < 0.2


@pytest.mark.slow
def test_compiled_scores_are_those_of_the_same_weights_uncompiled():
    model = ResNetImproved(use_multiscale=True, use_attention=True).eval()
    patches = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)
    batches = [{"patches": patches, "flips": torch.zeros(4, dtype=torch.bool)}]
    last = 0
    for _ in range(2):
        (same, shares), (wanted, _) = (
            train.score_crops(
                model,
                batches,
                device=torch.device("cpu"),
                precision="off",
                watch=iter,
                compiled=compiled,
            )
            for compiled in (True, False)
        )
        torch.testing.assert_close(same, wanted, rtol=1e-4, atol=1e-4)
        assert shares.shape == (4, 4) and (same - last).abs().min() > 0.01
        last = same
        with torch.no_grad():  # what is compiled next has other weights
            model.hyper_net.biases.bias[-1] += 5


def test_a_store_on_cuda_needs_a_run_on_cuda(tmp_path, biq2021):
    with pytest.raises(train.RunError, match="--store_device cuda: this run is on the CPU"):
        start(biq2021, tmp_path / "out", "--store_device", "cuda")


def test_train_scores_are_means_by_image():
    means, present = train.mean_by_image(np.array([1.0, 5, 3, 7]), np.array([4, 2, 4, 2]))
    assert present.tolist() == [2, 4] and means.tolist() == [6, 2]


def test_it_learns_what_the_labels_say(tmp_path, biq2021):
    # the labels follow the brightness of the photographs
    flags = ("--epochs", 8, "--train_patch_num", 4, "--lr", 1e-3, "--lr_ratio", 1)
    _, epochs = records(start(biq2021, tmp_path / "out", *flags))
    assert epochs[-1]["train_srcc"] > 0.8
    assert epochs[-1]["loss"] < 0.6 * epochs[0]["loss"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, biq2021, monkeypatch):
    def breaks(scores, *_, **__):
        return (scores * math.nan).sum()

    monkeypatch.setattr(torch.nn.functional, "l1_loss", breaks)
    with pytest.raises(train.RunError, match="epoch 1, step 2 of 6: the loss is not finite"):
        start(biq2021, tmp_path / "out")
    with pytest.raises(train.RunError, match="epoch 1, step 1 of 6: the loss is not finite"):
        start(biq2021, tmp_path / "saving", "--save_minutes", 0, "--save_model")
    assert not list((tmp_path / "saving").glob("*.pth"))


# The run


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
    assert torch.equal(one["rng"][0][0], two["rng"][0][0])


def test_the_record_says_what_the_result_stands_on(finished):
    config, epochs = records(finished[0])
    assert config["images"] == {"train": 6, "val": 2, "test": 3}
    assert config["flags"]["seed"] == 42 and config["flags"]["use_attention"] is True
    assert config["parameters"] == 28_649_749 and config["precision"] == "off"
    assert len(config["data_fingerprint"]) == 12 and config["git_commit"]
    assert {"python", "torch", "torchvision", "numpy", "pillow"} <= set(config["versions"])
    assert "koniq_train.json" in config["labels"]
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
    assert {"optimizer", "scheduler", "scaler", "rng"} <= set(content)
    model = ResNetImproved(use_multiscale=True, use_attention=True)
    model.load_state_dict(content["model"])
    best = torch.load(finished[0] / "resnet_improved_ms_att_best.pth", weights_only=True)
    srcc = [e["test_srcc"] for e in epochs]
    assert best["epochs"][-1]["epoch"] == 1 + srcc.index(max(srcc))


def test_configurations_see_the_same_patches_in_the_same_order(tmp_path, koniq10k, monkeypatch):
    seen = []
    original = data.to_network_input

    def spy(batch, device):
        seen[-1].append((batch["patches"].sum().item(), batch["images"].tolist()))
        return original(batch, device)

    monkeypatch.setattr(data, "to_network_input", spy)
    for name, flags in (("a", ()), ("b", ("--use_multiscale",))):
        seen.append([])
        start(koniq10k, tmp_path / name, *flags, dataset="koniq-10k")
    assert seen[0] == seen[1] and len(seen[0]) == 8  # 3 training batches and a test batch, twice


def test_other_seeds_see_other_patches_but_the_same_test_crops(tmp_path, koniq10k, monkeypatch):
    seen = []
    original = data.to_network_input

    def spy(batch, device):
        seen[-1].append(batch["patches"].sum().item())
        return original(batch, device)

    monkeypatch.setattr(data, "to_network_input", spy)
    for seed in (1, 2):
        seen.append([])
        start(koniq10k, tmp_path / str(seed), "--seed", seed, "--epochs", 1, dataset="koniq-10k")
    assert seen[0][:3] != seen[1][:3] and seen[0][3:] == seen[1][3:]


def test_closing_lines_name_three_choices():
    epochs = [
        {"epoch": 1, "val_srcc": 0.8, "test_srcc": 0.70004, "test_plcc": 0.6},
        {"epoch": 2, "val_srcc": 0.7, "test_srcc": 0.9, "test_plcc": 0.91},
        {"epoch": 3, "val_srcc": None, "test_srcc": 0.85, "test_plcc": 0.8},
    ]
    lines = train.closing_lines(epochs).splitlines()
    assert lines[0].startswith("Best Test SRCC: 0.9000  (epoch 2, chosen on the test images")
    assert lines[1].startswith("Best Test PLCC: 0.9100  (epoch 2,")
    assert lines[2].startswith("Validation-Chosen Test SRCC: 0.7000  (epoch 1, ")
    assert lines[4].startswith("Last Test SRCC: 0.8500  (epoch 3, ")


def test_constant_predictions_are_undefined_and_never_the_best():
    constant = {"epoch": 1, "test_srcc": None, "test_plcc": None}
    fine = {"epoch": 2, "test_srcc": -0.1, "test_plcc": -0.1}
    assert train.best_epoch([constant, fine], "test") is fine
    lines = train.closing_lines([constant]).splitlines()
    assert lines[0] == f"Best Test SRCC: undefined ({train.UNDEFINED})"
    assert "No validation images: no epoch is chosen by them." in lines


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
    with pytest.raises(train.RunError, match=r"run\.jsonl is there already"):
        start(koniq10k, tmp_path, dataset="koniq-10k")
    assert (tmp_path / "run.jsonl").read_text() == "precious"


def test_another_runs_checkpoints_are_kept(tmp_path, capsys):
    path = tmp_path / "resnet_improved_ss_noatt_best.pth"
    path.write_text("precious")
    train.keep_earlier(path)
    (kept,) = tmp_path.iterdir()
    assert kept.read_text() == "precious" and kept.name != path.name
    assert f"is kept as {kept.name}" in capsys.readouterr().out


# Errors: one sentence on stderr, status 1, no traceback


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
    with pytest.raises(train.RunError, match=r"--log_dir .*file/logs: can't be made"):
        start(koniq10k, tmp_path / "file" / "logs", dataset="koniq-10k")


@pytest.mark.parametrize(
    "signal_number, name, status",
    [(signal.SIGINT, "SIGINT", 130), (signal.SIGTERM, "SIGTERM", 143)],
)
def test_a_signal_ends_a_run_without_a_traceback(koniq10k, tmp_path, signal_number, name, status):
    flags = [*TINY, "--data_path", koniq10k, "--epochs", "1000"]
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


def test_progress_in_a_log_is_a_line_a_minute(monkeypatch, capsys):
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr(data.time, "monotonic", lambda: next(clock))
    for _ in data.Progress("training", 250, "patches", 32)(range(8)):
        pass
    assert capsys.readouterr().err.splitlines() == [
        "training: 64 of 250 patches, 0.9/s, 4 min left",
        "training: 160 of 250 patches, 1.1/s, 84 s left",
    ]


def test_a_slow_first_step_is_no_trouble(monkeypatch, capsys):
    clock = iter([0, 100, 200])
    monkeypatch.setattr(data.time, "monotonic", lambda: next(clock))
    assert list(data.Progress("training", 64, "patches", 32)(range(2))) == [0, 1]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_other_crops_precision_and_jitter_run(tmp_path, koniq10k, capsys):
    flags = ["--test_crop", "grid", "--test_patch_num", 4, "--amp", "bf16", "--color_jitter"]
    out = start(koniq10k, tmp_path / "out", *flags, "--train_patch_num", 4, dataset="koniq-10k")
    config, epochs = records(out)
    assert config["precision"] == "bf16" and len(epochs) == 2
    console = capsys.readouterr().out
    assert "test grid, 4 an image" in console and "colour jitter on" in console
    assert re.search(r"trains on the CPU, about \d+ s for 2 epochs at [\d.]+ patches/s", console)


def test_a_last_batch_that_cannot_be_normalised_is_refused(tmp_path, koniq10k):
    with pytest.raises(train.RunError, match="--batch_size 11 leaves a last batch of 1 crops"):
        start(koniq10k, tmp_path, "--batch_size", 11, dataset="koniq-10k")


def test_two_runs_never_write_the_same_checkpoints(tmp_path, koniq10k):
    with (
        data.locked(tmp_path / ".resnet_improved_ss_noatt.lock"),
        pytest.raises(train.RunError, match="another run is writing"),
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

"""The flags of training: what they mean, and what is refused."""

import subprocess
import sys

import pytest

import experiment
from conftest import ROOT
from training.flags import parse_args


def test_the_three_documented_commands_train_under_the_same_settings():
    commands = [
        "--dataset koniq-10k --data_path ./koniq-10k --epochs 10 --lr 1e-4 --batch_size 32 "
        "--no_color_jitter --test_random_crop --save_model --run_name r",
        "--dataset koniq-10k --use_multiscale --epochs 10 --lr 1e-4 --save_model --run_name r",
        "--dataset koniq-10k --use_multiscale --use_attention --epochs 10 --lr 1e-4 --save_model "
        "--run_name r",
    ]
    settings = [vars(parse_args(command.split())) for command in commands]
    models = [(s.pop("use_multiscale"), s.pop("use_attention")) for s in settings]
    assert models == [(False, False), (True, False), (True, True)]
    assert settings[0] == settings[1] == settings[2]


def test_defaults_are_the_experiments():
    args = parse_args([])
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
        ("--backbone resnet18 --model hyperiqa", "--model hyperiqa has its own backbone"),
        ("--wide --use_multiscale", "give it without --use_multiscale"),
        ("--attention static", "give --use_attention as well"),
        ("--attention scaled --model smart_iqa_tiny", "are for --model resnet_improved"),
        ("--run_name a/b", "a name, not a path"),
        ("--dataset imagenet", "invalid choice"),
        ("--epoch 3", "unrecognized arguments"),
        ("--val_fraction 0.9", "--val_fraction: 0.9"),
    ],
)
def test_wrong_flags_get_one_sentence(capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        parse_args(flags.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("", "imagenet1k_v1"),
        ("--backbone_weights imagenet", "imagenet1k_v1"),
        ("--backbone_weights none", "none"),
        ("--backbone resnet18", "imagenet"),
        ("--backbone resnet18 --backbone_weights resnet34=a.pth", "imagenet"),
        ("--backbone resnet18 --backbone_weights resnet18=a=b.pth", "a=b.pth"),
        ("--backbone resnet18 --backbone_weights resnet18=a.pth --backbone_weights none", "a.pth"),
        ("--backbone_weights none --backbone_weights b.pth", "b.pth"),
    ],
)
def test_the_weights_are_those_of_the_backbone(given, wanted):
    assert parse_args(given.split()).backbone_weights == wanted


def test_center_takes_one_crop():
    assert parse_args(["--test_crop", "center"]).test_patch_num == 1


def test_help_names_every_flag_with_its_default_without_loading_torch():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import train_resnet_improved\n"
    code += (
        "try: train_resnet_improved.parse_args(['--help'])\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"
    for flag in ("--use_multiscale", "--test_crop", "--lr_ratio", "--amp", "--store_dir"):
        assert flag in done.stdout
    assert "(default: 25)" in done.stdout


def test_flags_that_are_no_configuration_are_refused(monkeypatch, capsys):
    assert parse_args(["--use_multiscale"]).use_multiscale
    others = {n: r for n, r in experiment.CONFIGURATIONS.items() if n != experiment.MULTISCALE}
    monkeypatch.setattr(experiment, "CONFIGURATIONS", others)
    with pytest.raises(SystemExit) as stop:
        parse_args(["--use_multiscale"])
    assert stop.value.code == 2
    assert "are no row of experiment.py's CONFIGURATIONS" in capsys.readouterr().err


def test_every_configuration_is_understood():
    for name, row in experiment.CONFIGURATIONS.items():
        args = parse_args(experiment.command_line(row, "resnet_improved"))
        assert experiment.configuration_name(vars(args)) == name

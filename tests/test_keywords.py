"""Training from Python: keyword arguments are the flags, checked in the same way."""

from pathlib import Path

import pytest

import train_resnet_improved as train
from conftest import SMALL
from errors import RunError
from training.flags import build_parser, parse_args
from training.keywords import PythonParser, flags_of


@pytest.mark.parametrize(
    "keywords, command",
    [
        ({}, ""),
        ({"use_multiscale": True, "wide": False, "lr": 1e-3}, "--use_multiscale --lr 1e-3"),
        (
            {"model": "smart_iqa_tiny", "use_attention": False},
            "--model smart_iqa_tiny --no-use_attention",
        ),
        ({"resize": (48, 40), "patch_size": 32}, "--resize 48 40 --patch_size 32"),
        (
            {"dataset": "csv", "csv": ["train=a.csv", "test=b.csv"]},
            "--dataset csv --csv train=a.csv test=b.csv",
        ),
        ({"dataset": "csv", "csv": "a.csv"}, "--dataset csv --csv a.csv"),
        ({"score_range": (-2.5, 115)}, "--score_range -2.5 115"),
        ({"data_path": Path("a b")}, "--data_path=a_b"),
        ({"resume": True}, "--resume"),
        ({"resume": "run_state.pth"}, "--resume run_state.pth"),
        ({"color_jitter": False, "no_color_jitter": True}, "--no_color_jitter"),
        (
            {"backbone_weights": ["none", "resnet18=a.pth"]},
            "--backbone_weights none --backbone_weights resnet18=a.pth",
        ),
        ({"preset": "smart_iqa", "workers": None}, "--preset smart_iqa"),
    ],
)
def test_keywords_are_the_flags(keywords, command):
    argv = [word.replace("a_b", "a b") for word in command.split()]
    assert vars(flags_of(keywords)) == vars(parse_args(argv))


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"epoch": 3}, "epoch: no such flag; docs/flags.md lists them"),
        ({"help": True}, "help: no such flag"),
        ({"epochs": 0}, "--epochs: 0 is not a whole number of at least 1"),
        ({"epochs": True}, "epochs=True: takes a value"),
        ({"lr": [1e-3, 1e-4]}, "takes one value"),
        ({"wide": "yes"}, "wide='yes': takes True or False"),
        ({"use_multiscale": 1}, "use_multiscale=1: takes True or False"),
        ({"use_attention": True}, "give --use_multiscale as well"),
        ({"dataset": "imagenet"}, "--dataset: invalid choice"),
        ({"init": "a.pth", "backbone_weights": "none"}, "leave --backbone_weights out"),
        ({"check": True}, "check: is for the command line"),
    ],
)
def test_wrong_keywords_are_one_sentence(keywords, message):
    with pytest.raises(RunError) as refusal:
        train.train(**keywords)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_every_flag_can_be_a_keyword():
    for action in build_parser(PythonParser)._actions:
        for option in action.option_strings:
            if option.startswith("--") and "-" not in option[2:]:  # not --no-use_multiscale
                assert option[2:].isidentifier(), option


def test_train_returns_record_and_network(koniq10k, tmp_path):
    small = {
        "backbone_weights": "none", "backbone": SMALL, "resize": (48, 40),
        "patch_size": 32, "batch_size": 4, "epochs": 1, "train_patch_num": 2,
        "test_patch_num": 3, "amp": "off", "device": "cpu",
    }  # fmt: skip
    record, network = train.train(
        data_path=koniq10k, store_dir=tmp_path / "store", log_dir=tmp_path, run_name="r", **small
    )
    assert record[0]["flags"]["resize"] == [48, 40] and record[1]["epoch"] == 1
    assert not network.training
    assert sum(p.numel() for p in network.parameters()) == record[0]["parameters"]
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 2

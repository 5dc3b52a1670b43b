"""Runs that start from a trained checkpoint (--init): fine-tuning."""

import json
import re

import pytest
import torch

import train_resnet_improved as train
from conftest import SMALL, TINY, make_biq2021, make_koniq10k
from errors import RunError
from evaluation import load_checkpoint, load_model
from training.flags import parse_args
from training.initial import load_initial

MODEL = ["--backbone", SMALL, "--use_multiscale"]  # a small network of timm's
NAME = f"{SMALL}_ms_noatt"
START = [*TINY[2:], *MODEL]  # without --backbone_weights


def flags(folder, out, *more) -> list[str]:
    where = ["--data_path", folder, "--store_dir", f"{folder}.store", "--run_name", "run"]
    where += ["--log_dir", out, "--checkpoint_dir", out, "--save_model"]
    return [*map(str, [*START, *where, *more])]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A checkpoint of a run on KonIQ-10k's layout."""
    base = tmp_path_factory.mktemp("pretrained")
    make_koniq10k(base)
    train.run(parse_args(flags(base, base / "out", "--backbone_weights", "none")))
    return base / "out" / f"{NAME}_last.pth"


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "biq2021").mkdir()
    return make_biq2021(tmp_path / "biq2021")


def tuned(photos, out, init, *more):
    more = ["--dataset", "biq2021", "--init", init, *more]
    return train.run(parse_args(flags(photos, out, *more)))


def last_bias(weights: dict) -> float:
    return float(weights["hyper_net.biases.bias"][-1])


def test_it_starts_from_all_weights_and_the_new_mean(pretrained, photos, tmp_path, capsys):
    """With a learning rate of 0 the weights stay where they start."""
    tuned(photos, tmp_path / "mean", pretrained, "--lr", 0)
    assert f"start       {pretrained} (SHA-256 " in capsys.readouterr().out
    old = load_checkpoint(pretrained)["model"]
    new = load_checkpoint(tmp_path / "mean" / f"{NAME}_last.pth")
    config, weights = new["config"], new["model"]
    learned = dict(load_model(pretrained, "cpu").named_parameters())
    for name in learned.keys() - {"hyper_net.biases.bias"}:
        assert torch.equal(old[name], weights[name]), name
    assert torch.equal(old["hyper_net.biases.bias"][:-1], weights["hyper_net.biases.bias"][:-1])
    assert config["flags"]["init_head"] == "mean"
    record = (tmp_path / "mean" / "run.jsonl").read_text().splitlines()
    assert json.loads(record[0]) == config
    train_mos = [i / 12 * 100 for i in range(12)]  # a tenth of them are for validation
    assert min(train_mos) < last_bias(weights) < max(train_mos)
    assert last_bias(weights) != last_bias(old)

    tuned(photos, tmp_path / "keep", pretrained, "--lr", 0, "--init_head", "keep")
    kept = load_checkpoint(tmp_path / "keep" / f"{NAME}_last.pth")["model"]
    assert last_bias(kept) == last_bias(old)


def test_the_head_starts_at_the_mean_of_hyperiqas_too(tmp_path):
    """Its head has a layer for each bias."""
    from evaluation import build_model
    from training.initial import Initial

    given = vars(parse_args(["--model", "hyperiqa", "--backbone_weights", "none"]))
    old, new = build_model(given, 20.0), build_model(given, 50.0)
    content = {"model": old.state_dict(), "config": {"model": "hyperiqa"}, "epochs": []}
    Initial(tmp_path, content, {}, None).put_into(new, head="mean", mean=70.0)
    assert new.hyper_net.biases[-1].bias.item() == 70.0
    assert torch.equal(new.hyper_net.matrices[0].weight, old.hyper_net.matrices[0].weight)


def test_the_record_says_what_it_started_from(pretrained, photos, tmp_path):
    (config, *_), _ = tuned(photos, tmp_path / "out", pretrained)
    init = config["init"]
    assert init["file"] == str(pretrained) and re.fullmatch("[0-9a-f]{64}", init["sha256"])
    assert init["epochs"] == 2 and init["config"]["flags"]["dataset"] == "koniq-10k"
    # A checkpoint that starts from this one knows both sets of images, and both runs.
    seen = load_checkpoint(pretrained)["trained_on"]
    both = load_checkpoint(tmp_path / "out" / f"{NAME}_last.pth")["trained_on"]
    assert len(both) == len(seen) + 12
    assert {*map(bytes, seen.numpy())} < {*map(bytes, both.numpy())}


def test_test_images_that_it_was_trained_on_are_refused(pretrained, tmp_path):
    folder = pretrained.parent.parent
    more = ["--split", "random", "--split_seed", 1, "--init", pretrained, "--run_name", "again"]
    with pytest.raises(RunError, match=r"trained or validated on 1 of the 2 test images \("):
        train.run(parse_args(flags(folder, tmp_path, *more)))
    assert not list(tmp_path.glob("again*"))
    train.run(parse_args(flags(folder, tmp_path / "same", "--init", pretrained, "--epochs", 1)))


def test_a_checkpoint_that_does_not_say_is_taken_with_a_note(pretrained, photos, tmp_path, capsys):
    content = torch.load(pretrained, weights_only=True)
    del content["trained_on"]
    torch.save(content, tmp_path / "old.pth")
    tuned(photos, tmp_path / "out", tmp_path / "old.pth", "--epochs", 1)
    assert "does not say which images it was trained on" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "out" / f"{NAME}_last.pth")["trained_on"] is None


@pytest.mark.parametrize(
    "more, message",
    [
        (["--use_attention"], f"a checkpoint of {NAME}, and these flags train .*_ms_att: give"),
        (["--backbone", "resnet18"], "and these flags train resnet18_ms_noatt"),
        (["--init", "nowhere.pth"], "nowhere.pth: no such file, and no name of a published"),
        (["--init", "."], r"\.: is a folder"),
    ],
)
def test_what_does_not_fit_is_one_sentence(pretrained, more, message):
    args = parse_args([*START, "--init", str(pretrained), *more])
    with pytest.raises(RunError, match=message) as refusal:
        load_initial(args)
    assert "\n" not in str(refusal.value)


def test_another_attention_is_another_network(tmp_path):
    more = [*START, "--use_attention", "--attention"]
    config = {"model": "resnet_improved_ms_att"}
    config["flags"] = vars(parse_args([*more, "published", "--backbone_weights", "none"]))
    torch.save({"model": {}, "config": config, "epochs": []}, tmp_path / "a.pth")
    args = parse_args([*more, "scaled", "--init", str(tmp_path / "a.pth")])
    with pytest.raises(RunError, match="with --attention published, and these flags train"):
        load_initial(args)


def test_flags_that_have_no_effect_are_refused(capsys):
    for given, message in (
        (["--init", "a.pth", "--backbone_weights", "none"], "leave --backbone_weights out"),
        (["--init_head", "keep"], "--init_head is for --init"),
    ):
        with pytest.raises(SystemExit):
            parse_args(given)
        assert message in capsys.readouterr().err


def test_a_run_from_a_checkpoint_is_resumed_from_the_same_one_only(pretrained, photos, tmp_path):
    out = tmp_path / "out"
    tuned(photos, out, pretrained)
    (moved := tmp_path / "moved.pth").write_bytes(pretrained.read_bytes())
    tuned(photos, out, moved, "--resume")  # the same content
    without = ["--dataset", "biq2021", "--backbone_weights", "none", "--resume"]
    with pytest.raises(RunError, match=r"of another run .*--init was [0-9a-f]{64}, is None"):
        train.run(parse_args(flags(photos, out, *without)))
    content = torch.load(pretrained, weights_only=True)
    torch.save(content | {"more": 1}, moved)
    with pytest.raises(RunError, match=r"--init was [0-9a-f]{64}, is [0-9a-f]{64}"):
        tuned(photos, out, moved, "--resume")

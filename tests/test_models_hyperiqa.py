"""HyperIQA and SMART-IQA: their counts, their contract, and HyperIQA's published checkpoint."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import models_hyperiqa as hyper
import predict_resnet_improved as predict
import train_resnet_improved as train
from conftest import ROOT, TINY, photo
from errors import WeightsError
from evaluation import build_model, load_model
from experiment import configuration_name
from models_hyperiqa import PARAMETERS, HyperIQA, SmartIQA, SwinBackbone, build_neighbour
from training.flags import parse_args
from training.learner import build_optimizer


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_counts_are_the_published_ones(name):
    with torch.device("meta"):
        model = build_neighbour(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    backbone, new = model.parameter_groups()
    untrained = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert untrained == (
        [] if name == "hyperiqa" else ["backbone.norm.weight", "backbone.norm.bias"]
    )
    assert len(backbone) + len(new) + len(untrained) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["hyperiqa", "smart_iqa_tiny"])
def test_a_score_depends_on_its_image_alone_and_every_parameter_learns(name):
    torch.manual_seed(0)
    model = build_neighbour(name, initial_score=60.0).eval()
    images = torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        together, weights = model(images)
        alone = torch.cat([model(image[None])[0] for image in images])
    assert torch.allclose(together, alone, rtol=1e-5) and together.shape == (3,)
    assert abs(together.mean() - 60) < 5
    assert (weights is None) == (name == "hyperiqa")
    scores, _ = model(images)
    (scores - 50).abs().mean().backward()
    lacking = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []


def test_smart_iqas_three_rows():
    counts = []
    for flags in ((False, False), (True, False), (True, True)):
        with torch.device("meta"):
            model = SmartIQA(size="tiny", use_multiscale=flags[0], use_attention=flags[1])
        counts.append(sum(p.numel() for p in model.parameters()))
    fusion, attention = (1440 - 768) * 512, 768 * 256 + 256 + 256 * 4 + 4
    full = PARAMETERS["smart_iqa_tiny"]
    assert counts == [full - attention - fusion, full - attention, full]
    with pytest.raises(ValueError, match="needs use_multiscale"):
        SmartIQA(size="tiny", use_multiscale=False)


def test_both_layers_of_the_attention_start_as_published():
    torch.manual_seed(0)
    weigh = SmartIQA(size="tiny").attention.weigh
    for layer in (weigh[0], weigh[3]):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1) and not layer.bias.any()


@pytest.mark.parametrize("name", ["hyperiqa", "smart_iqa_tiny"])
def test_the_new_layers_start_by_the_rule_of_hyperiqas_code(name):
    torch.manual_seed(0)
    model = build_neighbour(name, initial_score=61.5)
    new = [*model.local_distortion.modules(), *model.hyper_net.modules()]
    layers = [m for m in new if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 17
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(
            (2 / layer.weight[0].numel()) ** 0.5, rel=0.25
        )
    assert model.hyper_net.biases[-1].bias.item() == 61.5


def test_drop_path_rises_to_its_rate():
    with torch.device("meta"):
        model = SmartIQA(size="tiny", drop_path_rate=0.3)
    drops = [m for m in model.modules() if type(m).__name__ == "DropPath"]
    rates = [drop.drop_prob for drop in drops]  # two in each block; the first block has none
    assert len(rates) == 22 and rates[0] > 0 and rates[-1] == pytest.approx(0.3)
    assert rates == sorted(rates)


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="takes 224 x 224"):
        HyperIQA()(torch.zeros(1, 3, 256, 256))


# HyperIQA's published checkpoint, of random numbers in its layout


def published_layout() -> dict[str, torch.Tensor]:
    """A state dict with the names and shapes of koniq_pretrained.pkl, every tensor random."""
    generator = torch.Generator().manual_seed(1)

    def near(*shape, scale=None):
        fan = torch.tensor(shape[1:]).prod().item() if len(shape) > 1 else 1
        return torch.randn(shape, generator=generator) * (scale or fan**-0.5)

    trunk = torchvision.models.resnet50(weights=None)
    state = {f"res.{k}": v.clone() for k, v in trunk.state_dict().items() if "fc." not in k}
    for key, tensor in state.items():
        if key.endswith("running_mean"):
            tensor.normal_(0, 0.1, generator=generator)
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
    for i, (c, width, side) in enumerate(((256, 16, 8), (512, 32, 4), (1024, 64, 2)), 1):
        state[f"res.lda{i}_pool.0.weight"] = near(width, c, 1, 1)
        state[f"res.lda{i}_fc.weight"] = near(16, width * side * side)
        state[f"res.lda{i}_fc.bias"] = near(16, scale=0.1)
    state["res.lda4_fc.weight"], state["res.lda4_fc.bias"] = near(176, 2048), near(176, scale=0.1)
    for i, (a, b) in zip((0, 2, 4), ((2048, 1024), (1024, 512), (512, 112))):
        state[f"conv1.{i}.weight"] = near(b, a, 1, 1)
        state[f"conv1.{i}.bias"] = near(b, scale=0.1)
    for i, maps in enumerate((512, 128, 32, 8), 1):
        state[f"fc{i}w_conv.weight"] = near(maps, 112, 3, 3)
        state[f"fc{i}w_conv.bias"] = near(maps, scale=0.1)
    for i, out in enumerate((112, 56, 28, 14, 1), 1):
        state[f"fc{i}b_fc.weight"] = near(out, 112)
        state[f"fc{i}b_fc.bias"] = near(out, scale=0.1)
    state["fc5w_fc.weight"], state["fc5w_fc.bias"] = near(14, 112), near(14, scale=5.0)
    return state


@torch.no_grad()
def as_the_paper_says(state: dict, image: torch.Tensor) -> float:
    """HyperIQA's score of one image, step by step from the description, with plain products."""
    trunk = torchvision.models.resnet50(weights=None).eval()
    own = {k.removeprefix("res."): v for k, v in state.items() if k.startswith("res.")}
    trunk.load_state_dict({k: v for k, v in own.items() if not k.startswith("lda")}, strict=False)
    x, local = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(image[None])))), []
    for i, layer in enumerate((trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4), 1):
        x = layer(x)
        maps = F.conv2d(x, own[f"lda{i}_pool.0.weight"]) if i < 4 else x
        pooled = nn.AvgPool2d(7, stride=7)(maps).reshape(-1)
        local.append(own[f"lda{i}_fc.weight"] @ pooled + own[f"lda{i}_fc.bias"])
    vector = torch.cat(local)
    for i in (0, 2, 4):
        x = torch.relu(F.conv2d(x, state[f"conv1.{i}.weight"], state[f"conv1.{i}.bias"]))
    average = x[0].mean((1, 2))
    for i, (rows, columns) in enumerate(((112, 224), (56, 112), (28, 56), (14, 28)), 1):
        kernel, bias = state[f"fc{i}w_conv.weight"], state[f"fc{i}w_conv.bias"]
        matrix = F.conv2d(x, kernel, bias, padding=1).reshape(rows, columns)
        offset = state[f"fc{i}b_fc.weight"] @ average + state[f"fc{i}b_fc.bias"]
        vector = torch.sigmoid(matrix @ vector + offset)
    last = state["fc5w_fc.weight"] @ average + state["fc5w_fc.bias"]
    return (last @ vector + state["fc5b_fc.weight"] @ average + state["fc5b_fc.bias"]).item()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file as the published one: (path, state)."""
    path = tmp_path_factory.mktemp("published") / "koniq_pretrained.pkl"
    state = published_layout()
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path, state


def test_the_published_checkpoint_scores_as_the_paper_says(published):
    path, state = published
    model = hyper.load_hyperiqa(path)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        scores, _ = model(images)
    wanted = [as_the_paper_says(state, image) for image in images]
    assert abs(wanted[0] - wanted[1]) > 1e-3  # it looks at the image
    assert scores.tolist() == pytest.approx(wanted, abs=1e-5, rel=1e-6)


def test_prediction_takes_the_published_checkpoint(published, tmp_path, capsys):
    photo(tmp_path / "a.png", 90, (512, 384))
    arguments = ["--checkpoint", published[0], "--model", "hyperiqa", tmp_path / "a.png"]
    sys.argv = ["predict", *map(str, arguments), "--test_patch_num", "4", "--amp", "off"]
    assert predict.main() == 0
    path, score = capsys.readouterr().out.split()
    assert path == str(tmp_path / "a.png") and abs(float(score)) < 1000


def test_it_is_not_tested_on_the_data_set_it_was_trained_on(published, koniq10k, capsys):
    # on which images of it is not known
    arguments = ["--checkpoint", published[0], "--model", "hyperiqa"]
    sys.argv = ["predict", *map(str, arguments), "--test_on", f"koniq-10k={koniq10k}"]
    assert predict.main() == 1
    assert "it is not known which" in capsys.readouterr().err


def test_other_files_are_not_taken_for_it(published, tmp_path):
    path = tmp_path / "other.pkl"
    state = dict(published[1])
    del state["fc5w_fc.bias"]
    torch.save(state | {"more": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match=r"1 tensors missing.*1 unknown \(more\)"):
        hyper.load_hyperiqa(path)
    torch.save(published[1] | {"res.lda1_fc.bias": "text"}, path)
    with pytest.raises(WeightsError, match=r"1 tensors missing.*local_distortion\.read\.0\.bias"):
        hyper.load_hyperiqa(path)
    torch.save({"state_dict": {f"module.{k}": v for k, v in published[1].items()}}, path)
    hyper.load_hyperiqa(path)  # the published weights, as a training script saves them
    with pytest.raises(WeightsError, match=r"nowhere\.pkl: no such file$"):
        hyper.load_hyperiqa(tmp_path / "nowhere.pkl")
    path.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="load safely"):
        hyper.load_hyperiqa(path)


# Training them


def test_presets_are_defaults_that_flags_override():
    args = parse_args(["--preset", "hyperiqa_paper", "--epochs", "2"])
    assert (args.model, args.optimizer, args.lr, args.batch_size, args.epochs) == (
        "hyperiqa", "adam", 2e-5, 96, 2,
    )  # fmt: skip
    args = parse_args(["--preset", "smart_iqa", "--model", "smart_iqa_tiny"])
    assert configuration_name(vars(args)) == "smart_iqa_tiny_ms_att" and args.train_patch_num == 20
    args = parse_args(["--model", "smart_iqa_tiny", "--no-use_multiscale"])
    assert configuration_name(vars(args)) == "smart_iqa_tiny_ss_noatt"
    args = parse_args(["--model", "smart_iqa_tiny", "--no-use_attention"])
    assert configuration_name(vars(args)) == "smart_iqa_tiny_ms_noatt"
    assert configuration_name(vars(parse_args(["--model", "hyperiqa"]))) == "hyperiqa"


@pytest.mark.parametrize(
    "flags, rate",
    [
        ("--model resnet_improved", 0.3),
        ("--model smart_iqa_base", 0.4),
        ("--preset smart_iqa", 0.4),
        ("--preset smart_iqa --dropout_rate 0.1", 0.1),
        ("--model hyperiqa", 0.0),
    ],
)
def test_each_model_has_its_own_dropout(flags, rate):
    assert parse_args(flags.split()).dropout_rate == rate


def test_the_papers_recipe_splits_by_the_seed_and_clips_nothing():
    args = parse_args(["--preset", "hyperiqa_paper", "--seed", "7"])
    assert (args.split, args.split_seed, args.gradient_clip) == ("random", 7, 0)
    args = parse_args(["--preset", "hyperiqa_paper", "--split_seed", "3"])
    assert args.split_seed == 3
    assert parse_args(["--seed", "7"]).split_seed == 0


def test_the_step_schedule_divides_by_ten_every_six_epochs():
    args = parse_args(["--preset", "hyperiqa_paper"])
    model = nn.Linear(1, 1)
    model.parameter_groups = lambda: ([model.weight], [model.bias])
    optimizer, scheduler = build_optimizer(args, model, 16 * 5)
    rates = []
    for _ in range(16 * 5):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    by_epoch = rates[::5]
    assert type(optimizer) is torch.optim.Adam
    assert [r[0] for r in by_epoch] == pytest.approx([2e-5] * 6 + [2e-6] * 6 + [2e-7] * 4)
    assert all(new == pytest.approx(10 * old) for old, new in by_epoch)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model", "hyperiqa", "--use_multiscale"], "hyperiqa has no fusion"),
        (["--model", "hyperiqa", "--patch_size", "64"], "needs --patch_size 224"),
        (["--model", "hyperiqa", "--dropout_rate", "0.3"], "hyperiqa has no dropout"),
    ],
)
def test_what_a_model_has_not_is_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        parse_args(flags)
    assert message in capsys.readouterr().err


def test_swin_weights_that_cannot_be_read_are_named(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("timm.models.load_state_dict_from_hf", offline)
    with pytest.raises(WeightsError, match="of timm/swin_tiny_patch4_window7_224"):
        SmartIQA(size="tiny", backbone_weights="imagenet")
    assert parse_args(["--model", "smart_iqa_tiny"]).backbone_weights == "imagenet"


@pytest.fixture(scope="module")
def torchvisions_swin():
    torch.manual_seed(5)
    return torchvision.models.swin_t(weights=None).eval()


def test_torchvisions_swin_weights_give_the_maps_of_torchvisions_swin(tmp_path, torchvisions_swin):
    torch.save(torchvisions_swin.state_dict(), tmp_path / "swin_t.pth")
    model = SmartIQA(size="tiny", backbone_weights=tmp_path / "swin_t.pth").eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        maps, x = model.backbone(images), images
        for index, layer in enumerate(torchvisions_swin.features):
            x = layer(x)
            if index % 2:
                torch.testing.assert_close(maps[index // 2], x.permute(0, 3, 1, 2))


def test_a_checkpoint_with_torchvisions_swin_is_still_used(tmp_path, torchvisions_swin):
    """Before timm's Swin, its layers had torchvision's names, by stage."""
    args = parse_args(["--model", "smart_iqa_tiny", "--backbone_weights", "none"])
    model = build_model(vars(args), 50.0).eval()
    old = {k: v for k, v in model.state_dict().items() if not k.startswith("backbone.")}
    for key, tensor in torchvisions_swin.state_dict().items():
        if key.startswith("features."):
            part = int(key.split(".")[1])
            key = key.replace(f"features.{part}.", f"stage{part // 2 + 1}.{part % 2}.", 1)
        if not key.startswith("head."):
            old[f"backbone.{key}"] = tensor
    config = {"flags": vars(args), "model": "smart_iqa_tiny_ms_att", "started": "then"}
    torch.save({"model": old, "config": config, "epochs": []}, tmp_path / "old.pth")
    torch.save(torchvisions_swin.state_dict(), tmp_path / "swin_t.pth")
    loaded = load_model(tmp_path / "old.pth", "cpu")
    wanted = SwinBackbone("tiny", tmp_path / "swin_t.pth", drop_path_rate=0.3).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for a, b in zip(loaded.backbone(images), wanted(images)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for name, tensor in loaded.state_dict().items():
        if not name.startswith("backbone."):
            assert torch.equal(tensor, old[name]), name


@pytest.mark.parametrize(
    "model", ["hyperiqa", pytest.param("smart_iqa_tiny", marks=pytest.mark.slow)]
)
def test_they_train_and_predict_through_the_same_harness(koniq10k, tmp_path, model, capsys):
    flags = ["--data_path", koniq10k, "--store_dir", tmp_path / "store", "--log_dir", tmp_path]
    flags += ["--checkpoint_dir", tmp_path, "--run_name", "run", "--save_model", "--model", model]
    flags += ["--patch_size", 224, "--resize", 224, 224, "--epochs", 1, "--train_patch_num", 1]
    train.run(parse_args([*TINY, *map(str, flags), "--test_patch_num", "1"]))
    assert "Last Test SRCC" in capsys.readouterr().out
    (checkpoint,) = tmp_path.glob("*_last.pth")
    scorer = predict.load_model(checkpoint, "cpu")
    table = predict.score_images(scorer, sorted((koniq10k / "1024x768").iterdir())[:2], amp="off")
    assert table["score"].notna().all()


@pytest.mark.slow
def test_the_smoke_test_passes():
    script = ROOT / "models_hyperiqa.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0 and "all four models are as designed" in done.stdout
    assert "89,113,989 (89.11 M)" in done.stdout

"""Recipes: losses, frozen BatchNorms, averaged weights, warm-up, and tests on whole images."""

import copy
import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

import data_loader as data
import train_resnet_improved as train
from conftest import SMALL
from datasets.pixel_store import DeviceStore, PixelStore
from errors import RunError
from evaluation import load_model
from experiment import PRESETS
from folding import foldable
from models_hyperiqa import HyperIQA
from models_resnet_improved import ResNetImproved
from test_train_resnet_improved import records, start
from train_resnet_improved import straight_line
from training.flags import parse_args
from training.frozen import FrozenNorms, first_stages, freeze
from training.learner import Average, build_optimizer
from training.losses import LOSSES, loss_function, needs_scale
from training.processes import check_batches

SCORES = torch.tensor([30.0, 55.0, 41.0, 70.0, 52.0], dtype=torch.float64)
LABELS = torch.tensor([35.0, 50.0, 44.0, 80.0, 66.0], dtype=torch.float64)
UNTRAINED = ["--backbone", SMALL, "--amp", "off", "--backbone_weights", "none"]


# Losses -----------------------------------------------------------------------------------------


def test_norm_in_norm_is_that_of_a_hand_computed_case():
    scores = torch.tensor([0.0, 2.0, 0.0, 2.0])  # centred and of norm 1: (-1, 1, -1, 1) / 2
    labels = torch.tensor([10.0, 10.0, 30.0, 30.0])  # (-1, -1, 1, 1) / 2
    # Differences 0, 1, -1, 0; the largest value of their sum is 2 sqrt(4).
    assert loss_function("nin")(scores, labels) == pytest.approx(2 / (2 * math.sqrt(4)))
    assert loss_function("nin")(-labels, labels) == pytest.approx(1.0)
    assert loss_function("plcc")(scores, labels) == pytest.approx(0.5)


def test_each_loss_is_what_its_name_says():
    errors = SCORES - LABELS
    nin = loss_function("nin")(SCORES, LABELS)
    wanted = {"l1": errors.abs().mean(), "mse": errors.square().mean()}
    wanted |= {"l1+nin": wanted["l1"] / 10 + nin, "mse+nin": wanted["mse"] / 100 + nin}
    wanted["plcc"] = (1 - np.corrcoef(SCORES, LABELS)[0, 1]) / 2
    for name, value in wanted.items():
        assert loss_function(name)(SCORES, LABELS).item() == pytest.approx(float(value)), name


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_a_loss_are_right_and_scale_is_open_where_said(name):
    loss = loss_function(name)
    scores = SCORES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, LABELS), scores)
    same = torch.isclose(loss(3 * SCORES + 7, LABELS), loss(SCORES, LABELS))
    assert bool(same) == needs_scale(name)
    equal = torch.full((4,), 50.0, requires_grad=True)  # as of a network without any weights
    loss(equal, LABELS[:4].float()).backward()
    assert equal.grad.isfinite().all()


def test_a_batch_of_one_crop_can_not_be_compared():
    sizes = {"batch_size": 8, "patch_size": 224, "processes": 1}
    check_batches(**sizes, crops=25)
    with pytest.raises(RunError, match="leaves a last batch of one crop, and this --loss compares"):
        check_batches(**sizes, crops=25, compares=True)


def test_a_scale_is_not_looked_for_in_scores_that_are_not_finite(tmp_path, biq2021, monkeypatch):
    monkeypatch.setattr(train, "evaluate_plan", lambda *_: (np.full(8, np.nan), None))
    with pytest.raises(RunError, match="the loss is not finite any more; try a lower --lr"):
        start(biq2021, tmp_path / "out", *UNTRAINED, "--loss", "nin")


@pytest.mark.parametrize("name", ["nin", "plcc", "l1+nin"])
def test_scores_are_mos_whatever_the_loss_leaves_open(tmp_path, biq2021, name):
    flags = ["--loss", name, "--epochs", 6, "--train_patch_num", 4, "--lr", 1e-3, "--lr_ratio", 1]
    flags += ["--batch_size", 6, *UNTRAINED, "--save_model", "--dropout_rate", 0]
    out = start(biq2021, tmp_path / "out", *flags)
    config, epochs = records(out)
    assert 0 <= epochs[-1]["loss"] <= 1.5
    assert epochs[-1]["l1"] < 20  # one score for all images would be wrong by 25
    assert epochs[-1]["train_srcc"] > 0.8  # the labels follow the brightness of the photographs
    assert ("slope" in epochs[-1]) == needs_scale(name)
    assert config["flags"]["loss"] == name

    predictions = pd.read_csv(out / "run_predictions.csv")
    last = predictions[(predictions["epoch"] == 6) & (predictions["split"] == "test")]
    assert last["score"].between(-15, 115).all()
    assert np.sqrt(((last["score"] - last["mos"]) ** 2).mean()) < 15
    # The line is in the weights: nothing else has to know of it.
    table = scored(out / f"{SMALL}_ss_noatt_last.pth", biq2021, last)
    np.testing.assert_allclose(table, last["score"], atol=2e-4)
    state = scored(out / "run_state.pth", biq2021, last)
    np.testing.assert_allclose(state, last["score"], atol=2e-4)


def scored(checkpoint, folder, predictions) -> np.ndarray:
    """Scores of the predictions' images by a checkpoint, on the crops of its training."""
    from cross_dataset import test_on

    store = checkpoint.parent / "store"
    model = load_model(checkpoint, "cpu")
    tested = test_on(model, folder.name, str(folder), store_dir=str(store), amp="off")
    assert list(tested["image"]) == list(predictions["image"])
    return tested["score"].to_numpy()


def test_the_line_through_scores_that_say_nothing_is_level():
    assert straight_line(np.array([1.0, 2, 3]), np.array([10.0, 30, 50])) == pytest.approx(
        (20, -10)
    )
    assert straight_line(np.full(3, 7.0), np.array([10.0, 30, 50])) == (1.0, 23.0)


@pytest.mark.parametrize("build", [HyperIQA, lambda: ResNetImproved(**PLAIN)])
def test_a_line_goes_into_the_last_layer(build):
    torch.manual_seed(0)
    model, images = build().eval(), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        before, _ = model(images)
        model.hyper_net.map_scores(0.5, 20.0)
        after, _ = model(images)
    torch.testing.assert_close(after, 0.5 * before + 20)


# BatchNorm --------------------------------------------------------------------------------------

PLAIN = {"use_multiscale": False, "use_attention": False}
FULL = {"use_multiscale": True, "use_attention": True, "dropout_rate": 0.0}


def with_used_norms(backbone: str) -> ResNetImproved:
    """A network whose BatchNorms have statistics and weights as after a training."""
    torch.manual_seed(0)
    model = ResNetImproved(**FULL, backbone=backbone)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    return model


@pytest.mark.parametrize("backbone", ["resnet50", SMALL, "tf_efficientnet_lite0"])
def test_frozen_norms_give_scores_and_gradients_of_eval_mode(backbone):
    model = with_used_norms(backbone)
    other, names = copy.deepcopy(model), list(model.state_dict())
    network = FrozenNorms(model, freeze(model, norms=True, stages=0)).train()
    other.train().backbone.eval()
    images = torch.randn(4, 3, 96, 96)
    scores, wanted = network(images)[0], other(images)[0]
    torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-3)
    assert len(network.taken_in) == len(foldable(other.eval())) - 3  # all but the fusion's own

    scores.sum().backward(), wanted.sum().backward()
    compared = 0
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters()):
        if ours.requires_grad and theirs.grad.norm() > 1e-5:
            off = (ours.grad - theirs.grad).norm() / theirs.grad.norm()
            assert off < 2e-3, name
            compared += 1
    assert compared > 30
    assert list(model.state_dict()) == names
    for name, buffer in model.named_buffers():  # the fusion's own learn as ever
        same = torch.allclose(buffer, dict(other.named_buffers())[name], rtol=1e-3, atol=1e-4)
        assert same, name


def test_frozen_norms_stay_as_they_came(tmp_path, biq2021):
    flags = [*UNTRAINED, "--use_multiscale", "--save_model", "--lr", 1e-3, "--train_patch_num", 4]
    out = start(biq2021, tmp_path / "frozen", *flags, "--freeze_bn")
    trained = load_model(out / f"{SMALL}_ms_noatt_last.pth", "cpu")
    torch.manual_seed(42)
    fresh = ResNetImproved(use_multiscale=True, use_attention=False, backbone=SMALL)
    frozen, moved = [], []
    for name, tensor in fresh.state_dict().items():
        is_norm = isinstance(fresh.get_submodule(name.rpartition(".")[0]), torch.nn.BatchNorm2d)
        same = torch.equal(tensor, trained.state_dict()[name])
        (frozen if is_norm and name.startswith("backbone.") else moved).append(same)
    assert all(frozen) and len(frozen) > 20 and sum(moved) < 0.1 * len(moved)
    config, epochs = records(out)
    assert config["parameters"] == sum(p.numel() for p in fresh.parameters())
    assert epochs[-1]["test_srcc"] is not None


def test_a_backbone_without_batch_norm_has_nothing_to_freeze():
    model = ResNetImproved(**PLAIN, backbone="test_convnext")
    with pytest.raises(RunError, match="--freeze_bn: this backbone has no BatchNorm"):
        freeze(model, norms=True, stages=0)
    assert freeze(model, norms=False, stages=1) == []


def test_frozen_norms_are_compiled_as_one_graph():
    model = with_used_norms(SMALL)
    network = FrozenNorms(model, freeze(model, norms=True, stages=1)).train()
    images = torch.randn(4, 3, 64, 64)
    wanted = network(images)[0]
    network.compile(backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(network(images)[0], wanted, rtol=1e-4, atol=1e-3)


def test_a_batch_norm_without_weights_is_frozen_as_well():
    model = ResNetImproved(**PLAIN, backbone=SMALL)
    name, norm = next((n, m) for n, m in model.backbone.named_modules() if "bn1" in n)
    bare = torch.nn.BatchNorm2d(norm.num_features, affine=False)
    model.backbone.set_submodule(name, bare)
    norms = freeze(model, norms=True, stages=0)
    assert bare in norms
    other, network = copy.deepcopy(model).eval(), FrozenNorms(model, norms).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network(images)[0], other(images)[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("backbone", ["resnet50", SMALL])
def test_the_first_stages_are_what_the_first_maps_depend_on(backbone):
    model = ResNetImproved(**PLAIN, backbone=backbone).backbone
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = {p: name for name, p in model.named_parameters()}
    frozen = [{names[p] for p in first_stages(model, count)} for count in range(5)]
    assert frozen[0] == set() and frozen[4] == set(names.values())
    assert all(fewer < more for fewer, more in pairwise(frozen))
    if backbone == "resnet50":
        assert {name.split(".")[0] for name in frozen[2]} == {"stem", "stage1", "stage2"}
        assert {name.split(".")[0] for name in frozen[3] - frozen[2]} == {"stage3"}
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("backbone", ["resnet50", SMALL])
def test_frozen_stages_give_the_gradients_of_the_others_in_training(backbone):
    model = with_used_norms(backbone)
    other = copy.deepcopy(model)
    norms = freeze(model, norms=False, stages=2)
    assert 0 < len(norms) < sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    network = FrozenNorms(model, norms).train()
    names = {module: name for name, module in model.named_modules()}
    other.train()
    for norm in norms:
        other.get_submodule(names[norm]).eval()
    images = torch.randn(4, 3, 96, 96)
    torch.manual_seed(0)
    scores = network(images)[0]
    torch.manual_seed(0)
    wanted = other(images)[0]
    torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-3)
    scores.sum().backward(), wanted.sum().backward()
    compared = 0
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters()):
        if ours.requires_grad and theirs.grad.norm() > 1e-3:
            off = (ours.grad - theirs.grad).norm() / theirs.grad.norm()
            assert off < 0.03, name  # BatchNorm of a small batch magnifies rounding
            compared += 1
    assert compared > 30
    for (name, buffer), theirs in zip(model.named_buffers(), other.buffers()):
        torch.testing.assert_close(buffer, theirs, rtol=1e-3, atol=1e-4, msg=name)


def test_first_stages_stay_as_they_came(tmp_path, biq2021, capfd):
    flags = [*UNTRAINED, "--save_model", "--lr", 1e-3, "--train_patch_num", 4, "--ema", 0.5]
    out = start(biq2021, tmp_path / "frozen", *flags, "--freeze_stages", 2)
    trained = load_model(out / f"{SMALL}_ss_noatt_last.pth", "cpu").backbone
    torch.manual_seed(42)
    fresh = ResNetImproved(**PLAIN, backbone=SMALL).backbone
    frozen = first_stages(fresh, 2)
    modules = {n.rpartition(".")[0] for n, p in fresh.named_parameters() if p in frozen}
    for name, tensor in fresh.state_dict().items():
        same = torch.equal(tensor, trained.state_dict()[name])
        counter = name.endswith("num_batches_tracked")
        assert same == (name.rpartition(".")[0] in modules) or counter, name
    assert "frozen first stages: 2" in capfd.readouterr().out


# Averages and rates -----------------------------------------------------------------------------


def test_an_average_keeps_its_share_of_itself():
    model = ResNetImproved(**PLAIN, backbone=SMALL)
    average = Average(model, 0.75)
    before = [p.clone() for p in average.model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(4.0)
    average.update(1000)
    for old, new in zip(before, average.model.parameters()):
        torch.testing.assert_close(new, old + 1)


def test_an_average_soon_forgets_what_was_there_before_training():
    model = ResNetImproved(**PLAIN, backbone=SMALL)
    average = Average(model, 0.97)
    variances = [b for n, b in average.model.named_buffers() if n.endswith("running_var")]
    for variance in variances:
        variance.fill_(1000.0)
    for step in range(1, 51):
        average.update(step)
    own = [b for n, b in model.named_buffers() if n.endswith("running_var")]
    assert own
    torch.testing.assert_close(variances, own)


def test_the_average_is_evaluated_and_saved(tmp_path, biq2021, monkeypatch):
    flags = [*UNTRAINED, "--save_model", "--lr", 1e-3, "--train_patch_num", 4, "--ema", 0.9]
    update, counts = Average.update, []

    def counted(self, steps):
        counts.append(steps)
        update(self, steps)

    monkeypatch.setattr(Average, "update", counted)
    out = start(biq2021, tmp_path / "out", *flags)
    assert counts == [*range(1, 23)]  # of both epochs
    saved = torch.load(out / f"{SMALL}_ss_noatt_last.pth", weights_only=True)
    state = torch.load(out / "run_state.pth", weights_only=True)
    names = list(dict(ResNetImproved(**PLAIN, backbone=SMALL).named_parameters()))
    assert all(torch.equal(saved["model"][n], state["average"][n]) for n in names)
    assert not any(torch.equal(saved["model"][n], state["model"][n]) for n in names)
    last = pd.read_csv(out / "run_predictions.csv").query("epoch == 2 and split == 'test'")
    again = scored(out / f"{SMALL}_ss_noatt_last.pth", biq2021, last)
    np.testing.assert_allclose(again, last["score"], atol=2e-4)


def rates(*flags) -> list[float]:
    """The backbone's rate at each of 10 steps of 5 epochs, over --lr."""
    args = parse_args(["--epochs", "5", *flags])
    model = ResNetImproved(**PLAIN, backbone=SMALL)
    optimizer, scheduler = build_optimizer(args, model, 10)
    found = []
    for _ in range(10):
        found.append(optimizer.param_groups[0]["lr"] / args.lr)
        optimizer.step(), scheduler.step()
    return found


def test_rates_warm_up_before_their_course_begins():
    assert rates("--schedule", "constant") == pytest.approx([1.0] * 10)  # rates are of float32
    rising = rates("--schedule", "constant", "--warmup_epochs", "1.5")
    assert rising == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 7])
    cosine = rates("--warmup_epochs", "1")
    assert cosine[:3] == pytest.approx([1 / 3, 2 / 3, 1.0]) and cosine[-1] < 0.1
    assert cosine[2:] == sorted(cosine[2:], reverse=True)
    latest = rates("--warmup_epochs", "4.99")  # hardly anything is left for the cosine
    assert latest == sorted(latest) and latest[-1] == pytest.approx(1.0)


# Whole images -----------------------------------------------------------------------------------


def test_a_full_image_is_one_crop_and_its_mirror_another(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 48, 40, 3), np.uint8)
    (tmp_path / "pixels.u8").write_bytes(pixels.tobytes())
    store = PixelStore(tmp_path / "pixels.u8", pixels.shape)
    plan = data.test_plan(
        np.arange(3), crop="full", per_image=1, resize=(48, 40), patch_size=32, flip=True
    )
    assert plan.tolist() == [[i, 0, 0, flip] for i in range(3) for flip in (0, 1)]
    for kept in (store, DeviceStore(store, "cpu")):
        batch = data.Batches(kept, np.arange(3), plan, size=(48, 40), batch_size=6)[0]
        assert (batch["crops"][::2].permute(0, 2, 3, 1).numpy() == pixels).all()
        images = data.to_network_input(batch, torch.device("cpu"))
        assert torch.equal(images[1], images[0].flip(2))


def test_whole_images_are_scored_by_the_network_alone(tmp_path, biq2021):
    flags = [*UNTRAINED, "--save_model", "--test_crop", "full", "--test_flip", "--lr", 1e-3]
    out = start(biq2021, tmp_path / "out", *flags)
    last = pd.read_csv(out / "run_predictions.csv").query("epoch == 2 and split == 'test'")
    checkpoint = out / f"{SMALL}_ss_noatt_last.pth"
    np.testing.assert_allclose(scored(checkpoint, biq2021, last), last["score"], atol=2e-4)
    card = (out / f"{SMALL}_ss_noatt_last_model_card.md").read_text()
    crops = "the whole image, resized to 48 x 40 (H x W), each with its mirror image"
    assert f"for the figures above: {crops}." in card
    from datasets.images import decode

    model, wanted = load_model(checkpoint, "cpu"), []
    for name in last["image"]:
        image = torch.tensor(decode(biq2021 / name, 48, 40)).permute(2, 0, 1)[None]
        batch = {"crops": image.repeat(2, 1, 1, 1), "flips": torch.tensor([False, True])}
        with torch.no_grad():
            scores, _ = model(data.to_network_input(batch, torch.device("cpu")))
        wanted.append(scores.mean().item())
    np.testing.assert_allclose(last["score"], wanted, atol=2e-4)


def test_a_network_of_one_size_takes_no_whole_images(tmp_path, biq2021, capsys):
    with pytest.raises(SystemExit):
        parse_args(["--test_crop", "full", "--model", "hyperiqa"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert "--test_crop full: --model hyperiqa takes images of 224 x 224 only" in said
    swin = ["--backbone", "swin_tiny_patch4_window7_224", "--patch_size", 224]
    swin += ["--resize", 256, 256, "--test_crop", "full"]
    with pytest.raises(RunError, match="takes images of 224 x 224 only, and they are resized to"):
        start(biq2021, tmp_path / "out", *swin)


@pytest.mark.parametrize("preset", ["topiq", "strong"])
def test_a_preset_is_a_set_of_defaults(preset):
    args = parse_args(["--preset", preset, "--epochs", "3"])
    wanted = PRESETS[preset] | {"epochs": 3}
    assert {name: getattr(args, name) for name in wanted} == wanted and args.test_patch_num == 1
    assert not parse_args(["--preset", preset, "--no-freeze_bn"]).freeze_bn

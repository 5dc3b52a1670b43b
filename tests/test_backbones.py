"""Where the four stages come from: any backbone of timm, its weights, its normalisation."""

import copy
import subprocess
import sys

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from backbones import build_backbone
from conftest import ROOT, SMALL
from data_loader import MEAN, STD
from errors import RunError, WeightsError
from evaluation import check_takes
from experiment import FULL, RESNET50, STATIC, WIDE, rows_of
from folding import convolutions_with_norm, folded
from models_resnet_improved import ResNetImproved
from training.batch_norm import use_batch_norm

REAL = ROOT.parent / "shared" / "data" / "imagenet-backbones"
# Small networks of timm's of several families, and small real ones.
FAMILIES = {
    "test_resnet": 64,
    SMALL: 64,
    "test_byobnet": 64,
    "test_convnext": 64,
    "test_nfnet": 64,
    "regnety_002": 64,
    "mobilenetv3_small_050": 64,
    "densenet121": 64,
    "swin_tiny_patch4_window7_224": 224,
}


def build(backbone: str, name: str = FULL, **options) -> ResNetImproved:
    torch.manual_seed(0)
    row = rows_of("resnet_improved")[name]
    return ResNetImproved(**row.options, backbone=backbone, **options)


@pytest.fixture(scope="module", params=FAMILIES)
def network(request):
    """A network, and images that it takes; its BatchNorms are as after some training."""
    model, size = build(request.param), FAMILIES[request.param]
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
    return model.eval(), torch.randn(2, 3, size, size)


def test_four_maps_at_strides_4_to_32(network):
    model, images = network
    with torch.no_grad():
        maps = model.backbone(images)
    side = images.shape[-1]
    assert [m.shape[2:] for m in maps] == [(side // s, side // s) for s in (4, 8, 16, 32)]
    assert tuple(m.shape[1] for m in maps) == model.backbone.channels


def test_folding_keeps_what_each_stage_computes(network):
    model, images = network
    fast = folded(model)
    with torch.no_grad():
        for a, b in zip(fast.backbone(images), model.backbone(images)):
            assert (a - b).abs().max() < 1e-4 * b.abs().max()
        torch.testing.assert_close(fast(images)[0], model(images)[0], rtol=1e-4, atol=1e-4)
    pairs = len(convolutions_with_norm(model))
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in x.modules()) for x in (model, fast)]
    assert pairs > 2 and norms[0] - norms[1] == pairs


def test_every_parameter_gets_a_gradient(network):
    model = copy.deepcopy(network[0]).train()
    scores, weights = model(network[1])
    (scores - torch.tensor([20.0, 80.0])).abs().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert weights.shape == (2, 4)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.norm(net.conv(x).relu()),  # side by side, but not in sequence
        lambda net, x: net.norm(y := net.conv(x)) + y,  # as the shortcuts of CoAtNet and MaxViT
        lambda net, x: net.norm(net.conv(x)) + net.conv(-x),
        lambda net, x: net.norm(net.conv(x)) + net.norm(x),
    ],
)
def test_a_convolution_is_folded_only_if_its_norm_alone_reads_it(forward):
    def model(forward):
        model, net = nn.Module(), nn.Module()
        net.conv, net.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        net.input_size = 8
        model.backbone, model.forward = net, lambda x: forward(net, x)
        return model.eval()

    assert convolutions_with_norm(model(forward)) == []
    assert len(convolutions_with_norm(model(lambda net, x: net.norm(net.conv(x))))) == 1


def test_images_that_a_backbone_can_not_take_are_refused():
    network = build("test_byobnet").train()
    network.backbone.net.forward = lambda x: torch.zeros(2) + torch.zeros(x.shape[-1])
    with pytest.raises(RunError, match=r"takes no images of 33 x 50 \(The size of tensor a"):
        check_takes(network, (33, 50))
    assert network.backbone.training
    check_takes(build("test_byobnet"), (33, 50))


@pytest.mark.parametrize("name", [RESNET50, SMALL])
def test_the_batch_norms_of_training_are_folded_as_those_of_the_network(name):
    torch.manual_seed(0)
    model = build(name)
    images = torch.randn(4, 3, 64, 64)
    model.train()(images)  # running averages
    trained = folded(use_batch_norm(copy.deepcopy(model)))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in trained.modules())
    with torch.no_grad():
        assert torch.equal(trained(images)[0], folded(model)(images)[0])


@pytest.mark.parametrize("name", [WIDE, STATIC])
def test_controls_are_the_same_on_every_backbone(name):
    for backbone in (SMALL, "vgg11_bn"):  # whose stage 4 has fewer channels
        model, full = build(backbone, name), build(backbone)
        count, complete = (sum(p.numel() for p in m.parameters()) for m in (model, full))
        attention = sum(p.numel() for p in full.fusion.attention.parameters())
        assert count == complete - attention + (4 if name == STATIC else 0)
        assert model(torch.randn(2, 3, 64, 64))[0].shape == (2,)


# Weights ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(3)
    return timm.create_model(SMALL).state_dict()


def stem(backbone: nn.Module) -> torch.Tensor:
    return backbone.net.conv_stem.weight


@pytest.mark.parametrize("form", ["pth", "half", "safetensors", "without classifier"])
def test_weights_from_a_file_reach_the_backbone(tmp_path, state, form, capfd):
    path = tmp_path / f"weights.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "half":
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    if form == "without classifier":
        state = {k: v for k, v in state.items() if not k.startswith("classifier")}
    (safetensors.torch.save_file if form == "safetensors" else torch.save)(state, path)
    backbone = build_backbone(SMALL, path)
    assert stem(backbone).dtype == torch.float32
    torch.testing.assert_close(stem(backbone), state["conv_stem.weight"].float())
    last = [k for k in backbone.net.state_dict() if k.startswith("blocks.")][-2]
    torch.testing.assert_close(backbone.net.state_dict()[last], state[last].float())
    assert capfd.readouterr() == ("", "")  # no warning of what features do not need


def test_weights_that_do_not_fit_are_refused(tmp_path, state):
    path = tmp_path / "weights.pth"
    for wrong, message in (
        ({k: v for k, v in state.items() if "blocks.2" not in k}, "tensors missing"),
        (state | {"more.weight": torch.zeros(3)}, "1 unknown (more.weight"),
        (timm.create_model("test_resnet").state_dict(), "not timm's state dict of test_eff"),
        ([1, 2], "holds a list, not a state dict"),
    ):
        torch.save(wrong, path)
        with pytest.raises(WeightsError) as error:
            build_backbone(SMALL, path)
        assert message in str(error.value) and str(path) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(WeightsError, match=f"no such file; for --backbone {SMALL}"):
        build_backbone(SMALL, tmp_path / "none.pth")


def test_without_a_network_the_error_says_which_file_to_give(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as error:
        build_backbone("resnet18", "imagenet")
    message = str(error.value)
    assert "model.safetensors of timm/resnet18" in message and "'none'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet", "timm has no such model"),
        ("vit_tiny_patch16_224", "its feature maps are at strides 16, 16, 16"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused_with_a_sentence(name, message):
    with pytest.raises(RunError) as error:
        build(name)
    assert f"--backbone {name}" in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_crop_that_the_input_size_forbids_is_refused():
    with pytest.raises(RunError, match="takes crops of 224 only: give --patch_size 224"):
        build("swin_tiny_patch4_window7_224", image_size=96)


def test_images_are_normalised_as_the_pretrained_configuration_says():
    backbone = build_backbone("tf_efficientnet_lite0").eval()
    assert backbone.normalisation == ((0.5,) * 3, (0.5,) * 3)
    pixels = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STD))
    with torch.no_grad():
        for a, b in zip(backbone((pixels - mean) / std), backbone.net((pixels - 0.5) / 0.5)):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert build_backbone("test_resnet").normalisation != (MEAN, STD)
    assert "scale" not in backbone.state_dict()  # a checkpoint holds what is trained


@pytest.mark.skipif(not REAL.is_dir(), reason=f"there are no ImageNet-trained backbones in {REAL}")
@pytest.mark.parametrize("size", [0, 1, 2])
def test_real_weights_give_the_maps_of_timms_own_network(size):
    name = f"tf_efficientnet_lite{size}"
    weights = torch.load(REAL / f"{name}.pth", weights_only=True)
    full = timm.create_model(name)
    full.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    pixels = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STD))
    with torch.no_grad():
        maps = build_backbone(name, REAL / f"{name}.pth").eval()((pixels - mean) / std)
        wanted = full.eval().forward_intermediates((pixels - 0.5) / 0.5, intermediates_only=True)
    for a, b in zip(maps, wanted[-4:]):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_timm_is_not_imported_for_a_resnet50():
    code = "import sys, backbones as b; b.build_backbone('resnet50'); print('timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr

"""Where weights come from: torchvision's cache or a file, and what is refused."""

import pickle
from http.client import HTTPException, InvalidURL
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from backbone_weights import load_backbone_weights, load_tensors
from errors import RunError, WeightsError
from models_resnet_improved import ResNetImproved


def build(weights: str | Path) -> ResNetImproved:
    return ResNetImproved(use_multiscale=False, use_attention=False, backbone_weights=weights)


@pytest.fixture(scope="module")
def resnet50_state():
    torch.manual_seed(7)
    return torchvision.models.resnet50(weights=None).state_dict()


def test_weights_from_a_file_reach_the_backbone(tmp_path, resnet50_state):
    path = tmp_path / "resnet50.pth"
    torch.save(resnet50_state, path)
    model = build(path)
    torch.testing.assert_close(model.backbone.stem[0].weight, resnet50_state["conv1.weight"])
    torch.testing.assert_close(
        model.backbone.stage4[2].conv3.weight, resnet50_state["layer4.2.conv3.weight"]
    )


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_that_a_training_script_has_wrapped(tmp_path, resnet50_state, wrapper, prefix):
    state = {prefix + name: tensor for name, tensor in resnet50_state.items()}
    torch.save({"epoch": 90, wrapper: state} if wrapper else state, tmp_path / "resnet50.pth")
    loaded = load_backbone_weights(tmp_path / "resnet50.pth")
    plain = {k: v for k, v in resnet50_state.items() if not k.startswith("fc.")}
    assert loaded.keys() == plain.keys() and all((loaded[k] == plain[k]).all() for k in plain)


def test_imagenet_weights_come_from_torchvisions_cache(tmp_path, monkeypatch, resnet50_state):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(resnet50_state, tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth")
    model = build("imagenet1k_v1")
    torch.testing.assert_close(model.backbone.stem[0].weight, resnet50_state["conv1.weight"])


@pytest.mark.parametrize(
    "name, file",
    [("imagenet1k_v1", "resnet50-0676ba61.pth"), ("imagenet1k_v2", "resnet50-11ad3fa6.pth")],
)
def test_without_a_network_the_error_names_file_folder_and_flag(tmp_path, monkeypatch, name, file):
    def no_network(*_, **__):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(WeightsError) as error:
        build(name)
    message = str(error.value)
    assert file in message and str(tmp_path / "hub" / "checkpoints") in message
    assert "--backbone_weights" in message and "\n" not in message


@pytest.mark.parametrize("error", [HTTPException("garbage"), InvalidURL("nonnumeric port")])
def test_a_proxy_that_answers_nonsense_is_no_traceback(tmp_path, monkeypatch, error):
    def nonsense(*_, **__):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", nonsense)
    with pytest.raises(
        WeightsError, match=r"could not be downloaded or read \((garbage|nonnumeric port)\): put"
    ):
        build("imagenet1k_v1")


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_malicious_pickle_is_refused_and_its_code_does_not_run(tmp_path):
    for save in (torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))):
        path = tmp_path / "weights.pth"
        save({"conv1.weight": Malicious(tmp_path / "ran")}, path)
        with pytest.raises(WeightsError, match="can load safely"):
            build(path)
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"error: not found", b"404: Not Found", b"PK\x03\x04 cut off"],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.pth: damaged, or not a file of") as refusal:
        build(path)
    assert "weights_only" not in str(refusal.value)  # PyTorch's advice to load it unsafely


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(WeightsError, match=r"nowhere\.pth: no such file"):
        build("nowhere.pth")


def test_another_networks_weights_are_refused(tmp_path, resnet50_state):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "a.pth")
    missing = {k: v for k, v in resnet50_state.items() if k != "layer3.2.bn1.running_mean"}
    torch.save(missing, tmp_path / "b.pth")
    torch.save([1, 2], tmp_path / "c.pth")
    with pytest.raises(WeightsError, match="not a torchvision ResNet-50"):
        build(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"1 tensors missing .*layer3\.2\.bn1\.running_mean"):
        build(tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="holds a list"):
        build(tmp_path / "c.pth")


def test_every_file_of_tensors_is_read_safely(tmp_path):
    path = tmp_path / "state.pth"
    torch.save({"model": {"weight": torch.ones(2)}, "config": {"epochs": 3}}, path)
    assert load_tensors(path)["config"] == {"epochs": 3}
    torch.save(Malicious(tmp_path / "ran"), path)
    with pytest.raises(RunError, match=r"state\.pth: damaged, or not a file of tensors"):
        load_tensors(path)
    assert not (tmp_path / "ran").exists()

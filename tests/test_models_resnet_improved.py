import copy
import pickle
from http.client import HTTPException, InvalidURL
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

import models_resnet_improved as models
from models_resnet_improved import CONFIGURATIONS, ResNetImproved, WeightsError


def build(name: str, **options) -> ResNetImproved:
    torch.manual_seed(0)
    return ResNetImproved(**CONFIGURATIONS[name][0], **options)


def count(*parts: torch.nn.Module) -> int:
    return sum(p.numel() for part in parts for p in part.parameters())


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def named_model(request):
    return request.param, build(request.param)


def test_exact_number_of_parameters(named_model):
    name, model = named_model
    assert (
        count(model)
        == {
            "ss_noatt": 25_624_337,
            "ms_noatt": 28_124_177,
            "ms_att": 28_649_749,
        }[name]
    )


def test_parameters_of_each_part():
    model = build("ms_att")
    assert count(model.backbone) == 23_508_032
    assert [count(p) for p in model.fusion.project] == [66_304, 263_680, 1_051_648]
    assert count(model.fusion.attention) == 525_572
    assert count(model.query) == 430_192
    assert count(model.reduce) == 1_966_592
    assert count(model.hyper_net.matrices, model.hyper_net.last_weight) == 621_756
    assert count(model.hyper_net.biases) == 215_973
    assert count(model.target_net) == 0


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_parameter_gets_a_gradient(name):
    model = build(name).train()
    scores, _ = model(torch.randn(2, 3, 64, 64))
    (scores - torch.tensor([20.0, 80.0])).abs().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_folding_batch_norms_changes_no_score(named_model):
    _, model = named_model
    model = copy.deepcopy(model)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.2, 0.2)
    model.train()
    folded = models.folded(model)
    assert model.training and not folded.training
    assert len(norms) > 50 and not any(
        isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules()
    )
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        scores, weights = model.eval()(images)
        folded_scores, folded_weights = folded(images)
    torch.testing.assert_close(folded_scores, scores, rtol=1e-4, atol=1e-4)
    if weights is not None:
        torch.testing.assert_close(folded_weights, weights, rtol=1e-4, atol=1e-5)


def test_a_score_depends_on_its_own_image_only(named_model):
    _, model = named_model
    model.eval()
    images = torch.randn(5, 3, 96, 96)
    with torch.no_grad():
        together, _ = model(images)
        alone = torch.cat([model(image[None])[0] for image in images])
        others = torch.cat([images[:1], torch.randn(4, 3, 96, 96) * 9])
        beside_others, _ = model(others)
    assert together.shape == (5,) and alone.shape == (5,)
    torch.testing.assert_close(together, alone, rtol=0, atol=5e-5)
    torch.testing.assert_close(together[0], beside_others[0], rtol=0, atol=5e-5)


def test_target_net_is_matrix_vector_products_with_each_images_own_weights():
    torch.manual_seed(1)
    hyper_net, target_net = models.HyperNet(initial_score=50.0), models.TargetNet()
    reduced, query = torch.randn(3, 512, 7, 7), torch.randn(3, 112)
    scores = target_net(query, hyper_net(reduced))
    for b in range(3):
        maps = hyper_net.matrices(reduced[b : b + 1])[0]
        pooled = reduced[b].mean((1, 2))
        biases = hyper_net.biases(pooled).split((224, 112, 56, 28, 1))
        x, first = query[b], 0
        for (rows, columns), bias in zip([(224, 112), (112, 224), (56, 112), (28, 56)], biases):
            n = rows * columns // 49
            matrix = maps[first : first + n].reshape(rows, columns)
            first += n
            x = torch.sigmoid(matrix @ x + bias)
        expected = hyper_net.last_weight(pooled) @ x + biases[-1]
        torch.testing.assert_close(scores[b], expected.squeeze(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_fresh_model_starts_near_the_mean_of_the_labels(named_model, mode):
    name, _ = named_model
    model = getattr(build(name, initial_score=61.5), mode)()
    with torch.no_grad():
        scores, _ = model(torch.randn(4, 3, 224, 224))
    assert (scores - 61.5).abs().max() < 8


def test_a_fresh_target_net_is_not_saturated(named_model):
    """Sigmoids that start flat pass no gradient on to what generates their weights."""
    name, _ = named_model
    model = build(name).train()
    rules = []
    model.hyper_net.register_forward_hook(lambda m, i, out: rules.extend(out))
    queries = []
    model.target_net.register_forward_pre_hook(lambda m, inputs: queries.append(inputs[0]))
    with torch.no_grad():
        model(torch.randn(4, 3, 224, 224))
    x = queries[0].unsqueeze(2)
    for weight, bias in rules[:-1]:
        before = torch.baddbmm(bias.unsqueeze(2), weight, x)
        assert before.square().mean().sqrt() < 3
        x = torch.sigmoid(before)


def test_shapes_are_as_the_comments_say():
    model = build("ms_att").eval()
    shapes = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, i, out, name=name: shapes.update({name: out}))
    with torch.no_grad():
        scores, weights = model(torch.randn(2, 3, 224, 224))
    assert [tuple(f.shape) for f in shapes["backbone"]] == [
        (2, 256, 56, 56),
        (2, 512, 28, 28),
        (2, 1024, 14, 14),
        (2, 2048, 7, 7),
    ]
    assert shapes["fusion"][0].shape == (2, 3840, 7, 7)
    assert shapes["reduce"].shape == (2, 512, 7, 7)
    assert [tuple(w.shape) for w, _ in shapes["hyper_net"]] == [
        (2, 224, 112),
        (2, 112, 224),
        (2, 56, 112),
        (2, 28, 56),
        (2, 1, 28),
    ]
    assert [b.shape[1] for _, b in shapes["hyper_net"]] == [224, 112, 56, 28, 1]
    assert scores.shape == (2,) and weights.shape == (2, 4)


def test_stage_weights_sum_to_one_and_scale_the_stages():
    model = build("ms_att").eval()
    with torch.no_grad():
        stages = model.backbone(torch.randn(2, 3, 64, 64))
        fused, weights = model.fusion(stages)
        model.fusion.attention = models.EqualWeights()
        plain, none = model.fusion(stages)
    assert none is None
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    for i, part in enumerate(
        zip(fused.split((256, 512, 1024, 2048), 1), plain.split((256, 512, 1024, 2048), 1))
    ):
        torch.testing.assert_close(part[0], part[1] * weights[:, i, None, None, None])


def test_stage_weights_sum_to_one_in_bfloat16_too():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, weights = build("ms_att").eval()(torch.randn(8, 3, 64, 64))
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(1), torch.ones(8))


def test_pooling_before_the_query_convolution_equals_the_paper_s_order():
    query = torch.nn.Conv2d(2048, 112, 1)
    maps = torch.randn(2, 2048, 7, 7)
    torch.testing.assert_close(
        query(maps.mean((2, 3), keepdim=True)).flatten(1),
        query(maps).mean((2, 3)),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("size", [(32, 32), (96, 160), (225, 257)])
def test_other_input_sizes(size):
    with torch.no_grad():
        scores, weights = build("ms_att").eval()(torch.randn(1, 3, *size))
    assert scores.shape == (1,) and weights.shape == (1, 4) and scores.isfinite().all()


def test_scores_are_float32_under_autocast():
    # bfloat16 knows steps of 0.25 near 50: scores on that grid would tie
    model = build("ms_att").eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores, weights = model(torch.randn(8, 3, 64, 64))
    assert scores.dtype == weights.dtype == torch.float32
    assert (scores * 4 != (scores * 4).round()).any()
    assert scores.unique().numel() == 8


def test_attention_without_multiscale_is_refused():
    with pytest.raises(ValueError, match="needs use_multiscale"):
        ResNetImproved(use_multiscale=False, use_attention=True)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_dropout_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match="dropout_rate"):
        ResNetImproved(use_multiscale=False, use_attention=False, dropout_rate=rate)


def test_parameter_groups_are_backbone_and_the_rest():
    model = build("ms_att")
    backbone, new = model.parameter_groups()
    assert sum(p.numel() for p in backbone) == 23_508_032
    assert len(backbone) + len(new) == len(list(model.parameters()))


def test_building_and_running_prints_nothing(capfd):
    with torch.no_grad():
        build("ms_att").eval()(torch.randn(1, 3, 32, 32))
    assert capfd.readouterr() == ("", "")


# Backbone weights


@pytest.fixture(scope="module")
def resnet50_state():
    torch.manual_seed(7)
    return torchvision.models.resnet50(weights=None).state_dict()


def test_weights_from_a_file_reach_the_backbone(tmp_path, resnet50_state):
    path = tmp_path / "resnet50.pth"
    torch.save(resnet50_state, path)
    model = build("ss_noatt", backbone_weights=path)
    torch.testing.assert_close(model.backbone.stem[0].weight, resnet50_state["conv1.weight"])
    torch.testing.assert_close(
        model.backbone.stage4[2].conv3.weight, resnet50_state["layer4.2.conv3.weight"]
    )


def test_imagenet_weights_come_from_torchvisions_cache(tmp_path, monkeypatch, resnet50_state):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(resnet50_state, tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth")
    model = build("ss_noatt", backbone_weights="imagenet1k_v1")
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
        build("ss_noatt", backbone_weights=name)
    message = str(error.value)
    assert file in message and str(tmp_path / "hub" / "checkpoints") in message
    assert "--backbone_weights" in message and "\n" not in message


@pytest.mark.parametrize("error", [HTTPException("garbage"), InvalidURL("nonnumeric port")])
def test_a_proxy_that_answers_nonsense_is_no_traceback(tmp_path, monkeypatch, error):
    def nonsense(*_, **__):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", nonsense)
    with pytest.raises(WeightsError, match=r"are not to be had \((garbage|nonnumeric port)\): put"):
        build("ss_noatt", backbone_weights="imagenet1k_v1")


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
            build("ss_noatt", backbone_weights=path)
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"error: not found", b"404: Not Found", b"PK\x03\x04 cut off"],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.pth: damaged, or not a file of") as refusal:
        build("ss_noatt", backbone_weights=path)
    assert "weights_only" not in str(refusal.value)  # PyTorch's advice to load it unsafely


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(WeightsError, match=r"nowhere\.pth: no such file"):
        build("ss_noatt", backbone_weights="nowhere.pth")


def test_another_networks_weights_are_refused(tmp_path, resnet50_state):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "a.pth")
    missing = {k: v for k, v in resnet50_state.items() if k != "layer3.2.bn1.running_mean"}
    torch.save(missing, tmp_path / "b.pth")
    torch.save([1, 2], tmp_path / "c.pth")
    with pytest.raises(WeightsError, match="not a torchvision ResNet-50"):
        build("ss_noatt", backbone_weights=tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"1 tensors missing .*layer3\.2\.bn1\.running_mean"):
        build("ss_noatt", backbone_weights=tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="holds a list"):
        build("ss_noatt", backbone_weights=tmp_path / "c.pth")


# The smoke test


def test_smoke_test_prints_what_it_promises(run_script):
    done = run_script("models_resnet_improved.py")
    assert done.returncode == 0 and done.stderr == ""
    for text in ("25,624,337 (25.62 M)", "28,124,177 (28.12 M)", "28,649,749 (28.65 M)"):
        assert text in done.stdout
    assert done.stdout.count("forward pass   succeeded: (4, 3, 224, 224) -> (4,)") == 3
    assert "w1=" in done.stdout and "w4=" in done.stdout and "sum=1.0000" in done.stdout


def test_smoke_test_finds_mixed_images_in_every_configuration(monkeypatch, capsys):
    forward = models.TargetNet.forward
    monkeypatch.setattr(
        models.TargetNet, "forward", lambda net, q, r: forward(net, q.mean(0, True).expand_as(q), r)
    )
    assert models.main() == 1
    assert capsys.readouterr().err.count("a target network that mixes images") == 3


def test_smoke_test_fails_when_something_is_off(monkeypatch, capsys):
    flags, parameters = CONFIGURATIONS["ss_noatt"]
    monkeypatch.setattr(models, "CONFIGURATIONS", {"ss_noatt": (flags, parameters + 1)})
    assert models.main() == 1
    assert "25,624,337 parameters instead of 25,624,338" in capsys.readouterr().err

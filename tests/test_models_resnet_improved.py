"""What is computed: exact parameters, shapes, and scores that depend on their own image alone."""

import pytest
import torch

import models_resnet_improved as models
from backbones import ResNet50
from experiment import FULL, MULTISCALE, STATIC, WIDE, rows_of
from models_resnet_improved import ResNetImproved

ROWS = rows_of("resnet_improved")


def build(name: str, **options) -> ResNetImproved:
    torch.manual_seed(0)
    return ResNetImproved(**ROWS[name].options, **options)


def count(*parts: torch.nn.Module) -> int:
    return sum(p.numel() for part in parts for p in part.parameters())


@pytest.fixture(scope="module", params=ROWS)
def named_model(request):
    return request.param, build(request.param)


def test_exact_number_of_parameters(named_model):
    name, model = named_model
    assert (
        count(model)
        == {
            "resnet_improved_ss_noatt": 25_624_337,
            "resnet_improved_ms_noatt": 28_124_177,
            "resnet_improved_ms_att": 28_649_749,
            "resnet_improved_ss_wide": 28_124_177,
            "resnet_improved_ms_static": 28_124_181,
        }[name]
    )


def test_parameters_of_each_part():
    model = build(FULL)
    assert count(model.backbone) == 23_508_032
    assert [count(p) for p in model.fusion.project] == [66_304, 263_680, 1_051_648]
    assert count(model.fusion.attention) == 525_572
    assert count(model.query) == 430_192
    assert count(model.reduce) == 1_966_592
    assert count(model.hyper_net.matrices, model.hyper_net.last_weight) == 621_756
    assert count(model.hyper_net.biases) == 215_973
    assert count(model.target_net) == 0


@pytest.mark.parametrize("name", ROWS)
def test_every_parameter_gets_a_gradient(name):
    model = build(name).train()
    scores, _ = model(torch.randn(2, 3, 64, 64))
    (scores - torch.tensor([20.0, 80.0])).abs().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


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
    model = build(FULL).eval()
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
    model = build(FULL).eval()
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
        torch.testing.assert_close(part[0], part[1] * 4 * weights[:, i, None, None, None])


def fused_maps(name: str, **options) -> torch.Tensor:
    model = build(name, **options).eval()
    with torch.no_grad():
        return model.fusion(model.backbone(torch.rand(2, 3, 64, 64, generator=seeded())))[0]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("name", [FULL, STATIC])
def test_fresh_attention_computes_what_multiscale_fusion_does(name):
    without, fused = fused_maps(MULTISCALE), fused_maps(name)
    assert (fused - without).norm() < 0.02 * without.norm()
    if name == FULL:  # the published formula starts with a quarter of each stage
        published = fused_maps(name, attention="published")
        assert 0.1 < published.norm() / without.norm() < 0.5


def pushed_away_from_stage_1(**options) -> torch.Tensor:
    """Mean stage weights (4,) after twelve AdamW steps at 1e-3 that make the first one smaller."""
    torch.manual_seed(0)
    attention = models.StageAttention(**options)
    optimizer = torch.optim.AdamW(attention.parameters(), lr=1e-3)
    channels = options["stage_channels"][-1]
    for _ in range(12):
        _, weights = attention([torch.randn(8, channels, 7, 7).relu()] * 4)
        optimizer.zero_grad()
        weights[:, 0].mean().backward()
        optimizer.step()
    return weights.mean(0)


def test_a_stage_is_not_lost_within_a_dozen_steps():
    assert pushed_away_from_stage_1(stage_channels=[2048] * 4, scaled=False)[0] < 1e-4
    for channels in (64, 320, 2048):
        assert pushed_away_from_stage_1(stage_channels=[channels] * 4)[0] > 0.08


def test_scaled_attention_sees_neither_offset_nor_scale_of_stage_4():
    attention = models.StageAttention(stage_channels=[2048] * 4).eval()
    stages = [torch.rand(3, 2048, 7, 7)] * 4
    _, weights = attention(stages)
    _, others = attention([5 * stage + 7 for stage in stages])
    torch.testing.assert_close(weights, others)
    _, dead = attention([torch.zeros(3, 2048, 7, 7)] * 4)  # no information: no division by zero
    torch.testing.assert_close(dead, torch.full((3, 4), 0.25), rtol=0, atol=0.01)


def test_the_static_control_has_the_same_weights_for_all_images_and_learns_them():
    model = build(STATIC)
    scores, weights = model(torch.randn(3, 3, 64, 64))
    assert (weights == weights[0]).all() and weights.requires_grad
    (scores - 50).abs().mean().backward()
    assert model.fusion.attention.logits.grad.abs().sum() > 0


def test_the_wide_control_sees_stage_4_only():
    model = build(WIDE).eval()
    maps = [torch.rand(2, c, s, s) for c, s in zip(ResNet50.channels, (16, 8, 4, 2))]
    with torch.no_grad():
        fused, weights = model.fusion(maps)
        others, _ = model.fusion([torch.zeros_like(m) for m in maps[:3]] + maps[3:])
    assert fused.shape == (2, 3840, 7, 7) and weights is None
    assert torch.equal(fused, others)


def test_stage_weights_sum_to_one_in_bfloat16_too():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, weights = build(FULL).eval()(torch.randn(8, 3, 64, 64))
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
        scores, weights = build(FULL).eval()(torch.randn(1, 3, *size))
    assert scores.shape == (1,) and weights.shape == (1, 4) and scores.isfinite().all()


def test_scores_are_float32_under_autocast():
    # bfloat16 knows steps of 0.25 near 50: scores on that grid would tie
    model = build(FULL).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores, weights = model(torch.randn(8, 3, 64, 64))
    assert scores.dtype == weights.dtype == torch.float32
    assert (scores * 4 != (scores * 4).round()).any()
    assert scores.unique().numel() == 8


def test_the_wide_control_has_no_fusion():
    with pytest.raises(ValueError, match="without several stages"):
        ResNetImproved(use_multiscale=True, use_attention=False, wide=True)


def test_attention_without_multiscale_is_refused():
    with pytest.raises(ValueError, match="needs use_multiscale"):
        ResNetImproved(use_multiscale=False, use_attention=True)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_dropout_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match="dropout_rate"):
        ResNetImproved(use_multiscale=False, use_attention=False, dropout_rate=rate)


def test_parameter_groups_are_backbone_and_the_rest():
    model = build(FULL)
    backbone, new = model.parameter_groups()
    assert sum(p.numel() for p in backbone) == 23_508_032
    assert len(backbone) + len(new) == len(list(model.parameters()))


def test_building_and_running_prints_nothing(capfd):
    with torch.no_grad():
        build(FULL).eval()(torch.randn(1, 3, 32, 32))
    assert capfd.readouterr() == ("", "")


# The smoke test


def test_smoke_test_prints_what_it_promises(run_script):
    done = run_script("models_resnet_improved.py")
    assert done.returncode == 0 and done.stderr == ""
    for text in ("25,624,337 (25.62 M)", "28,124,177 (28.12 M)", "28,649,749 (28.65 M)"):
        assert text in done.stdout
    assert done.stdout.count("forward pass   succeeded: (4, 3, 224, 224) -> (4,)") == len(ROWS)
    assert "w1=" in done.stdout and "w4=" in done.stdout and "sum=1.0000" in done.stdout


@pytest.mark.slow
def test_smoke_test_finds_mixed_images_in_every_configuration(monkeypatch, capsys):
    forward = models.TargetNet.forward
    monkeypatch.setattr(
        models.TargetNet, "forward", lambda net, q, r: forward(net, q.mean(0, True).expand_as(q), r)
    )
    assert models.main() == 1
    assert capsys.readouterr().err.count("a target network that mixes images") == len(ROWS)


def test_smoke_test_fails_when_something_is_off(monkeypatch, capsys):
    name, row = next(iter(ROWS.items()))
    wrong = {name: row._replace(parameters=row.parameters + 1)}
    monkeypatch.setattr(models, "rows_of", lambda model: wrong)
    assert models.main() == 1
    assert "25,624,337 parameters instead of 25,624,338" in capsys.readouterr().err

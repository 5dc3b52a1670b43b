"""What is computed: ResNet-50 with multi-scale fusion and channel attention for image quality.

    python3 models_resnet_improved.py

prints the number of parameters and the shapes of a forward pass of each configuration of the
ablation, offline and in a few seconds; it exits with 1 if anything is not as designed.

Letters in the shape comments: B images, C channels of the fused maps (2048, or 3840 with
multi-scale fusion). Sizes are those of a ResNet-50 and a 224 x 224 input.

Sources: HyperIQA (Su et al., Blindly Assess Image Quality in the Wild Guided by a Self-Adaptive
Hyper Network, CVPR 2020) for hyper network and target network; Chang et al., Principled Weight
Initialization for Hypernetworks, ICLR 2020, for their initial weights; ResNet-50 (He et al., CVPR
2016) from torchvision; other backbones from timm.
"""

import sys
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import build_backbone
from console import check_shown, command
from experiment import RESNET50, rows_of

STAGES = 4
MAP_SIZE = 7  # every fused map is MAP_SIZE x MAP_SIZE
ATTENTION_NORM = 6.0  # of the attention's input; chosen by measurement, see docs/results.md
REDUCED = 512  # channels of the maps that the hyper network reads
TARGET_WIDTHS = (112, 224, 112, 56, 28, 1)  # the target network, from its input to the score


class LastStage(nn.Module):
    """No fusion: stage 4 alone."""

    def __init__(self, stage_channels: tuple[int, ...]):
        super().__init__()
        self.channels = stage_channels[-1]

    def forward(self, stages: tuple[Tensor, ...]) -> tuple[Tensor, None]:
        return pooled(stages[-1]), None  # (B, 2048, 7, 7)


def pooled(stage: Tensor) -> Tensor:
    """The maps of a stage at 7 x 7; those that are so already as they are."""
    if stage.shape[2:] == (MAP_SIZE, MAP_SIZE):
        return stage
    return F.adaptive_avg_pool2d(stage, MAP_SIZE)


class EqualWeights(nn.Module):
    """No attention: the stages (B, c, 7, 7) concatenated as they are, and no weights."""

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, None]:
        return torch.cat(stages, 1), None  # (B, 3840, 7, 7)


class StaticWeights(nn.Module):
    """A control: four learned weights, the same for all images; they sum to 1 and start equal."""

    def __init__(self, *, stage_channels: tuple[int, ...]):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(STAGES))
        self.weighted = Weighted(stage_channels, factor=STAGES)

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, Tensor]:
        weights = self.logits.softmax(0).expand(len(stages[-1]), -1)  # (B, 4)
        return self.weighted(stages, weights), weights


class StageAttention(nn.Module):
    """One weight for each stage and image, from the global average of stage 4; they sum to 1.

    This is what SMART-IQA calls channel attention: it weights stages, not single channels.

    scaled: the average is centred and scaled to ATTENTION_NORM, and stages are multiplied by four
    times their weights, so that a new network computes what it would without attention. Otherwise
    it is SMART-IQA's published formula. There a ResNet-50's 2,048 averages of size one let a step
    of AdamW at 1e-3 move every hidden unit by about one: within 48 steps one stage has a weight of
    .98 for all images, and the others get no gradient any more (docs/results.md).

    The weights are computed in float32: in bfloat16 they would sum to 1 only within a thousandth.
    """

    def __init__(
        self,
        *,
        stage_channels: tuple[int, ...],
        hidden: int = 256,
        dropout_rate: float = 0.3,
        scaled: bool = True,
    ):
        super().__init__()
        channels = stage_channels[-1]
        self.prepare = CentredAndScaled(channels, ATTENTION_NORM) if scaled else nn.Identity()
        self.weighted = Weighted(stage_channels, factor=STAGES if scaled else 1)
        self.weigh = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout_rate),
            nn.Linear(hidden, STAGES),
            nn.Softmax(dim=1),
        )
        nn.init.normal_(self.weigh[-2].weight, std=0.01)  # all stages start at about 1/4
        nn.init.zeros_(self.weigh[-2].bias)

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, Tensor]:
        with torch.autocast(stages[-1].device.type, enabled=False):
            weights = self.weigh(self.prepare(average(stages[-1])))  # (B, 4)
        return self.weighted(stages, weights), weights


def average(maps: Tensor) -> Tensor:
    """The global average (B, C) of maps (B, C, h, w), in float32."""
    return maps.mean((2, 3), dtype=torch.float32)


class CentredAndScaled(nn.Module):
    """Each row less its mean, scaled to a fixed norm, whatever the number of channels.

    This is a layer normalisation: its result has the norm sqrt(channels).
    """

    def __init__(self, channels: int, norm: float):
        super().__init__()
        scale = torch.full((channels,), norm * channels**-0.5)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, channels)
        return F.layer_norm(x, self.scale.shape, self.scale, eps=1e-12)


class Weighted(nn.Module):
    """The stages (B, c, 7, 7), concatenated, times `factor` times their weights, of (B, 4).

    A matrix with the factor where a channel belongs to a stage gives each channel its weight: one
    product for all stages.
    """

    def __init__(self, stage_channels: tuple[int, ...], *, factor: int):
        super().__init__()
        of_stage = factor * torch.block_diag(*(torch.ones(1, c) for c in stage_channels))  # (4, C)
        self.register_buffer("of_stage", of_stage, persistent=False)

    def forward(self, stages: list[Tensor], weights: Tensor) -> Tensor:
        with torch.autocast(weights.device.type, enabled=False):
            factors = weights @ self.of_stage  # (B, 3840)
        return torch.cat(stages, 1) * factors.to(stages[-1].dtype)[:, :, None, None]


class MultiScaleFusion(nn.Module):
    """All four stages at 7 x 7, weighted by `attention`, concatenated.

    Stages 1 to 3 pass a 1x1 convolution with BatchNorm and ReLU that keeps their channels;
    stage 4 stays as it is.
    """

    def __init__(self, stage_channels: tuple[int, ...]):
        super().__init__()
        self.channels = sum(stage_channels)
        self.project = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c, 1), nn.BatchNorm2d(c), nn.ReLU(inplace=True))
            for c in stage_channels[:-1]
        )
        self.attention = EqualWeights()

    def forward(self, stages: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        maps = [pooled(stage) for stage in stages]  # 4 x (B, c, 7, 7)
        maps = [project(m) for project, m in zip(self.project, maps)] + maps[-1:]

        return self.attention(maps)  # (B, 3840, 7, 7), (B, 4) or None


class WideLastStage(MultiScaleFusion):
    """A control: the layers and parameters of multi-scale fusion, but stage 4 alone feeds them.

    Of a ResNet-50 its first 256 channels take the place of stage 1, the next 512 that of stage 2,
    the next 1,024 that of stage 3. If stage 4 has fewer channels than these together, they begin
    again with its first.
    """

    def __init__(self, stage_channels: tuple[int, ...]):
        super().__init__(stage_channels)
        self.parts = stage_channels[:-1]

    def forward(self, stages: tuple[Tensor, ...]) -> tuple[Tensor, None]:
        last, needed = stages[-1], sum(self.parts)  # (B, 2048, 7, 7)
        again = torch.cat([last] * -(-needed // last.shape[1]), 1)
        parts = again[:, :needed].split(self.parts, 1)
        return super().forward((*parts, last))  # (B, 3840, 7, 7), None


class HyperNet(nn.Module):
    """Generates the weights and biases of the target network for each image (HyperIQA, sec. 3.3).

    The matrices of the first four layers are the 7 x 7 maps of a 1x1 convolution, read in memory
    order; the last layer's weights and all biases come from the global average through a linear
    layer. The linear layers run in float32: the last bias is near 60 on a scale of 0 to 100, where
    bfloat16 has steps of 0.25.
    """

    def __init__(self, *, initial_score: float):
        super().__init__()
        self.shapes = [*zip(TARGET_WIDTHS[1:-1], TARGET_WIDTHS[:-2])]  # (out, in) of layers 1-4
        self.maps = [rows * columns // MAP_SIZE**2 for rows, columns in self.shapes]
        self.matrices = nn.Conv2d(REDUCED, sum(self.maps), 1)
        self.last_weight = nn.Linear(REDUCED, TARGET_WIDTHS[-2])
        self.biases = nn.Linear(REDUCED, sum(TARGET_WIDTHS[1:]))
        with torch.no_grad():
            # The generated matrices start at the scale of their own inputs (Chang et al.:
            # hyperfan-in); at the scale of an ordinary convolution they saturate every sigmoid.
            for part, (_, columns) in zip(self.matrices.weight.split(self.maps), self.shapes):
                nn.init.normal_(part, std=(REDUCED * columns) ** -0.5)
            nn.init.zeros_(self.matrices.bias)
            # Scores start near initial_score, whatever the scale of the maps.
            self.last_weight.weight.mul_(0.1)
            self.biases.weight[-1].mul_(0.1)
            self.biases.bias[-1] = initial_score

    def forward(self, reduced: Tensor) -> list[tuple[Tensor, Tensor]]:
        matrices = self.matrices(reduced).to(torch.float32, memory_format=torch.contiguous_format)
        matrices = matrices.split(self.maps, 1)  # 4 x (B, maps, 7, 7)
        with torch.autocast(reduced.device.type, enabled=False):
            of_image = average(reduced)  # (B, 512)
            last_weight = self.last_weight(of_image).unsqueeze(1)  # (B, 1, 28)
            biases = self.biases(of_image).split(TARGET_WIDTHS[1:], 1)  # 5 x (B, out)

        weights = [m.reshape(-1, *shape) for m, shape in zip(matrices, self.shapes)]
        return [*zip([*weights, last_weight], biases)]  # 5 x ((B, out, in), (B, out))

    @torch.no_grad()
    def map_scores(self, slope: float, offset: float) -> None:
        """Change the layers, so that every score s becomes slope * s + offset.

        The target network's last layer is linear, and these layers generate it.
        """
        last = self.biases.weight[-1:], self.biases.bias[-1:]
        for tensor in (self.last_weight.weight, self.last_weight.bias, *last):
            tensor.mul_(slope)
        self.biases.bias[-1] += offset


class TargetNet(nn.Module):
    """Five fully connected layers, whose weights differ from image to image (HyperIQA, eq. 4-5).

    Batched matrix products: the query of image b is multiplied by the weights of image b alone.
    Sigmoid after the first four layers, and dropout after the first three. It has no parameters,
    and runs in float32.
    """

    def __init__(self, *, dropout_rate: float = 0.0):
        super().__init__()
        drops = [nn.Dropout(dropout_rate) for _ in range(3)]
        self.drops = nn.ModuleList([*drops, nn.Identity()])

    def forward(self, query: Tensor, rules: list[tuple[Tensor, Tensor]]) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            x = query.float().unsqueeze(2)  # (B, 112, 1)
            for (weight, bias), drop in zip(rules[:-1], self.drops):
                x = drop(torch.sigmoid(torch.baddbmm(bias.unsqueeze(2), weight, x)))  # (B, out, 1)
            weight, bias = rules[-1]
            score = torch.baddbmm(bias.unsqueeze(2), weight, x)  # (B, 1, 1)
        return score.squeeze(2).squeeze(1)  # (B,)


class ResNetImproved(nn.Module):
    """Quality scores from images by a ResNet-50, or another backbone, under a HyperIQA head.

    Arguments (keyword-only):
        use_multiscale: fuse all four stages instead of taking stage 4 alone.
        use_attention: weight the stages for each image; needs `use_multiscale`.
        attention: 'scaled' (the default), 'published' (SMART-IQA's own formula), or the control
            'static' (learned weights that are the same for all images).
        wide: a control: the layers of multi-scale fusion, fed by stage 4 alone.
        dropout_rate: of the reduced maps and of the attention, 0 <= rate < 1.
        backbone: 'resnet50', or a name of timm's (backbones.py). Fusion, attention and head are the
            same for all; only their numbers of channels differ.
        backbone_weights: None or 'none' (random), 'imagenet', or the path of a state dict; for
            ResNet-50 also 'imagenet1k_v1' and 'imagenet1k_v2'.
        image_size: side of the images, for backbones that have a fixed one.
        initial_score: initial value of the target network's last bias, near which all scores
            start: the mean MOS of the training images.

    Input: ImageNet-normalised images (B, 3, H, W); 224 x 224 in the experiment, and any size of
    at least 32 x 32 otherwise. Output: scores (B,) on the MOS scale of 0 to 100, higher is better,
    and the stage weights (B, 4), or None without attention.

    Raises ValueError for options that don't go together, RunError for a backbone that does not fit,
    WeightsError for weights that can't be read.
    """

    def __init__(
        self,
        *,
        use_multiscale: bool,
        use_attention: bool,
        attention: str = "scaled",
        wide: bool = False,
        dropout_rate: float = 0.3,
        backbone: str = RESNET50,
        backbone_weights: str | Path | None = None,
        image_size: int | None = None,
        initial_score: float = 50.0,
    ):
        super().__init__()
        if use_attention and not use_multiscale:
            raise ValueError(
                "use_attention weights several stages: it needs use_multiscale as well"
            )
        if wide and use_multiscale:
            raise ValueError("wide is a control without several stages: not with use_multiscale")
        if not 0 <= dropout_rate < 1:
            raise ValueError(f"dropout_rate is {dropout_rate}; it must be at least 0 and below 1")

        self.backbone = build_backbone(backbone, backbone_weights, image_size=image_size)
        channels = self.backbone.channels
        fusion = MultiScaleFusion if use_multiscale else WideLastStage if wide else LastStage
        self.fusion = fusion(channels)
        self.query = nn.Conv2d(self.fusion.channels, TARGET_WIDTHS[0], 1)
        self.reduce = nn.Sequential(
            nn.Conv2d(self.fusion.channels, REDUCED, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout_rate),
        )
        self.hyper_net = HyperNet(initial_score=initial_score)
        self.target_net = TargetNet()
        if use_attention:  # last, so that one seed gives all else the same weights without it
            self.fusion.attention = (
                StaticWeights(stage_channels=channels)
                if attention == "static"
                else StageAttention(
                    stage_channels=channels,
                    dropout_rate=dropout_rate,
                    scaled=attention == "scaled",
                )
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:  # (B, 3, 224, 224)
        stages = self.backbone(images)  # four maps at strides 4, 8, 16, 32
        fused, stage_weights = self.fusion(stages)  # (B, C, 7, 7), (B, 4) or None

        # The convolution is linear, so it may follow the average that it precedes in the design.
        with torch.autocast(images.device.type, enabled=False):
            query = self.query(average(fused)[:, :, None, None]).flatten(1)  # (B, 112)
        rules = self.hyper_net(self.reduce(fused))  # weights and biases of five layers

        return self.target_net(query, rules), stage_weights  # (B,), (B, 4) or None

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The backbone's parameters, and those of all layers that are new."""
        backbone = list(self.backbone.parameters())
        known = {id(p) for p in backbone}
        return backbone, [p for p in self.parameters() if id(p) not in known]


def print_forward_pass(count: int, images: Tensor, scores: Tensor, weights: Tensor | None) -> None:
    """Parameters, shapes, scores and stage weights of a network, indented below its name."""
    print(f"  parameters     {count:,} ({count / 1e6:.2f} M)")
    print(f"  forward pass   succeeded: {tuple(images.shape)} -> {tuple(scores.shape)}")
    print(f"  scores         {', '.join(f'{s:.3f}' for s in scores.tolist())}")
    for image in [] if weights is None else weights.tolist():
        shares = "  ".join(f"w{i}={w:.4f}" for i, w in enumerate(image, 1))
        print(f"  stage weights  {shares}  sum={sum(image):.4f}")


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return torch.allclose(a, b, rtol=0, atol=tolerance)


@command
@torch.no_grad()
def main() -> int:
    """The smoke test: 0 if every configuration computes what it should."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 224, 224)
    query = torch.randn(4, TARGET_WIDTHS[0])
    rules = [(torch.randn(4, o, i), torch.randn(4, o)) for i, o in pairwise(TARGET_WIDTHS)]
    problems = []

    for name, row in rows_of("resnet_improved").items():
        model, attends = ResNetImproved(**row.options), row.options["use_attention"]
        count = sum(p.numel() for p in model.parameters())
        for module in model.modules():  # statistics of these images, as of a network in training
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()(images)
        scores, weights = model.eval()(images)
        sums = torch.ones(4) if weights is None else weights.sum(1)
        alone = torch.cat([model(image[None])[0] for image in images])
        # A new network's scores differ little between images; those by random rules by about 1.
        ruled = model.target_net(query, rules)
        each = [
            model.target_net(query[i, None], [(w[i, None], b[i, None]) for w, b in rules])
            for i in range(4)
        ]

        print(f"{name}: {', '.join(f'{k}={v}' for k, v in row.options.items())}")
        print_forward_pass(count, images, scores, weights)
        checks = {
            f"{count:,} parameters instead of {row.parameters:,}": count == row.parameters,
            f"scores of shape {tuple(scores.shape)}": scores.shape == (4,),
            "a score that is not finite": bool(scores.isfinite().all()),
            "a score that depends on the other images": close(scores, alone, 5e-5),
            "a target network that mixes images": close(ruled, torch.cat(each), 1e-4),
            "stage weights without attention, or none with it": attends != (weights is None),
            "stage weights that don't sum to 1": close(sums, torch.ones(4), 1e-5),
        }
        problems += [f"{name}: {problem}" for problem, right in checks.items() if not right]

    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print("all configurations are as designed")
        check_shown()
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

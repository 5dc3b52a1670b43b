"""What is compared with: HyperIQA (ResNet-50) and SMART-IQA (Swin), in the same harness.

    python3 models_hyperiqa.py

prints parameters and shapes of both, offline and in a few seconds; it exits with 1 if anything is
not as designed.

Letters in the shape comments: B images, C channels of the last or the fused maps. Sizes are those
of a 224 x 224 input, which both models need.

Sources: HyperIQA (Su et al., CVPR 2020); Swin Transformer (Liu et al., ICCV 2021) from timm;
SMART-IQA (github.com/cny123222/Perceptual-IQA-CS3324). Parameters, by part:

    part                     HyperIQA   SMART-IQA Tiny         Base
    backbone               23,508,032       27,519,354   86,743,224  (with Swin's final norm)
    local distortion          475,360          196,320      252,128
    stage attention                 -          197,892      263,428
    reducer to 112 maps     2,680,432          897,904    1,143,664
    hyper network             711,545          711,545      711,545
"""

import sys
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone_weights import load_backbone_weights, load_tensors, misfits, unwrapped
from backbones import ResNet50, TimmBackbone
from errors import WeightsError
from experiment import CONFIGURATIONS, MODELS, configuration_name
from models_resnet_improved import (
    MAP_SIZE,
    EqualWeights,
    StageAttention,
    TargetNet,
    average,
    close,
    pooled,
    print_forward_pass,
)

INPUT_SIZE = 224
HYPER_CHANNELS = 112  # of the maps that the hyper network reads
PUBLISHED_WIDTHS = (224, 112, 56, 28, 14, 1)  # the target network, from its input to the score
COMPLETE = {"use_multiscale": True, "use_attention": True}  # HyperIQA's row has neither flag
PARAMETERS = {
    model: CONFIGURATIONS[configuration_name({"model": model, **COMPLETE})].parameters
    for model in MODELS
    if model != "resnet_improved"
}


class SwinBackbone(TimmBackbone):
    """timm's Swin Transformer without head, returning the maps of its four stages.

    A final LayerNorm is kept, as the published counts include it; the four maps don't pass through
    it, so it is never trained.
    """

    def __init__(self, size: str, weights: str | Path | None, *, drop_path_rate: float):
        name = f"swin_{size}_patch4_window7_224"
        super().__init__(name, weights, image_size=INPUT_SIZE, drop_path_rate=drop_path_rate)
        self.norm = nn.LayerNorm(self.channels[-1]).requires_grad_(False)


class LocalDistortion(nn.Module):
    """HyperIQA's local distortion aware module (sec. 3.2): the target network's input.

    Stages 1 to 3 through a 1x1 convolution to 16, 32 and 64 channels, stage 4 as it is; each
    average-pooled 7 x 7 and read out by a linear layer.
    """

    def __init__(self, channels: tuple[int, ...]):
        super().__init__()
        widths, sides = (16, 32, 64), (8, 4, 2)
        self.project = nn.ModuleList(
            nn.Conv2d(c, width, 1, bias=False) for c, width in zip(channels, widths)
        )
        self.read = nn.ModuleList(
            nn.Linear(width * side**2, 16) for width, side in zip(widths, sides)
        )
        self.read.append(nn.Linear(channels[-1], PUBLISHED_WIDTHS[0] - 3 * 16))
        for layer in (*self.project, *self.read):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, stages: list[Tensor]) -> Tensor:
        maps = [project(stage) for project, stage in zip(self.project, stages)] + [stages[-1]]
        # (B, 1024), (B, 512), (B, 256), (B, C)
        averages = [F.avg_pool2d(m, 7).flatten(1) for m in maps]
        return torch.cat([read(a) for read, a in zip(self.read, averages)], 1)  # (B, 224)


class PublishedHyperNet(nn.Module):
    """Weights and biases of the target network from (B, 112, 7, 7) (HyperIQA, sec. 3.3).

    The matrices of the first four layers are the 7 x 7 maps of 3x3 convolutions, read in memory
    order; the last layer's weights and all biases come from the global average through linear
    layers. Weights are initialised by He's rule, as in HyperIQA's code: PyTorch's own are so small
    that the gradients of the local distortion module would start 200 times smaller. The last bias
    starts at `initial_score` instead of near 0.
    """

    def __init__(self, *, initial_score: float):
        super().__init__()
        self.shapes = [*zip(PUBLISHED_WIDTHS[1:-1], PUBLISHED_WIDTHS[:-2])]  # (out, in), layers 1-4
        self.matrices = nn.ModuleList(
            nn.Conv2d(HYPER_CHANNELS, rows * columns // MAP_SIZE**2, 3, padding=1)
            for rows, columns in self.shapes
        )
        self.last_weight = nn.Linear(HYPER_CHANNELS, PUBLISHED_WIDTHS[-2])
        self.biases = nn.ModuleList(nn.Linear(HYPER_CHANNELS, out) for out in PUBLISHED_WIDTHS[1:])
        for layer in (*self.matrices, self.last_weight, *self.biases):
            nn.init.kaiming_normal_(layer.weight)
        nn.init.constant_(self.biases[-1].bias, initial_score)

    def forward(self, maps: Tensor) -> list[tuple[Tensor, Tensor]]:
        weights = [
            matrix(maps).float().reshape(-1, *shape)
            for matrix, shape in zip(self.matrices, self.shapes)
        ]
        with torch.autocast(maps.device.type, enabled=False):
            of_image = average(maps)  # (B, 112)
            weights.append(self.last_weight(of_image).unsqueeze(1))  # (B, 1, 14)
            biases = [bias(of_image) for bias in self.biases]
        return [*zip(weights, biases)]  # 5 x ((B, out, in), (B, out))

    @torch.no_grad()
    def map_scores(self, slope: float, offset: float) -> None:
        """Change the layers, so that every score s becomes slope * s + offset."""
        last = self.biases[-1]
        for tensor in (*self.last_weight.parameters(), *last.parameters()):
            tensor.mul_(slope)
        last.bias += offset


class HyperModel(nn.Module):
    """What HyperIQA and SMART-IQA share: backbone, local distortion, reducer, two networks.

    Input: ImageNet-normalised images (B, 3, 224, 224). Output: scores (B,) on the MOS scale, and
    the stage weights (B, 4), or None without attention.
    """

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if images.shape[2:] != (INPUT_SIZE, INPUT_SIZE):
            raise ValueError(f"images of {tuple(images.shape[2:])}; this model takes 224 x 224")
        stages = self.backbone(images)  # four maps at strides 4, 8, 16, 32
        query = self.local_distortion(stages)  # (B, 224)

        fused, stage_weights = self.fuse(stages)  # (B, C, 7, 7), (B, 4) or None
        rules = self.hyper_net(self.reduce(fused))  # weights and biases of five layers

        return self.target_net(query, rules), stage_weights  # (B,), (B, 4) or None

    def fuse(self, stages: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        return stages[-1], None

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The backbone's parameters, and those of all layers that are new."""
        backbone = [p for p in self.backbone.parameters() if p.requires_grad]
        known = {id(p) for p in self.backbone.parameters()}
        return backbone, [p for p in self.parameters() if id(p) not in known]


def reducer(widths: tuple[int, ...]) -> nn.Sequential:
    """1x1 convolutions with ReLU from widths[0] channels to the last of them."""
    layers = [
        layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 1), nn.ReLU(inplace=True))
    ]
    return nn.Sequential(*layers)


class HyperIQA(HyperModel):
    """HyperIQA on ResNet-50 (Su et al., CVPR 2020).

    backbone_weights: as in models_resnet_improved.ResNetImproved. initial_score: where scores
    start; the original starts near 0. The linear layers of the hyper network and the target network
    run in float32 under autocast.
    """

    def __init__(self, *, backbone_weights: str | Path | None = None, initial_score: float = 50.0):
        super().__init__()
        self.backbone = ResNet50(load_backbone_weights(backbone_weights))
        self.backbone.input_size = INPUT_SIZE
        self.local_distortion = LocalDistortion(ResNet50.channels)
        self.reduce = reducer((ResNet50.channels[-1], 1024, 512, HYPER_CHANNELS))
        self.hyper_net = PublishedHyperNet(initial_score=initial_score)
        self.target_net = TargetNet()


class SmartIQA(HyperModel):
    """SMART-IQA: HyperIQA on a Swin Transformer, with multi-scale fusion and stage attention.

    size: tiny, small or base. use_multiscale fuses the four stages, pooled to 7 x 7 and
    concatenated, instead of the last alone; use_attention weights them for each image. The rates
    are the published model's; the target network is assumed to have the reducer's dropout.
    `rates` holds those that no flag sets.
    """

    def __init__(
        self,
        *,
        size: str,
        use_multiscale: bool = True,
        use_attention: bool = True,
        dropout_rate: float = 0.4,
        attention_dropout_rate: float = 0.5,
        drop_path_rate: float = 0.3,
        backbone_weights: str | Path | None = None,
        initial_score: float = 50.0,
    ):
        super().__init__()
        self.rates = {"drop_path": drop_path_rate}
        if use_attention:
            self.rates["attention_dropout"] = attention_dropout_rate
        if use_attention and not use_multiscale:
            raise ValueError(
                "use_attention weights several stages: it needs use_multiscale as well"
            )
        self.backbone = SwinBackbone(size, backbone_weights, drop_path_rate=drop_path_rate)
        channels = self.backbone.channels
        self.local_distortion = LocalDistortion(channels)
        self.use_multiscale = use_multiscale
        self.attention = EqualWeights()
        if use_attention:
            self.attention = StageAttention(
                stage_channels=channels, dropout_rate=attention_dropout_rate, scaled=False
            )
            nn.init.normal_(self.attention.weigh[0].weight, std=0.01)
            nn.init.zeros_(self.attention.weigh[0].bias)
        fused = sum(channels) if use_multiscale else channels[-1]
        self.reduce = reducer((fused, 512, 256, HYPER_CHANNELS)).append(nn.Dropout(dropout_rate))
        self.hyper_net = PublishedHyperNet(initial_score=initial_score)
        self.target_net = TargetNet(dropout_rate=dropout_rate)

    def fuse(self, stages: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        if not self.use_multiscale:
            return stages[-1], None
        return self.attention([pooled(stage) for stage in stages])  # (B, C, 7, 7), (B, 4) or None


# HyperIQA's published checkpoint ----------------------------------------------------------------


def convert_hyperiqa(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """HyperIQA's published state dict (koniq_pretrained.pkl) under the names of HyperIQA here.

    Raises WeightsError if it is something else.
    """
    names = {
        **{f"res.{a}.": f"backbone.stem.{i}." for i, a in enumerate(("conv1", "bn1"))},
        **{f"res.layer{i}.": f"backbone.stage{i}." for i in range(1, 5)},
        **{f"res.lda{i}_pool.0.": f"local_distortion.project.{i - 1}." for i in range(1, 4)},
        **{f"res.lda{i}_fc.": f"local_distortion.read.{i - 1}." for i in range(1, 5)},
        **{f"conv1.{i}.": f"reduce.{i}." for i in (0, 2, 4)},
        **{f"fc{i}w_conv.": f"hyper_net.matrices.{i - 1}." for i in range(1, 5)},
        "fc5w_fc.": "hyper_net.last_weight.",
        **{f"fc{i}b_fc.": f"hyper_net.biases.{i - 1}." for i in range(1, 6)},
    }
    converted, unknown = {}, []
    for key, tensor in state.items():
        prefix = next((p for p in names if str(key).startswith(p)), None)
        if prefix:
            converted[names[prefix] + key.removeprefix(prefix)] = tensor
        elif not str(key).startswith("res.fc."):
            unknown.append(str(key))
    with torch.device("meta"):
        wanted = HyperIQA().state_dict()
    wrong = misfits(converted, wanted)
    if unknown or wrong:
        raise WeightsError(
            f"not HyperIQA's published weights: {len(wrong)} tensors missing or of another shape "
            f"({', '.join(wrong[:3])}), {len(unknown)} unknown ({', '.join(unknown[:3])})"
        )
    return converted


def load_hyperiqa(path: str | Path) -> HyperIQA:
    """HyperIQA with its published checkpoint, in eval mode; loads with `weights_only`.

    Raises WeightsError if the file is something else.
    """
    if not Path(path).is_file():
        raise WeightsError(f"{path}: no such file")
    state = unwrapped(load_tensors(Path(path)), Path(path))
    try:
        converted = convert_hyperiqa(state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    model = HyperIQA()
    model.load_state_dict(converted, strict=False)  # old files lack num_batches_tracked
    return model.eval()


def build_neighbour(name: str, **options) -> HyperModel:
    """HyperIQA or SMART-IQA by its name on the command line; a TypeError for others' options."""
    if name == "hyperiqa":
        return HyperIQA(**options)
    return SmartIQA(size=name.removeprefix("smart_iqa_"), **options)


@torch.no_grad()
def main() -> int:
    """The smoke test: 0 if all four models compute what they should."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, INPUT_SIZE, INPUT_SIZE)
    problems = []
    for name, expected in PARAMETERS.items():
        model = build_neighbour(name).eval()
        count = sum(p.numel() for p in model.parameters())
        scores, weights = model(images)
        alone = torch.cat([model(image[None])[0] for image in images])
        print(name)
        print_forward_pass(count, images, scores, weights)
        if count != expected:
            problems.append(f"{name}: {count:,} parameters instead of {expected:,}")
        if not close(scores, alone, 5e-4):
            problems.append(f"{name}: a score that depends on the other images")
        if (weights is not None) != name.startswith("smart"):
            problems.append(f"{name}: stage weights without attention, or none with it")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print("all four models are as designed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

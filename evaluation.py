"""What score an image gets: its crops, their scores, their mean; and a trained model to use.

    from evaluation import load_model
    model = load_model("checkpoints/resnet_improved_ms_att_last.pth")   # in eval mode

An image's score is the mean over its crops, so it depends on that image alone.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import data_loader as data
from devices import autocast, choose_device, choose_precision, compile_in_place, memory_format
from errors import RunError, first_line
from experiment import CONFIGURATIONS, PRESETS, RESNET50, configuration_name
from folding import folded, in_eval_mode
from metrics import agreement
from published import find_checkpoint

if TYPE_CHECKING:  # imported when work begins, so that --help and errors come at once
    import pandas as pd
    import torch
    from torch import Tensor, nn

# Flags that older checkpoints don't have and a use of theirs needs, with what was done before
# there was the flag. (What a resumed run needs besides, training/resume.py adds.)
LATER_FLAGS = {
    "model": "resnet_improved",
    "attention": "published",
    "backbone": RESNET50,
    "wide": False,
    "csv": [],
    "csv_columns": [],
    "lower_is_better": False,
    "score_range": None,
    "average_ratings": False,
    "image_dir": None,
    "test_flip": False,
}
# How images are prepared for HyperIQA's published weights.
HYPERIQA_FLAGS = {
    **LATER_FLAGS,
    **PRESETS["hyperiqa_paper"],
    "dataset": "koniq-10k",
    "resize": (512, 384),
    "patch_size": 224,
    "test_crop": "random",
}


# Crops ------------------------------------------------------------------------------------------


def evaluation_plan(args: argparse.Namespace, table: "pd.DataFrame") -> np.ndarray:
    """The crops of all validation images, then of all test images: int32 (N * P, 4).

    Each split has its own crops, so that test crops don't depend on the validation images.
    """
    return np.concatenate(
        [crops_of(args, np.flatnonzero(table["split"] == split)) for split in ("val", "test")]
    )


def crops_of(args: argparse.Namespace, images: np.ndarray) -> np.ndarray:
    """The crops on which the flags have images (rows of the table) evaluated: int32 (N * P, 4)."""
    return data.test_plan(
        images,
        crop=args.test_crop,
        per_image=args.test_patch_num,
        resize=args.resize,
        patch_size=args.patch_size,
        flip=args.test_flip,
    )


def evaluated_crops(args: argparse.Namespace) -> int:
    """How many crops the plan of the flags has for each image, with their mirror images."""
    return args.test_patch_num * (2 if args.test_flip else 1)


def evaluated_size(args: argparse.Namespace) -> tuple[int, int]:
    """Height and width of the crops on which the flags have images evaluated."""
    return tuple(args.resize) if args.test_crop == "full" else (args.patch_size, args.patch_size)


def described_crops(flags: dict[str, Any]) -> str:
    """The crops on which the flags have images evaluated, in words."""
    words = "{patch_size} of {resize[0]} x {resize[1]} (H x W), {test_crop}, "
    words += "{test_patch_num} per image"
    if flags["test_crop"] == "full":
        words = "the whole image, resized to {resize[0]} x {resize[1]} (H x W)"
    return words.format(**flags) + ", each with its mirror image" * flags["test_flip"]


def check_takes(model: "nn.Module", size: tuple[int, int]) -> None:
    """Raise RunError if the backbone takes no images of this height and width."""
    import torch

    backbone = model.backbone
    only = backbone.input_size
    if only and size != (only, only):
        raise RunError(
            f"--test_crop full: the backbone takes images of {only} x {only} only, and they are "
            f"resized to {size[0]} x {size[1]}: give another --test_crop"
        )
    try:
        with torch.no_grad(), in_eval_mode(backbone):
            backbone(torch.zeros(1, 3, *size, device=next(backbone.parameters()).device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise RunError(
            f"the backbone takes no images of {size[0]} x {size[1]} ({first_line(error)}): give "
            "another --patch_size, or for --test_crop full another --resize"
        ) from error


def crops_of_each(test_crop: str, given: int | None, trained: int) -> int:
    """Crops of each image: `given`, or if that is None the number of the training.

    A center crop and a full image are one. A grid needs a square number: `trained` is reduced to
    one. Raises RunError if `given` is none.
    """
    if test_crop in ("center", "full"):
        return 1
    if test_crop == "grid":
        count = given or math.isqrt(trained) ** 2
        if math.isqrt(count) ** 2 != count:
            raise RunError(f"--test_patch_num {count}: --test_crop grid takes a square number")
        return count
    return given or trained


def choose_crops(
    args: argparse.Namespace,
    test_crop: str | None,
    test_patch_num: int | None,
    test_flip: bool | None,
) -> None:
    """Set the flags of a training's evaluation to what is given; None keeps what they are.

    Raises RunError for what does not fit.
    """
    args.test_crop = test_crop or args.test_crop
    args.test_patch_num = crops_of_each(args.test_crop, test_patch_num, args.test_patch_num)
    args.test_flip = args.test_flip if test_flip is None else test_flip


def crops_for_use(
    model: "nn.Module",
    test_crop: str | None = None,
    test_patch_num: int | None = None,
    test_flip: bool | None = None,
) -> tuple[np.ndarray, tuple[int, int]]:
    """The crops (P, 4) on which a model in use scores each image, and their height and width.

    test_crop: None for complete images if those were evaluated in the model's training, and for a
    grid otherwise. test_patch_num: crops per image, None for those of the training. test_flip:
    whether their mirror images are added, None as in the training. Raises RunError for what does
    not fit.
    """
    args = argparse.Namespace(**model.config["flags"])
    default = "full" if args.test_crop == "full" else "grid"
    choose_crops(args, test_crop or default, test_patch_num, test_flip)
    size = evaluated_size(args)
    if size != evaluated_size(argparse.Namespace(**model.config["flags"])):
        check_takes(model, size)
    return crops_of(args, np.zeros(1, int)), size


def evaluation_batch(device: "torch.device", size: tuple[int, int]) -> int:
    """Crops in a batch of evaluation: more than in training, and fewer if they are large.

    size: their height and width.
    """
    most = 256 if device.type == "cuda" else 64
    return max(1, int(most * min(1.0, 224**2 / (size[0] * size[1]))))


# Scores -----------------------------------------------------------------------------------------


def score_crops(
    model: "nn.Module",
    batches: "Iterable[dict[str, Tensor]]",
    *,
    device: "torch.device",
    precision: str,
    compiled: bool = False,
    between_steps: Callable[[], None] | None = None,
) -> tuple["Tensor", "Tensor | None"]:
    """Scores (M,) and stage weights (M, 4) or None of all crops of the batches, on the device.

    between_steps: called after each batch.
    """
    import torch

    model = folded(model)
    if compiled:
        compile_in_place(model, device)
    scores, weights = [], []
    # Not inference_mode, in which autocast would cast all weights again for each batch.
    with torch.no_grad(), autocast(device, precision):
        for batch in batches:
            score, stage_weights = model(data.to_network_input(batch, device))
            scores.append(score.clone())  # a CUDA graph writes its next result in its place
            weights.append(None if stage_weights is None else stage_weights.clone())
            if between_steps:
                between_steps()
    if not scores:
        return torch.empty(0), None
    return torch.cat(scores), None if weights[0] is None else torch.cat(weights)


def mean_of_crops(values: "Tensor", crops_per_image: int) -> np.ndarray:
    """Means (N,) or (N, K) over each image's crops, of values (N * P,) or (N * P, K).

    float64 of six decimals, so that the predictions CSV holds exactly these numbers.
    """
    values = values.view(-1, crops_per_image, *values.shape[1:])  # (N, P) or (N, P, K)
    return values.cpu().double().mean(1).numpy().round(6)


def evaluate(
    model: "nn.Module", batches: "Iterable[dict[str, Tensor]]", crops_per_image: int, **options
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores (N,) and stage weights (N, 4) or None of images: means over their crops.

    The batches' plan goes image by image, `crops_per_image` crops each (data_loader.test_plan).
    `options` are those of score_crops.
    """
    scores, weights = score_crops(model, batches, **options)
    if weights is not None:
        weights = mean_of_crops(weights, crops_per_image)
    return mean_of_crops(scores, crops_per_image), weights


def mean_by_image(scores: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean score of each image that occurs, and which images these are."""
    present, at = np.unique(images, return_inverse=True)
    return np.bincount(at, scores) / np.bincount(at), present


def agreement_by_split(table: "pd.DataFrame", scores: np.ndarray) -> dict[str, float]:
    """val_srcc, test_srcc, test_plcc ... of the table's images, for the splits that it has."""
    figures = {}
    for split in ("val", "test"):
        part = (table["split"] == split).to_numpy()
        if part.any():
            values = agreement(scores[part], table["mos"].to_numpy()[part])
            figures |= {f"{split}_{name}": value for name, value in values.items()}
    return figures


def predictions_frame(
    table: "pd.DataFrame", scores: np.ndarray, weights: np.ndarray | None
) -> "pd.DataFrame":
    """Columns split, image, mos, score (and w1..w4; then what is known of the votes) of images.

    The votes (vote_mean, mos_sd, votes; see datasets.labels.read_labels) are rounded.
    """
    frame = table[["split", "image", "mos"]].assign(score=scores)
    if weights is not None:
        frame[["w1", "w2", "w3", "w4"]] = weights
    known = [column for column in ("vote_mean", "mos_sd", "votes") if column in table]
    return frame.assign(**{column: table[column].round(4) for column in known})


# Models -----------------------------------------------------------------------------------------


def build_model(flags: dict, initial_score: float) -> "nn.Module":
    """The network of a run's flags. Raises WeightsError if its weights can't be read."""
    name = flags["model"]
    options = dict(CONFIGURATIONS[configuration_name(flags)].options)
    options |= {"backbone_weights": flags["backbone_weights"], "initial_score": initial_score}
    if name != "hyperiqa":
        options["dropout_rate"] = flags["dropout_rate"]
    if name == "resnet_improved":
        from models_resnet_improved import ResNetImproved

        return ResNetImproved(
            **options | {"attention": flags["attention"]},
            backbone=flags["backbone"],
            image_size=flags["patch_size"],
        )
    from models_hyperiqa import build_neighbour

    return build_neighbour(name, **options)


def load_checkpoint(path: str | Path) -> dict:
    """A checkpoint of this software: model, config and epochs (and more in a run's state).

    Raises RunError if the file is damaged or something else.
    """
    from backbone_weights import load_tensors

    state = load_tensors(Path(path))
    if not (isinstance(state, dict) and {"model", "config", "epochs"} <= set(state)):
        raise RunError(f"{path}: not a checkpoint of this software")
    config = state["config"]
    config["flags"] = LATER_FLAGS | config["flags"]
    config.setdefault("label_source", config.get("labels"))  # its name in older checkpoints
    return state


def contents_to_tensor(contents: "Iterable[str]") -> "Tensor":
    """Content hashes of image files (datasets.pixel_store) as a checkpoint keeps them: (N, 8)."""
    import torch

    contents = np.frombuffer(bytes.fromhex("".join(contents)), np.uint8)
    return torch.tensor(contents.reshape(-1, 8))


def load_model(
    checkpoint: str | Path, device: str = "auto", *, published: str | None = None
) -> "nn.Module":
    """The network of a checkpoint, in eval mode on the device; `model.config` is its configuration.

    checkpoint: a file, or the name of a published one (published.py).
    `model.trained_on` holds the content hashes of its training and validation images; None for
    checkpoints that do not say.
    published: 'hyperiqa' for the file that HyperIQA's authors publish (koniq_pretrained.pkl), with
    their preprocessing. Loads with `weights_only`. Raises RunError for a file that is neither.
    """
    if published:
        from models_hyperiqa import load_hyperiqa

        model, device = load_hyperiqa(checkpoint), choose_device(device)
        model.config = {
            "model": published,
            "flags": dict(HYPERIQA_FLAGS),
            "device": device.type,
            "precision": "off",  # as its authors trained
            "split_unknown": True,
        }
        model.trained_on = None
        return model.to(device, memory_format=memory_format(device))
    state = load_checkpoint(find_checkpoint(checkpoint))
    flags = state["config"]["flags"] | {"backbone_weights": "none"}
    model = build_model(flags, initial_score=50.0)
    put_weights(model, state, checkpoint)
    model.config, contents = state["config"], state.get("trained_on")
    model.trained_on = None if contents is None else {bytes(c).hex() for c in contents.numpy()}
    on = choose_device(device)
    return model.eval().to(on, memory_format=memory_format(on))


def put_weights(model: "nn.Module", checkpoint: dict, path: str | Path) -> None:
    """Load the weights of a checkpoint into its network; RunError if they are not of that one.

    Of a run's state those that it would be evaluated with.
    """
    try:
        model.load_state_dict(of_this_version(checkpoint.get("average") or checkpoint["model"]))
    except RuntimeError as error:
        raise RunError(
            f"{path}: its weights are not those of {checkpoint['config']['model']}"
        ) from error
    model.hyper_net.map_scores(*checkpoint.get("score_map", (1.0, 0.0)))


def of_this_version(weights: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    """A network's weights under today's names: those of a Swin were torchvision's, by stage."""
    from backbone_weights import swin_of_timm

    prefix, of_stage = "backbone.", re.compile(r"stage([1-4])\.([01])\.")
    if not any(k.startswith("backbone.stage") and "attn.qkv" in k for k in weights):
        return weights

    def old(name: str) -> str:
        """torchvision's name of a layer."""
        return of_stage.sub(lambda m: f"features.{2 * int(m[1]) - 2 + int(m[2])}.", name)

    def new(name: str) -> str:
        """The name here of a layer with this name in timm's complete model."""
        return name if name.startswith("norm.") else f"net.{name.replace('layers.', 'layers_')}"

    backbone = {old(k.removeprefix(prefix)): v for k, v in weights.items() if k.startswith(prefix)}
    renamed = {f"{prefix}{new(k)}": v for k, v in swin_of_timm(backbone).items()}
    return renamed | {k: v for k, v in weights.items() if not k.startswith(prefix)}


def precision_of(model: "nn.Module", amp: str) -> str:
    """What `--amp` names; 'auto': the precision of its training, on a device of that kind."""
    device, config = next(model.parameters()).device, model.config
    if amp == "auto" and config.get("device") == device.type:
        return config.get("precision") or choose_precision(amp, device)
    return choose_precision(amp, device)


def multiply_adds(model: "nn.Module", patch_size: int) -> int:
    """Multiply-adds of convolutions and matrix products in one crop's forward pass."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.zeros(1, 3, patch_size, patch_size, device=next(model.parameters()).device)
    with torch.no_grad(), in_eval_mode(model), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2

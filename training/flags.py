"""The flags of a training run, their defaults, and which of them do not fit together."""

import argparse
import math
from pathlib import Path

from datasets.flags import (
    HelpFormatter,
    add_data_flags,
    add_store_dir,
    number,
    resolve_data_flags,
    with_negative_numbers,
)
from devices import DEVICES
from experiment import LATER_RECIPE, MODELS, PRESETS, RESNET50, configuration_name
from training.losses import LOSSES

INIT = "init"  # what a record says of --backbone_weights if the run starts from --init
# Defaults of --dropout_rate. SMART-IQA's is that of its code; HyperIQA has no dropout.
DROPOUT, SMART_DROPOUT, HYPERIQA_DROPOUT = 0.3, 0.4, 0.0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of a run; argv: the command line without the script's name, None takes sys.argv.

    Exits with status 2 and one sentence on stderr for flags that cannot be used.
    """
    return parsed(build_parser(argparse.ArgumentParser), with_negative_numbers(argv))


def parsed(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    preset = parser.parse_known_args(argv)[0].preset
    parser.set_defaults(**PRESETS.get(preset, {}))
    args = parser.parse_args(argv)
    resolve_flags(parser, args)
    return args


def build_parser(kind: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """A parser of this kind with all flags of a run."""
    parser = kind(
        description="Train and evaluate one configuration.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )

    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="a recipe as the defaults, which other flags override; see docs/recipes.md and, for "
        "hyperiqa_paper and smart_iqa, docs/neighbours.md",
    )
    group = parser.add_argument_group("model")
    flag = group.add_argument
    flag(
        "--model",
        choices=MODELS,
        default="resnet_improved",
        help="the experiment's model, or a model to compare with, which needs --patch_size 224",
    )
    flag(
        "--use_multiscale",
        action=argparse.BooleanOptionalAction,
        help="fuse all four stages instead of using stage 4 only (default: on for smart_iqa_*, "
        "else off)",
    )
    flag(
        "--use_attention",
        action=argparse.BooleanOptionalAction,
        help="weight the stages; needs --use_multiscale (default: on for smart_iqa_* with "
        "fusion, else off)",
    )
    flag(
        "--attention",
        choices=["scaled", "published", "static"],
        help="how stages are weighted; published: SMART-IQA's formula, which smart_iqa_* always "
        "use (on a ResNet-50 it collapses onto one stage); static: a control, learned weights that "
        "are the same for all images (default: scaled)",
    )
    flag(
        "--wide",
        action="store_true",
        help="a control: the layers and parameters of --use_multiscale, fed by stage 4 only",
    )
    flag(
        "--dropout_rate",
        type=number(float, 0, 1, open_end=True),
        metavar="RATE",
        help="dropout of the reduced maps and of the attention, or for smart_iqa_* of the reduced "
        "maps and of the target network; increase it if the model overfits "
        f"(default: {DROPOUT}; {SMART_DROPOUT} for smart_iqa_*)",
    )
    flag(
        "--backbone",
        default=RESNET50,
        metavar="NAME",
        help="torchvision's resnet50, or a backbone of timm with maps at strides 4, 8, 16 and 32, "
        "such as resnet18, convnext_tiny, tf_efficientnet_lite0 (default: resnet50)",
    )
    flag(
        "--backbone_weights",
        action="append",
        metavar="NAME|FILE|BACKBONE=FILE",
        help="imagenet (the default), none (random), or a state dict of torchvision's ResNet-50 or "
        "of timm's backbone, .pth or .safetensors; for resnet50 also imagenet1k_v1, imagenet1k_v2; "
        "with BACKBONE= for that backbone only",
    )
    flag(
        "--init",
        metavar="FILE|NAME",
        help="start from a trained checkpoint of the same configuration and backbone, instead of "
        "ImageNet weights: fine-tuning (docs/fine-tuning.md)",
    )
    flag(
        "--init_head",
        choices=["mean", "keep"],
        help="the last bias of a network of --init; mean: the mean score of the training images; "
        "keep: that of the checkpoint (default: mean)",
    )
    flag(
        "--freeze_bn",
        action=argparse.BooleanOptionalAction,
        default=LATER_RECIPE["freeze_bn"],
        help="the BatchNorms of the backbone keep the statistics, weights and biases that they "
        "came with, which makes training faster",
    )
    flag(
        "--freeze_stages",
        type=number(int, 0, 4),
        default=LATER_RECIPE["freeze_stages"],
        metavar="N",
        help="do not train the stem and the first N of the backbone's four stages: steps are "
        "faster",
    )

    group = parser.add_argument_group("data")
    flag = group.add_argument
    add_data_flags(flag)
    flag(
        "--patch_size",
        type=number(int, 32, 8192),
        default=224,
        metavar="N",
        help="side of a crop in pixels",
    )
    flag(
        "--train_patch_num",
        type=number(int, 1, 1000),
        default=25,
        metavar="N",
        help="random crops per training image and epoch; decrease it for a shorter run",
    )
    flag(
        "--test_patch_num",
        type=number(int, 1, 1000),
        default=25,
        metavar="N",
        help="crops per evaluated image, whose mean is its score; a square number for --test_crop "
        "grid; always 1 for center and full",
    )
    crop = group.add_mutually_exclusive_group()
    crop.add_argument(
        "--test_crop",
        choices=["random", "grid", "center", "full"],
        default="random",
        help="crops of evaluated images; random: the same in every epoch, configuration and run; "
        "full: the whole resized image at once, whose size should be near --patch_size",
    )
    crop.add_argument(
        "--test_random_crop",
        dest="test_crop",
        action="store_const",
        const="random",
        default=argparse.SUPPRESS,
        help="the same as --test_crop random",
    )
    flag(
        "--test_flip",
        action=argparse.BooleanOptionalAction,
        default=LATER_RECIPE["test_flip"],
        help="evaluate the mirror image of each crop as well",
    )
    jitter = group.add_mutually_exclusive_group()
    jitter.add_argument(
        "--color_jitter",
        action="store_true",
        help="vary brightness, contrast and saturation of training crops by up to 10%%",
    )
    jitter.add_argument(
        "--no_color_jitter",
        dest="color_jitter",
        action="store_false",
        default=argparse.SUPPRESS,
        help="do not vary colours; this is the default",
    )
    add_store_dir(flag)
    flag(
        "--store_device",
        choices=["auto", "cuda", "cpu"],
        default="auto",
        help="where the decoded images are kept and cropped; auto: on the GPU if they need at most "
        "half of its free memory; results do not depend on it",
    )

    group = parser.add_argument_group("optimisation")
    flag = group.add_argument
    flag(
        "--epochs",
        type=number(int, 1, 10_000),
        default=10,
        metavar="N",
        help="passes over the training images; the learning rates decay over all of them",
    )
    flag(
        "--batch_size",
        type=number(int, 1, 65_536),
        default=32,
        metavar="N",
        help="crops per step; decrease it if memory runs out, which changes the training",
    )
    flag(
        "--lr",
        type=number(float, 0, 1),
        default=1e-4,
        metavar="X",
        help="initial learning rate of the backbone; increase it for --backbone_weights none",
    )
    flag(
        "--lr_ratio",
        type=number(float, 0, 10_000),
        default=10.0,
        metavar="X",
        help="learning rate of the new layers divided by that of the backbone",
    )
    flag(
        "--weight_decay",
        type=number(float, 0, 1),
        default=1e-4,
        metavar="X",
        help="weight decay of the optimizer",
    )
    flag(
        "--gradient_clip",
        type=number(float, 0),
        default=1.0,
        metavar="NORM",
        help="gradients with a larger norm are scaled down to it; 0: no clipping",
    )
    flag("--optimizer", choices=["adamw", "adam"], default="adamw", help="adam: as HyperIQA")
    flag(
        "--schedule",
        choices=["cosine", "step", "constant"],
        default="cosine",
        help="decay of the learning rates; cosine: to 1%%; step: to a tenth every six epochs, as "
        "HyperIQA; constant: none",
    )
    flag(
        "--warmup_epochs",
        type=number(float, 0, 10_000),
        default=LATER_RECIPE["warmup_epochs"],
        metavar="X",
        help="the learning rates rise linearly over the first X epochs; the decay begins then",
    )
    flag(
        "--loss",
        choices=LOSSES,
        default=LATER_RECIPE["loss"],
        help="what is minimised; nin: Norm-in-Norm, over the images of a batch; sums with nin: "
        "errors in tens of points, plus nin; nin and plcc alone: a straight line from the scores "
        "to MOS is fitted after each epoch, on training images",
    )
    flag(
        "--ema",
        type=number(float, 0, 1, open_end=True),
        default=LATER_RECIPE["ema"],
        metavar="DECAY",
        help="evaluate and save an average of the weights over the steps, which keeps this much of "
        "itself at each step, such as 0.99 (less in the first steps); 0: the weights themselves",
    )
    flag(
        "--seed",
        type=number(int, 0, 2**32 - 1),
        default=42,
        metavar="N",
        help="seed of initial weights, dropout and training crops",
    )

    group = parser.add_argument_group("run")
    flag = group.add_argument
    flag(
        "--device",
        choices=DEVICES,
        default="auto",
        help="auto: CUDA if available; mps: Apple's GPU, in float32 (untested)",
    )
    flag(
        "--amp",
        choices=["auto", "bf16", "fp16", "off"],
        default="auto",
        help="precision of the network; auto: bf16 if the hardware supports it; off: float32 (with "
        "TF32 convolutions on CUDA)",
    )
    flag(
        "--compile",
        action="store_true",
        help="torch.compile the network (with CUDA graphs on a GPU): the start takes minutes, "
        "steps are faster; for one process only",
    )
    flag(
        "--cuda_graph",
        choices=["auto", "off"],
        default="off",
        help="auto: launch the complete step on full batches at once, as a CUDA graph, if the "
        "images are on the GPU, for one process without --compile and without fp16; takes more "
        "memory, and changes no result",
    )
    flag(
        "--workers",
        type=number(int, 0, 256),
        metavar="N",
        help="processes that cut crops of a store on the CPU; results do not depend on it "
        "(default: 0 on the CPU, 4 on CUDA)",
    )
    flag(
        "--save_model",
        action="store_true",
        help="write the state for --resume, and the checkpoints _best.pth and _last.pth",
    )
    flag("--checkpoint_dir", default="checkpoints", metavar="DIR", help="folder for checkpoints")
    flag(
        "--save_minutes",
        type=number(float, 0, 1e6),
        default=10,
        metavar="X",
        help="minutes between saves within an epoch; the end of an epoch is always saved",
    )
    flag(
        "--resume",
        nargs="?",
        const="auto",
        metavar="FILE",
        help="continue an interrupted run from its saved state, or from FILE, as if there had been "
        "no interruption; start a new run if there is no state; implies --save_model",
    )
    flag(
        "--check",
        action="store_true",
        help="check flags, data, weights and folders, and end without training or writing anything",
    )
    flag(
        "--log_dir", default="logs", metavar="DIR", help="folder for record, predictions and state"
    )
    flag(
        "--tensorboard",
        metavar="DIR",
        help="write the figures of each epoch for TensorBoard as well, into DIR/RUN_NAME",
    )
    flag(
        "--run_name",
        metavar="NAME",
        help="name of record, predictions and state (default: name of the configuration, and the "
        "time)",
    )

    return parser


def weights_of(backbone: str, given: list[str]) -> str:
    """The --backbone_weights of a backbone: the last BACKBONE=FILE, else the last without name."""
    named = [value.partition("=") for value in given]
    own = [file for name, equals, file in named if equals and name == backbone]
    for_all = [name for name, equals, _ in named if not equals]
    weights = [*for_all, *own][-1] if for_all or own else "imagenet"
    return "imagenet1k_v1" if weights == "imagenet" and backbone == RESNET50 else weights


def resolve_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Set the defaults that depend on other flags; parser.error for flags that do not fit together.

    Flags of a configuration that is not in experiment.CONFIGURATIONS are an error.
    """
    is_smart, is_hyperiqa = args.model.startswith("smart_iqa"), args.model == "hyperiqa"
    for name in ("use_multiscale", "use_attention"):
        if getattr(args, name) is None:
            setattr(args, name, is_smart and args.use_multiscale is not False)
        elif is_hyperiqa and getattr(args, name):
            parser.error(f"--{name}: --model hyperiqa has no fusion and no attention")
    if args.use_attention and not args.use_multiscale:
        parser.error("--use_attention weights several stages: give --use_multiscale as well")
    if args.wide and args.use_multiscale:
        parser.error("--wide is a control without several stages: give it without --use_multiscale")
    if args.attention == "static" and not args.use_attention:
        parser.error("--attention static weights the stages: give --use_attention as well")
    if args.model != "resnet_improved" and (args.wide or args.attention in ("scaled", "static")):
        parser.error("--wide and --attention are for --model resnet_improved")
    if args.attention is None:
        args.attention = "scaled" if args.model == "resnet_improved" else "published"
    if args.backbone != RESNET50 and args.model != MODELS[0]:
        parser.error(f"--backbone {args.backbone}: --model {args.model} has its own backbone")
    if args.init and args.backbone_weights:
        parser.error("--init holds the backbone's weights: leave --backbone_weights out")
    if args.init_head and not args.init:
        parser.error("--init_head is for --init")
    if args.init:
        args.backbone_weights, args.init_head = [INIT], args.init_head or "mean"
    args.backbone_weights = weights_of(args.backbone, args.backbone_weights or [])
    if is_smart and args.backbone_weights == "imagenet1k_v1":  # torchvision's of ResNet-50
        args.backbone_weights = "imagenet"
    if is_hyperiqa and args.dropout_rate is not None:
        parser.error("--dropout_rate: --model hyperiqa has no dropout")
    if args.dropout_rate is None:
        args.dropout_rate = (
            SMART_DROPOUT if is_smart else HYPERIQA_DROPOUT if is_hyperiqa else DROPOUT
        )
    if args.freeze_stages and args.model != MODELS[0]:
        parser.error(f"--freeze_stages: --model {args.model} trains all of its stages")
    if args.model != "resnet_improved" and args.patch_size != 224:
        parser.error(f"--patch_size {args.patch_size}: --model {args.model} needs --patch_size 224")

    if args.test_crop == "full" and args.model != MODELS[0]:
        parser.error(f"--test_crop full: --model {args.model} takes images of 224 x 224 only")
    if args.test_crop in ("center", "full"):
        args.test_patch_num = 1  # every center crop of an image is the same
    root = math.isqrt(args.test_patch_num)
    if args.test_crop == "grid" and root**2 != args.test_patch_num:
        parser.error(
            f"--test_patch_num {args.test_patch_num}: --test_crop grid takes a square number, such "
            f"as {root**2}"
        )
    if args.split_seed is None and args.preset == "hyperiqa_paper":
        args.split_seed = args.seed
    resolve_data_flags(parser, args)
    if args.patch_size > min(args.resize):
        parser.error(
            f"--patch_size {args.patch_size} is larger than the images, which --resize makes "
            f"{args.resize[0]} x {args.resize[1]}"
        )

    if args.warmup_epochs >= args.epochs:
        parser.error(
            f"--warmup_epochs {args.warmup_epochs:g} must be fewer than --epochs {args.epochs}"
        )

    args.save_model = args.save_model or args.resume is not None
    if args.run_name and Path(args.run_name).name != args.run_name:
        parser.error(f"--run_name {args.run_name}: a name, not a path; the folder is --log_dir")
    try:
        configuration_name(vars(args))
    except ValueError as error:
        parser.error(str(error))

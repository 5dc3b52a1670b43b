"""Which rows are compared: their flags and exact parameters, and what each is compared with.

    python3 experiment.py
    python3 experiment.py --preset smart_iqa --model smart_iqa_small
    python3 experiment.py --neighbours smart_iqa_tiny

prints the runs of an ablation, one per line: the run's name, then its flags. The shell script and
the SLURM script train what this prints; the training script, the smoke test, the report and the
benchmarks import the same table.

To add a configuration, add a line to ROWS, with a new kind in KINDS if its flags are new, and to
COMPARISONS what it is compared with.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple


class Configuration(NamedTuple):
    """A row of the experiment's tables."""

    run: str  # the name of its log, record and predictions in an ablation
    title: str  # in tables and figures
    flags: dict[str, str | bool]  # of train_resnet_improved.py: what tells this row from the others
    parameters: int  # exact
    colour: str  # of Okabe and Ito's palette, which colour-blind readers can tell apart
    marker: str  # matplotlib's

    @property
    def options(self) -> dict[str, str | bool]:
        """The flags that are arguments of the network's constructor: all but the model's name."""
        return {name: value for name, value in self.flags.items() if name != "model"}


RESNET50 = "resnet50"  # the default --backbone, whose rows have exact parameters here

# The kinds of rows that a model can have: the name of the run in an ablation, and the flags.
KINDS = {
    "ss_noatt": ("exp1_baseline", {"use_multiscale": False, "use_attention": False}),
    "ms_noatt": ("exp2_multiscale", {"use_multiscale": True, "use_attention": False}),
    "ms_att": ("exp3_multiscale_attention", {"use_multiscale": True, "use_attention": True}),
    "": ("exp4_hyperiqa", {}),  # HyperIQA has one row, and none of these flags
    # Controls, with --controls: as many parameters as multi-scale fusion, on stage 4 alone; the
    # same fusion with weights that do not depend on the image.
    "ss_wide": ("exp7_wide", {"use_multiscale": False, "use_attention": False, "wide": True}),
    "ms_static": (
        "exp8_static",
        {"use_multiscale": True, "use_attention": True, "attention": "static"},
    ),
}
CONTROLS = ("ss_wide", "ms_static")
# Model, kind, title, parameters, colour, marker.
ROWS = (
    ("resnet_improved", "ss_noatt", "baseline", 25_624_337, "#000000", "o"),
    ("resnet_improved", "ms_noatt", "+ multi-scale", 28_124_177, "#0072B2", "s"),
    ("resnet_improved", "ms_att", "+ attention", 28_649_749, "#D55E00", "^"),
    ("resnet_improved", "ss_wide", "control: wide", 28_124_177, "#999999", "p"),
    ("resnet_improved", "ms_static", "control: static", 28_124_181, "#F0E442", "h"),
    ("hyperiqa", "", "HyperIQA", 27_375_369, "#009E73", "D"),
    ("smart_iqa_tiny", "ss_noatt", "SMART-IQA tiny, no fusion", 28_981_059, "#CC79A7", "v"),
    ("smart_iqa_tiny", "ms_noatt", "SMART-IQA tiny, fusion", 29_325_123, "#CC79A7", "P"),
    ("smart_iqa_tiny", "ms_att", "SMART-IQA tiny", 29_523_015, "#CC79A7", "X"),
    ("smart_iqa_small", "ss_noatt", "SMART-IQA small, no fusion", 50_298_963, "#E69F00", "v"),
    ("smart_iqa_small", "ms_noatt", "SMART-IQA small, fusion", 50_643_027, "#E69F00", "P"),
    ("smart_iqa_small", "ms_att", "SMART-IQA small", 50_840_919, "#E69F00", "X"),
    ("smart_iqa_base", "ss_noatt", "SMART-IQA base, no fusion", 88_391_809, "#56B4E9", "v"),
    ("smart_iqa_base", "ms_noatt", "SMART-IQA base, fusion", 88_850_561, "#56B4E9", "P"),
    ("smart_iqa_base", "ms_att", "SMART-IQA base", 89_113_989, "#56B4E9", "X"),
)
# By the name of a row's checkpoints, which is `model` in its record: smart_iqa_tiny_ms_att.
CONFIGURATIONS = {
    f"{model}_{kind}" if kind else model: Configuration(
        KINDS[kind][0], title, {"model": model, **KINDS[kind][1]}, parameters, colour, marker
    )
    for model, kind, title, parameters, colour, marker in ROWS
}
BASELINE, MULTISCALE = "resnet_improved_ss_noatt", "resnet_improved_ms_noatt"
FULL = "resnet_improved_ms_att"
WIDE, STATIC = "resnet_improved_ss_wide", "resnet_improved_ms_static"
MODELS = list(dict.fromkeys(row.flags["model"] for row in CONFIGURATIONS.values()))  # --model
NEIGHBOURS = [model for model in MODELS if model.startswith("smart_iqa")]

BOTH = "both improvements"
# What is compared: label, the configuration, and the one that it is compared with.
COMPARISONS = [
    ("multi-scale fusion", MULTISCALE, BASELINE),
    ("channel attention", FULL, MULTISCALE),
    (BOTH, FULL, BASELINE),
    ("fusion over capacity", MULTISCALE, WIDE),
    ("image-dependence", FULL, STATIC),
    ("both, over HyperIQA", FULL, "hyperiqa"),
]
for swin in NEIGHBOURS:
    size = swin.removeprefix("smart_iqa_")
    COMPARISONS += [
        (f"backbone: Swin {size} for ResNet-50", f"{swin}_ms_att", FULL),
        (f"both improvements on Swin {size}", f"{swin}_ms_att", f"{swin}_ss_noatt"),
        (f"fusion on Swin {size}", f"{swin}_ms_noatt", f"{swin}_ss_noatt"),
        (f"attention on Swin {size}", f"{swin}_ms_att", f"{swin}_ms_noatt"),
    ]

# How the epoch of a run is chosen: name, the split whose SRCC chooses it.
SELECTIONS = {"best on test": "test", "chosen by val": "val", "last epoch": None}

# The verdict, by the relative gain of both improvements: bounds between the hypotheses.
BOUNDS = (0.003, 0.01)
HYPOTHESES = (
    "specific to the Transformer: on the CNN the improvements gain less than 0.3%",
    "limited: on the CNN the improvements gain 0.3% to 1%",
    "the improvements carry over to a CNN: they gain at least 1%",
)
LOWERED = "no gain on the CNN: the improvements lower its SRCC"
UNDECIDED = "not decided by these runs"
ONE_RUN = "not decided: one training run per configuration"
# Below one of these the attention has collapsed: effective number of stages (exp of the mean
# entropy of the stage weights), and standard deviation of the weights over images.
COLLAPSED = (1.5, 0.01)

# Published test SRCC on KonIQ-10k. The first two are best on test, in the experiment's own setting.
HYPERIQA, SMART_IQA = 0.8998, 0.9378
ANCHORS = [
    ("HyperIQA, ResNet-50, in the ablation's own setting", HYPERIQA),
    ("HyperIQA, ResNet-50, official split, as retrained by pyiqa", 0.9040),
    ("HyperIQA, ResNet-50, its paper: median of 10 random splits", 0.906),
    ("TOPIQ-NR, ResNet-50, official split", 0.9299),
    ("QCN, ResNet-50, random splits", 0.934),
    ("SMART-IQA, Swin-Base, best on test", SMART_IQA),
    ("label noise ceiling: split halves of the ratings", 0.972),
    ("label noise ceiling: attainable against the noisy MOS, about", 0.993),
]
# SRCC of HyperIQA (ResNet-50) trained on KonIQ-10k, as SMART-IQA's authors report it.
CROSS_ANCHORS = {"spaq": 0.788, "kadid-10k": 0.468, "agiqa-3k": 0.640}

# Flags that change no result: they say where files lie, and who does the work. A resumed run may
# have others (its precision may not differ), and so may the runs of one report. What --init names
# is compared by its content, which the record has as well.
FREE_FLAGS = {
    *("data_path", "store_dir", "store_device", "workers", "device", "amp", "compile"),
    "cuda_graph",
    *("save_model", "checkpoint_dir", "save_minutes", "resume", "log_dir", "run_name", "check"),
    *("init", "tensorboard"),
}

# Flags that make a recipe: how the same configurations are trained and evaluated.
RECIPE_FLAGS = {
    *("preset", "loss", "freeze_bn", "freeze_stages", "ema", "dropout_rate"),
    *("epochs", "warmup_epochs", "batch_size", "optimizer", "schedule"),
    *("lr", "lr_ratio", "weight_decay", "gradient_clip"),
    *("resize", "patch_size", "train_patch_num", "color_jitter"),
    *("test_patch_num", "test_crop", "test_flip"),
}

# Flags of the recipe that older records lack, with what was done before there were the flags.
LATER_RECIPE = {
    "loss": "l1",
    "freeze_bn": False,
    "freeze_stages": 0,
    "ema": 0.0,
    "warmup_epochs": 0.0,
    "test_flip": False,
}

# Recipes as defaults of flags. The published ones: HyperIQA's (its paper, sec. 4.2;
# docs/neighbours.md says what differs from its code), SMART-IQA's, and TOPIQ's (Chen et al., IEEE
# TIP 33, 2024) on the experiment's model. strong: chosen on validation images of BIQ2021's subset;
# docs/recipes.md has what was tried.
PRESETS = {
    "hyperiqa_paper": {
        "model": "hyperiqa",
        "split": "random",
        "optimizer": "adam",
        "schedule": "step",
        "lr": 2e-5,
        "lr_ratio": 10.0,
        "weight_decay": 5e-4,
        "gradient_clip": 0.0,
        "batch_size": 96,
        "epochs": 16,
        "train_patch_num": 25,
        "test_patch_num": 25,
    },
    "smart_iqa": {
        "model": "smart_iqa_base",
        "lr": 5e-7,
        "lr_ratio": 10.0,
        "weight_decay": 2e-4,
        "batch_size": 32,
        "epochs": 10,
        "train_patch_num": 20,
        "test_patch_num": 20,
    },
    "topiq": {
        "loss": "mse+nin",
        "freeze_bn": True,
        "resize": (384, 512),
        "patch_size": 384,
        "train_patch_num": 1,
        "test_crop": "full",
        "lr": 3e-5,
        "lr_ratio": 1.0,
        "weight_decay": 1e-5,
        "gradient_clip": 0.0,
        "batch_size": 16,
        "epochs": 200,
    },
    "strong": {
        "loss": "l1+nin",
        "freeze_bn": True,
        "freeze_stages": 2,
        "resize": (256, 256),
        "patch_size": 224,
        "train_patch_num": 1,
        "test_crop": "full",
        "lr": 2e-4,
        "ema": 0.97,
        "batch_size": 16,
        "epochs": 5,
    },
}


def configuration_name(flags: dict) -> str:
    """The key in CONFIGURATIONS of the row whose flags are all among a run's flags.

    If several rows fit, the one with most flags. Raises ValueError if none does.
    """
    fitting = [
        name
        for name, row in CONFIGURATIONS.items()
        if all(flags.get(flag) == value for flag, value in row.flags.items())
    ]
    if not fitting:
        raise ValueError("these flags are no row of experiment.py's CONFIGURATIONS")
    return max(fitting, key=lambda name: len(CONFIGURATIONS[name].flags))


def backbone_of(flags: dict) -> str:
    """The backbone of a run's flags; ResNet-50 in records from before there was the flag."""
    return flags.get("backbone") or RESNET50


def network_name(flags: dict) -> str:
    """The name of a run's checkpoints: its row, with the backbone if that is not a ResNet-50.

    'resnet_improved_ms_att', 'tf_efficientnet_lite0_ms_att'. Raises ValueError as
    `configuration_name`.
    """
    row, backbone = configuration_name(flags), backbone_of(flags)
    return row if backbone == RESNET50 else row.replace(MODELS[0], backbone, 1)


def rows_of(model: str) -> dict[str, Configuration]:
    """The rows of one --model, by name, in the order of the table."""
    return {n: row for n, row in CONFIGURATIONS.items() if row.flags["model"] == model}


def ablation(
    model: str,
    neighbours: str | None = None,
    *,
    controls: bool = False,
    backbones: tuple[str, ...] = (),
) -> dict[str, Configuration]:
    """The rows of an ablation by the names of their runs.

    neighbours: a SMART-IQA that is trained as well, complete and without its improvements, as is
    HyperIQA. controls: the model's controls as well. backbones: each row on each of these; the runs
    of other backbones than ResNet-50 have its name in theirs.
    """
    rows = {
        row.run: row
        for name, row in rows_of(model).items()
        if controls or not name.endswith(CONTROLS)
    }
    if neighbours:
        hyperiqa = CONFIGURATIONS["hyperiqa"]
        rows[hyperiqa.run] = hyperiqa
        rows[f"exp5_{neighbours}"] = CONFIGURATIONS[f"{neighbours}_ms_att"]
        rows[f"exp6_{neighbours}"] = CONFIGURATIONS[f"{neighbours}_ss_noatt"]
    if backbones:
        rows = {
            run if backbone == RESNET50 else f"{run}_{backbone}": row._replace(
                flags={**row.flags, "backbone": backbone}
            )
            for backbone in backbones
            for run, row in rows.items()
        }
    return rows


def command_line(row: Configuration, model: str) -> list[str]:
    """A row's flags as arguments of train_resnet_improved.py, whose --model is `model` already."""
    arguments = []
    for flag, value in row.flags.items():
        if flag == "model":
            arguments += [] if value == model else ["--model", value]
        elif isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", value]
    return arguments


def main() -> None:
    from console import check_shown

    parser = argparse.ArgumentParser(
        description="Prints the runs of an ablation, one per line: name and flags.",
        epilog="Further flags are ignored, so that those of the training can be given as they are.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", choices=MODELS, help=f"default: that of --preset, else {MODELS[0]}"
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), help="a recipe")
    parser.add_argument(
        "--neighbours",
        choices=NEIGHBOURS,
        nargs="?",
        const=NEIGHBOURS[0],
        help=f"HyperIQA and this SMART-IQA as well; {NEIGHBOURS[0]} if none is named",
    )
    parser.add_argument(
        "--backbones", metavar="NAME,NAME,...", help="the rows on each of these backbones"
    )
    parser.add_argument("--controls", action="store_true", help="the rows that isolate causes")
    args, _ = parser.parse_known_args()
    model = args.model or PRESETS.get(args.preset, {}).get("model", MODELS[0])
    if args.controls and not any(name.endswith(CONTROLS) for name in rows_of(model)):
        parser.error(f"--controls: --model {model} has no controls")
    backbones = tuple(args.backbones.split(",")) if args.backbones else ()
    if backbones and (model != MODELS[0] or args.neighbours):
        parser.error(f"--backbones is for --model {MODELS[0]}, without --neighbours")
    if "" in backbones or len(set(backbones)) < len(backbones):
        parser.error("--backbones takes names, each once, such as resnet50,resnet18")
    runs = ablation(model, args.neighbours, controls=args.controls, backbones=backbones)
    for run, row in runs.items():
        print(run, *command_line(row, model))
    check_shown()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # which python3 -I leaves out
    from console import command

    sys.exit(command(main)())

"""A trained model in one file for other programs: photographs in, scores out.

    python3 export_resnet_improved.py --checkpoint checkpoints/resnet_improved_ms_att_last.pth --output model.onnx
    python3 export_resnet_improved.py --checkpoint FILE --output model.pt2 --test_crop full

The first writes ONNX (it needs the packages onnx and onnxscript), the second PyTorch's own format,
torch.export. The preprocessing is inside: the model takes uint8 RGB images (batch, height, width,
3) of any size, and gives `score` (batch,), 0..100, higher is better, and `stage_weights` (batch, 4)
if it has attention. Scores are those of predict_resnet_improved.py --amp off; the file is checked
against them before it is written. It takes about a minute.
"""  # noqa: E501 (a command is one line)

import argparse
import contextlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from console import check_shown, command
from datasets.flags import HelpFormatter
from errors import RunError, first_line
from evaluation import crops_for_use, load_model
from files import check_file_for, replacing
from predict_resnet_improved import add_use_flags, score_images

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CLOSE = 0.01  # of scores from 0 to 100: an exported model that differs more is not written
SIZES = ((1, 96, 64), (3, 200, 300))  # batch, height and width of the images of the check


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A trained model in one file for other programs: photographs in, scores out.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag(
        "--checkpoint",
        required=True,
        metavar="FILE",
        help="a checkpoint of train_resnet_improved.py",
    )
    flag(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="the file to write: .onnx, or .pt2 for torch.export",
    )
    add_use_flags(flag, "as in prediction")
    args = parser.parse_args()
    if args.output.suffix not in (".onnx", ".pt2"):
        parser.error(f"--output {args.output}: ends in .onnx or .pt2")
    return args


def exported(scorer: "nn.Module") -> "torch.export.ExportedProgram":
    """An image_scorer.ImageScorer as a program of torch.export, for batches of any size."""
    import torch

    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    return torch.export.export(
        scorer,
        (noise(2, 100, 150),),
        dynamic_shapes={"images": {0: batch, 1: height, 2: width}},
    )


def file_of(program: "torch.export.ExportedProgram", suffix: str, about: dict) -> bytes:
    """The program as an .onnx or .pt2 file; about: texts for its metadata (about.json in .pt2)."""
    import torch

    if suffix == ".pt2":
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={"about.json": json.dumps(about, indent=1)})
        return file.getvalue()
    made = torch.onnx.export(
        program,
        input_names=["images"],
        output_names=output_names(program),
        dynamo=True,
        verbose=False,
    )
    made.model.metadata_props.update(about)
    return made.model_proto.SerializeToString()


def output_names(program: "torch.export.ExportedProgram") -> list[str]:
    return ["score", "stage_weights"][: len(program.graph_signature.user_outputs)]


def runner(content: bytes, suffix: str) -> "Callable[[Tensor], np.ndarray] | None":
    """A function that computes the scores of images by an exported file.

    None for ONNX if onnxruntime is not installed.
    """
    import torch

    if suffix == ".pt2":
        program = torch.export.load(io.BytesIO(content)).module()
        return lambda images: program(images)[0].numpy()
    if not find_spec("onnxruntime"):
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["score"], {"images": images.numpy()})[0]


def noise(batch: int, height: int, width: int) -> "Tensor":
    """Images of random pixels: uint8 (batch, height, width, 3)."""
    import torch

    generator = torch.Generator().manual_seed(batch * height * width)
    return torch.randint(256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)


@contextlib.contextmanager
def quiet():
    """Without the exporters' own warnings, which are for their developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def export(args: argparse.Namespace) -> None:
    """Write the file, and print what it takes and gives."""
    model = load_model(args.checkpoint, "cpu", published=args.model)
    crops = {name: getattr(args, name) for name in ("test_crop", "test_patch_num", "test_flip")}
    plan, size = crops_for_use(model, **crops)

    import torch

    from image_scorer import ImageScorer

    flags = model.config["flags"]
    (height, width), (high, wide) = flags["resize"], size
    inside = f"resize to height {height}, width {width}; {len(plan)} crop(s) of {high} x {wide}"
    about = {
        "model": model.config["model"],
        "backbone": flags["backbone"],
        "trained_on": flags["dataset"],
        "inside": f"{inside}; normalisation; mean over the crops",
        "score": "0..100, higher is better",
    }
    print(f"exporting {args.checkpoint}: about a minute", file=sys.stderr)
    with torch.no_grad(), quiet():
        try:
            scorer = ImageScorer(model, resize=flags["resize"], plan=plan, crop=size)
            program = exported(scorer.eval())
            content = file_of(program, args.output.suffix, about)
        except Exception as error:  # of the exporters: many kinds
            raise RunError(
                f"{args.checkpoint}: torch {torch.__version__} can't export this model "
                f"({first_line(error)})"
            ) from error
        check = "none: onnxruntime is not installed"
        if run := runner(content, args.output.suffix):
            differences = []
            for images in (noise(*of_size) for of_size in SIZES):
                table = score_images(model, images.numpy(), amp="off", **crops)
                differences.append(abs(run(images) - table["score"].to_numpy()))
            worst = np.concatenate(differences).max()  # NaN, if any is
            if not worst <= CLOSE:
                raise RunError(
                    f"{args.checkpoint}: scores of the exported model differ by {worst:.3g}: "
                    "nothing is written"
                )
            check = f"scores differ by {worst:.1g} at most from those of this software"
    with replacing(args.output) as file:
        file.write(content)

    print(f"{args.output}  {len(content) / 1e6:.0f} MB")
    print("input   images: uint8 (batch, height, width, 3), RGB, any size")
    print(f"output  {', '.join(output_names(program))}: float32")
    print(f"inside  {inside}")
    print(f"check   {check}")
    check_shown()


@command
def main() -> int:
    args = parse_args()
    missing = [name for name in ("onnx", "onnxscript") if not find_spec(name)]
    if args.output.suffix == ".onnx" and missing:
        raise RunError(
            f"--output {args.output}: ONNX needs {' and '.join(missing)}, which this Python does "
            f"not have: pip install {' '.join(missing)}, or give a name that ends in .pt2"
        )
    check_file_for("--output", args.output)
    export(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Where in an image its score comes from: a picture of the scores of its crops."""

import hashlib
import os
import sys
import warnings
from pathlib import Path

import numpy as np

from console import described
from datasets.images import load_image, resized
from errors import first_line
from files import replacing

LONGEST_NAME = 200  # bytes of the name of a map, without its hash and .png; most systems take 255


def dense_plan(resize: tuple[int, int], size: int) -> np.ndarray:
    """Crops that cover a resized image, at most half a crop apart: (P, 4) as of test_plan.

    resize: height and width of the image; size: side of the crops.
    """
    rows, columns = (
        np.rint(np.linspace(0, side - size, 1 + -(-2 * (side - size) // size))) for side in resize
    )
    tops, lefts = (corner.ravel() for corner in np.meshgrid(rows, columns, indexing="ij"))
    zeros = np.zeros(len(tops))
    return np.stack([zeros, tops, lefts, zeros], 1).astype(np.int32)


def write_heatmaps(folder: Path, maps: list[tuple], plan: np.ndarray, flags: dict) -> int:
    """Write a map for each (path, score, scores of the plan's crops); the number that failed."""
    failed = 0
    for path, score, crop_scores in maps:
        try:
            write_heatmap(folder, Path(path), score, crop_scores, plan, flags)
        except Exception as error:  # of matplotlib, of Pillow, of the disk: many kinds
            failed += 1
            reason = described(error) if isinstance(error, OSError) else first_line(error)
            print(f"error: {path}: its map can't be made ({reason})", file=sys.stderr)
    return failed


def write_heatmap(
    folder: Path,
    path: Path,
    score: float,
    crop_scores: np.ndarray,
    plan: np.ndarray,
    flags: dict,
) -> None:
    """Write FOLDER/NAME.png: the image, and a map of the mean score of the crops at each pixel.

    score: of the image. crop_scores (P,) are those of the plan's crops (P, 4), which cover the
    image. NAME: see map_name.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    matplotlib.rcdefaults()  # whatever style the user has
    (height, width), size = flags["resize"], flags["patch_size"]
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for crop_score, (_, top, left, _) in zip(crop_scores, plan):
        total[top : top + size, left : left + size] += crop_score
        count[top : top + size, left : left + size] += 1
    means = total / count
    original = load_image(path)
    image, (wide, high) = resized(original, height, width), original.size
    shape = {"extent": (0, wide, high, 0)}
    figure, panels = plt.subplots(
        1, 2, figsize=(8, 4 * min(2.0, high / wide) + 0.5), layout="constrained"
    )
    panels[0].imshow(image, **shape)
    name = path.name.encode(errors="backslashreplace").decode()[-60:]
    title = f"{name}: {score:.1f}"
    panels[0].set_title(title, fontsize=9, parse_math=False, usetex=False)
    grey = np.asarray(Image.fromarray(image).convert("L"))
    panels[1].imshow(grey, cmap="gray", vmin=0, vmax=255, **shape)
    drawn = panels[1].imshow(means, cmap="viridis", alpha=0.6, **shape)
    figure.colorbar(drawn, ax=panels[1], label="mean score of the crops at a pixel", shrink=0.8)
    for axes in panels:
        axes.set_axis_off()
    try:
        with replacing(folder / f"{map_name(path)}.png") as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # of a name that the font can't show
            figure.savefig(file, format="png", dpi=120)
    finally:
        plt.close(figure)


def map_name(path: Path) -> str:
    """The full path of an image as the name of its map, which no other image has: + for each /.

    If the path has a + itself, or is too long for a name, a hash of it comes first.
    """
    name = str(path.absolute()).lstrip(os.sep)
    flat = os.fsencode(name.replace(os.sep, "+"))
    if "+" in name or len(flat) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12].encode()
        flat = digest + b"+" + flat[-LONGEST_NAME:]
    return os.fsdecode(flat)

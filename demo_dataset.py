"""Generate a small synthetic data set in the layout of KonIQ-10k, for the demo and for tests.

    python3 demo_dataset.py demo/koniq-10k

generates 480 scenes in about 20 s on two cores. Each scene gets one kind of distortion of a known
amount. Images (512x384/), labels, the official split and the split JSONs have KonIQ-10k's names, so
that the same reader is used. demo_damage.csv records the distortion of each image.

Scenes are dead leaves: discs that occlude each other, with radii distributed as r^-3 and a texture
of 1/f amplitude. Their statistics are close to those of natural images (Lee, Mumford and Huang,
Occlusion Models for Natural Images, IJCV 41, 2001). Scores are votes of simulated observers on the
known distortion; they say nothing about people.
"""

import argparse
import json
import os
import shutil
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from console import command
from datasets.labels import DEMO_MARKER
from devices import cores
from files import check_folder_for
from progress import Progress

WIDTH, HEIGHT = 512, 384
LEAVES = 2000
RADII = (10.0, 500.0)  # pixels, at twice the final size
OBSERVERS = 100
COUNTS = {"training": 320, "validation": 60, "test": 100}
VERSION = 1  # of the generator; a folder of another version is generated again


def draw_scene(rng: np.random.Generator) -> Image.Image:
    """A dead-leaves scene, RGB, WIDTH x HEIGHT; drawn at twice the size, for smooth edges."""
    width, height = 2 * WIDTH, 2 * HEIGHT
    low, high = RADII
    radii = (rng.random(LEAVES) * (high**-2 - low**-2) + low**-2) ** -0.5  # density r^-3
    centres = rng.random((LEAVES, 2)) * (width, height)
    leaves = Image.new("I", (width, height))
    draw = ImageDraw.Draw(leaves)
    for leaf, (radius, (x, y)) in enumerate(zip(radii, centres), 1):
        squeeze = rng.uniform(0.5, 1)
        box = (x - radius, y - radius * squeeze, x + radius, y + radius * squeeze)
        draw.ellipse(box, fill=leaf)

    light, tint = rng.normal(128, 25), rng.normal(0, 15, 3)
    colours = light + tint + rng.normal(0, 45, (LEAVES + 1, 1)) + rng.normal(0, 20, (LEAVES + 1, 3))
    grain = rng.gamma(2.0, 6.0, LEAVES + 1)  # amplitude of each leaf's texture
    index = np.asarray(leaves)
    pixels = colours[index] + (grain[index] * pink_noise(rng, height, width))[..., None]
    scene = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return scene.resize((WIDTH, HEIGHT), Image.Resampling.BOX)


def pink_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise with 1/f amplitude, mean 0 and variance 1: float64 (height, width)."""
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf  # mean 0
    noise = np.fft.irfft2(spectrum / frequency, (height, width))
    return noise / noise.std()


def blur(scene: Image.Image, amount: float, rng: np.random.Generator) -> Image.Image:
    return scene.filter(ImageFilter.GaussianBlur(0.3 + 4 * amount))


def compress(scene: Image.Image, amount: float, rng: np.random.Generator) -> Image.Image:
    file = BytesIO()
    scene.save(file, "JPEG", quality=round(40 * (1 - amount) ** 2) + 2)
    return Image.open(file).convert("RGB")


def add_noise(scene: Image.Image, amount: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(scene) + rng.normal(0, 2 + 45 * amount, (HEIGHT, WIDTH, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def fade(scene: Image.Image, amount: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(scene, np.float64)
    return Image.fromarray((128 + (pixels - 128) * (1 - 0.85 * amount)).astype(np.uint8))


def coarsen(scene: Image.Image, amount: float, rng: np.random.Generator) -> Image.Image:
    factor = 1 + 7 * amount
    small = scene.resize((round(WIDTH / factor), round(HEIGHT / factor)), Image.Resampling.BICUBIC)
    return small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


# Each takes a scene, an amount (0..1) and a random generator.
DISTORTIONS = {
    "blur": blur,
    "jpeg": compress,
    "noise": add_noise,
    "contrast": fade,
    "low_resolution": coarsen,
}


def make_image(path: Path, seed: int, index: int) -> tuple[str, float, np.ndarray]:
    """Draw scene `index`, distort it and save it.

    Returns the distortion's name, its amount (0..1), and the votes for the grades 1 to 5 (5,).
    """
    rng = np.random.default_rng([seed, index])
    distortion = list(DISTORTIONS)[index % len(DISTORTIONS)]
    amount = float(rng.random())
    distorted = DISTORTIONS[distortion](draw_scene(rng), amount, rng)
    distorted.save(path, "JPEG", quality=95, subsampling=0)
    votes = np.rint(rng.normal(4.6 - 3.2 * amount, 0.6, OBSERVERS)).clip(1, 5).astype(int)
    return distortion, amount, np.bincount(votes, minlength=6)[1:]


def write_labels(folder: Path, names: list[str], votes: np.ndarray, counts: dict[str, int]) -> None:
    """Write KonIQ-10k's two label files and two split lists, from the votes (N, 5) for 1 to 5.

    counts: number of images of each set; names are in the order of the sets.
    """
    import pandas as pd

    grades = np.arange(1, 6)
    mos = votes @ grades / OBSERVERS
    deviation = np.sqrt(votes @ grades**2 / OBSERVERS - mos**2)
    labels = pd.DataFrame({"image_name": names, **{f"c{g}": votes[:, g - 1] for g in grades}})
    labels["c_total"] = OBSERVERS
    labels["MOS"], labels["SD"] = mos, deviation.round(6)
    labels["MOS_zscore"] = ((mos - 1) * 25).round(6)
    labels.to_csv(folder / "koniq10k_scores_and_distributions.csv", index=False)

    shares = labels.assign(**{f"c{g}": votes[:, g - 1] / OBSERVERS for g in grades})
    shares = shares.drop(columns="MOS").rename(columns={"MOS_zscore": "MOS"})
    shares["set"] = np.repeat(list(counts), list(counts.values()))
    shares.to_csv(folder / "koniq10k_distributions_sets.csv", index=False)
    for part, file in (("training", "koniq_train"), ("test", "koniq_test")):
        rows = shares[shares["set"] == part]
        entries = [
            {"image": f"{file}/{n}", "score": s} for n, s in zip(rows["image_name"], rows["MOS"])
        ]
        (folder / f"{file}.json").write_text(json.dumps(entries))


def make_demo(folder: Path, *, counts: dict[str, int] = COUNTS, seed: int = 0) -> bool:
    """Write the data set into `folder`; False if the same data set is there already.

    counts: number of images of each set. The data set is written into a temporary folder, which is
    then renamed. Raises FileExistsError if `folder` holds something else.
    """
    import pandas as pd

    made = {"made_by": "demo_dataset.py", "version": VERSION, "counts": counts, "seed": seed}
    if folder.exists():
        marker = folder / DEMO_MARKER
        known = json.loads(marker.read_text()) if marker.is_file() else {}
        if known == made:
            return False
        if known.get("made_by") != made["made_by"] and any(folder.iterdir()):
            raise FileExistsError(f"{folder} holds something else; name another folder, or move it")

    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        (temporary / "512x384").mkdir(parents=True)
        names = [f"{1_000_000 + i}.jpg" for i in range(sum(counts.values()))]
        paths = [temporary / "512x384" / name for name in names]
        with (
            ProcessPoolExecutor(
                cores(),
                initializer=signal.signal,
                initargs=(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C is handled by this process
            ) as pool,
            closing(
                pool.map(make_image, paths, [seed] * len(paths), range(len(paths)), chunksize=4)
            ) as jobs,
        ):
            done = list(Progress("generating scenes", len(paths), "images")(jobs))

        write_labels(temporary, names, np.array([v for _, _, v in done]), counts)
        kinds, amounts = [kind for kind, _, _ in done], [round(amount, 6) for _, amount, _ in done]
        table = pd.DataFrame({"image": names, "damage": kinds, "amount": amounts})
        table.to_csv(temporary / "demo_damage.csv", index=False)
        (temporary / DEMO_MARKER).write_text(json.dumps(made))

        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


@command
def main() -> int:
    parser = argparse.ArgumentParser(
        description="Generate a small synthetic data set in the layout of KonIQ-10k."
    )
    parser.add_argument("folder", type=Path, help="folder to write, such as demo/koniq-10k")
    args = parser.parse_args()
    check_folder_for("folder", args.folder)
    new = make_demo(args.folder)
    counts = ", ".join(f"{n} {part}" for part, n in COUNTS.items())
    state = "generated in" if new else "exists already in"
    print(f"demo data set {state} {args.folder}: {counts} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())

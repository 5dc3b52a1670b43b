"""Which test images tell most, and their photographs, small enough to stand in one file."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.images import load_image
from experiment import BASELINE, FULL
from reporting.statistics import Statistics

SHOWN = 100  # photographs in report.html
SIDE = 240  # of a photograph, pixels; some screens have two to a point
LARGEST = 20_000  # bytes of a photograph, so that the page stays well under 5 MB
TOP, TOP_OF_THIRD = 10, 6
THIRDS = ("the lowest third of quality", "the middle third", "the highest third")


class Photograph(NamedTuple):
    image: str  # its name
    jpeg: str  # base64; empty if it could not be read
    mos: float
    scores: dict[str, float]  # by model, means over the seeds


class Group(NamedTuple):
    heading: str
    shown: list[int]  # of `Album.photographs`
    third: bool = False


class Album(NamedTuple):
    """The photographs of the page, by their position among the test images, and groups of them."""

    photographs: dict[int, Photograph]
    groups: list[Group]
    compared: list[str]  # the models whose scores stand under a photograph
    absent: str  # a sentence if photographs could not be read; else empty


def collect(s: Statistics, data_path: str | None) -> Album:
    """The most telling test images; data_path: the photographs, if not those of the record."""
    folder = Path(data_path or s.runs[0].config["flags"]["data_path"])
    compared = [m for m in (BASELINE, FULL) if m in s.models] or s.models[-1:]
    images, mos, scores = of_models(s, compared)
    groups = choose(mos, scores)
    chosen = dict.fromkeys(i for group in groups for i in group.shown)
    for i in np.argsort(-np.abs(scores[-1] - mos), kind="stable").tolist():
        if len(chosen) >= SHOWN:
            break
        chosen[i] = None
    found, absent = {}, []
    for i in chosen:
        try:
            jpeg = small(folder / images[i])
        except Exception:  # Pillow raises many kinds
            jpeg, _ = "", absent.append(images[i])
        of_image = {m: float(each[i]) for m, each in zip(compared, scores)}
        found[i] = Photograph(images[i], jpeg, float(mos[i]), of_image)
    sentence = ""
    if absent:
        sentence = (
            f"{len(absent)} of {len(found)} photographs are not under {folder}, or can't be read "
            f"({absent[0]}{', ...' if len(absent) > 1 else ''}); give --data_path."
        )
    return Album(found, groups, compared, sentence)


def of_models(s: Statistics, models: list[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names and MOS (N,) of the test images, and scores (M, N): means over the seeds.

    With several splits, those of the first split.
    """
    first = s.of_model[models[-1]][0].seed
    images = list(s.rows[models[-1], first]["image"])
    mos = s.mos[models[-1]][0]
    if s.splits == 1:
        return images, mos, np.stack([s.scores[m].mean(0) for m in models])
    kept = [m for m in models if (m, first) in s.rows]
    models[:] = kept  # without those that lack this split
    return images, mos, np.stack([s.rows[m, first]["score"].to_numpy() for m in kept])


def choose(mos: np.ndarray, scores: np.ndarray) -> list[Group]:
    """Images (N,) whose error decreased and increased most from the first model to the last.

    Of all images, then of each third by MOS; and those on which the last model errs most.
    """
    everything = np.arange(len(mos))
    error = np.abs(scores - mos)
    furthest = Group("Furthest from the MOS", top(-error[-1], everything, TOP))
    if len(scores) < 2:
        return [furthest]
    gain = error[0] - error[-1]
    groups = [
        Group("Gained most", top(-gain, everything[gain > 0], TOP)),
        Group("Lost most", top(gain, everything[gain < 0], TOP)),
        furthest,
    ]
    for name, part in zip(THIRDS, np.array_split(np.argsort(mos, kind="stable"), 3)):
        if not len(part):
            continue
        ends = f"in {name}, MOS {mos[part].min():.0f} to {mos[part].max():.0f}"
        for word, key, of in (("Gained", -gain, gain > 0), ("Lost", gain, gain < 0)):
            shown = top(key, part[of[part]], TOP_OF_THIRD)
            groups.append(Group(f"{word} most {ends}", shown, third=True))
    return [group for group in groups if group.shown]


def top(key: np.ndarray, of: np.ndarray, count: int) -> list[int]:
    """The images of `of` with the lowest key, in that order."""
    known = of[np.isfinite(key[of])]
    return known[np.argsort(key[known], kind="stable")][:count].tolist()


def small(path: Path) -> str:
    """The photograph as a JPEG of at most SIDE pixels and LARGEST bytes, in base64."""
    picture = load_image(path)
    picture.thumbnail((SIDE, SIDE))
    for quality in (78, 60, 40, 20):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= LARGEST:
            break
    return base64.b64encode(file.getvalue()).decode()

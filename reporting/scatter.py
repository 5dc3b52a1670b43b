"""The scatter plots of report.html, whose most telling points show their photograph."""

from typing import NamedTuple

import numpy as np

import metrics
from experiment import CONFIGURATIONS
from reporting.axes import ticks
from reporting.photographs import Album
from reporting.statistics import Statistics

SQUARE = 300  # the side of a plot, in the units of its paths
PARTS = 12  # of the points: dense places look dense where parts overlap


class Panel(NamedTuple):
    """A scatter plot of one configuration, in a square of SQUARE units."""

    title: str
    colour: str
    dots: list[str]  # paths, each of a part of the images, so that dense places look dense
    curve: str  # path of the fitted logistic; empty without one
    telling: list[tuple[int, float, float]]  # image, x, y
    scores: list[float]  # of the telling images, in the same order


class Scatter(NamedTuple):
    panels: list[Panel]
    ticks: list[tuple[float, str]]  # of both axes: place, label
    caption: str


def draw(s: Statistics, album: Album) -> Scatter:
    """MOS against predicted score, for each configuration, of its first seed."""
    first = s.of_model[album.compared[-1]][0].seed
    models = [m for m in s.models if (m, first) in s.rows]
    rows = {m: s.rows[m, first] for m in models}
    everything = np.concatenate([rows[m][c].to_numpy() for m in models for c in ("mos", "score")])
    low, high = np.nanmin(everything) - 2, np.nanmax(everything) + 2

    def place(x: np.ndarray) -> np.ndarray:
        return ((x - low) / (high - low) * SQUARE).round(1)

    panels = []
    for model in models:
        score, mos = (rows[model][c].to_numpy() for c in ("score", "mos"))
        x, y = place(score), SQUARE - place(mos)
        known = np.flatnonzero(np.isfinite(x + y))
        dots = [
            "".join(f"M{x[i]:g} {y[i]:g}h0" for i in known[part::PARTS]) for part in range(PARTS)
        ]
        fit, curve = metrics.fitted_agreement(score, mos), ""
        if fit.parameters:
            at = np.linspace(score.min(), score.max(), 60)
            heights = (SQUARE - place(metrics.logistic(at, *fit.parameters))).round(1)
            curve = "M" + "L".join(f"{a:g} {b:g}" for a, b in zip(place(at), heights))
        telling = [(i, x[i], y[i]) for i in album.photographs if i in set(known.tolist())]
        row = CONFIGURATIONS[model]
        scores = [round(float(score[i]), 1) for i, *_ in telling]
        panels.append(Panel(row.title, row.colour, dots, curve, telling, scores))
    values = ticks(low, high, 9)
    labelled = [(float(place(v)), f"{v:g}") for v in values]
    caption = (
        f"MOS against predicted score of {s.images:,} test images ({s.selection}, seed {first}). "
        "Line: VQEG's four-parameter logistic, if it could be fitted; dashed: equality. Circles: "
        f"the {len(album.photographs)} images that tell most; point at one to see its photograph."
    )
    return Scatter(panels, labelled, caption)

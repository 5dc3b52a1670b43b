"""Scored photographs in one HTML page, worst first, with a threshold and names to copy.

The page holds thumbnails, style and script, and loads nothing from elsewhere.
"""

import base64
import math
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import numpy as np

from datasets.images import load_image
from devices import cores
from errors import first_line
from files import write_atomically
from reporting.render import environment

if TYPE_CHECKING:
    import pandas as pd

THUMBNAIL = 320  # pixels of a thumbnail's longer side: sharp where a screen has two per CSS pixel
BARS = 40  # of the histogram


class Photo(NamedTuple):
    """A photograph on the page.

    path: as it was given; link: the same for a browser, seen from the page's folder; thumbnail: a
    JPEG in base64, or None.
    """

    path: str
    name: str
    link: str
    score: float
    thumbnail: str | None


def write_photo_page(path: Path, table: "pd.DataFrame", about: str) -> int:
    """Write the page of a table with path, score and error; the number of failed thumbnails.

    about: a sentence on the model. Images with an error are listed without a score. A thumbnail
    that can't be made is reported on stderr, and its photograph is on the page without one.
    """
    good, bad = table[table["error"] == ""], table[table["error"] != ""]
    good = good.sort_values("score", kind="stable")
    with ThreadPoolExecutor(cores()) as pool:
        thumbnails = list(pool.map(thumbnail_or_reason, good["path"]))
    photos, failed = [], 0
    for (image, score), (thumbnail, reason) in zip(good[["path", "score"]].to_numpy(), thumbnails):
        if reason:
            failed += 1
            print(f"error: {image}: its thumbnail can't be made ({reason})", file=sys.stderr)
        link = quote(os.fsencode(os.path.relpath(image, path.absolute().parent)))
        photos.append(Photo(image, Path(image).name, link, score, thumbnail))
    template = environment(autoescape=True).get_template("photos.html")
    scores = good["score"].to_numpy()
    low, high = (math.floor(scores.min()), math.floor(scores.max()) + 1) if len(scores) else (0, 1)
    page = template.render(
        photos=photos,
        problems=bad[["path", "error"]].to_numpy().tolist(),
        about=about,
        low=low,
        high=high,
        bars=bar_heights(scores, low, high),
    )
    write_atomically(path, page)
    return failed


def bar_heights(scores: Iterable[float], low: float, high: float) -> list[float]:
    """Heights of the bars of a histogram from low to high, the highest 100."""
    counts, _ = np.histogram(scores, BARS, (low, high))
    return [round(100 * count / max(1, counts.max()), 1) for count in counts]


def thumbnail_or_reason(path: str) -> tuple[str | None, str | None]:
    """The thumbnail of an image file as a JPEG in base64, or why there is none."""
    try:
        image, file = load_image(Path(path)), BytesIO()
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.save(file, "JPEG", quality=80)
    except Exception as error:  # Pillow raises many kinds
        return None, first_line(error)
    return base64.b64encode(file.getvalue()).decode(), None

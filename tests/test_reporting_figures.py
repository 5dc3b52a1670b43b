"""The report's figures."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import photo
from experiment import BASELINE, FULL
from report_runs import reported, write_three
from reporting.figures import draw_contact_sheet


@pytest.fixture
def logs(tmp_path):
    return write_three(tmp_path / "logs")


def test_the_contact_sheet_shows_twenty_photographs(logs, capsys, tmp_path):
    for i in range(200):
        photo(tmp_path / "data" / "Images" / f"test_{i:03}.jpg", 40 + i)
    reported(logs, capsys, "--data_path", tmp_path / "data", draw=True)
    assert (logs / "figures" / "contact_sheet.png").is_file()


def test_the_contact_sheet_shows_pictures_as_they_are_meant_to_be_seen(tmp_path):
    names = [f"{i}.png" for i in range(20)]
    rows = pd.DataFrame({"image": names})
    runs = {model: [SimpleNamespace(seed=1)] for model in (BASELINE, FULL)}
    statistics = SimpleNamespace(
        splits=1, models=list(runs), images=20, of_model=runs, rows={(FULL, 1): rows},
        scores={model: np.zeros((1, 20)) for model in runs}, mos={FULL: np.arange(20.0)[None]},
    )  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    for i, name in enumerate(names):
        grey = np.linspace(i, 200 + i, 12 * 20).reshape(12, 20).astype(np.uint8)
        for folder in ("plain", "deep", "broken"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(grey).save(tmp_path / "plain" / name)
        wide = Image.fromarray(np.rot90(grey).astype(np.uint16) << 8)
        wide.save(tmp_path / "deep" / name, exif=exif)
        (tmp_path / "broken" / name).write_bytes(b"no image")
    shown = []
    for folder in ("plain", "deep"):
        canvas, _ = draw_contact_sheet(statistics, tmp_path / folder)
        shown.append([np.asarray(axes.images[0].get_array()) for axes in canvas.axes])
    assert all((a == b).all() for a, b in zip(*shown, strict=True))
    canvas, reason = draw_contact_sheet(statistics, tmp_path / "broken")
    assert canvas is None and "20 of its 20 photographs" in reason and "can't be read" in reason

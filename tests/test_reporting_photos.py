"""A page of photographs by score: complete, self-contained, and what its script does."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from conftest import photo
from reporting.photos import bar_heights, write_photo_page

NAMES = ["b & <i>.png", "a.png", "c's.png", "\u56fe.png"]


@pytest.fixture
def page(tmp_path):
    """A page of four photographs, and of one file that could not be scored."""
    paths = [str(tmp_path / "in" / name) for name in NAMES]
    for path in paths:
        photo(Path(path), 90, size=(640, 480))
    table = pd.DataFrame({"path": paths, "score": [70.04, 30.0, 50.0, 99.0], "error": ""})
    table.loc[len(table)] = [str(tmp_path / "broken.jpg"), float("nan"), "it is <broken>"]
    assert write_photo_page(tmp_path / "page.html", table, "Scored by a.pth.") == 0
    return tmp_path / "page.html"


def shown_names(text: str) -> list[str]:
    """The names of the photographs of a page that are not hidden, in their order."""
    tags = re.findall(r"<figure ([^>]*)>", text)
    paths = [re.search('data-path="([^"]*)"', tag)[1] for tag in tags if "hidden" not in tag]
    return [Path(html.unescape(path)).name for path in paths]


def test_photographs_are_sorted_worst_first_and_errors_are_listed(page):
    text = page.read_text()
    assert shown_names(text) == [NAMES[1], NAMES[2], NAMES[0], NAMES[3]]
    assert "broken.jpg: it is &lt;broken&gt;" in text and "<b>70.0</b>" in text
    assert "Scored by a.pth." in text and "4 photographs" in text


def test_a_page_needs_no_other_file(page):
    text = page.read_text()
    assert text.count('src="data:image/jpeg;base64,') == text.count("<img ") == 4
    assert not re.search(r"https?:|<link|@import|url\(", text)
    assert "default-src 'none'" in text
    links = re.findall('<a href="([^"]*)"', text)  # to the photographs, as seen from the page
    assert links[0] == "in/a.png" and links[2] == "in/b%20%26%20%3Ci%3E.png"


def test_a_photograph_that_is_gone_stays_on_the_page(tmp_path, capsys):
    table = pd.DataFrame({"path": [str(tmp_path / "gone.png")], "score": [1.0], "error": [""]})
    assert write_photo_page(tmp_path / "page.html", table, "") == 1
    assert "gone.png: its thumbnail can't be made (" in capsys.readouterr().err
    assert shown_names((tmp_path / "page.html").read_text()) == ["gone.png"]


def test_a_page_without_photographs_is_a_page(tmp_path):
    table = pd.DataFrame({"path": ["a.png"], "score": [float("nan")], "error": ["damaged"]})
    assert write_photo_page(tmp_path / "page.html", table, "") == 0
    assert "a.png: damaged" in (tmp_path / "page.html").read_text()


def test_bars_count_scores():
    heights = bar_heights([10.0, 10.1, 49.9], 10, 50)
    assert (heights[0], heights[-1], sum(heights)) == (100, 50, 150)


def test_the_script_filters_sorts_and_copies(page):
    """In a browser: below 60, then from 60 the best first; the names are those that are shown."""
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("chromium is not installed")
    steps = """<script>
    const to = (id, value, event) => { at(id).value = value; at(id)[event](); };
    to("slider", "60", "oninput");
    const below = shown.length;
    to("side", "from", "onchange");
    to("order", "best", "onchange");
    Object.defineProperty(navigator, "clipboard", { value: undefined });
    copy().then(() => document.title = [below, shown.length, at("names").value].join("|"));
    </script>"""
    page.write_text(page.read_text().replace("</body>", steps + "</body>"))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [
        "--virtual-time-budget=2000",
        f"--user-data-dir={page.parent / 'profile'}",
        page.as_uri(),
    ]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    title = html.unescape(re.search("<title>(.*?)</title>", text, re.DOTALL)[1])
    below, from_60, copied = title.split("|")
    assert (below, from_60) == ("2", "2")
    assert [Path(path).name for path in copied.splitlines()] == [NAMES[3], NAMES[0]]
    assert shown_names(text) == [NAMES[3], NAMES[0]]

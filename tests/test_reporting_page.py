"""report.html in a browser: no error, no network, tables that sort, points with a photograph."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from browsers import browser, opened, overflow  # noqa: F401 (a fixture)
from conftest import ROOT, photo
from report_runs import MODELS, NAMES, write_five, write_run, write_three
from reporting.answer import Answer
from reporting.page import webpage
from reporting.parts import Report, Section, Verdict
from reporting.photographs import LARGEST, SHOWN, choose, small


def report_on(logs, *arguments):
    command = [sys.executable, ROOT / "report_resnet_ablation.py", "--resamples", "400", logs]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """The report of two seeds, five configurations and 60 test images, with their photographs."""
    base = tmp_path_factory.mktemp("page")
    for seed in (1, 2):
        write_five(base / "logs", suffix=f"_seed{seed}", seed=seed, tests=60, vals=20)
    for i in range(60):
        photo(base / "Images" / f"test_{i:03}.jpg", 4 * i, (96, 72))
    report_on(base / "logs", "--data_path", base)
    return base / "logs" / "report.html"


def test_the_page_is_one_file_with_a_short_answer_and_the_next_command(browser, page_file):  # noqa: F811
    with opened(browser, page_file) as page:
        answer = page.inner_text(".spoken")
        assert answer.startswith("Yes: together they raise the SRCC of ResNet-50 by ")
        assert len(answer.split()) < 20
        assert page.locator(".answer svg").count() == 1
        headings = page.locator("main > section > h2").all_inner_texts()
        assert headings == [
            "How good is each model?",
            "Which difference is real?",
            "Does the attention attend?",
            "On which images?",
            "What does it cost?",
            "Where do these numbers come from?",
        ]
        assert page.locator("main svg").count() == 6 + 5  # figures, and a scatter plot for each row
    assert page_file.stat().st_size < 5e6


def column(page, number):
    cells = page.locator("main table").first.locator(f"tbody tr > :nth-child({number})")
    return cells.all_inner_texts()


def test_a_click_on_a_heading_sorts_the_table(browser, page_file):  # noqa: F811
    with opened(browser, page_file) as page:
        before = column(page, 1)
        heading = page.locator("main table").first.locator("thead th").nth(1)
        values = {}
        for order in ("descending", "ascending", "none"):
            heading.click()
            assert heading.get_attribute("aria-sort") == order
            values[order] = [float(cell.split()[0]) for cell in column(page, 2)]
        assert values["descending"] == sorted(values["descending"], reverse=True)
        assert values["ascending"] == sorted(values["ascending"])
        assert column(page, 1) == before and values["none"] != values["ascending"]
        costs = page.locator("main table", has_text="multiply-adds")
        costs.locator("thead th").nth(1).click()
        largest = costs.locator("tbody td").first.inner_text()
        assert largest.endswith(" M") and float(largest[:-2]) > 40


def test_missing_values_are_last_in_both_orders(browser, tmp_path):  # noqa: F811
    path = tmp_path / "report.html"
    rows = [["a", "-"], ["b", "<0.001"], ["c", "-0.02"], ["d", "1,234.5"], ["e", "0.5"]]
    sections = [Section("Heading", ["", "value"], rows)]
    path.write_text(webpage(Report("Title", Answer("Yes."), Verdict("It is.", []), [], sections)))
    with opened(browser, path) as page:
        heading = page.locator("thead th").nth(1)
        heading.click()
        assert "".join(column(page, 1)) == "debca"
        heading.click()
        assert "".join(column(page, 1)) == "cbeda"


def test_tables_are_copied_as_csv_and_as_latex_that_compiles(browser, page_file, tmp_path):  # noqa: F811
    with opened(browser, page_file) as page:
        page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text }")
        copied = {}
        for table in page.locator("main .table:visible").all():
            for kind in ("LaTeX", "CSV"):
                table.get_by_role("button", name=f"copy {kind}").click()
                copied.setdefault(kind, []).append(page.evaluate("window.copied"))
    (csv,) = [text for text in copied["CSV"] if "smaller than" in text]
    header, *rows = csv.splitlines()
    assert header.startswith(",difference,95%,p,") and len(rows) == 5
    assert re.match(r'multi-scale fusion,\+0\.\d+,"\[[+-]0\.\d+, \+0\.\d+\]",', rows[0])
    assert csv.isascii()
    (tex,) = [text for text in copied["LaTeX"] if "smaller than" in text]
    assert r"\toprule" in tex and r"95\%" in tex and re.search(r"\$\+0\.\d+\$", tex)
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    body = "\n\n".join(copied["LaTeX"])
    (tmp_path / "copied.tex").write_text(
        rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "copied.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_point_shows_its_photograph_and_all_its_scores(browser, page_file):  # noqa: F811
    with opened(browser, page_file) as page:
        plot = page.locator("svg.scatter").nth(1)
        plot.scroll_into_view_if_needed()
        circle = plot.locator("circle").nth(7)
        number, box = circle.get_attribute("data-photo"), circle.bounding_box()
        card = page.locator("#card")
        assert not card.is_visible()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert card.is_visible()
        picture = card.locator(".picture").evaluate("e => getComputedStyle(e).backgroundImage")
        assert picture.startswith('url("data:image/jpeg;base64,')
        assert card.locator("p").inner_text() == f"Images/test_{int(number):03}.jpg"
        names = card.locator("dt").all_inner_texts()
        assert names[:2] == ["MOS", "baseline"] and len(names) == 6
        assert all(re.fullmatch(r"-?\d+\.\d", v) for v in card.locator("dd").all_inner_texts())
        assert page.locator("circle.on").count() == 5
        page.mouse.move(5, 5)
        assert not card.is_visible()


def test_a_touch_shows_the_photograph_until_the_next(browser, page_file):  # noqa: F811
    with opened(browser, page_file, width=360, has_touch=True) as page:
        circle = page.locator("svg.scatter").first.locator("circle").nth(7)
        circle.scroll_into_view_if_needed()
        box = circle.bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert page.locator("#card").is_visible() and overflow(page) == 0
        page.locator("h3", has_text="Scores and MOS").tap()
        assert not page.locator("#card").is_visible()


def test_a_word_shows_its_definition_also_by_the_keyboard(browser, page_file):  # noqa: F811
    with opened(browser, page_file) as page:
        word, tip = page.locator("abbr", has_text="KRCC").first, page.locator("#tip")
        word.hover()
        assert tip.is_visible() and tip.inner_text().startswith("Kendall's rank correlation")
        page.mouse.move(5, 5)
        assert not tip.is_visible()
        word.focus()
        assert tip.is_visible()


@pytest.mark.parametrize("width", [1280, 800, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_screen_is_too_narrow_or_too_dark(browser, page_file, width, scheme):  # noqa: F811
    with opened(browser, page_file, width=width, color_scheme=scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        assert overflow(page) == 0
        shade = "e => getComputedStyle(e)[%r].match(/\\d+/g).slice(0, 3).map(Number)"
        paper = np.mean(page.locator("body").evaluate(shade % "backgroundColor"))
        for words in ("body", ".answer svg text", ".scatter .name"):
            name = "color" if words == "body" else "fill"
            ink = np.mean(page.locator(words).first.evaluate(shade % name))
            assert (ink > 200 > 60 > paper) if scheme == "dark" else (ink < 60 < 200 < paper)


def test_on_paper_nothing_is_folded_or_cut_off(browser, page_file):  # noqa: F811
    with opened(browser, page_file, width=680) as page:  # A4 within margins of 15 mm
        page.emulate_media(media="print")
        assert overflow(page) == 0
        for folded in ("text=four-parameter logistic >> nth=0", "text=0123456789a0 >> nth=0"):
            assert page.locator(folded).is_visible()
        for control in ("nav", "button"):
            assert not page.locator(control).first.is_visible()
        assert page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.slow
def test_other_reports_load_as_well(browser, tmp_path):  # noqa: F811
    """One configuration; failed runs and a collapse; names that are not on disk."""
    write_run(tmp_path / "one", "exp1_baseline", "resnet_improved_ss_noatt", 9, tests=30)
    logs = tmp_path / "collapsed"
    for seed in (1, 2):
        write_three(logs, suffix=f"_seed{seed}", seed=seed, stages=(1000, 1, 1, 1), tests=30)
    (logs / "exp2_multiscale_seed2.jsonl").unlink()
    (logs / "arguments").write_text("/a/folder\0--seeds\0001,2\0")
    for folder in (tmp_path / "one", logs):
        report_on(folder)
    with opened(browser, tmp_path / "one" / "report.html", width=360) as page:
        assert "'+ attention' has no finished run" in page.inner_text(".spoken")
        assert "photographs are not under nowhere" in page.inner_text("main")
        assert page.locator(".answer svg").count() == 1 and overflow(page) == 0
    with opened(browser, logs / "report.html", width=360) as page:
        said = page.inner_text(".spoken")
        assert said.endswith("but the attention collapsed, so it was not tested.")
        first, second = page.locator(".next code").all_inner_texts()
        assert first == f"bash run_resnet_ablation.sh --resume {logs}"
        assert second.endswith("bash run_resnet_ablation.sh --seeds 1,2 --attention scaled")
        assert "1 problem" in page.inner_text(".problems") and overflow(page) == 0


@pytest.mark.slow
def test_several_backbones_and_another_recipe(browser, tmp_path):  # noqa: F811
    """A page over all, one for each, with links both ways; the section on the other recipe."""
    logs, other = tmp_path / "logs", tmp_path / "other"
    for index, backbone in enumerate(("resnet18", "resnet34", "convnext_tiny")):
        for seed in (1, 2):
            for folder, recipe in ((logs, {}), (other, {"loss": "mse"})):
                for name, model, noise in zip(NAMES, MODELS, (20, 14, 9)):
                    write_run(
                        folder, f"{name}_{backbone}_seed{seed}", model, noise + index + len(recipe),
                        seed=seed, tests=40, vals=20, epochs=1, backbone=backbone, **recipe,
                    )  # fmt: skip
    report_on(logs, "--other_recipe", other)
    with opened(browser, logs / "report.html", width=360) as page:
        assert page.locator(".answer svg").count() == 1 and overflow(page) == 0
        rows = page.locator("main table").first.locator("tbody tr")
        assert rows.count() == 3
        links = page.locator("a[href$='resnet18/report.html']")
        assert links.count() > 0
    with opened(browser, logs / "resnet18" / "report.html", width=360) as page:
        assert page.get_attribute(".above a", "href") == "../report.html" and overflow(page) == 0
        heading = page.locator("h2", has_text="Does it depend on the recipe?")
        part = page.locator("main > section", has=heading)
        assert "by the other; " in part.inner_text() and part.locator("tbody tr").count() == 3


def test_a_photograph_is_small_whatever_it_shows(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert len(small(tmp_path / "noise.png")) <= LARGEST * 4 / 3 + 4
    assert SHOWN * LARGEST * 4 / 3 < 3e6


def test_the_photographs_are_those_that_gained_and_lost_most():
    mos = np.array([10.0, 20, 30, 40, 50, 60, 70, 80, 90])
    before, after = mos + 5, mos + 5
    after[2], after[7], after[4] = mos[2] + 1, mos[7] + 9, np.nan
    gained, lost, furthest, *thirds = choose(mos, np.stack([before, after]))
    assert (gained.shown, lost.shown, furthest.shown[0]) == ([2], [7], 7)
    assert [(group.heading.split(",")[0], group.shown) for group in thirds] == [
        ("Gained most in the lowest third of quality", [2]),
        ("Lost most in the highest third", [7]),
    ]
    (only,) = choose(mos, after[None])
    assert only.shown[0] == 7 and 4 not in only.shown

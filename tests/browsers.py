"""A headless Chromium for the tests of the pages."""

import shutil
from contextlib import contextmanager

import pytest


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium by Playwright; skipped where one of them is missing."""
    reason = "playwright is not installed: pip install -r requirements-dev.txt"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found)
        yield started
        started.close()


@contextmanager
def opened(browser, path, *, width=1280, height=900, **options):
    """The page at `path`, which must have no error and ask no network for anything."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(120_000)  # of machines with other work
    page = context.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert [p for p in problems if p != path.as_uri() and not p.startswith("data:")] == []
    context.close()


def overflow(page) -> int:
    """Pixels by which the page is wider than its window."""
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )

"""report.html: one file with its style, script, figures and photographs inside."""

import re
from typing import NamedTuple

from markupsafe import Markup, escape

from experiment import CONFIGURATIONS
from reporting.figures import Figure
from reporting.parts import QUESTIONS, SOURCES, WHICH_IMAGES, Report, Section
from reporting.photographs import Album
from reporting.render import environment
from reporting.scatter import SQUARE, Scatter
from reporting.terms import TERMS

# Figures are drawn for white paper: black is the colour of the text, greys are those of the page.
THEME = {"#000000": "var(--ink)", "#666666": "var(--soft)", "#999999": "var(--soft)"}
THEME |= {"#cccccc": "var(--line)", "#f0e442": "var(--yellow)", "#0072b2": "var(--blue)"}


class Exhibits(NamedTuple):
    """What only the page shows."""

    album: Album
    scatter: Scatter


def webpage(report: Report, exhibits: Exhibits | None = None, *, above: str = "") -> str:
    """The report as one HTML file; above: the address of the page that this is a part of."""
    made = environment(autoescape=True)
    made.filters |= {"svg": inline, "typeset": typeset, "term": term, "colour": themed}
    parts = {question: blocks(report, question) for question in QUESTIONS}
    if exhibits:
        parts[WHICH_IMAGES] = parts[WHICH_IMAGES] or []
    return made.get_template("report.html").render(
        report=report,
        parts={q: sections for q, sections in parts.items() if sections is not None},
        exhibits=exhibits,
        above=above,
        panels=exhibits and of_the_card(exhibits),
        scale=lambda score: f"{min(100, max(0, score)):.1f}",
        colours={model: row.colour for model, row in CONFIGURATIONS.items()},
        titles={model: row.title for model, row in CONFIGURATIONS.items()},
        square=SQUARE,
        sources=SOURCES,
        which_images=WHICH_IMAGES,
    )


def blocks(report: Report, question: str) -> list[Section] | None:
    """The sections that answer a question and show something here; None if there are none."""
    return [
        section
        for section in sorted(report.sections, key=lambda section: section.aside)
        if section.question == question
        and (
            section.rows
            or section.paragraphs
            or any(f.svg and f != report.lead for f in section.figures)
        )
    ] or None


def of_the_card(exhibits: Exhibits) -> dict:
    """What the script shows of a point: name, MOS, and the scores of each plot."""
    return {
        "photographs": {
            i: {"image": photo.image, "mos": photo.mos}
            for i, photo in exhibits.album.photographs.items()
        },
        "panels": [
            {
                "title": panel.title,
                "scores": {i: score for (i, *_), score in zip(panel.telling, panel.scores)},
            }
            for panel in exhibits.scatter.panels
        ],
    }


def inline(figure: Figure) -> Markup:
    """The SVG of a figure as a part of the page, in the page's own colours and font."""
    svg = figure.svg[figure.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # which would be the page's
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # which other figures have as well
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"#[0-9a-f]{6}", lambda found: themed(found[0]), svg)
    label = f'<svg role="img" aria-label="{escape(figure.caption)}"'
    return Markup(svg.replace("<svg", label, 1))


def themed(colour: str) -> str:
    """A colour of a figure, in the page's light or dark theme."""
    return THEME.get(colour.lower(), colour)


def typeset(text: str) -> Markup:
    """With minus signs and +- as printers write them; links to reports; ends of lines kept."""
    text = str(escape(text)).replace("+-", "\N{PLUS-MINUS SIGN}")
    text = re.sub(r"(?<![\w.,-])-(?=\d)", "\N{MINUS SIGN}", text)
    return Markup(re.sub(r"\S+/report\.html", r'<a href="\g<0>">\g<0></a>', text))


def term(word: str) -> Markup:
    """A word with its definition, if it has one."""
    if word not in TERMS:
        return escape(word)
    return Markup('<abbr tabindex="0" title="{}">{}</abbr>').format(TERMS[word], word)

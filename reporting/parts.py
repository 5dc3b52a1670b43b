"""What a report consists of, as data objects that templates turn into Markdown and HTML."""

from dataclasses import dataclass, field

from reporting.answer import Answer
from reporting.figures import Figure

# What a reader asks: the sections of report.html, in this order.
HOW_GOOD = "How good is each model?"
WHICH_DIFFERENCE = "Which difference is real?"
RECIPE = "Does it depend on the recipe?"
ELSEWHERE = "Does it hold on other data sets?"
ATTENDS = "Does the attention attend?"
WHICH_IMAGES = "On which images?"
COST = "What does it cost?"
SOURCES = "Where do these numbers come from?"
QUESTIONS = (HOW_GOOD, WHICH_DIFFERENCE, RECIPE, ELSEWHERE, ATTENDS, WHICH_IMAGES, COST, SOURCES)


@dataclass
class Section:
    """A heading, then a table if there are rows, paragraphs, and figures.

    question: the one of QUESTIONS under which it stands in report.html. notes: paragraphs that
    explain how to read it, which the page shows after a click. aside: the page shows all of it
    after a click.
    """

    heading: str
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    question: str = HOW_GOOD
    notes: list[str] = field(default_factory=list)
    aside: bool = False


@dataclass
class Verdict:
    sentence: str
    remarks: list[str]  # sentences: what the verdict leaves open, and why

    def __str__(self) -> str:
        return " ".join([self.sentence, *self.remarks])


@dataclass
class Report:
    """answer: the short answer to the title's question, and what to do next.

    lead: the figure beside the answer, if one was drawn.
    """

    title: str
    answer: Answer
    verdict: Verdict
    problems: list[str]
    sections: list[Section]
    lead: Figure | None = None


# The figures beside each section, by its heading.
BESIDE = {
    "Configurations": ("configurations", "scatter"),
    "Three ways to choose the epoch": ("curves",),
    "Paired differences in SRCC": ("forest",),
    "Stage weights": ("stage_weights",),
    "Photographs": ("contact_sheet",),
    "SRCC by third of quality": ("thirds",),
    "Costs": ("costs",),
}


def place(figures: list[Figure], sections: list[Section], beside: dict = BESIDE) -> None:
    """Put the figures that were drawn beside their sections."""
    drawn = {figure.stem: figure for figure in figures if figure.stem}
    for section in sections:
        section.figures += [drawn[s] for s in beside.get(section.heading, ()) if s in drawn]

"""The report as Markdown, HTML, LaTeX, text and JSON: templates in reporting/templates/."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiment import BASELINE, CONFIGURATIONS, FULL, MULTISCALE
from reporting.backbones import Backbones
from reporting.formats import (
    at_most,
    capitalised,
    collapses,
    data_set_name,
    decimal,
    digits_for,
    is_published,
    listed,
    of_seeds,
    on_backbone,
    p_value,
)
from reporting.parts import Report, Verdict
from reporting.runs import Runs
from reporting.statistics import Statistics
from reporting.tables import ResultTable, paper_rows
from resampling import Interval

TEMPLATES = Path(__file__).parent / "templates"


def environment(escape: Callable[[str], str] | None = None, **options) -> Environment:
    """Templates whose expressions all go through `escape`, unless they are Markup."""

    def finalize(value: object) -> str:
        if escape is None or isinstance(value, Markup):
            return value
        return escape(str(value))

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=finalize,
        **options,
    )
    made.filters |= {"p_value": p_value, "listed": listed, "unbroken": unbroken}
    return made


def markdown_escaped(text: str) -> str:
    """The text for Markdown, where it stands in a paragraph or in the cell of a table."""
    text = re.sub(r"[\\`*|]|(?<!\w)_|_(?!\w)|<(?=[a-zA-Z/!?])|\](?=\()", r"\\\g<0>", text)
    return re.sub(r"&(?=#?\w+;)", "&amp;", text)


LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
}


# How the epoch of the values was chosen, in a sentence.
CHOSEN = {
    "chosen by val": "epoch with the highest SRCC on the validation images",
    "last epoch": "last epoch",
}
UNPUBLISHED = " (not the counts of a published split)"


def latex_escaped(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in text)


def latex_number(x: float, digits: int = 4, sign: bool = False) -> Markup:
    """A number in math mode, so that its minus is one; '--' if it is undefined."""
    return Markup(f"${decimal(x, digits, sign)}$" if math.isfinite(x) else "--")


def latex_with_bounds(x: float, ends: Interval, digits: int, sign: bool = False) -> Markup:
    """A number with the ends of its interval in brackets."""
    value, low, high = (latex_number(y, digits, sign) for y in (x, ends.low, ends.high))
    return Markup(f"{value} [{low}, {high}]")


def unbroken(command: str) -> Markup:
    """A command for HTML whose lines break between its words only, not at the hyphens of a flag."""
    return Markup(" ").join(Markup("<span>{}</span>").format(word) for word in command.split(" "))


def markdown(report: Report) -> str:
    made = environment(markdown_escaped)
    made.filters["verbatim"] = Markup
    return made.get_template("report.md").render(report=report)


def plain_table(table: ResultTable, verdict: Verdict | None) -> str:
    return environment().get_template("table.txt").render(table=table, verdict=verdict)


def latex_environment() -> Environment:
    made = environment(
        latex_escaped,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
    )
    made.filters |= {
        "number": latex_number,
        "at_most": lambda x, digits: Markup(f"${at_most(x, digits)}$"),
        "with_bounds": latex_with_bounds,
        "in_percent": lambda x: latex_with_bounds(
            100 * x.value, x._replace(low=100 * x.low, high=100 * x.high), 2, True
        ),
        "capitalised": capitalised,
        "one_line": lambda text: " ".join(text.split()),
    }
    made.tests["known"] = lambda interval: math.isfinite(interval.low + interval.high)
    return made


def latex(name: str, s: Statistics, runs: Runs) -> str:
    """table.tex (for the booktabs package) or paragraph.tex."""
    return (
        latex_environment()
        .get_template(name)
        .render(
            s=s,
            data=data_set_name(s) + ("" if is_published(s.runs[0].config) else UNPUBLISHED),
            chosen=CHOSEN[s.selection],
            digits=digits_for(s),
            rows=paper_rows(s),
            failed=[*dict.fromkeys(r.title for r in runs.failed if r.model not in s.models)],
            of_seeds=of_seeds,
            verdict=on_backbone(s, s.verdict),
            verdict_seeds=len(s.common_seeds(FULL, BASELINE)),
            collapses=collapses(s),
            fewest_seeds=min((len(c["each"]) for c in s.comparisons), default=len(s.seeds)),
        )
    )


def backbones_latex(b: Backbones) -> str:
    """backbones.tex (for the booktabs package)."""
    return (
        latex_environment()
        .get_template("backbones.tex")
        .render(
            b=b,
            data=data_set_name(next(iter(b.each.values()))),
            chosen=CHOSEN[next(iter(b.each.values())).selection],
            columns={m: capitalised(CONFIGURATIONS[m].title) for m in (BASELINE, MULTISCALE, FULL)},
        )
    )


def plain(value: object) -> object:
    """The value for JSON: named tuples are objects, NaN is null."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def backbones_json(b: Backbones, problems: list[str]) -> str:
    """The figures over backbones for programs; those of each are in its own results.json."""
    content = {
        "backbones": [*b.each],
        "left_out": b.left_out,
        "verdict": b.verdict,
        "relative_gain": b.gain,
        "comparisons": [
            plain(c) | {"p_holm": p} for c, p in zip(b.comparisons, b.p_holm, strict=True)
        ],
        "problems": problems,
    }
    return json.dumps(plain(content), indent=1) + "\n"


def results_json(
    s: Statistics, problems: list[str], cross: dict | None = None, recipe: dict | None = None
) -> str:
    """All figures for programs; NaN is null.

    cross: those of tests on other data sets. recipe: those of another recipe.
    """
    content = {
        "dataset": s.runs[0].config["flags"]["dataset"],
        "backbone": s.backbone,
        "data_fingerprint": s.runs[0].config["data_fingerprint"],
        "test_images": s.images,
        "splits": s.splits,
        "selection": s.selection,
        "verdict": s.verdict,
        "verdict_of_the_images_alone": s.images_alone,
        "relative_gain": s.gain,
        "optimism_of_best_on_test": s.optimism(),
        "configurations": s.configurations,
        "comparisons": s.comparisons,
        "seed_variance": {name: pool and pool._asdict() for name, pool in s.pools.items()},
        "interaction": s.interaction,
        **s.analysis.figures(),
        "cross_data_sets": cross,
        "other_recipe": recipe,
        "problems": problems,
        "bootstrap": s.options,
        "runs": [{"name": r.name, **r.config} for r in s.runs],
    }
    return json.dumps(plain(content), indent=1) + "\n"

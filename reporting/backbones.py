"""Several backbones: what the improvements gain on each, and what that says of further ones."""

import math
from typing import NamedTuple

import numpy as np

import resampling
from experiment import BASELINE, BOUNDS, COMPARISONS, CONFIGURATIONS, FULL, MULTISCALE
from random_effects import FEWEST, OverBackbones, over_backbones
from reporting.answer import (
    OTHER_BACKBONES,
    Answer,
    Step,
    between,
    finish,
    in_percent,
    in_words,
    more_seeds,
)
from reporting.figures import Figure
from reporting.formats import (
    bounds,
    collapses,
    data_set,
    data_set_name,
    decimal,
    digits_for,
    digits_of,
    listed,
    p_value,
    percent,
    with_spread,
)
from reporting.parts import WHICH_DIFFERENCE, Report, Section, Verdict
from reporting.runs import Runs, continued
from reporting.statistics import Combine, Statistics, difference, relative
from reporting.tables import ResultTable, Row, table_head, weights_of, wrapped
from resampling import Interval

UNASSESSED = "generality is not assessed"
DECISIONS = (
    "the improvements do not carry over to CNNs like these: on a further backbone they gain less "
    "than 0.3%",
    "limited: on a further CNN like these the improvements gain 0.3% to 1%",
    "the improvements carry over to CNNs like these: on a further backbone they gain at least 1%",
)


class Comparison(NamedTuple):
    """A comparison on each of several backbones: differences in SRCC, or the relative gain."""

    label: str
    each: dict[str, Interval]
    over: OverBackbones | None


class Backbones:
    """The same ablation on several backbones.

    each: the figures of each backbone. summarised: the backbones in the summary. gain: the relative
    gain of both improvements; comparisons: differences in SRCC; with p by Holm's correction.
    """

    def __init__(self, each: dict[str, Statistics], left_out: list[str]):
        self.each, self.left_out = each, left_out
        self.summarised = [name for name in each if name not in left_out]
        self.gain = self.compare("relative gain", FULL, BASELINE, relative)
        found = [self.compare(label, *pair, difference) for label, *pair in COMPARISONS]
        self.comparisons = [c for c in found if c.over]
        self.p_holm = resampling.holm([c.over.mean.p for c in self.comparisons])
        self.verdict = self.decide()

    def compare(self, label: str, model: str, other: str, combine: Combine) -> Comparison:
        each, drawn = {}, []
        for name, s in self.each.items():
            if not s.common_seeds(model, other) or not s.above_zero(other):
                continue
            each[name] = s.interval((model, other), combine)
            if name in self.summarised:
                drawn.append(s.resampled((model, other), combine))
        known = [each[name] for name in self.summarised if name in each]
        if any(d is None for d in drawn) or not all(math.isfinite(x.error) for x in known):
            return Comparison(label, each, None)
        return Comparison(label, each, over(known, drawn))

    def reason(self) -> str:
        """Why there is no summary; empty if there is one."""
        count = sum(name in self.gain.each for name in self.summarised)
        if count < FEWEST:
            return f"{count} backbone{'s have' if count != 1 else ' has'} a gain; it takes {FEWEST}"
        if any(len(self.each[name].common_seeds(FULL, BASELINE)) < 2 for name in self.summarised):
            return "a backbone has one training run per configuration; it takes two"
        return "" if self.gain.over else "the gain of a backbone has no interval over seeds"

    def decide(self) -> str:
        if reason := self.reason():
            return f"{UNASSESSED}: {reason}"
        following = self.gain.over.next
        low, high = (
            int(np.searchsorted(BOUNDS, x, "right")) for x in (following.low, following.high)
        )
        if low != high:
            return "it is not decided whether the improvements carry over to CNNs"
        return DECISIONS[low]


def over(each: list[Interval], drawn: list[np.ndarray]) -> OverBackbones | None:
    """Random effects over backbones; the error from images that they share is their covariance."""
    if len(each) < FEWEST:
        return None
    covariance = np.cov(np.stack(drawn))
    shared = float(covariance[np.triu_indices(len(each), 1)].mean())
    values, errors = (np.array([getattr(x, name) for x in each]) for name in ("value", "error"))
    return over_backbones(values, errors**2, shared=shared)


# The words ---------------------------------------------------------------------------------------


def verdict(b: Backbones) -> Verdict:
    first = next(iter(b.each.values()))
    sentence = f"Verdict over backbones on {data_set(first)}: {b.verdict}"
    if b.reason() or not b.gain.over:
        return Verdict(f"{sentence}.", [])
    mean, following = b.gain.over.mean, b.gain.over.next
    sentence += (
        f"; on average over these {b.gain.over.count} backbones multi-scale fusion and channel "
        f"attention change the SRCC of the baseline by {percent(mean.value)} (95% interval "
        f"{percent(mean.low)} to {percent(mean.high)}), and on a further backbone by "
        f"{percent(following.low)} to {percent(following.high)} (95% prediction interval; "
        f"{first.selection})."
    )
    remarks = [
        f"A further backbone: one like these ({listed([*b.summarised])}), trained in the same way "
        "on the same data."
    ]
    if b.left_out:
        remarks.append(f"Left out of the summary: {listed(b.left_out)}.")
    for name, s in b.each.items():
        remarks += [f"{name}: {sentence}" for sentence in collapses(s)]
    return Verdict(sentence, remarks)


def write_report(b: Backbones, runs: Runs, figure: Figure) -> Report:
    """The report over backbones; the report of each is in a folder of its name."""
    figures = Section("Gain by backbone", figures=[figure] if figure.stem else [])
    if not figure.stem:
        figures.paragraphs.append(figure.caption)
    sections = [figures, by_backbone(b), summary(b), each_report(b)]
    title = "Do multi-scale fusion and channel attention carry over to other backbones?"
    lead = figure if figure.stem else None
    return Report(title, answer(b, runs), verdict(b), runs.problems, sections, lead)


def answer(b: Backbones, runs: Runs) -> Answer:
    first = next(iter(b.each.values()))
    where = f"on {data_set_name(first)}, {in_words(len(b.summarised))} backbones"
    gain, seeds = b.gain, {len(s.seeds) for s in b.each.values()}
    steps = [finish(runs)] if runs.failed else []
    if b.reason() or not gain.over:
        why = b.reason()
        if len(b.summarised) < FEWEST:
            text = "Train them on at least three backbones."
            steps.append(Step(text, on_more_backbones(b, runs)))
        elif min(seeds) < 2:
            who = "each model has" if seeds == {1} else "some models have"
            why = f"{who} been trained only once"
            steps.append(more_seeds(runs, first.seeds, "Train each model with two more seeds."))
        return Answer(f"We can't tell yet: {why}.", f"{where[0].upper()}{where[1:]}.", steps)
    mean, following = gain.over.mean, gain.over.next
    size = in_percent(mean.value, mean, sign=True)
    ends = between(following)
    said = {
        DECISIONS[0]: "No: on a further CNN like these, expect a gain of less than 0.3%",
        DECISIONS[1]: "A little: on a further CNN like these, expect a gain of 0.3% to 1%",
        DECISIONS[2]: "Yes: on a further CNN like these, expect a gain of at least 1%",
    }.get(b.verdict, f"We can't tell yet: on a further CNN, expect anything {ends}")
    if b.verdict not in DECISIONS:
        text = "Train each model on further backbones, to narrow it."
        steps.append(Step(text, on_more_backbones(b, runs)))
    low, high = (in_percent(x, mean, sign=True) for x in (mean.low, mean.high))
    return Answer(
        f"{said}.",
        f"Multi-scale fusion and channel attention change the SRCC of the baseline by {size} on "
        f"average (95% interval {low} to {high}): {where}, {first.selection}.",
        steps,
    )


def on_more_backbones(b: Backbones, runs: Runs) -> str:
    """The command that adds two backbones, or as many as it takes; empty if it can't be known."""
    others = [name for name in OTHER_BACKBONES if name not in b.each]
    more = others[: max(2, FEWEST - len(b.each))]
    return continued(runs.folders, "--backbones", ",".join([*b.each, *more])) if more else ""


def by_backbone(b: Backbones) -> Section:
    models = [BASELINE, MULTISCALE, FULL]
    rows = []
    for name, s in b.each.items():
        gain = b.gain.each.get(name)
        rows.append(
            [
                name,
                weights_of(s),
                f"{s.configurations[s.models[0]]['parameters'] / 1e6:.2f} M",
                str(len(s.seeds)),
                *(srcc_of(s, model) for model in models),
                in_percent(gain.value, gain, sign=True) if gain else "-",
                " to ".join(in_percent(x, gain, sign=True) for x in gain[1:3]) if gain else "-",
                "no" if name in b.left_out else "yes",
            ]
        )
    header = ["backbone", "weights", "parameters", "seeds"]
    header += [CONFIGURATIONS[model].title for model in models]
    note = (
        "SRCC: means over seeds, +- the standard deviation. Gain: of both improvements, relative "
        "to the baseline. In the summary: whether the backbone counts for mean and prediction."
    )
    header += ["gain", "95%", "in the summary"]
    return Section("Results by backbone", header, rows, notes=[note])


def srcc_of(s: Statistics, model: str) -> str:
    if model not in s.models:
        return "-"
    return with_spread(s, s.configurations[model]["selections"][s.selection], digits=digits_for(s))


def summary(b: Backbones) -> Section:
    heading = "Over backbones"
    if not b.comparisons:
        text = f"{b.verdict[0].upper()}{b.verdict[1:]}."
        return Section(heading, paragraphs=[text], question=WHICH_DIFFERENCE)
    digits = digits_of([c.over.mean for c in b.comparisons])
    rows = [
        [
            c.label,
            decimal(c.over.mean.value, digits, True),
            bounds(c.over.mean, digits, True),
            p_value(c.over.mean.p),
            p_value(p),
            bounds(c.over.next, digits, True),
            decimal(c.over.tau, digits),
            f"{c.over.i2:.0%}",
            str(c.over.count),
        ]
        for c, p in zip(b.comparisons, b.p_holm)
    ]
    header = ["", "mean difference", "95%", "p", "p (Holm)", "95% of a further backbone", "tau"]
    text = (
        "Random effects: the backbones are taken as a sample of those that one might use (Paule "
        "and Mandel; Hartung and Knapp). Mean difference in SRCC; tau: standard deviation of the "
        "true differences between backbones; I2: its share of the variance of the observed ones. "
        "The error of the test images is common to all backbones, and does not shrink with their "
        "number."
    )
    header += ["I2", "backbones"]
    return Section(heading, header, rows, question=WHICH_DIFFERENCE, notes=[text])


def each_report(b: Backbones) -> Section:
    rows = [[name, f"{name}/report.md, {name}/report.html"] for name in b.each]
    return Section("Reports of each backbone", ["backbone", "files"], rows)


def grouped(tables: dict[str, ResultTable], each: dict[str, Statistics]) -> ResultTable:
    """table.txt of several backbones: their tables below each other, under one header."""
    first = next(table for table in tables.values() if table.header)
    rows = []
    for name, table in tables.items():
        rows.append(Row(f"{name}, weights {weights_of(each[name])}" if name in each else name, []))
        rows += [Row(f"  {row.title}", row.cells, row.failed) for row in table.rows]
    own = {
        name: {wrapped(text): f"{name}: {text}" for text in collapses(s)}
        for name, s in each.items()
    }
    notes = dict.fromkeys(
        wrapped(own[name][note]) if note in own.get(name, ()) else note
        for name, table in tables.items()
        for note in table.notes
    )
    s = next(iter(each.values()))
    head = [f"{len(tables)} backbones: {listed([*tables])}"]
    head += table_head(s, s.models, ("backbone", "backbone_weights"))[1:]
    return ResultTable(head, first.header, rows, [*notes])

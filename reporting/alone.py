"""A report on predictions alone, without runs of one's own: labels, and files of scores."""

import json
from dataclasses import dataclass
from pathlib import Path

from datasets.labels import DATASETS
from errors import DataError, ReportError
from reporting import analysis_text
from reporting.analysis import Analysis
from reporting.answer import Answer
from reporting.figures import (
    draw_differences,
    draw_models,
    draw_thirds,
    prepare,
    published_models,
    save,
)
from reporting.formats import decimal, digits_of
from reporting.parts import BESIDE, SOURCES, Report, Section, Verdict, place
from reporting.predictions import Predictions, scores_for
from reporting.render import plain
from reporting.scores import Scores, Truth
from reporting.votes import as_votes, labels_of


@dataclass
class Labels:
    """The test images that predictions are compared on."""

    dataset: str
    split: str
    images: list[str]
    truth: Truth
    no_votes: str


def read_test_labels(flags: dict, *, test_split: str) -> Labels:
    """The test images of a data set, or all of its images, with what people said of them.

    flags: dataset, data_path, split. Raises ReportError for everything that is wrong with the
    label files.
    """
    try:
        table = labels_of(flags, flags["data_path"])
    except DataError as error:
        raise ReportError(str(error)) from error
    if test_split == "test":
        table = table[table["split"] == "test"].reset_index(drop=True)
    votes, reason = as_votes(table)
    truth = Truth(table["mos"].to_numpy(), votes)
    return Labels(flags["dataset"], flags["split"], list(table["image"]), truth, reason)


def analyse(
    predictions: dict[str, Predictions], labels: Labels, *, resamples: int, seed: int
) -> Analysis:
    """Figures of all models, best first, and of each two of them."""
    runs = {
        (name, None): scores_for(name, given, labels.images) for name, given in predictions.items()
    }
    scores = Scores(runs, {None: labels.truth}, resamples=resamples, seed=seed)
    models = sorted(scores.models, key=lambda m: -scores.seen["srcc"][m, None][0])
    over = [(f"{a} over {b}", a, b) for i, a in enumerate(models) for b in models[i + 1 :]]
    return Analysis(scores, {m: m for m in models}, [], over, labels.no_votes)


def write_report(
    a: Analysis, predictions: dict[str, Predictions], labels: Labels, folder: Path
) -> Report:
    """The report, whose figure is drawn into the folder."""
    prepare(folder)
    caption = "SRCC with 95% intervals over the images."
    drawn = [
        save(*draw_differences(a), folder / "forest"),
        save(draw_models(published_models(a)), caption, folder / "models"),
        save(*draw_thirds(a), folder / "thirds"),
    ]
    options = a.scores.options
    files = Section(
        "Provenance",
        ["model", "file"],
        [[name, str(given.path)] for name, given in predictions.items()],
        [
            f"Bootstrap: {options['resamples']:,} resamples of the images, seed {options['seed']}; "
            "BCa intervals."
        ],
        question=SOURCES,
    )
    counted = sum(DATASETS[labels.dataset].published, ())
    known = "" if a.scores.images in counted else ", not the number of a published split"
    sentence = (
        f"{len(a.models)} published models on {a.scores.images:,} images of {labels.dataset} "
        f"(--split {labels.split}{known})."
    )
    sections = [*analysis_text.sections(a), files]
    beside = {
        analysis_text.PUBLISHED: ("models",),
        analysis_text.DIFFERENCES: ("forest",),
    }
    place(drawn, sections, BESIDE | beside)
    return Report(
        title="How good are these published models?",
        answer=answer(a, sentence),
        verdict=Verdict(sentence, []),
        problems=[],
        sections=sections,
        lead=drawn[1],
    )


def answer(a: Analysis, evidence: str) -> Answer:
    """Which is best, and whether the second is clearly worse."""
    best, *others = a.models
    found = a.published[best]
    digits = digits_of([f["srcc_interval"] for f in a.published.values()])
    srcc = decimal(found["srcc"], digits)
    if not others:
        return Answer(f"{best} has an SRCC of {srcc}.", evidence)
    over = next(c for c in a.published_comparisons if (c["model"], c["other"]) == (best, others[0]))
    if over["p_holm"] < 0.05:
        return Answer(f"{best} is the best of them: its SRCC is {srcc}.", evidence)
    return Answer(
        f"{best} has the highest SRCC, {srcc}, but is not clearly better than {others[0]}.",
        evidence,
    )


def results_json(a: Analysis, predictions: dict[str, Predictions], labels: Labels) -> str:
    """All figures for programs; NaN is null."""
    content = {
        "dataset": labels.dataset,
        "split": labels.split,
        "test_images": a.scores.images,
        **a.figures(),
        "predictions": {name: str(given.path) for name, given in predictions.items()},
        "bootstrap": a.scores.options,
    }
    return json.dumps(plain(content), indent=1) + "\n"


def plain_text(report: Report) -> str:
    """table.txt: the tables of agreement and of differences."""
    parts = [report.verdict.sentence + "\n"]
    parts += [f"{s.heading}\n{analysis_text.aligned(s)}" for s in report.sections[:-1] if s.rows]
    return "\n".join(parts)

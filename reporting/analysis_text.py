"""The words about all models, one's own and published ones: tables of reporting/analysis.py."""

from reporting.analysis import Analysis
from reporting.formats import at_most, bounds, decimal, digits_of, p_value
from reporting.krasula import BOUND
from reporting.parts import WHICH_DIFFERENCE, WHICH_IMAGES, Section
from reporting.thirds import THIRDS
from resampling import Interval

PUBLISHED = "Published models on the same test images"
DIFFERENCES = "Paired differences in SRCC to published models"


def sections(a: Analysis) -> list[Section]:
    """All tables for which the figures are known."""
    made = [published(a), published_differences(a), krasula(a), krasula_differences(a)]
    made += [residuals(a), pitman_morgan(a), thirds(a)]
    return [section for section in made if section]


def row_of(title: str, *values: Interval, digits: int) -> list[str]:
    """The title, and for each interval two cells: value and ends."""
    cells = [title]
    for x in values:
        cells += [decimal(x.value, digits), bounds(x, digits)]
    return cells


def published(a: Analysis) -> Section | None:
    if not a.published:
        return None
    rows, undefined = [], []
    digits = digits_of([f["srcc_interval"] for f in a.published.values()])
    for name, f in a.published.items():
        rows.append(
            [
                *row_of(name, f["srcc_interval"], f["plcc_interval"], digits=digits),
                decimal(f["plcc_fitted"], digits),
                decimal(f["krcc"], digits),
            ]
        )
        if reason := f["undefined"] or f["fit_problem"]:
            undefined.append(f"{name}: undefined: {reason}.")
    text = (
        "Predictions that were given with --predictions, on the same test images. Intervals "
        "resample the images. How these models were trained, and whether the test images were "
        "among their training images, is not known here."
    )
    header = ["", "SRCC", "95%", "PLCC raw", "95%", "PLCC fitted", "KRCC"]
    return Section(PUBLISHED, header, rows, undefined, notes=[text])


def published_differences(a: Analysis) -> Section | None:
    if not a.published_comparisons:
        return None
    digits = digits_of([c["difference"] for c in a.published_comparisons]) + 1
    rows = [
        [
            c["label"],
            decimal(c["difference"].value, digits, True),
            bounds(c["difference"], digits, True),
            p_value(c["difference"].p),
            p_value(c["p_holm"]),
            "-" if c["p_holm"] < 0.05 else at_most(c["difference"].within, digits),
            decimal(c["correlation"], 3),
        ]
        for c in a.published_comparisons
    ]
    several = any(len(c["each"]) > 1 for c in a.published_comparisons)
    text = (
        "Paired: both models of a row are evaluated on the same images. Holm: corrected for the "
        f"{len(rows)} rows. Smaller than: two one-sided tests, as in the other table of "
        "differences. A published model is one training run, taken as it is: intervals resample "
        f"the images{' and the seeds of the models trained here' if several else ''}."
    )
    header = ["", "difference", "95%", "p", "p (Holm)", "smaller than", "SRCC of the two"]
    return Section(DIFFERENCES, header, rows, question=WHICH_DIFFERENCE, notes=[text])


def krasula(a: Analysis) -> Section | None:
    heading = "Different or similar, better or worse"
    if "auc_ds" not in a.measures:
        text = f"Krasula's analysis needs the votes. {a.no_votes}"
        return Section(heading, paragraphs=[text], aside=True)
    names = ("auc_ds", "auc_bw", "c0")
    digits = digits_of([*a.measures["auc_ds"].values()])
    rows = [
        row_of(a.titles[m], *(a.measures[name][m] for name in names), digits=digits)
        for m in a.models
    ]
    text = (
        "Krasula's analysis (QoMEX 2016). Two images are different if their mean votes are: |z| > "
        f"{BOUND:g}. AUC different/similar: how well the difference of two scores tells a "
        "different pair from a similar one. AUC better/worse, and C0, the share of different pairs "
        "that are ordered correctly: both are near 1 for all good models. All pairs of "
        f"{a.scores.images:,} images. Intervals are made as those of SRCC: they resample images, "
        "not pairs."
    )
    header = ["", "AUC different/similar", "95%", "AUC better/worse", "95%", "C0", "95%"]
    return Section(heading, header, rows, notes=[text], aside=True)


def krasula_differences(a: Analysis) -> Section | None:
    if not a.krasula:
        return None
    names = {"auc_ds": "AUC different/similar", "auc_bw": "AUC better/worse", "c0": "C0"}
    digits, rows = digits_of([c["auc_ds"] for c in a.krasula]) + 1, []
    for c in a.krasula:
        row = [c["label"]]
        for name in names:
            row += [
                f"{decimal(c[name].value, digits, True)} {bounds(c[name], digits, True)}",
                p_value(c[f"{name}_p_holm"]),
            ]
        rows.append(row)
    header = [""]
    for title in names.values():
        header += [title, "p (Holm)"]
    text = f"Paired differences with 95% intervals. Holm: corrected for the {len(rows)} rows."
    return Section(
        "Paired differences in Krasula's measures",
        header,
        rows,
        question=WHICH_DIFFERENCE,
        notes=[text],
        aside=True,
    )


def residuals(a: Analysis) -> Section:
    heading, measures = "Size of the errors", a.measures
    known = "rmse_star" in measures
    rows = []
    digits = digits_of([*measures["outlier_ratio"].values()]) if known else 3
    for m in a.models:
        row = [a.titles[m], decimal(a.fitted(m), digits)]
        if known:
            row += row_of("", measures["outlier_ratio"][m], digits=digits)[1:]
        row += row_of("", measures["rmse"][m], digits=2)[1:]
        if known:
            row += row_of("", measures["rmse_star"][m], digits=2)[1:]
        rows.append(row)
    if known:
        text = (
            "ITU-T P.1401, after VQEG's four-parameter logistic to the mean votes, in points of "
            "0..100 (points of a scale of 1..5: divide by 25). Outlier ratio: share of images "
            "whose error exceeds the 95% interval of their mean vote; RMSE* counts only what "
            "exceeds it. Intervals are made as those of SRCC; the logistic stays as it is."
        )
        header = ["", "PLCC fitted", "outlier ratio", "95%", "RMSE", "95%", "RMSE*", "95%"]
    else:
        text = (
            "After VQEG's four-parameter logistic to the MOS, in points of 0..100. Intervals are "
            "made as those of SRCC; the logistic stays as it is. Outlier ratio and RMSE* (ITU-T "
            f"P.1401) need the votes. {a.no_votes}"
        )
        header = ["", "PLCC fitted", "RMSE", "95%"]
    return Section(heading, header, rows, notes=[text], aside=True)


def pitman_morgan(a: Analysis) -> Section | None:
    if not a.errors:
        return None
    single = all(len(row["p"]) == 1 for row in a.errors)
    rows = []
    for row in a.errors:
        ratio = sum(row["ratio"]) / len(row["ratio"])
        cells = [row["label"], decimal(ratio, 3)]
        if single:
            cells += [p_value(row["p"][0]), p_value(row["p_holm"])]
        else:
            found = sum(p < 0.05 for p in row["p"])
            cells.append(f"{found} of {len(row['p'])}")
        rows.append(cells)
    text = (
        "Pitman and Morgan's test of paired errors: does the first model of a row err less? Ratio: "
        "of the standard deviations of the errors, first to second. The test knows only the "
        "images, not the variance between seeds"
    )
    how = f"Holm: corrected for the {len(rows)} rows." if single else "so it is made for each seed."
    text += f". {how}" if single else f", {how}"
    header = ["", "ratio of errors", *(["p", "p (Holm)"] if single else ["seeds with p < 0.05"])]
    return Section(
        "Paired test of the errors",
        header,
        rows,
        question=WHICH_DIFFERENCE,
        notes=[text],
        aside=True,
    )


def thirds(a: Analysis) -> Section | None:
    if "srcc_low" not in a.measures:
        return None
    measures = [a.measures[f"srcc_{third}"] for third in THIRDS]
    digits = digits_of([x for of_third in measures for x in of_third.values()])
    rows = [
        row_of(a.titles[m], *(of_third[m] for of_third in measures), digits=digits)
        for m in a.models
    ]
    text = (
        "The test images in three parts of equal size by MOS. Within a third the MOS vary less, so "
        "the SRCC is lower than over all images: compare the models within a third, not thirds."
    )
    header = ["SRCC", "lowest third", "95%", "middle third", "95%", "highest third", "95%"]
    heading = "SRCC by third of quality"
    return Section(heading, header, rows, question=WHICH_IMAGES, notes=[text])


def aligned(section: Section) -> str:
    """A section's table as text in columns, for table.txt and the console."""
    lines = [section.header, *section.rows]
    wide = [max(map(len, column)) for column in zip(*lines)]
    return "".join(
        line[0].ljust(wide[0]) + "".join(f"  {c:>{w}}" for c, w in zip(line[1:], wide[1:])) + "\n"
        for line in lines
    )

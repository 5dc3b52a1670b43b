"""The words of the report, as a data object that templates turn into Markdown and HTML."""

import math

from experiment import (
    ANCHORS,
    BASELINE,
    BOTH,
    BOUNDS,
    COLLAPSED,
    CONFIGURATIONS,
    FULL,
    HYPERIQA,
    SELECTIONS,
    SMART_IQA,
    UNDECIDED,
)
from reporting.answer import answer, more_seeds, title
from reporting.figures import Figure
from reporting.formats import (
    at_most,
    bounds,
    collapses,
    data_set,
    decimal,
    digits_for,
    is_published,
    listed,
    of_seeds,
    on_backbone,
    p_value,
    percent,
    with_spread,
)
from reporting.parts import (
    ATTENDS,
    COST,
    QUESTIONS,
    SOURCES,
    WHICH_DIFFERENCE,
    WHICH_IMAGES,
    Report,
    Section,
    Verdict,
    place,
)
from reporting.runs import Runs
from reporting.statistics import Statistics

# What the comparisons with controls say, by their labels in experiment.py.
CONTROLS = {
    "fusion over capacity": "Fusion over capacity: multi-scale fusion compared with a control that "
    "has as many parameters on stage 4 alone. It says whether several scales help, or parameters.",
    "image-dependence": "Image-dependence: the attention compared with a control whose four stage "
    "weights are learned, but the same for all images. It says what it adds that weights depend on "
    "the image.",
}


def write_report(
    s: Statistics, runs: Runs, figures: list[Figure], further: list[Section] | None = None
) -> Report:
    """The report, with further sections, each with those that answer the same question."""
    sections = [
        configurations(s, runs),
        selections(s),
        literature(s),
        *([differences(s)] if s.comparisons else []),
        *([stage_weights(s)] if any(f["attention"] for f in s.configurations.values()) else []),
        Section("Photographs", question=WHICH_IMAGES),
        costs(s),
        provenance(s),
    ]
    place(figures, sections + (further or []))
    drawn = {figure.stem: figure for figure in figures}
    sections = [part for part in sections if part.rows or part.paragraphs or part.figures]
    missing = [figure.caption for figure in figures if not figure.stem]
    if missing:
        heading = "Figures that are missing"
        sections.append(Section(heading, paragraphs=missing, question=SOURCES))
    sections = [*sections, *(further or [])]
    sections.sort(key=lambda section: QUESTIONS.index(section.question))
    lead = drawn.get("forest") or drawn.get("configurations")
    return Report(title(s), answer(s, runs), verdict(s, runs), runs.problems, sections, lead)


def verdict(s: Statistics, runs: Runs) -> Verdict:
    seeds = len(s.common_seeds(FULL, BASELINE))
    single = ", single seed" if seeds == 1 else of_seeds(s, seeds) if seeds else ""
    sentence = f"Verdict on {data_set(s)}{single}: {on_backbone(s, s.verdict)}"
    gain, remarks = s.gain, []
    if gain is None or not math.isfinite(gain.value):
        return Verdict(f"{sentence}.", collapses(s))
    interval = f"95% interval {percent(gain.low)} to {percent(gain.high)}, "
    sentence += (
        "; multi-scale fusion and channel attention change the SRCC of the baseline by "
        f"{percent(gain.value)} ({interval if math.isfinite(gain.low + gain.high) else ''}"
        f"{s.selection})."
    )
    reason = (
        "the interval contains a bound between the hypotheses (0.3% or 1%), so nothing is claimed."
        if any(gain.low < bound <= gain.high for bound in BOUNDS)
        else "after Holm's correction the difference is not significant (5%), so nothing is "
        "claimed."
    )
    if s.images_alone == UNDECIDED:
        remarks.append(f"The test images alone would not decide it either: {reason}")
    elif s.images_alone:
        remarks.append(f"The test images alone would say: {on_backbone(s, s.images_alone)}.")
    elif s.verdict == UNDECIDED:  # and no other reason is given there
        remarks.append(reason[0].upper() + reason[1:])
    both = next(c for c in s.comparisons if c["label"] == BOTH)
    if seeds > 1 and both["p_holm"] >= 0.05:
        remarks.append(
            f"No effect is found; with 95% confidence it is smaller than "
            f"{at_most(both['difference'].within)} SRCC, or {at_most(100 * gain.within, 2)}% of "
            "the baseline's (two one-sided tests)."
        )
    remarks += collapses(s)
    if seeds == 1:
        more = "The runs of other seeds are missing."
        if len(s.seeds) == 1:
            step = more_seeds(runs, s.seeds, "")
            more = (
                f"To decide it: {step.command}"
                if step.command
                else f"To decide it, {step.sentence[0].lower()}{step.sentence[1:]}"
            )
        remarks.append(
            "Single seed: the variance between seeds is unknown and not part of the interval. "
            + more
        )
    return Verdict(sentence, remarks)


def configurations(s: Statistics, runs: Runs) -> Section:
    rows, undefined, digits = [], [], digits_for(s)
    for model, f in s.configurations.items():
        name = CONFIGURATIONS[model].title
        rows.append(
            [
                name + of_seeds(s, len(f["seeds"])),
                with_spread(s, f["selections"][s.selection], digits=digits),
                bounds(f["srcc_interval"], digits),
                decimal(f["plcc"], digits),
                bounds(f["plcc_interval"], digits),
                decimal(f["plcc_fitted"], digits),
                decimal(f["krcc"], digits),
                decimal(f["rmse_fitted"], digits - 1),
            ]
        )
        for what, reason in (("correlations", f["undefined"]), ("the fit", f["fit_problem"])):
            if reason:
                undefined.append(f"Row '{name}': {what} undefined: {reason}.")
    for name in dict.fromkeys(run.title for run in runs.failed if run.model not in s.models):
        rows.append([f"{name} (failed: see Problems)"] + ["-"] * 7)

    if s.splits > 1:
        how = (
            f"medians over {s.splits} random splits (seeds {listed(s.seeds)}), +- the standard "
            "deviation; intervals are those of the mean over splits, by the corrected resampled "
            "t-test, which accounts for the images that splits share"
        )
    elif len(s.seeds) > 1:
        how = (
            f"means over seeds {listed(s.seeds)}, +- the standard deviation; intervals resample "
            "seeds and images and account for the number of seeds"
        )
        if len(s.seeds) == 2 and not (s.pools["srcc"] and s.pools["srcc"].holds):
            how += "; two seeds say little about the variance between seeds, so they are wide"
    else:
        how = (
            f"single seed ({s.seeds[0]}): the variance between seeds is unknown, and intervals "
            "resample images only"
        )
    epoch = {
        "chosen by val": "the epoch with the highest validation SRCC (chosen by val)",
        "last epoch": "the last epoch",
    }[s.selection]
    return Section(
        "Configurations",
        ["", "SRCC", "95%", "PLCC raw", "95%", "PLCC fitted", "KRCC", "RMSE fitted"],
        rows,
        [f"{s.images:,} test images; {epoch}.", *undefined],
        notes=[
            f"{how[0].upper()}{how[1:]}.",
            "Fitted: after VQEG's four-parameter logistic. Numbers have the digits that the "
            "intervals support; results.json has all of them.",
            *seed_variance(s),
        ],
    )


def seed_variance(s: Statistics) -> list[str]:
    """What is assumed of the variance between seeds; none with one seed, or with several splits."""
    if len(s.seeds) == 1 or s.splits > 1:
        return []
    pool = s.pools["srcc"]
    if pool is None:
        return ["The variance between seeds is not pooled: no configurations share two seeds."]
    v = pool.variance
    if not pool.holds:
        text = (
            "The variance between seeds is not pooled, because the configurations differ in it "
            f"(Brown and Forsythe's test: p = {p_value(v.p_equal)}): each interval uses its own "
            "seeds only, and is wide."
        )
    else:
        test = (
            "two seeds cannot test this"
            if v.seeds == 2
            else f"Brown and Forsythe's test: p = {p_value(v.p_equal)}"
        )
        text = (
            f"The variance between seeds is pooled over {v.configurations} configurations and "
            f"{v.seeds} seeds (two-way analysis of variance with seeds as blocks): a difference "
            f"has {v.df} degrees of freedom instead of {v.seeds - 1}. This assumes that the SRCC "
            f"of all configurations varies equally between seeds ({test}); apart from what a seed "
            "changes in all configurations, the standard deviation is "
            f"{decimal(math.sqrt(v.residual))}."
        )
        alone = [CONFIGURATIONS[m].title for m in s.models if m not in pool.models]
        if alone:
            text += f" Seeds are missing for {listed(alone)}: there each row uses its own seeds."
    plcc = s.pools["plcc"]
    if plcc and plcc.holds != pool.holds:
        text += (
            f" For PLCC it is {'' if plcc.holds else 'not '}pooled "
            f"(p = {p_value(plcc.variance.p_equal)})."
        )
    return [text]


def selections(s: Statistics) -> Section:
    digits = digits_for(s)
    rows = [
        [
            CONFIGURATIONS[m].title,
            *(with_spread(s, f["selections"][x], digits=digits) for x in SELECTIONS),
        ]
        for m, f in s.configurations.items()
    ]
    text = (
        "'best on test' selects the epoch by the test images, as is common in the literature, so "
        "it is optimistic."
    )
    if math.isfinite(s.optimism()):
        gap = decimal(s.optimism(), digits + 1)
        text += (
            f" Here it is {gap} above '{s.selection}', averaged over all runs."
            if float(gap)
            else f" Here it is the same as '{s.selection}'."
        )
    return Section("Three ways to choose the epoch", ["SRCC", *SELECTIONS], rows, [text])


def differences(s: Statistics) -> Section:
    digits = digits_for(s) + 1
    rows = [
        [
            c["label"] + of_seeds(s, len(c["each"])),
            decimal(c["difference"].value, digits, True),
            bounds(c["difference"], digits, True),
            p_value(c["difference"].p),
            p_value(c["p_holm"]),
            equivalence(c, digits),
            decimal(c["correlation"], 3),
            str(c["seeds_needed"] or "-") if len(c["each"]) > 1 else "unknown",
        ]
        for c in s.comparisons
    ]
    test = "corrected resampled t-test" if s.splits > 1 else "bootstrap"
    notes = [
        "Both models of a row are evaluated on the same images and the same crops. p: "
        f"{test}. Holm: corrected for the {len(rows)} rows.",
        "Smaller than: where no effect is found, it is smaller than this with 95% confidence (two "
        "one-sided tests: the larger absolute end of the 90% interval).",
        "Seeds for 80% power: seeds needed to detect the observed difference (p < .05) from seed "
        "variance alone; test-set error does not shrink with seeds.",
    ]
    if any(len(c["each"]) == 1 for c in s.comparisons):
        notes.append(
            "With one seed the interval is bias-corrected (BCa) and p is not, so they can "
            "disagree for p near 0.05."
        )
    notes += [CONTROLS[c["label"]] for c in s.comparisons if c["label"] in CONTROLS]
    paragraphs = [what_is_found(s)]
    if s.interaction:
        d = s.interaction["difference"]
        paragraphs.append(
            f"Interaction: on Swin {s.interaction['size']} the improvements gain "
            f"{decimal(abs(d.value), digits)} SRCC {'less' if d.value < 0 else 'more'} than on "
            f"ResNet-50 (95% interval of the difference: {bounds(d, digits, True)})."
        )
    header = ["", "difference", "95%", "p", "p (Holm)", "smaller than", "SRCC of the two"]
    return Section(
        "Paired differences in SRCC",
        [*header, "seeds for 80% power"],
        rows,
        paragraphs,
        question=WHICH_DIFFERENCE,
        notes=notes,
    )


def what_is_found(s: Statistics) -> str:
    """Which differences are significant after Holm's correction, in a sentence or two."""
    found = [c["label"] for c in s.comparisons if c["p_holm"] < 0.05]
    others = [c["label"] for c in s.comparisons if c["label"] not in found]
    text = f"Found (p < 0.05 after Holm's correction): {listed(found)}." if found else ""
    if others:
        text += f" Not found: {listed(others)}."
    if any(len(c["each"]) == 1 for c in s.comparisons):
        text += " Of a single seed, the differences say nothing about other training runs."
    return text.strip()


def equivalence(comparison: dict, digits: int) -> str:
    """'0.0123': what the size of an effect that is not found is below; '-' if it is found."""
    if comparison["p_holm"] < 0.05:
        return "-"
    several = len(comparison["each"]) > 1
    return at_most(comparison["difference"].within, digits) if several else "unknown"


def stage_weights(s: Statistics) -> Section:
    rows = []
    for model, f in s.configurations.items():
        if use := f["attention"]:
            rows.append(
                [
                    CONFIGURATIONS[model].title,
                    s.of_model[model][0].config["flags"].get("attention", "published"),
                    *(decimal(w, 3) for w in use["stage_weights"]),
                    decimal(use["stage_spread"], 3),
                    decimal(use["effective_stages"], 2),
                    f"{use['collapsed_seeds']} of {len(f['seeds'])}",
                ]
            )
    stages, spread = COLLAPSED
    notes = [
        f"Mean stage weights of the validation and test images ({s.selection}), averaged over "
        "seeds. Spread: standard deviation between images, averaged over the stages. Effective "
        "stages: exp of the mean entropy of the weights, from 1 (one stage counts) to 4 (all "
        "equal).",
        f"Below {stages} stages, or below a spread of {spread}, the attention has collapsed. "
        "Static weights are the same for all images.",
    ]
    uses = [f["attention"] for f in s.configurations.values() if f["attention"]]
    some = sum(use["collapsed_seeds"] for use in uses)
    paragraphs = collapses(s) or [
        f"The attention has collapsed in {some} run{'s' if some > 1 else ''}, but not on average."
        if some
        else "The attention has not collapsed: it uses several stages, and its weights depend on "
        "the image."
    ]
    if all(f["attention"] is None or m.endswith("_static") for m, f in s.configurations.items()):
        paragraphs = ["The only weights here are static: the same for all images."]
    header = ["", "attention", "w1", "w2", "w3", "w4", "spread", "effective stages"]
    return Section(
        "Stage weights",
        [*header, "collapsed seeds"],
        rows,
        paragraphs,
        question=ATTENDS,
        notes=notes,
    )


def literature(s: Statistics) -> Section:
    heading, config = "Compared with the literature", s.runs[0].config
    if config["flags"]["dataset"] != "koniq-10k" or not is_published(config):
        text = (
            f"These runs are on {data_set(s)}, so the published figures on KonIQ-10k (HyperIQA "
            f"{HYPERIQA}, SMART-IQA {SMART_IQA}) cannot be compared with theirs."
        )
        return Section(heading, paragraphs=[text])
    paragraphs = []
    d = next((c["difference"] for c in s.comparisons if c["label"] == BOTH), None)
    if d is not None and math.isfinite(d.low + d.high):
        step = SMART_IQA - HYPERIQA
        paragraphs.append(
            f"From HyperIQA (ResNet-50, {HYPERIQA}) to SMART-IQA (Swin-Base, {SMART_IQA}) the "
            f"distance is {step:.4f}. On the same backbone the improvements close "
            f"{percent(d.value / step, False)} of it (95% interval {percent(d.low / step, False)} "
            f"to {percent(d.high / step, False)})."
        )
    if BASELINE in s.models:
        best = float(s.middle(s.configurations[BASELINE]["selections"]["best on test"]))
        paragraphs.append(
            f"With the epoch chosen as in the literature (best on test) our baseline has "
            f"{decimal(best)}, {decimal(best - HYPERIQA, 4, True)} compared with HyperIQA in this "
            "setting."
        )
    rows = [[name, decimal(value)] for name, value in ANCHORS]
    return Section(heading, ["KonIQ-10k", "SRCC"], rows, paragraphs)


def costs(s: Statistics) -> Section:
    config = s.runs[0].config
    size = config["flags"]["patch_size"]
    rows = [
        [
            CONFIGURATIONS[m].title,
            f"{f['parameters'] / 1e6:.2f} M",
            "-" if f["multiply_adds"] is None else f"{f['multiply_adds'] / 1e9:.2f} G",
            f"{f['patches_per_second']:.1f}",
            f"{f['test_patches_per_second']:.1f}",
            "-" if f["peak_memory_gb"] is None else f"{f['peak_memory_gb']:.2f} GB",
        ]
        for m, f in s.configurations.items()
    ]
    header = ["", "parameters", "multiply-adds", "training crops/s", "test crops/s", "memory"]
    notes = (
        f"Multiply-adds of one {size} x {size} crop, as counted by torch (convolutions and matrix "
        "products); rates are medians over the epochs; memory is the maximum. Measured on "
        f"{config['device']} ({config['device_name']}), precision {config['precision']}."
    )
    return Section("Costs", header, rows, question=COST, notes=[notes])


def provenance(s: Statistics) -> Section:
    rows = [
        [
            r.name,
            CONFIGURATIONS[r.model].title,
            str(r.seed),
            r.config["data_fingerprint"],
            " then ".join(commits(r.config)),
            r.config["versions"]["torch"],
            str(r.config["started"])[:19],
        ]
        for r in s.runs
    ]
    config = s.runs[0].config
    counts = ", ".join(f"{n:,} {split}" for split, n in config["images"].items())
    splits = f", one of {s.splits} random splits, one per seed" if s.splits > 1 else ""
    text = (
        f"Data: {data_set(s)}, {counts} images; {config['label_source']}{splits}. Bootstrap: "
        f"{s.options['resamples']:,} resamples, seed {s.options['seed']}; BCa with one seed; with "
        "several seeds, percentiles over seeds and images, widened by Student's t; none with "
        "several splits."
    )
    header = ["run", "configuration", "seed", "data", "commit", "torch", "started"]
    return Section("Provenance", header, rows, [text], question=SOURCES)


def commits(config: dict) -> list[str]:
    """The commits that trained a run, in order: several if another commit resumed it."""
    before = [part["before"].get("git_commit") for part in config.get("resumed", [])]
    return [c for c in dict.fromkeys([*before, config["git_commit"]]) if c]

"""The report's figures, as PNG and PDF."""

import io
import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import metrics
from datasets.images import load_image
from experiment import BASELINE, BOUNDS, CONFIGURATIONS, FULL
from files import replacing
from reporting.statistics import Statistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

    from reporting.analysis import Analysis
    from reporting.backbones import Backbones
    from resampling import Interval

OTHER_COLOURS = ("#56B4E9", "#CC79A7", "#009E73", "#E69F00", "#0072B2", "#D55E00")  # published
COLUMN = 3.5  # inches: the column of a journal; a page is twice as wide


class Figure(NamedTuple):
    stem: str  # of its files in figures/; empty if there is none
    caption: str  # or the reason why there is none
    svg: str = ""  # for report.html; empty if it shows photographs or thousands of points


def draw_figures(s: Statistics, folder: Path, data_path: str | None) -> list[Figure]:
    """Draw all figures into `folder`; data_path: the photographs, if not those of the record."""
    prepare(folder)
    photographs = Path(data_path or s.runs[0].config["flags"]["data_path"])
    figures = []
    for draw in (draw_configurations, draw_curves, draw_forest, draw_stage_weights, draw_costs):
        figures.append(save(*draw(s), folder / draw.__name__.removeprefix("draw_")))
    figures.append(save(*draw_thirds(s.analysis), folder / "thirds"))
    figures.append(save(*draw_scatter(s), folder / "scatter", vectors=False))
    sheet = draw_contact_sheet(s, photographs)
    figures.append(save(*sheet, folder / "contact_sheet", vectors=False))
    return figures


def prepare(folder: Path) -> None:
    """Make the folder, and choose how figures look."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    matplotlib.rcdefaults()  # whatever style the user has
    plt.rcParams.update(
        {
            "font.size": 8,
            "axes.titlesize": 8,
            "legend.fontsize": 7,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "savefig.dpi": 300,
            "pdf.fonttype": 42,
            "svg.fonttype": "none",
        }
    )


def save(canvas: "Canvas | None", caption: str, path: Path, *, vectors: bool = True) -> Figure:
    """Write and close a drawn figure as path.png and path.pdf; vectors: with its SVG as well."""
    import matplotlib.pyplot as plt

    if canvas is None:
        return Figure("", caption)
    for suffix in ("png", "pdf"):
        with replacing(path.with_suffix(f".{suffix}")) as file:
            canvas.savefig(file, format=suffix)
    svg = io.StringIO()
    if vectors:
        plt.rcParams["svg.hashsalt"] = path.name  # the same names of its parts each time
        canvas.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    plt.close(canvas)
    return Figure(path.name, caption, svg.getvalue())


class Drawn(NamedTuple):
    """A model in a figure."""

    title: str
    colour: str
    marker: str
    value: float  # its SRCC
    interval: "Interval"
    each: list[float]  # of its seeds; empty for a published model


def drawn_models(s: Statistics) -> list[Drawn]:
    """Those of the runs, then those of --predictions."""
    own = []
    for model, found in s.configurations.items():
        row, each = CONFIGURATIONS[model], found["selections"][s.selection]
        own.append(
            Drawn(row.title, row.colour, row.marker, found["srcc"], found["srcc_interval"], each)
        )
    return own + published_models(s.analysis)


def published_models(a: "Analysis") -> list[Drawn]:
    return [
        Drawn(name, colour_of(name, a), "D", found["srcc"], found["srcc_interval"], [])
        for name, found in a.published.items()
    ]


def colour_of(name: str, a: "Analysis") -> str:
    """Of a published model, in every figure."""
    return OTHER_COLOURS[[*a.published].index(name) % len(OTHER_COLOURS)]


def draw_configurations(s: Statistics) -> tuple["Canvas", str]:
    several = "; ticks: single seeds." if len(s.seeds) > 1 else ", one seed."
    caption = f"Test SRCC ({s.selection}) with 95% intervals{several}"
    return draw_models(drawn_models(s)), caption


def draw_models(models: list[Drawn]) -> "Canvas":
    """SRCC with its interval, a line for each model."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(figsize=(COLUMN, 0.8 + 0.36 * len(models)))
    for y, model in enumerate(models[::-1]):
        low, high = model.interval.low, model.interval.high
        if math.isfinite(low + high):
            axes.plot([low, high], [y, y], color=model.colour, linewidth=1.5)
        axes.plot(model.value, y, model.marker, color=model.colour, markersize=4.5)
        if len(model.each) > 1:
            axes.plot(model.each, [y - 0.26] * len(model.each), "|", color="0.4", markersize=5)
    axes.set(yticks=range(len(models)), yticklabels=[model.title for model in models[::-1]])
    axes.set(xlabel="SRCC, test images", ylim=(-0.6, len(models) - 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    return figure


def draw_thirds(a: "Analysis") -> tuple["Canvas | None", str]:
    """SRCC of each model within each third of the test images by MOS."""
    import matplotlib.pyplot as plt

    if "srcc_low" not in a.measures:
        return None, "No figure of thirds: there are too few test images."
    figure, axes = plt.subplots(figsize=(COLUMN, 2.6))
    step = 0.6 / max(1, len(a.models) - 1)
    for i, model in enumerate(a.models):
        row = CONFIGURATIONS.get(model)
        found = [a.measures[f"srcc_{third}"][model] for third in ("low", "middle", "high")]
        values = np.array([x.value for x in found])
        bars = np.array([[x.value - x.low for x in found], [x.high - x.value for x in found]])
        axes.errorbar(
            np.arange(3) + i * step - 0.3 * (len(a.models) > 1), values, bars, linestyle="",
            color=row.colour if row else colour_of(model, a), marker=row.marker if row else "D",
            markersize=4, linewidth=1, capsize=2, label=a.titles[model],
        )  # fmt: skip
    axes.set(xticks=range(3), xticklabels=["lowest third", "middle third", "highest third"])
    axes.set(xlabel="test images by MOS", ylabel="SRCC within the third")
    figure.legend(loc="outside upper center", ncols=min(3, len(a.models)), frameon=False)
    return figure, "SRCC within each third of the test images by MOS, with 95% intervals."


def draw_curves(s: Statistics) -> tuple["Canvas", str]:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(COLUMN, 3.6))
    for model in s.models:
        row = CONFIGURATIONS[model]
        runs = s.of_model[model]
        epochs = [e["epoch"] for e in runs[0].epochs]
        style = {"color": row.colour, "marker": row.marker, "markersize": 3, "linewidth": 1}
        for axes, name in ((top, "test_srcc"), (bottom, "loss")):
            each = np.array([[e[name] for e in r.epochs] for r in runs], float)  # None is NaN
            axes.plot(epochs, each.mean(0), label=row.title, **style)
            if len(runs) > 1:
                axes.fill_between(
                    epochs, each.min(0), each.max(0), color=row.colour, alpha=0.15, linewidth=0
                )
    top.set_ylabel("SRCC, test images")
    bottom.set_ylabel("training loss (L1, MOS)")
    bottom.set_xlabel("epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(epochs) == 1:
        bottom.set(xticks=epochs, xlim=(0.5, 1.5))
    top.legend(frameon=False)
    caption = "Test SRCC and training loss by epoch."
    if max(map(len, s.of_model.values())) > 1:
        caption += " Means over seeds; bands reach from the lowest to the highest seed."
    return figure, caption


def draw_scatter(s: Statistics) -> tuple["Canvas", str]:
    import matplotlib.pyplot as plt

    columns = 2 if len(s.models) > 1 else 1
    rows = -(-len(s.models) // columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        sharex=True,
        sharey=True,
        squeeze=False,
        figsize=(COLUMN, 0.4 + COLUMN / columns * rows),
    )
    everything = np.concatenate([x[m][0] for x in (s.mos, s.scores) for m in s.models])
    ends = np.nanmin(everything) - 2, np.nanmax(everything) + 2
    for axes, model in itertools.zip_longest(panels.flat, s.models):
        if model is None:
            axes.set_visible(False)
            panels[-2, -1].tick_params(labelbottom=True)
            continue
        row = CONFIGURATIONS[model]
        scores, mos = s.scores[model][0], s.mos[model][0]
        axes.plot(scores, mos, ".", color=row.colour, markersize=2, alpha=0.35, rasterized=True)
        fit = metrics.fitted_agreement(scores, mos)
        if fit.parameters:
            x = np.linspace(scores.min(), scores.max(), 200)
            axes.plot(x, metrics.logistic(x, *fit.parameters), color="black", linewidth=1)
        axes.plot(ends, ends, color="0.6", linewidth=0.5, linestyle="--", zorder=0)
        axes.set(xlim=ends, ylim=ends, title=row.title)
        axes.set(xticks=axes.get_yticks(), xlim=ends)
        axes.set_aspect("equal")
    figure.supxlabel("predicted score", fontsize=8)
    figure.supylabel("MOS", fontsize=8)
    seed = s.of_model[s.models[0]][0].seed
    return figure, (
        f"MOS against predicted score of the {s.images:,} test images ({s.selection}, seed "
        f"{seed}); line: VQEG's four-parameter logistic, if it could be fitted; dashed: equality."
    )


def draw_forest(s: Statistics) -> tuple["Canvas | None", str]:
    if not s.comparisons:
        return None, "No forest plot: there are no two configurations to compare."
    published = s.analysis.published_comparisons
    figure = forest(s.comparisons, published)
    return figure, (
        f"Paired differences in test SRCC ({s.selection}) with 95% intervals"
        + ("; ticks: single seeds." if len(s.comparisons[0]["each"]) > 1 else ", one seed.")
        + (" Below the line: differences to published models." if published else "")
    )


def draw_differences(a: "Analysis") -> tuple["Canvas | None", str]:
    """A forest plot of published models alone."""
    if not a.published_comparisons:
        return None, "No forest plot: there are no two models to compare."
    figure = forest(a.published_comparisons, [])
    return figure, "Paired differences in SRCC with 95% intervals over the images."


def forest(comparisons: list[dict], published: list[dict]) -> "Canvas":
    """Differences with their intervals, those with published models below a line."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    rows = [*comparisons, *published][::-1]
    figure, axes = plt.subplots(figsize=(COLUMN, 0.8 + 0.36 * len(rows)))
    for y, comparison in enumerate(rows):
        value, low, high, *_ = comparison["difference"]
        row = CONFIGURATIONS.get(comparison["model"])
        colour = row.colour if row else "#0072B2"  # of two published models
        if math.isfinite(low + high):
            axes.plot([low, high], [y, y], color=colour, linewidth=1.5)
        axes.plot(value, y, "o", color=colour, markersize=4)
        if len(comparison["each"]) > 1:
            each = comparison["each"]
            axes.plot(each, [y - 0.22] * len(each), "|", color="0.4", markersize=5)
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    if comparisons and published:
        axes.axhline(len(published) - 0.5, color="0.8", linewidth=0.6)
    labels = [c["label"] for c in rows]
    axes.set(yticks=range(len(labels)), yticklabels=labels, xlabel="difference in SRCC")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.set_ylim(-0.6, len(labels) - 0.4)
    return figure


def draw_backbones(b: "Backbones") -> tuple["Canvas | None", str]:
    """A forest plot of the relative gain by backbone, and the summary below."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    known = {name: x for name, x in b.gain.each.items() if math.isfinite(x.low + x.high)}
    if not known:
        return None, "No forest plot: no backbone has a gain with an interval."
    rows = [
        (name + (" (left out)" if name in b.left_out else ""), x, "o", "#0072B2")
        for name, x in known.items()
    ]
    if b.gain.over:
        rows.append(("mean over backbones", b.gain.over.mean, "D", "#000000"))
        rows.append(("next backbone", b.gain.over.next, "", "#D55E00"))
    figure, axes = plt.subplots(figsize=(COLUMN, 0.8 + 0.32 * len(rows)))
    for y, (label, x, marker, colour) in enumerate(reversed(rows)):
        colour = "0.6" if label.endswith("(left out)") else colour
        axes.plot([100 * x.low, 100 * x.high], [y, y], color=colour, linewidth=1.5)
        axes.plot(100 * x.value, y, marker, color=colour, markersize=4)
    if b.gain.over:
        axes.axhline(1.5, color="0.8", linewidth=0.6)
    for bound in (0, *BOUNDS):
        axes.axvline(100 * bound, color="0.6", linewidth=0.8, zorder=0, dashes=(4, 2 * (bound > 0)))
    axes.set(yticks=range(len(rows)), yticklabels=[row[0] for row in reversed(rows)])
    axes.set(xlabel="relative gain in SRCC, %", ylim=(-0.6, len(rows) - 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    caption = "Relative gain of both improvements by backbone, with 95% intervals"
    if b.gain.over:
        caption += ", their mean, and the 95% prediction interval of a further backbone"
    return figure, f"{caption}. Dashed: the bounds between the hypotheses, 0.3% and 1%."


def draw_stage_weights(s: Statistics) -> tuple["Canvas | None", str]:
    import matplotlib.pyplot as plt

    models = [m for m in s.models if "w1" in s.rows[m, s.of_model[m][0].seed].columns]
    if not models or s.images < 10:
        return None, "No figure of stage weights: it needs a run with attention and 10 test images."
    model = FULL if FULL in models else models[0]
    tables = [s.rows[model, r.seed] for r in s.of_model[model]]
    if s.splits > 1:
        tables = tables[:1]  # the images differ from split to split
    weights = np.mean([t[["w1", "w2", "w3", "w4"]].to_numpy() for t in tables], 0)  # (N, 4)
    quintile = np.argsort(np.argsort(tables[0]["mos"].to_numpy())) * 5 // s.images
    figure, axes = plt.subplots(figsize=(COLUMN, 2.5))
    style = zip(("#0072B2", "#009E73", "#E69F00", "#D55E00"), "os^D")
    for stage, (colour, marker) in enumerate(style):
        parts = [weights[quintile == q, stage] for q in range(5)]
        middle = [np.median(p) for p in parts]
        x = np.arange(1, 6) + 0.08 * (stage - 1.5)
        around = [
            [m - np.quantile(p, 0.25) for m, p in zip(middle, parts)],
            [np.quantile(p, 0.75) - m for m, p in zip(middle, parts)],
        ]
        axes.errorbar(
            x, middle, around, color=colour, marker=marker, markersize=4, linewidth=1,
            capsize=2, label=f"w{stage + 1}",
        )  # fmt: skip
    axes.axhline(0.25, color="0.6", linewidth=0.5, linestyle="--", zorder=0)
    axes.set(xlabel="quintile of MOS (5: best)", ylabel="stage weight", xticks=range(1, 6))
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    name = CONFIGURATIONS[model].title.lstrip("+ ")
    split = " of the first split" if s.splits > 1 else ""
    return figure, (
        f"Stage weights of {name} over all {s.images:,} test images{split} by quintile of MOS: "
        "medians and quartiles; dashed: equal weights."
    )


def draw_costs(s: Statistics) -> tuple["Canvas", str]:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, sharey=True, figsize=(COLUMN, 2.3))
    for model in s.models:
        row = CONFIGURATIONS[model]
        found = s.configurations[model]
        value, low, high, *_ = found["srcc_interval"]
        bars = [[value - low], [high - value]] if math.isfinite(low + high) else None
        for axes, x in zip(panels, (found["parameters"] / 1e6, found["patches_per_second"])):
            axes.errorbar(
                [x], [value], bars, color=row.colour, marker=row.marker, markersize=5, capsize=2,
                linewidth=1, label=row.title, linestyle="",
            )  # fmt: skip
            axes.margins(x=0.25)
    panels[0].set(xlabel="parameters (M)", ylabel="SRCC, test images")
    panels[1].set(xlabel="training crops/s")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=min(3, len(s.models)),
        frameon=False,
        columnspacing=1,
    )
    device = s.runs[0].config["device_name"]
    return figure, f"Test SRCC with 95% intervals against parameters and speed (on {device})."


def draw_contact_sheet(s: Statistics, folder: Path) -> tuple["Canvas | None", str]:
    import matplotlib.pyplot as plt

    if s.splits > 1:
        return None, "No contact sheet: each seed has its own test images."
    if not {FULL, BASELINE} <= set(s.models) or s.images < 20:
        return None, "No contact sheet: it needs baseline, full configuration and 20 test images."
    base, full = (s.scores[m].mean(0) for m in (BASELINE, FULL))
    mos, images = s.mos[FULL][0], list(s.rows[FULL, s.of_model[FULL][0].seed]["image"])
    gain = np.abs(base - mos) - np.abs(full - mos)
    order = np.argsort(-gain, kind="stable")
    chosen = [*order[:10], *order[::-1][:10]]
    pictures, absent = [], []
    for i in chosen:
        try:
            picture = load_image(folder / images[i])
        except Exception:  # Pillow raises many kinds
            absent.append(images[i])
            continue
        picture.thumbnail((360, 360))
        pictures.append(picture)
    if absent:
        return None, (
            f"No contact sheet: {len(absent)} of its 20 photographs are not under {folder}, or "
            f"can't be read ({absent[0]}, ...); give --data_path."
        )
    figure, panels = plt.subplots(4, 5, figsize=(2 * COLUMN, 6.6))
    for position, (axes, i) in enumerate(zip(panels.flat, chosen)):
        axes.imshow(np.asarray(pictures[position]))
        axes.set_title(
            f"MOS {mos[i]:.0f}: {base[i]:.0f} $\\rightarrow$ {full[i]:.0f}", fontsize=8, pad=2
        )
        axes.set(xticks=[], yticks=[])
        for side in axes.spines.values():
            side.set(visible=True, linewidth=1.5, color="#0072B2" if position < 10 else "#D55E00")
    panels[0, 0].set_ylabel("gained most", color="#0072B2")
    panels[1, 0].set_ylabel("gained most", color="#0072B2")
    panels[2, 0].set_ylabel("lost most", color="#D55E00")
    panels[3, 0].set_ylabel("lost most", color="#D55E00")
    return figure, (
        "The ten test images whose error decreased most from the baseline to both improvements "
        "(blue), and the ten whose error increased most (orange). Above each: MOS, score of the "
        "baseline, score with both improvements."
    )

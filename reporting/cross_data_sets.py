"""Trained on one data set, tested on others: what --test_on has written, in tables.

python3 predict_resnet_improved.py --checkpoint FILE --test_on spaq=DIR --output tests.csv
python3 report_resnet_ablation.py LOG_DIR --cross_data_sets tests.csv
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import resampling
from errors import ReportError, first_line
from experiment import COMPARISONS, CONFIGURATIONS, CROSS_ANCHORS, RESNET50
from reporting.formats import bounds, decimal, p_value
from reporting.parts import ELSEWHERE, Section
from reporting.scores import Scores, Truth, difference
from resampling import Interval

if TYPE_CHECKING:
    import pandas as pd

WAYS = ("labels", "crops")  # how images were tested: the files and their split, and the crops
TEXTS = ("checkpoint", "trained_on", "model", "backbone", "dataset", "image", *WAYS)
COLUMNS = {**dict.fromkeys(TEXTS, str), "seed": float, "mos": float, "score": float}


class Trained(NamedTuple):
    """A row of the table: what was trained, and on what."""

    trained_on: str
    model: str
    backbone: str

    @property
    def title(self) -> str:
        on = "" if self.backbone == RESNET50 else f", {self.backbone}"
        return f"{CONFIGURATIONS[self.model].title}{on}, {self.trained_on}"


class CrossDataSets:
    """SRCC by what was trained (rows) and what was tested on (columns), and paired differences.

    cells[row, data set]: Interval; seeds[row, data set]: how many. comparisons: one dictionary for
    each comparison and data set: label, trained_on, backbone, tested_on, difference, each, p_holm.
    ways[data set][labels, crops]: the rows that were tested so.
    """

    def __init__(self, tables: "list[pd.DataFrame]", *, resamples: int, seed: int):
        import pandas as pd

        table = pd.concat(tables, ignore_index=True)
        self.options = {"resamples": resamples, "seed": seed}
        self.sets = list(dict.fromkeys(table["dataset"]))
        rows = {Trained(*key) for key in table[list(Trained._fields)].itertuples(index=False)}
        order = list(CONFIGURATIONS)
        self.rows = sorted(rows, key=lambda r: (r.trained_on, r.backbone, order.index(r.model)))
        self.cells: dict[tuple[Trained, str], Interval] = {}
        self.seeds: dict[tuple[Trained, str], int] = {}
        self.comparisons: list[dict] = []
        self.ways: dict[str, dict[tuple[str, str], list[Trained]]] = {}
        for (name, *way), part in table.groupby(["dataset", *WAYS], sort=False):
            keys = set(part[list(Trained._fields)].itertuples(index=False, name=None))
            tested = [row for row in self.rows if row in keys]
            self.ways.setdefault(name, {})[tuple(way)] = tested
        for name in self.sets:
            self.test(name, table[table["dataset"] == name])
        ps = resampling.holm([c["difference"].p for c in self.comparisons])
        for comparison, p in zip(self.comparisons, ps):
            comparison["p_holm"] = p

    def test(self, name: str, table: "pd.DataFrame") -> None:
        """All figures of one data set to test on."""
        for scores in samples_of(name, table, self.options):
            for row in scores.models:
                self.cells[row, name] = scores.interval((row,))
                self.seeds[row, name] = len(scores.seeds_of(row))
            groups = dict.fromkeys((row.trained_on, row.backbone) for row in scores.models)
            for trained_on, backbone in groups:
                for label, *models in COMPARISONS:
                    pair = tuple(Trained(trained_on, model, backbone) for model in models)
                    if not set(pair) <= set(scores.models) or not scores.seeds_of(*pair):
                        continue
                    self.comparisons.append(
                        {
                            "label": label,
                            "trained_on": trained_on,
                            "backbone": backbone,
                            "tested_on": name,
                            "difference": scores.interval(pair, difference),
                            "each": difference(scores.values(pair)).tolist(),
                        }
                    )

    def figures(self) -> dict:
        """All of it, for results.json."""
        cells = [
            {**row._asdict(), "tested_on": name, "srcc": x, "seeds": self.seeds[row, name]}
            for (row, name), x in self.cells.items()
        ]
        tests = [
            {"tested_on": name, **dict(zip(WAYS, way)), "rows": [row._asdict() for row in rows]}
            for name, ways in self.ways.items()
            for way, rows in ways.items()
        ]
        return {"cells": cells, "comparisons": self.comparisons, "tests": tests}


def samples_of(name: str, table: "pd.DataFrame", options: dict[str, int]) -> list[Scores]:
    """The tests on one data set, together if they have the same images and crops.

    Raises ReportError if a configuration and seed was tested twice, or on other images or crops
    than its other seeds.
    """
    groups: dict[tuple[tuple[str, ...], str], dict] = {}
    images_of: dict[Trained, tuple[str, ...]] = {}
    crops_of: dict[Trained, str] = {}
    for (*key, seed), part in table.groupby([*Trained._fields, "seed"], dropna=False, sort=False):
        row, seed = Trained(*key), None if seed != seed else int(seed)
        checkpoints = part["checkpoint"].unique()
        if len(checkpoints) > 1 or part["image"].duplicated().any():
            raise ReportError(
                f"--cross_data_sets: {row.title}, seed {seed}, was tested twice on {name}: "
                f"{', '.join(checkpoints)}; leave one of them"
            )
        part = part.sort_values("image", ignore_index=True)
        images = tuple(part["image"])
        if images_of.setdefault(row, images) != images:
            raise ReportError(
                f"--cross_data_sets: the seeds of {row.title} were tested on different images of "
                f"{name}"
            )
        crops = crops_of.setdefault(row, part["crops"][0])
        if set(part["crops"]) != {crops}:
            raise ReportError(
                f"--cross_data_sets: the seeds of {row.title} were tested on different crops of "
                f"{name} ({crops}; and {part['crops'][0]}): test all with the same --test_crop, "
                "--test_patch_num and --test_flip"
            )
        groups.setdefault((images, crops), {})[row, seed] = part
    made = []
    for parts in groups.values():
        truth = Truth(next(iter(parts.values()))["mos"].to_numpy())
        truths = {seed: truth for _, seed in parts} | {None: truth}
        runs = {run: part["score"].to_numpy() for run, part in parts.items()}
        made.append(Scores(runs, truths, **options))
    return made


def read_tests(paths: list[Path]) -> "list[pd.DataFrame]":
    """The tables that --test_on has written. Raises ReportError for files that are none."""
    import pandas as pd

    tables = []
    for path in paths:
        try:
            table = pd.read_csv(
                path, dtype=COLUMNS, keep_default_na=False, na_values={"seed": "", "score": ""}
            )
        except (OSError, ValueError) as error:
            raise ReportError(
                f"--cross_data_sets {path}: can't be read ({first_line(error)})"
            ) from error
        missing = [column for column in COLUMNS if column not in table]
        if missing:
            raise ReportError(
                f"--cross_data_sets {path}: has no column {', '.join(missing)}; it takes what "
                "predict_resnet_improved.py --test_on writes to --output (of this version)"
            )
        unknown = sorted(set(table["model"]) - set(CONFIGURATIONS))
        if unknown:
            raise ReportError(
                f"--cross_data_sets {path}: {unknown[0]} is not a row of CONFIGURATIONS in "
                "experiment.py"
            )
        tables.append(table)
    return tables


def sections(c: CrossDataSets) -> list[Section]:
    """The table, and that of the paired differences if there are any."""
    rows = [[row.title, *(cell_of(c, row, name) for name in c.sets)] for row in c.rows]
    if set(c.sets) & set(CROSS_ANCHORS):
        cells = [decimal(CROSS_ANCHORS.get(name), 3) for name in c.sets]
        rows.append(["HyperIQA, as published, koniq-10k", *cells])
    text = (
        "SRCC with 95% intervals: what was trained, and on what (rows), by the data set that it "
        "was tested on (columns). Intervals resample the images, and with several seeds also the "
        "seeds. The epoch is that of the checkpoints that were tested."
    )
    heading = "Trained on (rows), tested on (columns)"
    notes = [text]
    for name, ways in c.ways.items():
        for (labels, crops), tested in ways.items():
            which = "" if len(ways) == 1 else f" ({'; '.join(row.title for row in tested)})"
            notes.append(f"Tests on {name}{which}: labels: {labels}. Crops: {crops}.")
    found = [Section(heading, ["", *c.sets], rows, question=ELSEWHERE, notes=notes)]
    if c.comparisons:
        found.append(differences_section(c))
    return found


def cell_of(c: CrossDataSets, row: Trained, name: str) -> str:
    if (row, name) not in c.cells:
        return "-"
    x = c.cells[row, name]
    return f"{decimal(x.value)} {bounds(x)}"


def differences_section(c: CrossDataSets) -> Section:
    rows = [
        [
            x["tested_on"],
            x["trained_on"],
            x["label"] + ("" if x["backbone"] == RESNET50 else f", {x['backbone']}"),
            str(len(x["each"])),
            decimal(x["difference"].value, 4, True),
            bounds(x["difference"], 4, True),
            p_value(x["difference"].p),
            p_value(x["p_holm"]),
        ]
        for x in c.comparisons
    ]
    text = (
        "Both models of a row are trained on the same data and tested on the same images and "
        f"crops. Holm: corrected for the {len(rows)} rows."
    )
    header = ["tested on", "trained on", "", "seeds", "difference", "95%", "p", "p (Holm)"]
    heading = "Paired differences on other data sets"
    return Section(heading, header, rows, question=ELSEWHERE, notes=[text])

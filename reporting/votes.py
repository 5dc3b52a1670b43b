"""The votes behind the MOS of the test images: from the predictions, or from the label files.

Runs write them into their predictions CSV: `mos_sd` and `votes` (the standard deviation and the
number of an image's votes), and `vote_mean` where the MOS is not the mean vote; on 0..100. Earlier
logs lack them; then the label files are read, if they are still there.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.labels import DATASETS, read_labels
from datasets.readers import CsvOptions
from errors import DataError
from reporting.krasula import Votes
from reporting.predictions import match_names
from reporting.runs import FinishedRun

if TYPE_CHECKING:
    import pandas as pd

MOST = 6000  # images: 18 million pairs


def votes_of(
    runs: list[FinishedRun], rows: dict[tuple[str, int], "pd.DataFrame"], data_path: str | None
) -> tuple[dict[int, Votes] | None, str]:
    """The votes of the test images of each seed; or None, and a sentence that says why.

    rows: the test images of each run; data_path: the data folder, if it is not that of the record.
    """
    found: dict[int, Votes] = {}
    for run in runs:
        table = rows[run.model, run.seed]
        if run.seed in found:
            continue
        if "votes" not in table:
            table, reason = with_votes(run, table, data_path)
            if reason:
                return None, reason
        votes, reason = as_votes(table)
        if reason:
            return None, reason
        found[run.seed] = votes
    return found, ""


def as_votes(table: "pd.DataFrame") -> tuple[Votes | None, str]:
    """The votes of a table with mos, mos_sd, votes and maybe vote_mean; or why there are none."""
    if not {"mos_sd", "votes"} <= set(table):
        return None, "This data set does not say how its votes spread."
    if len(table) > MOST:
        return None, f"There are more than {MOST:,} test images, and so too many pairs."
    mean = table["vote_mean" if "vote_mean" in table else "mos"]
    votes = Votes(*(np.asarray(x, float) for x in (mean, table["mos_sd"], table["votes"])))
    known = np.isfinite(np.stack(votes)).all(0) & (votes.count > 1)
    if not known.all():
        count = np.count_nonzero(~known)
        return None, f"{count:,} of the {len(table):,} test images have fewer than two known votes."
    return votes, ""


def with_votes(
    run: FinishedRun, table: "pd.DataFrame", data_path: str | None
) -> tuple["pd.DataFrame", str]:
    """The test images with the votes of the label files; or a sentence that says what is wrong."""
    flags = run.config["flags"]
    lacking = "The predictions do not have the votes, and "
    try:
        labels = labels_of(flags, data_path or flags["data_path"])
    except DataError as error:
        reason = str(error).partition(";")[0]
        return table, f"{lacking}the label files can't be read ({reason})."
    if "votes" not in labels:
        return table, "This data set does not say how its votes spread."
    found = match_names(list(table["image"]), list(labels["image"]))
    at = {position: row for row, position in enumerate(found) if position is not None}
    labels = labels.iloc[[at[i] for i in range(len(table)) if i in at]]
    if len(labels) < len(table) or np.abs(labels["mos"].to_numpy() - table["mos"]).max() > 0.01:
        return table, f"{lacking}the label files are not those that the runs were trained with."
    columns = [c for c in ("vote_mean", "mos_sd", "votes") if c in labels]
    return table.assign(**{c: labels[c].to_numpy() for c in columns}), ""


def labels_of(flags: dict, data_path: str | Path) -> "pd.DataFrame":
    """The label table of recorded or given data flags; it needs no images. Raises DataError."""
    if flags["dataset"] not in DATASETS:
        raise DataError(f"no such data set: {flags['dataset']}")
    known = {name: flags[name] for name in CsvOptions._fields if flags.get(name) is not None}
    return read_labels(
        flags["dataset"],
        data_path,
        split=flags.get("split", "auto"),
        split_seed=flags.get("split_seed") or 0,
        val_fraction=flags.get("val_fraction"),
        own_csv=CsvOptions(**known),
        images=False,
    )[0]

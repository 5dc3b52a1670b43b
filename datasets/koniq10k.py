"""KonIQ-10k: labels, image releases and splits."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.label_files import (
    as_numbers,
    first_few,
    has_columns,
    read_split_json,
    read_table,
    seen_nearby,
)
from errors import DataError

if TYPE_CHECKING:
    import pandas as pd

KONIQ_SCORES = "koniq10k_scores_and_distributions.csv"


def read_koniq10k(folder: Path, split: str) -> tuple["pd.DataFrame", str]:
    """KonIQ-10k (Hosu et al., IEEE TIP 29, 2020): 10,073 photographs, 1024x768 or 512x384.

    Labels, all on 0..100: `MOS_zscore` of koniq10k_scores_and_distributions.csv (the `MOS` there
    is on 1..5), or `MOS` of koniq10k_distributions_sets.csv, or the scores in the split JSONs.
    Splits: 'json' is koniq_train.json (7,046) and koniq_test.json (2,010), and the 1,000 validation
    images of the sets CSV if that file is available. 'official' is the split of the sets CSV
    (7,058 / 1,000 / 2,015). 'auto' prefers 'json'. 'random' marks all images as training images.
    Returns the label table (image, mos, split, name; and the votes: see read_koniq_votes) and a
    description of its source.
    """
    split = koniq_split(folder, split)
    sets = read_koniq_sets(folder / "koniq10k_distributions_sets.csv")
    jsons = {part: folder / f"koniq_{part}.json" for part in ("train", "test")}
    has_csv = sets is not None or (folder / KONIQ_SCORES).is_file()
    lists = {}
    if split == "json" or (not has_csv and all(path.is_file() for path in jsons.values())):
        lists = {part: read_split_json(path) for part, path in jsons.items()}
    table, source = read_koniq_labels(folder, sets, lists)

    parts = {}
    if split == "json":
        parts = {part: set(lists[part]["name"]) for part in lists}
        source += "; koniq_train.json and koniq_test.json"
        if sets is not None:
            parts["val"] = set(sets["image_name"][sets["set"] == "validation"])
            source += ", validation of koniq10k_distributions_sets.csv"
    elif split == "official":
        names = {"training": "train", "validation": "val", "test": "test"}
        parts = {names[k]: set(group) for k, group in sets.groupby("set")["image_name"]}
        source += "; set of koniq10k_distributions_sets.csv"
    votes = next((v for v in map(read_koniq_votes, label_files(folder)) if v is not None), None)
    if votes is not None:
        table = table.merge(votes, on="name", how="left")
    if parts:
        check_parts(parts, lists, table, folder)
        where = {name: part for part, members in parts.items() for name in members}
        table["split"] = table["name"].map(where)
        table = table.dropna(subset="split")  # the JSON lists leave out 17 images of the 10,073
    else:
        table["split"] = "train"

    return table.assign(image=table["name"]), source


def label_files(folder: Path) -> list[Path]:
    """The label files that are there, the database's own first."""
    paths = [folder / KONIQ_SCORES, folder / "koniq10k_distributions_sets.csv"]
    return [path for path in paths if path.is_file()]


def read_koniq_votes(path: Path) -> "pd.DataFrame | None":
    """Columns name, vote_mean, mos_sd and votes of a label file; None if it has no distributions.

    c1..c5 are the numbers, or the shares, of the votes for 1 to 5, and c_total is their number. The
    mean is that of the votes, which the MOS on 0..100 is not; both are brought to 0..100.
    """
    import pandas as pd

    grades = [f"c{grade}" for grade in range(1, 6)]
    if not has_columns(path, (*grades, "c_total")):
        return None
    texts = read_table(path, ("image_name", *grades, "c_total"))
    shares = np.stack([as_numbers(texts[grade], path) for grade in grades], 1)  # (N, 5)
    votes = as_numbers(texts["c_total"], path).to_numpy()
    value = np.arange(5) * 25.0
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = shares / shares.sum(1, keepdims=True)
        mean = shares @ value
        sd = np.sqrt((shares * (value - mean[:, None]) ** 2).sum(1) * votes / (votes - 1))
    return pd.DataFrame(
        {"name": texts["image_name"], "vote_mean": mean, "mos_sd": sd, "votes": votes}
    )


def koniq_split(folder: Path, split: str) -> str:
    """Resolve 'auto' to 'json' or 'official'; DataError if the files of the split are missing."""
    sets_csv = folder / "koniq10k_distributions_sets.csv"
    jsons = [folder / f"koniq_{part}.json" for part in ("train", "test")]
    missing = [str(path) for path in jsons if not path.is_file()]
    if split == "auto":
        split = "json" if len(missing) < 2 else "official" if sets_csv.is_file() else "none"
    if split == "none" or (split == "official" and not sets_csv.is_file()):
        raise DataError(
            f"{folder}: no split of KonIQ-10k found: add koniq_train.json and koniq_test.json "
            "(7,046 / 2,010, the lists of SMART-IQA: github.com/cny123222/Perceptual-IQA-CS3324), "
            "or koniq10k_distributions_sets.csv (the official 7,058 / 1,000 / 2,015, from the "
            "authors: github.com/subpic/koniq, folder metadata), or give --split random for 80/20 "
            f"by --split_seed{seen_nearby(jsons[0]) or seen_nearby(sets_csv)}"
        )
    if split == "json" and missing:
        raise DataError(f"{' and '.join(missing)}: no such file; --split json needs both lists")
    return split


def read_koniq_sets(path: Path) -> "pd.DataFrame | None":
    """Columns image_name, MOS (0..100) and set of the sets CSV; None if there is no such file."""
    if not path.is_file():
        return None
    sets = read_table(path, ("image_name", "MOS", "set"))
    sets["MOS"] = as_numbers(sets["MOS"], path)
    unknown = set(sets["set"]) - {"training", "validation", "test"}
    if unknown:
        raise DataError(f"{path}: unknown values in column set: {first_few(unknown)}")
    if sets["MOS"].max() <= 5:
        raise DataError(f"{path}: its MOS is on 1..5, but 0..100 is needed")
    return sets


def read_koniq_labels(
    folder: Path, sets: "pd.DataFrame | None", lists: dict[str, "pd.DataFrame"]
) -> tuple["pd.DataFrame", str]:
    """A table of name and mos from the best label file available, and a description of it.

    sets: the sets CSV; lists: the split JSONs, by split. Raises DataError if there are no labels,
    and if two label files contradict each other.
    """
    import pandas as pd

    scores_csv = folder / KONIQ_SCORES
    if scores_csv.is_file():
        table = read_table(scores_csv, ("image_name", "MOS_zscore"))
        table.columns = ["name", "mos"]
        table["mos"] = as_numbers(table["mos"], scores_csv)
        if table["mos"].max() <= 5:
            raise DataError(f"{scores_csv}: its MOS_zscore is on 1..5, but 0..100 is needed")
        if sets is not None:
            both = table.merge(sets, left_on="name", right_on="image_name")
            wrong = both["name"][(both["mos"] - both["MOS"]).abs() > 0.01]
            if len(wrong):
                raise DataError(
                    f"{folder}: {len(wrong)} labels differ between {scores_csv.name} and "
                    f"koniq10k_distributions_sets.csv: {first_few(wrong)}"
                )
        return table, "MOS_zscore of koniq10k_scores_and_distributions.csv"
    if sets is not None:
        table = sets[["image_name", "MOS"]].set_axis(["name", "mos"], axis=1)
        return table, "MOS of koniq10k_distributions_sets.csv"
    if lists:
        table = pd.concat(lists.values(), ignore_index=True).set_axis(["name", "mos"], axis=1)
        table["mos"] = as_numbers(table["mos"].astype(str), folder / "koniq_*.json")
        if table["mos"].max() <= 5:
            raise DataError(
                f"{folder}: the scores of koniq_*.json are on 1..5; a label CSV is needed"
            )
        return table, "scores of koniq_train.json and koniq_test.json"
    raise DataError(
        f"{folder}: no labels of KonIQ-10k found: add koniq10k_scores_and_distributions.csv "
        "(from database.mmsp-kn.de) or koniq10k_distributions_sets.csv"
        f"{seen_nearby(scores_csv)}"
    )


def check_parts(
    parts: dict[str, set[str]],
    lists: dict[str, "pd.DataFrame"],
    table: "pd.DataFrame",
    folder: Path,
) -> None:
    """Raise DataError if splits overlap, name images without a label, or contradict the labels.

    parts: image names by split; lists: the split JSONs, by split; table: name and mos.
    """
    for a, b in (("train", "test"), ("train", "val"), ("test", "val")):
        both = parts.get(a, set()) & parts.get(b, set())
        if both:
            raise DataError(f"{folder}: {len(both)} images in both {a} and {b}: {first_few(both)}")
    mos = dict(zip(table["name"], table["mos"]))
    for part, names in parts.items():
        unknown = [name for name in names if name not in mos]
        if unknown:
            raise DataError(
                f"{folder}: {len(unknown)} images of the {part} split have no label: "
                f"{first_few(unknown)}"
            )
    for part, entries in lists.items():
        path = folder / f"koniq_{part}.json"
        scored = entries[entries["score"].notna()]
        scores = as_numbers(scored["score"].astype(str), path)
        wrong = scored["name"][(scores - scored["name"].map(mos)).abs() > 0.01]
        comparable = scores.max() > 5  # of lists with scores on 1..5 only the split is used
        if comparable and len(wrong):
            raise DataError(
                f"{path}: {len(wrong)} scores differ from the labels in the CSV: {first_few(wrong)}"
            )

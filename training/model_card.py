"""What a checkpoint is: CHECKPOINT_model_card.md beside it, written from the run's record."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import resampling
from evaluation import agreement_by_split, described_crops
from experiment import CONFIGURATIONS, network_name
from files import write_atomically
from published import sha256
from training.flags import INIT
from training.records import describe

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("model", "start", "crops", "optimiser", "device", "versions")  # lines of `describe`


def card_of(checkpoint: Path) -> Path:
    """The model card of a checkpoint: NAME_model_card.md for NAME.pth."""
    return checkpoint.with_name(f"{checkpoint.stem}_model_card.md")


def write_card(
    checkpoint: Path,
    config: dict,
    epochs: list[dict],
    scores: np.ndarray,
    table: "pd.DataFrame",
    *,
    chosen: str,
    ended: bool,
) -> None:
    """Write the model card of a checkpoint, completely or not at all.

    epochs: those that it was trained for. scores (N,): those of the table's validation and test
    images after the last of them. chosen: how that epoch was chosen. ended: whether the run has
    ended; only then there are intervals and the file's SHA-256, which take seconds.
    """
    flags, images = config["flags"], config["images"]
    row = CONFIGURATIONS[config["model"]]
    lines = dict(line.split(maxsplit=1) for line in describe(config).splitlines())
    demo = " **It is the synthetic data set of the demo: not for any real use.**"
    weights = Path(flags["backbone_weights"]).name
    start = {"none": "", INIT: ", and of the checkpoint that it started from"}.get(
        weights, f", and of the ImageNet weights ({weights})"
    )
    counts = ", ".join(f"{count:,} {split}" for split, count in images.items())
    text = f"""# {checkpoint.name}

A network that rates the quality of a photograph without a reference image: a score from 0 to 100,
higher is better. Configuration: {row.title} (`{network_name(flags)}`).

- epoch {len(epochs)} of {flags["epochs"]}: {chosen}
- run `{flags["run_name"]}`, begun {config["started"]}{"" if ended else "; it has not ended yet"}
- SHA-256 of the file: {sha256(checkpoint) if ended else "written when the run ends"}

## Data

{flags["dataset"]}: {counts} images.{demo if config["demo"] else ""} Labels: {lines["labels"]}.
Split: {lines["split"]}. Fingerprint of names, pixels, scores and split: `{lines["fingerprint"]}`.

## Figures

{figures(scores, table, ended=ended)}

## Recipe

| | |
|---|---|
{chr(10).join(f"| {name} | {lines[name]} |" for name in SHOWN if name in lines)}

## Use

For research on image quality, and to sort photographs that are like those of the training:

```bash
python3 predict_resnet_improved.py --checkpoint {checkpoint.name} photos/
```

Crops of each image for the figures above: {described_crops(flags)}.
The checkpoint knows its preprocessing.

## Limits

- Scores are on the scale of {flags["dataset"]}'s observers, who saw its images. On other kinds of
  images they are less reliable: test the model on images of yours that people have rated.
- A difference between two images that is much smaller than the RMSE above says nothing.
- It is one training run with one seed ({flags["seed"]}). Another seed gives other weights.
- A score says how the image looks, not what it is worth, and nothing about the people in it.

## Licence

The software is under the MIT licence. Whoever publishes this file says under which terms. Those of
the images and their scores{start} apply as well.
"""
    write_atomically(card_of(checkpoint), text)


def figures(scores: np.ndarray, table: "pd.DataFrame", *, ended: bool) -> str:
    """A table of the agreement with the mean opinion scores, for each split."""
    values = agreement_by_split(table, scores)
    rows = ["| images | | SRCC | PLCC | KRCC | RMSE |", "|---|---|---|---|---|---|"]
    for split in ("val", "test"):
        part = (table["split"] == split).to_numpy()
        if not part.any():
            continue
        own, mos = scores[part], table["mos"].to_numpy()[part]
        cells = [f"{values[f'{split}_{name}']:.4f}" for name in ("srcc", "plcc", "krcc")]
        for i, statistic in enumerate((resampling.srcc_by_counts, resampling.plcc_by_counts)):
            around = resampling.interval(statistic(own, mos), len(mos)) if ended else None
            if around and math.isfinite(around.low):
                cells[i] += f" ({around.low:.4f} to {around.high:.4f})"
        name = {"val": "validation", "test": "test"}[split]
        rows.append(
            f"| {name} | {len(mos):,} | {' | '.join(cells)} | {values[f'{split}_rmse']:.2f} |"
        )
    how = "In brackets: 95% intervals over the images (BCa bootstrap); other seeds are not in them."
    note = how if ended else "Intervals are written when the run ends."
    return "\n".join([*rows, "", note + " SRCC, PLCC and KRCC: 1 is perfect; RMSE: in points."])

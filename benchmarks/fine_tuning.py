"""Does it help to start from a trained checkpoint (--init) when there are few images of your own?

    python3 benchmarks/fine_tuning.py BIQ2021 tf_efficientnet_lite0.pth --out DIR

BIQ2021's photographs have three origins. A network is trained on two of them (ss02, ss03), and then
on 100 and on 400 images of the third (ss01): from that checkpoint, and from ImageNet weights. The
learning rate of each start is the one with the highest validation SRCC on 100 images with the first
seed. Prints a row for each start and number of images, of all seeds, and keeps the records of all
runs in DIR/logs: what is there already is not trained again. About an hour on one CPU core.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent.parent))
from console import command
from train_resnet_improved import train
from training.records import best_epoch

SEEDS = (42, 43, 44)
RATES = (3e-5, 1e-4, 3e-4)
CROPS = {100: 6, 400: 2}  # of each training image and epoch, by the number of images
SETTINGS = {
    "dataset": "csv",
    "csv_columns": ["image=Image Name", "score=MOS", "split=split"],
    "score_range": (0, 1),
    "resize": (224, 224),
    "patch_size": 128,
    "test_patch_num": 2,
    "backbone": "tf_efficientnet_lite0",
    "use_multiscale": True,
    "batch_size": 16,
}


def write_tables(biq2021: Path, folder: Path) -> None:
    """Write the tables pretrain.csv, own_100.csv and own_400.csv into FOLDER, beside the images.

    The two tables of one's own have the same 100 validation and 200 test images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "Images").exists():
        (folder / "Images").symlink_to((biq2021 / "Images").resolve())
    parts = [pd.read_csv(biq2021 / f"{part} (Images and MOS).csv") for part in ("Train", "Test")]
    table = pd.concat(parts)[["Image Name", "MOS"]].sort_values("Image Name", ignore_index=True)
    is_own = table["Image Name"].str.lower().str.startswith("ss01")
    rng = np.random.default_rng(0)
    own, others = (table[part].iloc[rng.permutation(part.sum())] for part in (is_own, ~is_own))
    splits = {"pretrain": {"test": others[:100], "val": others[100:200], "train": others[200:]}}
    for count in CROPS:
        splits[f"own_{count}"] = {
            "test": own[:200], "val": own[200:300], "train": own[300 : 300 + count],
        }  # fmt: skip
    for name, rows in splits.items():
        rows = pd.concat([part.assign(split=split) for split, part in rows.items()])
        rows.to_csv(folder / f"{name}.csv", index=False)


def run(out: Path, name: str, table: str, **flags) -> dict:
    """The epoch with the highest validation SRCC in the record of a run, which may be there."""
    record = out / "logs" / f"{name}.jsonl"
    lines = record.read_text().splitlines() if record.is_file() else []
    if len(lines) <= flags["epochs"]:
        record.unlink(missing_ok=True)  # of a run that was interrupted
        train(
            **SETTINGS | flags,
            csv=f"{table}.csv", data_path=out / "data", store_dir=out / "store",
            log_dir=out / "logs", checkpoint_dir=out, run_name=name,
        )  # fmt: skip
        lines = record.read_text().splitlines()
    return best_epoch([json.loads(line) for line in lines[1:]], "val")


def tune(out: Path, count: int, start: str, seed: int, lr: float, flags: dict) -> dict:
    """The chosen epoch of a run on `count` images, which starts as the flags say."""
    name = f"{start}_{count}_lr{lr:g}_seed{seed}"
    options = {"epochs": 2, "train_patch_num": CROPS[count], "seed": seed, "lr": lr}
    return run(out, name, f"own_{count}", **flags, **options)


def compare(out: Path, count: int, start: str, lr: float, flags: dict) -> dict:
    """A row of the table: means and standard deviations over the seeds, and each test SRCC."""
    found = [tune(out, count, start, seed, lr, flags) for seed in SEEDS]
    row = {"images": count, "start": start, "lr": f"{lr:g}"}
    for name in ("val_srcc", "test_srcc", "test_plcc"):
        values = np.array([record[name] for record in found])
        row[name] = f"{values.mean():.4f} +- {values.std(ddof=1):.4f}"
    return row | {"each": " ".join(f"{record['test_srcc']:.4f}" for record in found)}


@command
def main() -> int:
    parser = argparse.ArgumentParser(description="Compare --init with ImageNet weights.")
    parser.add_argument("biq2021", type=Path, help="folder of BIQ2021")
    parser.add_argument("weights", help="timm's ImageNet weights of tf_efficientnet_lite0")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and runs")
    args = parser.parse_args()
    out = args.out
    write_tables(args.biq2021, out / "data")
    weights = {"backbone_weights": args.weights}
    run(
        out, "pretrain", "pretrain", **weights, epochs=3, train_patch_num=1, lr=1e-4,
        save_model=True,
    )  # fmt: skip
    trained = out / "tf_efficientnet_lite0_ms_noatt_last.pth"
    rows = []
    for start, flags in (("imagenet", weights), ("init", {"init": trained})):
        by_rate = {lr: tune(out, 100, start, SEEDS[0], lr, flags)["val_srcc"] for lr in RATES}
        lr = max(by_rate, key=by_rate.get)
        print(f"{start}: validation SRCC by learning rate {by_rate}; {lr:g} is taken")
        rows += [compare(out, count, start, lr, flags) for count in CROPS]
    print(pd.DataFrame(rows).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Whether bfloat16 and float32 agree: the same weights, the same crops, the test images' SRCC.

    python3 benchmarks/precision.py checkpoints/resnet_improved_ss_noatt_last.pth

The checkpoint's own data set, split and crops are used; --store_dir and the like may be given.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import data_loader as data
import train_resnet_improved as train
from metrics import agreement


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--store_dir", help="where decoded images are kept, if elsewhere now")
    own = parser.parse_args()

    checkpoint = train.load_checkpoint(own.checkpoint)
    args = argparse.Namespace(**checkpoint["config"]["flags"] | {"backbone_weights": "none"})
    args.resize = tuple(args.resize)
    device = train.choose_device("auto")
    model = train.build_model(args, 50.0).to(device, memory_format=torch.channels_last)
    model.load_state_dict(checkpoint["model"])
    table, _ = train.load_data(args)
    store, table = data.open_store(
        table,
        args.data_path,
        resize=args.resize,
        store_dir=own.store_dir or args.store_dir,
        name=args.dataset,
    )
    images = np.flatnonzero(table["split"] == "test")
    plan = data.test_plan(
        images,
        crop=args.test_crop,
        patches=args.test_patch_num,
        resize=args.resize,
        patch_size=args.patch_size,
    )
    batch_size = train.evaluation_batch(device, args.patch_size)
    batches = data.Batches(
        store, table["row"].to_numpy(), plan, patch_size=args.patch_size, batch_size=batch_size
    )
    scores = {}
    for precision in ("off", "bf16"):
        scores[precision], _ = train.evaluate(
            model,
            data.make_loader(batches, workers=0, pin=False),
            args.test_patch_num,
            device=device,
            precision=precision,
            watch=data.Progress(f"evaluation in {precision}", len(plan), "patches", batch_size),
        )
        figures = agreement(scores[precision], table["mos"].to_numpy()[images])
        name = "float32" if precision == "off" else "bfloat16"
        print(f"{name:<10}" + "  ".join(f"{k} {v:.5f}" for k, v in figures.items()), flush=True)
    difference = np.abs(scores["off"] - scores["bf16"])
    print(f"scores differ by {difference.mean():.3f} on average, {difference.max():.3f} at most")


if __name__ == "__main__":
    main()

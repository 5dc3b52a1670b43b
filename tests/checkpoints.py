"""A checkpoint as a training run writes one, but without training."""

import sys
from pathlib import Path

import torch

import predict_resnet_improved
from conftest import TINY, make_koniq10k
from datasets.labels import count_splits, label_fingerprint, load_labels
from datasets.pixel_store import content_hash
from evaluation import build_model, contents_to_tensor
from experiment import configuration_name
from training.flags import parse_args


def write_checkpoint(path: Path, *flags) -> Path:
    """Write a checkpoint of a network with random weights; flags: those of its training."""
    args = parse_args([*TINY, *map(str, flags)])
    table, source = load_labels(args)
    torch.manual_seed(args.seed)
    model = build_model(vars(args), initial_score=50.0)
    config = {
        "model": configuration_name(vars(args)),
        "flags": vars(args),
        "label_source": source,
        "label_fingerprint": label_fingerprint(table),
        "images": count_splits(table),
        "device": "cpu",
        "precision": "off",
    }
    contents = [
        content_hash(Path(args.data_path, image))
        for image in table["image"][table["split"] != "test"]
    ]
    content = {"model": model.state_dict(), "config": config, "epochs": []}
    torch.save(content | {"trained_on": contents_to_tensor(contents)}, path)
    return path


def koniq10k_and_checkpoint(base: Path) -> Path:
    """Write BASE/koniq-10k, and a checkpoint of the complete network with it as training data."""
    (base / "koniq-10k").mkdir()
    make_koniq10k(base / "koniq-10k")
    flags = ["--data_path", base / "koniq-10k", "--use_multiscale", "--use_attention"]
    return write_checkpoint(base / "resnet_improved_ms_att_last.pth", *flags)


def predicted(capsys, *arguments, status=0):
    """Run predict_resnet_improved.py in this process: its (stdout, stderr)."""
    sys.argv = ["predict", *map(str, arguments)]
    assert predict_resnet_improved.main() == status
    return capsys.readouterr()

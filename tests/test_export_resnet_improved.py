"""Exported models: the scores of prediction, without this software."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import export_resnet_improved as export
from checkpoints import write_checkpoint
from conftest import ROOT, make_koniq10k, photo
from datasets.images import load_image
from evaluation import load_model
from predict_resnet_improved import score_images

NEEDS = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": ()}
GRID = {"test_crop": "grid", "test_patch_num": 4}
# Of the slow test: what is compared, at a cost that two cores bear.
RESNET = ["--resize", "192", "128", "--patch_size", "96"]
NEIGHBOUR = ["--resize", "240", "256", "--patch_size", "224"]
MODELS = {
    "baseline": RESNET,
    "multiscale": [*RESNET, "--use_multiscale"],
    "multiscale_attention": [*RESNET, "--use_multiscale", "--use_attention"],
    "hyperiqa": [*NEIGHBOUR, "--model", "hyperiqa"],
    "smart_iqa_tiny": [*NEIGHBOUR, "--model", "smart_iqa_tiny"],
    "tf_efficientnet_lite0": [*RESNET, "--backbone", "tf_efficientnet_lite0", "--use_multiscale"],
}


def spread(checkpoint: Path, paths: list[Path], **crops) -> Path:
    """Give a checkpoint with random weights scores of these images with mean 50 and SD 15."""
    model = load_model(checkpoint, "cpu")
    scores = score_images(model, paths, **crops)["score"]
    slope = 15 / scores.std()
    model.hyper_net.map_scores(slope, 50 - slope * scores.mean())
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"model": model.state_dict()}, checkpoint)
    return checkpoint


def exported(checkpoint: Path, output: Path, *flags, status=0) -> Path:
    """Run export_resnet_improved.py in this process."""
    for package in NEEDS[output.suffix]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    sys.argv = ["export", "--checkpoint", str(checkpoint), "--output", str(output)]
    sys.argv += map(str, flags)
    assert export.main() == status
    return output


def compare(output: Path, checkpoint: Path, paths: list[Path], **crops) -> float:
    """The largest difference of scores, which are spread out; stage weights have to agree."""
    wanted = score_images(load_model(checkpoint, "cpu"), paths, amp="off", **crops)
    assert (wanted["error"] == "").all() and wanted["score"].std() > 5
    run = opened(output)
    found = [run(np.array(load_image(path))[None]) for path in paths]
    if "w1" in wanted:
        weights = np.concatenate([weights for _, weights in found])
        assert np.allclose(weights, wanted[["w1", "w2", "w3", "w4"]], atol=1e-4)
    return abs(np.concatenate([scores for scores, *_ in found]) - wanted["score"]).max()


def opened(output: Path) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A function that gives all outputs of an exported file for images (B, H, W, 3)."""
    if output.suffix == ".pt2":
        program = torch.export.load(output).module()
        return lambda images: [o.detach().numpy() for o in program(torch.tensor(images))]
    import onnxruntime

    session = onnxruntime.InferenceSession(output)
    return lambda images: session.run(None, {"images": images})


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    sizes = [(64, 48), (48, 64), (200, 130), (40, 48)]
    for level, size in enumerate(sizes):
        photo(folder / f"{level}.png", 60 * level + 30, size=size)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def small(tmp_path_factory, photos):
    """A checkpoint of a small network with attention."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "koniq-10k").mkdir()
    make_koniq10k(folder / "koniq-10k")
    flags = ["--data_path", folder / "koniq-10k", "--use_multiscale", "--use_attention"]
    checkpoint = write_checkpoint(folder / "a.pth", *flags, "--backbone", "test_resnet")
    return spread(checkpoint, photos, **GRID)


def test_exported_scores_are_those_of_prediction(small, photos, tmp_path, capsys):
    output = exported(small, tmp_path / "model.pt2", "--test_patch_num", 4, "--test_flip")
    assert compare(output, small, photos, **GRID, test_flip=True) < 1e-3
    said = capsys.readouterr().out
    assert "score, stage_weights: float32" in said and "8 crop(s) of 32 x 32" in said
    extra = {"about.json": ""}
    torch.export.load(output, extra_files=extra)
    assert '"model": "resnet_improved_ms_att"' in extra["about.json"]


def test_the_documented_lines_score_an_image_without_this_software(small, photos, tmp_path):
    """Those of docs/prediction.md, with complete images, of a batch too."""
    output = exported(small, tmp_path / "model.onnx", "--test_crop", "full")
    assert compare(output, small, photos, test_crop="full") < 1e-3
    two = np.stack([np.array(load_image(photos[0]))] * 2)
    assert len(opened(output)(two)[0]) == 2

    page = (ROOT / "docs" / "prediction.md").read_text()
    lines = re.search(r"```python\n(import sys\n.*?)```", page, re.DOTALL)[1]
    assert len(lines.splitlines()) <= 12
    lines += "assert not {'torch', 'torchvision', 'onnx'} & set(sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-c", lines, *photos], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    scores = [float(line.split()[-1]) for line in done.stdout.splitlines()]
    wanted = score_images(load_model(small, "cpu"), photos, amp="off", test_crop="full")["score"]
    assert scores == pytest.approx(list(wanted), abs=1e-2)


def test_a_model_whose_scores_differ_is_not_written(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "exported", lambda scorer: None)
    monkeypatch.setattr(export, "file_of", lambda *_: b"")
    monkeypatch.setattr(export, "runner", lambda *_: lambda images: np.full(len(images), 1.0))
    exported(small, tmp_path / "model.pt2", status=1)
    assert "scores of the exported model differ by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_said_in_one_sentence(small, tmp_path, capsys, monkeypatch):
    def broken(scorer):
        raise ValueError("an operation that is unknown\nand more")

    monkeypatch.setattr(export, "exported", broken)
    exported(small, tmp_path / "model.pt2", status=1)
    assert "can't export this model (an operation that is unknown)\n" in capsys.readouterr().err

    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    sys.argv = ["export", "--checkpoint", "a.pth", "--output", str(tmp_path / "model.onnx")]
    assert export.main() == 1
    said = capsys.readouterr().err
    assert "ONNX needs onnxscript, which this Python does not have: pip install onnxscript" in said

    sys.argv[-1] = str(tmp_path / "none" / "model.pt2")
    assert export.main() == 1 and "no folder" in capsys.readouterr().err
    sys.argv[-1] = str(tmp_path / "model.tflite")
    with pytest.raises(SystemExit):
        export.main()
    assert "ends in .onnx or .pt2" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_real_photographs_get_the_same_scores_everywhere(name, real_data, tmp_path):
    """Within 0.01 of 100: onnxruntime, the program of torch.export, and prediction."""
    paths = sorted(real_data.glob("koniq-10k/*/*.jpg"))
    paths += sorted((real_data / "biq2021" / "Images").iterdir())[::50][:50]
    (tmp_path / "koniq-10k").mkdir()
    make_koniq10k(tmp_path / "koniq-10k")
    flags = ["--data_path", tmp_path / "koniq-10k", *MODELS[name]]
    checkpoint = write_checkpoint(tmp_path / "a.pth", *flags)
    crops = {"test_crop": "center"} if "224" in MODELS[name] else GRID
    spread(checkpoint, paths[::5], **crops)
    flags = [f for key, value in crops.items() for f in (f"--{key}", value)]
    for suffix in (".pt2", ".onnx"):
        output = exported(checkpoint, tmp_path / f"model{suffix}", *flags)
        difference = compare(output, checkpoint, paths, **crops)
        print(f"{name} {suffix}: {difference:.2g} on {len(paths)} photographs")
        assert difference < 0.01

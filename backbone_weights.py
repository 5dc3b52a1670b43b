"""Where weights come from: torchvision's cache or a file, checked before they are used.

load_tensors reads every file of tensors here, checkpoints included, without running its code.
"""

from pathlib import Path

import torch
import torchvision
from torch import Tensor

from errors import WeightsError, first_line

NAMES = {"resnet50": "ResNet-50", "swin_t": "Swin-T", "swin_s": "Swin-S", "swin_b": "Swin-B"}
CLASSIFIERS = ("fc.", "head.")  # torchvision's, not used here
WRAPPERS = ("state_dict", "model_state_dict", "model")  # what training scripts save weights under
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


def load_backbone_weights(
    source: str | Path | None, architecture: str = "resnet50"
) -> dict[str, Tensor] | None:
    """A torchvision state dict of `architecture` without its classifier; None for random weights.

    'imagenet1k_v1' and 'imagenet1k_v2' come from torchvision's cache, or are downloaded into it.
    Raises WeightsError if the weights can't be downloaded or read, or don't fit.
    """
    if source is None or source == "none":
        return None
    if source in ("imagenet1k_v1", "imagenet1k_v2"):
        known = torchvision.models.get_model_weights(architecture)
        if str(source).upper() not in known.__members__:
            raise WeightsError(
                f"--backbone_weights {source}: torchvision has none of that name for "
                f"{architecture}; give imagenet1k_v1, none or a file"
            )
        weights = known[str(source).upper()]
        path = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        try:
            state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except Exception as error:  # of the network, the disk or the file: many kinds
            raise WeightsError(
                f"the ImageNet weights {source} could not be downloaded or read "
                f"({first_line(error)}): put {weights.url} at {path}, or give --backbone_weights "
                f"the path of a torchvision {NAMES[architecture]} state dict, or 'none' for random "
                "weights"
            ) from error
    else:
        path = Path(source)
        if not path.is_file():
            raise WeightsError(
                f"--backbone_weights {source}: no such file; it takes imagenet1k_v1, "
                f"imagenet1k_v2, none, or the path of a torchvision {NAMES[architecture]} state "
                "dict (.pth)"
            )
        state = load_tensors(path)
    return check_backbone_weights(state, path, architecture)


def load_tensors(path: Path) -> object:
    """What torch.save wrote to a file; no code in it is run. WeightsError for anything else."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of the disk, zip, pickle or struct: many kinds
        raise WeightsError(
            f"{path}: damaged, or not a file of tensors that PyTorch can load safely "
            f"({first_line(error)})"
        ) from error


def check_backbone_weights(
    state: object, path: Path, architecture: str = "resnet50"
) -> dict[str, Tensor]:
    """`state` without its classifier; WeightsError unless it is of `architecture`."""
    with torch.device("meta"):
        wanted = torchvision.models.get_model(architecture, weights=None).state_dict()
    wanted = {k: v for k, v in wanted.items() if not k.startswith(CLASSIFIERS)}
    state = unwrapped(state, path)
    wrong = misfits(state, wanted)
    extra = [k for k in state if k not in wanted and not str(k).startswith(CLASSIFIERS)]
    if wrong or extra:
        raise WeightsError(
            f"{path}: not a torchvision {NAMES[architecture]} state dict; {len(wrong)} tensors "
            f"missing or of another shape ({', '.join(wrong[:3])}...), {len(extra)} unknown "
            f"({', '.join(map(str, extra[:3]))}...)"
        )
    return {k: v for k, v in state.items() if not str(k).startswith(CLASSIFIERS)}


def unwrapped(state: object, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file holds, under the names of the network itself.

    It may be an entry of a checkpoint, and its names may have the prefixes of DataParallel and
    torch.compile. Raises WeightsError if there is none.
    """
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, not a state dict")
    for name in WRAPPERS:
        if isinstance(state.get(name), dict):
            return unwrapped(state[name], path)
    for prefix in PREFIXES:
        if state and all(str(key).startswith(prefix) for key in state):
            return unwrapped({str(k).removeprefix(prefix): v for k, v in state.items()}, path)
    return state


def misfits(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """The tensors of `wanted` that `state` lacks or has in another shape.

    But for num_batches_tracked, which files of old PyTorch versions lack.
    """
    return [
        key
        for key, tensor in wanted.items()
        if not (isinstance(state.get(key), Tensor) and state[key].shape == tensor.shape)
        and not key.endswith("num_batches_tracked")
    ]

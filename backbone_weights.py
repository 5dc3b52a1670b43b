"""Where weights come from: a cache of torchvision or timm, or a file, checked before they are used.

load_tensors reads every file of tensors here, checkpoints included, without running its code.
"""

from pathlib import Path

import torch
import torchvision
from torch import Tensor

from errors import WeightsError, first_line

CLASSIFIER = "fc."  # torchvision's, not used here
WRAPPERS = ("state_dict", "model_state_dict", "model")  # what training scripts save weights under
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


def load_backbone_weights(source: str | Path | None) -> dict[str, Tensor] | None:
    """torchvision's state dict of ResNet-50 without its classifier; None for random weights.

    'imagenet1k_v1', which is 'imagenet', and 'imagenet1k_v2' come from torchvision's cache, or are
    downloaded into it. Raises WeightsError if they can't be downloaded or read, or don't fit.
    """
    if source is None or source == "none":
        return None
    if source == "imagenet":
        source = "imagenet1k_v1"
    if source in ("imagenet1k_v1", "imagenet1k_v2"):
        weights = torchvision.models.ResNet50_Weights[str(source).upper()]
        path = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        try:
            state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except Exception as error:  # of the network, the disk or the file: many kinds
            raise WeightsError(
                f"the ImageNet weights {source} could not be downloaded or read "
                f"({first_line(error)}): put {weights.url} at {path}, or give --backbone_weights "
                "the path of a torchvision ResNet-50 state dict, or 'none' for random weights"
            ) from error
    else:
        path = Path(source)
        if not path.is_file():
            raise WeightsError(
                f"--backbone_weights {source}: no such file; it takes imagenet1k_v1, "
                "imagenet1k_v2, none, or the path of a torchvision ResNet-50 state dict (.pth)"
            )
        state = load_tensors(path)
    return check_backbone_weights(state, path)


def load_timm_weights(source: str | Path | None, name: str) -> dict:
    """What timm.create_model needs to build the model `name` with these weights.

    'imagenet' are timm's default ones, from its cache, or downloaded into it. A file has the keys
    of timm's complete model, or of torchvision's Swin; its classifier may be missing. Numbers of
    half precision are widened. Raises WeightsError if the weights can't be downloaded or read, or
    don't fit.
    """
    import timm

    if source is None or source == "none":
        return {"pretrained": False}
    config = timm.get_pretrained_cfg(name)
    if source == "imagenet":
        state = hub_weights(name, config)
    elif not Path(source).is_file():
        raise WeightsError(
            f"--backbone_weights {source}: no such file; for --backbone {name} it takes imagenet, "
            "none, or the path of timm's state dict of that model (.pth or .safetensors)"
        )
    else:
        state = swin_of_timm(unwrapped(load_tensors(Path(source)), Path(source)))
    if not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{source}: holds no state dict")
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    check_timm_weights(name, source, state)
    return {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}


def hub_weights(name: str, config) -> dict[str, Tensor]:
    """timm's default weights of a model, from the hub's cache or downloaded into it."""
    from timm.models import load_state_dict_from_hf

    if not (config and config.hf_hub_id):
        raise WeightsError(
            f"--backbone_weights imagenet: timm has no weights of {name}; give none, or a file"
        )
    try:
        return load_state_dict_from_hf(config.hf_hub_id, weights_only=True)
    except Exception as error:  # of the network, the disk or the file: many kinds
        raise WeightsError(
            f"the ImageNet weights of {name} could not be downloaded or read "
            f"({first_line(error)}): give --backbone_weights the path of model.safetensors of "
            f"{config.hf_hub_id}, or 'none' for random weights"
        ) from error


def check_timm_weights(name: str, source: str | Path, state: dict[str, Tensor]) -> None:
    """WeightsError unless the state dict is of timm's complete model, its classifier aside.

    timm itself does not check networks with features only.
    """
    import timm

    with torch.device("meta"):
        wanted = timm.create_model(name).state_dict()
    classifiers = timm.get_pretrained_cfg(name).classifier or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    spare = {
        key: torch.zeros(tensor.shape)
        for key, tensor in wanted.items()
        if key.startswith(tuple(f"{c}." for c in classifiers))
    }
    try:
        timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay={"state_dict": spare | state}
        )
    except (RuntimeError, KeyError) as error:
        wrong = misfits(state, {k: v for k, v in wanted.items() if k not in spare})
        extra = [key for key in state if key not in wanted]
        raise misfit(source, f"timm's state dict of {name}", wrong, extra) from error


def swin_of_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's state dict of a Swin Transformer under timm's names; others as they are.

    What torchvision keeps under features.0 to features.7 are, in turn, the patches of stage 1 or
    their merging, and the blocks of a stage. The index of relative positions is timm's own.
    """
    if "features.0.0.weight" not in state:
        return state
    names = {"mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2"}
    found = {}
    for key, tensor in state.items():
        part, _, rest = key.removeprefix("features.").partition(".")
        if key.endswith("relative_position_index"):
            continue
        if not key.startswith("features."):  # norm and head
            found[key.replace("head.", "head.fc.")] = tensor
        elif part == "0":
            index, _, rest = rest.partition(".")
            found[f"patch_embed.{'proj' if index == '0' else 'norm'}.{rest}"] = tensor
        elif int(part) % 2 == 0:
            found[f"layers.{int(part) // 2}.downsample.{rest}"] = tensor
        else:
            for old, new in names.items():
                rest = rest.replace(old, new)
            found[f"layers.{int(part) // 2}.blocks.{rest}"] = tensor
    return found


def load_tensors(path: Path) -> object:
    """What torch.save wrote to a file, or the tensors of a .safetensors file; runs no code in it.

    WeightsError for anything else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of the disk, zip, pickle or struct: many kinds
        raise WeightsError(
            f"{path}: damaged, or not a file of tensors that PyTorch can load safely "
            f"({first_line(error)})"
        ) from error


def check_backbone_weights(state: object, path: Path) -> dict[str, Tensor]:
    """`state` without its classifier; WeightsError unless it is torchvision's of ResNet-50."""
    with torch.device("meta"):
        wanted = torchvision.models.resnet50(weights=None).state_dict()
    wanted = {k: v for k, v in wanted.items() if not k.startswith(CLASSIFIER)}
    state = unwrapped(state, path)
    wrong = misfits(state, wanted)
    extra = [k for k in state if k not in wanted and not str(k).startswith(CLASSIFIER)]
    if wrong or extra:
        raise misfit(path, "a torchvision ResNet-50 state dict", wrong, extra)
    return {k: v for k, v in state.items() if not str(k).startswith(CLASSIFIER)}


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


def misfit(source: str | Path, what: str, wrong: list[str], extra: list[str]) -> WeightsError:
    """The error for a file that is not `what`, with the first tensors that are wrong or unknown."""
    return WeightsError(
        f"{source}: not {what}; {len(wrong)} tensors missing or of another shape "
        f"({', '.join(wrong[:3])}...), {len(extra)} unknown ({', '.join(map(str, extra[:3]))}...)"
    )


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

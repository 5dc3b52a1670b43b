"""Checkpoints that somebody has published: their names, their files, and where to put the files.

    from evaluation import load_model
    model = load_model("NAME")     # of a checkpoint in PUBLISHED; nothing is downloaded

docs/prediction.md shows the same table, and says how to add to it.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from errors import RunError


class Published(NamedTuple):
    file: str  # its name in home()
    sha256: str  # of the file, 64 hexadecimal digits


# By the name that load_model, --checkpoint and --init take. None has been published yet.
PUBLISHED: dict[str, Published] = {}


def home() -> Path:
    """The folder of published checkpoints: RESNET_IQA_HOME, or resnet_iqa in the user's cache."""
    folder = os.environ.get("RESNET_IQA_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder or Path(cache, "resnet_iqa")).expanduser()


def find_checkpoint(name: str | Path) -> Path:
    """The file that `name` names: a path, or a checkpoint of PUBLISHED in home().

    A file that is there is taken as a path. Raises RunError if there is no such file, and if a
    published one has another SHA-256 than the table says.
    """
    path, known = Path(name), PUBLISHED.get(str(name))
    if path.is_file():
        return path
    if known is None:
        if path.is_dir():
            raise RunError(f"{name}: is a folder; give a checkpoint, a .pth file")
        names = f"one of {', '.join(PUBLISHED)}" if PUBLISHED else "none is published yet"
        raise RunError(f"{name}: no such file, and no name of a published checkpoint ({names})")
    path = home() / known.file
    if not path.is_file():
        raise RunError(
            f"{name}: put its file {known.file} into {home()} (RESNET_IQA_HOME names another "
            "folder); nothing is downloaded, docs/prediction.md says where it comes from"
        )
    found = sha256(path)
    if found != known.sha256:
        raise RunError(
            f"{path}: is not the published {name}: its SHA-256 is {found}, and it should be "
            f"{known.sha256}; get the file again"
        )
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()

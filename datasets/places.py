"""Where the images of a label table lie, and which files of a folder are images."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from datasets.label_files import alike, composed, first_few
from errors import DataError

if TYPE_CHECKING:
    import pandas as pd

# Folders of file servers, archives and systems; so is everything whose name begins with a dot.
HIDDEN = {
    "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "lost+found",
    "system volume information",
}  # fmt: skip
# What Pillow knows by name, but can't decode by itself, or what are not pictures of pixels.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}


# Files of a folder ------------------------------------------------------------------------------


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that systems make, such as ._a.jpg or @eaDir."""
    return name.startswith(".") or name.lower() in HIDDEN


@functools.cache
def image_suffixes() -> frozenset[str]:
    """The endings of image files that Pillow can decode here, such as '.jpg', in lower case."""
    from PIL import Image

    known = Image.registered_extensions()
    readable = set(Image.OPEN) - NOT_DECODED
    return frozenset(suffix for suffix, kind in known.items() if kind in readable)


def is_image(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return os.path.splitext(name)[1].lower() in image_suffixes()


def files_in(folder: Path) -> list[str]:
    """The names of what is in a folder but for its subfolders; [] if it can't be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir())
    except OSError:
        return []


def images_in(folder: Path) -> tuple[list[Path], str]:
    """The image files under a folder, sorted; and what is left out and why, '' if it is nothing."""
    images, left_out = [], {}

    def skip(name: str, reason: str) -> None:
        left_out.setdefault(reason, []).append(name)

    for place, names in walk(folder, lambda path, reason: skip(path.name, reason)):
        for name in names:
            if is_hidden(name):
                skip(name, "hidden")
            elif is_image(name):
                images.append(folder / place / name)
            else:
                skip(
                    os.path.splitext(name)[1].lower() or name, "of kinds that Pillow does not read"
                )
    reasons = [
        f"{len(names):,} {reason} ({first_few(set(names))})" for reason, names in left_out.items()
    ]
    return sorted(images), "; ".join(reasons)


def walk(
    folder: Path, skipped: Callable[[Path, str], None] = lambda path, reason: None
) -> Iterator[tuple[str, list[str]]]:
    """Each folder under `folder`, '' first, with its files: both sorted, hidden folders left out.

    Links to folders are followed, and each real folder comes once. skipped: called with each path
    that is left out and the reason.
    """
    seen = {folder.resolve()}

    def fail(error: OSError) -> None:
        skipped(Path(error.filename), "that can't be opened")

    for place, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        chosen = []
        for name in sorted(folders):
            path = Path(place, name)
            real = path.resolve()
            if is_hidden(name):
                skipped(path, "hidden")
            elif real in seen:
                skipped(path, "linked here twice")
            else:
                seen.add(real)
                chosen.append(name)
        folders[:] = chosen
        relative = os.path.relpath(place, folder)
        yield "" if relative == "." else relative, sorted(files)


# Names ------------------------------------------------------------------------------------------


def as_path(name: object, folder: Path) -> str:
    """An image's name in a table as a path inside the folder, with '/'.

    '\\\\' becomes '/', and './' and blanks around it go. Absolute paths inside the folder become
    relative. What leads elsewhere is left as it is, and refused by check_labels.
    """
    path = PurePosixPath(str(name).strip().replace("\\", "/"))
    for root in (folder.absolute(), folder.resolve()) if path.is_absolute() else ():
        if path.is_relative_to(root):
            path = path.relative_to(root)
    return str(path)


class Files:
    """The files of one folder, to be found by the names that tables give them."""

    def __init__(self, names: Iterable[str]):
        self.names = set(names)
        self.by_name: dict[str, list[str]] = {}
        self.by_stem: dict[str, list[str]] = {}
        for name in sorted(self.names):
            self.by_name.setdefault(alike(name), []).append(name)
            if is_image(name):
                stem = os.path.splitext(name)[0]
                self.by_stem.setdefault(alike(stem), []).append(name)

    def fitting(self, name: str) -> list[str]:
        """The files that a name may mean: its own, or in another case, or with an extension."""
        if name in self.names:
            return [name]
        return self.by_name.get(alike(name)) or self.by_stem.get(alike(name)) or []


# Places -----------------------------------------------------------------------------------------


def find_place(
    names: Sequence[str], folder: Path, places: Sequence[str] | None, image_dir: str | None
) -> str:
    """The folder in which the names are paths, relative to the data folder; '' for itself.

    places: the folders that a data set's layout has, the usual one first; None for any folder that
    isn't hidden. All names are counted in each. image_dir: the one that --image_dir gives, which
    must exist. Raises DataError if the names are found in two folders alike.
    """
    if image_dir is not None:
        place = as_path(image_dir, folder)
        if ".." in place.split("/") or place.startswith("/") or not (folder / place).is_dir():
            raise DataError(f"--image_dir {image_dir}: no such folder in {folder}")
        return "" if place == "." else place
    if places and len(places) == 1:
        return places[0]
    wanted = set(names)
    if places:
        counts = count_by_folder(wanted, listed(wanted, folder, places))
        counts = {place: counts[place] for place in places if (folder / place).is_dir()}
    else:
        counts = {"": 0}
        if any("/" in name for name in wanted):  # paths inside the data folder need no search
            counts = count_by_folder(wanted, listed(wanted, folder, [""]))
        if counts[""] < len(wanted):
            counts = count_by_folder(wanted, dict(walk(folder)))
    if not counts:
        return places[0] if places else ""
    best = max(sorted(counts), key=lambda place: counts[place])
    if 2 * counts[best] <= len(wanted) and places:
        return next(iter(counts))  # most images are missing, which is said later
    alike_places = sorted(place for place in counts if counts[place] == counts[best])
    if len(alike_places) > 1 and 2 * counts[best] > len(wanted):
        shown = first_few((f"{place or '.'}/" for place in alike_places), sort=False)
        raise DataError(
            f"{folder}: {counts[best]:,} of {len(wanted):,} images are in each of {shown}: name "
            "the right one with --image_dir"
        )
    return best


def listed(names: Iterable[str], folder: Path, places: Iterable[str]) -> dict[str, list[str]]:
    """The files of the folders that the names need, in each of the places."""
    inner = {os.path.dirname(name) for name in names}
    paths = {os.path.join(place, part).rstrip("/") for place in places for part in inner}
    return {path: files_in(folder / path) for path in paths}


def count_by_folder(names: Iterable[str], tree: dict[str, list[str]]) -> Counter[str]:
    """How many different names each folder holds, of itself or in the subfolders that they name.

    tree: the files of each folder.
    """
    holders: dict[str, set[str]] = {}  # the folders of each spelling of a file's name
    for directory, files in tree.items():
        for file in files:
            spellings = [file, os.path.splitext(file)[0]] if is_image(file) else [file]
            for name in spellings:
                holders.setdefault(alike(name), set()).add(directory)
    counts: Counter[str] = Counter()
    for name in set(names):
        inner, _, base = name.rpartition("/")
        for directory in holders.get(alike(base), ()):
            parts = directory.split("/") if directory else []
            depth = inner.count("/") + 1 if inner else 0
            end = parts[len(parts) - depth :] if depth <= len(parts) else [".."]
            if composed("/".join(end)) == composed(inner):
                counts["/".join(parts[: len(parts) - depth])] += 1
    return counts


def find_images(table: "pd.DataFrame", data_path: str | Path) -> "pd.DataFrame":
    """The label table with each image's name as it is on disk.

    Upper and lower case and Unicode forms may differ, and names may lack their extension. Raises
    DataError for missing images (their number, the first names, where they should lie, and where
    such files lie), for names that fit two files, and for files that are links to places outside
    the folder. Its subfolders may be links.
    """
    folder = Path(data_path)
    found, missing, away, several = {}, [], [], []
    directories = table["image"].str.rpartition("/")[0]
    for directory, images in table.groupby(directories)["image"]:
        directory = real_directory(folder, directory)
        inside = allowed_targets(folder, directory)
        files = Files(files_in(folder / directory))
        for row, image in images.items():
            fitting = files.fitting(image.rpartition("/")[2])
            if not fitting:
                missing.append(image)
            elif len(fitting) > 1:
                several.append(f"{image} ({' or '.join(fitting)})")
            else:
                path = folder / directory / fitting[0]
                real = Path(os.path.realpath(path))
                if path.is_symlink() and not any(map(real.is_relative_to, inside)):
                    away.append(image)
                found[row] = f"{directory}/{fitting[0]}" if directory else fitting[0]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(table):,} images are missing: {first_few(missing)}; they "
            f"should lie under {folder.resolve()} (README.md, 'Data', says where they come from)"
            f"{seen_elsewhere(missing, folder)}"
        )
    if several:
        raise DataError(
            f"{folder}: {len(several):,} names fit two files: {first_few(several)}; give the "
            "complete names"
        )
    if away:
        raise DataError(
            f"{folder}: {len(away):,} images are links to places outside it: {first_few(away)}; "
            "put the files themselves there"
        )
    table = table.assign(image=[found[row] for row in table.index])
    twice = table["image"][table["image"].duplicated()]
    if len(twice):
        raise DataError(f"{folder}: two labels fit one file each: {first_few(twice)}")
    return table


def real_directory(folder: Path, directory: str) -> str:
    """A folder's path as it is on disk, where its Unicode form may be another."""
    path = folder
    for part in directory.split("/"):
        if path.is_dir() and not (path / part).is_dir():
            same = [name for name in os.listdir(path) if composed(name) == composed(part)]
            part = same[0] if len(same) == 1 else part
        path /= part
    return "" if path == folder else str(path.relative_to(folder))


def allowed_targets(folder: Path, directory: str) -> list[Path]:
    """The folders to which an image in folder/directory may be a link.

    The data folder, its subfolder, and the blobs of a Hugging Face snapshot that they lie in.
    """
    inside = [folder.resolve(), (folder / directory).resolve()]
    return [
        *inside,
        *(
            parent.with_name("blobs").resolve()
            for path in inside
            for parent in path.parents
            if parent.name == "snapshots" and "--" in parent.parent.name  # datasets--OWNER--NAME
        ),
    ]


def seen_elsewhere(missing: list[str], folder: Path) -> str:
    """Where files of the missing names lie: in the data folder, or one level up; '' if nowhere."""
    names = {image.rpartition("/")[2] for image in missing}
    up = folder.resolve().parent
    for root, tree in ((folder, walk(folder)), (up, one_level(up))):
        counts = count_by_folder(names, dict(tree))
        if counts:
            place, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
            flag = f"--image_dir {place or '.'}" if root is folder else "another --data_path"
            return (
                f"; files of {count:,} of these names lie in {root.resolve() / place}: give "
                f"{flag}, correct the paths, or move them"
            )
    return ""


def one_level(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The files of a folder and of the folders in it, as walk gives them."""
    yield "", files_in(folder)
    for name in sorted(os.listdir(folder)) if os.access(folder, os.R_OK) else []:
        if not is_hidden(name):
            yield name, files_in(folder / name)

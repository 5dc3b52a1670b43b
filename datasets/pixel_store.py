"""Decoded images: each is decoded and resized once, into one memory-mapped file per data folder."""

import hashlib
import json
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.images import decode
from devices import cores
from errors import DataError, first_line
from files import locked, replacing, write_atomically
from progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor

STORE_VERSION = 3  # of the header's format and of what decode() makes of an image


class PixelStore:
    """Decoded images in one memory-mapped file: `pixels` is uint8 (N, height, width, 3).

    crc32: checksums of the rows (N,). If given, each row is checked before its first crop is cut,
    so that no run trains on a damaged file; DataError says to delete it.
    If the file is rebuilt, this object keeps the old one; workers that cannot map it raise
    DataError.
    """

    device = "cpu"

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int, int],
        crc32: np.ndarray | None = None,
        inode: int | None = None,
    ):
        self.path, self.shape, self.crc32 = path, shape, crc32
        self.checked = np.full(shape[0], crc32 is None)
        with open(path, "rb") as file:
            self.inode = os.fstat(file.fileno()).st_ino
            if inode not in (None, self.inode):
                raise DataError(f"{path}: another run has rebuilt the pixel store; start again")
            # An np.ndarray view: slices of an np.memmap are memmaps too, which costs 10 us each.
            self.pixels = np.memmap(file, np.uint8, mode="r", shape=shape).view(np.ndarray)

    def __reduce__(self):  # a worker process maps the file instead of receiving the pixels
        return PixelStore, (self.path, self.shape, self.crc32, self.inode)

    def check(self, rows: np.ndarray) -> None:
        """Raise DataError if the pixels of a row are not those that were stored."""
        for row in rows[~self.checked[rows]]:
            if zlib.crc32(self.pixels[row].data) != self.crc32[row]:
                raise DataError(
                    f"{self.path}: row {row} is damaged (its checksum differs): delete the file, "
                    "and the next run rebuilds it"
                )
            self.checked[row] = True

    def crops(
        self, rows: "Tensor", tops: "Tensor", lefts: "Tensor", size: int | tuple[int, int]
    ) -> "Tensor":
        """The crops at (rows, tops, lefts): uint8 (B, 3, height, width) in channels_last memory.

        size: their side, or height and width.
        """
        import torch

        self.check(rows.numpy())
        height, width = sides(size)
        crops = torch.empty((len(rows), height, width, 3), dtype=torch.uint8)
        corners = zip(rows.tolist(), tops.tolist(), lefts.tolist())
        for crop, (row, top, left) in zip(crops.numpy(), corners):
            crop[:] = self.pixels[row, top : top + height, left : left + width]
        return crops.permute(0, 3, 1, 2)


class DeviceStore:
    """A pixel store's images in a device's memory: `pixels` is uint8 (N, height, width, 3) there.

    Crops are gathered on the device, so that no pixels are copied to it during training.
    """

    def __init__(self, store: PixelStore, device: "torch.device"):
        import torch

        self.device = torch.device(device)
        store.check(np.arange(store.shape[0]))
        self.pixels = torch.empty(store.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(self.pixels), 256):  # in parts, to spare host memory
            part = torch.from_numpy(np.array(store.pixels[start : start + 256]))
            self.pixels[start : start + 256] = part.to(device)

    def crops(
        self, rows: "Tensor", tops: "Tensor", lefts: "Tensor", size: int | tuple[int, int]
    ) -> "Tensor":
        """The same as PixelStore.crops, from index tensors on the device; does not synchronise."""
        import torch

        height, width = (torch.arange(side, device=self.device) for side in sides(size))
        down, across = tops[:, None] + height, lefts[:, None] + width  # (B, height), (B, width)
        crops = self.pixels[rows[:, None, None], down[:, :, None], across[:, None, :]]
        return crops.permute(0, 3, 1, 2)  # (B, 3, height, width)


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of crops: `size` is both, or these two."""
    return (size, size) if isinstance(size, int) else tuple(size)


def open_store(
    table: "pd.DataFrame",
    data_path: str | Path,
    *,
    resize: tuple[int, int],
    store_dir: str | Path,
    name: str,
) -> tuple[PixelStore, "pd.DataFrame"]:
    """The pixel store of the table's images; it is built first if none fits.

    Returns the store and the table with three more columns: `row` (in the store), `crc32` (of the
    row's pixels) and `content` (content_hash of the file). The store is
    STORE_DIR/NAME-HEIGHTxWIDTH-XXXXXXXX.u8 with a .json header, where XXXXXXXX stands for the data
    folder's path. It fits if the header lists every image with its present file size and
    modification time. Otherwise a new one is built, and the rows of unchanged images are copied.
    One process builds while others wait.
    Raises DataError that lists all files that are not images, and for a disk that is too small.
    """
    folder, store_dir = Path(data_path).resolve(), Path(store_dir)
    path = store_path(folder, name=name, resize=resize, store_dir=store_dir)
    try:
        store_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--store_dir {store_dir}: can't be made ({error.strerror})") from error

    files = {image: file_state(folder / image) for image in table["image"]}
    with locked(path.with_suffix(".lock")):
        known = read_header(path, resize)
        if not all(i in known and known[i]["file"] == file for i, file in files.items()):
            known = build_store(path, folder, files, resize, known)
        crc32 = np.zeros(len(known), np.uint32)
        for entry in known.values():
            crc32[entry["row"]] = entry["crc32"]
        store = PixelStore(path, (len(known), *resize, 3), crc32)
    table = table.assign(
        row=[known[image]["row"] for image in table["image"]],
        crc32=[known[image]["crc32"] for image in table["image"]],
        content=[known[image]["content"] for image in table["image"]],
    )
    return store, table


def store_path(folder: Path, *, name: str, resize: tuple[int, int], store_dir: Path) -> Path:
    """STORE_DIR/NAME-HEIGHTxWIDTH-XXXXXXXX.u8, where the last part is a hash of the data folder.

    The header has the same name with .json in place of .u8.
    """
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return store_dir / f"{name}-{resize[0]}x{resize[1]}-{place}.u8"


def file_state(path: Path) -> list[int]:
    """Size and modification time, which show whether a file has changed; [] if it is missing."""
    try:
        state = path.stat()
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns]


def content_hash(path: Path) -> str:
    """16 hex digits that identify the bytes of a file, whatever its name is."""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def read_header(path: Path, resize: tuple[int, int]) -> dict[str, dict]:
    """What the store holds: row, crc32, content hash and file state by image.

    Empty if it is not complete.
    """
    try:
        header = json.loads(path.with_suffix(".json").read_text())
        images = header["images"]
        complete = (
            header["version"] == STORE_VERSION
            and header["resize"] == list(resize)
            and path.stat().st_size == len(images) * resize[0] * resize[1] * 3
            and sorted(entry["row"] for entry in images.values()) == [*range(len(images))]
            and all(0 <= entry["crc32"] < 2**32 for entry in images.values())
            and all({"file", "content"} <= set(entry) for entry in images.values())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return images if complete else {}


def build_store(
    path: Path,
    folder: Path,
    files: dict[str, list[int]],
    resize: tuple[int, int],
    known: dict[str, dict],
) -> dict[str, dict]:
    """Decode `files` on all cores into a temporary file, rename it, write the header.

    files: file state by image; known: the header of the present store, from which unchanged images
    are copied. Returns the new header: row, crc32, content hash and file state by image.
    """
    size = resize[0] * resize[1] * 3
    old = PixelStore(path, (len(known), *resize, 3)).pixels if known else None
    path.with_name(f"{path.name}.tmp").unlink(missing_ok=True)  # left by a killed build
    free = shutil.disk_usage(path.parent).free
    if free < size * len(files):
        raise DataError(
            f"--store_dir {path.parent}: the pixel store needs {size * len(files) / 1e9:.1f} GB "
            f"and {free / 1e9:.1f} GB are free; give it a folder with more space"
        )

    def stored(image: str) -> np.ndarray | None:
        """The present store's pixels of an unchanged image, if their checksum is right."""
        entry = known.get(image)
        if entry is None or entry["file"] != files[image]:
            return None
        pixels = old[entry["row"]]
        return pixels if zlib.crc32(pixels.data.cast("B")) == entry["crc32"] else None

    def store(row_and_image: tuple[int, str]) -> tuple[str, int, str, str]:
        row, image = row_and_image
        try:
            pixels = stored(image)
            if pixels is None:
                pixels = decode(folder / image, *resize)
            content = content_hash(folder / image)
        except Exception as error:  # Pillow raises many kinds; all bad files are listed below
            return image, 0, "", first_line(error)
        data = np.ascontiguousarray(pixels).data.cast("B")
        written = os.pwrite(file.fileno(), data, row * size)
        if written != size:  # the disk is full: writing the rest raises
            os.pwrite(file.fileno(), data[written:], row * size + written)
        return image, zlib.crc32(data), content, ""

    done = []
    try:
        with replacing(path) as file:
            with (
                ThreadPoolExecutor(cores()) as pool,  # Pillow releases the GIL
                closing(pool.map(store, enumerate(files))) as jobs,  # Ctrl-C cancels waiting jobs
            ):
                for job in Progress("decoding images", len(files), "images")(jobs):
                    done.append(job)
                    if len(done) % 64 == 0:  # write to disk while other threads decode
                        getattr(os, "fdatasync", os.fsync)(file.fileno())  # not on macOS
            bad = [f"{image}: {error}" for image, *_, error in done if error]
            if bad:
                raise DataError(
                    f"{len(bad)} of {len(files):,} files under {folder} can't be read as images; "
                    "replace them:\n  " + "\n  ".join(bad)
                )
            path.with_suffix(".json").unlink(missing_ok=True)  # no old header beside new pixels
    except OSError as error:
        raise DataError(f"--store_dir: {path}: {error.strerror}") from error

    images = {
        image: {"row": row, "crc32": crc32, "content": content, "file": files[image]}
        for row, (image, crc32, content, _) in enumerate(done)
    }
    header = {"version": STORE_VERSION, "resize": list(resize), "images": images}
    write_atomically(path.with_suffix(".json"), json.dumps(header))
    return images

"""How an image file becomes pixels: for the network, and for every picture that is shown."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# How Pillow undoes each EXIF orientation.
EXIF_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
DARKEST = 4096  # values of a 16-bit image are 8-bit to 12-bit values if they are all below this


def decode(image: "str | Path | Image.Image | np.ndarray", height: int, width: int) -> np.ndarray:
    """An image as uint8 RGB (height, width, 3): load_image or from_memory, resized bilinearly.

    image: a file, Pillow's, or an array. Smaller images are enlarged. Raises what these two raise.
    """
    is_file = isinstance(image, (str, Path))
    return resized(load_image(Path(image)) if is_file else from_memory(image), height, width)


def resized(image: "Image.Image", height: int, width: int) -> np.ndarray:
    """A picture of load_image as uint8 (height, width, 3), resized bilinearly.

    Columns are resized first, then rows, as in all versions of Pillow before 13. By itself, Pillow
    13 begins with the rows of tall images, which rounds in another way: scores of a trained network
    moved by up to 0.6 of 100.
    """
    from PIL import Image

    for size in ((width, image.height), (width, height)):
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image)


def load_image(path: Path) -> "Image.Image":
    """An image file in RGB and full size, as it is meant to be seen.

    It is rotated as EXIF says; 16-bit values are scaled to 8 bits; transparent images are put on
    white; CMYK, grey and palette images become RGB; of several frames the first is taken. Metadata
    that can't be read is ignored. Raises ValueError for pixels of unknown range and truncated
    JPEGs, and whatever Pillow raises for files that are not complete images.
    """
    try:
        return as_seen(path)
    except Exception:  # Pillow raises many kinds; it refuses some files for their metadata alone
        pixels_only = without_metadata(path)
        if pixels_only is not None:
            try:
                return as_seen(BytesIO(pixels_only))
            except Exception:  # the first error names the file
                pass
        raise


def from_memory(image: "Image.Image | np.ndarray") -> "Image.Image":
    """An image of Pillow, or an array, in RGB and full size; load_image, without a file.

    An array is uint8 (H, W, 3), RGB, or (H, W), grey. Raises ValueError for others, TypeError for
    anything else.
    """
    from PIL import Image

    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or (image.ndim != 2 and image.shape[2:] != (3,)):
            raise ValueError(
                f"an array of {image.dtype} {image.shape}: give uint8 (H, W, 3), RGB, or (H, W)"
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"a {type(image).__name__}: give a path, an image of Pillow, or an array")
    return opened_as_seen(image)


def as_seen(file: Path | BytesIO) -> "Image.Image":
    """load_image, where Pillow can read all metadata."""
    from PIL import Image

    with Image.open(file) as image:
        if image.format in ("JPEG", "MPO"):
            check_jpeg_end(file.getvalue() if isinstance(file, BytesIO) else file.read_bytes())
        return opened_as_seen(image)


def opened_as_seen(image: "Image.Image") -> "Image.Image":
    """load_image, of an image that Pillow has opened."""
    from PIL import Image

    deep = is_16_bit(image)
    image.load()  # rotates a TIFF and removes its orientation tag
    turn = exif_turn(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        low, high = values.min(), values.max()
        if values.dtype.kind not in "iu" or low < 0 or high > 65535:
            raise ValueError(f"pixels of mode {image.mode} that are not 16-bit grey")
        image = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
        deep = True
    if deep and brightest(image) < DARKEST >> 8:
        raise ValueError(
            f"pixels that are not 16-bit grey or colour, as all are below {DARKEST}: they "
            "would be black; save the image with 8 bits"
        )
    if turn is not None:
        image = image.transpose(Image.Transpose[turn])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def is_16_bit(image: "Image.Image") -> bool:
    """Whether the file of an opened image, which isn't loaded yet, has more than 8 bits a value.

    Of colours, Pillow keeps the upper 8 bits only.
    """
    for codec, _, _, args in getattr(image, "tile", []):
        args = args if isinstance(args, tuple) else (args,)
        if codec.startswith("ppm"):  # (mode, highest value)
            return args[-1] > 255
        if any("16" in word for word in (codec, *args) if isinstance(word, str)):
            return True
    return False


def brightest(image: "Image.Image") -> int:
    """The highest value of an 8-bit image in any band but alpha."""
    extrema, bands = image.getextrema(), image.getbands()
    extrema = [extrema] if len(bands) == 1 else extrema
    return max(high for band, (_, high) in zip(bands, extrema) if band != "A")


def exif_turn(image: "Image.Image") -> str | None:
    """Pillow's name of the turn that an image's EXIF orientation asks for; None if there is none.

    EXIF that can't be read is none.
    """
    from PIL import ExifTags

    try:
        return EXIF_TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # of damaged EXIF: many kinds
        return None


def without_metadata(path: Path) -> bytes | None:
    """A JPEG or PNG file with no more than pixels, and orientation; None for other files."""
    try:
        file = path.read_bytes()
    except OSError:
        return None
    if file.startswith(b"\xff\xd8"):
        return jpeg_without_metadata(file)
    if file.startswith(b"\x89PNG\r\n\x1a\n"):
        return png_without_metadata(file)
    return None


def jpeg_without_metadata(file: bytes) -> bytes:
    """A JPEG without comments and application segments, except for EXIF and a valid 'Adobe'.

    Adobe's segment says how colours are coded.
    """
    kept, at = [file[:2]], 2
    while file[at : at + 1] == b"\xff" and file[at + 1 : at + 2] not in (b"\xda", b""):
        end = jpeg_segment_end(file, at)
        marker, content = file[at + 1], file[at + 4 : end]
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        is_adobe = marker == 0xEE and content.startswith(b"Adobe") and len(content) >= 12
        if not is_metadata or content.startswith(b"Exif\0\0") or is_adobe:
            kept.append(file[at:end])
        at = end
    return b"".join([*kept, file[at:]])


def png_without_metadata(file: bytes) -> bytes:
    """A PNG without its ancillary chunks, except for transparency and a valid EXIF chunk."""
    import zlib

    kept, at = [file[:8]], 8
    while at + 8 <= len(file):
        end = at + 12 + int.from_bytes(file[at : at + 4], "big")
        kind, checksum = file[at + 4 : at + 8], int.from_bytes(file[end - 4 : end], "big")
        is_critical = not kind[0] & 0x20  # an upper-case first letter
        is_valid = zlib.crc32(file[at + 4 : end - 4]) == checksum
        if is_critical or kind == b"tRNS" or (kind == b"eXIf" and is_valid):
            kept.append(file[at:end])
        at = end
    return b"".join(kept)


def check_jpeg_end(file: bytes) -> None:
    """ValueError if a JPEG has no end marker after its pixels.

    Pillow silently decodes a truncated, zero-padded JPEG to grey.
    """
    at = 2
    while file[at : at + 1] == b"\xff" and file[at + 1 : at + 2] != b"\xda":  # up to the pixels
        at = jpeg_segment_end(file, at)
    if file.find(b"\xff\xd9", at) < 0:
        raise ValueError("a JPEG without an end marker: truncated, or padded with zeros")


def jpeg_segment_end(file: bytes, at: int) -> int:
    """Where the segment at `at` ends; a segment may hold a thumbnail with its own end marker."""
    if file[at + 1 : at + 2] == b"\xff":  # a fill byte between segments
        return at + 1
    return at + 2 + max(2, int.from_bytes(file[at + 2 : at + 4], "big"))

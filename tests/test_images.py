"""How each kind of image file becomes pixels, and what of it is shown."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision.transforms import functional as transforms

from conftest import photo
from datasets.images import decode, load_image, resized


def saved(path, image, **options):
    image.save(path, **options)
    return decode(path, image.height, image.width)


def ramp(mode: str, height: int = 48, width: int = 40) -> np.ndarray:
    return np.linspace(0, 255, height * width).reshape(height, width).astype(np.uint8)


def test_grey_palette_and_cmyk_become_rgb(tmp_path):
    grey = Image.fromarray(ramp("L"))
    expected = np.repeat(ramp("L")[..., None], 3, 2)
    assert (saved(tmp_path / "grey.png", grey) == expected).all()
    assert (saved(tmp_path / "palette.png", grey.convert("P")) == expected).all()
    bilevel = saved(tmp_path / "bilevel.png", grey.convert("1"))
    assert set(np.unique(bilevel)) == {0, 255}
    red = Image.new("CMYK", (40, 48), (0, 255, 255, 0))
    pixels = saved(tmp_path / "cmyk.jpg", red, quality=100)
    assert pixels.shape == (48, 40, 3)
    assert (np.abs(pixels.astype(int) - (255, 0, 0)) < 6).all()


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    wide = ramp("L").astype(np.uint16) * 257
    for name in ("deep.png", "deep.tif"):
        pixels = saved(tmp_path / name, Image.fromarray(wide))
        assert (pixels == np.repeat(ramp("L")[..., None], 3, 2)).all()


def test_transparency_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (40, 48), (200, 0, 0, 255))
    image.paste((0, 0, 200, 0), (0, 0, 20, 48))
    pixels = saved(tmp_path / "a.png", image)
    assert (pixels[:, :20] == 255).all() and (pixels[:, 20:] == (200, 0, 0)).all()
    grey = Image.new("LA", (40, 48), (90, 255))
    assert (saved(tmp_path / "b.png", grey) == 90).all()
    palette = Image.new("P", (40, 48), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (saved(tmp_path / "c.png", palette, transparency=0) == (10, 20, 30)).all()


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (48, 40))
    image.paste((255, 255, 255), (0, 0, 24, 40))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: the left side comes to the top
    image.save(tmp_path / "turned.png", exif=exif)
    pixels = decode(tmp_path / "turned.png", 48, 40)
    assert (pixels[:24] == 255).all() and (pixels[24:] == 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_pillows(tmp_path, orientation):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    image.save(tmp_path / "a.tif", exif=exif)  # which Pillow turns by itself
    for name in ("a.png", "a.tif"):
        assert (decode(tmp_path / name, *expected.shape[:2]) == expected).all()


def test_32_bit_grey_of_unknown_range_is_refused(tmp_path):
    Image.fromarray(np.arange(256, dtype=np.int32).reshape(16, 16)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="not 16-bit grey"):
        decode(tmp_path / "a.tif", 16, 16)


def test_of_several_frames_the_first_counts(tmp_path):
    frames = [Image.new("RGB", (40, 48), c) for c in ((250, 0, 0), (0, 250, 0))]
    frames[0].save(tmp_path / "a.mpo", save_all=True, append_images=frames[1:], quality=100)
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    pixels = decode(tmp_path / "a.jpg", 48, 40)
    assert pixels[..., 0].min() > 240 and pixels[..., 1].max() < 10


def test_resize_is_pillows_bilinear_to_height_and_width(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    image.save(tmp_path / "a.png")
    pixels = decode(tmp_path / "a.png", 48, 40)
    assert (pixels == np.asarray(transforms.resize(image, [48, 40]))).all()


def test_columns_are_resized_first_whatever_pillow_does_by_itself():
    """Pillow 13 begins with the rows of a tall image, and rounds in another way."""
    pixels = np.random.default_rng(0).integers(0, 256, (768, 432, 3), np.uint8)
    columns = resized(Image.fromarray(pixels), 768, 384)
    wanted = resized(Image.fromarray(columns), 384, 384)
    assert (resized(Image.fromarray(pixels), 384, 384) == wanted).all()


def test_whole_jpegs_with_more_around_their_pixels_are_read(tmp_path):
    path = tmp_path / "photo.jpg"
    photo(path, 90)
    whole = path.read_bytes()
    pixels = decode(path, 48, 40)
    thumbnail = b"\xff\xe1" + (len(whole) + 2).to_bytes(2, "big") + whole
    for file in (
        whole + bytes(5000),  # cameras append films and padding
        whole + b"\xff\xda more",
        whole[:2] + thumbnail + whole[2:],
        whole[:2] + b"\xff\xff" + whole[2:],  # a fill byte
    ):
        path.write_bytes(file)
        assert (decode(path, 48, 40) == pixels).all()


def png(values: np.ndarray, *extra: bytes) -> bytes:
    """A 16-bit PNG of uint16 values (H, W, bands), with more chunks before its pixels."""
    high, wide, bands = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", wide, high, 16, colour, 0, 0, 0)),
            *extra,
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("most", [255, 4095])
def test_16_bit_files_of_lower_values_are_refused_not_black(tmp_path, bands, most):
    values = np.full((16, 16, bands), 65535)  # with alpha it stays opaque
    values[..., : bands - (bands in (2, 4))] = np.linspace(0, most, 256).reshape(16, 16, 1)
    (tmp_path / "a.png").write_bytes(png(values))
    with pytest.raises(ValueError, match=r"all are below 4096: they would be black"):
        decode(tmp_path / "a.png", 16, 16)
    (tmp_path / "a.png").write_bytes(png(np.minimum(values.astype(int) * (65535 // most), 65535)))
    assert decode(tmp_path / "a.png", 16, 16).max() == 255


@pytest.mark.parametrize("name", ["a.tif", "a.pgm", "b.ppm", "a.jp2"])
def test_other_16_bit_formats_are_refused_as_well(tmp_path, name):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    if name == "b.ppm":
        deep = np.repeat(values[..., None], 3, 2).astype(">u2").tobytes()
        (tmp_path / name).write_bytes(b"P6 16 16 65535\n" + deep)
    else:
        Image.fromarray(values).save(tmp_path / name)
    with pytest.raises(ValueError, match="would be black"):
        decode(tmp_path / name, 16, 16)


def jpeg(segment: bytes = b"") -> bytes:
    file = BytesIO()
    Image.fromarray(np.arange(48 * 40, dtype=np.uint8).reshape(48, 40)).save(file, "JPEG")
    return file.getvalue()[:2] + segment + file.getvalue()[2:]


def segment(marker: int, content: bytes) -> bytes:
    return bytes([255, marker]) + struct.pack(">H", len(content) + 2) + content


@pytest.mark.parametrize(
    "broken",
    [
        segment(0xE1, b"Exif\0\0garbage"),
        segment(0xE1, b"Exif\0\0"),
        segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 20),
        segment(0xE0, b"JFIF"),
        segment(0xE0, b"JFIF\0"),
        segment(0xEE, b"Adobe"),
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0" + b"\xff" * 30),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0"),
        segment(0xFE, b"\xff" * 300),
    ],
)
def test_broken_metadata_of_a_jpeg_changes_nothing(tmp_path, broken):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    pixels = decode(path, 48, 40)
    path.write_bytes(jpeg(broken))
    assert (decode(path, 48, 40) == pixels).all()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


LARGE = zlib.compress(bytes(3_000_000))


@pytest.mark.parametrize(
    "broken",
    [
        chunk(b"iCCP", b"profile\0\0" + LARGE),
        chunk(b"zTXt", b"comment\0\0" + LARGE),
        chunk(b"iTXt", b"comment\0\1\0\0\0" + LARGE),
        chunk(b"tEXt", b"comment\0" + bytes(3_000_000)),
        chunk(b"zTXt", b"comment\0\0" + LARGE) * 30,
        chunk(b"eXIf", b"garbage"),
        chunk(b"tEXt", b"a\0b")[:-4] + b"1234",  # its checksum is wrong
        chunk(b"pHYs", b""),
        chunk(b"iCCP", b"p\0\1"),
    ],
)
def test_metadata_of_a_png_is_no_bomb(tmp_path, broken):
    path = tmp_path / "a.png"
    values = np.linspace(0, 65535, 48 * 40 * 3).reshape(48, 40, 3)
    path.write_bytes(png(values))
    pixels = decode(path, 48, 40)
    path.write_bytes(png(values, broken))
    assert (decode(path, 48, 40) == pixels).all()
    path.write_bytes(png(values, broken, chunk(b"eXIf", turned(6).removeprefix(b"Exif\0\0"))))
    if broken[4:8] != b"eXIf":  # the first one counts
        assert (decode(path, 40, 48) == np.rot90(pixels, -1)).all()


def test_broken_exif_of_a_webp_is_none(tmp_path):
    path = tmp_path / "a.webp"
    Image.new("RGB", (40, 48), "red").save(path, exif=b"Exif\0\0garbage", lossless=True)
    assert (decode(path, 48, 40) == (255, 0, 0)).all()


def test_a_picture_that_is_shown_is_what_is_decoded(tmp_path):
    values = np.linspace(0, 65535, 60 * 40).reshape(60, 40, 1)
    exif = chunk(b"eXIf", turned(6).removeprefix(b"Exif\0\0"))
    (tmp_path / "portrait.png").write_bytes(png(values, exif))
    picture = load_image(tmp_path / "portrait.png")
    assert (picture.mode, picture.size) == ("RGB", (60, 40))
    assert (np.asarray(picture) == decode(tmp_path / "portrait.png", 40, 60)).all()
    assert np.asarray(picture).min() == 0 and np.asarray(picture).max() == 255

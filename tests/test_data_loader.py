import json
import multiprocessing
import os
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import functional as transforms

import data_loader as data
from conftest import photo, write_koniq_csvs
from data_loader import DataError, count_splits, find_images, read_labels


def splits(table) -> dict:
    return {s: set(table["image"][table["split"] == s]) for s in data.SPLITS}


# KonIQ-10k's labels and splits


@pytest.mark.parametrize(
    "split, counts", [("auto", (7046, 1000, 2010)), ("official", (7058, 1000, 2015))]
)
def test_real_koniq_counts_without_overlap(real_data, split, counts):
    table, _ = read_labels("koniq-10k", real_data / "koniq-10k", split=split)
    assert tuple(count_splits(table).values()) == counts
    assert not table["image"].duplicated().any()
    assert table["mos"].between(3, 89).all() and 55 < table["mos"].mean() < 62


def test_the_official_split_contains_the_json_split(real_data):
    theirs = splits(read_labels("koniq-10k", real_data / "koniq-10k", split="official")[0])
    ours = splits(read_labels("koniq-10k", real_data / "koniq-10k", split="json")[0])
    assert ours["train"] < theirs["train"] and ours["test"] < theirs["test"]
    assert ours["val"] == theirs["val"]


def test_koniq_labels_are_the_zscores_whichever_file_holds_them(koniq10k):
    both, _ = read_labels("koniq-10k", koniq10k)
    (koniq10k / "koniq10k_scores_and_distributions.csv").unlink()
    sets_only, _ = read_labels("koniq-10k", koniq10k)
    assert both.equals(sets_only) and both["mos"].max() == pytest.approx(80)


def test_koniq_labels_from_the_split_lists_alone(koniq10k):
    with_csv, _ = read_labels("koniq-10k", koniq10k)
    for file in koniq10k.glob("*.csv"):
        file.unlink()
    table, source = read_labels("koniq-10k", koniq10k)
    assert count_splits(table) == {"train": 6, "val": 0, "test": 3}
    assert table["mos"].tolist() == with_csv["mos"][with_csv["split"] != "val"].tolist()
    assert "koniq_train.json" in source
    drawn, _ = read_labels("koniq-10k", koniq10k, split="random")  # the lists are labels alone
    assert dict(zip(drawn["image"], drawn["mos"])) == dict(zip(table["image"], table["mos"]))
    assert count_splits(drawn) == {"train": 7, "val": 0, "test": 2}


def test_scores_of_1_to_5_are_refused(koniq10k):
    (koniq10k / "koniq10k_scores_and_distributions.csv").unlink()
    path = koniq10k / "koniq10k_distributions_sets.csv"
    write_koniq_csvs(koniq10k, ["1000.jpg", "1001.jpg"], [3.1, 4.2], ["training", "test"])
    (koniq10k / "koniq10k_scores_and_distributions.csv").unlink()
    with pytest.raises(DataError, match=f"{path.name}: its MOS is on 1..5"):
        read_labels("koniq-10k", koniq10k)


def test_zscores_of_1_to_5_are_refused(koniq10k):
    write_koniq_csvs(koniq10k, ["1000.jpg", "1001.jpg"], [3.1, 4.2], ["training", "test"])
    (koniq10k / "koniq10k_distributions_sets.csv").unlink()
    with pytest.raises(DataError, match="its MOS_zscore is on 1"):
        read_labels("koniq-10k", koniq10k, split="random")


def test_split_lists_on_1_to_5_are_no_labels(koniq10k):
    for file in koniq10k.glob("*.csv"):
        file.unlink()
    for name in ("koniq_train.json", "koniq_test.json"):
        edit_json(koniq10k / name, lambda e: [{**x, "score": 3.0} for x in e])
    with pytest.raises(DataError, match=r"on 1\.\.5; a label CSV is needed"):
        read_labels("koniq-10k", koniq10k)


def test_label_files_that_contradict_are_refused(koniq10k):
    path = koniq10k / "koniq10k_distributions_sets.csv"
    path.write_text(path.read_text().replace("1003.jpg,1,38.0,", "1003.jpg,1,39.0,"))
    with pytest.raises(DataError, match=r"1 labels differ between .*: 1003\.jpg"):
        read_labels("koniq-10k", koniq10k)


def test_without_a_split_the_error_says_where_both_come_from(koniq10k):
    for name in ("koniq_train.json", "koniq_test.json", "koniq10k_distributions_sets.csv"):
        (koniq10k / name).unlink()
    with pytest.raises(DataError) as error:
        read_labels("koniq-10k", koniq10k)
    for text in (
        "koniq_train.json",
        "koniq10k_distributions_sets.csv",
        "subpic/koniq",
        "Perceptual-IQA-CS3324",
    ):
        assert text in str(error.value)
    assert "--split random" in str(error.value)


def test_one_split_list_without_the_other_is_refused(koniq10k):
    (koniq10k / "koniq_test.json").unlink()
    with pytest.raises(DataError, match=r"koniq_test\.json: no such file"):
        read_labels("koniq-10k", koniq10k)


def edit_json(path, change):
    entries = json.loads(path.read_text())
    path.write_text(json.dumps(change(entries)))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda e: [*e, {"image": "koniq_test/1000.jpg", "score": 20.0}],
            "1 images in both train and test",
        ),
        (lambda e: [*e, {"image": "koniq_test/1006.jpg"}], "1 images in both test and val"),
        (
            lambda e: [*e, {"image": "koniq_test/nobody.jpg"}],
            "1 images of the test split have no label: nobody.jpg",
        ),
        (lambda e: [{**e[0], "score": 99.0}, *e[1:]], "scores differ from the labels"),
        (lambda e: [*e, e[0]], "twice"),
        (lambda e: {"images": e}, "is not a list of objects"),
        (lambda e: [], "is not a list of objects"),
    ],
)
def test_split_lists_that_contradict_are_refused(koniq10k, change, message):
    edit_json(koniq10k / "koniq_test.json", change)
    with pytest.raises(DataError, match=message):
        read_labels("koniq-10k", koniq10k)


@pytest.mark.parametrize("keys", [{"id": 7}, {"score": 3.2}])
def test_other_folders_and_keys_in_the_split_lists(koniq10k, keys):
    def rewrite(entries):
        return [{"image": "koniq/" + e["image"].split("/")[1], **keys} for e in entries]

    before, _ = read_labels("koniq-10k", koniq10k)
    for name in ("koniq_train.json", "koniq_test.json"):
        edit_json(koniq10k / name, rewrite)
    assert read_labels("koniq-10k", koniq10k)[0].equals(before)


def test_a_split_image_without_a_label_is_never_dropped(koniq10k):
    path = koniq10k / "koniq10k_scores_and_distributions.csv"
    path.write_text("".join(x for x in path.open() if not x.startswith(("1000.", "1007."))))
    (koniq10k / "koniq_train.json").unlink()
    (koniq10k / "koniq_test.json").unlink()
    with pytest.raises(DataError, match=r"1 images of the \w+ split have no label: 100"):
        read_labels("koniq-10k", koniq10k)


def test_random_split_is_80_20_by_its_seed(koniq10k):
    first, _ = read_labels("koniq-10k", koniq10k, split="random", split_seed=1)
    again, _ = read_labels("koniq-10k", koniq10k, split="random", split_seed=1)
    other, _ = read_labels("koniq-10k", koniq10k, split="random", split_seed=2)
    assert first.equals(again) and not first.equals(other)
    assert count_splits(first) == {"train": 9, "val": 0, "test": 2}


def test_the_row_order_of_the_files_changes_nothing(koniq10k):
    before, _ = read_labels("koniq-10k", koniq10k, split="random")
    for path in koniq10k.glob("*.csv"):
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, *rows[::-1]]) + "\n")
    assert read_labels("koniq-10k", koniq10k, split="random")[0].equals(before)


def test_the_fuller_image_release_is_taken(koniq10k):
    assert read_labels("koniq-10k", koniq10k)[0]["image"].str.startswith("1024x768/").all()
    (koniq10k / "1024x768").rename(koniq10k / "512x384")
    for name in (
        "1000.jpg",
        *(f"Thumbs{i}.db" for i in range(20)),
    ):  # others than images don't count
        (koniq10k / "1024x768").mkdir(exist_ok=True)
        (koniq10k / "1024x768" / name).touch()
    table, source = read_labels("koniq-10k", koniq10k)
    assert table["image"].str.startswith("512x384/").all() and "images in 512x384/" in source


# BIQ2021


def test_biq2021_reads_with_all_its_traps(biq2021):
    table, _ = read_labels("biq2021", biq2021, val_fraction=0)
    table = find_images(table, biq2021)
    assert count_splits(table) == {"train": 12, "val": 0, "test": 5}
    assert "Images/ss01 (2).JPG" in set(table["image"])
    mos = dict(zip(table["image"], table["mos"]))
    assert mos["Images/ss01 (6).jpg"] == pytest.approx(50)


def test_real_biq2021(real_data):
    table, _ = read_labels("biq2021", real_data / "biq2021")
    table = find_images(table, real_data / "biq2021")
    assert count_splits(table) == {"train": 1800, "val": 200, "test": 500}


def test_validation_images_come_out_of_training_by_the_split_seed(biq2021):
    default, _ = read_labels("biq2021", biq2021)
    assert count_splits(default) == {"train": 11, "val": 1, "test": 5}
    third, _ = read_labels("biq2021", biq2021, val_fraction=1 / 3)
    other, _ = read_labels("biq2021", biq2021, val_fraction=1 / 3, split_seed=1)
    assert count_splits(third) == {"train": 8, "val": 4, "test": 5}
    assert splits(third)["test"] == splits(other)["test"] == splits(default)["test"]
    assert splits(third)["val"] != splits(other)["val"]


def test_val_fraction_where_there_are_validation_images_is_refused(koniq10k):
    with pytest.raises(DataError, match=r"--val_fraction 0.1: .* has validation images of its own"):
        read_labels("koniq-10k", koniq10k, val_fraction=0.1)


# Labels that are wrong


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("1.0", "1.5", "reach from"),
        ("Image Name,MOS", "Image Name,Score", "has no column MOS"),
        ("0.4", "", "not numbers"),
        ("0.4", "nan", "not numbers"),
        ("0.4", "inf", "not numbers"),
        ("ss03 (1)", "../ss03 (1)", "no file names"),
        ("ss03 (1)", "ss03 (2)", "two labels"),
    ],
)
def test_label_rows_that_are_wrong_are_refused(biq2021, old, new, message):
    path = biq2021 / "Test (Images and MOS).csv"
    path.write_text(path.read_text().replace("0.8", "1.0").replace(old, new))
    with pytest.raises(DataError, match=message):
        read_labels("biq2021", biq2021)


def test_byte_order_mark_and_crlf_are_read(biq2021):
    before, _ = read_labels("biq2021", biq2021)
    path = biq2021 / "Test (Images and MOS).csv"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(path.read_bytes().splitlines()) + b"\r\n")
    assert read_labels("biq2021", biq2021)[0].equals(before)


def test_rows_that_end_in_a_comma_are_read(biq2021):
    before, _ = read_labels("biq2021", biq2021)
    path = biq2021 / "Test (Images and MOS).csv"
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *(row + "," for row in rows)]) + "\n")
    assert read_labels("biq2021", biq2021)[0].equals(before)
    path.write_text("\n".join([head, *(row + ",1" for row in rows)]) + "\n")
    with pytest.raises(DataError, match="entry 1 has 3 fields, and there are 2 titles"):
        read_labels("biq2021", biq2021)


def test_missing_images_are_counted_named_and_placed(biq2021):
    for i in (1, 3, 4, 0):
        (biq2021 / "Images" / f"ss03 ({i}).jpg").unlink()
    table, _ = read_labels("biq2021", biq2021)
    with pytest.raises(DataError) as error:
        find_images(table, biq2021)
    message = str(error.value)
    assert message.startswith("4 of 17 images are missing: Images/ss03 (0).jpg, ")
    assert "and 1 more" in message and str(biq2021.resolve()) in message


def test_a_missing_data_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"--data_path .*nowhere: no such folder"):
        read_labels("koniq-10k", tmp_path / "nowhere")


# Image files


def test_a_data_folder_that_is_not_utf_8_is_named(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")
    os.mkdir(folder)
    with pytest.raises(DataError, match="not UTF-8"):
        read_labels("biq2021", folder)


def saved(path, image, **options):
    image.save(path, **options)
    return data.decode(path, image.height, image.width)


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
    pixels = data.decode(tmp_path / "turned.png", 48, 40)
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
        assert (data.decode(tmp_path / name, *expected.shape[:2]) == expected).all()


def test_32_bit_grey_of_unknown_range_is_refused(tmp_path):
    Image.fromarray(np.arange(256, dtype=np.int32).reshape(16, 16)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="not 16-bit grey"):
        data.decode(tmp_path / "a.tif", 16, 16)


def test_of_several_frames_the_first_counts(tmp_path):
    frames = [Image.new("RGB", (40, 48), c) for c in ((250, 0, 0), (0, 250, 0))]
    frames[0].save(tmp_path / "a.mpo", save_all=True, append_images=frames[1:], quality=100)
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    pixels = data.decode(tmp_path / "a.jpg", 48, 40)
    assert pixels[..., 0].min() > 240 and pixels[..., 1].max() < 10


def test_resize_is_pillows_bilinear_to_height_and_width(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    image.save(tmp_path / "a.png")
    pixels = data.decode(tmp_path / "a.png", 48, 40)
    assert (pixels == np.asarray(transforms.resize(image, [48, 40]))).all()


def test_an_image_smaller_than_the_crop_is_enlarged(biq2021, tmp_path):
    photo(biq2021 / "Images" / "ss03 (1).jpg", 90, size=(20, 10))
    store, _ = open_store(biq2021, tmp_path)
    assert store.pixels.shape == (17, 48, 40, 3)


def open_store(folder, tmp_path, resize=(48, 40), dataset="biq2021"):
    table = find_images(read_labels(dataset, folder)[0], folder)
    return data.open_store(table, folder, resize=resize, store_dir=tmp_path / "store", name=dataset)


def test_all_bad_files_are_named_at_once(biq2021, tmp_path):
    images = biq2021 / "Images"
    whole = (images / "ss01 (0).jpg").read_bytes()
    (images / "ss01 (0).jpg").write_bytes(whole[: len(whole) // 2])
    (images / "ss01 (3).jpg").write_bytes(b"")
    (images / "ss01 (4).jpg").unlink()
    (images / "ss01 (4).jpg").symlink_to("nowhere")
    (images / "ss03 (4).jpg").write_text("this is no image")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(images / "float.tif")
    (images / "float.tif").rename(images / "ss01 (5).jpg")
    png = BytesIO()
    Image.new("RGB", (64, 48)).save(png, "PNG")
    (images / "ss01 (7).jpg").write_bytes(png.getvalue()[:-30])
    with pytest.raises(DataError) as error:
        open_store(biq2021, tmp_path)
    message = str(error.value)
    assert message.startswith("6 of 17 files under")
    for name in (
        "ss01 (0).jpg",
        "ss01 (3).jpg",
        "ss01 (4).jpg",
        "ss03 (4).jpg",
        "ss01 (5).jpg",
        "ss01 (7).jpg",
    ):
        assert f"Images/{name}: " in message
    assert sorted(p.suffix for p in (tmp_path / "store").iterdir()) == [".lock"]


def progressive(path) -> bytes:
    saved = BytesIO()
    Image.open(path).resize((256, 256)).save(saved, "JPEG", progressive=True)
    return saved.getvalue()


def test_a_jpeg_padded_with_zeros_is_named(biq2021, tmp_path):
    images = biq2021 / "Images"
    whole = (images / "ss01 (0).jpg").read_bytes()
    thumbnail = b"\xff\xe1" + (len(whole) + 2).to_bytes(2, "big") + whole  # has an end of its own
    for name, file in (
        ("ss01 (0).jpg", whole),
        ("ss01 (3).jpg", whole[:2] + thumbnail + whole[2:]),
        ("ss01 (4).jpg", progressive(images / "ss01 (4).jpg")),
    ):
        (images / name).write_bytes(file[:-100] + bytes(100))
    with pytest.raises(DataError) as error:
        open_store(biq2021, tmp_path)
    message = str(error.value)
    assert message.startswith("3 of 17 files under")
    assert message.count("jpg: a JPEG without its end: cut short, or padded") == 3


def test_whole_jpegs_with_more_around_their_pixels_are_read(tmp_path):
    path = tmp_path / "photo.jpg"
    photo(path, 90)
    whole = path.read_bytes()
    pixels = data.decode(path, 48, 40)
    thumbnail = b"\xff\xe1" + (len(whole) + 2).to_bytes(2, "big") + whole
    for file in (
        whole + bytes(5000),  # as cameras append films and padding
        whole + b"\xff\xda more",
        whole[:2] + thumbnail + whole[2:],
        whole[:2] + b"\xff\xff" + whole[2:],  # bytes that fill
    ):
        path.write_bytes(file)
        assert (data.decode(path, 48, 40) == pixels).all()


def test_an_image_bomb_is_refused(biq2021, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"17 of 17 files (.|\n)*decompression bomb"):
        open_store(biq2021, tmp_path)


# The pixel store


def forbid_decoding(monkeypatch):
    def decode(*_):
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(data, "decode", decode)


def test_the_store_holds_every_image_decoded(biq2021, tmp_path):
    store, table = open_store(biq2021, tmp_path)
    for row in table.itertuples():
        assert (store.pixels[row.row] == data.decode(biq2021 / row.image, 48, 40)).all()


def test_no_image_is_decoded_again_in_the_next_run(biq2021, tmp_path, monkeypatch):
    store, table = open_store(biq2021, tmp_path)
    forbid_decoding(monkeypatch)
    again, same = open_store(biq2021, tmp_path)
    assert (again.pixels == store.pixels).all() and same.equals(table)


def test_another_split_of_the_same_images_uses_the_same_store(koniq10k, tmp_path, monkeypatch):
    _, table = open_store(koniq10k, tmp_path, dataset="koniq-10k")
    forbid_decoding(monkeypatch)
    other = find_images(read_labels("koniq-10k", koniq10k, split="random")[0], koniq10k)
    _, other = data.open_store(
        other, koniq10k, resize=(48, 40), store_dir=tmp_path / "store", name="koniq-10k"
    )
    assert data.fingerprint(other) != data.fingerprint(table)


def test_only_a_changed_image_is_decoded_again(biq2021, tmp_path, monkeypatch):
    before, table = open_store(biq2021, tmp_path)
    decode, decoded = data.decode, []
    monkeypatch.setattr(data, "decode", lambda p, *size: decoded.append(p.name) or decode(p, *size))
    photo(biq2021 / "Images" / "ss03 (1).jpg", 10)
    after, changed = open_store(biq2021, tmp_path)
    assert decoded == ["ss03 (1).jpg"]
    different = [(a != b).any() for a, b in zip(before.pixels, after.pixels)]
    assert sum(different) == 1  # and the old store is still what it was
    assert data.fingerprint(changed) != data.fingerprint(table)


def test_a_row_with_flipped_bytes_is_not_copied(biq2021, tmp_path):
    store, table = open_store(biq2021, tmp_path)
    whole = store.path.read_bytes()
    with open(store.path, "r+b") as file:
        file.seek(3000)
        file.write(b"broken")
    photo(biq2021 / "Images" / "ss03 (1).jpg", 10)
    again, _ = open_store(biq2021, tmp_path)
    row = table.set_index("image")["row"]["Images/ss03 (1).jpg"]
    expected = np.frombuffer(whole, np.uint8).reshape(store.shape)
    assert [i for i in range(17) if (again.pixels[i] != expected[i]).any()] == [row]


def test_a_run_keeps_its_pixels_when_another_rebuilds_the_store(koniq10k, tmp_path):
    import pickle

    store, _ = open_store(koniq10k, tmp_path, dataset="koniq-10k")
    before, sent = store.pixels.copy(), pickle.dumps(store)
    photo(koniq10k / "1024x768" / "1000.jpg", 3)
    open_store(koniq10k, tmp_path, dataset="koniq-10k")
    assert (store.pixels == before).all()
    with pytest.raises(DataError, match="another run has rebuilt the pixel store"):
        pickle.loads(sent)


@pytest.mark.parametrize("damage", ["truncated", "headless", "bad header", "other version"])
def test_a_store_that_does_not_fit_is_rebuilt(biq2021, tmp_path, damage):
    store, table = open_store(biq2021, tmp_path)
    whole, header = store.path.read_bytes(), store.path.with_suffix(".json")
    if damage == "truncated":
        os.truncate(store.path, len(whole) - 1)
    elif damage == "headless":
        header.unlink()
    elif damage == "bad header":
        header.write_text(header.read_text()[:-20])
    else:
        header.write_text(header.read_text().replace('"version": 1', '"version": 0'))
    again, same = open_store(biq2021, tmp_path)
    assert again.path.read_bytes() == whole and same.equals(table)


def test_each_size_and_data_folder_has_a_store_of_its_own(biq2021, tmp_path):
    first, _ = open_store(biq2021, tmp_path)
    second, _ = open_store(biq2021, tmp_path, resize=(40, 40))
    moved = biq2021.rename(tmp_path / "moved")
    third, _ = open_store(moved, tmp_path)
    assert len({first.path, second.path, third.path}) == 3


def build_and_count(folder, tmp_path, decoded):
    decode = data.decode

    def counting(*arguments):
        with decoded.get_lock():
            decoded.value += 1
        return decode(*arguments)

    data.decode = counting
    store, _ = open_store(folder, tmp_path)
    assert store.pixels.shape[0] == 17


def test_of_two_processes_one_builds_and_the_other_waits(biq2021, tmp_path):
    context = multiprocessing.get_context("fork")
    decoded = context.Value("i", 0)
    processes = [
        context.Process(target=build_and_count, args=(biq2021, tmp_path, decoded)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [p.exitcode for p in processes] == [0, 0] and decoded.value == 17


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    biq2021, tmp_path, monkeypatch
):
    usage = data.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(data.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"the pixel store needs .* GB and 0\.0 GB are free"):
        open_store(biq2021, tmp_path)


# The crop plan

PLAN = {"resize": (48, 40), "patch_size": 32}


def test_the_training_plan_comes_from_seed_and_epoch_alone():
    images = np.arange(100, 140)
    plans = {
        (seed, epoch): data.training_plan(images, patches=3, seed=seed, epoch=epoch, **PLAN)
        for seed in (1, 2)
        for epoch in (1, 2)
    }
    np.random.seed(5)  # global states must not matter
    torch.manual_seed(5)
    again = data.training_plan(images, patches=3, seed=1, epoch=2, **PLAN)
    assert (plans[1, 2] == again).all()
    assert len({plan.tobytes() for plan in plans.values()}) == 4


def test_each_image_comes_once_a_round():
    plan = data.training_plan(np.arange(40), patches=25, seed=1, epoch=1, **PLAN)
    assert plan.shape == (1000, 4)
    for turn in range(25):
        assert sorted(plan[turn * 40 : turn * 40 + 40, 0]) == list(range(40))


def test_training_crops_cover_the_image_evenly():
    plan = data.training_plan(np.arange(1000), patches=20, seed=3, epoch=1, **PLAN)
    for column, positions in ((1, 48 - 32 + 1), (2, 40 - 32 + 1), (3, 2)):
        counts = np.bincount(plan[:, column], minlength=positions)
        assert len(counts) == positions  # the last position is reached, none lies outside
        expected = len(plan) / positions
        assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_the_test_plan_is_always_the_same_and_image_by_image():
    plan = data.test_plan(np.array([7, 9]), crop="random", patches=5, **PLAN)
    again = data.test_plan(np.array([7, 9]), crop="random", patches=5, **PLAN)
    assert (plan == again).all() and plan[:, 0].tolist() == [7] * 5 + [9] * 5
    assert not plan[:, 3].any()
    assert len({tuple(row) for row in plan[:, 1:3]}) > 5


def test_grid_and_center_crops():
    grid = data.test_plan(np.array([7, 9]), crop="grid", patches=9, **PLAN)
    assert grid[:9, 1:3].tolist() == [[t, c] for t in (0, 8, 16) for c in (0, 4, 8)]
    assert (grid[:9, 1:] == grid[9:, 1:]).all() and set(grid[9:, 0]) == {9}
    assert data.test_plan(np.array([7]), crop="grid", patches=1, **PLAN).tolist() == [[7, 8, 4, 0]]
    center = data.test_plan(np.array([7, 9]), crop="center", patches=1, **PLAN)
    assert center.tolist() == [[7, 8, 4, 0], [9, 8, 4, 0]]


# Batches


@pytest.fixture
def store(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 48, 40, 3), np.uint8)
    (tmp_path / "pixels.u8").write_bytes(pixels.tobytes())
    return data.PixelStore(tmp_path / "pixels.u8", pixels.shape)


def make_batches(store, **options):
    rows = np.array([5, 4, 3, 2, 1, 0])
    plan = data.training_plan(np.arange(6), patches=3, seed=0, epoch=1, **PLAN)
    return data.Batches(store, rows, plan, patch_size=32, batch_size=4, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_plans_crops_in_order(store, workers):
    batches = make_batches(store)
    loader = data.make_loader(batches, workers=workers, pin=False)
    seen = list(loader)
    assert [len(b["images"]) for b in seen] == [4, 4, 4, 4, 2]
    patches = torch.cat([b["patches"] for b in seen])
    assert patches.dtype == torch.uint8 and patches.shape == (18, 3, 32, 32)
    assert seen[0]["patches"].is_contiguous(memory_format=torch.channels_last)
    for (image, top, left, _), patch in zip(batches.plan.tolist(), patches):
        plain = store.pixels[5 - image, top : top + 32, left : left + 32]
        assert (patch.permute(1, 2, 0).numpy() == plain).all()
    assert torch.cat([b["images"] for b in seen]).tolist() == batches.plan[:, 0].tolist()
    assert torch.equal(torch.cat([b["flips"] for b in seen]), batches.plan[:, 3].bool())


def test_a_store_on_the_device_gives_the_same_batches(store):
    on_device = data.DeviceStore(store, torch.device("cpu"))
    assert (on_device.pixels.numpy() == store.pixels).all()
    jitter = data.jitter_plan(18, seed=1, epoch=1)
    plain, gathered = (
        list(data.make_loader(make_batches(s, jitter=jitter), workers=2, pin=False))
        for s in (store, on_device)
    )
    for one, other in zip(plain, gathered):
        assert one.keys() == other.keys()
        assert one.pop("share") == other.pop("share") == len(one["images"])
        assert all(torch.equal(one[k], other[k]) for k in one)
        assert other["patches"].is_contiguous(memory_format=torch.channels_last)
    corner = on_device.crops(*torch.tensor([[5], [48 - 32], [40 - 32]]), 32)
    assert (corner[0].permute(1, 2, 0).numpy() == store.pixels[5, 16:, 8:]).all()


def test_loading_leaves_the_global_random_state_alone(store):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(data.make_loader(make_batches(store), workers=0, pin=False))
    assert torch.equal(before, torch.get_rng_state())


def test_network_input_is_torchvisions_flip_and_normalisation(store):
    batch = make_batches(store)[1]
    images = data.to_network_input(batch, torch.device("cpu"))
    assert images.dtype == torch.float32 and batch["flips"].any() and not batch["flips"].all()
    for image, patch, flip in zip(images, batch["patches"], batch["flips"]):
        expected = transforms.to_tensor(patch.permute(1, 2, 0).numpy())
        expected = transforms.hflip(expected) if flip else expected
        expected = transforms.normalize(expected, data.MEAN, data.STD)
        torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-5)


def test_colour_jitter_is_torchvisions_in_a_fixed_order(store):
    jitter = data.jitter_plan(18, seed=1, epoch=1)
    assert jitter.min() >= 0.9 and jitter.max() <= 1.1 and len(np.unique(jitter)) > 50
    batch = make_batches(store, jitter=jitter)[2]
    jittered = data.colour_jitter(batch["patches"].float(), batch["jitter"]) / 255
    for image, patch, factors in zip(jittered, batch["patches"], jitter[8:12].tolist()):
        expected = transforms.adjust_brightness(patch / 255, factors[0])
        expected = transforms.adjust_contrast(expected, factors[1])
        expected = transforms.adjust_saturation(expected, factors[2])
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-3)


def test_a_store_travels_to_a_worker_as_its_path(store):
    import pickle

    assert store.pixels.shape == (6, 48, 40, 3)
    assert len(pickle.dumps(store)) < 1000
    assert (pickle.loads(pickle.dumps(store)).pixels == store.pixels).all()


def test_every_reader_gives_the_same_columns(koniq10k, biq2021):
    for name, folder in (("koniq-10k", koniq10k), ("biq2021", biq2021)):
        table, source = read_labels(name, folder)
        assert list(table.columns) == ["image", "mos", "split"] and source
        assert table["image"].is_monotonic_increasing

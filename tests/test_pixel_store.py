"""The store of decoded images."""

import multiprocessing
import os
import pickle
import shutil
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from conftest import photo
from datasets import pixel_store
from datasets.images import decode
from datasets.labels import find_images, fingerprint, read_labels
from errors import DataError


def open_store(folder, tmp_path, resize=(48, 40), dataset="biq2021"):
    table = find_images(read_labels(dataset, folder)[0], folder)
    return pixel_store.open_store(
        table, folder, resize=resize, store_dir=tmp_path / "store", name=dataset
    )


def test_an_image_smaller_than_the_crop_is_enlarged(biq2021, tmp_path):
    photo(biq2021 / "Images" / "ss03 (1).jpg", 90, size=(20, 10))
    store, _ = open_store(biq2021, tmp_path)
    assert store.pixels.shape == (17, 48, 40, 3)


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
    thumbnail = b"\xff\xe1" + (len(whole) + 2).to_bytes(2, "big") + whole  # has its own end
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
    assert message.count("jpg: a JPEG without an end marker: truncated, or padded") == 3


def test_an_image_bomb_is_refused(biq2021, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"17 of 17 files (.|\n)*decompression bomb"):
        open_store(biq2021, tmp_path)


def forbid_decoding(monkeypatch):
    def refuse(*_):
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(pixel_store, "decode", refuse)


def test_the_store_holds_every_image_decoded(biq2021, tmp_path):
    store, table = open_store(biq2021, tmp_path)
    for row in table.itertuples():
        assert (store.pixels[row.row] == decode(biq2021 / row.image, 48, 40)).all()


def test_no_image_is_decoded_again_in_the_next_run(biq2021, tmp_path, monkeypatch):
    store, table = open_store(biq2021, tmp_path)
    forbid_decoding(monkeypatch)
    again, same = open_store(biq2021, tmp_path)
    assert (again.pixels == store.pixels).all() and same.equals(table)


def test_another_split_of_the_same_images_uses_the_same_store(koniq10k, tmp_path, monkeypatch):
    _, table = open_store(koniq10k, tmp_path, dataset="koniq-10k")
    forbid_decoding(monkeypatch)
    other = find_images(read_labels("koniq-10k", koniq10k, split="random")[0], koniq10k)
    _, other = pixel_store.open_store(
        other, koniq10k, resize=(48, 40), store_dir=tmp_path / "store", name="koniq-10k"
    )
    assert fingerprint(other) != fingerprint(table)


def test_only_a_changed_image_is_decoded_again(biq2021, tmp_path, monkeypatch):
    before, table = open_store(biq2021, tmp_path)
    decoded = []
    monkeypatch.setattr(
        pixel_store, "decode", lambda path, *size: decoded.append(path.name) or decode(path, *size)
    )
    photo(biq2021 / "Images" / "ss03 (1).jpg", 10)
    after, changed = open_store(biq2021, tmp_path)
    assert decoded == ["ss03 (1).jpg"]
    different = [(a != b).any() for a, b in zip(before.pixels, after.pixels)]
    assert sum(different) == 1  # and the old store is still what it was
    assert fingerprint(changed) != fingerprint(table)


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
        header.write_text(header.read_text().replace('"version": ', '"version": 1'))
    again, same = open_store(biq2021, tmp_path)
    assert again.path.read_bytes() == whole and same.equals(table)


def test_each_size_and_data_folder_has_a_store_of_its_own(biq2021, tmp_path):
    first, _ = open_store(biq2021, tmp_path)
    second, _ = open_store(biq2021, tmp_path, resize=(40, 40))
    moved = biq2021.rename(tmp_path / "moved")
    third, _ = open_store(moved, tmp_path)
    assert len({first.path, second.path, third.path}) == 3


def build_and_count(folder, tmp_path, decoded):
    def counting(*arguments):
        with decoded.get_lock():
            decoded.value += 1
        return decode(*arguments)

    pixel_store.decode = counting
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
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(pixel_store.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"the pixel store needs .* GB and 0\.0 GB are free"):
        open_store(biq2021, tmp_path)

"""Label tables: random splits, validation images, what is refused, images found on disk."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT, photo
from datasets.label_files import SPLITS
from datasets.labels import count_splits, find_images, read_labels
from datasets.readers import CsvOptions
from errors import DataError


def splits(table) -> dict:
    return {s: set(table["image"][table["split"] == s]) for s in SPLITS}


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


def test_every_reader_gives_the_same_columns(koniq10k, biq2021):
    for name, folder in (("koniq-10k", koniq10k), ("biq2021", biq2021)):
        table, source = read_labels(name, folder)
        assert list(table.columns) == ["image", "mos", "split"] and source
        assert table["image"].is_monotonic_increasing


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


def test_a_data_folder_that_is_not_utf_8_is_named(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")
    os.mkdir(folder)
    with pytest.raises(DataError, match="not UTF-8"):
        read_labels("biq2021", folder)


@pytest.mark.parametrize("name", ["../out.png", "/etc/passwd", "a/../../out.png", "..\\out.png"])
def test_names_never_lead_outside(tmp_path, name):
    folder = tmp_path / "data"
    photo(folder / "in.png", 90)
    photo(tmp_path / "out.png", 90)
    (folder / "t.csv").write_text(f"image,score\nin.png,50\n{name},60\n")
    with pytest.raises(DataError, match="no file names"):
        read_labels("csv", folder, own_csv=CsvOptions(("t.csv",)))


def test_links_never_lead_outside(tmp_path):
    folder = tmp_path / "data"
    photo(folder / "in.png", 90)
    photo(tmp_path / "out.png", 90)
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    (folder / "alias.png").symlink_to("in.png")
    (folder / "t.csv").write_text("image,score\nin.png,50\nlink.png,60\nalias.png,70\n")
    table, _ = read_labels("csv", folder, own_csv=CsvOptions(("t.csv",)))
    with pytest.raises(DataError, match=r"1 images are links to places outside it: link\.png"):
        find_images(table, folder)


def test_labels_are_imported_without_torch_and_pandas():
    code = "import datasets.labels, datasets.check_folder, sys\n"
    code += "print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]

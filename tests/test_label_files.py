"""The forms of label files and tables that people have, and what is said of others."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from conftest import photo
from datasets.labels import find_images, load_labels, read_labels
from datasets.readers import CsvOptions
from errors import DataError
from training.flags import parse_args


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


@pytest.mark.parametrize(
    "content", [b"", b'Image name,MOS\n"1.jpg,5\n', b"Image name,MOS\n\xff,5\n"]
)
def test_a_sheet_saved_as_csv_that_is_none_is_named(tmp_path, content):
    sheet = tmp_path / "Annotations" / "MOS and Image attribute scores.csv"
    sheet.parent.mkdir()
    sheet.write_bytes(content)
    with pytest.raises(DataError, match=r"scores\.csv: can't be read as CSV"):
        read_labels("spaq", tmp_path)


# Your own table

NAMES = [f"{i:04}.png" for i in range(6)]


@pytest.fixture
def folder(tmp_path):
    for name in (*NAMES, "NA.png", "nan.png"):
        photo(tmp_path / name, 90)
    return tmp_path


def table_of(folder, content, *flags, name="t.csv"):
    """The labels of a table, given as text, as --dataset csv reads them with some flags."""
    (folder / name).write_text(content)
    flags = ["--dataset", "csv", "--data_path", str(folder), "--csv", name, *flags]
    return load_labels(parse_args(flags))[0]


def rows(*scores, sep=",", names=NAMES):
    return "\n".join(f"{name}{sep}{score}" for name, score in zip(names, scores)) + "\n"


def test_splits_have_the_names_that_people_give_them(folder):
    words = ["Training", "VALIDATION", " valid", "dev", "eval ", "Testing"]
    text = "image,score,part\n" + rows(*(f"50,{word}" for word in words))
    table = table_of(folder, text, "--csv_columns", "split=part")
    assert list(table["split"]) == ["train", "val", "val", "val", "val", "test"]
    (folder / "a.csv").write_text("image,score\n" + rows(50, 60))
    (folder / "b.csv").write_text("image,score\n" + rows(70, names=NAMES[2:]))
    options = CsvOptions(("Training=a.csv", "TESTING=b.csv"))
    assert list(read_labels("csv", folder, own_csv=options)[0]["split"]) == ["train"] * 2 + ["test"]
    with pytest.raises(DataError, match=r"t\.csv: splits other than train, val, test: half"):
        table_of(folder, text.replace("dev", "half"), "--csv_columns", "split=part")


def test_titles_may_have_blanks_and_another_case(folder):
    table = table_of(folder, " Image , SCORE\n" + rows(10, 20, 30))
    assert list(table["mos"]) == [10, 20, 30]
    table = table_of(folder, "image,Image,score\n" + rows("x,10", "x,20", "x,30"))
    assert list(table["mos"]) == [10, 20, 30]  # one title is exact
    with pytest.raises(DataError, match=r"has no column mos, .*; its columns are Image, score$"):
        table_of(folder, "Image;score\n" + rows(10, 20, sep=";"), "--csv_columns", "score=mos")
    with pytest.raises(DataError, match="has no column image, or has it twice"):
        table_of(folder, "IMAGE,Image,score\n" + rows("x,10", "x,20"))


@pytest.mark.parametrize("first", ["sep=;\n", '"sep=;"\r\n', "SEP=;\n", ""])
def test_a_table_that_a_european_excel_has_saved(folder, first):
    table = table_of(folder, first + "image;score\n" + rows("3,25", 40, "77,5", sep=";"))
    assert list(table["mos"]) == [3.25, 40, 77.5]
    with pytest.raises(DataError, match=r"1 scores are not numbers: '3,25' \(entry 1\)"):
        table_of(folder, "image;score\n" + rows("3,25", "40.5", sep=";"))


@pytest.mark.parametrize("sep", [",", ";", "\t"])
def test_tables_without_titles_are_read_by_column_number(folder, sep):
    scores = [11, 22, 33, 44] if sep == "," else ["11,5", "22,5", "33,5", "44,5"]
    text = rows(*scores, sep=f"{sep}x{sep}")
    table = table_of(folder, text, "--csv_columns", "image=1", "score=3")
    assert len(table) == 4 and table["mos"].tolist() == [
        float(str(score).replace(",", ".")) for score in scores
    ]
    table = table_of(folder, rows(*scores, sep=sep), "--csv_columns", "image=1", "score=2")
    assert len(table) == 4
    for column in ("4", "0"):
        with pytest.raises(DataError, match=f"has no column {column}"):
            table_of(folder, text, "--csv_columns", "image=1", f"score={column}")
    mixed = table_of(
        folder, f"image{sep}MOS\n" + rows(*scores, sep=sep), "--csv_columns", "score=2"
    )
    assert len(mixed) == 4


@pytest.mark.parametrize("form", ["list", "lines", "one line"])
def test_json_is_a_table_as_well(folder, form):
    entries = [{"image": name, "score": 10.5 * i, "scene": None} for i, name in enumerate(NAMES)]
    lines = "\n".join(map(json.dumps, entries)) + "\n"
    text = {"list": json.dumps(entries, indent=1), "lines": lines, "one line": json.dumps(entries)}
    flags = ["--csv_columns", "group=scene"]
    table = table_of(folder, text[form], *flags, name="t.json")
    assert list(table["mos"]) == [0, 10.5, 21, 31.5, 42, 52.5]
    assert list(table["image"]) == NAMES


def test_a_spreadsheet_is_a_table_as_well(folder):
    sheet = pd.DataFrame({"image": ["NA.png", "0001", "nan"], "score": [10, 20.5, 30]})
    sheet.to_excel(folder / "t.xlsx", index=False)
    table, _ = read_labels("csv", folder, own_csv=CsvOptions(("t.xlsx",)))
    table = find_images(table, folder)
    assert list(table["image"]) == ["0001.png", "NA.png", "nan.png"]
    assert list(table["mos"]) == [20.5, 10, 30]


@pytest.mark.parametrize("names", [["NA", "nan", "0000"], ["0000", "0001", "0002"]])
def test_names_are_strings_whatever_they_look_like(folder, names):
    table = table_of(folder, "image,score\n" + rows(10, 20, 30, names=names))
    assert sorted(table["image"]) == sorted(f"{name}.png" for name in names)


def test_several_rows_of_an_image_are_averaged_if_that_is_asked_for(folder):
    text = "image,score,scene\n" + rows(*([f"{s},a" for s in (1, 2, 4)]), names=["0000.png"] * 3)
    text += rows("3,b", "5,c", names=["./0001.png", "0002"])
    flags = ["--csv_columns", "group=scene", "--score_range", "1", "5"]
    with pytest.raises(DataError, match=r"1 images have two labels or more: 0000.png; --average"):
        table_of(folder, text, *flags)
    table = table_of(folder, text, *flags, "--average_ratings")
    assert list(table["image"]) == NAMES[:3]
    assert table["mos"].tolist() == pytest.approx([100 / 3, 50, 100])
    assert table["mos_sd"].tolist() == pytest.approx(
        [25 * np.std([1, 2, 4], ddof=1), np.nan, np.nan], nan_ok=True
    )
    assert list(table["votes"]) == [3, 1, 1]
    with pytest.raises(DataError, match=r"rows of one image name several groups: 0000\.png"):
        table_of(folder, text.replace("2,a", "2,b"), *flags, "--average_ratings")


def test_a_table_of_means_may_say_how_votes_spread(folder):
    text = "image,score,SD,n\n" + rows("2,0.5,20", "3,1,30", "5,0.25,25")
    flags = ["--csv_columns", "sd=SD", "votes=n", "--score_range", "1", "5"]
    table = table_of(folder, text, *flags)
    assert table["mos_sd"].tolist() == [12.5, 25, 6.25] and table["votes"].tolist() == [20, 30, 25]
    with pytest.raises(DataError, match="counts the votes itself"):
        table_of(folder, text, *flags, "--average_ratings")


@pytest.mark.parametrize("low", ["-2.64", "-2.64e0", "-264e-2", "-2.640", "-3."])
def test_a_scale_may_begin_below_zero(folder, low):
    table = table_of(folder, "image,score\n" + rows(0, -2.64, 3), "--score_range", low, "3")
    assert table["mos"].min() == pytest.approx(100 * (-2.64 - float(low)) / (3 - float(low)))


def test_an_image_without_a_group_is_a_group_of_its_own(tmp_path):
    names = [f"{i}.png" for i in range(24)]
    for name in names:
        photo(tmp_path / name, 90)
    for empty in ("", "  "):
        groups = ["a"] * 4 + [empty] * 20
        text = "image,score,scene\n" + rows(*(f"50,{g}" for g in groups), names=names)
        table = table_of(tmp_path, text, "--csv_columns", "group=scene")
        counts = table["split"].value_counts()
        assert counts["train"] + counts["test"] == 24 and 1 <= counts["test"] <= 8
        assert table["split"][table["image"].isin(names[:4])].nunique() == 1


# Messages


def test_a_fault_is_said_of_the_file_that_was_read(tmp_path):
    path = tmp_path / "Annotations" / "MOS and Image attribute scores.csv"
    path.parent.mkdir()
    path.write_text("Image name,MOS\n1.jpg,5\n2.jpg,\n3.jpg,500\n")
    with pytest.raises(DataError) as refusal:
        read_labels("spaq", tmp_path)
    assert str(refusal.value) == f"{path}: 1 scores are not numbers: '' (entry 2)"
    path.write_text(path.read_text().replace("2.jpg,", "2.jpg,7"))
    with pytest.raises(DataError, match=r"scores\.csv: 1 scores are outside 0..100, such as 500"):
        read_labels("spaq", tmp_path)


def test_what_is_wrong_with_a_matlab_file_is_said(tmp_path):
    path = tmp_path / "Data" / "AllImages_release.mat"
    with pytest.raises(DataError, match=r"AllImages_release\.mat: no such file$"):
        read_labels("live-challenge", tmp_path)
    savemat(tmp_path / path.name, {"names": np.arange(9)})
    with pytest.raises(DataError, match=f"no such file; there is one at {tmp_path / path.name}"):
        read_labels("live-challenge", tmp_path)
    path.parent.mkdir()
    (tmp_path / path.name).rename(path)
    with pytest.raises(DataError, match=r"has no variable AllImages_release; it has names$"):
        read_labels("live-challenge", tmp_path)
    path.write_bytes(b"no MATLAB file")
    with pytest.raises(DataError, match=r"release\.mat: can't be read as a MATLAB file"):
        read_labels("live-challenge", tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        (json.dumps({"images": ["x" * 50] * 3000}), "its columns are images"),
        (json.dumps([["x" * 50, 3]] * 3000), "is not a list of objects"),
        (json.dumps([{"a" * 60 + str(i): 3 for i in range(3000)}]), "and 2,988 more"),
        ("[" + "x" * 130_000, "can't be read as JSON"),
        ("x" * 130_000, "has no column image"),
        ("image,score\n" + "x" * 130_000 + ",y" * 50, "fields, and there are 2 titles"),
        ("image,score\n" + rows(*["y" * 9000] * 6), r"6 scores are not numbers: 'yyy"),
        ("image,score\n" + rows(*[50] * 6, names=["../" + "y" * 9000] * 6), "have two labels"),
        ("\0\xff", "has no column"),
    ],
)
def test_messages_are_short_whatever_is_in_a_file(folder, content, message):
    with pytest.raises(DataError, match=message) as refusal:
        table_of(folder, content)
    assert str(refusal.value).startswith(str(folder)) and len(str(refusal.value)) < 1000
    assert "\n" not in str(refusal.value)

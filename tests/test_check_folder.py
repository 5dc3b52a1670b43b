"""The check of a data folder, as a user runs it."""

import sys

import pytest

from conftest import photo
from datasets import check_folder


def checked(capsys, *arguments, status=0):
    sys.argv = ["data_loader", *map(str, arguments)]
    assert check_folder.main() == status
    return capsys.readouterr()


def test_a_folder_is_checked(koniq10k, tmp_path, capsys):
    images = koniq10k / "1024x768"
    (images / "1001.jpg").write_bytes((images / "1010.jpg").read_bytes())  # training = test
    store = "--store_dir", tmp_path / "store"
    said = checked(capsys, "--data_path", koniq10k, *store, status=1)
    assert "6 train, 2 val, 3 test" in said.out and "64x48 (11)" in said.out
    assert "1024x768/1001.jpg (train) = 1024x768/1010.jpg (test)" in said.out
    assert "1 groups of duplicates are in two splits or more" in said.err
    (images / "1001.jpg").write_bytes((images / "1002.jpg").read_bytes())  # both training
    said = checked(capsys, "--data_path", koniq10k, *store)
    assert "no problems found, except the duplicates" in said.out
    assert not (tmp_path / "store").exists()  # it only reads
    (images / "1002.jpg").write_bytes(b"no image")
    said = checked(capsys, "--data_path", koniq10k, status=1)
    assert said.err.startswith("error: 1024x768/1002.jpg: cannot identify")
    (images / "1002.jpg").unlink()
    said = checked(capsys, "--data_path", koniq10k, status=1)
    assert "1 of 11 images are missing" in said.err


def test_the_ratings_of_a_table_are_counted(tmp_path, capsys):
    lines = ["image,score"]
    for i in range(5):
        photo(tmp_path / f"{i}.png", 90)
        lines += [f"{i}.png,{20 + i}", f"{i}.png,{40 + i}"][: 1 + (i > 0)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    flags = ["--dataset", "csv", "--data_path", tmp_path, "--csv", "t.csv", "--average_ratings"]
    said = checked(capsys, *flags)
    assert "votes       1 to 2 per image, mean SD 14.14" in said.out
    assert "means of score (0..100, higher is better) of t.csv; images in ./" in said.out


@pytest.mark.parametrize(
    "flags", [["--split_seed", "-1"], ["--val_fraction", "7"], ["--resize", "0", "-1"]]
)
def test_the_check_refuses_the_numbers_that_training_refuses(koniq10k, capsys, flags):
    sys.argv = ["data_loader", "--data_path", str(koniq10k), *flags]
    with pytest.raises(SystemExit):
        check_folder.main()
    assert f"argument {flags[0]}: {flags[1]} is not a" in capsys.readouterr().err

"""Label files with byte order marks, other line ends, empty fields, other content."""

import pytest

from datasets.labels import read_labels
from errors import DataError


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

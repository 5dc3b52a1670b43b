"""The report's figures."""

import pytest

from conftest import photo
from report_runs import reported, write_three


@pytest.fixture
def logs(tmp_path):
    return write_three(tmp_path / "logs")


def test_the_contact_sheet_shows_twenty_photographs(logs, capsys, tmp_path):
    for i in range(200):
        photo(tmp_path / "data" / "Images" / f"test_{i:03}.jpg", 40 + i)
    reported(logs, capsys, "--data_path", tmp_path / "data", draw=True)
    assert (logs / "figures" / "contact_sheet.png").is_file()

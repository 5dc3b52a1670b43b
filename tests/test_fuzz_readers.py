"""Wrong label and split files give one sentence, or the right table; never a guess."""

import csv
import io
import json
import tempfile
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.labels import read_labels
from datasets.readers import CsvOptions
from errors import DataError

NAMES = st.one_of(
    st.sampled_from([f"{i}.jpg" for i in range(8)]),
    st.sampled_from(
        ["../x.jpg", "/etc/passwd", "", ".", "a/b.jpg", "x\\y.jpg", " 1.jpg", '"1.jpg']
    ),
    st.text(max_size=5),
)
SCORES = st.one_of(
    st.floats(0, 100).map(lambda x: f"{x:.4f}"),
    st.sampled_from(["", "nan", "inf", "-1", "101", "1e400", "fifty", "5,5", "0x10", "1_0", " 7 "]),
)
SETS = st.sampled_from(["training"] * 4 + ["validation", "test", "test", "Test", ""])
ROWS = st.lists(st.tuples(NAMES, SCORES, SETS), max_size=8)
GOOD_ROWS = st.lists(
    st.tuples(
        st.sampled_from([f"{i}.jpg" for i in range(30)]),
        st.floats(6, 100).map(lambda x: f"{x:.4f}"),
        st.sampled_from(["training", "validation", "test"]),
    ),
    min_size=2,
    max_size=12,
    unique_by=lambda row: row[0],
).map(lambda rows: [(*rows[0][:2], "training"), (*rows[1][:2], "test"), *rows[2:]])
HEADERS = st.sampled_from(
    [["image_name", "MOS", "set"]] * 6 + [["image", "MOS", "set"], ["image_name", "MOS"], []]
)


@st.composite
def tables(draw) -> bytes:
    """A table such as koniq10k_distributions_sets.csv, correct, or wrong in some way."""
    rows = draw(st.one_of(GOOD_ROWS, GOOD_ROWS, ROWS))
    header = draw(HEADERS)
    file = io.StringIO()
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    writer = csv.writer(file, delimiter=draw(st.sampled_from(",;\t")), lineterminator=newline)
    writer.writerows([header, *rows])
    content = file.getvalue().encode(
        draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16"])), "ignore"
    )
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, max(0, len(content) - 1)))
        content = content[:at] + draw(st.binary(max_size=6)) + content[at + 1 :]
    return content


@st.composite
def lists(draw) -> bytes:
    """A split list such as koniq_train.json, correct, or wrong in some way."""
    good = st.lists(st.sampled_from([f"{i}.jpg" for i in range(30)]), min_size=1, max_size=2)
    names = draw(st.one_of(good, good, st.lists(NAMES, max_size=6)))
    entries = [{draw(st.sampled_from(["image"] * 9 + ["img"])): f"any/{name}"} for name in names]
    if draw(st.booleans()):
        entries = [e | {"score": draw(st.one_of(SCORES, st.floats(0, 100)))} for e in entries]
    content = json.dumps(entries).encode()
    return (
        content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content
    )


def as_written(content: bytes, name: str, score: str) -> list[dict]:
    """An independent reading of a table: its rows as dicts, by the delimiter that fits."""
    text = content.decode("utf-8-sig")
    for delimiter in ",;\t":
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
        if rows and {name, score} <= set(rows[0]):
            return rows
    return []


def check_sets_csv(content: bytes) -> bool:
    """Whether the table was accepted; then every count and value is what is written there."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "koniq10k_distributions_sets.csv").write_bytes(content)
        try:
            table, _ = read_labels("koniq-10k", folder, split="official")
        except DataError as error:
            assert "\n" not in str(error).strip() or "CSV" in str(error)
            return False
    rows = as_written(content, "image_name", "MOS")
    wanted = {f"1024x768/{r['image_name']}": float(r["MOS"].replace(",", ".")) for r in rows}
    assert len(table) == len(rows) == len(wanted)
    assert dict(zip(table["image"], table["mos"])) == pytest.approx(wanted, abs=1e-8)
    splits = {"training": "train", "validation": "val", "test": "test"}
    wanted = {f"1024x768/{r['image_name']}": splits[r["set"]] for r in rows}
    assert dict(zip(table["image"], table["split"])) == wanted
    assert (
        table["mos"].between(0, 100).all()
        and not table["image"].str.contains("..", regex=False).any()
    )
    return True


def check_lists(content: bytes, train: bytes, test: bytes) -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "koniq10k_distributions_sets.csv").write_bytes(content)
        (folder / "koniq_train.json").write_bytes(train)
        (folder / "koniq_test.json").write_bytes(test)
        try:
            table, _ = read_labels("koniq-10k", folder, split="json")
        except DataError:
            return False
    wanted = {
        part: {e["image"].replace("\\", "/").split("/")[-1] for e in json.loads(entries)}
        for part, entries in (("train", train), ("test", test))
    }
    for part, names in wanted.items():
        assert set(table["image"][table["split"] == part].str.split("/").str[-1]) == names
    assert not wanted["train"] & wanted["test"]
    return True


def check_own_csv(content: bytes) -> bool:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "t.csv").write_bytes(content)
        options = CsvOptions(("t.csv",), ("image=image_name", "score=MOS"))
        try:
            table, _ = read_labels("csv", name, own_csv=options)
        except DataError:
            return False
    rows = as_written(content, "image_name", "MOS")
    wanted = {
        str(PurePosixPath(r["image_name"].strip().replace("\\", "/"))): float(
            r["MOS"].replace(",", ".")
        )
        for r in rows
    }
    assert dict(zip(table["image"], table["mos"])) == pytest.approx(wanted, abs=1e-8)
    return True


def fuzz(examples: int) -> int:
    """How many files were accepted, of about 5 x `examples`."""
    accepted = 0
    options = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )

    @options
    @given(tables())
    def one(content):
        nonlocal accepted
        accepted += check_sets_csv(content)
        accepted += check_own_csv(content)

    @options
    @given(tables(), lists(), lists())
    def three(content, train, test):
        nonlocal accepted
        accepted += check_lists(content, train, test)

    one()
    three()
    return accepted


def test_some_hundred_files_are_read_correctly_or_refused():
    assert fuzz(100) > 10


@pytest.mark.slow
def test_20000_files_are_read_correctly_or_refused():
    assert fuzz(5000) > 500

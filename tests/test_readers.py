"""The readers of other data sets, on miniatures of the publishers' layouts with their traps."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

import train_resnet_improved as train
from conftest import TINY, make_biq2021, photo
from datasets import readers
from datasets.label_files import scaled
from datasets.labels import DATASETS, count_splits, find_images, load_labels, read_labels
from datasets.readers import CsvOptions
from errors import DataError
from training.flags import parse_args


def write_csv(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def cells(texts):
    """Text as MATLAB has it: a cell array, one row."""
    array = np.empty((1, len(texts)), dtype=object)
    array[0] = [np.array([t]) for t in texts]
    return array


def spaq(folder):
    (folder / "Annotations").mkdir()
    sheet = pd.DataFrame({"Image name": [f"{i:05}.jpg" for i in range(1, 11)]})
    sheet["MOS"] = np.linspace(2, 96, 10)
    sheet["Brightness"] = 50
    sheet.to_excel(folder / "Annotations" / "MOS and Image attribute scores.xlsx", index=False)
    for name in sheet["Image name"]:
        photo(folder / "TestImage" / name, 90)
    return {"TestImage/00001.jpg": 2, "TestImage/00010.jpg": 96}, 10


def kadid10k(folder):
    rows = []
    for ref in range(1, 6):
        for level, dmos in ((1, 4.5), (2, 1.0)):
            name = f"I{ref:02}_01_{level:02}.png"
            rows.append([name, f"I{ref:02}.png", dmos, 0.3])
            photo(folder / "images" / name, 90)
    write_csv(folder / "dmos.csv", ["dist_img", "ref_img", "dmos", "var"], rows)
    # Despite its name, dmos is higher for better images.
    return {"images/I01_01_01.png": 87.5, "images/I01_01_02.png": 0}, 10


def agiqa3k(folder):
    rows = []
    for prompt in range(5):
        for model in ("AttnGAN", "xl2.2"):
            name = f"{model}_normal_{prompt:03}.jpg"
            rows.append([name, f"a cat, number {prompt}", "", prompt, 0.2, 3.0])
            photo(folder / name, 90)
    header = ["name", "prompt", "adj1", "mos_quality", "std_quality", "mos_align"]
    write_csv(folder / "data.csv", header, rows)
    return {"AttnGAN_normal_003.jpg": 60}, 10


def live_challenge(folder):
    names = [f"t{i}.bmp" for i in range(1, 8)] + [f"{i}.bmp" for i in range(10, 20)]
    (folder / "Data").mkdir()
    savemat(folder / "Data" / "AllImages_release.mat", {"AllImages_release": cells(names).T})
    savemat(folder / "Data" / "AllMOS_release.mat", {"AllMOS_release": np.arange(17.0)[None] * 4})
    for name in names[7:]:
        photo(folder / "Images" / name, 90)
    return {"Images/10.bmp": 28, "Images/19.bmp": 64}, 10


def live(folder, monkeypatch):
    monkeypatch.setattr(readers, "LIVE_TYPES", {"jp2k": 4, "wn": 4})
    savemat(
        folder / "dmos_realigned.mat",
        {"dmos_new": np.array([[0, 55, 115, -5, 10, 20, 30, 0.0]]), "orgs": [[1, 0, 0, 0] * 2]},
    )
    references = ["a.bmp", "a.bmp", "b.bmp", "c.bmp"] * 2
    savemat(folder / "refnames_all.mat", {"refnames_all": cells(references)})
    for kind in ("jp2k", "wn"):
        for i in range(1, 5):
            photo(folder / kind / f"img{i}.bmp", 90)
    return {"jp2k/img2.bmp": 50, "jp2k/img3.bmp": 0, "jp2k/img4.bmp": 100}, 6


def csiq(folder):
    lines = []
    for ref in ("1600", "aerial_city", "boston", "woman", "elk"):
        for kind, dmos in (("AWGN", 0.25), ("jpeg2000", 1.0)):
            lines.append(f"{ref}.{kind}.1.png {dmos}")
            photo(folder / "dst_imgs" / kind.lower() / f"{ref}.{kind}.1.png", 90)
    (folder / "csiq_label.txt").write_text("\n".join(lines) + "\n")
    return {"dst_imgs/awgn/1600.AWGN.1.png": 75, "dst_imgs/jpeg2000/elk.jpeg2000.1.png": 0}, 10


def tid2013(folder):
    lines = []
    for ref in range(1, 6):
        for level, mos in ((1, 4.5), (2, 0.0)):
            lines.append(f"{mos:.5f} I{ref:02}_01_{level}.bmp")
            photo(folder / "distorted_images" / f"i{ref:02}_01_{level}.BMP", 90)
    (folder / "mos_with_names.txt").write_text("\r\n".join(lines) + "\r\n")
    return {"distorted_images/i01_01_1.BMP": 50, "distorted_images/i05_01_2.BMP": 0}, 10


def bid(folder):
    sheet = pd.DataFrame({"Image Number": range(1, 11), "Average Subjective Grade": 2.5})
    sheet.to_excel(folder / "DatabaseGrades.xlsx", index=False)
    for i in range(1, 11):
        photo(folder / f"DatabaseImage{i:04}.JPG", 90)
    return {"DatabaseImage0001.JPG": 50}, 10


MAKERS = {
    "spaq": spaq,
    "kadid-10k": kadid10k,
    "agiqa-3k": agiqa3k,
    "live-challenge": live_challenge,
    "live": live,
    "csiq": csiq,
    "tid2013": tid2013,
    "bid": bid,
}


@pytest.fixture(params=MAKERS)
def miniature(request, tmp_path, monkeypatch):
    """(data set, folder, some labels as they should be, number of images)."""
    name, make = request.param, MAKERS[request.param]
    folder = tmp_path / name
    folder.mkdir()
    more = (monkeypatch,) if make is live else ()
    wanted, count = make(folder, *more)
    monkeypatch.setitem(DATASETS, name, DATASETS[name]._replace(images=count))
    return name, folder, wanted, count


def test_labels_are_on_0_to_100_and_images_are_found(miniature):
    name, folder, wanted, count = miniature
    table, source = read_labels(name, folder)
    table = find_images(table, folder)
    assert len(table) == count and "random 80/20" in source
    mos = dict(zip(table["image"], table["mos"]))
    assert {image: mos[image] for image in wanted} == pytest.approx(wanted)


def test_no_content_is_in_two_splits(miniature):
    name, folder, _, count = miniature
    for seed in range(5):
        table, _ = read_labels(name, folder, split_seed=seed, val_fraction=0.25)
        assert set(table["split"]) == {"train", "val", "test"} and len(table) == count
        contents = {
            "kadid-10k": table["image"].str[7:10],
            "agiqa-3k": table["image"].str[-7:-4],
            "csiq": table["image"].str.split("/").str[-1].str.split(".").str[0],
            "tid2013": table["image"].str.split("/").str[-1].str[:3],
            "live": table["image"].str[-5],  # img2 of a.bmp, img3 of b.bmp, img4 of c.bmp
        }.get(name, table["image"])
        assert (table.groupby(contents)["split"].nunique() == 1).all()
    assert not read_labels(name, folder, split_seed=0)[0].equals(
        read_labels(name, folder, split_seed=1)[0]
    )


def test_other_counts_than_the_published_are_refused(miniature, monkeypatch):
    name, folder, _, count = miniature
    known = DATASETS[name]._replace(images=count + 1)
    monkeypatch.setitem(DATASETS, name, known)
    with pytest.raises(DataError, match=rf"name {count} images, and {name} has {count + 1}"):
        read_labels(name, folder)
    with pytest.raises(DataError, match="has no such split"):
        monkeypatch.setitem(DATASETS, name, known._replace(images=None))
        read_labels(name, folder, split="official")


def test_the_published_counts():
    wanted = {"spaq": 11125, "kadid-10k": 10125, "agiqa-3k": 2982, "live-challenge": 1162}
    wanted |= {"live": 779, "csiq": 866, "tid2013": 3000, "bid": 586}
    assert {name: DATASETS[name].images for name in wanted} == wanted
    assert sum(readers.LIVE_TYPES.values()) == 982  # with the references


def test_missing_label_files_are_one_sentence(tmp_path):
    for name in MAKERS:
        with pytest.raises(DataError) as refusal:
            read_labels(name, tmp_path)
        assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_spread_of_kadids_votes_is_kept_if_it_is_there(tmp_path, monkeypatch):
    kadid10k(tmp_path)
    known = DATASETS["kadid-10k"]._replace(images=10)
    monkeypatch.setitem(DATASETS, "kadid-10k", known)
    table, _ = read_labels("kadid-10k", tmp_path)
    assert table["mos_sd"].tolist() == pytest.approx([25 * 0.3**0.5] * 10)
    assert set(table["votes"]) == {30}
    text = (tmp_path / "dmos.csv").read_text().replace(",var", ",other")
    (tmp_path / "dmos.csv").write_text(text)
    assert "votes" not in read_labels("kadid-10k", tmp_path)[0]


def test_scores_outside_the_publishers_scale_are_refused(tmp_path):
    kadid10k(tmp_path)
    text = (tmp_path / "dmos.csv").read_text().replace("4.5", "45")
    (tmp_path / "dmos.csv").write_text(text)
    with pytest.raises(DataError, match=r"5 scores are outside 1\.\.5, such as 45"):
        read_labels("kadid-10k", tmp_path)


def test_real_label_lists_fit_their_scales(real_data):
    scales = {"kadid10k_test": (1, 5, 2000), "agiqa-3k": (0, 5, 2982), "spaq_test": (0, 100, 2224)}
    scales |= {"livec": (0, 100, 1169), "csiq": (0, 1, 750), "live": (-5, 115, 982)}
    for name, (low, high, count) in scales.items():
        entries = json.loads((real_data / "label-lists" / f"{name}.json").read_text())
        scores = pd.Series([float(e["score"]) for e in entries])
        assert len(scores) == count
        assert scaled(scores, low, high, real_data).between(0, 100).all()


def test_a_sheet_that_was_saved_as_csv_with_semicolons(tmp_path):
    lines = ["Image Number;Average Subjective Grade", *(f"{i};2,5" for i in range(1, 587))]
    (tmp_path / "DatabaseGrades.csv").write_text("sep=;\n" + "\n".join(lines))
    table, _ = read_labels("bid", tmp_path)
    assert len(table) == 586 and (table["mos"] == 50).all()
    (tmp_path / "DatabaseGrades.csv").write_text("\n".join(lines))
    assert read_labels("bid", tmp_path)[0].equals(table)


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


# Your own table


def table_of(folder, options, **more):
    table, _ = read_labels("csv", folder, own_csv=options, **more)
    return find_images(table, folder)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_any_table_is_read(tmp_path, delimiter, encoding, newline):
    for i in range(6):
        photo(tmp_path / "pictures" / f"{i}.png", 90)
    rows = [["file", "DMOS (%)", "part"]]
    rows += [[f"{i}.png", str(10 * i), "test" if i > 3 else "train"] for i in range(6)]
    text = newline.join(delimiter.join(row) for row in rows) + newline
    (tmp_path / "my table.csv").write_bytes(text.encode(encoding))
    columns = ("image=file", "score=DMOS (%)", "split=part")
    options = CsvOptions(("my table.csv",), columns, lower_is_better=True)
    table = table_of(tmp_path, options)
    assert list(table["image"]) == [f"pictures/{i}.png" for i in range(6)]
    assert list(table["mos"]) == [100, 90, 80, 70, 60, 50]
    assert list(table["split"]) == ["train"] * 4 + ["test"] * 2


def test_groups_of_a_table_are_kept_in_one_split(tmp_path):
    for i in range(20):
        photo(tmp_path / "a" / "deep" / f"{i}.png", 90)
    rows = [[f"a/deep/{i}.png", i, i // 4] for i in range(20)]
    write_csv(tmp_path / "t.csv", ["image", "score", "scene"], rows)
    options = CsvOptions(("t.csv",), ("group=scene",), score_range=(0, 20))
    table = table_of(tmp_path, options, val_fraction=0.25)
    scene = table["image"].str.extract(r"(\d+)\.png")[0].astype(int) // 4
    assert (table.groupby(scene)["split"].nunique() == 1).all()
    rows[0].append("test")
    write_csv(tmp_path / "t.csv", ["image", "score", "scene", "split"], [
        [*row[:3], "test" if i == 0 else "train"] for i, row in enumerate(rows)
    ])  # fmt: skip
    options = CsvOptions(("t.csv",), ("group=scene", "split=split"), score_range=(0, 20))
    with pytest.raises(DataError, match="1 contents are in two splits: 0"):
        table_of(tmp_path, options)


@pytest.mark.parametrize(
    "options, message",
    [
        (CsvOptions(), "name the table with --csv"),
        (CsvOptions(("none.csv",)), "none.csv"),
        (CsvOptions(("t.csv",), ("picture=image",)), "takes KEY=NAME"),
        (CsvOptions(("t.csv",), ("image=nothing",)), "no column nothing"),
        (CsvOptions(("half=t.csv",)), "takes FILE, or SPLIT=FILE"),
        (CsvOptions(("train=t.csv",), ("split=image",)), "named twice"),
        (CsvOptions(("t.csv",)), r"reach from 1 to 5: give the ends of their scale"),
        (CsvOptions(("t.csv",), score_range=(1, 4)), r"outside 1\.\.4, such as 5"),
        (CsvOptions(("t.csv",), ("split=image",), score_range=(1, 5)), "splits other than"),
    ],
)
def test_wrong_tables_are_one_sentence(tmp_path, options, message):
    write_csv(tmp_path / "t.csv", ["image", "score"], [["a.png", 1], ["b.png", 5]])
    with pytest.raises(DataError, match=message):
        read_labels("csv", tmp_path, own_csv=options)


BIQ_AS_CSV = [
    "--csv", "train=Train (Images and MOS).csv", "test=Test (Images and MOS).csv",
    "--csv_columns", "image=Image Name", "score=MOS", "--score_range", "0", "1",
    "--val_fraction", "0.1",
]  # fmt: skip


def test_biq2021_as_a_table_trains_to_the_same_bits(tmp_path):
    folder = tmp_path / "biq2021"
    folder.mkdir()
    make_biq2021(folder)
    results = []
    for name, flags in (("biq2021", []), ("csv", BIQ_AS_CSV)):
        where = ["--dataset", name, "--data_path", folder, "--store_dir", tmp_path / "store"]
        where += ["--log_dir", tmp_path / name, "--run_name", "run"]
        train.run(parse_args([*TINY, "--epochs", "1", *map(str, where), *flags]))
        lines = (tmp_path / name / "run.jsonl").read_text().splitlines()
        config, epoch = map(json.loads, lines)
        csv_text = (tmp_path / name / "run_predictions.csv").read_bytes()
        results.append([config["data_fingerprint"], epoch["loss"], csv_text])
    assert results[0] == results[1]


def test_the_real_biq2021_as_a_table_is_the_same(real_data):
    folder = real_data / "biq2021"
    args = parse_args(["--dataset", "csv", "--data_path", str(folder), *BIQ_AS_CSV])
    own, _ = load_labels(args)
    theirs = find_images(read_labels("biq2021", folder)[0], folder)
    pd.testing.assert_frame_equal(own, theirs)

"""Where the images of a table lie: the only folder that holds them, or a sentence that says why."""

import unicodedata

import pytest

from conftest import photo
from datasets.labels import find_images, read_labels
from datasets.readers import CsvOptions
from errors import DataError

NAMES = [f"{i}.png" for i in range(8)]


def write_table(folder, names=NAMES):
    folder.mkdir(exist_ok=True)
    lines = [f"{name},{20 + 10 * i}" for i, name in enumerate(names)]
    (folder / "t.csv").write_text("\n".join(["image,score", *lines]) + "\n")


def images_of(folder, image_dir=None, table="t.csv"):
    table, _ = read_labels("csv", folder, own_csv=CsvOptions((table,), image_dir=image_dir))
    return sorted(find_images(table, folder)["image"])


def photos(folder, names=NAMES):
    for name in names:
        photo(folder / name, 90)


@pytest.mark.parametrize("place", ["", "pictures", "deep/er/pictures"])
def test_bare_names_are_found_in_the_only_folder_that_holds_them(tmp_path, place):
    photos(tmp_path / place)
    photos(tmp_path / "a few", NAMES[:3])
    for hidden in (".thumbnails", "@eaDir", "pictures/.cache", "__MACOSX/pictures"):
        photos(tmp_path / hidden)
    write_table(tmp_path)
    assert images_of(tmp_path) == [f"{place}/{name}".lstrip("/") for name in NAMES]


@pytest.mark.parametrize("places", [["Details", "Exposure", "Overall"], ["", "small"]])
def test_two_folders_that_hold_the_names_are_named_with_the_flag_that_chooses(tmp_path, places):
    for place in places:
        photos(tmp_path / place)
    write_table(tmp_path)
    with pytest.raises(DataError) as refusal:
        images_of(tmp_path)
    for text in ("8 of 8 images", "--image_dir", *(f"{place or '.'}/" for place in places)):
        assert text in str(refusal.value)
    for place in places:
        given = place or "."
        assert images_of(tmp_path, given) == [f"{place}/{name}".lstrip("/") for name in NAMES]
        assert images_of(tmp_path, str(tmp_path / place)) == images_of(tmp_path, given)
    for wrong in ("nowhere", "..", "/etc", "small/../../x"):
        with pytest.raises(DataError, match=f"--image_dir {wrong}: no such folder in "):
            images_of(tmp_path, wrong)


def test_paths_of_the_table_say_which_folder_is_meant(tmp_path):
    for place in ("Details", "Overall", "copy/Overall"):
        photos(tmp_path / place)
    write_table(tmp_path, [f"Overall\\{name}" for name in NAMES])
    assert images_of(tmp_path) == [f"Overall/{name}" for name in NAMES]
    (tmp_path / "Overall").rename(tmp_path / "copy" / "Exposure")
    assert images_of(tmp_path) == [f"copy/Overall/{name}" for name in NAMES]


def test_one_missing_image_is_one_whichever_it_is(tmp_path):
    photos(tmp_path / "pictures")
    photos(tmp_path / "selected", NAMES[2:5])
    write_table(tmp_path)
    for name in (NAMES[0], NAMES[-1]):
        (tmp_path / "pictures" / name).rename(tmp_path / "kept")
        with pytest.raises(DataError, match=f"^1 of 8 images are missing: pictures/{name};"):
            images_of(tmp_path)
        (tmp_path / "kept").rename(tmp_path / "pictures" / name)


def test_where_missing_images_lie_is_said(tmp_path, biq2021):
    (biq2021 / "Images").rename(biq2021 / "images")  # as on a system that takes them for the same
    table, _ = read_labels("biq2021", biq2021)
    with pytest.raises(DataError) as refusal:
        find_images(table, biq2021)
    assert f"lie in {biq2021 / 'images'}: give --image_dir images" in str(refusal.value)
    table, _ = read_labels("biq2021", biq2021, own_csv=CsvOptions(image_dir="images"))
    assert find_images(table, biq2021)["image"].str.startswith("images/").all()

    (biq2021 / "images").rename(biq2021.parent / "beside")
    table, _ = read_labels("biq2021", biq2021)
    with pytest.raises(DataError, match=f"lie in {biq2021.parent / 'beside'}: give another"):
        find_images(table, biq2021)
    photos(tmp_path / "set")
    write_table(tmp_path / "set" / "labels")
    with pytest.raises(DataError, match=f"8 of 8 .* lie in {tmp_path / 'set'}: give another --dat"):
        images_of(tmp_path / "set" / "labels")


def test_two_complete_releases_of_a_data_set_are_named(koniq10k):
    (koniq10k / "512x384").mkdir()
    for path in (koniq10k / "1024x768").iterdir():
        (koniq10k / "512x384" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"11 of 11 images are in each of 1024x768/, 512x384/: "):
        read_labels("koniq-10k", koniq10k)
    options = CsvOptions(image_dir="512x384")
    table, source = read_labels("koniq-10k", koniq10k, own_csv=options)
    assert table["image"].str.startswith("512x384/").all() and "images in 512x384/" in source


def test_names_may_come_without_their_extension(tmp_path):
    photos(tmp_path / "pictures")
    photo(tmp_path / "pictures" / "xl2.2.jpg", 90)
    (tmp_path / "pictures" / "0.txt").write_text("notes")
    (tmp_path / "pictures" / "1").mkdir()
    stems = [name.removesuffix(".png") for name in NAMES]
    write_table(tmp_path, [*stems, "xl2.2"])
    wanted = [*(f"pictures/{name}" for name in NAMES), "pictures/xl2.2.jpg"]
    assert images_of(tmp_path) == wanted
    photo(tmp_path / "pictures" / "3.jpg", 90)
    with pytest.raises(DataError, match=r"1 names fit two files: pictures/3 \(3.jpg or 3.png\)"):
        images_of(tmp_path)


def test_a_name_that_fits_two_files_in_another_case_is_refused(tmp_path):
    photos(tmp_path)
    (tmp_path / "0.png").rename(tmp_path / "0.PNG")
    write_table(tmp_path)
    assert images_of(tmp_path) == ["0.PNG", *NAMES[1:]]
    photo(tmp_path / "0.Png", 90)
    with pytest.raises(DataError, match=r"1 names fit two files: 0.png \(0.PNG or 0.Png\)"):
        images_of(tmp_path)
    photo(tmp_path / "0.png", 90)  # its own name counts before others
    assert images_of(tmp_path) == NAMES


@pytest.mark.parametrize("on_disk, in_table", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_written_in_either_unicode_form(tmp_path, on_disk, in_table):
    names = [f"\u00e9t\u00e9/\u00e4{i}.png" for i in range(3)]
    photos(tmp_path, [unicodedata.normalize(on_disk, name) for name in names])
    for first in ("", "\u00e9t\u00e9/"):
        table = [unicodedata.normalize(in_table, name.removeprefix(first)) for name in names]
        write_table(tmp_path, table)
        assert images_of(tmp_path) == [unicodedata.normalize(on_disk, name) for name in names]


def test_absolute_paths_inside_the_folder_are_taken(tmp_path, monkeypatch):
    photos(tmp_path / "set" / "pictures")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for root in (tmp_path / "set", tmp_path / "link"):
        write_table(tmp_path / "set", [f"{root}/pictures/{name}" for name in NAMES])
        assert images_of(tmp_path / "link") == [f"pictures/{name}" for name in NAMES]
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "set", [f"{tmp_path}/set/./pictures//{name}" for name in NAMES])
    assert images_of("set") == [f"pictures/{name}" for name in NAMES]
    write_table(tmp_path / "set", ["/etc/a.png", *NAMES])
    with pytest.raises(DataError, match=r"no file names inside it: /etc/a\.png"):
        images_of("set")


def test_a_hugging_face_snapshot_is_read(tmp_path):
    hub = tmp_path / "hub" / "datasets--owner--iqa"
    snapshot = hub / "snapshots" / "0123abc"
    (snapshot / "pictures").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        photo(hub / "blobs" / f"{i}.png", 90)
        (hub / "blobs" / f"{i}.png").rename(hub / "blobs" / f"{i:064x}")
        (snapshot / "pictures" / name).symlink_to(f"../../../blobs/{i:064x}")
    write_table(hub / "blobs")
    (snapshot / "t.csv").symlink_to("../../blobs/t.csv")
    assert images_of(snapshot) == [f"pictures/{name}" for name in NAMES]
    assert images_of(snapshot / "pictures", table="../t.csv") == NAMES
    (snapshot / "pictures" / NAMES[0]).unlink()
    photo(tmp_path / "hub" / "datasets--other--iqa" / "blobs" / "a.png", 90)
    (snapshot / "pictures" / NAMES[0]).symlink_to(
        tmp_path / "hub" / "datasets--other--iqa" / "blobs" / "a.png"
    )
    with pytest.raises(DataError, match="1 images are links to places outside it"):
        images_of(snapshot)


def test_linked_folders_are_searched_once(tmp_path):
    photos(tmp_path / "elsewhere")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "pictures").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "round").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "twice").symlink_to(tmp_path / "elsewhere")
    write_table(tmp_path / "set")
    assert images_of(tmp_path / "set") == [f"pictures/{name}" for name in NAMES]

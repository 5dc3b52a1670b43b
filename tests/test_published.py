"""Checkpoints that others publish: found by name, checked, never downloaded."""

import hashlib
import re

import pytest

import published
from conftest import ROOT
from errors import RunError
from evaluation import load_model
from published import PUBLISHED, Published, find_checkpoint, home


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_IQA_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_published_checkpoint_is_loaded_by_its_name(folder, checkpoint, monkeypatch):
    content = checkpoint.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(PUBLISHED, "a_name", Published("a_file.pth", digest))
    with pytest.raises(RunError, match=r"put its file a_file\.pth into .*home") as refusal:
        load_model("a_name", "cpu")
    assert "nothing is downloaded" in str(refusal.value)
    (folder / "a_file.pth").write_bytes(content)
    assert load_model("a_name", "cpu").config["model"] == "resnet_improved_ms_att"
    (folder / "a_file.pth").write_bytes(content[:-1])
    with pytest.raises(RunError, match=rf"a_file\.pth: is not the published .* be {digest}"):
        load_model("a_name", "cpu")


def test_a_file_is_taken_before_a_name(folder, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "a_name", Published("a_file.pth", "0" * 64))
    (folder.parent / "a_name").write_text("a file")
    assert find_checkpoint("a_name").read_text() == "a file"


def test_an_unknown_name_says_which_there_are(folder, monkeypatch):
    monkeypatch.setattr(published, "PUBLISHED", {})
    with pytest.raises(RunError, match=r"nothing: no such file, .* \(none is published yet\)"):
        load_model("nothing")
    monkeypatch.setattr(published, "PUBLISHED", {"a_name": Published("a_file.pth", "0" * 64)})
    with pytest.raises(RunError, match=r"\(one of a_name\)"):
        load_model("nothing")


def test_the_folder_is_in_the_users_cache_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("RESNET_IQA_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home() == tmp_path / "resnet_iqa"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".cache" / "resnet_iqa"


def test_the_documentation_has_the_same_table():
    page = (ROOT / "docs" / "prediction.md").read_text()
    table = page.split("## Published checkpoints")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\S+)` \| `(\S+)` \| `([0-9a-f]{64})` \|", table, re.MULTILINE)
    assert rows == [(name, *entry) for name, entry in PUBLISHED.items()]
    assert ("None has been published yet" in table) == (not PUBLISHED)

"""The notebook of docs/ runs from its first cell to its last, and is kept without outputs."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

from conftest import ROOT, SMALL

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def test_it_is_kept_without_outputs():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where it writes
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    before = {*ROOT.glob("docs/*")}
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    said = "".join(output.get("text", "") for output in outputs)
    assert "Last Test SRCC: " in said
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    tables = [output for output in outputs if "text/html" in output.get("data", {})]
    assert len(pictures) == 1 and len(tables) == 3
    (work,) = tmp_path.glob("quickstart_*")
    cards = [path.name for path in Path(work, "checkpoints").glob("*.md")]
    assert f"{SMALL}_ms_att_last_model_card.md" in cards
    assert {*ROOT.glob("docs/*")} == before

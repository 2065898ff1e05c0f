from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.filterwarnings("default")  # of the kernel's own libraries
def test_the_notebook_runs_from_a_network_in_memory_to_a_patched_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPLBACKEND")  # a notebook has its own
    shutil.copytree(EXAMPLES / "fashion_lt", tmp_path / "fashion_lt")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", 4)
    assert sum(cell.cell_type == "code" for cell in notebook.cells) == 6
    assert not any(cell.get("outputs") for cell in notebook.cells)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs: list[Any] = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = [output["data"] for output in outputs if "data" in output]
    assert sum("<table>" in each.get("text/html", "") for each in shown) == 1
    assert [kind for each in shown for kind in each if kind == "image/png"] == ["image/png"] * 2
    printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    assert "IProgress" not in str(outputs)
    shares = [float(word.rstrip("%")) for word in printed.split() if word.endswith("%")]
    assert shares[3] > shares[1] + 5  # the rare classes, patched against untouched

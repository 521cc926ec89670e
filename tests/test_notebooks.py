"""Every notebook runs from top to bottom, in a shortened copy."""

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from traitlets.config import Config

from kdx_analysis import plots
from tests.report.conftest import quick_figures

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SHORT = {
    "compare_runs": "EPOCHS, SEEDS, JOBS, IMAGES, OUT = 1, 1, 1, 3, 'out/ladder'",
    "conflict": "EPOCHS, DRAWS = 2, 39",
    "fidelity": "EPOCHS, SEEDS, JOBS, PASSES, OUT = 1, 1, 1, 6, 'out/fidelity'",
    "own_model": "EPOCHS = 2",
    "quickstart": "EPOCHS, STUDY_EPOCHS, SEEDS, JOBS, IMAGES = 1, 1, 1, 1, 3",
    "vam": "EPOCHS = 1",
}
NAMES = [path.stem for path in NOTEBOOKS]


def notebook(name: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS[0].with_stem(name), as_version=4)


@pytest.mark.parametrize("name", NAMES)
def test_shortened_copies_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has imported torch; what cells show is made in every format.

    The figures that cells draw are drawn; reports hold quick ones instead of theirs, which have
    tests of their own.
    """
    monkeypatch.chdir(tmp_path)
    for figure_name, figure in plots.FIGURES.items():
        monkeypatch.setitem(vars(plots), figure_name, figure)
    monkeypatch.setattr(plots, "FIGURES", quick_figures())
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    for cell in notebook(name).cells:
        if cell.cell_type == "code":
            parameters = "parameters" in cell.metadata.get("tags", [])
            shell.run_cell(SHORT[name] if parameters else cell.source).raise_error()
    plt.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_whole_notebooks_run(name: str, tmp_path: Path) -> None:
    NotebookClient(
        notebook(name), timeout=900, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_committed_and_name_no_machine(path: Path) -> None:
    tagged = [
        cell for cell in notebook(path.stem).cells if "parameters" in cell.metadata.get("tags", [])
    ]
    assert len(tagged) == 1
    cells = [cell for cell in notebook(path.stem).cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in cells)
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert str(Path.home()) not in path.read_text()
    assert "iopub" not in path.read_text()  # times of execution, new at every run
    assert path.stat().st_size < 600_000

"""A study and a record that were written before kinds of records were declared still load.

``study.zip`` holds, of 3 classes of digits, 2 epochs and 1 seed: teacher, students with VAM,
explainers and trees under hard and kd, without weights; a GateRecord in Parquet; and, as CSV, what
both said when they were written.
"""

import zipfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from kdx_analysis import plots
from kdx_analysis.probes import GateRecord
from kdx_analysis.records import RECORDS
from kdx_analysis.runs import RunSet
from kdx_analysis.study.step import Step
from kdx_analysis.study.study import Study

KEYS = ["run", "metric", "attention", "split"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stored")
    with zipfile.ZipFile(Path(__file__).parent / "study.zip") as archive:
        archive.extractall(out)
    return out


def test_headlines_are_what_they_were(folder: Path) -> None:
    expected = pd.read_csv(folder / "headlines.csv", keep_default_na=False, na_values=[""])
    keys = ["objective", "vam", "attention"]  # of which some are empty
    expected[keys] = expected[keys].astype(object).fillna("")
    headlines = RunSet.load(folder).to_frame()[list(expected)]
    assert len(headlines) == 69
    pd.testing.assert_frame_equal(
        headlines.set_index(KEYS).sort_index(),
        expected.set_index(KEYS).sort_index(),
        check_dtype=False,
        check_index_type=False,
        rtol=1e-12,
    )


def test_every_record_is_of_its_kind(folder: Path) -> None:
    runs = RunSet.load(folder)
    kinds = {kind for run in runs for kind in run.kinds}
    of_input_gates = {"gates_by_class", "gates_by_sample"}
    of_finished_models = {"faithfulness", "faithfulness_agreement", "affinity_through_training"}
    beside_runs = {"shift", "properties"}
    assert kinds == set(RECORDS) - of_input_gates - of_finished_models - beside_runs
    for run in runs:
        for kind in run.kinds:
            assert len(run.record(kind))


@pytest.mark.parametrize("name", ["ladder", "gates", "conflict", "tree", "vam_attention"])
def test_it_can_be_drawn(folder: Path, name: str) -> None:
    figure = plots.FIGURES[name]
    drawn, _ = figure.draw(figure.data(RunSet.load(folder)))
    assert drawn.axes


def test_its_study_is_read(folder: Path) -> None:
    config = Study.load(folder / "study.yaml").config
    assert config.probes.null_draws == 39
    assert config.probes.sections == {}


def planned(folder: Path, *changes: str) -> list[Step]:
    """What the study asks for, on the images that its runs saw."""
    study = Study.load(folder / "study.yaml", changes)
    data = RunSet.load(folder).runs[0].info["data"]
    study.dataset = SimpleNamespace(describe=lambda: data)
    return study.plan(folder)


def test_its_runs_are_found_again_and_siblings_are_added_to_them(folder: Path) -> None:
    steps = planned(folder)
    assert len(steps) == len(RunSet.load(folder))
    assert all(step.done for step in steps)
    siblings = planned(folder, "teacher.siblings=3")
    assert [step.seed for step in siblings if not step.done] == [1, 2, 3]
    waiting = [step for step in planned(folder, "teacher.seeds=2") if not step.done]
    assert [step.role for step in waiting] == ["teacher", "student", "explainer", "tree"]
    assert {step.objective.name for step in waiting[1:]} == {"kd"}


def test_runs_of_before_outputs_have_none(folder: Path) -> None:
    runs = RunSet.load(folder)
    assert [run.outputs("test") for run in runs] == [None] * len(runs)
    assert runs.teachers == (0,)


def test_a_record_in_parquet_loads(folder: Path) -> None:
    record = GateRecord.load(folder / "gate_record")
    expected = pd.read_csv(folder / "gate_record" / "frame.csv", dtype={"child": str})
    pd.testing.assert_frame_equal(record.to_frame(), expected, check_dtype=False, rtol=1e-12)

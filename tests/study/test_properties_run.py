"""kdx probe RUN --probe properties, and chosen probes alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from kdx_analysis.cli import app
from kdx_analysis.errors import KdxError
from kdx_analysis.io import read_parquet
from kdx_analysis.probes.fidelity.properties import FOOLS, IGNORES, LOOKS, Attacked
from kdx_analysis.runs import RunSet
from kdx_analysis.study.probe_run import study_of
from kdx_analysis.study.properties_run import (
    Asked,
    Properties,
    probe_properties,
    shown,
    trained_on,
    write_properties,
)
from kdx_analysis.study.study import Study
from tests import toys

DIGITS = {
    "data": "digits",
    "teacher": "digits_teacher",
    "student": "digits_student",
    "objectives": ("hard", "label_smoothing", "kd"),
    "seeds": 1,
    "siblings": 2,
    "roles": ("student", "explainer"),
    "data_options": {"per_class": 12, "val_fraction": 0.2},
    "explainer": {"experts": 2},
    "training": {"epochs": 1, "batch_size": 32, "warmup_epochs": 0},
    "probes": {**toys.SECTIONS["probes"], "affinity": False},
}
ATTACKED = Asked(Attacked(epsilon=0.2, steps=3), images=30)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> RunSet:
    out = tmp_path_factory.mktemp("digits")
    return Study(**DIGITS).run(out, report=False)


@pytest.fixture(scope="module")
def probed(digits) -> Properties:
    run = digits.filter(role="student", objective="kd").runs[0]
    study, folder = study_of(run)
    return probe_properties(run, study, folder, ATTACKED)


def test_a_student_stands_beside_teachers_and_controls(digits, probed):
    frame = probed.to_frame()
    assert set(frame["teacher"]) == {"", "own", "sibling 1", "sibling 2"}
    assert set(frame["property"]) == {LOOKS, FOOLS, IGNORES}
    columns = ["kd", "hard", "label_smoothing", "own", "sibling 1", "sibling 2", "n"]
    assert list(frame)[4:] == columns
    # what a teacher is by itself stands among its networks; it is not set beside another one
    assert frame[frame["teacher"] != ""][["own", "sibling 1"]].isna().all(axis=None)
    assert frame[frame["teacher"] == ""][columns[:-1]].notna().all(axis=None)
    assert probed.missing == ("no student of hard_T with seed 0",)


def test_own_is_the_difference_beyond_hard(probed):
    parts = probed.parts().set_index(["metric", "variant"])
    assert list(parts)[1:] == ["kd", "label_smoothing"]
    record = probed.record[probed.record["metric"] == "correlation of maps"]
    named = {name: run for run, name in probed.objectives.items()}

    def value(network: str, teacher: str) -> float:
        rows = record[(record["run"] == named[network]) & (record["teacher"] == named[teacher])]
        return float(rows["value"].item())

    def nearer(network: str) -> float:
        siblings = [value(network, "sibling 1"), value(network, "sibling 2")]
        return value(network, "own") - float(np.mean(siblings))

    expected = nearer("kd") - nearer("hard")
    assert parts.loc[("correlation of maps", "Grad-CAM"), "kd"] == pytest.approx(expected)


def test_tables_and_text_are_written(digits, probed, tmp_path):
    run = digits.filter(role="student", objective="kd").runs[0]
    study, _ = study_of(run)
    write_properties(probed, tmp_path)
    pd.testing.assert_frame_equal(read_parquet(tmp_path / "properties.parquet"), probed.record)
    assert len(pd.read_csv(tmp_path / "properties.csv")) == len(probed.to_frame())
    text = shown(probed, study)
    assert "own: nearer to its own teacher than to siblings, beyond hard" in text
    assert "missing: no student of hard_T with seed 0" in text
    assert trained_on(study) == {
        "rotation by 15°": "no",
        "mirroring": "no",  # digits are not mirrored
        "translation by 1/8": "yes",
    }


def test_an_explainer_is_compared_by_margins_with_explainers_alone(digits):
    run = digits.filter(role="explainer", objective="kd").runs[0]
    study, folder = study_of(run)
    probed = probe_properties(run, study, folder, ATTACKED)
    roles = {each.id: each.role for each in digits}
    assert {roles[each] for each in probed.record["run"]} == {"explainer", "teacher"}
    assert probed.record["n"].max() == 30
    with pytest.raises(KdxError, match="can't be chosen in an explainer"):
        probe_properties(run, study, folder, Asked(layer="body", images=30))


def test_a_teachers_run_is_refused(digits):
    run = digits.filter(role="teacher").runs[0]
    study, folder = study_of(run)
    with pytest.raises(KdxError, match="is a teacher's run"):
        probe_properties(run, study, folder, ATTACKED)


def test_the_command_runs_chosen_probes_alone(digits):
    run = digits.filter(role="explainer", objective="kd").runs[0]
    out = run.path.parents[1] / "probes" / run.id
    asked = CliRunner().invoke(app, ["probe", str(run.path), "--probe", "claims", "--split", "val"])
    assert asked.exit_code == 0, asked.output
    assert "experts are ablated" not in asked.output
    assert {path.stem for path in out.glob("*.parquet")} == {"output_conflict"}
    run = digits.filter(role="student", objective="hard").runs[0]
    out = run.path.parents[1] / "probes" / run.id
    options = ["--probe", "properties", "--epsilon", "0.1"]
    asked = CliRunner().invoke(app, ["probe", str(run.path), *options])
    assert asked.exit_code == 0, asked.output
    assert "PGD, ε = 25.5/255" in asked.output
    assert (out / "properties_own.csv").is_file()
    asked = CliRunner().invoke(app, ["probe", str(run.path), "--probe", "propertys"])
    assert isinstance(asked.exception, KdxError)
    assert "did you mean 'properties'" in str(asked.exception)

"""Corrupted test images: asked for later, nothing is trained anew, and only what lacks is computed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from kdx_analysis import plots
from kdx_analysis.errors import AbsentError, KdxError
from kdx_analysis.probes.fidelity.likeness import Likeness
from kdx_analysis.probes.fidelity.outputs import Outputs
from kdx_analysis.runs import RunSet
from kdx_analysis.runs.shifted import (
    beside,
    read_shift_outputs,
    shift_record,
    shifted,
    write_shift_outputs,
)
from kdx_analysis.study import shift_run
from tests import toys
from tests.conftest import toy_study


def asking(section: object, **changes):
    return toy_study(probes={**toys.SECTIONS["probes"], "shift": section}, **changes)


@pytest.fixture(scope="module")
def worn(tmp_path_factory) -> RunSet:
    """Students of two objectives, and the tree of explainers, asked about two corruptions."""
    out = tmp_path_factory.mktemp("worn")
    changes = {"seeds": 1, "explainer": {"experts": 2, "phase2": {}}}
    toy_study(**changes).run(out, report=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdx_analysis.study.study.train_steps", lambda *given: None)
        return asking(["noise", "rotation"], **changes).run(out, report=False)


def test_every_finished_model_is_asked_without_training(worn):
    assert {run.role for run in worn} == {"teacher", "student", "explainer", "tree"}
    for run in worn:
        record = shift_record(run)
        cells = record[["corruption", "severity"]].drop_duplicates()
        assert len(cells) == 11
        assert set(record["metric"]) == (
            {"accuracy"}
            if run.role == "teacher"
            else {"accuracy", "dark", "instance", "second_choice", "hardness", "agreement"}
        )


def test_severity_0_is_the_test_set_as_training_scored_it(worn):
    for run in worn:
        tested = run.record("metrics").query("split == 'test' and metric == 'accuracy'")["value"]
        record = shift_record(run).query("severity == 0 and metric == 'accuracy'")
        assert record["value"].item() == pytest.approx(tested.item())
        outputs = read_shift_outputs(beside(run) / "shift.safetensors")
        torch.testing.assert_close(outputs.scores["clean", 0], run.outputs("test").scores)


def test_likeness_is_that_to_the_teacher_on_the_same_images(worn):
    teacher = worn.filter(role="teacher").runs[0]
    taught = read_shift_outputs(beside(teacher) / "shift.safetensors")
    for role in ("student", "explainer"):
        run = worn.filter(role=role, objective="kd").runs[0]
        outputs = read_shift_outputs(beside(run) / "shift.safetensors")
        scores, labels = outputs.scores["noise", 3], outputs.labels
        # margins of binary subtasks stand beside log(p/(1 − p)) of the teacher
        log_p = taught.scores["noise", 3].double().log_softmax(1)
        margins = log_p - torch.log1p(-log_p.exp())
        values = Likeness(Outputs(scores, labels, True), Outputs(margins, labels, True)).values()
        row = shift_record(run).query("corruption == 'noise' and severity == 3")
        row = row.set_index("metric")
        assert set(row["teacher"]) == {"", teacher.id}
        for metric in ("second_choice", "hardness", "agreement"):
            assert row.loc[metric, "value"] == pytest.approx(values[metric].value, abs=1e-5)
        assert np.isnan(row.loc["instance", "value"])  # of three classes


def test_only_what_lacks_is_computed(worn, monkeypatch):
    out = worn.runs[0].path.parents[1]
    changes = {"seeds": 1, "explainer": {"experts": 2, "phase2": {}}}
    asked = []
    predict = shift_run.predict
    monkeypatch.setattr(shift_run, "predict", lambda *given: asked.append(1) or predict(*given))
    monkeypatch.setattr("kdx_analysis.study.study.train_steps", lambda *given: None)
    asking(["rotation", "noise"], **changes).run(out, report=False)
    assert asked == []
    run = worn.filter(role="student", objective="kd").runs[0]
    (beside(run) / "shift.parquet").unlink()
    asking(["noise"], **changes).run(out, report=False)
    assert asked == []
    assert len(shift_record(run)[["corruption", "severity"]].drop_duplicates()) == 11
    path = beside(run) / "shift.safetensors"
    whole = read_shift_outputs(path)
    some = {cell: whole.scores[cell] for cell in whole.scores if cell[0] != "noise"}
    write_shift_outputs(path, type(whole)(some, whole.labels, whole.ids, 0, whole.fingerprint))
    asking(["noise"], **changes).run(out, report=False)
    assert len(asked) == 5
    again = read_shift_outputs(path)
    assert all(torch.equal(again.scores[cell], whole.scores[cell]) for cell in whole.scores)


def test_other_images_are_asked_about_anew(worn, tmp_path):
    run = worn.filter(role="teacher").runs[0]
    stored = read_shift_outputs(beside(run) / "shift.safetensors")
    split = toys.dataset().test.subset(torch.arange(9))
    other = type(stored)({}, split.labels, split.ids, 0, stored.fingerprint)
    assert not stored.same_images(other)
    assert stored.same_images(stored)


def test_the_figure_shows_own_likeness_and_accuracy(worn):
    data = plots.FIGURES["shift"].data(worn)
    assert set(data["metric"]) == {"second_choice", "accuracy"}  # instance needs four classes
    assert set(data["corruption"]) == {"noise", "rotation"}
    kd = data.query("role == 'student' and objective == 'kd' and metric == 'second_choice'")
    assert list(kd.query("corruption == 'noise'")["severity"]) == [0, 1, 2, 3, 4, 5]


def test_runs_that_were_not_asked_are_passed_over(finished):
    with pytest.raises(AbsentError, match="shift: on in their study and run it again"):
        shifted(finished.runs)


def test_a_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "shift.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(KdxError, match="take it away, and kdx run computes it anew"):
        read_shift_outputs(path)


def test_what_cannot_be_is_refused_before_training(tmp_path):
    with pytest.raises(KdxError, match="unknown corruption 'nois'"):
        asking(["nois"]).check()
    with pytest.raises(KdxError, match="images = 2 holds no image of some of the 3 classes"):
        asking({"images": 2}).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_keys_of_runs_stand_beside(worn):
    frame = shifted(worn)
    assert set(frame["relation"]) == {"", "own"}
    assert isinstance(frame, pd.DataFrame)
    assert {"role", "objective", "seed", "run"} <= set(frame)

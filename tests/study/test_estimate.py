import pytest

from kdx_analysis.study.estimate import Tried, foreseen
from kdx_analysis.study.lessons import Lessons
from kdx_analysis.training.pace import Pace
from tests.conftest import toy_study

PACE = Pace(step=1.0, lesson=0.5, answer=0.25, taught=0.125, steps=3)
STEPS = 3 * 2  # of two epochs
ANSWERS = 0.25 * (2 * 24 + 24)  # validation after both epochs, then test
ASKED = 0.125 * (24 + 24)  # the teacher on validation and test, once a study


@pytest.mark.parametrize("limit", [2**30, 0])
def test_what_is_foreseen_of_every_run_by_hand(tmp_path, limit):
    study = toy_study(objectives=("hard", "kd"), seeds=1)
    steps = study.plan(tmp_path)
    tried = {(role, ""): Tried(PACE, 7.0, 1.0) for role in ("teacher", "student", "explainer")}
    rows = foreseen(study, steps, tried, Lessons.of(tmp_path, steps, limit))
    lessons = [0.5 * STEPS, 0.0 if limit else 0.5 * STEPS]  # the student's, the explainer's
    teacher = [0.0, ASKED, 0.0, *lessons]
    assert [row["teacher"] for row in rows] == teacher
    assert all(row["training"] == STEPS and row["scoring"] == ANSWERS for row in rows)
    assert {(row["probes"], row["other"]) for row in rows} == {(7.0, 1.0)}


def test_an_estimate_is_of_the_runs_that_wait(finished, tmp_path):
    study = toy_study(seeds=1, objectives=("kd",))
    whole = study.estimate(jobs=2)
    assert whole.table["runs"].to_dict() == {"teacher": 1, "student": 1, "explainer": 1}
    assert (whole.table.drop(columns="runs") >= 0).all(axis=None)
    assert (whole.table["training"] > 0).all()
    assert whole.table.loc["explainer", "probes"] > 0
    assert 0 < whole.seconds <= whole.to_frame()["together"].sum() + 1e-9
    assert "2 at a time" in str(whole)
    assert str(finished.study.estimate(finished.out)) == "nothing is left to train"

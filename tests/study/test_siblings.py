import pytest
import torch

from kdx_analysis.config import StudyConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.report.tables import teacher_scores
from kdx_analysis.runs import Run, RunSet
from kdx_analysis.study import steps as stepping
from kdx_analysis.study.study import Study
from kdx_analysis.training import predict
from kdx_analysis.training.checkpoints import load_weights
from tests import toys
from tests.conftest import toy_study

ONE_EPOCH = {"epochs": 1, "batch_size": 16, "warmup_epochs": 0}
SMALL = {
    "roles": ["student"],
    "seeds": 1,
    "training": ONE_EPOCH,
    "teacher_training": ONE_EPOCH,
}


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    monkeypatch.setattr("kdx_analysis.report.Report.save_html", lambda self, out: out)


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> tuple[Study, RunSet]:
    """Two teachers with students of their own, and a sibling of both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdx_analysis.report.Report.save_html", lambda self, out: out)
        study = toy_study(**SMALL, teacher_seeds=2, siblings=1)
        return study, study.run(tmp_path_factory.mktemp("several"))


def test_teachers_and_siblings_come_first_and_what_needs_none_is_trained_once(several):
    study, runs = several
    out = runs.runs[0].path.parents[1]
    assert [step.title for step in study.plan(out)] == [
        "teacher seed 0",
        "teacher seed 1",
        "teacher seed 2 (sibling)",
        "student hard seed 0",
        "student kd seed 0 of teacher 0",
        "student kd seed 0 of teacher 1",
    ]
    assert len({run.id for run in runs}) == len(runs) == 6
    assert [(run.objective, run.teacher) for run in runs.filter(role="student")] == [
        ("hard", 0),
        ("kd", 0),
        ("kd", 1),
    ]
    assert [run.teacher for run in runs.filter(role="teacher")] == [0, 1, 2]
    places = [score.place for score in teacher_scores(runs)]
    assert places == ["teacher, seed 0", "teacher, seed 1", "sibling, seed 2"]


def test_a_student_agrees_with_the_teacher_that_it_had(several):
    _, runs = several
    for run in runs.filter(role="student", objective="kd"):
        (teacher,) = runs.filter(role="teacher", seed=run.teacher)
        student, its = run.outputs("test"), teacher.outputs("test")
        agreed = (student.scores.argmax(dim=1) == its.scores.argmax(dim=1)).double().mean().item()
        metrics = run.record("metrics").query("split == 'test' and metric == 'agreement'")
        assert metrics["value"].item() == pytest.approx(agreed)


def test_a_loss_that_is_scaled_to_kd_has_a_student_for_every_teacher(tmp_path):
    scaled = {"name": "hard_T", "scale_to": "kd"}
    plan = toy_study(**SMALL, objectives=("hard", scaled), teacher_seeds=3).plan(tmp_path)
    assert [step.teacher.seed for step in plan[3:]] == [0, 0, 1, 2]
    assert len({step.path for step in plan}) == 7


def test_siblings_are_added_to_a_finished_study_and_nothing_else_is_trained(tmp_path, monkeypatch):
    before = toy_study(**SMALL).run(tmp_path)
    trained = []
    train = stepping.train_unit
    monkeypatch.setattr(
        stepping, "train_unit", lambda *unit: trained.append(unit[1][0].title) or train(*unit)
    )
    after = toy_study(**SMALL, siblings=2).run(tmp_path)
    assert trained == ["teacher seed 1 (sibling)", "teacher seed 2 (sibling)"]
    assert {run.id for run in before} < {run.id for run in after}
    assert [run.seed for run in after.filter(role="teacher")] == [0, 1, 2]
    assert len(toy_study(**SMALL).run(tmp_path)) == len(before)
    teachers = after.filter(role="teacher")
    assert len({(run.path / "model.safetensors").read_bytes() for run in teachers}) == 3


@pytest.mark.parametrize("selection", ["last", "best"])
def test_outputs_are_what_the_figures_are_computed_from(tmp_path, selection):
    training = {**ONE_EPOCH, "epochs": 3, "selection": selection}
    study = toy_study(**SMALL | {"training": training}, objectives=("kd",))
    data = toys.dataset()
    for run in study.run(tmp_path):
        model = study.build(run.role)
        load_weights(run.path / "model.safetensors", model)
        kind = {"teacher": "logits", "student": "margins"}[run.role]
        for name, split in (("val", data.val), ("test", data.test)):
            kept = run.outputs(name)
            assert kept.scores.dtype == torch.float32
            torch.testing.assert_close(kept.scores, predict(model, split, data))
            assert kept.labels.equal(split.labels)
            assert kept.ids.equal(split.ids)
            assert (kept.fingerprint, kept.kind) == (data.describe()["fingerprint"], kind)
            right = (kept.scores.argmax(dim=1) == kept.labels).double().mean().item()
            recorded = run.at_selected("metrics").query("split == @name and metric == 'accuracy'")
            assert recorded["value"].item() == right
    with pytest.raises(KdxError, match="no run keeps outputs on 'train'; ask for val or test"):
        run.outputs("train")


def test_outputs_of_an_explainer_and_of_a_given_teacher(finished, tmp_path):
    explainer = finished.runs.filter(role="explainer").runs[0].outputs("val")
    assert (explainer.kind, tuple(explainer.scores.shape)) == ("margins", (24, 3))
    teacher = toys.RowTeacher()
    runs = toy_study(**SMALL, teacher=teacher, objectives=("kd",)).run(tmp_path)
    data = toys.dataset()
    (given,) = runs.filter(role="teacher")
    assert given.outputs("test").scores.equal(predict(teacher, data.test, data))


def siblings_of(study: Study) -> list[bool]:
    """Whether each given sibling is one by the user's word alone."""
    return [sibling.declared for sibling in study.given_siblings]


def test_a_sibling_by_the_directory_of_its_run_is_held_against_the_own_teacher(several, tmp_path):
    _, runs = several
    first, second, third = (run.path for run in runs.filter(role="teacher"))
    study = toy_study(**SMALL, siblings=[second, third / "model.safetensors"])
    assert siblings_of(study) == [False, True]
    titles = [step.title for step in study.plan(tmp_path)[:3]]
    assert titles == ["teacher", "teacher seed 1 (sibling)", "teacher seed 2 (sibling)"]
    by_path = toy_study(**SMALL, teacher=first, siblings=[second])
    assert siblings_of(by_path) == [False]
    bare = toy_study(
        **SMALL, teacher=f"digits_teacher@{first / 'model.safetensors'}", siblings=[second]
    )
    assert siblings_of(bare) == [True]


def test_given_siblings_are_asked_for_their_outputs(tmp_path):
    modules = [toys.RowTeacher(scale) for scale in (6.0, 7.0)]
    study = toy_study(**SMALL, teacher=toys.RowTeacher(), siblings=modules, objectives=("kd",))
    runs = study.run(tmp_path)
    teachers = runs.filter(role="teacher")
    assert [run.info.get("declared", False) for run in teachers] == [False, True, True]
    data = toys.dataset()
    for run, model in zip(teachers.runs[1:], modules, strict=True):
        assert run.outputs("test").scores.equal(predict(model, data.test, data))
    assert [score.place for score in teacher_scores(runs)] == [
        "teacher",
        "sibling, seed 1",
        "sibling, seed 2",
    ]


def test_what_is_no_sibling_is_refused_with_the_field_and_both_values(several, tmp_path):
    first, second, _ = (run.path for run in several[1].filter(role="teacher"))
    lr = {**ONE_EPOCH, "lr": 0.5}
    for options, message in (
        ({"siblings": [second], "teacher_training": lr}, r"training\.lr is 0\.002 there and 0\.5"),
        ({"siblings": [second], "teacher": "digits_student"}, "model is 'digits_teacher' there"),
        (
            {"siblings": [second], "data": toys.dataset(val=toys.split("val", 8, 48, seed=9))},
            "split is '",
        ),
        ({"siblings": [first]}, "was trained with seed 0, which is that of the own teacher too"),
        ({"siblings": [second, second]}, "was trained with seed 1, which is that of sibling"),
        ({"siblings": [first], "teacher": first}, "seed 0, which is that of the own teacher"),
        ({"siblings": [tmp_path / "none"]}, "cannot load weights from"),
    ):
        study = toy_study(**SMALL | options)
        with pytest.raises(KdxError, match=message):
            study.run(tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_two_siblings_of_the_same_weights_are_one(tmp_path):
    same = [toys.RowTeacher(6.0), toys.RowTeacher(6.0)]
    with pytest.raises(KdxError, match=r"sibling 2 \(RowTeacher\) has the weights of sibling 1"):
        toy_study(**SMALL, teacher=toys.RowTeacher(), siblings=same).check()
    with pytest.raises(KdxError, match="has the weights of the own teacher"):
        toy_study(**SMALL, teacher=toys.RowTeacher(), siblings=[toys.RowTeacher()]).check()


def test_nothing_is_trained_beside_a_given_teacher():
    message = r"teacher\.siblings is 3, but the teacher is given, .* give the paths of siblings"
    section = {"model": "digits_teacher", "path": "t.pt", "siblings": 3}
    study = {"name": "x", "data": {"name": "digits"}, "student": "s", "objectives": ["kd"]}
    with pytest.raises(KdxError, match=message):
        StudyConfig.parse({**study, "teacher": section})
    with pytest.raises(KdxError, match=message):
        toy_study(teacher=toys.RowTeacher(), siblings=3)
    with pytest.raises(KdxError, match=r"teacher\.seeds is 2, but the teacher is given"):
        toy_study(teacher=toys.RowTeacher(), teacher_seeds=2)
    with pytest.raises(KdxError, match="greater than or equal to 0"):
        toy_study(siblings=-1)


def test_a_run_tells_which_teacher_taught_it(several):
    _, runs = several
    (run,) = runs.filter(role="student", objective="kd", teacher=1)
    assert Run.load(run.path).info["teacher"] == 1
    hard = runs.filter(role="student", objective="hard").runs[0]
    assert (hard.taught, run.taught) == (False, True)

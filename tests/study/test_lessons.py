import sys
from collections import Counter
from dataclasses import replace

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from kdx_analysis.study.lessons import FOLDER, Lessons
from kdx_analysis.training.loop import predict
from tests import toys
from tests.conftest import toy_study
from tests.study.test_study import assert_same_results

ONE_TEACHER = {"epochs": 1, "batch_size": 16}


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    monkeypatch.setattr("kdx_analysis.report.Report.save_html", lambda self, out: out)


@pytest.fixture
def asked(monkeypatch) -> Counter:
    """How often a model of each class is asked about all images of a split, wherever from."""
    counts: Counter = Counter()

    def counted(model, split, *rest):
        counts[type(getattr(model, "module", model)).__name__, split.name] += 1
        return predict(model, split, *rest)

    for name, module in list(sys.modules.items()):
        if name.startswith("kdx_analysis") and getattr(module, "predict", None) is predict:
            monkeypatch.setattr(module, "predict", counted)
    return counts


def test_every_model_is_asked_about_every_split_once(tmp_path, asked):
    study = toy_study(teacher=toys.RowTeacher())
    study.check = lambda: None  # which looks at validation in several normalisations
    study.run(tmp_path)
    runs = 4  # two objectives and two seeds, of each role
    assert asked == {
        ("RowTeacher", "val"): 1,
        ("RowTeacher", "test"): 1,
        ("RowTeacher", "train"): 2 * 2,  # a few images in each of four runs: are they logits?
        ("StagedNet", "val"): 2 * runs,
        ("StagedNet", "test"): runs,
        ("HME", "val"): 2 * runs,
        ("HME", "test"): runs,
    }


def test_a_teacher_that_is_trained_leaves_its_outputs_to_its_students(tmp_path, asked):
    study = toy_study(seeds=1, roles=["student"], objectives=["kd"])
    study.run(tmp_path)
    assert asked["StagedNet", "val"] == 2 + 2
    assert asked["StagedNet", "test"] == 1 + 1


def test_a_teacher_trained_in_another_order_of_memory_is_asked_once_more(tmp_path, asked):
    training = {**toys.SECTIONS["training"], "channels_last": True}
    study = toy_study(roles=["student"], objectives=["hard"], training=training)
    study.run(tmp_path)
    assert asked["StagedNet", "test"] == 1 + 1 + 2


def test_kept_logits_change_nothing_and_are_gone_afterwards(finished, tmp_path, monkeypatch):
    seen = []
    forget = Lessons.forget

    def looked(self, step, others):
        seen.append((step.role, sorted(each.name for each in self.folder.glob("teacher*"))))
        forget(self, step, others)

    monkeypatch.setattr(Lessons, "forget", looked)
    study = toy_study()
    assert study.config.keep_teacher == 2**30
    assert_same_results(study.run(tmp_path / "kept"), finished.runs)
    assert ("explainer", ["teacher0-seed0"]) in seen
    assert seen[-1] == ("explainer", ["teacher0-seed1"])
    assert not (tmp_path / "kept" / FOLDER).exists()
    study.config = study.config.override(["keep_teacher=0"])
    seen.clear()
    assert_same_results(study.run(tmp_path / "asked"), finished.runs)
    assert not any(folders for _, folders in seen)


def test_logits_are_kept_only_where_several_runs_ask_for_them(tmp_path):
    plan = toy_study().plan(tmp_path)
    lessons = Lessons.of(tmp_path, plan, 10**6)
    assert lessons.shared == {(0, 0), (0, 1)}
    shelf = lessons.shelf(plan[-1])
    assert (shelf.path, shelf.limit) == (tmp_path / FOLDER / "teacher0-seed1", 10**6)
    assert lessons.shelf(plan[0]) is None
    alone = [step for step in plan if step.role != "explainer"]
    assert not Lessons.of(tmp_path, alone, 10**6).shared
    assert replace(lessons, limit=0).shelf(plan[-1]) is None


def test_what_a_killed_process_left_is_not_read(tmp_path, monkeypatch):
    def killed(epoch, model):
        raise KeyboardInterrupt

    options = {"objectives": ("kd", "kd_shuffled"), "seeds": 1, "teacher": toys.RowTeacher()}
    study = toy_study(**options, callbacks=[killed])
    with monkeypatch.context() as patch:
        patch.setattr(Lessons, "close", lambda self: None)  # as where the machine goes down
        with pytest.raises(KeyboardInterrupt):
            study.run(tmp_path / "killed")
    (left,) = (tmp_path / "killed" / FOLDER).glob("teacher*/*.safetensors")
    # Whole, with the right header, and of other images: as where the middle ones have changed.
    with safe_open(left, "pt") as file:
        logits, header = file.get_tensor("logits"), file.metadata()
    save_file({"logits": -logits}, left, header)
    study = toy_study(**options)
    assert_same_results(study.run(tmp_path / "killed"), study.run(tmp_path / "whole"))


def test_nothing_is_left_where_a_study_stops(tmp_path):
    def stops(epoch, model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy_study(teacher=toys.RowTeacher(), callbacks=[stops]).run(tmp_path)
    assert not (tmp_path / FOLDER).exists()

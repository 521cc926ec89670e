"""Runs of a study that are trained together: their names, their results, and going on."""

import shutil

import pytest
import torch

from kdx_analysis.errors import KdxError
from kdx_analysis.runs import Run
from kdx_analysis.study import steps as stepping
from kdx_analysis.study.groups import units
from kdx_analysis.training.checkpoints import read_state
from tests import toys
from tests.conftest import toy_study

TOGETHER = 3


def study(**changes):
    explainer = {"experts": 2, "phase2": {"weights": "redrawn"}}
    return toy_study(explainer=explainer, **changes)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    study().run(folder, together=TOGETHER, report=False)
    return folder


def test_groups_are_of_one_role_seed_after_seed(tmp_path):
    groups = study().groups(tmp_path, TOGETHER)
    titles = [[step.title for step in unit] for unit in units(groups.planned)]
    assert [unit for unit in titles if len(unit) > 1] == [
        ["student hard seed 0", "student kd seed 0", "student hard seed 1"],
        ["explainer hard seed 0", "explainer kd seed 0", "explainer hard seed 1"],
    ]
    assert sorted(title for unit in titles for title in unit) == sorted(
        step.title for step in study().plan(tmp_path)
    )
    assert groups.lines() == [
        "6 runs trained together, in 2 groups of 3",
        "1 alone: teachers are",
        "4 alone: which experts a tree has is known when its explainer is trained",
        "2 alone: no other of its architecture is left",
    ]


def test_a_run_alone_keeps_its_name_and_one_of_a_group_and_its_tree_get_another(tmp_path):
    alone = {step.title: step for step in study().plan(tmp_path)}
    for step in study().plan(tmp_path, TOGETHER):
        other = alone[step.title]
        grown_on_group = step.role == "tree" and step.explainer != other.explainer
        assert (step.path == other.path) is not (bool(step.together) or grown_on_group)
        assert step.config == other.config
        if step.together:
            assert other.path.name in step.together


def test_more_seeds_change_no_group_that_is_full(tmp_path):
    few, many = study(seeds=3), study(seeds=4)
    full = {step.path for step in few.plan(tmp_path, TOGETHER) if len(step.together) == TOGETHER}
    assert full <= {step.path for step in many.plan(tmp_path, TOGETHER)}
    assert len(full) == 12


def test_what_can_not_be_trained_together_says_why(tmp_path):
    section = {**toys.SECTIONS["training"], "precision": "16-mixed"}
    assert any("overflow" in line for line in study(training=section).groups(tmp_path, 2).lines())
    lines = study(objectives=("hard", "fitnet")).groups(tmp_path, 2).lines()
    assert any("'fitnet' is no target function" in line for line in lines)
    noisy = toy_study(explainer={"experts": 2, "gumbel": True}).groups(tmp_path, 2).lines()
    assert any("alone: HME can't be trained together" in line for line in noisy)
    with pytest.raises(KdxError, match="together = 0 should be 1"):
        study().plan(tmp_path, 0)


def test_runs_together_are_the_runs_alone(out, tmp_path):
    study().run(tmp_path, report=False)
    alone = {step.title: Run.load(step.path) for step in study().plan(tmp_path)}
    for step in study().plan(out, TOGETHER):
        if not step.together:
            continue
        run, other = Run.load(step.path), alone[step.title]
        assert run.keys == {**other.keys, "run": run.id}
        assert run.info["config"] == other.info["config"]
        assert run.info["probe_sets"] == other.info["probe_sets"]
        assert sorted(run.info["together"]["group"]) == sorted(step.together)
        assert len(run.info["together"]["trained"]) == 3
        assert "together" not in other.info
        mine, its = (read_state(each.path / "model.safetensors") for each in (run, other))
        assert mine.keys() == its.keys()
        for name, tensor in mine.items():
            # 6 steps of AdamW at most, whose steps are of one size whatever the gradient.
            assert torch.allclose(tensor.float(), its[name].float(), atol=2e-3, rtol=2e-2)
        kinds = [{path.stem for path in (each.path / "records").iterdir()} for each in (run, other)]
        assert kinds[0] == kinds[1]
        for kind in kinds[0]:
            a, b = run.record(kind), other.record(kind)
            assert a.shape == b.shape
            assert list(a.columns) == list(b.columns)
        losses = [r.record("metrics").query("metric == 'loss'")["value"] for r in (run, other)]
        assert losses[0].tolist() == pytest.approx(losses[1].tolist(), rel=1e-3)


def test_what_is_done_stays_and_the_rest_of_its_group_is_trained(out, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)
    group = [s for s in study().plan(folder, TOGETHER) if s.role == "student" and s.together]
    for step in group[1:]:
        shutil.rmtree(step.path)
    trained = []
    train = stepping.train_unit
    monkeypatch.setattr(
        stepping, "train_unit", lambda *args: trained.append(list(args[1])) or train(*args)
    )
    study().run(folder, together=TOGETHER, report=False)
    assert trained == [group[1:]]
    assert Run.load(group[1].path).info["together"]["trained"] == [s.path.name for s in group[1:]]


def test_a_group_trains_in_another_process_too(tmp_path):
    small = toy_study(roles=["student"], seeds=2)
    small.run(tmp_path, together=2, jobs=2, report=False)
    assert all(step.done for step in small.plan(tmp_path, 2))


def test_where_one_fails_the_others_are_written(tmp_path, monkeypatch):
    from kdx_analysis.training.loop import Training

    check = Training.check

    def failing(self, loss, epoch):
        failed = self.objective.config.name == "kd" and self.seed == 1
        check(self, float("nan") if failed else loss, epoch)

    monkeypatch.setattr(Training, "check", failing)
    small = toy_study(roles=["student"])
    with pytest.raises(KdxError, match="student kd seed 1: the loss of objective 'kd' is nan"):
        small.run(tmp_path, together=4, report=False)
    done = {step.title: step.done for step in small.plan(tmp_path, 4)}
    assert not done.pop("student kd seed 1")
    assert all(done.values())

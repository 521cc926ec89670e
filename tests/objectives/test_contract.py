from pathlib import Path

import pytest
import torch

from kdx_analysis.config import ObjectiveConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.objectives import OBJECTIVES, Objective, check_objectives, rungs, target
from kdx_analysis.runs.comparable import ladders
from tests.conftest import toy_study


@pytest.fixture
def top2():
    """A rung that is declared in somebody's own file, between kd_shuffled and kd."""

    @target(
        "kd_top2",
        title="control: the two highest targets",
        adds=("ranking",),
        follows="kd_shuffled",
        rung=True,
    )
    def kd_top2(cut, labels, generator):
        return torch.where(cut >= cut.topk(2, dim=1).values[:, -1:], cut, 0)

    yield kd_top2
    OBJECTIVES.forget("kd_top2")


def test_a_rung_declared_later_stands_where_it_says_and_trains(top2):
    assert [rung.name for rung in rungs()][-3:] == ["kd_shuffled", "kd_top2", "kd"]
    which = Objective(ObjectiveConfig(name="kd_top2"))
    assert (which.distils, which.needs_teacher) == (True, True)
    margins, teacher = torch.zeros(2, 4), torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3]])
    terms = which.terms(margins, torch.tensor([0, 3]), teacher, torch.Generator())
    assert list(terms) == ["hard", "distillation"]
    assert OBJECTIVES["kd_top2"].summary == "control: the two highest targets; ranking"
    assert toy_study(objectives=["hard", "kd_top2", "kd"]).config.objectives[1].name == "kd_top2"


@pytest.mark.parametrize(
    ("objective", "match"),
    [
        ("kd_flatt", r"unknown objective 'kd_flatt'; did you mean 'kd_flat'.*objectives\.1"),
        ({"name": "kd", "options": {"beta": 1}}, "'kd' has no options; take 'beta' out"),
    ],
)
def test_names_and_options_are_checked_before_training(objective, match):
    with pytest.raises(KdxError, match=match):
        toy_study(objectives=["hard", objective])
    config = ObjectiveConfig.model_validate(objective)
    with pytest.raises(KdxError, match=match.partition(".*")[0]):
        check_objectives([config])


def test_nothing_is_drawn_from_torchs_own_random_state_by_the_ladder():
    before = torch.get_rng_state()
    for rung in rungs():
        Objective(ObjectiveConfig(name=rung.name)).terms(
            torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(2, 3), torch.Generator()
        )
    assert torch.equal(torch.get_rng_state(), before)


def test_a_users_own_rung_and_distiller_go_through_a_study(tmp_path):
    objectives = [
        "kd_shuffled",
        "mine_top2",
        {"name": "mine_margins", "options": {"weight": 2}},
        "kd",
    ]
    study = toy_study(
        objectives=objectives, seeds=1, extensions=[Path(__file__).with_name("mine.py")]
    )
    try:
        runs = study.run(tmp_path, jobs=2, report=False)
        assert runs.objectives == ("kd_shuffled", "mine_top2", "kd", "mine_margins weight=2")
        (run,) = runs.filter(role="explainer", objective="mine_margins weight=2")
        assert set(run.record("conflict")["term"]) == {"hard", "margins", "objective"}
        assert list(ladders(runs)[0]) == ["kd_shuffled", "mine_top2", "kd", "mine_margins"]
    finally:
        for name in ("mine_top2", "mine_margins"):
            OBJECTIVES.forget(name)


def test_what_a_rung_adds_is_a_tuple():
    with pytest.raises(KdxError, match="objective 'x' adds 'ranking', which is text"):
        target("x", title="x", adds="ranking")(lambda cut, labels, generator: cut)

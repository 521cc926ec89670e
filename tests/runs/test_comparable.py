import pytest

from kdx_analysis.config import VAMConfig
from kdx_analysis.errors import AbsentError
from kdx_analysis.runs import arm_contrasts, arms
from tests.planted_arms import SETTINGS, write_arms


def contrasts(folder, settings):
    runs = write_arms(folder, {"kd": {arm: [0.5] for arm in settings}}, settings)
    return [(contrast.title, contrast.adds) for contrast in arm_contrasts(runs)]


def test_every_arm_against_the_one_without_vam_and_the_entropy_term_alone(tmp_path):
    assert contrasts(tmp_path, SETTINGS) == [
        ("vam − plain", "VAM"),
        ("vam_entropy − plain", "VAM and its entropy term"),
        ("vam_entropy − vam", "the entropy term alone"),
    ]


def test_arms_that_all_have_vam_are_told_apart_by_their_settings(tmp_path):
    growing = VAMConfig.model_validate({"blocks": 2, "gamma": {"schedule": "linear", "end": 0.2}})
    assert contrasts(
        tmp_path, {"2": VAMConfig(blocks=2), "3": VAMConfig(blocks=3), "γ": growing}
    ) == [
        ("3 − 2", "blocks 3 instead of 2"),
        ("γ − 2", "the entropy term alone"),
    ]


def test_the_arm_without_vam_is_the_reference_whatever_its_name(tmp_path):
    assert contrasts(tmp_path, {"a": VAMConfig(blocks=3), "without": None}) == [
        ("a − without", "VAM")
    ]


def test_the_arm_without_vam_is_the_reference_where_the_first_objective_lacks_it(tmp_path):
    runs = write_arms(tmp_path, {"hard": {"vam": [0.5]}, "kd": {"plain": [0.5], "vam": [0.5]}})
    assert [contrast.title for contrast in arm_contrasts(runs)] == ["vam − plain"]


def test_runs_of_no_two_arms(tmp_path):
    runs = write_arms(tmp_path, {"kd": {"plain": [0.5, 0.6]}})
    with pytest.raises(AbsentError, match="the 3 runs hold no two arms of VAM"):
        arms(runs)


def test_runs_are_paired_by_arm(tmp_path):
    runs = write_arms(tmp_path, {"kd": {"plain": [0.5, 0.6], "vam": [0.52, 0.65]}})
    table = runs.values("accuracy", by="vam", role="student")
    assert table.to_numpy().tolist() == [[0.5, 0.52], [0.6, 0.65]]
    effect = runs.paired("accuracy", "vam", "plain", by="vam", role="student")
    assert effect.differences == pytest.approx((0.02, 0.05))

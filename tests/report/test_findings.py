import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdx_analysis.report.findings import contrasts, find, verdict
from kdx_analysis.runs import Paired

FULL = ("hard", "hard_T", "kd_flat", "kd_shuffled", "kd", "label_smoothing")


def named(rungs):
    return [(c.a, c.b, c.adds) for c in contrasts({rung: rung for rung in rungs})]


def paired(n, mean, low, high):
    return Paired(n, mean, low, high, (mean,) * n, math.nan)


def test_contrasts_of_the_whole_ladder():
    assert named(FULL) == [
        ("kd", "kd_shuffled", "class structure"),
        ("kd_shuffled", "hard", "unevenness, softness, temperature and loss scale"),
        ("kd_shuffled", "kd_flat", "unevenness"),
        ("kd_flat", "hard_T", "softness"),
        ("hard_T", "hard", "temperature and loss scale"),
        ("kd", "hard", "all of KD: includes temperature and softness"),
        ("kd", "label_smoothing", "includes temperature and softness"),
    ]


@pytest.mark.parametrize(
    ("rungs", "first"),
    [
        (("hard", "hard_T", "kd_flat", "kd"), ("kd", "kd_flat", "class structure and unevenness")),
        (("hard", "hard_T", "kd"), ("kd", "hard_T", "everything but temperature and loss scale")),
        (("hard", "kd_shuffled", "kd"), ("kd", "kd_shuffled", "class structure")),
        (("hard", "kd"), ("kd", "hard", "all of KD: includes temperature and softness")),
        (("hard", "hard_T"), ("hard_T", "hard", "temperature and loss scale")),
    ],
)
def test_the_nearest_control_that_was_run(rungs, first):
    assert named(rungs)[0] == first


def test_one_rung_alone_compares_with_nothing():
    assert named(("hard",)) == named(("hard", "label_smoothing")) == []
    assert named(("kd", "label_smoothing")) == [
        ("kd", "label_smoothing", "includes temperature and softness")
    ]


def test_only_a_control_attributes():
    labels = {rung: rung for rung in ("hard", "label_smoothing", "kd")}
    assert not any(contrast.attributes for contrast in contrasts(labels))
    assert [c.b for c in contrasts({r: r for r in FULL}) if c.attributes] == ["kd_shuffled"]


@pytest.mark.parametrize(
    ("effect", "expected"),
    [
        (paired(3, -0.5, -0.6, -0.4), "lowers"),
        (paired(3, 0.5, 0.4, 0.6), "raises"),
        (paired(3, 0.01, -0.02, 0.04), "no difference"),
        (paired(3, 0.02, -0.02, 0.06), "undecided"),
        (paired(3, 0.02, 0.01, 0.03), "raises"),
        (paired(1, 0.5, math.nan, math.nan), "one seed"),
        (paired(3, 0.2, 0.2, 0.2), "undecided"),
        (paired(3, 0.0, 0.0, 0.0), "no difference"),
        (None, "not measured"),
    ],
)
def test_verdict(effect, expected):
    assert verdict(effect, margin=0.05) == expected


def test_without_hard_runs_nothing_is_no_difference():
    assert verdict(paired(3, 0.0, -0.001, 0.001), margin=math.nan) == "undecided"


def test_effect_interval_and_margin_against_an_independent_computation():
    rng = np.random.default_rng(0)
    seeds = [3, 5, 8, 9]
    values = {
        name: pd.DataFrame(
            {rung: rng.normal(size=4) for rung in ("hard", "hard_T", "kd")}, index=seeds
        )
        for name in ("severity", "conflict_rate", "accuracy")
    }
    found = find(values, {rung: rung for rung in ("hard", "hard_T", "kd")})
    chosen = next(f for f in found if f.metric == "severity" and f.contrast.title == "kd − hard_T")
    differences = values["severity"]["kd"] - values["severity"]["hard_T"]
    for decision, family in (
        (chosen.alone, 2),
        (chosen.quotable, 2 * 3),
    ):  # metrics asked about; times contrasts
        low, high = stats.t.interval(
            1 - 0.05 / family, 3, differences.mean(), stats.sem(differences)
        )
        effect = decision.effect
        assert (effect.mean, effect.low, effect.high) == pytest.approx(
            (differences.mean(), low, high)
        )
        assert decision.confidence == pytest.approx(1 - 0.05 / family)
    assert chosen.effect.n == 4
    assert chosen.margin == pytest.approx(0.1 * abs(values["severity"]["hard"].mean()))
    assert {f.verdict for f in found if f.metric == "accuracy"} == {""}


def test_pairs_are_matched_by_seed_and_missing_values_left_out():
    table = pd.DataFrame({"hard": [1.0, np.nan, 3.0], "kd": [2.0, 5.0, np.nan]}, index=[0, 1, 2])
    (finding,) = find({"severity": table}, {"hard": "hard", "kd": "kd"})
    assert finding.effect.n == 1
    assert finding.effect.mean == 1.0
    assert finding.verdict == "one seed"

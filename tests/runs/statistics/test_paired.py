import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdx_analysis.errors import KdxError
from kdx_analysis.runs.statistics.paired import by_seed, effects


def table(seeds: int, **columns: float) -> pd.DataFrame:
    """Columns that lie their value above ``hard``, each with noise of its own."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0.5, 0.1, size=seeds)
    values = {
        "hard": hard,
        **{name: hard + step + rng.normal(0, 0.01, seeds) for name, step in columns.items()},
    }
    return pd.DataFrame(values, index=pd.RangeIndex(seeds, name="seed"))


def test_intervals_are_bonferronis_and_scipys():
    values = table(4, kd=0.1, kd_flat=0.0, hard_T=0.02)
    found = effects(values, "hard")
    assert [(effect.a, effect.b) for effect in found] == [
        ("kd", "hard"),
        ("kd_flat", "hard"),
        ("hard_T", "hard"),
    ]
    for effect in found:
        theirs = stats.ttest_rel(values[effect.a], values["hard"]).confidence_interval(1 - 0.05 / 3)
        assert (effect.difference.low, effect.difference.high) == pytest.approx(
            (theirs.low, theirs.high)
        )
        assert effect.confidence == pytest.approx(1 - 0.05 / 3)
    assert [effect.difference.excludes_zero for effect in found] == [True, False, False]


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_no_p_value_below_six_seeds(seeds):
    assert all(
        math.isnan(effect.p) for effect in effects(table(seeds, kd=0.1, kd_flat=0.0), "hard")
    )


def test_p_values_are_holms_on_paired_t():
    values = table(10, kd=0.1, kd_flat=0.004)
    raw = [stats.ttest_rel(values[a], values["hard"]).pvalue for a in ("kd", "kd_flat")]
    small, large = sorted(raw)
    expected = [min(1, 2 * small), max(2 * small, large)]
    assert sorted(effect.p for effect in effects(values, "hard")) == pytest.approx(expected)


def test_missing_seeds_and_columns_count_in_no_comparison():
    values = table(10, kd=0.1, kd_flat=0.0, none=0.0)
    values.loc[5:, "kd_flat"] = math.nan
    values["none"] = math.nan
    kd, flat = effects(values, "hard")
    assert (kd.difference.n, flat.difference.n) == (10, 5)
    assert kd.confidence == flat.confidence == 0.975
    assert math.isnan(flat.p)
    assert kd.p == pytest.approx(stats.ttest_rel(values["kd"], values["hard"]).pvalue)


def test_a_single_column_has_no_effect():
    assert effects(table(3), "hard") == ()


def test_several_pairs_of_a_seed_are_one():
    values = pd.concat({"kd": table(3, vam=0.1), "hard": table(3, vam=0.3)}, names=["objective"])
    seeds = by_seed(values)
    assert len(seeds) == 3
    (effect,) = effects(values, "hard")
    assert effect.difference.n == 3
    assert effect.difference.mean == pytest.approx((values["vam"] - values["hard"]).mean())


def test_a_seed_that_lacks_an_objective_does_not_shift_the_mean():
    values = pd.concat({"kd": table(3, vam=0.1), "hard": table(3, vam=0.3)}, names=["objective"])
    values.loc[("kd", 2), "vam"] = math.nan
    (effect,) = effects(values, "hard")
    expected = (values["vam"] - values["hard"]).drop(2, level="seed").mean()
    assert (effect.difference.n, effect.difference.mean) == (2, pytest.approx(expected))
    values.loc[("hard", [0, 1]), "vam"] = math.nan
    with pytest.raises(KdxError, match="no seed has all of kd, hard; filter the runs by objective"):
        by_seed(values)


def test_the_same_difference_in_every_seed_decides_nothing():
    values = pd.DataFrame({"hard": [0.0] * 6, "kd": [0.1] * 6}, index=pd.RangeIndex(6, name="seed"))
    (effect,) = effects(values, "hard")
    assert not effect.difference.excludes_zero
    assert math.isnan(effect.p)

"""Spearman's correlation over runs, beside one dealt anew."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kdx_analysis.runs.statistics.correlation import rank_correlation


def test_it_is_spearmans_whatever_the_scale_and_with_ties() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 20), rng.normal(size=20)
    found = rank_correlation(x, y)
    assert found["rho"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert rank_correlation(np.exp(x), 3 * y - 1) == pytest.approx(found)
    assert (found["draws"], found["runs"]) == (999, 20)


def test_its_null_is_that_of_accuracies_dealt_anew() -> None:
    x = np.arange(8.0)
    found = rank_correlation(x, x[::-1], draws=9_999)
    assert found["rho"] == pytest.approx(-1)
    exact = stats.permutation_test(
        (x,),
        lambda y: stats.spearmanr(x, y).statistic,
        permutation_type="pairings",
        n_resamples=4_999,
        random_state=1,
    ).null_distribution
    low, high = np.quantile(exact, [0.025, 0.975])
    assert found["null_low"] == pytest.approx(low, abs=0.05)
    assert found["null_high"] == pytest.approx(high, abs=0.05)


@pytest.mark.parametrize("y", [[1, 2, 3], [5, 5, 5, 5, 5]])
def test_few_runs_and_flat_sides_have_none(y: list[float]) -> None:
    found = rank_correlation(range(len(y)), y)
    assert np.isnan([found["rho"], found["null_low"], found["null_high"]]).all()
    assert (found["draws"], found["runs"]) == (0, len(y))

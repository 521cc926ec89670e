import math

import numpy as np
import pytest
from scipy import stats

from kdx_analysis.errors import KdxError
from kdx_analysis.runs import Interval, paired_difference, t_interval

A, B = (0.61, 0.72, 0.68, 0.70), (0.55, 0.70, 0.60, 0.69)


@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_paired_difference_is_scipys(confidence):
    ours = paired_difference(A, B, confidence)
    theirs = stats.ttest_rel(A, B).confidence_interval(confidence)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.correlation == pytest.approx(stats.pearsonr(A, B).statistic)


def test_an_interval_by_hand():
    # mean 2, s 1, n 3: the half width is t(.975, 2)/√3 with t(.975, 2) = 4.302653
    interval = t_interval([1, 2, 3])
    half = 4.302653 / math.sqrt(3)
    assert (interval.n, interval.mean) == (3, 2)
    assert (interval.low, interval.high) == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert not interval.excludes_zero


def test_every_raw_difference_is_kept():
    assert paired_difference([3, 5], [1, 1]).differences == (2, 4)


def test_one_seed_has_no_interval():
    single = paired_difference([0.7], [0.6])
    assert (single.n, single.mean) == (1, pytest.approx(0.1))
    assert all(math.isnan(value) for value in (single.low, single.high, single.correlation))
    assert not single.excludes_zero


def test_correlation_needs_three_pairs_that_vary():
    assert math.isnan(paired_difference([1, 2], [1, 3]).correlation)
    assert math.isnan(paired_difference([1, 1, 1], [1, 2, 3]).correlation)
    assert paired_difference([1, 2, 3], [3, 2, 1]).correlation == pytest.approx(-1)


def test_missing_values_are_left_out_in_pairs():
    ours = paired_difference([*A, math.nan, 1], [*B, 1, math.nan])
    assert ours == paired_difference(A, B)
    assert t_interval([1, math.nan, 3]) == t_interval([1, 3])


def test_what_can_not_be_averaged_or_paired():
    with pytest.raises(KdxError, match="no value to average"):
        t_interval([math.nan])
    with pytest.raises(KdxError, match="3 values can't be paired with 2"):
        paired_difference([1, 2, 3], [1, 2])


def test_pairing_is_invariant_to_what_seeds_share():
    shift = np.array([10.0, -3, 5, 0])
    shifted = paired_difference(A + shift, B + shift)
    assert (shifted.low, shifted.high) == pytest.approx(
        (paired_difference(A, B).low, paired_difference(A, B).high)
    )


@pytest.mark.parametrize(
    ("low", "high", "excludes"), [(0.1, 1, True), (-1, -0.1, True), (-1, 1, False)]
)
def test_excludes_zero(low, high, excludes):
    assert Interval(3, 0.0, low, high).excludes_zero is excludes

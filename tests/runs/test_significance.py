import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from kdx_analysis.errors import KdxError
from kdx_analysis.runs import holm, paired_t_test, permutation_test, sign_flip_test

SEVEN = [0.02, 0.05, -0.01, 0.04, 0.03, 0.015, 0.06]
A, B = [0.61, 0.72, 0.68, 0.70, 0.66, 0.71, 0.69], [0.55, 0.70, 0.60, 0.69, 0.62, 0.64]


def twice_the_smaller_tail(observed: float, null: list[float]) -> float:
    above = np.mean([value >= observed - 1e-12 for value in null])
    below = np.mean([value <= observed + 1e-12 for value in null])
    return min(1.0, 2 * min(above, below))


def test_sign_flips_are_enumerated():
    null = [float(np.dot(signs, SEVEN)) for signs in product((-1, 1), repeat=7)]
    found = sign_flip_test(SEVEN)
    assert (found.n, found.arrangements, found.exact) == (7, 128, True)
    assert found.p == pytest.approx(twice_the_smaller_tail(sum(SEVEN), null))
    assert found.p == pytest.approx(2 * np.mean([abs(t) >= sum(SEVEN) - 1e-12 for t in null]) / 2)


def test_six_differences_of_one_sign_reach_the_least_p():
    assert sign_flip_test([1, 2, 3, 4, 5, 6]).p == pytest.approx(2 / 2**6)
    assert sign_flip_test([-1, -2, -3, -4, -5, -6]).p == pytest.approx(2 / 2**6)
    assert sign_flip_test([0.0] * 6).p == 1


def test_splits_are_enumerated_and_scipys():
    everything = np.array(A + B)
    null = []
    for chosen in combinations(range(13), 7):
        others = [i for i in range(13) if i not in chosen]
        null.append(everything[list(chosen)].mean() - everything[others].mean())
    found = permutation_test(A, B)
    assert (found.n, found.arrangements, found.exact) == (6, math.comb(13, 7), True)
    assert found.p == pytest.approx(twice_the_smaller_tail(np.mean(A) - np.mean(B), null))
    theirs = stats.permutation_test(
        (A, B),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        vectorized=True,
        n_resamples=math.inf,
    )
    assert found.p == pytest.approx(theirs.pvalue)


def test_beyond_enumeration_draws_count_the_observed_one_among_them():
    many = np.random.default_rng(0).normal(0.4, 1, size=20)
    found = sign_flip_test(many)
    assert (found.arrangements, found.exact) == (10_000, False)
    assert found.p == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.02)
    assert sign_flip_test(many) == found
    assert sign_flip_test(many, seed=1) != found
    far = sign_flip_test(many + 100)
    assert far.p == pytest.approx(2 * 1 / 10_000)
    assert not permutation_test(many, many + 100).exact


@pytest.mark.parametrize(
    "test", [sign_flip_test, paired_t_test, lambda d: permutation_test(d, SEVEN)]
)
def test_no_test_gives_a_p_value_below_six_seeds(test):
    for n in range(1, 6):
        with pytest.raises(
            KdxError, match=rf"no p-value over seeds is given below n = 6, .* here n = {n}; report"
        ):
            test(SEVEN[:n])
    with pytest.raises(KdxError, match="here n = 5"):
        test([*SEVEN[:5], math.nan])
    test(SEVEN[:6])


def test_a_paired_t_test_is_scipys():
    assert paired_t_test(np.subtract(A[:6], B)) == pytest.approx(stats.ttest_rel(A[:6], B).pvalue)


def test_differences_that_are_all_the_same_have_no_t():
    assert math.isnan(paired_t_test([0.1] * 6))
    assert paired_t_test([0.0] * 6) == 1


def test_sign_flips_reject_no_more_often_than_they_say():
    """Of all signs of six sizes, equally likely under the null, a share of at most α has p ≤ α, for
    every α.
    """
    p = np.array(
        [sign_flip_test(np.multiply(signs, SEVEN[:6])).p for signs in product((-1, 1), repeat=6)]
    )
    assert all(np.mean(p <= alpha) <= alpha + 1e-12 for alpha in p)


def test_holm_by_hand():
    # sorted .01 .02 .03 .2 → ×4 ×3 ×2 ×1 = .04 .06 .06 .2
    assert holm([0.02, 0.2, 0.01, 0.03]).tolist() == pytest.approx([0.06, 0.2, 0.04, 0.06])
    assert holm([0.6, 0.5]).tolist() == [1, 1]


def test_holm_rejects_what_its_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(0, 0.1, size=6)
        rejected, alpha = np.zeros(6, dtype=bool), 0.05
        for step, place in enumerate(np.argsort(p)):
            if p[place] > alpha / (6 - step):
                break
            rejected[place] = True
        assert (holm(p) <= alpha).tolist() == rejected.tolist()


def test_holm_leaves_out_what_is_missing():
    adjusted = holm([0.01, math.nan, 0.03])
    assert math.isnan(adjusted[1])
    assert adjusted[[0, 2]].tolist() == pytest.approx([0.02, 0.03])
    assert len(holm([])) == 0

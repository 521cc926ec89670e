import math

import numpy as np
import pytest
from scipy import stats

from kdx_analysis.errors import KdxError
from kdx_analysis.runs import holm, paired_t_test

SEVEN = [0.02, 0.05, -0.01, 0.04, 0.03, 0.015, 0.06]
A, B = [0.61, 0.72, 0.68, 0.70, 0.66, 0.71, 0.69], [0.55, 0.70, 0.60, 0.69, 0.62, 0.64]


def test_no_p_value_is_given_below_six_seeds():
    for n in range(1, 6):
        with pytest.raises(
            KdxError, match=rf"no p-value over seeds is given below n = 6, .* here n = {n}; report"
        ):
            paired_t_test(SEVEN[:n])
    with pytest.raises(KdxError, match="here n = 5"):
        paired_t_test([*SEVEN[:5], math.nan])
    paired_t_test(SEVEN[:6])


def test_a_paired_t_test_is_scipys():
    assert paired_t_test(np.subtract(A[:6], B)) == pytest.approx(stats.ttest_rel(A[:6], B).pvalue)


def test_differences_that_are_all_the_same_have_no_t():
    assert math.isnan(paired_t_test([0.1] * 6))
    assert paired_t_test([0.0] * 6) == 1


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

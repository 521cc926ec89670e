import math

import pytest

from kdx_analysis.report.answers import Answer, claims
from kdx_analysis.report.findings import (
    LOWERS,
    NO,
    NOT_MEASURED,
    ONE_SEED,
    RAISES,
    UNDECIDED,
    Contrast,
    Decision,
    Finding,
)
from kdx_analysis.runs import Paired

LABELS = {"hard": "hard", "kd_shuffled": "kd_shuffled T=1.0", "kd": "kd T=1.0"}
MAIN = Contrast("kd", "kd_shuffled", "kd T=1.0 − kd_shuffled T=1.0", "class structure")
ALL = Contrast("kd", "hard", "kd T=1.0 − hard", "all of KD")


def finding(verdict, mean=-0.25, half=0.05, contrast=MAIN, metric="severity", n=3, excess=None):
    effect = Paired(n, mean, mean - half, mean + half, (mean,) * n, 0.5, (1 + mean, 1))
    decision = Decision(
        None if verdict == NOT_MEASURED else effect, excess, excess is not None, 0.99, verdict
    )
    return Finding(metric, contrast, 0.03, decision, decision)


def claimed(*findings, drawn=("ladder", "differences", "entropy")):
    return claims(Answer("", "", (), "", (), findings, 0.99), LABELS, drawn)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            finding(LOWERS),
            "kd T=1.0 lowers conflict severity by 0.250 [0.200, 0.300] against kd_shuffled T=1.0 "
            "(99 % t-interval of the paired difference, n = 3 seeds): less conflict.",
        ),
        (
            finding(RAISES, 0.25),
            "kd T=1.0 raises conflict severity by 0.250 [0.200, 0.300] against kd_shuffled T=1.0 "
            "(99 % t-interval of the paired difference, n = 3 seeds): more conflict.",
        ),
        (
            finding(RAISES, 0.25, excess=Paired(3, 0.01, -0.3, 0.32, (0.01,) * 3, 0.5)),
            "kd T=1.0 raises conflict severity by 0.250 [0.200, 0.300] against kd_shuffled T=1.0 "
            "(99 % t-interval of the paired difference, n = 3 seeds): more conflict, but not shown "
            "to be beyond its null: above that kd T=1.0 − kd_shuffled T=1.0 is +0.01 [−0.30, "
            "+0.32].",
        ),
        (
            finding(NO, 0.001, 0.01),
            "kd T=1.0 and kd_shuffled T=1.0 differ in conflict severity by less than 0.030, a "
            "tenth of its value under hard: +0.001 [−0.009, +0.011] (99 % t-interval of the paired "
            "difference, n = 3 seeds).",
        ),
        (
            finding(UNDECIDED, 0.1, 0.5),
            "Undecided whether kd T=1.0 changes conflict severity against kd_shuffled T=1.0: +0.10 "
            "[−0.40, +0.60] (99 % t-interval of the paired difference, n = 3 seeds).",
        ),
        (
            finding(ONE_SEED, half=math.nan, n=1),
            "One seed, nothing decided: kd T=1.0 − kd_shuffled T=1.0 is −0.25 in conflict severity "
            "(no interval, n = 1).",
        ),
    ],
)
def test_every_verdict_in_a_sentence(found, text):
    (claim,) = claimed(found)
    assert (claim.text, claim.verdict) == (text, found.verdict)


def test_the_nearest_control_on_every_metric_then_what_else_is_decided():
    found = claimed(
        finding(UNDECIDED),
        finding(LOWERS, contrast=ALL),
        finding(NO, metric="contention"),
        finding(UNDECIDED, metric="contention", contrast=ALL),
        finding(NOT_MEASURED, metric="separation"),
        finding("", metric="accuracy"),
    )
    assert [claim.verdict for claim in found] == [UNDECIDED, NO, LOWERS]
    assert "against hard" in found[-1].text


def test_without_a_control_only_what_is_decided():
    assert claimed(finding(UNDECIDED, contrast=ALL)) == []
    assert len(claimed(finding(RAISES, 0.2, contrast=ALL))) == 1


def test_a_claim_names_the_figures_that_were_drawn():
    assert claimed(finding(LOWERS))[0].figures == ("differences", "ladder")
    assert claimed(finding(LOWERS, metric="gate_entropy"))[0].figures == (
        "differences",
        "ladder",
        "entropy",
    )
    assert claimed(finding(LOWERS), drawn=("ladder",))[0].figures == ("ladder",)


def test_a_claim_in_latex():
    (claim,) = claimed(finding(UNDECIDED, -0.1, 0.5))
    assert (
        r"against kd\_shuffled T=1.0: $-$0.10 {[}$-$0.60, +0.40] (99 \% t-interval" in claim.latex
    )

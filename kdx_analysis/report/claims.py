"""Claims as a paper would print them: a sentence a finding, with its effect, interval, n and the
figures behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from kdx_analysis.metrics import METRICS, asked_about
from kdx_analysis.report.answers import Answer, change
from kdx_analysis.report.findings import NO, ONE_SEED, UNDECIDED, Finding
from kdx_analysis.report.numbers import decimals_for, estimate, latex, number

_FIGURES = ("differences", "ladder")
_FIGURES_OF = {"gate_entropy": (*_FIGURES, "entropy")}


@dataclass(frozen=True)
class Claim:
    """One finding in words.

    Attributes:
        text: a sentence that stands on its own.
        verdict: as of the finding.
        figures: names of the figures that it rests on, of those that were drawn.
    """

    text: str
    verdict: str
    figures: tuple[str, ...]

    @property
    def latex(self) -> str:
        """The sentence as LaTeX source."""
        return latex(self.text)


def claims(answer: Answer, labels: Mapping[str, str], drawn: Collection[str]) -> list[Claim]:
    """KD against its nearest control on every metric asked about, then whatever else is decided.

    Every interval is corrected over all metrics and contrasts, so the chance that any of the
    sentences is false is at most 5 %, where differences over seeds are normal.

    Args:
        labels: rung → the objective's label, as of :func:`answer`.
        drawn: names of the figures that the report shows.
    """
    measured = [f for f in answer.findings if f.metric in asked_about() and f.effect is not None]
    first = [
        f for f in measured if f.contrast.attributes and f.contrast == answer.findings[0].contrast
    ]
    decided = [f for f in measured if f not in first and f.quotable.changed]
    return [
        Claim(
            _sentence(finding, labels),
            finding.verdict,
            tuple(name for name in _FIGURES_OF.get(finding.metric, _FIGURES) if name in drawn),
        )
        for finding in (*first, *decided)
    ]


def _sentence(finding: Finding, labels: Mapping[str, str]) -> str:
    contrast, effect, title = finding.contrast, finding.effect, METRICS[finding.metric].title
    assert effect is not None
    a, b = labels[contrast.a], labels[contrast.b]
    over = f", {effect.coverage}" if str(effect.coverage) else ""
    interval = f"{100 * finding.confidence:.4g} % t-interval of the paired difference, n = {effect.n} seeds{over}"
    signed = estimate(effect, signed=True)
    if finding.quotable.changed:
        claim = f"{a} {change(finding, finding.quotable, b)} ({interval}): {finding.meaning()}"
        if finding.quotable.beyond_null:
            return f"{claim}."
        return f"{claim}, but not shown to be beyond its null: {_above_null(finding, a, b)}."
    if finding.verdict == NO:
        margin = number(finding.margin, decimals_for(effect))
        return (
            f"{a} and {b} differ in {title} by less than {margin}, a tenth of its value under "
            f"{labels['hard']}: {signed} ({interval})."
        )
    if finding.verdict == ONE_SEED:
        return f"One seed, nothing decided: {a} − {b} is {signed} in {title} (no interval, n = 1)."
    assert finding.verdict == UNDECIDED
    if effect.low == effect.high:
        signed = f"{signed}, the same in every seed"
    return f"Undecided whether {a} changes {title} against {b}: {signed} ({interval})."


def _above_null(finding: Finding, a: str, b: str) -> str:
    """What is left of an effect above the null, with the seeds and epochs of that where they are
    other ones.
    """
    assert finding.effect is not None
    excess = finding.quotable.excess
    if excess is None:
        return f"no seed has a null of {a} and of {b} at the same epochs"
    text = f"above that {a} − {b} is {estimate(excess, signed=True)}"
    if excess.n == finding.effect.n and excess.coverage == finding.effect.coverage:
        return text
    over = f", {excess.coverage}" if str(excess.coverage) else ""
    return f"{text} (n = {excess.n}{over}, where both have one)"

"""What the report says: the answer that it opens with, and claims as a paper would print them.

From findings to their wording, as pure functions on numbers.

The question: what does knowledge distillation do to the conflicts between subtasks that label
smoothing and hard labels do not, and how much of it comes from the teacher's knowledge of the
classes rather than from the loss's temperature and softness? It is answered by the difference of KD
and its nearest control, seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from kdx_analysis.metrics import METRICS, asked_about, speaking_of_conflict
from kdx_analysis.objectives import ladder_names
from kdx_analysis.report.findings import (
    NO,
    NOT_MEASURED,
    ONE_SEED,
    UNDECIDED,
    Contrast,
    Decision,
    Finding,
    contrasts,
    find,
)
from kdx_analysis.runs import Paired
from kdx_analysis.runs.statistics.paired import by_seed, coverage, paired
from kdx_analysis.runs.tables.numbers import (
    decimals_for,
    estimate,
    latex_escaped,
    listed,
    number,
    size_of_change,
)

# Networks that are further apart in accuracy are not called alike in how well they classify.
ACCURACY_MARGIN = 0.02
_FIGURES = ("differences", "ladder")
_FIGURES_OF = {"gate_entropy": (*_FIGURES, "entropy")}
COLUMNS = (
    "metric",
    "contrast",
    "adds",
    "effect",
    "low",
    "high",
    "confidence",
    "n",
    "over",
    "correlation",
    "margin",
    "verdict",
    "excess",
    "excess_low",
    "excess_high",
    "alone_low",
    "alone_high",
    "alone_confidence",
    "alone_verdict",
)


@dataclass(frozen=True)
class Answer:
    """What the data say.

    Attributes:
        headline: the answer in a sentence, on KD against its nearest control alone.
        rest: what the rest of KD does, in a sentence; '' where that was not run. Exploratory.
        contrasts: the further contrasts, one sentence each. Exploratory.
        division: how KD's effect divides over the rungs of the ladder; '' where they were not run.
            Exploratory.
        cautions: what stands against reading too much into it.
        findings: every metric under every contrast, those asked about first.
        confidence: of the intervals in these sentences, 1 − 0.05/m over the m metrics asked about.
    """

    headline: str
    rest: str
    contrasts: tuple[str, ...]
    division: str
    cautions: tuple[str, ...]
    findings: tuple[Finding, ...]
    confidence: float

    @property
    def opening(self) -> str:
        """Headline and rest."""
        return f"{self.headline} {self.rest}".rstrip()

    @property
    def details(self) -> tuple[str, ...]:
        """Contrasts and division."""
        return tuple(filter(None, (*self.contrasts, self.division)))

    @property
    def compared(self) -> int:
        """The comparisons of metrics asked about, under all contrasts, that have an interval."""
        return sum(
            f.metric in asked_about() and f.effect is not None and f.effect.n > 1
            for f in self.findings
        )

    @property
    def by_chance(self) -> float:
        """How many of them an exploratory interval would decide on average if nothing differed."""
        return self.compared * (1 - self.confidence)

    def to_frame(self) -> pd.DataFrame:
        """One row per finding, with the columns COLUMNS.

        ``low``, ``high`` and ``verdict`` may be quoted beside all other rows; those named
        ``alone_`` are of the contrast by itself. ``over`` are the epochs of the mean, ``excess`` is
        the effect on what lies above the null.
        """
        return pd.DataFrame(map(_row, self.findings), columns=list(COLUMNS))


def by_chance(answer: Answer) -> str:
    """What chance alone would decide, in a sentence, beside what is exploratory."""
    if not answer.compared:
        return ""
    return (
        f"Of {answer.compared} comparisons at {100 * answer.confidence:.4g} % each, "
        f"{number(answer.by_chance, 2)} would come out decided on average if nothing differed."
    )


def _row(finding: Finding) -> dict[str, object]:
    nothing = Paired(0, math.nan, math.nan, math.nan, (), math.nan)
    effect, excess = finding.effect or nothing, finding.quotable.excess or nothing
    alone = finding.alone.effect or nothing
    return {
        "metric": finding.metric,
        "contrast": finding.contrast.title,
        "adds": finding.contrast.adds,
        "effect": effect.mean,
        "low": effect.low,
        "high": effect.high,
        "confidence": finding.confidence,
        "n": effect.n,
        "over": str(effect.coverage),
        "correlation": effect.correlation,
        "margin": finding.margin,
        "verdict": finding.verdict,
        "excess": excess.mean,
        "excess_low": excess.low,
        "excess_high": excess.high,
        "alone_low": alone.low,
        "alone_high": alone.high,
        "alone_confidence": finding.alone.confidence,
        "alone_verdict": finding.alone.verdict,
    }


def answer(
    values: Mapping[str, pd.DataFrame],
    labels: Mapping[str, str],
    nulls: Mapping[str, pd.DataFrame] | None = None,
) -> Answer:
    """The answer for one KD objective and its controls.

    Args:
        values, labels, nulls: as for :func:`find`.
    """
    findings = find(values, labels, nulls)
    confidence = findings[0].alone.confidence if findings else 0.95
    all_contrasts = contrasts(labels)
    main = next((contrast for contrast in all_contrasts if contrast.attributes), None)
    others = [contrast for contrast in all_contrasts if contrast != main]
    rest = next((each for each in others if _is_rest(each, main)), None)
    sentences = [] if main is None else [_gate_sentence(_asked(findings, main))]
    for contrast in others:
        if contrast != rest:
            sentences.append(_contrast_sentence(contrast, _asked(findings, contrast)))
    return Answer(
        _headline(main, findings, labels),
        _rest_of_kd(findings, rest),
        tuple(filter(None, sentences)),
        _division(values, labels, findings),
        _cautions(values, labels, main),
        findings,
        confidence,
    )


def _is_rest(contrast: Contrast, main: Contrast | None) -> bool:
    """Whether it is the control that KD is set against, less hard labels."""
    return main is not None and (contrast.a, contrast.b) == (main.b, "hard")


def _rest_of_kd(findings: Sequence[Finding], rest: Contrast | None) -> str:
    if rest is None:
        return ""
    return f"The rest of KD, {_contrast_sentence(rest, _asked(findings, rest))}"


def _asked(findings: Sequence[Finding], contrast: Contrast) -> list[Finding]:
    """What is asked about under one contrast."""
    under = [f for f in findings if f.contrast == contrast]
    return [f for f in under if f.metric in asked_about()]


def _headline(main: Contrast | None, findings: Sequence[Finding], labels: Mapping[str, str]) -> str:
    if main is None:
        return _no_control(labels)
    under = [f for f in findings if f.contrast == main]
    speaking = [f for f in under if f.metric in speaking_of_conflict()]
    conflict = [f for f in speaking if f.effect is not None]
    if not conflict:
        return (
            "No attribution is possible: no conflict figure was measured for both sides of "
            f"{main.title}."
        )
    if max(f.effect.n for f in conflict if f.effect) < 2:
        raw = listed([f"{_signed(f)} in {_title(f)}" for f in conflict])
        return (
            f"One seed: no interval, nothing decided. {main.title} ({main.adds}) came out at {raw}."
        )
    if any(f.alone.changed for f in conflict):
        return _changed(main, speaking, labels)
    return _unchanged(main, speaking)


def _unchanged(main: Contrast, speaking: Sequence[Finding]) -> str:
    """The headline where no conflict figure is changed."""
    conflict = [f for f in speaking if f.effect is not None]
    subject = _subject(main)
    if all(f.alone.verdict == NO for f in conflict):
        missing = _rest([f for f in speaking if f.effect is None])
        return (
            f"No: {subject} makes no difference worth a tenth of the metric's value under hard "
            f"labels to any of the {len(conflict)} conflict figures ({main.title}, "
            f"{_basis(conflict)}){_after(missing)}."
        )
    return (
        f"Undecided: whether {subject} changes the conflict between subtasks. No interval of "
        f"{main.title} shows a change ({_basis(conflict)}): {_rest(speaking)}."
    )


def _no_control(labels: Mapping[str, str]) -> str:
    missing = "no control of KD (hard_T, kd_flat, kd_shuffled) was run"
    if "kd" not in labels:
        missing = "KD was not run"
    return (
        f"No attribution is possible: {missing}, so nothing here tells the teacher's knowledge of "
        "the classes from the loss's temperature and softness."
    )


def _changed(main: Contrast, speaking: Sequence[Finding], labels: Mapping[str, str]) -> str:
    """The headline where some conflict figure is changed."""
    changed = [f for f in speaking if f.alone.changed]
    conflict = [f for f in speaking if f.effect is not None]
    subject = _subject(main)
    says = f"Yes: {subject} changes the conflict between subtasks"
    if not any(f.alone.beyond_null for f in changed):
        says = (
            f"Not beyond the null: nothing shows that {subject} changes which subtasks are in "
            "conflict"
        )
    rest = _rest([f for f in speaking if f not in changed])
    return (
        f"{says}; {labels[main.a]} against {labels[main.b]} "
        f"{listed([_change(f) for f in changed])}{_after(rest)} ({_basis(conflict)})."
    )


def _after(clause: str) -> str:
    """A clause behind another one; '' for none."""
    return f"; {clause}" if clause else ""


def _subject(main: Contrast) -> str:
    if main.b == "kd_shuffled":
        return "the teacher's knowledge of the classes"
    if main.b == "kd_flat":
        return "the teacher's class structure together with unevenness (kd_shuffled was not run)"
    if main.b == "hard_T":
        return (
            "everything in KD but temperature and loss scale (neither kd_shuffled nor kd_flat was "
            "run, so softness is not told from knowledge of the classes)"
        )
    return f"what {main.a} adds to the control {main.b} ({main.adds})"


def _gate_sentence(asked: Sequence[Finding]) -> str:
    """The gates' entropy under the contrast that the opening rests on; it is no conflict figure."""
    gates = [f for f in asked if f.metric not in speaking_of_conflict()]
    return _contrast_sentence(gates[0].contrast, gates) if gates else ""


def _contrast_sentence(contrast: Contrast, asked: Sequence[Finding]) -> str:
    name = f"{contrast.title} ({contrast.adds})"
    measured = [f for f in asked if f.effect is not None]
    if not measured:
        return f"{name}: not measured."
    if all(f.alone.verdict == ONE_SEED for f in measured):
        raw = listed([f"{_signed(f)} in {_title(f)}" for f in measured])
        return f"{name}: one seed, nothing decided; {raw}."
    changed = [_change(f) for f in measured if f.alone.changed]
    rest = _all_alike(asked) or _rest([f for f in asked if not f.alone.changed])
    return f"{name}: {'; '.join(part for part in (listed(changed), rest) if part)}."


def _rest(findings: Sequence[Finding]) -> str:
    """The findings that are no change, by verdict."""
    wording = {
        NO: "no difference worth a tenth of the metric's value under hard labels in",
        UNDECIDED: "undecided for",
        ONE_SEED: "one seed only for",
        NOT_MEASURED: "not defined in both for",
    }
    parts = []
    for decided, words in wording.items():
        titles = [_title(f) for f in findings if f.alone.verdict == decided]
        parts += [f"{words} {listed(titles)}"] if titles else []
    return "; ".join(parts)


def _all_alike(findings: Sequence[Finding]) -> str:
    """The one verdict of several findings that are no change; '' if there are more."""
    verdicts = {f.alone.verdict for f in findings}
    if len(findings) < 3 or len(verdicts) > 1 or not verdicts <= {NO, UNDECIDED}:
        return ""
    if verdicts == {UNDECIDED}:
        return f"undecided for all {len(findings)} metrics"
    return (
        "no difference worth a tenth of its value under hard labels in any of the "
        f"{len(findings)} metrics"
    )


def _division(
    values: Mapping[str, pd.DataFrame], labels: Mapping[str, str], findings: Sequence[Finding]
) -> str:
    """How KD − hard divides over the rungs between, for the conflict figures that it decides.

    All rungs take the seeds and epochs that all of them have. An effect that is not beyond its null
    is not divided, and neither is one whose seeds some rung lacks, or that is not decided alike
    over the epochs that all rungs have.
    """
    rungs = [name for name in ladder_names() if name in labels]
    total = _of_all_kd(findings)
    if len(rungs) < 3 or not total:
        return ""
    title = total[0].contrast.title
    decided = [f for f in total if f.alone.changed]
    if not decided:
        return (
            f"{title} is itself decided in no conflict figure, so there is no settled effect to "
            "divide between knowledge of the classes and the rest."
        )
    beyond = [f for f in decided if f.alone.beyond_null]
    if not beyond:
        return (
            f"{title} is shown to be beyond its null in no conflict figure, so there is no effect "
            "on which subtasks are in conflict to divide between knowledge of the classes and the "
            "rest."
        )
    parts = [_divided(f, values[f.metric], rungs, labels) for f in beyond]
    return f"Of {title}: {'; '.join(filter(None, parts))}." if any(parts) else ""


def _of_all_kd(findings: Sequence[Finding]) -> list[Finding]:
    """The conflict figures under KD − hard that have an interval."""
    under = [f for f in findings if (f.contrast.a, f.contrast.b) == ("kd", "hard")]
    speaking = [f for f in under if f.metric in speaking_of_conflict()]
    return [f for f in speaking if f.effect is not None and f.effect.n > 1]


def _divided(
    finding: Finding, table: pd.DataFrame, rungs: Sequence[str], labels: Mapping[str, str]
) -> str:
    """The effect on one figure as the sum of its rungs'; '' where a rung lacks a seed."""
    assert finding.effect is not None
    if not set(rungs) <= set(table.columns):
        return ""
    shared = by_seed(table[list(rungs)], METRICS[finding.metric].pairs_make)
    if len(shared) != finding.effect.n:
        return ""
    neighbours = set(pairwise(rungs))
    steps = [contrast for contrast in contrasts(labels) if (contrast.b, contrast.a) in neighbours]
    effects = [paired(shared, step.a, step.b, finding.alone.confidence) for step in steps]
    whole = paired(shared, "kd", "hard", finding.alone.confidence)
    assert whole is not None
    if not whole.excludes_zero or whole.mean * finding.effect.mean < 0:
        return ""
    decimals = decimals_for(whole)
    parts = [
        f"{estimate(effect, decimals, signed=True)} {step.adds}"
        for effect, step in zip(effects, steps, strict=True)
    ]
    over = str(coverage(table, rungs))
    return (
        f"{_title(finding)}, {estimate(whole, decimals, signed=True)} in the mean over n = "
        f"{whole.n} seeds{f' and {over}' if over else ''}, is the sum of {listed(parts)}"
    )


def _cautions(
    values: Mapping[str, pd.DataFrame], labels: Mapping[str, str], main: Contrast | None
) -> tuple[str, ...]:
    accuracy = values.get("accuracy", pd.DataFrame())
    pairs = [(rung, "hard") for rung in labels] + ([(main.a, main.b)] if main else [])
    gaps = {(a, b): paired(accuracy, a, b) for a, b in pairs if a != b}
    far = [
        f"{labels[a]} {number(100 * gap.mean, 1, signed=True)} points from {labels[b]}"
        for (a, b), gap in gaps.items()
        if gap is not None and abs(gap.mean) > ACCURACY_MARGIN
    ]
    if not far:
        return ()
    return (
        f"The explainers differ in accuracy: {listed(far)}. Their conflict figures compare "
        "networks that classify differently well, so a difference may be due to that.",
    )


def _title(finding: Finding) -> str:
    return METRICS[finding.metric].title


def _signed(finding: Finding) -> str:
    return estimate(finding.alone.effect, signed=True)


def _change(finding: Finding) -> str:
    beyond = "" if finding.alone.beyond_null else ", but not beyond its null"
    return f"{change(finding, finding.alone)} ({finding.meaning()}{beyond})"


def change(finding: Finding, decision: Decision, against: str = "") -> str:
    """What is lowered or raised, and by how much, with its interval.

    Of a figure with a sign also from where to where. ``against`` names the other side, where it is
    to be named.
    """
    assert decision.effect is not None
    other = f" against {against}" if against else ""
    text = f"{decision.verdict} {_title(finding)} by {size_of_change(decision.effect)}{other}"
    if not METRICS[finding.metric].signed:
        return text
    after, before = (
        number(level, decimals_for(decision.effect)) for level in decision.effect.levels
    )
    return f"{text}, from {before} to {after}"


def _basis(findings: Sequence[Finding]) -> str:
    """Confidence, seeds and epochs of these findings."""
    counts = sorted({f.effect.n for f in findings if f.effect})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    covered: dict[str, list[str]] = {}
    for finding in findings:
        if finding.effect and str(finding.effect.coverage):
            covered.setdefault(str(finding.effect.coverage), []).append(_title(finding))
    epochs = [f"{over} for {listed(titles)}" for over, titles in covered.items()]
    if len(epochs) == 1 and len(next(iter(covered.values()))) == len(findings):
        epochs = list(covered)
    at = f"{100 * findings[0].alone.confidence:.4g} % intervals"
    return f"{at}, {'; '.join([f'n = {n} seeds', *epochs])}"


@dataclass(frozen=True)
class Claim:
    """One finding in words.

    Attributes:
        text: a sentence that stands on its own.
        verdict, metric: as of the finding.
        figures: names of the figures that it rests on, of those that were drawn.
    """

    text: str
    verdict: str
    metric: str
    figures: tuple[str, ...]

    @property
    def latex(self) -> str:
        """The sentence as LaTeX source."""
        return latex_escaped(self.text)


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
    return [_claim(finding, labels, drawn) for finding in (*first, *decided)]


def _claim(finding: Finding, labels: Mapping[str, str], drawn: Collection[str]) -> Claim:
    figures = _FIGURES_OF.get(finding.metric, _FIGURES)
    shown = tuple(name for name in figures if name in drawn)
    return Claim(_claim_sentence(finding, labels), finding.verdict, finding.metric, shown)


def _claim_sentence(finding: Finding, labels: Mapping[str, str]) -> str:
    contrast, effect, title = finding.contrast, finding.effect, METRICS[finding.metric].title
    assert effect is not None
    a, b = labels[contrast.a], labels[contrast.b]
    over = f", {effect.coverage}" if str(effect.coverage) else ""
    interval = (
        f"{100 * finding.confidence:.4g} % t-interval of the paired difference, n = {effect.n} "
        f"seeds{over}"
    )
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
    """What is left of an effect above the null, with its seeds and epochs where they are others."""
    assert finding.effect is not None
    excess = finding.quotable.excess
    if excess is None:
        return f"no seed has a null of {a} and of {b} at the same epochs"
    text = f"above that {a} − {b} is {estimate(excess, signed=True)}"
    if excess.n == finding.effect.n and excess.coverage == finding.effect.coverage:
        return text
    over = f", {excess.coverage}" if str(excess.coverage) else ""
    return f"{text} (n = {excess.n}{over}, where both have one)"

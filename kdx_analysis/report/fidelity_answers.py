"""What the student got from its teacher, in sentences that follow the numbers."""

from __future__ import annotations

import math

import pandas as pd

from kdx_analysis.intervals import paired_difference, t_interval
from kdx_analysis.probes.fidelity.result import OWN, Fidelity, Teaching
from kdx_analysis.probes.fidelity.whose import (
    BASELINE,
    FEWEST_SIBLINGS,
    FEWEST_TEACHERS,
    LIKENESSES,
    Part,
)
from kdx_analysis.runs.tables.numbers import listed, number

LEADS = "instance"
_SMALL = 0.1
# Below this share of the images a figure rests on some that may be no longer like the others.
_NEARLY_ALL = 0.9
# A student so much less like any teacher than others are hardly saw the same images.
_TIMES_LESS, _ALIKE = 3, 0.3
_SHUFFLED = "kd_shuffled"
_MEANT = {
    "instance": "in what it thinks of single images beyond their class (instance knowledge, a "
    "correlation)",
    "dark": "in how it ranks the wrong classes (dark knowledge, a correlation)",
    "second_choice": "in its strongest wrong class (second choices, a share beyond chance)",
    "hardness": "in which images it finds hard (hardness, a rank correlation)",
}


def said(fidelity: Fidelity, who: str = "students") -> list[str]:
    """Three plain sentences or more: what was got, whether that is decided, and what it is not.

    About the leading objective, ``kd`` where there is one, in instance knowledge, or where the
    classes are too few for that in the first likeness that is defined. ``who`` are the networks
    that are called students of their teacher.
    """
    if not fidelity.taught:
        return [
            "No student here was taught by a teacher, so there is nothing that it could have got: "
            f"the objectives are {listed(fidelity.objectives)}."
        ]
    objective = fidelity.leading
    metric = _metric(fidelity, objective)
    if metric is None:
        return _without_parts(fidelity, objective)
    parts = fidelity.parts(metric, objective)
    sentences = (
        _got(fidelity, metric, objective, parts, who),
        _decision(fidelity, metric, objective),
        _of_order(fidelity, metric, objective),
        _accuracy(fidelity, objective, who),
        *_cautions(fidelity, metric, objective),
    )
    return [sentence for sentence in sentences if sentence]


def _cautions(fidelity: Fidelity, metric: str, objective: str) -> list[str]:
    """What takes from the weight of the answer: few images, ties, a student like no teacher."""
    pairs = fidelity.pairs[fidelity.pairs["metric"] == metric]
    cautions = []
    of_both = pairs[pairs["objective"].isin([objective, BASELINE])]
    fewest, most = int(of_both["n"].min()), int(of_both["n"].max())
    if fewest < _NEARLY_ALL * fidelity.num_images:
        images = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        cautions.append(
            f"Read with care: this rests on {images} of {fidelity.num_images} images. The others "
            "can't be compared, as where a class has a probability of 0, and which they are "
            "differs from student to student."
        )
    ties = max(_ties(each, objective) for each in fidelity.teachings) / fidelity.num_images
    if metric == "second_choice" and ties > 1 - _NEARLY_ALL:
        cautions.append(
            f"Read with care: in up to {_percent(ties)} of the images several wrong classes tie "
            "for a network's second choice, as in scores that were rounded."
        )
    return [*cautions, *_unlike(pairs)]


def _ties(teaching: Teaching, objective: str) -> int:
    """Images in which wrong classes tie, of the teacher or the student with the most."""
    compared = [o for (name, _), o in teaching.students.items() if name in (objective, BASELINE)]
    return max(each.second.ties for each in (teaching.teacher, *compared))


def _unlike(pairs: pd.DataFrame) -> list[str]:
    """A sentence for every student that is like no teacher, where others are."""
    nearest = pairs.groupby(["objective", "seed"], sort=False)["value"].max().dropna()
    typical = nearest.groupby("objective").transform("median").clip(lower=nearest.median())
    odd = nearest[(nearest < typical / _TIMES_LESS) & (typical > _ALIKE)]
    sentences = []
    for row in odd.reset_index().to_dict("records"):
        usual = typical[row["objective"], row["seed"]]
        sentences.append(
            f"Read with care: the student of {row['objective']} with seed {row['seed']} is like "
            f"no teacher ({number(row['value'], 2)}, where others have {number(usual, 2)}); its "
            "rows may stand in another order than the labels', if only within classes."
        )
    return sentences


def _metric(fidelity: Fidelity, objective: str) -> str | None:
    """The likeness that is spoken of; None where none can be taken apart."""
    for name in (LEADS, *LIKENESSES):
        if fidelity.parts(name, objective):
            return name
    return None


def _without_parts(fidelity: Fidelity, objective: str) -> list[str]:
    """What can still be told without ``hard`` of the same seeds, or where nothing is defined."""
    if BASELINE not in fidelity.objectives:
        reason = f"there are no students under {BASELINE!r}, which the others are set beside"
    else:
        reason = f"no seed has both {objective!r} and {BASELINE!r} with a figure that is defined"
    sentences = [
        f"What students got under {objective!r} can't be taken apart into task, kind and own: "
        f"{reason}."
    ]
    pairs = fidelity.pairs
    beside = pairs[(pairs["teacher"] == OWN) & (pairs["objective"] == objective)]
    known = []
    for name in LIKENESSES:
        values = beside.loc[beside["metric"] == name, "value"].dropna()
        if len(values):
            known.append(f"{number(values.mean(), 2)} in {LIKENESSES[name][0]}")
    if known:
        sentences.append(
            f"What can be told is how alike they are to their teacher: {listed(known)}, means over "
            f"{len(fidelity.seeds(objective))} seeds."
        )
    return sentences


def _got(fidelity: Fidelity, metric: str, objective: str, parts: dict[str, Part], who: str) -> str:
    total = sum(parts[name].value for name in ("task", "kind", "own"))
    decimals = _decimals(parts["own"].value)
    task = _bounded(parts["task"], decimals, seeds_alone=True)
    shared = (
        f"Under {objective}, {who} share {{}} with their teacher {_MEANT[metric]}: {task} is the "
        f"task's, which {who} trained on labels alone share too"
    )
    if math.isnan(parts["own"].value):
        change = _total_change(fidelity, metric, objective)
        added = number(change, decimals, signed=True)
        return shared.format(number(parts["task"].value + change, decimals)) + (
            f", and {added} comes with the objective; without siblings of the teacher nobody can "
            "tell how much of that is this teacher's own."
        )
    kind, own_part = (_bounded(parts[name], decimals) for name in ("kind", "own"))
    alike = "nearer to" if parts["kind"].value > 0 else "farther from"
    return shared.format(number(total, decimals)) + (
        f"; {kind} is the kind's, by which they are {alike} every teacher of the recipe; and "
        f"{own_part} is this teacher's own."
    )


def _total_change(fidelity: Fidelity, metric: str, objective: str) -> float:
    several = fidelity.likenesses(metric, objective)
    return sum(float(each.changes[:, 0].mean()) for each in several) / len(several)


def _decimals(value: float) -> int:
    """Two, or three for a part so small that two would leave one digit of it."""
    return 3 if abs(value) < _SMALL else 2


def _bounded(part: Part, decimals: int, *, seeds_alone: bool = False) -> str:
    """A part with its intervals, as ``0.08 [seeds 0.05 to 0.10; teachers 0.06 to 0.10]``."""
    ends = []
    for word, interval in (("seeds ", part.over_seeds), ("teachers ", part.over_teachers)):
        if not math.isnan(interval.low) and not (word == "teachers " and seeds_alone):
            low, high = number(interval.low, decimals), number(interval.high, decimals)
            ends.append(f"{word}{low} to {high}")
    return number(part.value, decimals) + (f" [{'; '.join(ends)}]" if ends else "")


def _decision(fidelity: Fidelity, metric: str, objective: str) -> str:
    """Whether own is decided, and why or why not."""
    parts = fidelity.parts(metric, objective)
    controls = {
        name: value for name, value in fidelity.controls(metric).items() if name != objective
    }
    each_control = []
    for name, value in controls.items():
        each_control.append(f"{number(value, _decimals(value), signed=True)} under {name}")
    beside = listed(each_control)
    if fidelity.decided(metric, objective):
        share = parts["share"]
        through = ""
        if not math.isnan(share.over_teachers.low):
            low, high = map(_percent, (share.over_teachers.low, share.over_teachers.high))
            through = (
                f" {_percent(share.value)} [{low} to {high}] of what this teacher has of its own "
                "came through."
            )
        # With several own teachers the interval over them decides alone.
        intervals = (
            f"its 95 % interval over {len(fidelity.teachings)} teachers with students of their own "
            "leaves out 0"
            if parts["own"].several
            else f"its 95 % intervals over {_seeds(fidelity, objective)} and over teachers "
            f"({fidelity.siblings} siblings) leave out 0"
        )
        return (
            f"That own part is decided: {intervals}, and it is above the own part of students that "
            f"saw no teacher ({beside}).{through}"
        )
    why = _why_not(fidelity, parts["own"], beside)
    return f"Whether there is such an own part is not decided: {why}."


def _why_not(fidelity: Fidelity, part: Part, beside: str) -> str:
    several = len(fidelity.teachings)
    if part.several and several < FEWEST_TEACHERS:
        return f"{several} teachers with students of their own give no interval; it takes 3"
    if not part.several and fidelity.siblings < FEWEST_SIBLINGS:
        one = fidelity.siblings == 1
        return (
            f"the teacher has {fidelity.siblings or 'no'} sibling{'' if one else 's'} here, and it "
            f"takes {FEWEST_SIBLINGS} to know how much teachers of one recipe differ"
        )
    if not part.several and math.isnan(part.over_seeds.low):
        return "one seed has no interval; train more seeds"
    intervals = {"seeds": part.over_seeds, "teachers": part.over_teachers}
    if part.several:
        del intervals["seeds"]  # it does not decide
    open_ones = [word for word, each in intervals.items() if not each.excludes_zero]
    if open_ones:
        return _holds_zero(open_ones)
    if not beside:
        both = "its interval leaves" if part.several else "both intervals leave"
        return (
            f"{both} out 0, but no student of a negative control (hard_T, label_smoothing) stands "
            "beside it to show that the siblings are siblings"
        )
    return f"it is no larger than the own part of students that saw no teacher ({beside})"


def _holds_zero(over: list[str]) -> str:
    if len(over) > 1:
        return f"its 95 % intervals over {' and over '.join(over)} hold 0"
    return f"its 95 % interval over {over[0]} holds 0"


def _of_order(fidelity: Fidelity, metric: str, objective: str) -> str:
    """What the order of the wrong classes gave, beyond their unevenness."""
    if objective == _SHUFFLED or _SHUFFLED not in fidelity.taught:
        return ""
    difference = fidelity.difference(metric, objective, _SHUFFLED)
    if not difference or math.isnan(difference["own"].value):
        return ""
    part = difference["own"]
    verdict = "decided" if fidelity.decided(metric, objective, _SHUFFLED) else "not decided"
    shown = _bounded(part, _decimals(part.value))
    return (
        f"Of its own part {shown} is the order of the wrong classes, which {_SHUFFLED} takes away "
        f"({objective} − {_SHUFFLED}; {verdict})."
    )


def _accuracy(fidelity: Fidelity, objective: str, who: str) -> str:
    """How accurate its students are beside those on hard labels: fidelity is not accuracy."""
    table = fidelity.accuracy.groupby(["objective", "seed"])["value"].mean()
    seeds = [s for s in fidelity.seeds(objective) if (BASELINE, s) in table.index]
    if not seeds:
        return ""
    a, b = (table[name].loc[seeds].to_numpy() for name in (objective, BASELINE))
    difference = paired_difference(a, b)
    interval = ""
    if difference.n > 1:
        low, high = (number(100 * end, 1, signed=True) for end in (difference.low, difference.high))
        interval = f", 95 % interval {low} to {high} over {difference.n} seeds"
    points = number(100 * difference.mean, 1, signed=True)
    return (
        f"Fidelity is not accuracy: of {fidelity.num_images} test images {objective}'s {who} "
        f"have {_percent(t_interval(a).mean, 1)} right and {BASELINE}'s "
        f"{_percent(t_interval(b).mean, 1)} ({points} points{interval})."
    )


def _percent(share: float, decimals: int = 0) -> str:
    return f"{number(100 * share, decimals)} %"


def _seeds(fidelity: Fidelity, objective: str) -> str:
    n = len(fidelity.seeds(objective))
    return f"{n} seed{'' if n == 1 else 's'}"

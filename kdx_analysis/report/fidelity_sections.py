"""What is shown of a fidelity below its answer: parts, levels, classes and images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdx_analysis.intervals import Interval, paired_difference, t_interval
from kdx_analysis.metrics import METRICS
from kdx_analysis.probes.fidelity.likeness import FEW_ERRORS
from kdx_analysis.probes.fidelity.result import OWN, Fidelity
from kdx_analysis.probes.fidelity.whose import BASELINE, LIKENESSES, Part, parts
from kdx_analysis.registry import home
from kdx_analysis.runs.tables.grid import Cell, Grid
from kdx_analysis.runs.tables.numbers import MISSING, estimate, number

# Levels of a student beside its own teacher or by itself, in the order in which they are shown.
_LEVELS = {
    "agreement": "agreement_excess",
    "error_consistency": "error_consistency",
    "copied_errors": "copied_errors",
    "kl_T1": "kl_T1",
    "kl_T4": "kl_T4",
    "js": "js",
    "ece": "ece",
    "nll": "nll",
}
_TEACHERS = {OWN: "own teacher"}
_LOUDEST_CLASSES, _WORSE_CLASSES = 10, 5


class Shown(NamedTuple):
    """A cell of the page: its text, and the functions that make its number."""

    text: str
    formula: str


def grid(fidelity: Fidelity) -> Grid:
    """Parts of every likeness, or likeness alone without ``hard``; own is bold where decided."""
    return _parts(fidelity) if len(fidelity.whose) else _likenesses(fidelity)


def sections(fidelity: Fidelity, pictures: Mapping[Any, str] | None = None) -> dict[str, Any]:
    """What the template of the sections reads; ``pictures`` are thumbnails by id of their image."""
    return {
        "counted": _counted(fidelity),
        "grid": _with_formulas(grid(fidelity)),
        "teachers": _teachers(fidelity),
        "levels": _levels(fidelity),
        "classes": _classes(fidelity),
        "images": _images(fidelity, pictures or {}),
        "leading": fidelity.leading,
        "formulas": formulas(),
    }


def answer_formulas() -> str:
    """By which functions the numbers of the answer are made."""
    metrics = [METRICS[name].home for name in ("instance", "kind_instance", "own_instance")]
    return " ".join([*metrics, METRICS["accuracy"].home, home(parts), home(paired_difference)])


def formulas() -> dict[str, str]:
    """By which functions the numbers of the sections are made, as ``module.function``."""
    mean, own_instance = home(t_interval), METRICS["own_instance"].home
    return {
        "parts": f"{own_instance} {home(parts)}",
        "levels": f"{METRICS['accuracy'].home} {mean}",
        "teachers": f"{METRICS['accuracy'].home} {METRICS['instance'].home}",
        "classes": f"{own_instance} {METRICS['accuracy'].home} {mean}",
        "images": f"{METRICS['instance'].home} {own_instance}",
    }


def _counted(fidelity: Fidelity) -> str:
    seeds = sorted({len(fidelity.seeds(objective)) for objective in fidelity.objectives})
    several = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    plural = "" if seeds == [1] else "s"
    siblings = f"{fidelity.siblings} sibling{'' if fidelity.siblings == 1 else 's'}"
    own_teachers = len(fidelity.teachings)
    if own_teachers > 1:
        siblings = f"{own_teachers} teachers with students of their own, each with {siblings}"
    return f"{fidelity.num_images} images, {several} seed{plural} an objective, {siblings}"


def _parts(fidelity: Fidelity) -> Grid:
    titles = ("objective", "likeness", "task", "kind", "own", "own, 95 % over seeds")
    head = (*titles, "own, 95 % over teachers", "ceiling", "verdict")
    labels, rows = [], []
    for objective in fidelity.objectives:
        for metric, (title, _) in LIKENESSES.items():
            parts = fidelity.parts(metric, objective) if objective != BASELINE else {}
            if parts:
                labels.append((objective, title))
                rows.append(_cells(parts, fidelity.decided(metric, objective)))
    several = len(fidelity.teachings) > 1
    deciding = "the interval over teachers leaves out" if several else "both intervals leave out"
    caption = (
        f"Likeness to the own teacher is task + kind + own ({_counted(fidelity)}). Own is decided, "
        f"and set in bold, where {deciding} 0 and it is above own of the negative controls."
    )
    return Grid(tuple(map(Cell, head)), tuple(labels), tuple(rows), caption)


def _cells(parts: Mapping[str, Part], decided: bool) -> tuple[Cell, ...]:
    part = parts["own"]
    few = math.isnan(part.over_teachers.low)
    return (
        Cell(number(parts["task"].value)),
        Cell(number(parts["kind"].value, signed=True)),
        Cell(number(part.value, signed=True), bold=decided),
        Cell(_ends(part.over_seeds)),
        Cell(_ends(part.over_teachers)),
        Cell(number(parts["ceiling"].value)),
        Cell("decided" if decided else "not decidable" if few else "undecided"),
    )


def _ends(interval: Interval) -> str:
    if math.isnan(interval.low):
        return MISSING
    return f"[{number(interval.low)}, {number(interval.high)}]"


def _likenesses(fidelity: Fidelity) -> Grid:
    labels, rows = [], []
    for objective in fidelity.objectives:
        for metric, (title, _) in LIKENESSES.items():
            to_own, to_siblings = (
                _over_seeds(fidelity.pairs, objective, metric, own_teacher)
                for own_teacher in (True, False)
            )
            labels.append((objective, title))
            seeds = str(len(fidelity.seeds(objective)))
            rows.append((Cell(estimate(to_own)), Cell(estimate(to_siblings)), Cell(seeds)))
    head = ("objective", "likeness", "to its own teacher", "to siblings", "seeds")
    caption = (
        f"Likeness with 95 % t-intervals over seeds ({_counted(fidelity)}). Without students of "
        "the objective hard it can't be taken apart into task, kind and own."
    )
    return Grid(tuple(map(Cell, head)), tuple(labels), tuple(rows), caption)


def _over_seeds(
    pairs: pd.DataFrame, objective: str, metric: str, own_teacher: bool = True
) -> Interval | None:
    """Mean over seeds, of siblings each seed's mean over them; None where it is undefined."""
    chosen = pairs[(pairs["objective"] == objective) & (pairs["metric"] == metric)]
    beside = chosen["teacher"].isin([OWN, ""])
    chosen = chosen[beside if own_teacher else ~beside]
    by_seed = chosen.groupby("seed")["value"].mean().dropna()
    # KL is infinite where a student has a probability of 0 that its teacher has not.
    if np.isinf(by_seed).any():
        return Interval(len(by_seed), math.inf, math.nan, math.nan)
    return None if by_seed.empty else t_interval(by_seed.to_numpy())


def _with_formulas(grid: Grid) -> dict[str, Any]:
    """The printed table, each number with what makes it."""
    by_title = {title: name for name, (title, _) in LIKENESSES.items()}
    rows = []
    for labels, cells in zip(grid.labels, grid.cells, strict=True):
        name = by_title[labels[1]]
        formula = f"{METRICS[name].home} {METRICS[f'own_{name}'].home} {home(t_interval)}"
        rows.append((labels, cells, formula))
    return {"head": grid.head, "rows": rows, "caption": grid.caption}


def _teachers(fidelity: Fidelity) -> list[tuple[str, ...]]:
    """How accurate teachers are and how alike: siblings are as near to theirs as to each other."""
    several = len(fidelity.teachings) > 1
    rows: list[tuple[str, ...]] = []
    for row in fidelity.teachers.to_dict("records"):
        # Every teacher has its own place once; beside the others it is a sibling like any.
        if several and row["teacher"] != OWN:
            continue
        name = f"teacher {row['taught_by']}" if several else _TEACHERS.get(row["teacher"], "")
        between = f"{number(row['lowest'])} to {number(row['highest'])}"
        rows.append((name or f"sibling {row['teacher']}", number(row["accuracy"]), between))
    return rows


def _levels(fidelity: Fidelity) -> dict[str, Any]:
    """Accuracy, agreement, divergences and calibration, objective by objective."""
    mean = home(t_interval)
    right = fidelity.accuracy
    shown = [
        name for name in _LEVELS if fidelity.pairs.query("metric == @name")["value"].notna().any()
    ]
    rows = []
    for objective in fidelity.objectives:
        by_seed = right[right["objective"] == objective].groupby("seed")["value"].mean()
        accuracy = t_interval(by_seed.to_numpy())
        cells = [Shown(estimate(accuracy), f"{METRICS['accuracy'].home} {mean}")]
        for name in shown:
            value = _over_seeds(fidelity.pairs, objective, name)
            few = _few_errors(fidelity, objective, name)
            if value is not None and math.isinf(value.mean):
                text = "∞"
            else:
                text = number(value.mean) if few and value else estimate(value)
            text += _beside(fidelity, objective, name)
            cells.append(Shown(text, f"{METRICS[_LEVELS[name]].home} {mean}"))
        rows.append((objective, cells))
    teacher = float(right[right["objective"] == ""]["value"].mean())
    titles = ["accuracy", *(METRICS[_LEVELS[name]].title for name in shown)]
    return {"titles": titles, "rows": rows, "teacher": number(teacher)}


def _beside(fidelity: Fidelity, objective: str, metric: str) -> str:
    """What a level is read against: differing images, or the highest κ; means over students."""
    chosen = fidelity.answers[fidelity.answers["objective"] == objective]
    means = chosen[["differing", "expected", "highest"]].mean()
    if metric == "agreement":
        return (
            f"; {means['differing']:.0f} images differ, {means['expected']:.0f} by accuracy alone"
        )
    if metric == "error_consistency" and not math.isnan(means["highest"]):
        return f", at most {number(means['highest'], 2)}"
    return ""


def _few_errors(fidelity: Fidelity, objective: str, metric: str) -> bool:
    """Whether a figure of errors rests on too few of them, in some seed, for an interval."""
    if metric == "copied_errors":
        pairs = fidelity.pairs[fidelity.pairs["teacher"] == OWN]
        chosen = pairs[(pairs["objective"] == objective) & (pairs["metric"] == metric)]
        return bool((chosen["n"] < FEW_ERRORS).any())
    if metric == "error_consistency":
        right = fidelity.accuracy[fidelity.accuracy["objective"].isin([objective, ""])]
        return bool(((1 - right["value"]) * right["n"]).round().lt(FEW_ERRORS).any())
    return False


def _classes(fidelity: Fidelity) -> list[tuple[Any, ...]]:
    """What is shown of classes under the leading objective: most own first, then what got worse."""
    table = fidelity.of_classes
    if table.empty:
        return []
    leading = table[(table["objective"] == fidelity.leading) & (table["metric"] == "instance")]
    loudest = leading.dropna(subset="own").sort_values("own", ascending=False)
    loudest = loudest.head(_LOUDEST_CLASSES)
    change = leading["accuracy"] - leading["hard_accuracy"]
    worse = leading.assign(change=change).query("change < 0").sort_values("change")
    worse = worse[~worse["class"].isin(loudest["class"])].head(_WORSE_CLASSES)
    return [_of_class(row) for row in [*loudest.to_dict("records"), *worse.to_dict("records")]]


def _of_class(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    return (
        row["class"],
        int(row["n"]),
        number(row["own"], signed=True),
        _ends(Interval(int(row["seeds"]), row["own"], row["seed_low"], row["seed_high"])),
        number(row["kind"], signed=True),
        number(row["accuracy"]),
        number(row["hard_accuracy"]),
    )


def _images(fidelity: Fidelity, pictures: Mapping[Any, str]) -> list[tuple[Any, ...]]:
    rows = []
    for _, row in fidelity.images.iterrows():
        shares = [number(row[name], 2) for name in ("students", "hard", "siblings")]
        value = number(row["value"], 2, signed=True)
        picture = pictures.get(row["id"], "")
        rows.append((row["id"], row["class"], row["teacher_second"], value, *shares, picture))
    return rows

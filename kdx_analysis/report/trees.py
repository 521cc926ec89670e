"""What the trees of the runs support: are they a property of the objective?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdx_analysis import null
from kdx_analysis.runs import RunSet, TreePairs, explainers
from kdx_analysis.runs.tables.numbers import listed, number
from kdx_analysis.runs.trees import (
    CORRELATION,
    DISTANCE,
    NEITHER,
    OBJECTIVE,
    SEED,
    Dealt,
    objective_mark,
)

_GROUPS = {
    OBJECTIVE: "trees of one objective under two seeds",
    SEED: "trees of two objectives under one seed",
    NEITHER: "trees with neither in common",
}


def newicks(runs: RunSet) -> pd.DataFrame:
    """The trees of all explainers: run, objective, seed, epoch, newick.

    Raises KdxError if one has no gates.
    """
    rows = [
        (run.id, run.objective, run.seed, run.selected_epoch, run.tree.to_newick())
        for run in runs.filter(role="explainer")
    ]
    return pd.DataFrame(rows, columns=["run", "objective", "seed", "epoch", "newick"])


def trees_sentence(runs: RunSet) -> list[str]:
    """How alike the explainers' trees are, and what follows for the objective.

    The verdict of :func:`objective_mark` rests on the cophenetic correlation, which counts likeness
    by degrees; shared clades are all or nothing. Raises KdxError if an explainer has no
    gates.
    """
    pairs = explainers(runs).tree_pairs
    return [*filter(None, [_clades(pairs), _correlations(pairs)]), _verdict(pairs)]


def _clades(pairs: TreePairs) -> str:
    parts = []
    for group, title in _GROUPS.items():
        values, draws = pairs.of(DISTANCE, group)
        if len(values):
            parts.append(
                f"{title} share {number(100 * (1 - values.mean()), 0)} % of their clades "
                f"(Robinson–Foulds distance {number(values.mean(), 2)}, n = {_counted(values)}; "
                f"random leaf order {number(100 * (1 - draws.mean()), 0)} %)"
            )
    return f"{_sentence(parts)} A clade is the group of subtasks under an expert." if parts else ""


def _correlations(pairs: TreePairs) -> str:
    parts = []
    for group, title in _GROUPS.items():
        values, draws = pairs.of(CORRELATION, group)
        if len(values):
            parts.append(
                f"for {title} {number(values.mean(), 2)} (n = {_counted(values)}; random leaf "
                f"order {_range(draws)})"
            )
    if not parts:
        return ""
    return (
        f"Of the levels at which subtasks part, the mean cophenetic correlation is {listed(parts)}."
    )


def _verdict(pairs: TreePairs) -> str:
    mark, dealt = objective_mark(pairs)
    beyond = "rees of one objective are more alike over seeds than random leaf order makes them"
    sentences = {
        "one seed": "Undecidable: whether the tree is a property of the objective, as no objective "
        "was run with two seeds.",
        "no levels": "Undecidable: whether the tree is a property of the objective, as no two "
        "trees of one objective both part their subtasks on more than one level.",
        "like chance": "The tree is not shown to be a property of the objective: under another "
        "seed the same objective gives a tree that is not clearly more alike than random leaf "
        "order makes it.",
        "one objective": f"T{beyond}; with one objective nothing tells whether that is due to the "
        "objective or to the data.",
    }
    return sentences[mark] if dealt is None else _by_dealing(mark, dealt, f"t{beyond}")


def _by_dealing(mark: str, dealt: Dealt, beyond: str) -> str:
    if mark == "few dealings":
        return (
            f"Undecided: {beyond}, but there are only {dealt.dealings} ways to deal the "
            "objectives to the runs of each seed, too few to tell the objective's part from the "
            "data's."
        )
    rarely = (
        f"{dealt.alike} of {dealt.dealings} ways to deal the objectives to the runs of each seed "
        "make them as alike"
    )
    if mark == "like others":
        return (
            f"The tree is not shown to be a property of the objective: {beyond}, but hardly more "
            f"than trees of different objectives ({rarely})."
        )
    return f"The tree is in part a property of the objective: {beyond}, and {rarely}."


def _sentence(parts: list[str]) -> str:
    text = listed(parts)
    return f"{text[0].upper()}{text[1:]}."


def _counted(values: np.ndarray) -> str:
    return f"{len(values)} pair{'' if len(values) == 1 else 's'}"


def _range(draws: np.ndarray) -> str:
    """The mean of a group under random leaf order, and what holds one more draw with 95 %."""
    beside = null.beside_one(draws)
    low, high = (number(beside[end], 2) for end in ("null_low", "null_high"))
    return f"{number(beside['null_mean'], 2)}, 95 % of draws {low} to {high}"

"""What the trees of the runs support: are they a property of the objective?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdx_analysis import null
from kdx_analysis.plots.figure import explainers
from kdx_analysis.report.numbers import listed, number
from kdx_analysis.runs import RunSet, TreePairs, deal_objectives, tree_pairs
from kdx_analysis.runs.trees import CORRELATION, DISTANCE, NEITHER, OBJECTIVE, SEED

_RARE = 0.05
_GROUPS = {
    OBJECTIVE: "trees of one objective under two seeds",
    SEED: "trees of two objectives under one seed",
    NEITHER: "trees with neither in common",
}


def newicks(runs: RunSet) -> pd.DataFrame:
    """The trees of all explainers: run, objective, seed, epoch, newick. Raises KdxError if one has
    no gates.
    """
    rows = [
        (run.id, run.objective, run.seed, run.selected_epoch, run.tree.to_newick())
        for run in runs.filter(role="explainer")
    ]
    return pd.DataFrame(rows, columns=["run", "objective", "seed", "epoch", "newick"])


def trees_sentence(runs: RunSet) -> list[str]:
    """How alike the explainers' trees are, beside random leaf order, and what follows for the
    objective.

    The verdict rests on the cophenetic correlation, which counts likeness by degrees; shared clades
    are all or nothing. The tree is called a property of the objective where trees of one objective
    under two seeds are more alike than 19 of 20 random leaf orders, and than under 19 of 20
    dealings of the objectives to the runs of each seed. Raises KdxError if an explainer has no
    gates.
    """
    pairs = tree_pairs(explainers(runs))
    return [*filter(None, [_clades(pairs), _correlations(pairs)]), _verdict(pairs, runs)]


def _clades(pairs: TreePairs) -> str:
    held = {group: pairs.of(DISTANCE, group) for group in _GROUPS}
    parts = [
        f"{_GROUPS[group]} share {number(100 * (1 - values.mean()), 0)} % of their clades "
        f"(Robinson–Foulds distance {number(values.mean(), 2)}, n = {_counted(values)}; "
        f"random leaf order {number(100 * (1 - draws.mean()), 0)} %)"
        for group, (values, draws) in held.items()
        if len(values)
    ]
    return f"{_sentence(parts)} A clade is the group of subtasks under an expert." if parts else ""


def _correlations(pairs: TreePairs) -> str:
    held = {group: pairs.of(CORRELATION, group) for group in _GROUPS}
    parts = [
        f"for {_GROUPS[group]} {number(values.mean(), 2)} (n = {_counted(values)}; random leaf "
        f"order {_range(draws)})"
        for group, (values, draws) in held.items()
        if len(values)
    ]
    return (
        f"Of the levels at which subtasks part, the mean cophenetic correlation is {listed(parts)}."
        if parts
        else ""
    )


def _verdict(pairs: TreePairs, runs: RunSet) -> str:
    found = explainers(runs)
    values, draws = pairs.of(CORRELATION, OBJECTIVE)
    if not (pairs.table["shared"] == OBJECTIVE).any():
        return "Undecidable: whether the tree is a property of the objective, as no objective was run with two seeds."
    if not len(values):
        return (
            "Undecidable: whether the tree is a property of the objective, as no two trees of one "
            "objective both part their subtasks on more than one level."
        )
    if null.p_value(values.mean(), draws, "greater") > _RARE:
        return (
            "The tree is not shown to be a property of the objective: under another seed the same "
            "objective gives a tree that is not clearly more alike than random leaf order makes it."
        )
    beyond = "Trees of one objective are more alike over seeds than random leaf order makes them"
    if len(found.objectives) < 2:
        return f"{beyond}; with one objective nothing tells whether that is due to the objective or to the data."
    dealt = deal_objectives(pairs.table)
    if dealt.exact and 1 / dealt.dealings > _RARE:
        return (
            f"Undecided: {beyond[0].lower()}{beyond[1:]}, but there are only {dealt.dealings} ways "
            "to deal the "
            "objectives to the runs of each seed, too few to tell the objective's part from the "
            "data's."
        )
    rarely = f"{dealt.alike} of {dealt.dealings} ways to deal the objectives to the runs of each seed make them as alike"
    if dealt.alike / dealt.dealings > _RARE:
        return (
            "The tree is not shown to be a property of the objective: "
            f"{beyond[0].lower()}{beyond[1:]}, but hardly more than trees of different objectives "
            f"({rarely})."
        )
    return f"The tree is in part a property of the objective: {beyond[0].lower()}{beyond[1:]}, and {rarely}."


def _sentence(parts: list[str]) -> str:
    text = listed(parts)
    return f"{text[0].upper()}{text[1:]}."


def _counted(values: np.ndarray) -> str:
    return f"{len(values)} pair{'' if len(values) == 1 else 's'}"


def _range(draws: np.ndarray) -> str:
    """The mean of a group under random leaf order, and the range that holds one more draw with 95
    %.
    """
    beside = null.beside_one(draws)
    low, high = (number(beside[end], 2) for end in ("null_low", "null_high"))
    return f"{number(beside['null_mean'], 2)}, 95 % of draws {low} to {high}"

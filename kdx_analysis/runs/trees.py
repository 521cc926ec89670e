"""How far the trees of several runs agree: every pair of runs, beside a null.

The null are the same trees with their leaves permuted. Whether the objective leaves a mark on the
tree is asked besides, by dealing the objectives anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product
from math import factorial, prod
from typing import Literal

import numpy as np
import pandas as pd
import torch

from kdx_analysis import null
from kdx_analysis.models.tree import Tree
from kdx_analysis.models.tree.compare import clade_distance, permuted
from kdx_analysis.runs.run import Run

OBJECTIVE, SEED, NEITHER = "objective", "seed", "neither"
DISTANCE, CORRELATION = "robinson_foulds", "cophenetic_correlation"
_NULL_DRAWS = 199
_MOST_DEALINGS = 999
_RARE = 0.05
_SEED = 0  # of the null and of the dealings, so that a report says the same when it is made again
Mark = Literal[
    "one seed", "no levels", "like chance", "one objective", "few dealings", "like others", "shown"
]


@dataclass(frozen=True)
class TreePairs:
    """How alike the trees of every two of some runs are.

    Attributes:
        table: two rows per pair, of the measures robinson_foulds (in [0, 1], 0 the same clades) and
            cophenetic_correlation (in [−1, 1]): measure, run_a, run_b, objective_a, objective_b,
            seed_a, seed_b, shared (objective, seed or neither), value (NaN where undefined),
            null_mean, null_low, null_high (what holds one more draw with 95 %), null_undefined,
            draws.
        null: draws×rows, the same once the leaves of every tree are permuted, each tree's on its
            own.
    """

    table: pd.DataFrame
    null: np.ndarray

    def of(self, measure: str, shared: str) -> tuple[np.ndarray, np.ndarray]:
        """Defined values over pairs with this ``shared``, and their mean in every draw of the null.

        Args:
            measure: robinson_foulds or cophenetic_correlation.
            shared: objective, seed or neither.
        """
        chosen = (
            (self.table["measure"] == measure)
            & (self.table["shared"] == shared)
            & self.table["value"].notna()
        )
        values = self.table.loc[chosen, "value"].to_numpy()
        return values, self.null[:, chosen.to_numpy()].mean(axis=1) if len(values) else np.empty(0)


def tree_pairs(explainers: Iterable[Run]) -> TreePairs:
    """Every pair of ``explainers``, one for each objective and seed.

    Raises KdxError if one has no gates, or if two are about different classes.
    """
    runs = list(explainers)
    pairs = list(combinations(runs, 2))
    for run in runs[1:]:
        runs[0].tree.robinson_foulds(run.tree)  # refuses other classes
    generator = torch.Generator().manual_seed(_SEED)
    values = _likeness([run.tree for run in runs])
    draws = []
    for _ in range(_NULL_DRAWS):
        draws.append(_likeness([permuted(run.tree, generator) for run in runs]))
    table = pd.DataFrame(
        {
            "measure": np.repeat([DISTANCE, CORRELATION], len(pairs)),
            "run_a": [a.id for a, _ in pairs] * 2,
            "run_b": [b.id for _, b in pairs] * 2,
            "objective_a": [a.objective for a, _ in pairs] * 2,
            "objective_b": [b.objective for _, b in pairs] * 2,
            "seed_a": [a.seed for a, _ in pairs] * 2,
            "seed_b": [b.seed for _, b in pairs] * 2,
            "shared": [_shared(a, b) for a, b in pairs] * 2,
            "value": values,
            **null.beside(np.array(draws)),
        }
    )
    return TreePairs(table.assign(draws=_NULL_DRAWS), np.array(draws))


def _likeness(trees: Sequence[Tree]) -> np.ndarray:
    """Of all pairs i < j, first the distances, then the correlations."""
    distances = [clade_distance(a.clades, b.clades) for a, b in combinations(trees, 2)]
    above = np.triu_indices(len(trees[0].classes), k=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # constant ones are NaN
        correlations = np.atleast_2d(
            np.corrcoef([tree.cophenetic().numpy()[above] for tree in trees])
        )
    return np.array([*distances, *correlations[np.triu_indices(len(trees), k=1)]])


def _shared(a: Run, b: Run) -> str:
    return OBJECTIVE if a.objective == b.objective else SEED if a.seed == b.seed else NEITHER


@dataclass(frozen=True)
class Dealt:
    """How many of the ``dealings`` of objectives make trees of one objective as alike.

    Objectives are dealt to the runs of each seed. The dealing that was observed is one of both.
    ``exact``: they are all that there are, not a sample.
    """

    alike: int
    dealings: int
    exact: bool


def deal_objectives(table: pd.DataFrame) -> Dealt:
    """Does the objective leave a mark? Deal the objectives anew to the runs within every seed.

    Counts how often the mean cophenetic correlation of pairs with one objective and two seeds is as
    great as it is. Where the objective does not matter every dealing is as likely, whatever the
    seed does to the trees.

    Args:
        table: that of :class:`TreePairs`.
    """
    table = table[table["measure"] == CORRELATION]
    runs = _ends(table)
    place = {run: i for i, run in enumerate(runs["run"])}
    likeness = np.full((len(runs), len(runs)), np.nan)
    likeness[table["run_a"].map(place), table["run_b"].map(place)] = table["value"]
    apart = (runs["seed"].to_numpy()[:, None] != runs["seed"].to_numpy()) & ~np.isnan(likeness)
    objectives = pd.factorize(runs["objective"])[0]

    def within(labels: np.ndarray) -> float:
        chosen = likeness[apart & (labels[:, None] == labels)]
        return float(chosen.mean()) if len(chosen) else -np.inf

    blocks = [objectives[runs["seed"] == seed] for seed in runs["seed"].unique()]
    count = prod(factorial(len(block)) for block in blocks[1:])
    exact = count <= _MOST_DEALINGS
    others = _other_dealings(blocks) if exact else _some_dealings(blocks)
    draws = np.array([within(labels) for labels in others])
    alike = 1 + int(null.as_extreme(within(objectives), draws, "greater").sum())
    return Dealt(alike, 1 + len(draws), exact)


def _ends(table: pd.DataFrame) -> pd.DataFrame:
    """The runs of all pairs, by seed and objective: run, objective, seed."""
    names = ["run", "objective", "seed"]
    ends = []
    for end in "ab":
        ends.append(table[[f"{name}_{end}" for name in names]].set_axis(names, axis=1))
    runs = pd.concat(ends).drop_duplicates("run").sort_values(["seed", "objective"])
    return runs.reset_index(drop=True)


def objective_mark(pairs: TreePairs) -> tuple[Mark, Dealt | None]:
    """Whether the tree is a property of the objective, and the dealings where they were needed.

    It is ``shown`` where trees of one objective under two seeds are more alike, by their mean
    cophenetic correlation, than 19 of 20 random leaf orders, and than under 19 of 20 dealings of
    the objectives to the runs of each seed. Otherwise why it is not: ``one seed`` for every
    objective; ``no levels`` on which two trees of one objective part their subtasks; ``like
    chance``, not more alike than random leaf orders; ``one objective`` alone; ``few dealings`` to
    compare with; ``like others``, not more alike than trees of different objectives.
    """
    values, draws = pairs.of(CORRELATION, OBJECTIVE)
    if not (pairs.table["shared"] == OBJECTIVE).any():
        return "one seed", None
    if not len(values):
        return "no levels", None
    if null.p_value(values.mean(), draws, "greater") > _RARE:
        return "like chance", None
    if _ends(pairs.table)["objective"].nunique() < 2:
        return "one objective", None
    dealt = deal_objectives(pairs.table)
    if dealt.exact and 1 / dealt.dealings > _RARE:
        return "few dealings", dealt
    return ("like others" if dealt.alike / dealt.dealings > _RARE else "shown"), dealt


def _other_dealings(blocks: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """All labels of the runs but those that they have, seed by seed.

    The first seed's stay, as only who goes with whom counts.
    """
    dealings = product(*(permutations(block) for block in blocks[1:]))
    next(dealings)  # that which was observed
    for rest in dealings:
        yield np.concatenate([blocks[0], *map(np.array, rest)])


def _some_dealings(blocks: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(_SEED)
    for _ in range(_MOST_DEALINGS):
        yield np.concatenate([blocks[0], *(rng.permutation(block) for block in blocks[1:])])

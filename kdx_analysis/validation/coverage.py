"""Do the nulls' ranges hold what they say, and are the p-values no smaller than they may be?

A null is right where the value beside it is one more draw of it: of such values the printed range
must hold 95 %, and p ≤ .05 may hold for 5 %. Every room that prints a range is asked, by the way
that its tables go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch

from kdx_analysis import null
from kdx_analysis.models import Tree
from kdx_analysis.probes.affinity import affinity_table
from kdx_analysis.probes.agreement import mantel
from kdx_analysis.probes.claims import output_table
from kdx_analysis.probes.conflict import modulation
from kdx_analysis.probes.conflict.grams import Grams
from kdx_analysis.probes.conflict.tables import conflict_tables
from kdx_analysis.probes.faithfulness.ablation import related
from kdx_analysis.probes.faithfulness.sanity import Randomisation
from kdx_analysis.probes.gates.record import GateRecord
from kdx_analysis.runs.statistics.correlation import rank_correlation
from kdx_analysis.runs.trees import CORRELATION, tree_pairs
from kdx_analysis.validation.outcome import Row

SIZES = (39, 199, 999)  # the fewest draws that have a range, and more
VALUES = 10_000
GATES = ("entropy", "use_cv2", "specialisation", "routing_distance")
NOMINAL = 0.95
RARE = 0.05
# By how much a share of 10,000 values may miss what is wanted: over four of its standard errors.
SLACK = 0.01
ERRORS = 3  # standard errors by which a share of fewer values may miss what is wanted


@dataclass(frozen=True)
class Draws:
    """Values that are draws of their null: which lie in its range, and their p-values by name."""

    inside: np.ndarray
    p: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Room:
    """What prints a range.

    Attributes:
        name: whose null.
        draw: from R, how many values are wanted and a seed, to the values.
        sizes: the R that are tried.
        tied: whether draws may equal each other; then the range may hold more than 95 %.
        share: of the values that are asked for, where each takes many milliseconds.
    """

    name: str
    draw: Callable[[int, int, int], Draws]
    sizes: tuple[int, ...] = SIZES
    tied: bool = False
    share: float = 1.0


def coverage(seed: int = 0, values: int = VALUES) -> list[Row]:
    """How many values each room's range holds at each R, and how many p-values are ≤ .05.

    That is a row for each range and for each p-value.

    Args:
        seed: of all draws.
        values: that are drawn for each row, or somewhat more.
    """
    rows = []
    for place, draws in trials():
        rows += of_room(place, draws, values, seed)
    return rows


def trials() -> list[tuple[int, int]]:
    """Every room, by its place in ROOMS, with every R that it is asked at."""
    return [(place, draws) for place, room in enumerate(ROOMS) for draws in room.sizes]


def of_room(place: int, draws: int, values: int, seed: int = 0) -> list[Row]:
    """The rows of one room at one R; arguments as for :func:`coverage`."""
    room = ROOMS[place]
    return list(_rows(room, draws, room.draw(draws, max(1, round(values * room.share)), seed)))


def _rows(room: Room, draws: int, values: Draws) -> Iterator[Row]:
    n = len(values.inside)
    if n:
        share = float(values.inside.mean())
        least, most = NOMINAL - _slack(n), 1.0 if room.tied else NOMINAL + _slack(n)
        wanted = f"≥ {least:.3f}" if room.tied else f"{least:.3f} to {most:.3f}"
        yield Row(
            f"share in the null's range, R = {draws}",
            room.name,
            share,
            wanted,
            n,
            least <= share <= most,
        )
    for name, p in values.p.items():
        rare, most = float((p <= RARE).mean()), RARE + _slack(len(p))
        yield Row(
            f"{name} ≤ {RARE:g}, R = {draws}",
            room.name,
            rare,
            f"≤ {most:.3f}",
            len(p),
            rare <= most,
        )


def _slack(n: int) -> float:
    """A hundredth, or what so few values leave to chance."""
    return max(SLACK, ERRORS * math.sqrt(RARE * NOMINAL / n))


def _inside(table: pd.DataFrame, value: str = "value") -> np.ndarray:
    """Which rows' values lie in their ranges; a range that is missing holds nothing."""
    return ((table["null_low"] <= table[value]) & (table[value] <= table["null_high"])).to_numpy()


def _calls(values: int, each: int) -> range:
    """As many as give ``values``, ``each`` a call."""
    return range(-(-values // each))


def _pairs(draws: int, values: int, seed: int) -> Draws:
    """Cosines of random gradients, the first set of them one more of the null's."""
    generator, K = torch.Generator().manual_seed(seed), 46
    inside = []
    for _ in _calls(values, K * (K - 1) // 2):
        gradients = torch.randn(1 + draws, 1, K, 6, generator=generator, dtype=torch.float64)
        pairs, _ = conflict_tables(
            Grams((gradients @ gradients.mT,), None), [str(k) for k in range(K)]
        )
        inside.append(_inside(pairs[pairs["level"] == "all"], "cosine"))
    return Draws(np.concatenate(inside))


def _affinities(draws: int, values: int, seed: int) -> Draws:
    generator, K = torch.Generator().manual_seed(seed), 33
    inside = []
    for _ in _calls(values, K * (K - 1)):
        # A long tail to one side, as affinities have.
        z = torch.randn(1 + draws, K, K, generator=generator, dtype=torch.float64).exp().neg()
        table = affinity_table(z, [str(k) for k in range(K)])
        inside.append(_inside(table[table["metric"] == "affinity"]))
    return Draws(np.concatenate(inside))


def _claims(draws: int, values: int, seed: int) -> Draws:
    """Subtasks that claim images whatever the others do."""
    generator, K = torch.Generator().manual_seed(seed), 46
    inside = []
    for call in _calls(values, K * (K - 1) // 2):
        margins = torch.randn(20, K, generator=generator)
        table = output_table(margins, [str(k) for k in range(K)], draws, seed + call)
        inside.append(_inside(table[table["metric"] == "claimed_by_both"]))
    return Draws(np.concatenate(inside))


def _one_by_one(draws: int, values: int, seed: int) -> Draws:
    """A metric of its own, as in the summaries of conflict and contention."""
    generator = torch.Generator().manual_seed(seed)
    metric = torch.rand(values, 1 + draws, generator=generator, dtype=torch.float64)
    return Draws(
        _inside(pd.DataFrame([{"metric": "metric", **null.with_value(row)} for row in metric]))
    )


def _modulations(draws: int, values: int, seed: int) -> Draws:
    """Gates whose rows were drawn alike, so that any order of them is as likely.

    Gradients are drawn like their null's.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = []
    for _ in range(values):
        gradients = torch.randn(1 + draws, 3, 5, 4, generator=generator, dtype=torch.float64)
        gates = torch.rand(5, 3, generator=generator, dtype=torch.float64).mul(3).softmax(dim=1)
        value, p = modulation(gradients @ gradients.mT, gates, 39, generator)
        tables.append({"metric": "modulation", **null.with_value(value), "p": float(p[0])})
    table = pd.DataFrame(tables)
    return Draws(_inside(table), {"p of modulation": table["p"].to_numpy()})


def _gates(draws: int, values: int, seed: int) -> Draws:
    """Untrained gates beside random ones, of experts whose features spread alike."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    shapes = ((4, 1), (5, 4), (3, 5), (6, 3))
    ones = [torch.ones(shape[1], 1, dtype=torch.float64) for shape in shapes]
    inside: list[np.ndarray] = []
    while sum(map(len, inside)) < values:
        alpha = tuple(
            torch.rand(shape, generator=generator, dtype=torch.float64).div(0.2).softmax(dim=1)
            for shape in shapes
        )
        record = GateRecord(
            model="",
            classes=tuple("abcdef"),
            temperature=0.2,
            top_k=None,
            alpha=alpha,
            sums=tuple(features.sum() * one for one in ones),
            squares=tuple((features**2).sum() * one for one in ones),
            labels=torch.arange(2),
        )
        table = record.summary(null_draws=draws, seed=seed + len(inside))
        inside.append(
            _inside(table[(table["attention"] == "effective") & table["metric"].isin(GATES)])
        )
    return Draws(np.concatenate(inside))


def _mantel(classes: int) -> Callable[[int, int, int], Draws]:
    def draw(draws: int, values: int, seed: int) -> Draws:
        generator = torch.Generator().manual_seed(seed)
        tables = torch.rand(values, 2, classes, classes, generator=generator, dtype=torch.float64)
        tests = pd.DataFrame([vars(mantel(x, y, draws, generator)) for x, y in tables])
        return Draws(_inside(tests), {"p": tests["p"].to_numpy()})

    return draw


def _ablations(draws: int, values: int, seed: int) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    tables = torch.rand(values, 2, 5, 4, generator=generator, dtype=torch.float64)
    correlations = pd.DataFrame(
        [related(mass, table, draws, seed + i) for i, (mass, table) in enumerate(tables)]
    )
    return Draws(
        _inside(correlations),
        {"p": correlations["p"].to_numpy(), "p of subtasks": correlations["p_subtasks"].to_numpy()},
    )


def _sanity(draws: int, values: int, seed: int) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    rho = torch.rand(values, 1 + draws, generator=generator, dtype=torch.float64) * 2 - 1
    names = [str(i) for i in range(values)]
    similarity = {name: row[:1].unsqueeze(0) for name, row in zip(names, rho, strict=True)}
    shifted = {name: row[1:] for name, row in zip(names, rho, strict=True)}
    return Draws(_inside(Randomisation(similarity, shifted).to_frame()))


def _accuracies(draws: int, values: int, seed: int) -> Draws:
    """Conflict and accuracy of eight runs that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    correlations = pd.DataFrame(
        [rank_correlation(conflict, accuracy) for conflict, accuracy in rng.random((values, 2, 8))]
    )
    return Draws(_inside(correlations, "rho"))


def _random_tree(rng: np.random.Generator, classes: int) -> Tree:
    """Of three levels: every subtask under any of three experts, and these under any of two."""
    attention = [np.ones((2, 1)), rng.random((3, 2)), rng.random((classes, 3))]
    return Tree.from_attention(
        [torch.from_numpy(rows) for rows in attention], [str(k) for k in range(classes)]
    )


def _tree_nulls(draws: int, values: int, seed: int) -> Draws:
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    correlations = []
    for _ in range(values):
        tree, distances = _random_tree(rng, 6), rng.random((6, 6))
        correlations.append(
            vars(tree.null("cophenetic_correlation", distances + distances.T, draws, generator))
        )
    # A tree without branches has no correlation, and so no range to lie in.
    table = pd.DataFrame(correlations).dropna(subset="value")
    return Draws(_inside(table), {"p": table["p"].to_numpy()})


def _tree_pairs(draws: int, values: int, seed: int) -> Draws:
    """Trees with subtasks dealt at random, in pairs, beside the same with leaves permuted."""
    rng = np.random.default_rng(seed)
    count = next(n for n in range(2, values + 3) if n * (n - 1) // 2 >= values)
    runs: list[Any] = [
        SimpleNamespace(id=str(i), objective="hard", seed=i, tree=_random_tree(rng, 6))
        for i in range(count)
    ]
    table = tree_pairs(runs).table
    return Draws(_inside(table[(table["measure"] == CORRELATION) & table["value"].notna()]))


ROOMS = (
    Room("cosines of pairs", _pairs),
    Room("affinity of pairs", _affinities),
    Room("images that two subtasks claim", _claims, tied=True),
    Room("summaries of conflict", _one_by_one),
    Room("modulation", _modulations),
    Room("gates", _gates),
    Room("Mantel's test, 7 classes", _mantel(7), tied=True),
    Room("Mantel's test, all orders of 5 classes", _mantel(5), sizes=(119,), tied=True),
    Room("ablation against attention", _ablations, tied=True),
    Room("attributions under random weights", _sanity),
    Room("accuracy against conflict", _accuracies, sizes=(999,), tied=True),
    Room("a tree's leaves permuted", _tree_nulls, sizes=(39,), tied=True),
    Room("a tree's leaves permuted", _tree_nulls, sizes=(199, 999), tied=True, share=0.02),
    Room("pairs of trees", _tree_pairs, sizes=(199,), tied=True),
)

"""Does one K×K table of distances agree with another? Mantel's test (Mantel 1967) and what routing
is held against.

Pure functions; axes: B samples, K classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations as all_orders
from typing import Literal

import numpy as np
import pandas as pd
import torch
from beartype import beartype
from jaxtyping import Float, Int, jaxtyped
from scipy.stats import rankdata
from torch import Tensor

from kdx_analysis import null
from kdx_analysis.probes.gates import formulas as gates

MIN_CLASSES = 5


@dataclass(frozen=True)
class Mantel:
    """Correlation of two tables over pairs of classes, and its null: classes permuted in one of
    them.

    ``p`` is one-sided, for a correlation above 0: (1 + #{null ≥ value})/(1 + draws). p and null are
    NaN below 5 classes and where a table is flat, and null_low and null_high also below 39
    ``draws``. These are the permutations: all K! − 1 other orders of the classes if they are no
    more than were asked for, which makes p exact, else random ones.
    """

    value: float
    p: float
    null_mean: float
    null_low: float
    null_high: float
    draws: int
    pairs: int


@jaxtyped(typechecker=beartype)
def mantel(
    x: Float[Tensor, "K K"],
    y: Float[Tensor, "K K"],
    permutations: int,
    generator: torch.Generator,
    method: Literal["spearman", "pearson"] = "spearman",
) -> Mantel:
    """Mantel's test of two tables of distances, each symmetrised: (D + Dᵀ)/2; the diagonal is left
    out.

    ``permutations`` of the classes make the null; ``method`` correlates ranks (spearman) or values
    (pearson).
    """
    K = len(x)
    a, b = np.triu_indices(K, k=1)
    tables = [((t + t.T) / 2).double().cpu().numpy() for t in (x, y)]
    if any(not np.isfinite(t[a, b]).all() or len(a) < 2 or np.ptp(t[a, b]) == 0 for t in tables):
        return Mantel(math.nan, math.nan, math.nan, math.nan, math.nan, 0, len(a))
    scored = []
    for table in tables:
        values = rankdata(table[a, b]) if method == "spearman" else table[a, b]
        values = (values - values.mean()) / np.linalg.norm(values - values.mean())
        square = np.zeros((K, K))
        square[a, b] = square[b, a] = values
        scored.append(square)
    value = float(scored[0][a, b] @ scored[1][a, b])
    if K < MIN_CLASSES:
        return Mantel(value, math.nan, math.nan, math.nan, math.nan, 0, len(a))
    if math.factorial(K) - 1 <= permutations:
        orders = np.array(list(all_orders(range(K)))[1:])  # the first is the classes' own
    else:
        orders = torch.rand(permutations, K, generator=generator).argsort(dim=1).numpy()
    draws = scored[0][orders[:, a], orders[:, b]] @ scored[1][a, b]
    beside = null.beside_one(draws)
    return Mantel(
        value,
        float(null.p_value(value, draws, "greater")),
        beside["null_mean"],
        beside["null_low"],
        beside["null_high"],
        len(orders),
        len(a),
    )


@jaxtyped(typechecker=beartype)
def teacher_distance(
    logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"], T: float
) -> Float[Tensor, "K K"]:
    """1 − (q_a[b] + q_b[a])/2 with q_a the teacher's mean softmax(v/T) over the samples of class a,
    0 on the diagonal.

    Small where the teacher takes samples of one class for the other; NaN for a class without
    samples.
    """
    return _distance(_class_means(logits.div(T).softmax(dim=1), labels))


@jaxtyped(typechecker=beartype)
def confusion_distance(
    choices: Int[Tensor, " B"], labels: Int[Tensor, " B"], num_classes: int
) -> Float[Tensor, "K K"]:
    """1 − mean share of samples of one class given the other, 0 on the diagonal; NaN for a class
    without samples.
    """
    given = torch.nn.functional.one_hot(choices, num_classes).double()
    return _distance(_class_means(given, labels))


def class_tree_distance(
    classes: Sequence[str], superclasses: Mapping[str, Sequence[str]]
) -> Tensor:
    """K×K: 0 for one class, 1 for two of one superclass, 2 for others; ``superclasses`` hold every
    class once.
    """
    of = {name: superclass for superclass, members in superclasses.items() for name in members}
    rows = [[0.0 if a == b else 1.0 if of[a] == of[b] else 2.0 for b in classes] for a in classes]
    return torch.tensor(rows, dtype=torch.float64)


def _class_means(values: Tensor, labels: Tensor) -> Tensor:
    """Means over the samples of each of the K classes, K×K."""
    return torch.stack([values[labels == k].double().mean(dim=0) for k in range(values.shape[1])])


def _distance(similarity: Tensor) -> Tensor:
    return (1 - (similarity + similarity.T) / 2).fill_diagonal_(0)


def agreement_table(
    paths: Mapping[str, Sequence[Tensor]],
    references: Mapping[str, Tensor],
    permutations: int,
    seed: int,
) -> pd.DataFrame:
    """Routing distance against each reference: level, attention, reference, method, and Mantel's
    value, p and null.

    Args:
        paths: attention (alpha, effective) → P^l, K×N_l for levels from 1; those with one expert
            are left out.
        references: name → K×K distances between classes.
    """
    rows = []
    for attention, levels in paths.items():
        for level, path in enumerate(levels, 1):
            if path.shape[1] == 1:
                continue
            distance = gates.routing_distance(path.double().cpu())
            for reference, against in references.items():
                for method in ("spearman", "pearson"):
                    generator = torch.Generator().manual_seed(seed)
                    found = mantel(
                        distance, against.double().cpu(), permutations, generator, method
                    )
                    keys = {
                        "level": level,
                        "attention": attention,
                        "reference": reference,
                        "method": method,
                    }
                    rows.append(keys | dataclasses.asdict(found))
    columns = ["value", "p", "null_mean", "null_low", "null_high", "draws", "pairs"]
    table = pd.DataFrame(rows, columns=["level", "attention", "reference", "method", *columns])
    return table.rename(columns={"draws": "null_draws"})

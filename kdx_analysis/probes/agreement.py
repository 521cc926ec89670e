"""Does one K×K table of distances agree with another? Mantel's test, and what routing is like.

Mantel 1967, The detection of disease clustering and a generalized regression approach. Pure
functions; axes: B samples, K classes.
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
from kdx_analysis.models import HME
from kdx_analysis.models.gates import pathways
from kdx_analysis.probes.conflict.formulas import upper
from kdx_analysis.probes.contract import Frames, Moment, Probe, probe_of
from kdx_analysis.probes.gates.formulas import mean_pathways, routing_distance
from kdx_analysis.probes.gates.probe import ATTENTION, both_attentions
from kdx_analysis.probes.subtasks import PAIR, pair_columns
from kdx_analysis.records import (
    DRAWS,
    EPOCH,
    UNDEFINED,
    count,
    kind,
    number,
    text,
    with_undefined,
)
from kdx_analysis.training import predict

MIN_CLASSES = 5  # below it there are 23 other orders at most, too few for a null

_LEVEL = count("level", "of the experts that are chosen from", low=1)
_SPLIT = text("split", "that gates are of; train where there is no column", optional=True)

kind(
    "routing",
    "One pair of subtasks: how differently they draw from a level's experts.",
    keys=(EPOCH, _SPLIT, _LEVEL, ATTENTION, *PAIR),
    values=(number("distance", "JSD of their pathways/ln 2", low=0, high=1), UNDEFINED),
    home=__name__,
)
kind(
    "agreement",
    "Mantel's test of routing distance against another distance of the classes.",
    keys=(
        EPOCH,
        _SPLIT,
        _LEVEL,
        ATTENTION,
        text("reference", "confusion on validation, teacher or class_tree"),
        text("method", "spearman or pearson"),
    ),
    values=(
        number("value", "correlation over pairs", low=-1, high=1),
        number("p", "one-sided, for a correlation above 0; classes permuted", low=0, high=1),
        UNDEFINED,
        DRAWS,
        count("pairs", "of classes"),
    ),
    null=True,
    home=__name__,
)


@dataclass(frozen=True)
class Mantel:
    """Correlation of two tables over pairs of classes, and its null.

    The null permutes the classes of one of them. ``p`` is one-sided, for a correlation above 0: (1
    + #{null ≥ value})/(1 + draws). p and null are NaN below 5 classes and where a table is flat,
    and null_low and null_high also below 39 ``draws``. These are the permutations: all K! − 1 other
    orders of the classes if they are no more than were asked for, which makes p exact, else random
    ones.
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
    """Mantel's test of two tables of distances, each symmetrised: (D + Dᵀ)/2.

    The diagonal is left out. ``permutations`` of the classes make the null; ``method`` correlates
    ranks (spearman) or values (pearson). Distances of points on a line agree with themselves, and
    of the 119 other orders of five points the reverse alone gives them back, so p is
    (1 + 1)/(1 + 119):

    >>> places = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    >>> line = (places.unsqueeze(0) - places.unsqueeze(1)).abs()
    >>> test = mantel(line, line, 999, torch.Generator(), "pearson")
    >>> round(test.value, 6), round(test.p, 6), test.draws, test.pairs
    (1.0, 0.016667, 119, 10)
    """
    K = len(x)
    a, b = np.triu_indices(K, k=1)
    # float64, for which null's tolerance is made: ties with the value are then seen as such.
    tables = [((table + table.T) / 2).double().cpu().numpy() for table in (x, y)]
    if not all(_varies(table[a, b]) for table in tables):  # a correlation would be 0/0
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
    orders = _orders(K, permutations, generator)
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


def _varies(values: np.ndarray) -> bool:
    """Whether these are several finite values that are not all the same."""
    return bool(np.isfinite(values).all() and len(values) > 1 and np.ptp(values) != 0)


def _orders(K: int, permutations: int, generator: torch.Generator) -> np.ndarray:
    """Orders of K classes, R×K: all but their own if these are few enough, else random ones."""
    if math.factorial(K) - 1 <= permutations:
        return np.array(list(all_orders(range(K)))[1:])  # the first is their own
    orders: np.ndarray = torch.rand(permutations, K, generator=generator).argsort(dim=1).numpy()
    return orders


@jaxtyped(typechecker=beartype)
def teacher_distance(
    logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"], T: float
) -> Float[Tensor, "K K"]:
    """1 − (q_a[b] + q_b[a])/2, q_a the teacher's mean softmax(v/T) over the samples of class a.

    In [0, 1] and 0 on the diagonal: small where the teacher takes samples of one class for the
    other. NaN for a class without samples, which has no mean.

    >>> teacher_distance(torch.zeros(2, 2), torch.tensor([0, 1]), 2.0)  # q is ½ throughout
    tensor([[0.0000, 0.5000],
            [0.5000, 0.0000]], dtype=torch.float64)
    """
    return _distance(_class_means(logits.div(T).softmax(dim=1), labels))


@jaxtyped(typechecker=beartype)
def confusion_distance(
    choices: Int[Tensor, " B"], labels: Int[Tensor, " B"], num_classes: int
) -> Float[Tensor, "K K"]:
    """1 − mean of the shares of samples of one class that are given the other.

    In [0, 1], 1 where no sample is, and 0 on the diagonal. NaN for a class without samples, which
    has no share.

    >>> confusion_distance(torch.tensor([1, 0, 1]), torch.tensor([0, 0, 1]), 2)  # ½ of 0, none of 1
    tensor([[0.0000, 0.7500],
            [0.7500, 0.0000]], dtype=torch.float64)
    """
    given = torch.nn.functional.one_hot(choices, num_classes).double()
    return _distance(_class_means(given, labels))


def class_tree_distance(
    classes: Sequence[str], superclasses: Mapping[str, Sequence[str]]
) -> Tensor:
    """K×K: 0 for one class, 1 for two of one superclass, 2 for others.

    ``superclasses`` hold every class once.

    >>> class_tree_distance(["cat", "dog", "car"], {"animals": ["cat", "dog"], "things": ["car"]})
    tensor([[0., 1., 2.],
            [1., 0., 2.],
            [2., 2., 0.]], dtype=torch.float64)
    """
    above = {name: i for i, names in enumerate(superclasses.values()) for name in names}
    superclass = torch.tensor([above[name] for name in classes])
    distance = 1 + (superclass.unsqueeze(0) != superclass.unsqueeze(1)).double()
    return distance.fill_diagonal_(0)


def _class_means(values: Tensor, labels: Tensor) -> Tensor:
    """Means over the samples of each of the K classes, K×K, in float64 as the other distances."""
    return torch.stack([values[labels == k].double().mean(dim=0) for k in range(values.shape[1])])


def _distance(similarity: Tensor) -> Tensor:
    return (1 - (similarity + similarity.T) / 2).fill_diagonal_(0)


def agreement_table(
    paths: Mapping[str, Sequence[Tensor]],
    references: Mapping[str, Tensor],
    permutations: int,
    seed: int,
) -> pd.DataFrame:
    """Routing distance against each reference, by Mantel's test.

    Columns are level, attention, reference, method, and the test's value, p and null.

    Args:
        paths: attention (alpha, effective) → P^l, K×N_l for levels from 1; those with one expert
            are left out.
        references: name → K×K distances between classes.
        permutations: of Mantel's null, drawn anew from the seed for each test.
    """
    rows = []
    for attention, levels in paths.items():
        for level, path in enumerate(levels, 1):
            if path.shape[1] == 1:
                continue
            distance = routing_distance(path.double().cpu())
            for reference, against in references.items():
                for method in ("spearman", "pearson"):
                    # Seeded anew, so that all tests permute the classes alike.
                    generator = torch.Generator().manual_seed(seed)
                    test = mantel(distance, against.double().cpu(), permutations, generator, method)
                    keys = {
                        "level": level,
                        "attention": attention,
                        "reference": reference,
                        "method": method,
                    }
                    rows.append(keys | dataclasses.asdict(test))
    columns = ["value", "p", "null_mean", "null_low", "null_high", "draws", "pairs"]
    table = pd.DataFrame(rows, columns=["level", "attention", "reference", "method", *columns])
    return table.rename(columns={"draws": "null_draws"})


@probe_of(
    "agreement",
    title="agreement of routing with other distances of classes",
    roles=("explainer", "tree"),
    all_splits=False,
    kinds=("routing", "agreement"),
)
class AgreementProbe(Probe):
    """How differently do subtasks draw from the experts, and what does that agree with?

    The references are the model's own confusion on validation, the teacher's similarity of classes
    on the probe set, and the data set's tree of classes, where there is one. Of a hard explainer A
    and α are the same, since every expert has one parent.
    """

    def __call__(self, moment: Moment) -> Frames:
        """Routing distances, and Mantel's test against every reference."""
        config, paths = self.setting.config, routing_paths(moment)
        agreement = agreement_table(
            paths, self._references(moment), config.permutations, config.seed
        )
        tables = {"agreement": with_undefined(agreement, ["value"])}
        routing = routing_table(paths, self.setting.data.classes)
        return tables if routing.empty else {"routing": routing, **tables}

    def _references(self, moment: Moment) -> dict[str, Tensor]:
        data = self.setting.data
        outputs = moment.val_outputs
        if outputs is None:
            outputs = predict(moment.model, data.val, data)
        choices = outputs.argmax(dim=1)
        labels = data.val.labels.cpu()
        references = {"confusion": confusion_distance(choices, labels, data.num_classes)}
        if moment.teacher_logits is not None:
            T = self.setting.objective.T
            references["teacher"] = teacher_distance(
                moment.teacher_logits.cpu(), moment.labels.cpu(), T
            )
        if data.superclasses is not None:
            references["class_tree"] = class_tree_distance(data.classes, data.superclasses)
        return references


def routing_paths(moment: Moment) -> dict[str, list[Tensor]]:
    """P^l of α and of A, K×N_l for levels from 1.

    They are averaged over samples where gates read the input.
    """
    assert isinstance(moment.model, HME)
    if moment.model.hard:
        paths = [path.double().cpu() for path in pathways(moment.model.attention())]
        return dict.fromkeys(("alpha", "effective"), paths)
    return {name: mean_pathways(rows) for name, rows in both_attentions(moment.trace).items()}


def routing_table(paths: Mapping[str, Sequence[Tensor]], classes: Sequence[str]) -> pd.DataFrame:
    """Routing distances of all pairs of subtasks, on levels of several experts.

    Columns are level, attention, a, b, a_index, b_index, distance and undefined; ``paths`` are as
    in :func:`agreement_table`.
    """
    frames = []
    for attention, levels in paths.items():
        for level, path in enumerate(levels, 1):
            if path.shape[1] > 1:
                keys = {"level": level, "attention": attention, **pair_columns(classes)}
                distance = upper(routing_distance(path)).numpy()
                frames.append(pd.DataFrame({**keys, "distance": distance}))
    if not frames:
        return pd.DataFrame()
    return with_undefined(pd.concat(frames, ignore_index=True), ["distance"])

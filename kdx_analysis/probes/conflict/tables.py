"""Tables of conflict: every metric beside its null, with n. Gram matrices in, frames out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kdx_analysis import null
from kdx_analysis.metrics import METRICS, evaluated
from kdx_analysis.probes.conflict.formulas import (
    contention,
    contention_by_expert,
    contention_inside,
    cosine,
    magnitude_similarity,
    mean_cosine,
    upper,
)
from kdx_analysis.probes.conflict.grams import Grams
from kdx_analysis.probes.conflict.sample import interval, standard_error
from kdx_analysis.probes.subtasks import pair_columns
from kdx_analysis.records import with_undefined


def conflict_tables(
    grams: Grams, classes: Sequence[str], subtasks: Sequence[int] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs and their summary, per level and in all.

    Values are of the first set of residuals; the others are its null.

    Args:
        grams: of all subtasks, or of some drawn at random.
        classes: the names of all.
        subtasks: those that ``grams`` is of, by default all.

    Returns:
        Pairs: level, a, b, a_index, b_index, cosine, null_mean, null_low, null_high, null_undefined
        (draws without a cosine), magnitude_similarity, undefined (values of the row that are NaN,
        as where a gradient is zero). Summary: level, metric, value, null_…, pairs (that went into
        it), undefined (those that could not); contention, of the actual gradients, is not taken
        over levels together. Where subtasks were drawn, values are estimates of the mean over all
        pairs, with all_pairs (how many there are), standard_error, low and high (which hold that
        mean with 95 %), and only metrics that are means over pairs are there; the null is that of
        the same pairs.
    """
    subtasks = range(len(classes)) if subtasks is None else subtasks
    levels: list[tuple[str, Tensor, Tensor | None]] = [
        (str(level), grams.level(level), grams.inside(level))
        for level in range(1, len(grams.experts) + 1)
    ]
    tables, summaries = [], []
    for level, gram, inside in [*levels, ("all", grams.total(), None)]:
        gram = gram.double().cpu()  # what is summed here rounds no further
        cosines, similarities = cosine(gram), magnitude_similarity(gram)
        tables.append(_pairs(level, upper(cosines), upper(similarities), classes, subtasks))
        if len(subtasks) < len(classes):
            summaries += list(_estimates(level, cosines, similarities, len(classes)))
        else:
            inside = None if inside is None else inside.double().cpu()
            summaries += list(_summary(level, cosines, similarities, inside))
    return pd.concat(tables, ignore_index=True), pd.DataFrame(summaries)


def _pairs(
    level: str,
    cosines: Tensor,
    similarities: Tensor,
    classes: Sequence[str],
    subtasks: Sequence[int],
) -> pd.DataFrame:
    """Every pair's row, of (1 + R)×P cosines and similarities of magnitude."""
    columns = pair_columns([classes[k] for k in subtasks])
    places = np.array(subtasks)
    columns |= {name: places[columns[name]] for name in ("a_index", "b_index")}
    table = pd.DataFrame(
        {
            "level": level,
            **columns,
            "cosine": cosines[0].numpy(),
            **null.beside(cosines[1:]),
            "magnitude_similarity": similarities[0].numpy(),
        }
    )
    return with_undefined(table, ["cosine", "magnitude_similarity"])


def _summary(
    level: str, cosines: Tensor, similarities: Tensor, inside: Tensor | None
) -> Iterator[dict[str, Any]]:
    """Every metric's row, of (1 + R)×K×K cosines and similarities and …×N×K×K Gram matrices."""
    pairs = upper(cosines)
    metrics = dict(_over_pairs(cosines, similarities))
    if inside is not None:
        values = contention_inside(inside)
        metrics["contention"] = values, values.unsqueeze(1).expand_as(pairs)
    for metric, (values, of_pairs) in metrics.items():
        yield _row(level, metric, values, of_pairs)


def _estimates(
    level: str, cosines: Tensor, similarities: Tensor, num_classes: int
) -> Iterator[dict[str, Any]]:
    """Rows of the metrics that are means over pairs, of m of K subtasks."""
    by_pair: dict[str, tuple[Tensor, tuple[float, float]]] = {
        "mean_cosine": (cosines[0], (-1, 1)),
        "magnitude_similarity": (similarities[0], (0, 1)),
    }
    for each in METRICS.values():
        if each.reads == "cosines" and each.over_pairs == "mean" and each.of_pair is not None:
            of_pair = torch.as_tensor(each.of_pair(cosines[0].numpy()), dtype=torch.float64)
            by_pair[each.recorded] = of_pair, each.range
    for metric, (values, of_pairs) in _over_pairs(cosines, similarities).items():
        if metric not in by_pair:
            continue
        table, bounds = by_pair[metric]
        row = _row(level, metric, values, of_pairs)
        error = standard_error(table, num_classes)
        low, high = interval(row["value"], error, len(table), bounds)
        all_pairs = num_classes * (num_classes - 1) // 2
        yield {**row, "all_pairs": all_pairs, "standard_error": error, "low": low, "high": high}


def _over_pairs(cosines: Tensor, similarities: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Metric → its 1 + R values, and (1 + R)×P of pairs that are NaN where one can't go into it."""
    # A null over pairs that the value lacks would be that of another figure.
    shared = cosines.where(~cosines[:1].isnan(), torch.nan)
    similar = upper(similarities)
    similar = similar.where(~similar[:1].isnan(), torch.nan)
    pairs = upper(cosines)
    metrics = {name: (each.value, pairs) for name, each in evaluated("cosines", shared).items()}
    metrics["mean_cosine"] = mean_cosine(shared), pairs
    metrics["magnitude_similarity"] = similar.nanmean(dim=-1), similar
    return metrics


def _row(level: str, metric: str, values: Tensor, of_pairs: Tensor) -> dict[str, Any]:
    undefined = int(of_pairs[0].isnan().sum())
    return {
        "level": level,
        "pairs": of_pairs.shape[1] - undefined,
        "undefined": undefined,
        "metric": metric,
        **null.with_value(values),
    }


def contention_table(ungated: Tensor, alpha: Tensor, permutations: int, seed: int) -> pd.DataFrame:
    """Contention on the last level, and what other gates would make of it.

    A value of 0/0, as where nothing contends under either gates, is NaN: of all its pairs none is
    defined.

    Args:
        ungated: ⟨h^i_a, h^i_b⟩, R×N×K×K; values are of the first of R, the others are their null.
        alpha: the gates into the heads, K×N.
        permutations: of α's rows over subtasks, for modulation and its p, the same for the null.
        seed: of the permutations.

    Returns:
        metric, value, null_…, pairs, undefined, p (NaN of a metric that tests nothing).
    """
    ungated, alpha = ungated.double().cpu(), alpha.double().cpu()  # as ties need, see modulation
    generator = torch.Generator().manual_seed(seed)
    metrics = evaluated(
        "grams and gates", ungated, alpha, permutations=permutations, generator=generator
    )
    uniform = torch.full_like(alpha, 1 / alpha.shape[1])
    shared = contention(ungated, uniform)
    rows = [{"metric": "contention_uniform", **null.with_value(shared), "p": np.nan}]
    for metric, each in metrics.items():
        p = np.nan if each.p is None else float(each.p[0])
        rows.append({"metric": metric, **null.with_value(each.value), "p": p})
    table = pd.DataFrame(rows)
    pairs = alpha.shape[0] * (alpha.shape[0] - 1) // 2
    undefined = table["value"].isna() * pairs
    return table.assign(pairs=pairs - undefined, undefined=undefined)


def expert_contention_table(grams: Grams) -> pd.DataFrame:
    """What every expert adds to its level's contention, on levels of several experts.

    Values are of the first set of residuals; the others are its null.

    Returns:
        level, expert, value, null_….
    """
    rows = []
    for level in range(1, len(grams.experts) + 1):
        inside = grams.inside(level)
        if inside.shape[1] == 1:
            continue
        values = contention_by_expert(inside.double().cpu())
        for expert in range(values.shape[1]):
            rows.append({"level": level, "expert": expert, **null.with_value(values[:, expert])})
    return pd.DataFrame(rows, columns=["level", "expert", "value", *null.COLUMNS])

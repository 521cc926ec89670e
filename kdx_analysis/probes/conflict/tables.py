"""Tables of conflict: every metric beside its null, with n. Gram matrices in, frames out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kdx_analysis import null
from kdx_analysis.metrics import evaluated
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
from kdx_analysis.probes.subtasks import pair_columns
from kdx_analysis.records import with_undefined


def conflict_tables(grams: Grams, classes: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs and their summary, per level and in all.

    Values are of the first set of residuals; the others are its null.

    Returns:
        Pairs: level, a, b, a_index, b_index, cosine, null_mean, null_low, null_high, null_undefined
        (draws without a cosine), magnitude_similarity, undefined (values of the row that are NaN,
        as where a gradient is zero). Summary: level, metric, value, null_…, pairs (that went into
        it), undefined (those that could not); contention, of the actual gradients, is not taken
        over levels together.
    """
    levels: list[tuple[str, Tensor, Tensor | None]] = [
        (str(level), grams.level(level), grams.inside(level))
        for level in range(1, len(grams.experts) + 1)
    ]
    tables, summaries = [], []
    for level, gram, inside in [*levels, ("all", grams.total(), None)]:
        gram = gram.double().cpu()  # what is summed here rounds no further
        cosines, similarities = cosine(gram), magnitude_similarity(gram)
        tables.append(_pairs(level, upper(cosines), upper(similarities), classes))
        inside = None if inside is None else inside.double().cpu()
        summaries += list(_summary(level, cosines, upper(similarities), inside))
    return pd.concat(tables, ignore_index=True), pd.DataFrame(summaries)


def _pairs(
    level: str, cosines: Tensor, similarities: Tensor, classes: Sequence[str]
) -> pd.DataFrame:
    """Every pair's row, of (1 + R)×P cosines and similarities of magnitude."""
    table = pd.DataFrame(
        {
            "level": level,
            **pair_columns(classes),
            "cosine": cosines[0].numpy(),
            **null.beside(cosines[1:]),
            "magnitude_similarity": similarities[0].numpy(),
        }
    )
    return with_undefined(table, ["cosine", "magnitude_similarity"])


def _summary(
    level: str, cosines: Tensor, similarities: Tensor, inside: Tensor | None
) -> Iterator[dict[str, Any]]:
    """Every metric's row, of (1 + R)×K×K cosines, …×P similarities and …×N×K×K Gram matrices."""
    pairs = upper(cosines)
    # A null over pairs that the value lacks would be that of another figure.
    cosines = cosines.where(~cosines[:1].isnan(), torch.nan)
    similarities = similarities.where(~similarities[:1].isnan(), torch.nan)
    metrics = {name: (each.value, pairs) for name, each in evaluated("cosines", cosines).items()}
    metrics["mean_cosine"] = mean_cosine(cosines), pairs
    metrics["magnitude_similarity"] = similarities.nanmean(dim=-1), similarities
    if inside is not None:
        values = contention_inside(inside)
        metrics["contention"] = values, values.unsqueeze(1).expand_as(pairs)
    for metric, (values, of_pairs) in metrics.items():
        undefined = int(of_pairs[0].isnan().sum())
        yield {
            "level": level,
            "pairs": pairs.shape[1] - undefined,
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

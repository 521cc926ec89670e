"""Tables of conflict: every metric beside its null, with n. Gram matrices in, frames out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kdx_analysis import null
from kdx_analysis.metrics import evaluated
from kdx_analysis.probes.conflict import formulas
from kdx_analysis.probes.conflict.grams import Grams
from kdx_analysis.probes.subtasks import pair_columns
from kdx_analysis.records import with_undefined


def conflict_tables(grams: Grams, classes: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs and their summary, per level and in all, of the first set of residuals; the others are its null.

    Pairs: level, a, b, a_index, b_index, cosine, null_mean, null_low, null_high, null_undefined (draws without a
    cosine), magnitude_similarity, undefined (values of the row that are NaN, as where a gradient is zero). Summary:
    level, metric, value, null_…, pairs (that went into it), undefined (those that could not); contention, of the actual
    gradients, is not taken over levels together.
    """
    tables, summaries = [], []
    levels = [
        (str(level), grams.level(level), grams.inside(level))
        for level in range(1, len(grams.experts) + 1)
    ]
    for level, gram, inside in [*levels, ("all", grams.total(), None)]:
        gram = gram.double().cpu()
        cosines, similarity = formulas.cosine(gram), formulas.magnitude_similarity(gram)
        pairs, alike = formulas.upper(cosines), formulas.upper(similarity)
        # A null over pairs that the value lacks would be that of another figure.
        cosines = cosines.where(~cosines[:1].isnan(), torch.nan)
        alike = alike.where(~alike[:1].isnan(), torch.nan)
        table = pd.DataFrame(
            {
                "level": level,
                **pair_columns(classes),
                "cosine": pairs[0].numpy(),
                **null.beside(pairs[1:]),
                "magnitude_similarity": alike[0].numpy(),
            }
        )
        tables.append(with_undefined(table, ["cosine", "magnitude_similarity"]))
        found = evaluated("cosines", cosines)
        metrics = {name: (each.value, pairs) for name, each in found.items()}
        metrics["mean_cosine"] = formulas.mean_cosine(cosines), pairs
        metrics["magnitude_similarity"] = alike.nanmean(dim=-1), alike
        if inside is not None:
            contention = formulas.contention_inside(inside.double().cpu())
            metrics["contention"] = contention, contention.unsqueeze(1).expand_as(pairs)
        for metric, (values, of_pairs) in metrics.items():
            undefined = int(of_pairs[0].isnan().sum())
            summaries.append(
                {
                    "level": level,
                    "pairs": pairs.shape[1] - undefined,
                    "undefined": undefined,
                    "metric": metric,
                    **null.with_value(values),
                }
            )
    return pd.concat(tables, ignore_index=True), pd.DataFrame(summaries)


def contention_table(ungated: Tensor, alpha: Tensor, permutations: int, seed: int) -> pd.DataFrame:
    """Contention on the last level and what other gates would make of it: metric, value, null_…, pairs, undefined, p.

    A value of 0/0, as where nothing contends under either gates, is NaN: of all its pairs none is defined.

    Args:
        ungated: ⟨h^i_a, h^i_b⟩, R×N×K×K; the first of R is measured, the others are its null.
        alpha: the gates into the heads, K×N.
        permutations: of α's rows over subtasks, for modulation and its p, the same for the null.
        seed: of the permutations.
    """
    ungated, alpha = ungated.double().cpu(), alpha.double().cpu()
    generator = torch.Generator().manual_seed(seed)
    found = evaluated(
        "grams and gates", ungated, alpha, permutations=permutations, generator=generator
    )
    uniform = torch.full_like(alpha, 1 / alpha.shape[1])
    shared = formulas.contention(ungated, uniform)
    rows = [{"metric": "contention_uniform", **null.with_value(shared), "p": np.nan}]
    for metric, each in found.items():
        p = np.nan if each.p is None else float(each.p[0])
        rows.append({"metric": metric, **null.with_value(each.value), "p": p})
    table = pd.DataFrame(rows)
    pairs = alpha.shape[0] * (alpha.shape[0] - 1) // 2
    undefined = table["value"].isna() * pairs
    return table.assign(pairs=pairs - undefined, undefined=undefined)


def expert_contention_table(grams: Grams) -> pd.DataFrame:
    """What every expert adds to its level's contention: level, expert, value, null_…; levels of several experts.

    The first set of residuals is measured, the others are its null.
    """
    rows = []
    for level in range(1, len(grams.experts) + 1):
        inside = grams.inside(level)
        if inside.shape[1] == 1:
            continue
        values = formulas.contention_by_expert(inside.double().cpu())
        for expert in range(values.shape[1]):
            rows.append({"level": level, "expert": expert, **null.with_value(values[:, expert])})
    return pd.DataFrame(rows, columns=["level", "expert", "value", *null.COLUMNS])

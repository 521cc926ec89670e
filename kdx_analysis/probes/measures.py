"""The tidy tables of a probe: every measure beside its null, with n. Tensors in, frames out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kdx_analysis import null
from kdx_analysis.probes import conflict, gates, outputs
from kdx_analysis.probes.agreement import mantel
from kdx_analysis.probes.gradients import Grams


def pair_columns(classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns a, b, a_index, b_index of all pairs of subtasks a < b."""
    names = np.array(classes, dtype=object)
    a, b = np.triu_indices(len(names), k=1)
    return {"a": names[a], "b": names[b], "a_index": a, "b_index": b}


def child_columns(classes: Sequence[str], rows: int, parents: int, *, heads: bool) -> dict[str, np.ndarray]:
    """Columns child, child_index, parent of all gates into a level of ``rows`` experts, or into the heads."""
    names = list(classes) if heads else [f"expert {i}" for i in range(rows)]
    return {
        "child": np.repeat(np.array(names, dtype=object), parents),
        "child_index": np.repeat(np.arange(rows), parents),
        "parent": np.tile(np.arange(parents), rows),
    }


def conflict_tables(grams: Grams, classes: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs and their summary, per level and in all, of the first set of residuals; the others are its null.

    Pairs: level, a, b, a_index, b_index, cosine, null_mean, null_low, null_high, null_undefined (draws without a
    cosine), magnitude_similarity, undefined (values of the row that are NaN, as where a gradient is zero). Summary:
    level, metric, value, null_…, pairs (that went into it), undefined (those that could not); contention, of the actual
    gradients, is not taken over levels together.
    """
    tables, summaries = [], []
    levels = [(str(level), grams.level(level), grams.inside(level)) for level in range(1, len(grams.experts) + 1)]
    for level, gram, inside in [*levels, ("all", grams.total(), None)]:
        gram = gram.double().cpu()
        cosines, similarity = conflict.cosine(gram), conflict.magnitude_similarity(gram)
        pairs, alike = conflict.upper(cosines), conflict.upper(similarity)
        # A null over pairs that the value lacks would be that of another figure.
        cosines = cosines.where(~cosines[:1].isnan(), torch.nan)
        alike = alike.where(~alike[:1].isnan(), torch.nan)
        table = pd.DataFrame({
            "level": level, **pair_columns(classes), "cosine": pairs[0].numpy(), **quantile_columns(pairs[1:]),
            "magnitude_similarity": alike[0].numpy(),
        })  # fmt: skip
        tables.append(with_undefined(table, ["cosine", "magnitude_similarity"]))
        metrics = {
            "conflict_rate": (conflict.conflict_rate(cosines), pairs),
            "severity": (conflict.severity(cosines), pairs),
            "mean_cosine": (conflict.mean_cosine(cosines), pairs),
            "magnitude_similarity": (alike.nanmean(dim=-1), alike),
        }
        if inside is not None:
            contention = conflict.contention_inside(inside.double().cpu())
            metrics["contention"] = contention, contention.unsqueeze(1).expand_as(pairs)
        for metric, (values, of) in metrics.items():
            undefined = int(of[0].isnan().sum())
            counts = {"pairs": pairs.shape[1] - undefined, "undefined": undefined}
            summaries.append({"level": level, **counts, **beside_null(metric, values)})
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
    uniform = torch.full_like(alpha, 1 / alpha.shape[1])
    own, shared = conflict.contention(ungated, alpha), conflict.contention(ungated, uniform)
    generator = torch.Generator().manual_seed(seed)
    modulation, p = conflict.modulation(ungated, alpha, permutations, generator)
    table = pd.DataFrame(
        [
            beside_null("contention", own),
            beside_null("contention_uniform", shared),
            beside_null("separation", conflict.separation(ungated, alpha)),
            beside_null("modulation", modulation),
        ]
    )
    pairs = alpha.shape[0] * (alpha.shape[0] - 1) // 2
    undefined = table["value"].isna() * pairs
    return table.assign(
        pairs=pairs - undefined, undefined=undefined, p=np.where(table["metric"] == "modulation", float(p[0]), np.nan)
    )


def expert_contention_table(grams: Grams) -> pd.DataFrame:
    """What every expert adds to its level's contention: level, expert, value, null_…; levels of several experts.

    The first set of residuals is measured, the others are its null.
    """
    rows = []
    for level in range(1, len(grams.experts) + 1):
        inside = grams.inside(level)
        if inside.shape[1] > 1:
            values = conflict.contention_by_expert(inside.double().cpu())
            rows += [{"level": level, "expert": i, **_value_and_null(values[:, i])} for i in range(values.shape[1])]
    return pd.DataFrame(rows, columns=["level", "expert", "value", *null.COLUMNS])


def output_table(margins: Tensor, classes: Sequence[str], draws: int, seed: int) -> pd.DataFrame:
    """Double claims, orphans, and samples claimed by both subtasks of every pair: metric, a, b, …, value, null_…, n.

    ``margins`` are B×K. The null deals each subtask's claims to other samples.
    """
    own = outputs.claims(margins.cpu())
    claims = torch.cat([own[None], outputs.permuted_claims(own, draws, torch.Generator().manual_seed(seed))])
    nobody = {"a": "", "b": "", "a_index": -1, "b_index": -1}
    whole = pd.DataFrame(
        [
            {"metric": name, **nobody, **_value_and_null(measure(claims))}
            for name, measure in (("double_claims", outputs.double_claims), ("orphans", outputs.orphans))
        ]
    )
    both = conflict.upper(outputs.claimed_by_both(claims))
    columns = {"value": both[0].numpy(), **quantile_columns(both[1:])}
    pairs = pd.DataFrame({"metric": "claimed_by_both", **pair_columns(classes), **columns})
    return pd.concat([whole, pairs], ignore_index=True).assign(null_draws=draws, n=len(margins))


def agreement_table(
    paths: Mapping[str, Sequence[Tensor]], references: Mapping[str, Tensor], permutations: int, seed: int
) -> pd.DataFrame:
    """Routing distance against each reference: level, attention, reference, method, and Mantel's value, p and null.

    Args:
        paths: attention (alpha, effective) → P^l, K×N_l for levels from 1; those with one expert are left out.
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
                    found = mantel(distance, against.double().cpu(), permutations, generator, method)
                    keys = {"level": level, "attention": attention, "reference": reference, "method": method}
                    rows.append(keys | dataclasses.asdict(found))
    columns = ["value", "p", "null_mean", "null_low", "null_high", "draws", "pairs"]
    table = pd.DataFrame(rows, columns=["level", "attention", "reference", "method", *columns])
    return table.rename(columns={"draws": "null_draws"})


def affinity_table(affinities: Tensor, classes: Sequence[str]) -> pd.DataFrame:
    """Z_{a→b} of every ordered pair, and over all of them: metric, a, b ('' where all are meant), a_index, b_index, ….

    Then value, undefined (pairs of which it is NaN: the gradient of a is zero), null_…, null_draws. Over all pairs:
    ``median_affinity``, since a loss that is nearly 0 makes a mean of its own, and ``hurt_share``, that with Z < 0.

    Args:
        affinities: (1 + R)×K×K; the first is measured, the others are its null.
    """
    K = len(classes)
    names = np.array(classes, dtype=object)
    a, b = (index.numpy() for index in torch.nonzero(~torch.eye(K, dtype=torch.bool), as_tuple=True))
    chosen = affinities.double().cpu()[:, a, b]
    shared = chosen.where(~chosen[:1].isnan(), torch.nan)  # the null is over the pairs that the value has
    undefined = shared.isnan()
    hurt = torch.where(undefined, torch.nan, (shared < 0).double()).nanmean(dim=1)
    whole = pd.DataFrame([
        beside_null("median_affinity", shared.nanquantile(0.5, dim=1)), beside_null("hurt_share", hurt),
    ]).assign(a="", b="", a_index=-1, b_index=-1, undefined=int(undefined[0].sum()))  # fmt: skip
    pairs = pd.DataFrame({
        "metric": "affinity", "a": names[a], "b": names[b], "a_index": a, "b_index": b, "value": chosen[0].numpy(),
        "undefined": undefined[0].int().numpy(), **quantile_columns(chosen[1:]),
    })  # fmt: skip
    return pd.concat([pairs, whole], ignore_index=True).assign(null_draws=len(chosen) - 1)


def with_undefined(table: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """``table`` with a column ``undefined`` behind them: how many of a row's ``values`` are NaN."""
    counted = table.copy()
    counted.insert(list(table).index(values[-1]) + 1, "undefined", table[list(values)].isna().sum(axis=1))
    return counted


def mean_over_epochs(affinity: pd.DataFrame) -> pd.DataFrame:
    """Recorded affinities averaged over epochs: split, metric, a, b, …, value, undefined, null_mean, epochs, probed.

    A value and its null are means over the same ``epochs`` of the ``probed`` ones: those at which the value is defined.
    """
    keys = ["split", "metric", "a", "b", "a_index", "b_index", "null_draws", "eta", "n"]
    table = affinity.assign(null_mean=affinity["null_mean"].where(affinity["value"].notna()))
    grouped = table.groupby(keys, sort=False)
    means = grouped[["value", "null_mean"]].mean()
    means["undefined"] = grouped["undefined"].sum()
    means["epochs"], means["probed"] = grouped["value"].count(), grouped["epoch"].nunique()
    return means.reset_index()


def beside_null(metric: str, values: Tensor) -> dict[str, Any]:
    """A metric's own value, first among ``values``, and the null that the others are."""
    return {"metric": metric, **_value_and_null(values)}


def quantile_columns(draws: Tensor) -> dict[str, np.ndarray]:
    """What stands beside P values: null_mean, null_low, null_high and null_undefined of draws×P, each of length P.

    >>> columns = quantile_columns(torch.arange(1.0, 50)[:, None])
    >>> columns["null_low"].item(), columns["null_high"].item()
    (1.25, 48.75)
    """
    return null.beside(draws)


def _value_and_null(values: Tensor) -> dict[str, float]:
    return {"value": float(values[0]), **null.beside_one(values[1:])}

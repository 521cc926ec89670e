"""Means over pairs estimated from drawn subtasks: unbiased, and as sure as they say."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, build_model
from kdx_analysis.probes import conflict_of
from kdx_analysis.probes.conflict.formulas import severity, upper
from kdx_analysis.probes.conflict.grams import Grams
from kdx_analysis.probes.conflict.sample import drawn_subtasks, interval, standard_error
from kdx_analysis.probes.conflict.tables import conflict_tables

K = 8


def strata(subtasks: int, seed: int = 0) -> Tensor:
    """Gram matrices of three camps that differ strongly: two that oppose each other, one aside."""
    generator = torch.Generator().manual_seed(seed)
    camps = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    gradients = camps[torch.arange(subtasks) % 3].repeat(1, 3)
    gradients = gradients + 0.3 * torch.randn(subtasks, 6, generator=generator, dtype=torch.float64)
    return gradients @ gradients.T


def test_subtasks_are_drawn_alike_and_never_more_than_asked_for() -> None:
    for classes in (3, 4, 5, 10, 100):
        for pairs in (3, 6, 9, 45, 500, 4949, 4950, 10_000):
            chosen = drawn_subtasks(classes, pairs, seed=1)
            m = len(chosen)
            assert chosen == drawn_subtasks(classes, pairs, seed=1)
            assert list(chosen) == sorted(set(chosen))
            if pairs >= classes * (classes - 1) // 2:
                assert chosen == tuple(range(classes))
            else:
                assert m * (m - 1) // 2 <= pairs < m * (m + 1) // 2
    assert drawn_subtasks(100, 500, seed=1) != drawn_subtasks(100, 500, seed=2)


def test_every_pair_has_the_same_chance() -> None:
    counts = np.zeros((5, 5))
    for seed in range(4000):
        chosen = np.array(drawn_subtasks(5, 3, seed))
        counts[np.ix_(chosen, chosen)] += 1
    shares = counts[np.triu_indices(5, 1)] / 4000
    np.testing.assert_allclose(shares, 3 / 10, atol=0.03)  # four standard errors


@pytest.mark.parametrize("m", [4, 5, 6])
def test_over_all_samples_mean_and_variance_are_those_of_all_pairs(m: int) -> None:
    """Every sample of m of 8 is looked at; without subtasks' own part no variance is cut at 0."""
    generator = torch.Generator().manual_seed(0)
    own = 5 * torch.randn(K, generator=generator, dtype=torch.float64)
    pairs = torch.randn(K, K, generator=generator, dtype=torch.float64)
    table = own + own.unsqueeze(1) + (pairs + pairs.T) / 4
    means, variances = [], []
    for chosen in combinations(range(K), m):
        sampled = table[list(chosen)][:, list(chosen)]
        means.append(float(upper(sampled).mean()))
        variances.append(standard_error(sampled, K) ** 2)
    assert np.mean(means) == pytest.approx(float(upper(table).mean()))
    assert np.mean(variances) == pytest.approx(np.var(means), rel=0.03)
    assert standard_error(table, K) == pytest.approx(0, abs=1e-9)


def test_intervals_hold_the_mean_over_all_pairs_as_often_as_they_say() -> None:
    gram = strata(60)
    cosines = gram / (gram.diagonal().sqrt() * gram.diagonal().sqrt().unsqueeze(1))
    table = (-cosines).clamp(min=0)
    truth, estimates, inside = float(severity(cosines)), [], 0
    for seed in range(600):
        chosen = list(drawn_subtasks(60, 45, seed))
        sampled = table[chosen][:, chosen]
        estimates.append(float(upper(sampled).mean()))
        low, high = interval(estimates[-1], standard_error(sampled, 60), len(chosen), (0, 1))
        inside += low <= truth <= high
    spread = np.std(estimates) / np.sqrt(600)
    assert abs(np.mean(estimates) - truth) < 3 * spread
    assert 0.92 < inside / 600 < 0.985


def test_undefined_pairs_and_too_few_subtasks() -> None:
    table = strata(6)
    assert np.isnan(standard_error(table[:3, :3], 6))
    assert np.isnan(standard_error(torch.full((5, 5), torch.nan), 6))
    assert all(np.isnan(interval(0.2, float("nan"), 3, (0, 1))))
    table[2], table[:, 2] = torch.nan, torch.nan
    beside, kept = standard_error(table, 30), [0, 1, 3, 4, 5]
    assert beside > standard_error(table, 6) >= 0
    # The ratio's error is near that of the five subtasks that are left.
    assert beside == pytest.approx(standard_error(table[kept][:, kept], 30), rel=0.4)


def tables(gram: Tensor, chosen: list[int]):
    draws = torch.stack([gram, *(strata(len(gram), seed) for seed in range(1, 40))])
    draws = draws[:, chosen][:, :, chosen].unsqueeze(1)
    classes = [f"class {k}" for k in range(len(gram))]
    return conflict_tables(Grams((draws,), None), classes, chosen)


def test_tables_of_some_pairs_are_rows_of_those_of_all() -> None:
    gram, chosen = strata(12), [1, 3, 4, 8, 11]
    every, _ = tables(gram, list(range(12)))
    some, summary = tables(gram, chosen)
    names = ["level", "a", "b", "a_index", "b_index"]
    expected = some[names].merge(every, on=names, how="left")
    assert len(some) == 2 * 10
    assert set(some["a_index"]) == {1, 3, 4, 8}
    for column in ("cosine", "null_mean", "null_low", "magnitude_similarity"):
        np.testing.assert_allclose(some[column], expected[column])
    summary = summary[summary["level"] == "all"].set_index("metric")
    assert set(summary.index) == {
        "conflict_rate",
        "severity",
        "mean_cosine",
        "magnitude_similarity",
    }
    pairs = some[some["level"] == "all"]
    assert summary.loc["mean_cosine", "value"] == pytest.approx(pairs["cosine"].mean())
    assert summary.loc["mean_cosine", "null_mean"] == pytest.approx(pairs["null_mean"].mean())
    assert (summary["pairs"] == 10).all()
    assert (summary["all_pairs"] == 66).all()
    assert (summary["low"] < summary["value"]).all()
    assert (summary["high"] > summary["value"]).all()
    assert summary["low"].min() >= -1
    assert summary.loc["conflict_rate", "low"] >= 0


def test_intervals_of_rare_conflicts_reach_further_to_the_side_where_there_is_room() -> None:
    low, high = interval(0.05, 0.04, 10, (0, 1))
    assert 0 < low < 0.05 < high < 1
    assert high - 0.05 > 0.05 - low
    # Student's t of 9 degrees of freedom where there is no bound.
    expected = (0.05 - 2.262157 * 0.04, 0.05 + 2.262157 * 0.04)
    assert interval(0.05, 0.04, 10, (0, np.inf)) == pytest.approx(expected)


@pytest.mark.parametrize("classes", [3, 4, 5])
def test_all_pairs_have_no_interval(classes: int) -> None:
    _, summary = tables(strata(classes), list(range(classes)))
    assert "standard_error" not in summary
    assert "contention" in set(summary["metric"])


def test_zero_gradients_in_a_sample_are_counted() -> None:
    gram = strata(12)
    gram[3], gram[:, 3] = 0, 0
    some, summary = tables(gram, [1, 3, 4, 8, 11])
    summary = summary[summary["level"] == "all"].set_index("metric")
    assert some["cosine"].isna().sum() == 2 * 4
    assert summary.loc["conflict_rate", ["pairs", "undefined"]].tolist() == [6, 4]
    assert summary.loc["mean_cosine", "standard_error"] > 0


@pytest.mark.parametrize("explained", [True, False])
def test_a_probe_of_some_pairs_gives_the_cosines_that_one_of_all_gives(explained: bool) -> None:
    torch.manual_seed(0)
    model = build_model("digits_student", 11, 1)
    model = HME.from_student(model, 11, 2) if explained else model
    images, labels = torch.randn(22, 1, 8, 8), torch.arange(22) % 11
    every = conflict_of(model, images, labels, null_draws=19, permutations=19)
    some = conflict_of(model, images, labels, null_draws=19, permutations=19, pairs=45)
    names = ["level", "a", "b"]
    both = some.pairs.merge(every.pairs, on=names)
    assert len(both) == len(some.pairs) == 45 * every.pairs["level"].nunique()
    for column in ("cosine", "null_mean"):
        np.testing.assert_allclose(both[f"{column}_x"], both[f"{column}_y"], atol=1e-5)
    assert not {"contention", "separation"} & set(some.summary["metric"])
    assert "estimated from some of 55 pairs" in some._repr_html_()
    whole = conflict_of(model, images, labels, null_draws=19, permutations=19, pairs=55)
    assert whole.summary.equals(every.summary)
    with pytest.raises(KdxError, match="pairs = 44"):
        conflict_of(model, images, labels, null_draws=19, pairs=44)

import copy
import math
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.probes import Faithfulness, ablate, explain
from kdx_analysis.probes.faithfulness.ablation import (
    change_sums,
    drop_sums,
    rank_correlation,
    related,
    verdict,
)
from tests.planted_explainers import explainer, passing, scaling
from tests.probes.subjects import check_left_as_found, small

ALPHA = torch.tensor([[0.7, 0.3], [0.0, 1.0], [0.1, 0.9]], dtype=torch.float64)
SCALES, WEIGHTS = (2.0, 0.5), (1.5, -1.0, 3.0)
K, B = 3, 12


@pytest.fixture
def images() -> Tensor:
    return (
        torch.rand(B, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        + 0.1
    )


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(B) % K


@pytest.fixture
def model() -> HME:
    return explainer(passing(), [scaling(SCALES)], [ALPHA], WEIGHTS)


def test_an_experts_drop_is_attention_times_weight_times_its_mean_feature(
    model: HME, images: Tensor, labels: Tensor
) -> None:
    (level,) = ablate(model, images, labels).levels
    means = torch.stack([images[labels == k].mean() for k in range(K)])
    expected = (
        ALPHA * torch.tensor(WEIGHTS).unsqueeze(1) * torch.tensor(SCALES) * means.unsqueeze(1)
    )
    torch.testing.assert_close(level.drop, expected)
    assert level.drop[1, 0] == 0 == level.change[1, 0]  # subtask 1 draws nothing from expert 0
    torch.testing.assert_close(level.alpha, ALPHA)
    effective = (
        ALPHA * torch.tensor(SCALES) / (ALPHA * torch.tensor(SCALES)).sum(dim=1, keepdim=True)
    )
    torch.testing.assert_close(level.effective, effective)


def test_mean_features_stand_in_for_an_expert(model: HME, images: Tensor, labels: Tensor) -> None:
    (level,) = ablate(model, images, labels, baseline="mean").levels
    means = torch.stack([images[labels == k].mean() for k in range(K)]) - images.mean()
    expected = (
        ALPHA * torch.tensor(WEIGHTS).unsqueeze(1) * torch.tensor(SCALES) * means.unsqueeze(1)
    )
    torch.testing.assert_close(level.drop, expected)


def test_below_the_last_level_drops_follow_the_pathways(images: Tensor, labels: Tensor) -> None:
    """Experts of one scale throughout: the drop on level 2 is P_kj·w_k·mean feature, P = α⁴ α³."""
    middle = torch.tensor([[0.9, 0.1], [0.4, 0.6]], dtype=torch.float64)
    model = explainer(
        passing(), [scaling((1.0, 1.0)), scaling((1.0, 1.0))], [middle, ALPHA], (1.0, 1.0, 1.0)
    )
    first, last = ablate(model, images, labels).levels
    means = torch.stack([images[labels == k].mean() for k in range(K)]).unsqueeze(1)
    torch.testing.assert_close(first.drop, (ALPHA @ middle) * means)
    torch.testing.assert_close(first.effective, ALPHA @ middle)
    torch.testing.assert_close(last.drop, ALPHA * means)


def test_attention_that_an_ablation_contradicts_is_said_to(images: Tensor, labels: Tensor) -> None:
    """α prefers a whispering expert; ablation and A prefer the loud one."""
    alpha = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.85, 0.15]], dtype=torch.float64)
    model = explainer(passing(), [scaling((0.01, 5.0))], [alpha], (1.0, 1.0, 1.0))
    found = ablate(model, images, labels)
    rows = found.agreement.set_index(["attention", "measure"])["value"]
    assert rows["alpha", "change"] < -0.5 < 0.5 < rows["effective", "change"]
    assert found.disagreements.empty

    opposed = explainer(passing(), [scaling((5.0, -1.0))], [alpha], (-1.0, 1.0, 1.0))
    said = ablate(opposed, images, labels).disagreements
    assert said[["subtask", "by_attention", "by_ablation"]].to_numpy().tolist() == [["0", 0, 1]]


def test_permuting_experts_permutes_the_table_and_leaves_the_agreement(
    images: Tensor, labels: Tensor
) -> None:
    model, order = small(), [2, 0, 1]
    images = nn.functional.interpolate(images, 8)
    moved = copy.deepcopy(model)
    moved.levels[-1] = model.levels[-1].take(order)
    with torch.no_grad():
        moved.gates[-2].logits.copy_(model.gates[-2].logits[order])
        moved.gates[-1].logits.copy_(model.gates[-1].logits[:, order])
    a, b = (ablate(m, images, labels, permutations=19) for m in (model, moved))
    torch.testing.assert_close(b.levels[-1].drop, a.levels[-1].drop[:, order])
    torch.testing.assert_close(
        torch.tensor(b.agreement["value"]), torch.tensor(a.agreement["value"])
    )


def test_a_hard_explainer_loses_nothing_with_experts_that_no_subtask_reaches(
    labels: Tensor,
) -> None:
    images, model = torch.randn(B, 1, 8, 8, dtype=torch.float64), small()
    alpha = model.attention()
    alpha[-1] = torch.eye(3, dtype=torch.float64)[[0, 2, 2]]
    found = ablate(model.harden(alpha), images, labels, permutations=19)
    last = found.levels[-1]
    assert (last.drop[:, 1] == 0).all()
    assert (last.change[alpha[-1] == 0] == 0).all()
    assert (last.change[alpha[-1] == 1] > 0).all()
    torch.testing.assert_close(last.effective, alpha[-1])
    assert found.tree.parents[-1] == (0, 2, 2)


def test_permuting_classes_permutes_the_tables(images: Tensor, labels: Tensor) -> None:
    order = [2, 0, 1]
    moved = explainer(passing(), [scaling(SCALES)], [ALPHA[order]], [WEIGHTS[k] for k in order])
    (before,) = ablate(
        explainer(passing(), [scaling(SCALES)], [ALPHA], WEIGHTS), images, labels
    ).levels
    (after,) = ablate(moved, images, torch.tensor([order.index(k) for k in labels.tolist()])).levels
    for name in ("drop", "change", "alpha", "effective"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name)[order])


def test_rank_correlation_is_spearmans_and_flat_tables_have_none() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(5, (6, 4), generator=generator).double() for _ in range(2))
    rows, columns = (
        torch.tensor([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]),
        torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]]),
    )
    value, null = rank_correlation(a, b, rows, columns)
    assert value == pytest.approx(spearmanr(a.flatten(), b.flatten()).statistic)
    assert null[0] == pytest.approx(value)
    assert null[1] == pytest.approx(
        spearmanr(a.flatten(), b.flip(0)[:, [1, 0, 3, 2]].flatten()).statistic
    )
    assert torch.tensor(rank_correlation(a, torch.ones_like(b), rows, columns)[0]).isnan()


def test_unrelated_tables_are_called_related_as_often_as_the_level_says() -> None:
    """Experts that matter to all subtasks, as in one network, must not raise the false positive
    rate.
    """
    generator = torch.Generator().manual_seed(1)
    hits, tables, draws = 0, 300, 99
    for _ in range(tables):
        mass, table = (
            torch.rand(6, 5, generator=generator) + 2 * torch.rand(1, 5, generator=generator)
            for _ in range(2)
        )
        rows, columns = (torch.rand(draws, n, generator=generator).argsort(dim=1) for n in (6, 5))
        value, null = rank_correlation(mass, table, rows, columns)
        hits += (1 + int((null >= value).sum())) / (1 + draws) <= 0.05
    assert 0.01 <= hits / tables <= 0.09


@pytest.mark.parametrize(
    ("value", "draws", "says"),
    [
        (0.9, 39, "agree"),
        (-0.9, 39, "opposed"),
        (-0.9, 38, "undecided"),
        (0.0, 38, "undecided"),
        (0.9, 38, "agree"),
        (0.0, 999, "no relation found"),
        (math.nan, 999, "undefined"),
    ],
)
def test_opposed_needs_a_range_to_be_below(value: float, draws: int, says: str) -> None:
    assert verdict(value, torch.linspace(-0.5, 0.5, draws, dtype=torch.float64)) == says


def test_what_ties_with_its_null_but_for_rounding_is_not_opposed_to_it() -> None:
    draws = torch.full((99,), -0.3, dtype=torch.float64)
    assert (
        verdict(-0.1 * 3, draws) == verdict(math.nextafter(-0.3, -1), draws) == "no relation found"
    )


def test_opposed_is_said_of_one_in_forty_unrelated_tables() -> None:
    """And never where there is no range; agreement of one in twenty."""
    tables = torch.rand(
        1500, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    said = [related(mass, table, 39, i)["says"] for i, (mass, table) in enumerate(tables)]
    assert said.count("opposed") / 1500 == pytest.approx(0.025, abs=0.0125)
    assert said.count("agree") / 1500 == pytest.approx(0.05, abs=0.017)


def test_a_missing_range_is_said(labels: Tensor) -> None:
    found = ablate(small(), torch.randn(B, 1, 8, 8, dtype=torch.float64), labels, permutations=19)
    assert found.agreement[["null_low", "null_high"]].isna().all(axis=None)
    assert found.agreement["null_mean"].notna().all()
    assert "no range below 39 draws, p = " in str(found)
    assert "nan" not in str(found).lower() + found._repr_html_().lower()
    figure, axes = found.plot()
    assert all("no range below 39 draws" in ax.get_title() for ax in axes)
    plt.close(figure)


def test_measures_by_hand() -> None:
    differences = torch.tensor([[[1.0], [2.0]], [[-3.0], [4.0]], [[5.0], [-6.0]]])  # B×K×1
    labels = torch.tensor([0, 1, 0])
    assert drop_sums(differences, labels).flatten().tolist() == [6.0, 4.0]
    assert change_sums(differences).flatten().tolist() == [9.0, 12.0]


@pytest.mark.parametrize("gates", ["parameter", "input"])
def test_tables_hold_numbers_alone_and_survive_parquet(
    gates: str, labels: Tensor, tmp_path: Path
) -> None:
    images = torch.randn(B, 1, 8, 8, dtype=torch.float64)
    found = ablate(small(gates), images, labels, ["a", "b", "c"], permutations=39)
    assert not found.to_frame().isna().any().any()
    assert not found.agreement.isna().any().any()
    found.save(tmp_path)
    loaded = Faithfulness.load(tmp_path)
    assert loaded.to_frame().equals(found.to_frame())
    assert loaded.agreement.equals(found.agreement)
    assert (loaded.tree, str(loaded)) == (found.tree, str(found))
    with pytest.raises(KdxError, match="holds no faithfulness record"):
        Faithfulness.load(tmp_path / "elsewhere")
    assert len(found.to_frame()) == 3 * 3 * K
    mass = found.to_frame().groupby(["level", "subtask"])[["alpha", "effective"]].sum()
    assert ((mass - 1).abs() < 1e-9).all().all()
    assert "Level 4" in found._repr_html_()


@pytest.mark.parametrize("gates", ["parameter", "input"])
def test_batches_merge_to_the_whole_also_where_they_lack_classes(
    gates: str, labels: Tensor
) -> None:
    images, model = torch.randn(B, 1, 8, 8, dtype=torch.float64), small(gates, 2)
    whole = ablate(model, images, labels, permutations=19)
    parts = [ablate(model, images[b], labels[b], permutations=19) for b in torch.arange(B).split(5)]
    single = ablate(model, images[:1], labels[:1])
    with pytest.raises(KdxError, match="no image is of class '1', '2'"):
        single.to_frame()
    merged = parts[0].merge(*parts[1:])
    pd.testing.assert_frame_equal(merged.to_frame(), whole.to_frame(), rtol=1e-10, atol=1e-10)
    pd.testing.assert_frame_equal(merged.agreement, whole.agreement)
    assert merged.tree == whole.tree
    pd.testing.assert_frame_equal(
        parts[2].merge(parts[1], parts[0]).to_frame(), merged.to_frame(), rtol=1e-10
    )


def test_what_batches_do_not_tell_is_not_merged(labels: Tensor) -> None:
    images, model = torch.randn(B, 1, 8, 8, dtype=torch.float64), small(experts=2)
    to_mean = ablate(model, images, labels, baseline="mean", permutations=9)
    with pytest.raises(KdxError, match="mean features of a batch are not those of the whole"):
        to_mean.merge(to_mean)
    with torch.no_grad():
        other = copy.deepcopy(model)
        other.gates[-1].logits.add_(torch.rand(K, 2))
    with pytest.raises(KdxError, match="gates of another model"):
        ablate(model, images, labels).merge(ablate(other, images, labels))


def test_two_classes_and_a_single_expert_on_a_level(labels: Tensor) -> None:
    images = torch.randn(B, 1, 8, 8, dtype=torch.float64)
    found = ablate(small(experts=[1, 2, 2], classes=2), images, labels % 2, permutations=39)
    assert sorted(set(found.agreement["level"])) == [3, 4]
    assert not found.agreement.isna().any().any()
    alone = ablate(small(experts=1), images, labels)
    assert alone.agreement.empty
    assert "one expert" in str(alone)
    assert "one expert" in alone._repr_html_()
    with pytest.raises(KdxError, match="one expert"):
        alone.plot()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, labels: Tensor) -> None:
    images = torch.randn(B, 1, 8, 8)
    half = small().to(dtype)
    expected = ablate(copy.deepcopy(half).float(), images, labels, permutations=9).to_frame()
    found = ablate(half, images.to(dtype).float(), labels, permutations=9).to_frame()
    assert ((found["drop"] - expected["drop"]).abs() < 1e-2).all()
    assert next(half.parameters()).dtype == dtype


def test_what_cannot_be_ablated_is_refused(model: HME, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(KdxError, match=r"no image is of class 'b', 'c'"):
        ablate(model, images, torch.zeros_like(labels), ["a", "b", "c"]).to_frame()
    with pytest.raises(KdxError, match=r"no image is of class 'b', 'c'"):
        explain(model, images, torch.zeros_like(labels), 0, ["a", "b", "c"])
    with pytest.raises(KdxError, match="labels from 0 to 3 should lie in 0 to 2"):
        ablate(model, images, torch.arange(B) % 4)
    with pytest.raises(KdxError, match="has no experts"):
        ablate(nn.Linear(2, 2), images, labels)  # type: ignore[arg-type]
    with pytest.raises(KdxError, match="2 classes are named"):
        ablate(model, images, labels, ["a", "b"])
    with pytest.raises(KdxError, match="baseline = 'median'"):
        ablate(model, images, labels, baseline="median")  # type: ignore[arg-type]
    with pytest.raises(KdxError, match="features of level 2 don't vary over the 12 images"):
        ablate(
            explainer(passing(), [scaling((0.0, 0.0))], [ALPHA], WEIGHTS), images, labels
        ).to_frame()
    with pytest.raises(KdxError, match="don't vary over the 1 images"):
        _ = ablate(
            explainer(passing(), [scaling(SCALES)], [ALPHA[:1]], (1.0,)), images[:1], labels[:1]
        ).agreement
    with pytest.raises(KdxError, match="not finite"):
        ablate(model, images / 0, labels)
    broken = copy.deepcopy(model)
    broken.heads.bias.data[2] = torch.inf
    with pytest.raises(KdxError, match=r"subtasks \[2\] are not finite"):
        ablate(broken, images, labels)
    with pytest.raises(KdxError, match="subtask = 3 should lie in 0 to 2"):
        explain(model, images, labels, 3)


def test_an_explanation_follows_the_path(model: HME, images: Tensor, labels: Tensor) -> None:
    found = explain(model, images, labels, 2, ["a", "b", "c"], shown=3)
    assert found.path == (int((ALPHA[2] * torch.tensor(SCALES)).argmax()),) == (1,)
    assert found.attributions[0].expert == (2, 1)
    frame = found.to_frame()
    assert frame["on_path"].tolist() == [False, True]
    assert frame["n"].tolist() == [4, 4]
    # linear and with a zero baseline: conductance is the drop, on the images shown
    shown = images[labels == 2][:3].mean()
    expected = ALPHA[2] * WEIGHTS[2] * torch.tensor(SCALES) * shown
    torch.testing.assert_close(torch.tensor(frame["conductance"]), expected, rtol=1e-3, atol=1e-6)
    _, axes = found.plot()
    assert axes.shape == (2, 5)
    assert found._repr_html_().startswith("<img")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("what", ["ablate", "explain"])
def test_the_model_is_left_as_it_was_found(
    what: str, fails: bool, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(B, 1, 8, 8, dtype=torch.float64)
    model = small()
    model.levels[0].eval()
    call = {
        "ablate": lambda: ablate(model, images, labels, permutations=9),
        "explain": lambda: explain(model, images, labels, 1, shown=1),
    }[what]
    check_left_as_found(model, call, fails, monkeypatch)

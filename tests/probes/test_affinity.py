import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, build_model
from kdx_analysis.objectives import one_vs_rest_margins
from kdx_analysis.probes import affinity as affinity_module
from kdx_analysis.probes import conflict_of
from kdx_analysis.probes.affinity import affinity_of, affinity_table, subtask_affinity
from kdx_analysis.probes.conflict.grams import (
    Kept,
    residuals,
    subtask_gradients,
    subtask_grams,
    with_null,
)
from kdx_analysis.probes.subtasks import OneVsRest


class Linear(nn.Module):
    """Outputs o_k = θ · t_k of the targets' directions t_k, whatever the image; L_k = (o_k − 1)²."""

    def __init__(self, directions: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(directions.shape[1], dtype=torch.float64))
        self.register_buffer("directions", directions)

    def forward(self, images: Tensor) -> Tensor:
        return (self.directions @ self.theta).expand(len(images), -1)


def squared(outputs: Tensor) -> Tensor:
    return (outputs - 1) ** 2


def test_affinity_by_hand() -> None:
    """g_k = −2 t_k at θ = 0, so a step for a moves o_b by η cos(a, b)‖t_b‖ and Z = 1 − (1 − that)²."""
    directions = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    model = Linear(directions)
    (z,) = subtask_affinity(
        model, torch.zeros(3, 1, dtype=torch.float64), squared, groups=[[""]], eta=0.1
    )
    moved = 0.1 * torch.nn.functional.normalize(directions, dim=1) @ directions.T
    torch.testing.assert_close(z, 1 - (1 - moved) ** 2)
    assert z[0, 1] < 0 < z[0, 0]
    assert z[0, 2] == 0


def test_a_zero_gradient_is_nan_and_scaling_a_loss_changes_nothing() -> None:
    directions = torch.tensor([[1.0, 0.5], [0.0, 0.0]], dtype=torch.float64)
    model = Linear(directions)
    (z,) = subtask_affinity(model, torch.zeros(3, 1, dtype=torch.float64), squared, groups=[[""]])
    assert z[1].isnan().all()
    table = affinity_table(z.expand(3, 2, 2), ("a", "b")).query("a != ''").set_index("a")
    assert table["undefined"].to_dict() == {"a": 0, "b": 1}
    assert table["null_undefined"].to_dict() == {"a": 0, "b": 2}
    (scaled,) = subtask_affinity(
        model, torch.zeros(3, 1, dtype=torch.float64), lambda o: 5 * squared(o), groups=[[""]]
    )
    torch.testing.assert_close(scaled, z, equal_nan=True)


def test_the_model_is_restored_exactly_and_a_null_is_drawn() -> None:
    torch.manual_seed(0)
    model = HME.from_student(build_model("digits_student", 10, 1), 10, 2)
    images, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    one_hot = nn.functional.one_hot(labels, 10).float()
    before, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()

    def loss(margins: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(margins, one_hot, reduction="none")

    shared = [name for name, _ in model.named_parameters() if name.startswith(("trunk", "levels"))]
    z = subtask_affinity(model, images, loss, eta=0.1, null_draws=2)
    assert z.shape == (3, 10, 10)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in model.parameters())
    # the definition, step by step, on a copy whose weights are really moved
    model.eval()
    own = dict(model.named_parameters())
    losses = loss(model(images)).mean(dim=0)
    gradients = torch.autograd.grad(losses[3], [own[name] for name in shared])
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    with torch.no_grad():
        for name, g in zip(shared, gradients, strict=True):
            own[name] -= 0.1 * g / norm
        expected = 1 - loss(model(images)).mean(dim=0) / losses
    torch.testing.assert_close(z[0, 3], expected.detach(), rtol=1e-4, atol=1e-5)


def test_the_table_holds_every_ordered_pair_and_what_they_come_to() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(9, 3, bias=False), nn.Identity(), nn.Linear(3, 3)
    ).double()
    images = torch.randn(12, 1, 3, 3, dtype=torch.float64)
    labels = torch.arange(12) % 3
    table = affinity_of(
        model, images, labels, classes="abc", groups=[["1"]], eta=0.05, null_draws=39
    )

    def loss(outputs: Tensor) -> Tensor:
        target = nn.functional.one_hot(labels, 3).double()
        return nn.functional.binary_cross_entropy_with_logits(outputs, target, reduction="none")

    z = subtask_affinity(
        model, images, loss, margins=one_vs_rest_margins, groups=[["1"]], eta=0.05, null_draws=39
    )
    pairs = table[table["metric"] == "affinity"].set_index(["a", "b"])
    assert list(pairs.index) == [(a, b) for a in "abc" for b in "abc" if a != b]
    for (a, b), row in pairs.iterrows():
        assert row["value"] == z[0, "abc".index(a), "abc".index(b)].item()
        null = z[1:, "abc".index(a), "abc".index(b)]
        assert row["null_mean"] == pytest.approx(null.mean().item())
        ends = null.min().item(), null.max().item()  # of 39 draws
        assert (row["null_low"], row["null_high"]) == pytest.approx(ends)
    whole = table[table["a"] == ""].set_index("metric")
    assert whole.loc["median_affinity", "value"] == pytest.approx(pairs["value"].median())
    assert whole.loc["hurt_share", "value"] == pytest.approx((pairs["value"] < 0).mean())
    assert set(table["eta"]) == {0.05}
    assert set(table["n"]) == {12}
    with pytest.raises(KdxError, match="no image is of class 'c'"):
        affinity_of(model, images[labels < 2], labels[labels < 2], classes="abc", groups=[["1"]])
    with pytest.raises(KdxError, match="0 draws"):
        affinity_of(model, images, labels, null_draws=0)


def test_undefined_pairs_are_counted_and_left_out() -> None:
    z = torch.tensor([[0.5, 0.1, -0.2], [torch.nan] * 3, [0.3, 0.4, 0.5]], dtype=torch.float64)
    table = affinity_table(torch.stack([z, z]), ("a", "b", "c")).set_index("metric")
    assert table.loc["affinity", "undefined"].tolist() == [0, 0, 1, 1, 0, 0]
    assert table.loc["median_affinity", "value"] == pytest.approx(0.2)
    assert table.loc["hurt_share", "value"] == pytest.approx(1 / 4)
    assert table.loc["median_affinity", "undefined"] == 2


def test_half_precision_is_probed_in_float32_and_one_image_is_enough() -> None:
    model = Linear(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).bfloat16()
    (z,) = subtask_affinity(model, torch.zeros(1, 1), squared, groups=[[""]], eta=0.1)
    torch.testing.assert_close(z, 1 - (1 - torch.tensor([[0.1, -0.1], [-0.1, 0.1]])) ** 2)
    assert next(model.parameters()).dtype == torch.bfloat16


def test_bad_steps_are_refused() -> None:
    model = Linear(torch.ones(2, 2, dtype=torch.float64))
    with pytest.raises(KdxError, match="eta = 0"):
        subtask_affinity(model, torch.zeros(2, 1), squared, groups=[[""]], eta=0)
    with pytest.raises(KdxError, match=r"subtasks \[0, 1\] are not finite"):
        subtask_affinity(model, torch.zeros(2, 1), lambda o: o / 0, groups=[[""]])

    def steep(outputs: Tensor) -> Tensor:
        """Of subtask 1 the slope is infinite at o = 0."""
        return torch.stack([(outputs[:, 0] - 1) ** 2, 1 + outputs[:, 1].sqrt()], dim=1)

    with pytest.raises(KdxError, match=r"gradients on level 1 are not finite \(subtasks \[1\]\)"):
        subtask_affinity(model, torch.zeros(2, 1), steep, groups=[[""]])


@pytest.mark.parametrize("confidence", [1, 20, 60])
def test_sure_models_are_probed_as_exactly_as_unsure_ones(confidence: float) -> None:
    """In float32 as in float64, where margins are so large that BCE on logits has no gradient left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3))
    images, labels = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
    with torch.no_grad():
        model[3].weight *= confidence / model(images).abs().mean()
    exact, one_hot = copy.deepcopy(model).double(), F.one_hot(labels, 3)

    def right(outputs: Tensor) -> Tensor:
        """Margins with the signs of the labels."""
        return outputs.abs() * (2 * one_hot - 1)

    m = right(exact(images.double()))
    losses = (-one_hot * F.logsigmoid(m) - (1 - one_hot) * F.logsigmoid(-m)).mean(dim=0)
    gradients = [
        torch.autograd.grad(loss, list(exact[0].parameters()), retain_graph=True) for loss in losses
    ]
    rows = F.normalize(
        torch.stack([torch.cat([part.flatten() for part in g]) for g in gradients]), dim=1
    )
    options = {"groups": [["0"]], "margins": right}
    found = conflict_of(model, images, labels, null_draws=19, **options).pairs.query(
        "level == 'all'"
    )
    assert found["cosine"].to_numpy() == pytest.approx(
        (rows @ rows.T)[[0, 0, 1], [1, 2, 2]].numpy(), abs=1e-3
    )
    z, exact_z = (
        affinity_of(of, images, labels, null_draws=1, **options)
        .query("metric == 'affinity'")["value"]
        .to_numpy()
        for of in (model, exact)
    )
    assert z == pytest.approx(exact_z, abs=2e-3)


@pytest.mark.parametrize("gates", ["parameter", "input"])
def test_gradients_that_conflict_has_at_hand_are_not_computed_anew(gates, monkeypatch) -> None:
    torch.manual_seed(0)
    model = HME.from_student(build_model("digits_student", 4, 1), 4, (2, 3, 2), gates=gates)
    with torch.no_grad():
        model(torch.randn(32, 1, 8, 8))
    images, labels = torch.randn(12, 1, 8, 8), torch.arange(12) % 4
    expected = affinity_of(model, images, labels, eta=0.1, null_draws=2)
    probed = OneVsRest.of(model, images, labels, None, None)
    sets = with_null(residuals(probed.loss, probed.outputs), 19, 0)
    kept = Kept(sets[:3])
    in_pieces = Kept(sets[:3])
    subtask_grams(model, images, sets, kept=kept)
    subtask_grams(model, images, sets, kept=in_pieces, max_memory=2**20)
    gradients = subtask_gradients(model, images, sets[:3])
    for each in (kept, in_pieces):
        at_hand = each.of(sets[:3])
        assert at_hand.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(at_hand[name], gradient, rtol=1e-4, atol=1e-7)

    def never(*args: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr(affinity_module, "subtask_gradients", never)
    table = affinity_of(model, images, labels, eta=0.1, null_draws=2, kept=kept)
    for column in ("value", "null_mean"):
        # Z is a small difference of losses in float32.
        assert np.allclose(table[column], expected[column], rtol=0, atol=1e-5)
    # Those of other residuals are of no use: another draw, and more than were kept.
    for options in ({"seed": 1, "null_draws": 2}, {"null_draws": 3}):
        with pytest.raises(AssertionError):
            affinity_of(model, images, labels, eta=0.1, kept=kept, **options)

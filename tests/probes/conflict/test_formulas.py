import math

import pytest
import torch

from kdx_analysis.probes.conflict import formulas as conflict

# Three subtasks in the plane: a and b oppose each other, c stands across both.
VECTORS = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
GRAM = VECTORS @ VECTORS.T


def random_ungated(N: int = 3, K: int = 5, D: int = 7, seed: int = 0) -> torch.Tensor:
    h = torch.randn(N, K, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return h @ h.transpose(1, 2)


def random_gates(K: int = 5, N: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.randn(
        K, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).softmax(dim=1)


def test_cosine_rate_and_severity_by_hand() -> None:
    cosines = conflict.cosine(GRAM)
    torch.testing.assert_close(
        conflict.upper(cosines), torch.tensor([-1.0, 0.0, 0.0], dtype=torch.float64)
    )
    assert conflict.conflict_rate(cosines).item() == pytest.approx(1 / 3)
    assert conflict.severity(cosines).item() == pytest.approx(1 / 3)
    assert conflict.mean_cosine(cosines).item() == pytest.approx(-1 / 3)


def test_agreement_is_no_conflict() -> None:
    same = torch.ones(3, 3, dtype=torch.float64)
    assert conflict.conflict_rate(conflict.cosine(same)) == 0
    assert conflict.severity(conflict.cosine(same)) == 0


def test_scaling_a_loss_leaves_cosines_and_permuting_classes_permutes_them() -> None:
    scale = torch.tensor([3.0, 0.1, 7.0], dtype=torch.float64)
    torch.testing.assert_close(
        conflict.cosine(GRAM * scale[:, None] * scale), conflict.cosine(GRAM)
    )
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        conflict.cosine(GRAM[order][:, order]), conflict.cosine(GRAM)[order][:, order]
    )


def test_a_zero_gradient_is_nan_and_left_out_not_counted_as_peace() -> None:
    gram = GRAM.clone()
    gram[2, :] = gram[:, 2] = 0
    cosines = conflict.cosine(gram)
    assert conflict.upper(cosines).isnan().tolist() == [False, True, True]
    assert conflict.conflict_rate(cosines) == 1
    assert conflict.severity(cosines) == 1
    assert conflict.conflict_rate(conflict.cosine(torch.zeros(3, 3))).isnan()


def test_contention_by_hand() -> None:
    """One expert, K = 2: h_a = (1, 0), h_b = (−1, 0), both use it whole: all gradient pulls against
    another.
    """
    ungated = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])
    assert conflict.contention(ungated, torch.ones(2, 1)).item() == pytest.approx(1)
    two_experts = ungated.repeat(2, 1, 1)
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert conflict.contention(two_experts, apart).item() == 0
    shared = torch.full((2, 2), 0.5)
    assert conflict.contention(two_experts, shared).item() == pytest.approx(1)
    leaning = torch.tensor([[0.8, 0.2], [0.2, 0.8]])
    expected = 2 * 0.8 * 0.2 / (0.8**2 + 0.2**2)
    assert conflict.contention(two_experts, leaning).item() == pytest.approx(expected)


def test_contention_against_a_loop() -> None:
    ungated, q = random_ungated(), random_gates()
    against = norm = 0.0
    total = sum(torch.outer(q[:, i], q[:, i]) * ungated[i] for i in range(3))
    for a in range(5):
        for b in range(a + 1, 5):
            against += sum(
                max(0.0, -(q[a, i] * q[b, i] * ungated[i, a, b]).item()) for i in range(3)
            )
            norm += math.sqrt(total[a, a] * total[b, b])
    assert conflict.contention(ungated, q).item() == pytest.approx(against / norm)


def test_contention_is_bounded_and_does_not_depend_on_the_order_of_experts_or_subtasks() -> None:
    experts, subtasks = torch.tensor([2, 0, 1]), torch.tensor([4, 2, 0, 1, 3])
    for seed in range(20):
        ungated, q = random_ungated(seed=seed), random_gates(seed=seed + 100)
        value = conflict.contention(ungated, q)
        assert 0 <= value <= 1
        permuted = conflict.contention(
            ungated[experts][:, subtasks][:, :, subtasks], q[subtasks][:, experts]
        )
        torch.testing.assert_close(permuted, value)


def test_separation_finds_gates_that_keep_conflict_apart() -> None:
    opposed = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 1, 1)
    assert conflict.separation(opposed, torch.eye(2)).item() == pytest.approx(1)
    assert conflict.separation(opposed, torch.full((2, 2), 0.5)).item() == pytest.approx(0)


def planted() -> tuple[torch.Tensor, torch.Tensor]:
    """Two camps that oppose each other in both experts; the gates give each camp an expert of its
    own.
    """
    camp = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    ungated = torch.outer(camp, camp).repeat(2, 1, 1)
    apart = torch.where(
        camp[:, None] > 0, torch.tensor([[0.95, 0.05]]), torch.tensor([[0.05, 0.95]])
    ).double()
    return ungated, apart


def test_modulation_finds_planted_assignments_and_wrong_ones() -> None:
    ungated, apart = planted()
    right, p = conflict.modulation(ungated, apart, 199, torch.Generator().manual_seed(0))
    assert right > 0.5
    assert p <= 0.15  # 2 of the 20 ways to split six into two camps are right
    mixed = apart[[0, 3, 1, 4, 2, 5]]
    wrong, p_wrong = conflict.modulation(ungated, mixed, 199, torch.Generator().manual_seed(0))
    assert wrong < 0
    assert p_wrong > 0.5


def test_modulation_of_gates_that_are_all_alike_and_of_two_subtasks_is_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    alike = random_gates()[:1].expand(5, -1).contiguous()
    value, p = conflict.modulation(random_ungated(), alike, 50, generator)
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert p == 1
    # permuting two rows swaps them: with one Gram matrix for both experts nothing changes
    two = torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64).repeat(2, 1, 1)
    value, p = conflict.modulation(
        two, torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64), 50, generator
    )
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert p == 1


def test_two_subtasks_of_unlike_norms_are_not_modulated() -> None:
    gates = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.3, 0.6]])
    ungated = random_ungated(K=2)
    assert not torch.isclose(
        conflict.contention(ungated, gates), conflict.contention(ungated, gates.flip(0))
    )
    assert conflict.modulation(ungated, gates, 99, torch.Generator().manual_seed(0)) == (0, 1)


def test_no_conflict_at_all_gives_nan_not_a_number_out_of_nothing() -> None:
    peace = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    value, p = conflict.modulation(peace, random_gates(4, 2), 20, torch.Generator().manual_seed(0))
    assert value.isnan()
    assert math.isnan(p)
    assert conflict.separation(peace, random_gates(4, 2)).isnan()


def test_magnitude_similarity_by_hand() -> None:
    similarity = conflict.magnitude_similarity(GRAM)
    assert similarity[0, 1].item() == pytest.approx(2 * 2 * 1 / (4 + 1))
    assert similarity[0, 0].item() == 1
    scaled = GRAM * torch.tensor([2.0, 2.0, 2.0])[:, None] * 2.0
    torch.testing.assert_close(conflict.magnitude_similarity(scaled), similarity)
    assert conflict.magnitude_similarity(torch.zeros(2, 2)).isnan().all()


def test_contention_of_actual_gradients_is_that_of_gates_and_the_rest() -> None:
    ungated, q = random_ungated(), random_gates()
    gated = torch.einsum("ai,bi,iab->iab", q, q, ungated)
    torch.testing.assert_close(conflict.contention_inside(gated), conflict.contention(ungated, q))
    whole = gated.sum(
        dim=0, keepdim=True
    )  # one expert: what cancels between experts is no contention
    assert conflict.contention_inside(whole) <= conflict.contention_inside(gated)


def test_contention_by_expert_by_hand() -> None:
    opposed, aligned = (
        torch.tensor([[1.0, -0.5], [-0.5, 1.0]]),
        torch.tensor([[1.0, 0.5], [0.5, 1.0]]),
    )
    grams = torch.stack([opposed, aligned, 2 * opposed])  # G has 1 + 1 + 2 on its diagonal
    torch.testing.assert_close(
        conflict.contention_by_expert(grams), torch.tensor([0.5, 0.0, 1.0]) / 4
    )
    assert conflict.contention_inside(grams).item() == pytest.approx(1.5 / 4)
    assert conflict.contention_by_expert(torch.zeros(2, 3, 3)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_modulation_counts_orders_of_like_gates_as_ties_in_any_precision(
    dtype: torch.dtype,
) -> None:
    """Gates that are all alike give the same C in every order, so p is 1 however the sums are
    rounded.
    """
    ungated = random_ungated().to(dtype)
    alike = (
        torch.tensor([0.3, 0.6, 0.1], dtype=dtype)
        .expand(ungated.shape[-1], -1)[:, : len(ungated)]
        .contiguous()
    )
    value, p = conflict.modulation(ungated, alike, 199, torch.Generator().manual_seed(0))
    assert p == 1
    assert value.dtype == dtype
    assert value.item() == pytest.approx(0, abs=1e-6)


def test_modulation_is_contention_under_permuted_gates_draw_by_draw():
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(3, 4, 6, 9, generator=generator, dtype=torch.float64)
    ungated, gates = (
        inner @ inner.mT,
        torch.rand(6, 4, generator=generator, dtype=torch.float64).softmax(dim=1),
    )
    values, p = conflict.modulation(ungated, gates, 39, torch.Generator().manual_seed(1))
    orders = torch.rand(39, 6, generator=torch.Generator().manual_seed(1)).argsort(dim=1)
    for draw, value, rare in zip(ungated, values, p, strict=True):
        own = conflict.contention(draw, gates)
        permuted = torch.stack([conflict.contention(draw, gates[order]) for order in orders])
        assert float(value) == pytest.approx(
            float((permuted.mean() - own) / (permuted.mean() + own)), rel=1e-12
        )
        assert float(rare) == pytest.approx((1 + int((permuted <= own).sum())) / 40)

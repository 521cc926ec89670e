from itertools import combinations

import pytest
import torch
from sklearn.metrics import roc_auc_score

from kdx_analysis.errors import KdxError
from kdx_analysis.models import gates as gating
from kdx_analysis.probes.conflict import formulas as conflict
from kdx_analysis.probes.conflict.grams import Grams, subtask_grams, with_null
from kdx_analysis.probes.gates import formulas as gates
from kdx_analysis.probes.planted.truth import Conflict, Planted, auroc, plant, routes, together

PAIR = Conflict(one=(0,), other=(3,), experts=(1,), strength=0.6)
CAMPS = Conflict(one=(1, 4), other=(5, 2), experts=(0, 2))


def make(*conflicts: Conflict, snr: float = 1.0, **options) -> Planted:
    return plant(conflicts or (PAIR, CAMPS), subtasks=8, experts=3, snr=snr, per_class=4, **options)


def grams(planted: Planted, draws: int = 0) -> Grams:
    return subtask_grams(planted.model, planted.images, with_null(planted.residuals, draws, 0))


def leaning() -> torch.Tensor:
    return torch.rand(
        8, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    ).softmax(dim=1)


@pytest.mark.parametrize("snr", [0.25, 1.0, 3.0])
def test_gradients_of_backward_passes_are_what_was_planted(snr: float) -> None:
    """The hard loss, differentiated by autograd: every planted part has snr times the norm of the
    rest.
    """
    planted = make(snr=snr)
    margins = planted.model(planted.images)
    truth = torch.nn.functional.one_hot(planted.labels, 8).double()
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        margins, truth, reduction="none"
    ).sum(dim=0)
    rows, reads = planted.model.levels[0].parameters()
    for a, loss in enumerate(losses):
        unseen, g = torch.autograd.grad(loss, (rows, reads), retain_graph=True)
        h = g.reshape(3, 2, -1)[:, 0] * 3  # of three experts that all are used alike
        torch.testing.assert_close(h, planted.planted[a] + planted.rest[a])
        assert not unseen.any()
        ratio = planted.planted[a].norm() / (h - planted.planted[a]).norm()
        assert ratio.item() == pytest.approx(snr if a < 6 else 0)


def test_the_probe_sees_the_planted_gradients() -> None:
    planted = make(gates=leaning())
    h = planted.planted + planted.rest
    found = grams(planted)
    torch.testing.assert_close(found.experts[-1][0], torch.einsum("kim,lim->ikl", h, h))
    torch.testing.assert_close(found.gates, leaning())
    assert not found.experts[0].any()


def test_planted_directions_oppose_each_other_where_and_as_strongly_as_told() -> None:
    inner = torch.einsum("kim,lim->ikl", *2 * [make().planted])
    cosines = conflict.cosine(inner)
    assert cosines[1, 0, 3].item() == pytest.approx(-0.6)
    assert cosines[0, 0, 3].isnan()  # nothing there
    for i in (0, 2):
        assert cosines[i, 1, 5].item() == pytest.approx(-1)
        assert cosines[i, 1, 4].item() == pytest.approx(1)
    assert inner[1, 1].abs().max() < 1e-12


def test_conflicts_of_one_expert_do_not_meet() -> None:
    planted = make(PAIR, Conflict((1,), (2,), (1,)))
    inner = torch.einsum("kim,lim->ikl", planted.planted, planted.planted)
    assert inner[1][[0, 0, 3, 3], [1, 2, 1, 2]].abs().max() < 1e-12


def test_what_conflicts_stands_in_a_table() -> None:
    where = make().where
    expected = torch.zeros(3, 8, 8, dtype=torch.bool)
    for i, a, b in [(1, 0, 3), *((i, a, b) for i in (0, 2) for a in (1, 4) for b in (5, 2))]:
        expected[i, a, b] = expected[i, b, a] = True
    assert torch.equal(where, expected)
    assert torch.equal(make().conflicting, expected.any(dim=0))


@pytest.mark.parametrize("q", [None, leaning(), routes([0, 1, 2, 0, 1, 2, 0, 1], 3)])
def test_contention_in_closed_form_is_that_of_gradients_whose_rest_is_orthogonal(
    q: torch.Tensor | None,
) -> None:
    """Gram matrices without the chance inner products of the rest, from the planted parts
    themselves.
    """
    planted = make(snr=0.7)
    s = planted.planted
    ungated = torch.einsum("kim,lim->ikl", s, s) + torch.diag_embed(planted.rest.norm(dim=2).T ** 2)
    alpha = planted.gates if q is None else q
    assert planted.contention(q) == pytest.approx(conflict.contention(ungated, alpha).item())
    if q is not None:
        assert planted.gated(q).contention() == pytest.approx(planted.contention(q))


def test_contention_by_hand() -> None:
    """Two subtasks, one expert: ρ s²/(s² + 1) whatever the size of the noise, when both have the
    same s.
    """
    planted = plant([Conflict((0,), (1,), (0,), 0.5)], subtasks=2, experts=1, snr=2.0)
    assert planted.contention() == pytest.approx(0.5 * 4 / 5)


def test_contention_measured_is_near_the_planted_one() -> None:
    planted = make(width=512, snr=2.0)
    found = grams(planted)
    assert found.gates is not None
    measured = conflict.contention(found.experts[-1][0], found.gates).item()
    assert measured == pytest.approx(planted.contention(), abs=0.02)
    assert measured > 0.1


def test_other_gates_leave_images_and_gradients() -> None:
    planted = make()
    other = planted.gated(leaning())
    torch.testing.assert_close(other.gates, leaning())
    torch.testing.assert_close(grams(other).experts[-1], grams(planted).experts[-1])
    torch.testing.assert_close(planted.gates, torch.full((8, 3), 1 / 3, dtype=torch.float64))


def test_without_anything_planted_permuted_samples_have_gradients_as_large() -> None:
    found = grams(make(snr=0), 99).experts[-1].diagonal(dim1=-2, dim2=-1).mean(dim=(1, 2))
    assert 1 / 100 < (found[1:] <= found[0]).double().mean() < 99 / 100


def test_features_vary_alike_so_that_effective_attention_is_alpha() -> None:
    planted = make(gates=leaning())
    trace = planted.model.trace(planted.images)
    spreads = [gating.spread(features) for features in trace.features]
    torch.testing.assert_close(gates.effective(trace.attention, spreads)[-1], leaning())


def test_what_routes_together_is_at_distance_zero_and_nothing_else() -> None:
    assignment = [2, 0, 1, 0, 2, 2]
    distance = gates.routing_distance(routes(assignment, 3, share=0.7))
    for a, b in combinations(range(6), 2):
        assert (
            (distance[a, b].item() < 1e-12)
            == (assignment[a] == assignment[b])
            == together(assignment)[a, b].item()
        )
    torch.testing.assert_close(
        routes([1], 3, share=0.7)[0], torch.tensor([0.15, 0.7, 0.15], dtype=torch.float64)
    )
    noisy = gates.routing_distance(routes(assignment, 3, noise=0.2))
    assert auroc(together(assignment), -noisy) == 1
    assert (conflict.upper(noisy) > 0).all()


def test_auroc_is_that_of_the_pairs() -> None:
    planted = make()
    scores = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    scores = scores + scores.T
    a, b = torch.triu_indices(8, 8, offset=1)
    assert planted.auroc(scores) == pytest.approx(
        roc_auc_score(planted.conflicting[a, b], scores[a, b])
    )
    wins = [
        float(scores[c] > scores[o])
        for c in zip(a, b, strict=True)
        for o in zip(a, b, strict=True)
        if planted.conflicting[c] and not planted.conflicting[o]
    ]
    assert planted.auroc(scores) == pytest.approx(sum(wins) / len(wins))


def test_the_same_seed_plants_the_same_and_leaves_torch_random_state() -> None:
    state = torch.get_rng_state()
    one, same, other = make(), make(), make(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)


BAD = {
    "one subtask in two conflicts": (
        {"conflicts": [PAIR, Conflict((3,), (4,), (0,))]},
        r"subtasks \[3\] stand in more",
    ),
    "a subtask against itself": (
        {"conflicts": [Conflict((2,), (2,), (0,))]},
        r"subtasks \[2\] stand in more",
    ),
    "no such subtask": ({"conflicts": [Conflict((2,), (8,), (0,))]}, "subtasks from 0 to 7"),
    "nobody to oppose": (
        {"conflicts": [Conflict((2,), (), (0,))]},
        "subtasks from 0 to 7 on both sides",
    ),
    "no such expert": ({"conflicts": [Conflict((2,), (1,), (3,))]}, "experts from 0 to 2"),
    "no strength": ({"conflicts": [Conflict((2,), (1,), (0,), 0.0)]}, "strength above 0"),
    "negative signal": ({"snr": -1.0}, r"snr = -1.0 0 or more"),
    "too narrow": ({"width": 1}, "width = 1 is too small for conflicts of 2 directions"),
    "gates that are none": ({"gates": torch.ones(8, 3)}, "rows that sum to 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(KdxError, match=message):
        plant(**({"conflicts": [PAIR], "subtasks": 8, "experts": 3, "snr": 1.0} | changes))


def test_routes_beyond_the_experts_and_an_auroc_of_nothing_are_refused() -> None:
    with pytest.raises(KdxError, match="experts beyond 0 to 1"):
        routes([0, 2], 2)
    with pytest.raises(KdxError, match=r"share = 1\.5"):
        routes([0, 1], 2, share=1.5)
    with pytest.raises(KdxError, match="pairs of both kinds"):
        plant((), subtasks=3, experts=2, snr=0).auroc(torch.rand(3, 3))

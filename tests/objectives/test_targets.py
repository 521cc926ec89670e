import pytest
import torch

from kdx_analysis.objectives import OBJECTIVES, one_vs_rest_margins, teacher_cut


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 4, 2, 2, 1, 3, 0])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_vs_rest_margins_by_hand():
    v = torch.tensor([[2.0, 0.0, 0.0]])
    rest = torch.tensor(
        [2 - torch.log(torch.tensor(2.0)), -torch.log(torch.e**2 + torch.tensor(1.0))]
    )
    torch.testing.assert_close(one_vs_rest_margins(v), rest[[0, 1, 1]].unsqueeze(0))


def test_the_sigmoid_of_a_margin_is_the_softmax(logits):
    torch.testing.assert_close(one_vs_rest_margins(logits).sigmoid(), logits.softmax(dim=1))


def test_margins_stay_finite_where_probabilities_do_not_tell_apart():
    margins = one_vs_rest_margins(torch.tensor([[200.0, 0.0, -200.0]]))
    torch.testing.assert_close(margins, torch.tensor([[200.0, -200.0, -400.0]]))


def test_two_way_is_the_softmax_at_temperature_1_only(logits):
    torch.testing.assert_close(teacher_cut(logits, 1.0, "binary"), logits.softmax(dim=1))
    at_4 = teacher_cut(logits, 4.0, "binary")
    torch.testing.assert_close(at_4.logit() * 4, one_vs_rest_margins(logits))
    assert (at_4 - teacher_cut(logits, 4.0, "binary", "softmax_then_cut")).abs().max() > 0.1


def test_other_cuts_are_the_softmax_at_temperature(logits):
    expected = (logits / 4).softmax(dim=1)
    torch.testing.assert_close(teacher_cut(logits, 4.0, "binary", "softmax_then_cut"), expected)
    torch.testing.assert_close(teacher_cut(logits, 4.0, "multiclass"), expected)


@pytest.mark.parametrize("decomposition", ["binary", "multiclass"])
@pytest.mark.parametrize("name", ["kd", "kd_flat", "kd_shuffled"])
def test_controls_keep_the_true_classs_target_and_the_sum_of_a_row(
    logits, labels, name, decomposition
):
    cut = teacher_cut(logits, 2.0, decomposition)
    target = OBJECTIVES[name].target(cut, labels, generator())
    rows = torch.arange(len(labels))
    assert torch.equal(target[rows, labels], cut[rows, labels])
    torch.testing.assert_close(target.sum(dim=1), cut.sum(dim=1))


def test_hard_t_is_one_hot(logits, labels):
    target = OBJECTIVES["hard_T"].target(logits.softmax(dim=1), labels, generator())
    assert torch.equal(target.argmax(dim=1), labels)
    assert torch.equal(
        target.sort(dim=1).values,
        torch.tensor([[0.0, 0, 0, 0, 1]], dtype=target.dtype).expand(7, -1),
    )


def test_kd_flat_by_hand():
    cut = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]])
    flat = OBJECTIVES["kd_flat"].target(cut, torch.tensor([0, 1]), generator())
    torch.testing.assert_close(flat, torch.tensor([[0.7, 0.15, 0.15], [0.45, 0.1, 0.45]]))


def test_kd_shuffled_keeps_the_multiset_of_wrong_targets(logits, labels):
    cut = logits.softmax(dim=1)
    shuffled = OBJECTIVES["kd_shuffled"].target(cut, labels, generator())
    assert torch.equal(shuffled.sort(dim=1).values, cut.sort(dim=1).values)
    assert not torch.equal(shuffled, cut)


def test_kd_shuffled_permutes_every_sample_by_a_draw_of_its_own(labels):
    cut = torch.arange(5.0).expand(64, -1)
    shuffled = OBJECTIVES["kd_shuffled"].target(
        cut, torch.zeros(64, dtype=torch.int64), generator()
    )
    assert len(shuffled.unique(dim=0)) > 12  # of 4! = 24
    assert not torch.equal(
        shuffled,
        OBJECTIVES["kd_shuffled"].target(cut, torch.zeros(64, dtype=torch.int64), generator(1)),
    )


def test_the_mean_of_kd_shuffled_is_kd_flat(labels):
    cut = torch.tensor([[0.05, 0.6, 0.3, 0.04, 0.01]]).expand(40_000, -1)
    truth = torch.ones(40_000, dtype=torch.int64)
    mean = OBJECTIVES["kd_shuffled"].target(cut, truth, generator()).mean(dim=0)
    flat = OBJECTIVES["kd_flat"].target(cut[:1], truth[:1], generator())[0]
    torch.testing.assert_close(mean, flat, atol=0.004, rtol=0)  # 6 standard errors: .12/200 each


def test_permuting_classes_permutes_the_targets(logits, labels):
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = order.argsort()[labels]
    for decomposition, cut in (
        ("binary", "two_way"),
        ("binary", "softmax_then_cut"),
        ("multiclass", "two_way"),
    ):
        there = teacher_cut(logits[:, order], 3.0, decomposition, cut)
        torch.testing.assert_close(there, teacher_cut(logits, 3.0, decomposition, cut)[:, order])
    for name in ("kd", "kd_flat", "hard_T"):
        target = OBJECTIVES[name].target(logits[:, order].softmax(dim=1), moved, generator())
        torch.testing.assert_close(
            target, OBJECTIVES[name].target(logits.softmax(dim=1), labels, generator())[:, order]
        )


def test_one_vs_rest_margins_are_those_of_the_other_classes_one_by_one(logits):
    logits = torch.cat(
        [logits, torch.tensor([[2.0, 2, 2, -500, 0], [700.0, -700, 0, 1, 2]], dtype=torch.float64)]
    )
    leaf, beside = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    others = [
        torch.cat([beside[:, :k], beside[:, k + 1 :]], dim=1).logsumexp(dim=1) for k in range(5)
    ]
    wanted = beside - torch.stack(others, dim=1)
    given = one_vs_rest_margins(leaf)
    torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)
    weights = torch.arange(5.0, dtype=torch.float64)
    slopes = [
        torch.autograd.grad((m * weights).sum(), x)[0] for m, x in ((given, leaf), (wanted, beside))
    ]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, logsumexp, softmax
from torch.distributions import Bernoulli, kl_divergence

from kdx_analysis.config import ObjectiveConfig
from kdx_analysis.objectives import (
    OBJECTIVES,
    Objective,
    one_vs_rest_margins,
    rungs,
    scale_to,
    teacher_cut,
)

K = 5
NAMES = ("hard", "hard_T", "kd_flat", "kd_shuffled", "kd", "label_smoothing")


def objective(name: str, **keys) -> Objective:
    return Objective(ObjectiveConfig.model_validate({"name": name, **keys}))


def normal(seed: int, rows: int = 6) -> torch.Tensor:
    return 2 * torch.randn(
        rows, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


MARGINS, TEACHER, LABELS = normal(1), normal(2), torch.tensor([0, 4, 2, 2, 1, 3])


def loss(which: Objective, margins: torch.Tensor = MARGINS) -> torch.Tensor:
    return which.loss(margins, LABELS, TEACHER, generator())


def terms(which: Objective, margins: torch.Tensor = MARGINS) -> dict[str, torch.Tensor]:
    return which.terms(margins, LABELS, TEACHER, generator())


def test_every_rung_is_described_and_has_its_targets():
    assert [rung.name for rung in rungs()] == list(NAMES[:-1])
    assert list(OBJECTIVES)[:6] == ["hard", "label_smoothing", *NAMES[1:-1]]
    assert all(OBJECTIVES[name].target and OBJECTIVES[name].definition for name in NAMES)
    distils = {name for name in NAMES if objective(name).distils}
    assert distils == {"hard_T", "kd_flat", "kd_shuffled", "kd"}
    needs = {name: objective(name).needs_teacher for name in NAMES}
    assert needs == {name: name in ("kd_flat", "kd_shuffled", "kd") for name in NAMES}


def test_hard_by_hand():
    margins = torch.tensor([[math.log(3), 0.0]])  # p = .75, .5
    given = objective("hard").terms(margins, torch.tensor([0]), None, generator())["hard"]
    torch.testing.assert_close(given, -torch.tensor([[0.75, 0.5]]).log())


def test_kd_by_hand():
    teacher = torch.tensor([[math.log(4), 0.0]])  # σ(u) = .8, .2
    zero = torch.zeros(1, 2)
    kl = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    given = objective("kd", T=1, **{"lambda": 0.75}).terms(
        zero, torch.tensor([0]), teacher, generator()
    )
    torch.testing.assert_close(given["distillation"], torch.full((1, 2), 0.75 * kl))
    torch.testing.assert_close(given["hard"], torch.full((1, 2), 0.25 * math.log(2)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("decomposition", ["binary", "multiclass"])
def test_the_loss_is_the_sum_over_subtasks_and_the_mean_over_the_batch(name, decomposition):
    which = objective(name, decomposition=decomposition)
    parts = terms(which)
    assert {part.shape for part in parts.values()} == {MARGINS.shape}
    torch.testing.assert_close(
        loss(which), sum(part.sum() for part in parts.values()) / len(MARGINS)
    )


def test_multiclass_hard_is_cross_entropy():
    torch.testing.assert_close(
        loss(objective("hard", decomposition="multiclass")), F.cross_entropy(MARGINS, LABELS)
    )


def test_binary_hard_is_binary_cross_entropy():
    one_hot = F.one_hot(LABELS, K).double()
    expected = F.binary_cross_entropy_with_logits(MARGINS, one_hot, reduction="none")
    torch.testing.assert_close(terms(objective("hard"))["hard"], expected)


def test_balanced_positives_weigh_as_much_as_all_negatives():
    one_hot, weight = F.one_hot(LABELS, K).double(), torch.tensor(float(K - 1))
    expected = F.binary_cross_entropy_with_logits(
        MARGINS, one_hot, pos_weight=weight, reduction="none"
    )
    torch.testing.assert_close(
        terms(objective("hard", positive_weight="balanced"))["hard"], expected
    )


def test_label_smoothing_is_torchs():
    which = objective("label_smoothing", decomposition="multiclass", epsilon=0.3)
    torch.testing.assert_close(loss(which), F.cross_entropy(MARGINS, LABELS, label_smoothing=0.3))


def test_binary_label_smoothing_cuts_the_smoothed_target():
    smoothed = 0.7 * F.one_hot(LABELS, K).double() + 0.3 / K
    expected = F.binary_cross_entropy_with_logits(MARGINS, smoothed, reduction="none")
    torch.testing.assert_close(terms(objective("label_smoothing", epsilon=0.3))["hard"], expected)


@pytest.mark.parametrize("decomposition", ["binary", "multiclass"])
def test_label_smoothing_by_nothing_is_hard(decomposition):
    smoothed = objective("label_smoothing", decomposition=decomposition, epsilon=0)
    torch.testing.assert_close(loss(smoothed), loss(objective("hard", decomposition=decomposition)))


@pytest.mark.parametrize("decomposition", ["binary", "multiclass"])
def test_without_weight_kd_is_hard(decomposition):
    which = objective("kd", decomposition=decomposition, **{"lambda": 0})
    torch.testing.assert_close(loss(which), loss(objective("hard", decomposition=decomposition)))


@pytest.mark.parametrize("decomposition", ["binary", "multiclass"])
def test_hard_t_at_temperature_1_is_hard(decomposition):
    for weight in (0.3, 1):
        which = objective("hard_T", decomposition=decomposition, T=1, **{"lambda": weight})
        torch.testing.assert_close(
            loss(which), loss(objective("hard", decomposition=decomposition))
        )


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_binary_kd_is_the_divergence_of_the_student_from_the_teacher(T):
    q, p = Bernoulli(logits=one_vs_rest_margins(TEACHER) / T), Bernoulli(logits=MARGINS / T)
    given = terms(objective("kd", T=T, **{"lambda": 1}))
    torch.testing.assert_close(given["distillation"], T**2 * kl_divergence(q, p))
    assert given["hard"].abs().max() == 0
    assert (
        given["distillation"] - T**2 * kl_divergence(p, q)
    ).abs().max() > 0.1  # the other direction


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_multiclass_kd_is_torchs_kl_div_over_the_batch(T):
    student, teacher = (MARGINS / T).log_softmax(dim=1), (TEACHER / T).softmax(dim=1)
    expected = T**2 * F.kl_div(student, teacher, reduction="batchmean")
    torch.testing.assert_close(
        loss(objective("kd", decomposition="multiclass", T=T, **{"lambda": 1})), expected
    )


def gradient(which: Objective, margins: torch.Tensor) -> torch.Tensor:
    margins = margins.clone().requires_grad_()
    return torch.autograd.grad(loss(which, margins), margins)[0]


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_the_optimum_of_kd_is_the_teachers_own_margin(T):
    kd = objective("kd", T=T, **{"lambda": 1})
    at_teacher = one_vs_rest_margins(TEACHER)
    assert gradient(kd, at_teacher).abs().max() < 1e-12
    assert abs(float(loss(kd, at_teacher))) < 1e-12
    assert float(loss(kd)) > 0.1
    cut = objective("kd", T=T, cut="softmax_then_cut", **{"lambda": 1})
    at_cut = T * teacher_cut(TEACHER, T, "binary", "softmax_then_cut").logit()
    assert gradient(cut, at_cut).abs().max() < 1e-12
    assert (
        (at_cut - at_teacher).abs().max() < 1e-9
        if T == 1
        else (at_cut - at_teacher).abs().max() > 1
    )


@pytest.mark.parametrize("name", ["hard", "label_smoothing", "hard_T", "kd_flat", "kd"])
@pytest.mark.parametrize("decomposition", ["binary", "multiclass"])
def test_permuting_classes_permutes_the_terms(name, decomposition):
    which, order = objective(name, decomposition=decomposition), torch.tensor([3, 0, 4, 1, 2])
    there = which.terms(MARGINS[:, order], order.argsort()[LABELS], TEACHER[:, order], generator())
    for key, here in terms(which).items():
        torch.testing.assert_close(there[key], here[:, order])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("decomposition", ["binary", "multiclass"])
def test_sure_teachers_and_students_give_finite_losses_and_gradients(name, decomposition):
    which = objective(name, decomposition=decomposition)
    margins = torch.tensor([[300.0, -300.0]], requires_grad=True)
    value = which.loss(margins, torch.tensor([1]), torch.tensor([[500.0, -500.0]]), generator())
    value.backward()
    assert value.isfinite()
    assert margins.grad.isfinite().all()


def test_the_scale_is_a_factor_of_every_term():
    plain = ObjectiveConfig(name="kd")
    for key, value in terms(Objective(plain, 3.0)).items():
        torch.testing.assert_close(value, 3 * terms(Objective(plain))[key])


@pytest.mark.parametrize("name", NAMES)
def test_scaled_to_kd_the_norm_of_the_gradient_is_kds(name):
    weight = torch.nn.Linear(3, K, dtype=torch.float64)
    unused = torch.nn.Parameter(torch.zeros(2))
    parameters = [*weight.parameters(), unused]
    margins = weight(normal(5)[:, :3])
    which, kd = objective(name), objective("kd")

    def norm(scaled: Objective) -> float:
        value = scaled.loss(margins, LABELS, TEACHER, generator())
        gradients = torch.autograd.grad(value, weight.parameters(), retain_graph=True)
        return float(torch.cat([g.flatten() for g in gradients]).norm())

    factor = scale_to(loss(kd, margins), loss(which, margins), parameters)
    assert norm(Objective(which.config, factor)) == pytest.approx(norm(kd))
    assert factor == pytest.approx(1) if name == "kd" else factor != pytest.approx(1, abs=1e-3)


def by_hand(
    margins: np.ndarray, logits: np.ndarray, T: float, decomposition: str
) -> tuple[np.ndarray, np.ndarray]:
    """T² KL of every sample and its gradient T(p − q), in float64 and without differences of nearly
    equal numbers.

    KL(q ‖ p) = Σ p − q − q d, d = log(p/q), since q and p both sum to 1; near d = 0 it is q (eᵈ − 1
    − d).
    """

    def log_sigmoid(z: np.ndarray) -> np.ndarray:
        return np.minimum(z, 0) - np.log1p(np.exp(-np.abs(z)))

    def excess(log_q: np.ndarray, log_p: np.ndarray) -> np.ndarray:
        d = log_p - log_q
        return np.where(
            abs(d) < 1, np.exp(log_q) * np.expm1(d.clip(-1, 1)), np.exp(log_p) - np.exp(log_q)
        )

    def divergence(log_q: np.ndarray, log_p: np.ndarray) -> np.ndarray:
        return excess(log_q, log_p) - np.exp(log_q) * (log_p - log_q)

    if decomposition == "multiclass":
        log_q, log_p = log_softmax(logits / T, axis=1), log_softmax(margins / T, axis=1)
        return T**2 * divergence(log_q, log_p).sum(axis=1), T * excess(log_q, log_p)
    others = [logsumexp(np.delete(logits, k, axis=1), axis=1) for k in range(logits.shape[1])]
    u, m = (logits - np.stack(others, axis=1)) / T, margins / T
    both = divergence(log_sigmoid(u), log_sigmoid(m)) + divergence(log_sigmoid(-u), log_sigmoid(-m))
    return T**2 * both.sum(axis=1), T * excess(log_sigmoid(u), log_sigmoid(m))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("T", [1.0, 4.0, 100.0, 1000.0])
@pytest.mark.parametrize("decomposition", ["binary", "multiclass"])
def test_the_divergence_holds_in_float32_at_every_temperature(decomposition, T, size):
    which = objective("kd", decomposition=decomposition, T=T, **{"lambda": 1})
    for teacher_size in (1e-3, 1.0, 1e3):
        margins = (size * MARGINS).float().requires_grad_()
        logits = (teacher_size * TEACHER).float()
        given = which.terms(margins, LABELS, logits, generator())
        assert given["distillation"].dtype == torch.float32
        (slope,) = torch.autograd.grad(given["distillation"].sum(), margins)
        value, gradient = by_hand(
            margins.detach().double().numpy(), logits.double().numpy(), T, decomposition
        )
        np.testing.assert_allclose(
            given["distillation"].sum(dim=1).detach().numpy(), value, rtol=1e-5, atol=1e-30
        )
        np.testing.assert_allclose(
            slope.numpy(), gradient, rtol=1e-5, atol=1e-9 * np.abs(gradient).max()
        )
        torch.testing.assert_close(
            which.loss(margins, LABELS, logits, generator()),
            sum(t.sum() for t in given.values()) / len(margins),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("decomposition", ["binary", "multiclass"])
def test_half_precision_is_taken_as_the_numbers_that_it_holds(decomposition, dtype):
    which = objective("kd", decomposition=decomposition, T=1000, **{"lambda": 1})
    margins, logits = MARGINS.to(dtype).requires_grad_(), TEACHER.to(dtype)
    given = which.loss(margins, LABELS, logits, generator())
    (slope,) = torch.autograd.grad(given, margins)
    value, gradient = by_hand(
        margins.detach().double().numpy(), logits.double().numpy(), 1000, decomposition
    )
    assert float(given.detach()) == pytest.approx(value.mean(), rel=1e-5)
    wanted = torch.from_numpy(gradient / len(MARGINS)).to(dtype)
    torch.testing.assert_close(slope, wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("decomposition", ["binary", "multiclass"])
def test_certain_targets_leave_the_students_cross_entropy(decomposition):
    which = objective("hard_T", decomposition=decomposition, T=100, **{"lambda": 1})
    margins = torch.tensor([[2.0, -1.0, 0.5]], requires_grad=True)
    label = torch.tensor([0])
    given = which.loss(margins, label, None, generator())
    (slope,) = torch.autograd.grad(given, margins)
    s = margins.detach().double().numpy() / 100
    one_hot = np.array([[1.0, 0.0, 0.0]])
    p = softmax(s, axis=1) if decomposition == "multiclass" else 1 / (1 + np.exp(-s))
    cross = (
        np.log(p[0, 0])
        if decomposition == "multiclass"
        else np.log(np.where(one_hot > 0, p, 1 - p)).sum()
    )
    assert float(given.detach()) == pytest.approx(-(100**2) * cross, rel=1e-6)
    np.testing.assert_allclose(slope.numpy(), 100 * (p - one_hot), rtol=1e-5)


def test_a_binary_target_that_is_nearly_1_keeps_its_complement():
    teacher = torch.tensor(
        [[45.0, 0.0], [45.0, 0.0]]
    )  # 1 − q = e^−45, less than a float64 can leave below 1
    margins = torch.tensor([[43.0, -43.0], [45.0, -45.0]])
    for name in ("kd", "kd_flat", "kd_shuffled"):
        given = terms_of(name, margins, teacher)
        wanted = math.exp(-43) - math.exp(-45) - 2 * math.exp(-45)
        torch.testing.assert_close(given[0], torch.full((2,), wanted), rtol=1e-5, atol=0)
        assert given[1].abs().max() < 1e-25


def terms_of(name: str, margins: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    which = objective(name, T=1, **{"lambda": 1})
    return which.terms(margins, torch.tensor([0, 0]), teacher, generator())["distillation"]

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, build_model, vam
from kdx_analysis.objectives import Objective, one_vs_rest_margins
from kdx_analysis.probes.conflict.grams import (
    probing_cost,
    residuals,
    subtask_gradients,
    subtask_grams,
    with_null,
)
from kdx_analysis.probes.conflict.parts import module_groups
from tests.probes.subjects import K, check_left_as_found, explainer

B = 7


@pytest.fixture
def images() -> Tensor:
    return torch.randn(B, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(B) % K


def shared(model: HME) -> list[list[nn.Parameter]]:
    """Parameters of trunk and levels."""
    return [list(part.parameters()) for part in (model.trunk, *model.levels)]


def separate_backwards(model: HME, losses: Tensor) -> list[Tensor]:
    """G per level from K separate backward passes; ``losses`` are L_k, K."""
    grams = []
    for parameters in shared(model):
        rows = [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)]
            )
            for loss in losses
        ]
        grams.append(torch.stack(rows) @ torch.stack(rows).T)
    return grams


@pytest.mark.parametrize("gates", ["parameter", "input"])
@pytest.mark.parametrize(
    "student", ["digits_student", "resnet20", "wrn_16_2", "vgg8", "test_convnext", "test_vit"]
)
def test_equals_separate_backward_passes(
    student: str, gates: str, images: Tensor, labels: Tensor
) -> None:
    if student.startswith("test"):
        images = F.interpolate(images, 32)
    model = explainer(student, gates)
    one_hot = F.one_hot(labels, K).double()

    def loss(m: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(m, one_hot, reduction="none")

    with torch.no_grad():
        outputs = copy.deepcopy(model).eval()(images)
    grams = subtask_grams(model, images, residuals(loss, outputs)[None])
    reference = copy.deepcopy(model).eval()
    expected = separate_backwards(reference, loss(reference(images)).sum(dim=0))
    for level, gram in enumerate(expected, 1):
        torch.testing.assert_close(grams.level(level)[0], gram, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grams.total()[0], sum(expected), rtol=1e-10, atol=1e-10)


def test_last_level_factorises_into_gates_and_ungated_gradients(images: Tensor) -> None:
    """g^i_a = α_ai h^i_a, expert by expert, with h from a model whose gate row is one-hot on i."""
    model = explainer().eval()
    r = torch.randn(1, B, K, dtype=torch.float64)
    grams = subtask_grams(model, images, r)
    assert grams.gates is not None
    N = model.experts[-1]
    loss = (r[0] * model(images)).sum(dim=0)
    parameters = list(model.levels[-1].parameters())
    rows = []
    for k in range(K):
        gradients = torch.autograd.grad(loss[k], parameters, retain_graph=True)
        rows.append(torch.cat([g.reshape(N, -1) for g in gradients], dim=1))
    g = torch.stack(rows, dim=1)  # N×K×D
    alpha = grams.gates.T
    expected = g @ g.transpose(1, 2) / (alpha[:, :, None] * alpha[:, None, :])
    torch.testing.assert_close(grams.experts[-1][0], expected, rtol=1e-8, atol=1e-10)


def test_other_gates_can_be_evaluated_without_retraining(images: Tensor) -> None:
    """G under replaced last gates, from the ungated gradients, equals that of a model with those
    gates.
    """
    model = explainer().eval()
    r = torch.randn(1, B, K, dtype=torch.float64)
    grams = subtask_grams(model, images, r)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.gates[-1].logits.copy_(torch.rand_like(other.gates[-1].logits))
    expected = subtask_grams(other, images, r)
    q = other.attention()[-1].detach()
    swapped = torch.einsum("ai,bi,riab->rab", q, q, grams.experts[-1])
    torch.testing.assert_close(swapped, expected.level(len(model.experts)), rtol=1e-9, atol=1e-10)


def test_sets_of_residuals_are_computed_as_if_alone_and_in_any_memory(images: Tensor) -> None:
    model = explainer()
    r = torch.randn(4, B, K, dtype=torch.float64)
    together = subtask_grams(model, images, r)
    alone = subtask_grams(model, images, r[2:3])
    with pytest.raises(KdxError, match=r"of one image and one row of .* max_memory is 1;") as said:
        subtask_grams(model, images, r, max_memory=1)
    least = int(re.search(r"give max_memory=([\d,]+)", str(said.value)).group(1).replace(",", ""))
    tight = subtask_grams(model, images, r, max_memory=least)
    with pytest.raises(KdxError, match="fewer null draws"):
        probing_cost(model, images, K, 4, max_memory=least - 1)
    for whole, one, small in zip(together.experts, alone.experts, tight.experts, strict=True):
        torch.testing.assert_close(whole[2], one[0])
        torch.testing.assert_close(whole, small)


def test_multiclass_margins_have_the_gradients_of_one_vs_rest_margins(images: Tensor) -> None:
    model = explainer()
    r = torch.randn(1, B, K, dtype=torch.float64)
    grams = subtask_grams(model, images, r, margins=one_vs_rest_margins)
    assert grams.gates is None
    reference = copy.deepcopy(model).eval()
    expected = separate_backwards(
        reference, (r[0] * one_vs_rest_margins(reference(images))).sum(dim=0)
    )
    for level, gram in enumerate(expected, 1):
        torch.testing.assert_close(grams.level(level)[0], gram, rtol=1e-9, atol=1e-10)


def test_residuals_are_the_derivative_of_each_loss_by_its_own_margin(labels: Tensor) -> None:
    margins = torch.randn(B, K, dtype=torch.float64)
    hard = Objective(ObjectiveConfig(name="hard"))
    got = residuals(lambda m: hard.terms(m, labels, None, torch.Generator())["hard"], margins)
    torch.testing.assert_close(got, torch.sigmoid(margins) - F.one_hot(labels, K))


def test_the_null_holds_the_same_rows_of_residuals_in_other_orders() -> None:
    r = torch.randn(B, K, generator=torch.Generator().manual_seed(0))
    draws = with_null(r, 3, seed=1)
    assert torch.equal(draws[0], r)
    for draw in draws[1:]:
        order = [int((r == row).all(dim=1).nonzero()) for row in draw]
        assert sorted(order) == list(range(B)) != order
    assert torch.equal(with_null(2 * r, 3, seed=1), 2 * draws)
    assert not torch.equal(with_null(r, 3, seed=2), draws)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_found(
    images: Tensor, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = explainer()
    model.levels[0].eval()  # a mixed state, which a plain .train() afterwards would not restore
    r = torch.ones(1, B, K, dtype=torch.float64)
    check_left_as_found(model, lambda: subtask_grams(model, images, r), fails, monkeypatch)


def test_a_gradient_that_is_not_finite_is_named(images: Tensor) -> None:
    r = torch.ones(1, B, K, dtype=torch.float64)
    r[0, 0, 3] = torch.inf
    with pytest.raises(KdxError, match=r"level 1 .*subtasks \[3\]"):
        subtask_grams(explainer(), images, r)


def test_residuals_of_another_batch_are_refused(images: Tensor) -> None:
    with pytest.raises(KdxError, match=f"don't fit {B} images"):
        subtask_grams(explainer(), images, torch.ones(1, B + 1, K, dtype=torch.float64))


def undivided(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, K, 1).double().train()


@pytest.mark.parametrize("name", ["digits_teacher", "resnet20", "torchvision:squeezenet1_1"])
def test_a_model_without_gates_equals_separate_backward_passes_stage_by_stage(
    name: str, images: Tensor, labels: Tensor
) -> None:
    images = F.interpolate(images, 32)
    if name.startswith("torchvision"):
        images = images.expand(-1, 3, -1, -1)
        torch.manual_seed(0)
        model = build_model(name, K, 3).double()
    else:
        model = undivided(name)
    groups = module_groups(model, image_shape=images.shape[1:])
    one_hot = F.one_hot(labels, K).double()
    reference = copy.deepcopy(model).eval()
    u = one_vs_rest_margins(reference(images))
    losses = F.binary_cross_entropy_with_logits(u, one_hot, reduction="none").sum(dim=0)
    r = torch.sigmoid(u.detach()) - one_hot
    grams = subtask_grams(model, images, r[None], margins=one_vs_rest_margins, groups=groups)
    assert grams.gates is None
    assert len(grams.experts) == len(groups)
    for level, paths in enumerate(groups, 1):
        own = [p for path in paths for p in reference.get_submodule(path).parameters(recurse=False)]
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, own, retain_graph=True)])
            for loss in losses
        ]
        expected = torch.stack(rows) @ torch.stack(rows).T
        torch.testing.assert_close(grams.level(level)[0], expected, rtol=1e-10, atol=1e-10)


def test_groups_are_the_stages_and_leave_the_classifier_out() -> None:
    groups = module_groups(undivided("resnet20"))
    assert len(groups) == 3
    assert not any(path.startswith("classifier") for paths in groups for path in paths)
    unknown = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, K))
    assert module_groups(unknown, image_shape=(1, 8, 8)) == (("1",),)
    with pytest.raises(KdxError, match="share nothing"):
        module_groups(nn.Sequential(nn.Flatten(), nn.Linear(64, K)), image_shape=(1, 8, 8))


def test_a_group_s_path_without_parameters_is_named(images: Tensor) -> None:
    with pytest.raises(KdxError, match="'stages' holds no parameters of its own"):
        subtask_grams(
            undivided("digits_student").double(),
            images,
            torch.ones(1, B, K).double(),
            groups=[["stages"]],
        )


def test_half_precision_is_refused(images: Tensor) -> None:
    with pytest.raises(KdxError, match=r"float16.*model.float\(\)"):
        subtask_grams(explainer().half(), images.half(), torch.ones(1, B, K).half())


def test_the_cost_seen_beforehand_is_that_which_is_paid(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, backwards = explainer(), []
    own = torch.autograd.grad

    def counted(outputs: Tensor, *args: object, **options: object) -> object:
        backwards.append(1)
        return own(outputs, *args, **options)

    cost = probing_cost(model, images, K, 4, max_memory=2**21)
    monkeypatch.setattr(torch.autograd, "grad", counted)
    subtask_grams(model, images, torch.ones(4, B, K, dtype=torch.float64), max_memory=2**21)
    assert (
        cost.backwards <= len(backwards) <= 3 * cost.backwards
    )  # a pass comes in three calls: to the heads' inputs, through the last level, and below it
    assert cost.values == 4 * K * sum(p.numel() for part in shared(model) for p in part)
    assert cost.forwards > 1
    assert (
        probing_cost(model, images, K, 4).forwards == 5
    )  # one is measured, and the whole set and its halves are held against it
    assert "backward passes over up to 7 images each" in str(probing_cost(model, images, K, 4))


@pytest.mark.parametrize("student", ["digits_student", "test_vit"])
def test_gradients_are_those_of_every_parameter(student: str, images: Tensor) -> None:
    images = F.interpolate(images, 32) if student == "test_vit" else images
    model = explainer(student)
    r = torch.randn(2, B, K, dtype=torch.float64)
    found = subtask_gradients(model, images, r)
    reference = copy.deepcopy(model).eval()
    own = {n: p for n, p in reference.named_parameters() if n.startswith(("trunk", "levels"))}
    assert set(found) == set(own)
    expected = torch.autograd.grad((r[1] * reference(images))[:, 3].sum(), list(own.values()))
    for name, gradient in zip(own, expected, strict=True):
        torch.testing.assert_close(found[name][1, 3], gradient, rtol=1e-9, atol=1e-10)


def test_a_layer_whose_weight_is_computed_has_the_gradients_of_its_own_parameters(
    images: Tensor,
) -> None:
    """VAM multiplies V by s: ∂m/∂V is not ∂m/∂V̂, and U has a gradient of its own."""
    model = build_model("digits_student", K, 1).double().eval()
    vam.attach(model, 4)
    with torch.no_grad():
        for logits in vam.gate_parameters(model):
            logits.normal_(generator=torch.Generator().manual_seed(0))
    r = torch.randn(1, B, K, dtype=torch.float64)
    found = subtask_gradients(model, images, r)
    assert any(name.endswith("vam.logits") for name in found)
    parameters = {name: p for name, p in model.named_parameters() if name in found}
    for k, loss in enumerate((r[0] * model(images)).sum(dim=0)):
        expected = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][0, k], gradient, rtol=1e-9, atol=1e-10)


def test_small_gradients_keep_their_angles(images: Tensor) -> None:
    model = explainer().float()
    r = torch.randn(1, B, K)
    whole, small = (
        subtask_grams(model, images.float(), scale * r).total()[0] for scale in (1, 1e-25)
    )
    torch.testing.assert_close(small * 1e50, whole, rtol=1e-4, atol=0)


def test_one_parameter_of_two_layers_is_refused(images: Tensor) -> None:
    tied = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.LazyLinear(K)
    )
    tied.double()(images)
    tied[2].weight = tied[1].weight
    with pytest.raises(KdxError, match=r"'1.weight' and '2.weight' are one parameter"):
        subtask_grams(tied, images, torch.ones(1, B, K).double(), groups=[["0"], ["1", "2"]])


def test_autocast_around_a_probe_changes_nothing(images: Tensor) -> None:
    model, r = explainer().float(), torch.randn(1, B, K)
    expected = subtask_grams(model, images.float(), r).total()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(subtask_grams(model, images.float(), r).total(), expected)

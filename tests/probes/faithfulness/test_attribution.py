import copy

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, build_model
from kdx_analysis.probes import (
    conductance,
    grad_cam,
    integrated_gradients,
    randomisation,
    randomised,
)
from kdx_analysis.probes.faithfulness.attribution import _patches
from kdx_analysis.probes.faithfulness.sanity import Randomisation
from tests.planted_explainers import by_halves
from tests.probes.subjects import check_left_as_found, explainer

ALPHA = torch.tensor([[0.7, 0.3], [0.0, 1.0]], dtype=torch.float64)
WEIGHTS = (1.5, -1.0)


@pytest.fixture
def images() -> Tensor:
    return (
        torch.rand(5, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        + 0.1
    )


def test_an_expert_that_looks_at_half_the_image_is_found_to(images: Tensor) -> None:
    """m_k = w_k(α_k0·mean of the left half/2 + α_k1·that of the right half/2) + b: attributions are
    w α x/HW there.
    """
    model = by_halves(ALPHA, WEIGHTS)
    left = integrated_gradients(model, images, 0, through=(2, 0)).maps
    torch.testing.assert_close(left[..., :4], 1.5 * 0.7 * images[:, 0, :, :4] / 64)
    assert (left[..., 4:] == 0).all()
    whole = integrated_gradients(model, images, 0)
    torch.testing.assert_close(whole.maps[..., 4:], 1.5 * 0.3 * images[:, 0, :, 4:] / 64)
    assert whole.delta is not None
    assert whole.delta.abs().max() < 1e-6
    assert (
        integrated_gradients(model, images, 1, through=(2, 0)).maps == 0
    ).all()  # subtask 1 draws nothing from it
    cam = grad_cam(model, images, 0, level=2, expert=0).maps
    torch.testing.assert_close(cam[..., :4], 1.5 * 0.7 / 64 * images[:, 0, :, :4])
    assert (cam[..., 4:] == 0).all()
    assert (grad_cam(model, images, 1).maps == 0).all()  # a negative head: nothing speaks for it


def test_conductance_by_hand(images: Tensor) -> None:
    found = conductance(by_halves(ALPHA, WEIGHTS), images, torch.tensor([0, 1, 0, 1, 0]), 2)
    halves = (
        torch.stack([images[..., :4].sum(dim=(1, 2, 3)), images[..., 4:].sum(dim=(1, 2, 3))], dim=1)
        / 64
    )
    weights = ALPHA * torch.tensor(WEIGHTS, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(
        found.values, halves * weights[[0, 1, 0, 1, 0]], rtol=1e-3, atol=1e-6
    )
    assert found.delta.abs().max() < 1e-3
    assert found.to_frame().shape == (10, 5)


@pytest.mark.parametrize("gates", ["parameter", "input"])
def test_what_passes_the_experts_of_any_level_adds_up_to_the_whole(
    gates: str, images: Tensor
) -> None:
    model, images = explainer(gates=gates), images[:3]
    whole = integrated_gradients(model, images, 3)
    for level, N in enumerate(model.experts, 1):
        parts = torch.stack(
            [integrated_gradients(model, images, 3, through=(level, i)).maps for i in range(N)]
        )
        torch.testing.assert_close(parts.sum(dim=0), whole.maps)
        flows = conductance(model, images, 3, level).values
        torch.testing.assert_close(
            parts.sum(dim=(2, 3)).T, flows, rtol=0.05, atol=0.1 * float(flows.abs().max())
        )


@pytest.mark.parametrize("level", [1, 3])
def test_grad_cam_of_tokens_lays_the_patches_out_row_by_row(level: int, images: Tensor) -> None:
    """Redone from the gradient of the margin: 16 patches of 8×8 behind the class token."""
    model, images = explainer("test_vit").eval(), nn.functional.interpolate(images, 32)
    features = model.trace(images).features[level - 1]
    kept = []
    site = model.trunk if level == 1 else model.levels[level - 2]
    handle = site.register_forward_hook(lambda module, inputs, output: kept.append(output))
    margin = model(images)[:, 2].sum()
    handle.remove()
    (slope,) = torch.autograd.grad(margin, kept)
    slope = slope.view_as(features)
    for expert in range(features.shape[1]):
        patches, slopes = features[:, expert, 1:], slope[:, expert, 1:]
        expected = (
            (patches * slopes.mean(dim=1, keepdim=True))
            .sum(dim=2)
            .clamp(min=0)
            .unflatten(1, (1, 4, 4))
        )
        expected = nn.functional.interpolate(expected, 32, mode="bilinear")[:, 0]
        torch.testing.assert_close(
            grad_cam(model, images, 2, level=level, expert=expert).maps, expected.detach()
        )
    assert (grad_cam(model, images, 2).maps > 0).any()
    assert _patches(196 + 5, torch.zeros(1, 3, 224, 224)) == (14, 14)
    assert _patches(8, torch.zeros(1, 3, 16, 32)) == (2, 4)
    with pytest.raises(KdxError, match="40 tokens are no grid"):
        _patches(40, torch.zeros(1, 3, 32, 32))


def test_delta_is_what_the_sum_misses_of_the_margin(images: Tensor) -> None:
    model = explainer()
    baseline = torch.full((1, 8, 8), 0.2, dtype=torch.float64)
    found = integrated_gradients(model, images, 2, baseline=baseline, steps=5)
    with torch.no_grad():
        reference = copy.deepcopy(model).eval()
        gap = (reference(images) - reference(baseline[None]))[:, 2]
    torch.testing.assert_close(found.delta, found.maps.sum(dim=(1, 2)) - gap, rtol=1e-4, atol=1e-6)


def test_any_classifier_has_pixels_and_a_batch_of_one_is_enough(images: Tensor) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    found = integrated_gradients(linear, images[:1], 1)
    torch.testing.assert_close(
        found.maps[0], (images[0, 0].flatten() * linear[1].weight[1]).view(8, 8).detach()
    )
    for method in (grad_cam, lambda m, x, k: conductance(m, x, k, 2)):
        with pytest.raises(KdxError, match="has no experts"):
            method(linear, images, 0)
    assert conductance(by_halves(ALPHA, WEIGHTS), images[:1], 0, 2).values.shape == (1, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_attributed_in_float32(dtype: torch.dtype, images: Tensor) -> None:
    half = explainer().to(dtype)
    found = integrated_gradients(half, images.to(dtype), 0)
    expected = integrated_gradients(copy.deepcopy(half).float(), images.to(dtype).float(), 0)
    torch.testing.assert_close(found.maps, expected.maps)


def test_what_cannot_be_attributed_is_refused(images: Tensor) -> None:
    model = by_halves(ALPHA, WEIGHTS)
    with pytest.raises(KdxError, match="should lie in 0 to 1"):
        integrated_gradients(model, images, 2)
    with pytest.raises(KdxError, match="one for each image"):
        integrated_gradients(model, images, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(KdxError, match=r"level = 3 should lie in 1, the trunk, to 2"):
        conductance(model, images, 0, 3)
    with pytest.raises(KdxError, match="experts 0 to 1, not 2"):
        integrated_gradients(model, images, 0, through=(2, 2))
    with pytest.raises(KdxError, match="baseline of shape"):
        integrated_gradients(model, images, 0, baseline=torch.zeros(3))
    with pytest.raises(KdxError, match="B×C×H×W, B ≥ 1"):
        integrated_gradients(model, images[:0], 0)
    with pytest.raises(KdxError, match="not finite"):
        integrated_gradients(model, images / 0, 0)
    tokens = explainer("test_vit")
    with pytest.raises(KdxError, match="first token of level 4"):
        grad_cam(tokens, nn.functional.interpolate(images, 32), 0, level=4)
    assert conductance(
        tokens, nn.functional.interpolate(images, 32), 0, 2, steps=4
    ).values.shape == (5, 3)


def test_an_attribution_that_only_sees_the_image_is_flagged(images: Tensor) -> None:
    found = randomisation(lambda model: images[:, 0], explainer(), draws=2, shifts=39)
    assert found.survives
    assert found.to_frame()["value"].tolist() == pytest.approx([1, 1])
    assert "FLAGGED" in str(found)


def test_below_39_shifts_nothing_is_flagged_and_the_check_says_so(images: Tensor) -> None:
    found = randomisation(lambda model: images[:, 0], explainer(), draws=2, shifts=38)
    assert not found.survives
    assert found.to_frame()["undecided"].all()
    assert "undecided" in str(found)
    assert "no range below 39 draws" in str(found)
    assert "nan" not in str(found) + found._repr_html_()
    figure, (ax,) = found.plot()
    assert "undecided" in ax.get_title()
    assert "no range below 39 draws" in ax.get_title()
    plt.close(figure)
    rho = {"signed": torch.full((1, 2), 0.2, dtype=torch.float64)}
    below = Randomisation(
        rho, {"signed": torch.zeros(9, dtype=torch.float64)}
    )  # the bound alone decides
    assert "does not survive" in str(below)


def test_surviving_takes_more_than_the_highest_of_39_shifts() -> None:
    shifts = torch.linspace(-0.8, 0.8, 39, dtype=torch.float64)
    survives = {
        value: Randomisation(
            {"signed": torch.tensor([[value]], dtype=torch.float64)}, {"signed": shifts}
        ).survives
        for value in (0.79, 0.8, 0.81)
    }
    assert survives == {0.79: False, 0.8: False, 0.81: True}


def test_an_attribution_of_the_weights_is_flagged_only_where_the_image_decides(
    images: Tensor,
) -> None:
    """x·w of a linear classifier: images of ±1 leave all to the weights, images mostly 0 decide
    where it is strong.
    """
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    signs = (images > 0.6).double() * 2 - 1
    sparse = images * (images > 0.85)

    def survival(of: Tensor) -> dict[str, bool]:
        found = randomisation(
            lambda model: integrated_gradients(model, of, 1).maps, linear, draws=3, shifts=49
        )
        return found.to_frame().set_index("maps")["survives"].to_dict()

    assert survival(signs) == {"signed": False, "absolute": False}
    assert survival(sparse) == {"signed": False, "absolute": True}


def test_flat_maps_are_counted_and_refused_where_nothing_is_left(images: Tensor) -> None:
    model = explainer()
    maps = images[:, 0].clone()
    maps[0] = 1
    found = randomisation(lambda m: maps, model, draws=2, shifts=39).to_frame()
    assert found["undefined"].tolist() == [2, 2]
    assert found["n"].tolist() == [8, 8]
    assert not found.isna().any().any()
    with pytest.raises(KdxError, match="flat on every image"):
        randomisation(lambda m: torch.ones_like(maps), model, draws=1, shifts=9)
    with pytest.raises(KdxError, match="no pixels to rank"):
        randomisation(lambda m: maps[:, :1, :1], model, draws=1, shifts=9)


def test_random_weights_are_those_of_the_seed_and_touch_nothing_else() -> None:
    model, rng = explainer(), torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    a, b, c = (randomised(model, seed).state_dict() for seed in (1, 1, 2))
    drawn = [
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(a[name], before[name])
    ]
    assert {
        name for name, _ in model.named_parameters() if name.endswith(("weight", "logits"))
    } <= {*drawn, *before}
    assert "gates.0.logits" in drawn
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["gates.0.logits"], c["gates.0.logits"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "what", ["integrated_gradients", "grad_cam", "conductance", "randomisation"]
)
def test_the_model_is_left_as_it_was_found(
    what: str, fails: bool, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = explainer()
    model.levels[0].eval()
    model.heads.weight.grad = torch.ones_like(model.heads.weight)
    call = {
        "integrated_gradients": lambda: integrated_gradients(
            model, images, 0, through=(2, 1), steps=4
        ),
        "grad_cam": lambda: grad_cam(model, images, 0),
        "conductance": lambda: conductance(model, images, 0, 2, steps=4),
        "randomisation": lambda: randomisation(
            lambda m: integrated_gradients(m, images, 0, steps=4).maps, model, draws=1, shifts=9
        ),
    }[what]
    check_left_as_found(model, call, fails, monkeypatch)


def test_figures_take_an_axes_and_leave_no_pyplot_figure(images: Tensor) -> None:
    import matplotlib.pyplot as plt

    model = HME.from_student(build_model("digits_student", 3, 1), 3, 2).double()
    records = [
        integrated_gradients(model, images, 0, steps=4),
        conductance(model, images, 0, 2, steps=4),
        randomisation(
            lambda m: integrated_gradients(m, images, 0, steps=4).maps, model, draws=1, shifts=9
        ),
    ]
    assert plt.get_fignums() == []
    for record in records:
        figure, axes = record.plot()
        assert plt.get_fignums() == []
        assert axes[0].figure is figure
        mine, ax = plt.subplots()
        assert record.plot(ax)[0] is mine
        plt.close(mine)
        assert record._repr_html_()

"""Properties passed on: toys whose maps, attacks and changes are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.objectives import one_vs_rest_margins
from kdx_analysis.probes.fidelity.properties import (
    TRANSFORMS,
    Attacked,
    Network,
    adversarial,
    attention_maps,
    change_alike,
    fooled_along,
    map_correlation,
    output_change,
    properties_of,
    transformed,
)
from tests import toys


class TwoMaps(nn.Module):
    """Features F_c = image · (1, −1), logits z_k = Σ_c w_kc mean F_c: Grad-CAM is (Σ_c w_kc F_c)⁺."""

    def __init__(self, weight: list[list[float]]) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 2, 1, bias=False)
        self.head = nn.Linear(2, len(weight), bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
            self.head.weight.copy_(torch.tensor(weight))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images).mean(dim=(2, 3)))


class Tokens(nn.Module):
    """A convolution, and tokens behind it, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 2, 2)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.mix(tokens).mean(dim=1))


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def state(model: nn.Module) -> list[object]:
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    grads = [(p.requires_grad, p.grad) for p in model.parameters()]
    return [hooks, modes, grads, torch.random.get_rng_state().tolist()]


def test_maps_are_those_of_the_formula():
    model, x = TwoMaps([[3.0, 1.0], [0.0, 1.0]]), images()
    classes = torch.tensor([0, 1, 0, 1])
    maps = attention_maps(Network(model), x, classes)
    expected = torch.where(classes.view(-1, 1, 1) == 0, 2 * x[:, 0], -x[:, 0]).clamp(min=0)
    torch.testing.assert_close(maps, expected / 16)  # the mean's gradient is 1/16 a position


def test_the_margins_of_one_vs_rest_have_maps_of_their_own():
    model, x = TwoMaps([[3.0, 1.0], [0.0, 1.0]]), images()
    network = Network(model, layer="features", to_margins=one_vs_rest_margins, binary=True)
    maps = attention_maps(network, x, torch.zeros(4, dtype=torch.int64))
    # of two classes u_0 = z_0 − z_1, whose weights are (3, 0)
    torch.testing.assert_close(maps, 3 * x[:, 0].clamp(min=0) / 16)


def test_the_last_maps_are_those_of_the_last_stage():
    model, x = toys.staged_net(), torch.randn(3, 1, 8, 8)
    labels = torch.tensor([0, 1, 2])
    by_itself = attention_maps(Network(model), x, labels)
    paths = [path for path, _ in model.named_modules()]
    (last,) = [p for p in paths if p.endswith("stages.2")]
    torch.testing.assert_close(by_itself, attention_maps(Network(model, layer=last), x, labels))


@pytest.mark.parametrize(
    ("model", "layer", "message"),
    [
        (Tokens(), None, "goes on with tokens behind its last maps .*name a layer"),
        (Tokens(), "mix", "'mix' gives no maps"),
        (Tokens(), "mixx", "unknown module of the model 'mixx'; did you mean 'mix'"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), None, "makes no maps"),
    ],
)
def test_networks_without_maps_are_refused_and_left_as_they_were(model, layer, message):
    before = state(model)
    with pytest.raises(KdxError, match=message):
        attention_maps(Network(model, layer=layer), images(), torch.zeros(4, dtype=torch.int64))
    assert state(model) == before


def test_a_layer_of_tokens_behind_maps_may_be_named():
    network = Network(Tokens(), layer="patches")
    maps = attention_maps(network, images(), torch.zeros(4, dtype=torch.int64))
    assert maps.shape == (4, 4, 4)


def explainer() -> HME:
    return HME.from_student(toys.staged_net(), 3, 2, image_shape=(1, 8, 8))


def test_an_explainer_has_the_maps_of_its_last_level():
    x, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    assert attention_maps(Network(explainer()), x, labels).shape == (3, 8, 8)
    with pytest.raises(KdxError, match="layer = 'body' can't be chosen in an explainer"):
        attention_maps(Network(explainer(), layer="body"), x, labels)


def test_maps_correlate_by_pixel_and_constant_ones_do_not():
    maps = torch.rand(5, 4, 4)
    others = 2 * maps + 1
    others[3], others[4] = 0.0, -maps[4]
    r = map_correlation(maps, others)
    assert r[:3].tolist() == pytest.approx([1, 1, 1])
    assert math.isnan(r[3])
    assert float(r[4]) == pytest.approx(-1)
    other = torch.rand(5, 4, 4)
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(maps, other, strict=True)]
    assert map_correlation(maps, other).tolist() == pytest.approx(expected)


class Brightness(nn.Module):
    """Two logits, ±``slope`` · (mean of the normalised image), so that pixels all push one way."""

    def __init__(self, slope: float = 4.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([-self.slope * mean, self.slope * mean], dim=1)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_an_attack_moves_every_pixel_by_epsilon_within_its_range(attack):
    data = toys.dataset()
    pixels = torch.tensor([0.39, 0.41, 0.02, 0.99]).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    pixels = pixels.contiguous()
    labels = torch.tensor([0, 1, 1, 0])  # bright is 1; darker than the mean, .4, is 0
    model = Brightness()
    before = state(model)
    made = adversarial(model, pixels, labels, data, Attacked(attack, epsilon=0.05))
    expected = torch.tensor([0.44, 0.36, 0.0, 1.0]).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    torch.testing.assert_close(made, expected)
    assert state(model) == before


def test_an_attack_is_the_same_again_and_does_not_hang_on_other_images():
    data, pixels = toys.dataset(), torch.rand(4, 1, 8, 8)
    labels = torch.tensor([0, 1, 2, 0])
    model = toys.staged_net()
    made = adversarial(model, pixels, labels, data)
    assert torch.equal(made, adversarial(model, pixels, labels, data))
    torch.testing.assert_close(adversarial(model, pixels[:2], labels[:2], data), made[:2])
    assert float((made - pixels).abs().max()) <= 8 / 255 + 1e-6
    assert 0 <= float(made.min()) <= float(made.max()) <= 1


def test_an_epsilon_beyond_the_range_is_refused():
    with pytest.raises(KdxError, match="epsilon = 8 should lie between 0 and 1"):
        Attacked(epsilon=8)


def test_only_images_count_that_both_had_right_and_that_fool_the_teacher():
    labels = torch.tensor([0, 0, 0, 0, 1])
    teacher, attacked = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1, 1, 0, 1, 0])
    student, moved = torch.tensor([0, 0, 0, 0, 0]), torch.tensor([1, 0, 1, 1, 1])
    assert fooled_along(labels, teacher, attacked, student, moved) == (0.5, 2)
    share, n = fooled_along(labels, teacher, labels, student, moved)
    assert math.isnan(share)
    assert n == 0


def test_changes_are_total_variation_and_their_ranks_correlate():
    p, q = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    expected = 0.5 * np.abs(p.softmax(1).numpy() - q.softmax(1).numpy()).sum()
    assert float(output_change(p, q)) == pytest.approx(float(expected))
    assert float(output_change(p, p + 7)) == pytest.approx(0, abs=1e-6)
    binary = np.abs(p.sigmoid().numpy() - q.sigmoid().numpy()).mean()
    assert float(output_change(p, q, binary=True)) == pytest.approx(float(binary))
    changes = torch.rand(20)
    assert change_alike(changes, changes**3) == pytest.approx(1)
    assert math.isnan(change_alike(changes, torch.zeros(20)))


def test_transforms_move_images_as_their_names_say():
    image = torch.zeros(8, 1, 8, 8, dtype=torch.uint8)
    image[:, :, 3, 4] = 200
    ids = torch.arange(8)
    moved = transformed(image, "translation by 1/8", ids)
    spots = {tuple(spot[1:].tolist()) for spot in moved[:, 0].nonzero()}
    assert spots <= {(2, 3), (2, 5), (4, 3), (4, 5)}
    assert len(spots) > 1
    edge = torch.full((8, 1, 8, 8), 9, dtype=torch.uint8)
    assert ((transformed(edge, "translation by 1/8", ids) == 0).sum(dim=(1, 2, 3)) == 15).all()
    for name in TRANSFORMS:
        alone = transformed(image[[5]], name, ids[[5]])
        assert torch.equal(transformed(image, name, ids)[[5]], alone)


def test_a_students_twin_is_most_like_its_teacher():
    """A student with its teacher's weights shares all of it; with a sibling it shares less."""
    data = toys.dataset()
    torch.manual_seed(3)
    teacher, sibling = toys.staged_net(), toys.staged_net()
    twin = toys.staged_net()
    twin.load_state_dict(teacher.state_dict())
    before = [state(net) for net in (teacher, sibling, twin)]
    table = properties_of(
        {"twin": Network(twin)},
        {"own": Network(teacher), "sibling": Network(sibling)},
        data.test,
        data,
        Attacked(epsilon=0.2),
    )
    assert [state(net) for net in (teacher, sibling, twin)] == before
    beside = table[(table["run"] == "twin") & (table["teacher"] != "")]
    by_teacher = beside.pivot(index=["metric", "variant"], columns="teacher", values="value")
    known = by_teacher["own"].dropna()
    assert len(known) >= 4
    assert known.to_numpy() == pytest.approx(1)
    assert (by_teacher["sibling"].dropna() < 0.999).any()
    alone = table[table["teacher"] == ""].pivot(
        index=["metric", "variant"], columns="run", values="value"
    )
    assert alone["twin"].to_numpy() == pytest.approx(alone["own"].to_numpy())


class Symmetric(nn.Module):
    """A network that an image and its mirror image are the same to."""

    def __init__(self) -> None:
        super().__init__()
        self.net = toys.staged_net()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images) + self.net(images.flip(3))


def test_a_network_that_ignores_mirroring_does_not_change():
    data = toys.dataset()
    table = properties_of({"net": Network(Symmetric())}, {}, data.test, data)
    changes = table[table["metric"] == "change of output"].set_index("variant")["value"]
    assert changes["mirroring"] == pytest.approx(0, abs=1e-6)
    assert (changes.drop("mirroring") > 1e-4).all()

"""Shared modules are found by what they do, not by the order in which they were registered."""

import pytest
import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.probes import conflict_of, module_groups


class Untraceable(nn.Module):
    """Two convolutions and a classifier, registered in some order; ``end`` is applied to the
    logits.
    """

    def __init__(self, first: bool, classes: int = 4, end: str = "") -> None:
        super().__init__()
        self.end = end
        if first:
            self.fc = nn.Linear(16, classes)
        self.c1, self.c2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        if not first:
            self.fc = nn.Linear(16, classes)

    def features(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3
        return torch.relu(self.c2(torch.relu(self.c1(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.fc(self.features(x))
        ends = {
            "": lambda z: z,
            "log": lambda z: z.log_softmax(dim=1),
            "softmax": lambda z: z.softmax(dim=1),
        }
        return ends[self.end](logits)


def test_the_order_of_registration_changes_nothing() -> None:
    assert module_groups(Untraceable(False)) == module_groups(Untraceable(True)) == (("c1", "c2"),)
    torch.manual_seed(0)
    one, other = Untraceable(False), Untraceable(True)
    other.load_state_dict(one.state_dict())
    images, labels = torch.randn(24, 3, 8, 8), torch.arange(24) % 4
    tables = [
        conflict_of(model, images, labels, null_draws=19).pairs["cosine"] for model in (one, other)
    ]
    assert (tables[0] == tables[1]).all()


@pytest.mark.parametrize("classes", [2, 3, 10, 37])
@pytest.mark.parametrize("first", [False, True])
def test_any_number_of_classes(first: bool, classes: int) -> None:
    assert module_groups(Untraceable(first, classes), image_shape=(3, 8, 8)) == (("c1", "c2"),)


@pytest.mark.parametrize("end", ["log", "softmax"])
@pytest.mark.parametrize("classes", [4, 5, 10])
def test_probabilities_have_the_classifier_of_their_logits(classes: int, end: str) -> None:
    assert module_groups(Untraceable(True, classes, end)) == (("c1", "c2"),)


@pytest.mark.parametrize("classes", [2, 3])
def test_log_probabilities_of_few_classes_are_refused(classes: int) -> None:
    with pytest.raises(KdxError, match=r"can't be found out; name the modules .* as groups="):
        module_groups(Untraceable(True, classes, "log"))


class Heads(Untraceable):
    """A shared hidden layer, a head a class, and one that no output reads."""

    def __init__(self) -> None:
        super().__init__(True)
        self.heads = nn.ModuleList(
            [nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1)) for _ in range(4)]
        )
        self.idle, self.hidden = nn.Linear(16, 4), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        self.idle(self.features(x))
        hidden = torch.tanh(self.hidden(self.features(x)))
        return torch.cat([head(hidden) for head in self.heads], dim=1)


def test_a_hidden_layer_is_shared_and_heads_of_one_class_and_unused_ones_are_not() -> None:
    assert module_groups(Heads()) == (("c1", "c2", "hidden"),)


def test_zeros_of_initialisation_hide_nothing() -> None:
    model = Untraceable(True)
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.c2.weight)
    assert module_groups(model) == (("c1", "c2"),)


def test_nothing_is_touched() -> None:
    model = Untraceable(True).train()
    before, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    module_groups(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training


def test_what_cannot_be_run_is_refused_naming_groups() -> None:
    class Impossible(Untraceable):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no image is good enough")

    with pytest.raises(KdxError, match=r"no image is good enough.*groups="):
        module_groups(Impossible(True))
    with pytest.raises(KdxError, match=r"share nothing.*groups="):
        module_groups(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), image_shape=(3, 2, 2))


class HeadsOfUnits(Untraceable):
    """A head of ReLUs for every class, which few images make move."""

    def __init__(self, classes: int, units: int = 4) -> None:
        super().__init__(True)
        self.heads = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(16, units), nn.ReLU(), nn.Linear(units, 1))
                for _ in range(classes)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.features(x)
        return torch.cat([head(pooled) for head in self.heads], dim=1)


@pytest.mark.parametrize("classes", [2, 4, 10])
@pytest.mark.parametrize("units", [1, 4])
def test_dead_units_make_no_head_shared_and_hide_no_trunk(classes: int, units: int) -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        assert module_groups(HeadsOfUnits(classes, units), image_shape=(3, 8, 8)) == (("c1", "c2"),)


def test_a_dead_trunk_leaves_the_classifier_alone() -> None:
    model = Untraceable(True)
    nn.init.constant_(model.c2.bias, -100)
    assert module_groups(model) == (("c1", "c2"),)


def test_what_outputs_read_and_never_move_is_refused_by_name() -> None:
    class Zeroed(Untraceable):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * self.spare(x).mean()

    model = Zeroed(True)
    model.spare = nn.Conv2d(3, 4, 1)
    with pytest.raises(KdxError, match=r"share module 'spare' can't be found out.*groups="):
        module_groups(model)


def test_a_classifier_beside_a_shared_scale_is_refused_by_name() -> None:
    class Clip(Untraceable):
        def __init__(self) -> None:
            super().__init__(True)
            self.classifier, self.scale = (
                nn.Parameter(torch.randn(16, 4)),
                nn.Parameter(torch.tensor(1.0)),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.scale.exp() * self.features(x) @ self.classifier

    with pytest.raises(
        KdxError, match="module '' holds 'scale', which subtasks share, beside 'classifier'"
    ):
        module_groups(Clip())


@pytest.mark.parametrize("shared", ["PReLU", "ParameterList"])
def test_a_module_used_in_several_stages_stands_where_it_is_used_first(shared: str) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = (
                nn.Conv2d(3, 6, 3, 2, 1),
                nn.Conv2d(6, 6, 3, 2, 1),
                nn.Linear(6, 4),
            )
            self.c, self.act = nn.Conv2d(6, 6, 3, 2, 1), nn.PReLU()
            self.weights = nn.ParameterList([torch.randn(6, 6, 3, 3) / 5 for _ in range(2)])

        def forward(self, x: Tensor) -> Tensor:
            if shared == "PReLU":
                return self.head(
                    self.act(self.c(self.act(self.b(self.act(self.a(x)))))).mean((2, 3))
                )
            x = self.a(x).relu()
            for weight in self.weights:
                x = nn.functional.conv2d(x, weight, stride=2, padding=1).relu()
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    model, images, labels = (
        Twice().double(),
        torch.randn(24, 3, 16, 16).double(),
        torch.arange(24) % 4,
    )
    groups = module_groups(model, image_shape=(3, 16, 16))
    assert groups == (
        (("a",), ("b", "act"), ("c",)) if shared == "PReLU" else (("a",), ("weights",))
    )
    found = conflict_of(model, images, labels, null_draws=19).pairs.query("level == 'all'")[
        "cosine"
    ]
    together = [[path for paths in groups for path in paths]]
    other = conflict_of(model, images, labels, groups=together, null_draws=19).pairs.query(
        "level == 'all'"
    )["cosine"]
    assert found.to_numpy() == pytest.approx(other.to_numpy())


def test_groups_do_not_depend_on_precision() -> None:
    torchvision = pytest.importorskip("torchvision")
    for model in (torchvision.models.mobilenet_v3_small(num_classes=4), Untraceable(True)):
        groups = module_groups(model)
        assert all(
            module_groups(model.to(dtype)) == groups
            for dtype in (torch.float64, torch.bfloat16, torch.half)
        )


def test_scripted_modules_are_seen_wherever_they_stand() -> None:
    for place in (0, 2):
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 4),
        )
        model[place] = torch.jit.script(model[place])
        assert module_groups(model, image_shape=(3, 8, 8)) == (("0", "2"),)

import pytest
import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, build_model, count_parameters
from kdx_analysis.models.splitting.narrow import flops
from kdx_analysis.models.splitting.split import StudentSplit
from kdx_analysis.models.splitting.tracing import on_meta, trace
from kdx_analysis.models.survey import splits
from tests.models.families import FAMILIES, K


def split_of(
    student: nn.Module, experts: int | tuple[int, ...] = 4, side: int = 32, **options: object
) -> StudentSplit:
    found = HME.from_student(
        on_meta(student), K, experts, image_shape=(3, side, side), **options
    ).split
    assert found is not None
    return found


@pytest.mark.parametrize(("budget", "experts"), [("params", 4), ("flops", 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_levels_keep_the_budget_of_their_stages_within_a_tenth(
    family: str, budget: str, experts: int
) -> None:
    assert abs(split_of(FAMILIES[family](), experts, budget=budget).budget_error) < 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_an_explainer_of_every_family_trains_a_step(family: str) -> None:
    torch.manual_seed(0)
    model = HME.from_student(FAMILIES[family](), K, 2, image_shape=(3, 32, 32))
    one_hot = torch.eye(K)
    losses = []
    for _ in range(2):
        torch.manual_seed(1)  # the same units dropped
        loss = nn.functional.binary_cross_entropy_with_logits(model(IMAGES), one_hot)
        losses.append(float(loss.detach()))
        model.zero_grad()
        loss.backward()
        reached = [
            name
            for name, p in model.named_parameters()
            if p.grad is None or not p.grad.isfinite().all()
        ]
        assert not reached
        squared = sum(float(p.grad.double().pow(2).sum()) for p in model.parameters())
        step = 0.01 * losses[-1] / squared  # by which the loss falls by 1 % where it is linear
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= step * parameter.grad
    assert losses[1] < losses[0]


IMAGES = torch.randn(K, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_table_says_what_the_explainer_has() -> None:
    student = build_model("resnet20", K, 3)
    model = HME.from_student(student, K, (2, 3))
    assert model.split is not None
    trunk, second, third, heads = model.split.parts
    assert [p.name for p in model.split.parts] == ["trunk", "level 2", "level 3", "heads"]
    assert [p.experts for p in model.split.parts] == [1, 2, 3, K]
    assert trunk.explainer == trunk.student == count_parameters(model.trunk)
    assert [second.explainer, third.explainer] == [
        count_parameters(level) for level in model.levels
    ]
    assert [second.student, third.student] == [
        count_parameters(stage) for stage in student.stages[1:]
    ]
    assert (heads.student, heads.explainer) == (
        count_parameters(student.classifier),
        count_parameters(model.heads),
    )
    features = model.trace(IMAGES).features
    assert [p.shape for p in (trunk, second, third)] == [tuple(f.shape[2:]) for f in features]
    assert len(model.split.to_frame()) == 4
    assert "level 3" in str(model.split)
    assert "stages.1" in model.split._repr_html_()


def test_operations_of_a_convolution_by_hand() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU())
    assert flops(trace(conv), (3, 8, 8)) == 2 * 8 * 8 * 5 * 3 * 9


def test_width_gives_each_expert_its_share_of_channels() -> None:
    split = split_of(build_model("resnet20", K, 3), 4, budget="width")
    assert [part.shape[0] for part in split.parts[1:3]] == [32 // 4, 64 // 4]
    assert split.shares == (0.25, 0.25)


def test_a_shortcut_from_a_wider_trunk_is_fitted() -> None:
    """The second stage's first block adds its input, which the trunk gives in full width."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.second(self.first(x).relu())

    layers = [
        nn.Conv2d(3, 16, 3),
        Block(),
        Block(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, K),
    ]
    split = split_of(nn.Sequential(*layers), stages=["0", "1", "2"])
    assert [part.shape[0] for part in split.parts[1:3]] == [16, 16]
    assert abs(split.budget_error) < 0.1


def test_a_layer_that_cannot_be_narrowed_is_named() -> None:
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.PReLU(8)),
        nn.Flatten(),
    ]
    student = nn.Sequential(*layers, nn.Linear(8 * 13 * 13, K))
    with pytest.raises(KdxError, match=r"module '2.1' uses a parameter of its own in prelu"):
        HME.from_student(student, K, image_shape=(3, 32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"experts": (4, 4, 4)},
            r"experts = \(4, 4, 4\) should be a number or 2 numbers .*stages.1, stages.2",
        ),
        ({"experts": 0}, "experts = 0"),
        ({"budget": "time"}, "budget = 'time' should be one of params, flops, width"),
        ({"gates": "both"}, "gates = 'both' should be one of parameter, input"),
        ({"top_k": 0}, "top_k = 0 should be 1 or more"),
    ],
)
def test_options_that_fit_no_explainer_are_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(KdxError, match=message):
        HME.from_student(build_model("resnet20", K, 3), K, **options)


def test_the_survey_has_a_row_for_a_model() -> None:
    (row,) = splits(["resnet20"])
    assert abs(row["params"]) < 0.1
    assert abs(row["flops"]) < 0.1
    assert row["levels"] == 2

import pytest
import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models.splitting.stages import find_stages
from tests.models.families import FAMILIES


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Net(nn.Module):
    """Three resolutions; between blocks plain functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, 4), conv(4, 6), conv(6, 8)
        self.side = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.first(x), 2)
        x = nn.functional.max_pool2d(self.second(x), 2)
        x = self.third(x) + self.side(x)
        return self.head(x.mean(dim=(2, 3)))


class Branching(Net):
    """Looks at its input's values, so it can't be traced."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            x = -x
        return self.head(self.third(self.second(self.first(x))).mean(dim=(2, 3)))


def test_a_net_by_hand() -> None:
    found = find_stages(Net(), image_shape=(3, 16, 16))
    assert found.names == ("first", "second", "third – side")
    assert found.shapes == ((3, 16, 16), (4, 16, 16), (6, 8, 8), (8, 4, 4))
    assert found.classifier == 8 * 5 + 5
    assert found.reads == "mean"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_one_after_the_other_are_the_student(family: str) -> None:
    student = FAMILIES[family]().eval()
    found = find_stages(student, image_shape=(3, 32, 32))
    kept = sum(p.numel() for part in (found.trunk, *found.body) for p in part.parameters())
    assert kept + found.classifier == sum(p.numel() for p in student.parameters())
    assert len(found.body) in (2, 3)
    seen: list[Tensor] = []
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = student(x)
        for part, shape in zip((found.trunk, *found.body), found.shapes[1:], strict=True):
            x = part.eval()(x)
            seen.append(x)
            assert x.shape[1:] == shape
        assert torch.equal(
            found.whole.eval()(torch.zeros(2, 3, 32, 32)), student(torch.zeros(2, 3, 32, 32))
        )
    assert expected.shape == (2, 4)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("torchvision resnet", ("conv1 – layer1", "layer2", "layer3", "layer4")),
        ("timm convnext", ("stem – stages.0", "stages.1", "stages.2", "stages.3 – norm_pre")),
        (
            "timm mobilenetv3",
            ("conv_stem – blocks.0", "blocks.1", "blocks.2 – blocks.3", "blocks.4 – blocks.5"),
        ),
        ("timm vit", ("patch_embed – blocks.0", "blocks.1", "blocks.2", "blocks.3 – norm")),
    ],
)
def test_stages_end_where_their_modules_do(family: str, names: tuple[str, ...]) -> None:
    assert find_stages(FAMILIES[family](), image_shape=(3, 32, 32)).names == names


def test_declared_stages_end_where_they_are_declared_to() -> None:
    found = find_stages(Net(), ["first", "second"], (3, 16, 16))
    assert found.names == ("first", "second")
    found = find_stages(FAMILIES["torchvision resnet"](), ["layer1", "layer3"], (3, 32, 32))
    assert found.names == ("conv1 – layer1", "layer2 – layer3")


def test_a_net_that_cannot_be_traced_is_split_by_its_declared_chain() -> None:
    found = find_stages(Branching(), ["first", "second", "third"], (3, 16, 16))
    assert found.names == ("first", "second", "third")
    assert found.classifier == (8 * 5 + 5) + (6 * 8 + 8)


@pytest.mark.parametrize(
    ("student", "stages", "message"),
    [
        (Branching(), None, "Branching can't be traced: .*control flow.*; .*declare as stages="),
        (Branching(), ["second", "third"], "module 'second' does not read what"),
        (Branching(), ["first", "fourth"], "no attribute .fourth"),
        (Net(), ["first", "fourth"], "there is no module 'fourth' on the way .*; there are first"),
        (Net(), ["first"], "two module paths or more"),
        (
            Net(),
            ["third", "first"],
            "module 'third' can't end a stage: what follows reads more than its output",
        ),
        (Net(), ["second", "first"], "module 'first' does not come after 'second'"),
        (
            nn.Sequential(conv(3, 4), conv(4, 4), nn.Flatten(), nn.LazyLinear(3)),
            None,
            "do not fit|no stages to split",
        ),
        (
            nn.Sequential(conv(3, 4), conv(4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            None,
            "no stages to split: its fea",
        ),
    ],
)
def test_what_cannot_be_split_is_named(
    student: nn.Module, stages: list[str] | None, message: str
) -> None:
    with pytest.raises(KdxError, match=message):
        find_stages(student, stages, (3, 16, 16))


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        KdxError, match=r"images of 1×16×16 do not fit Net: .*; give another image_shape"
    ):
        find_stages(Net(), image_shape=(1, 16, 16))


def test_a_student_that_differs_between_modes_is_named() -> None:
    class Two(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 2 if self.training else x)

    with pytest.raises(KdxError, match="computes other things in train mode than in eval mode"):
        find_stages(Two(), image_shape=(3, 16, 16))


def test_the_student_is_left_as_it_was() -> None:
    student = Net().train()
    student.second.eval()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    find_stages(student, image_shape=(3, 16, 16))
    assert [student.first.training, student.second.training] == [True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())

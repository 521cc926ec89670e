import pytest
import torch
from torch import nn

from kdx_analysis import _compat  # noqa: F401

# isort: split
from torchvision.models import mobilenetv2, shufflenetv2

from kdx_analysis.models import MODELS, StagedNet
from kdx_analysis.models.zoo.mobile import (
    DownUnit,
    InvertedResidual,
    Shuffle,
    ShuffleUnit,
    SplitUnit,
)


# in millions .81, .95, 1.36, and those of the four other shapes of CRD's tables, at K = 100
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mobilenet_v2_half", 812_836),
        ("shufflenet_v1", 949_258),
        ("shufflenet_v2", 1_355_528),
        ("resnet8x4", 1_233_540),
        ("resnet32x4", 7_433_860),
        ("wrn_16_1", 180_916),
    ],
)
def test_parameter_counts_of_the_literature(name: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in MODELS[name](100).parameters()) == count


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("mobilenet_v2_half", [(8, 16), (12, 16), (16, 8), (32, 4), (48, 4), (80, 2), (1280, 2)]),
        ("shufflenet_v1", [(240, 16), (480, 8), (960, 4)]),
        ("shufflenet_v2", [(116, 16), (232, 8), (1024, 4)]),
    ],
)
def test_stages_have_the_channels_and_sizes_of_the_papers_at_32_pixels(
    name: str, shapes: list
) -> None:
    model = MODELS[name](5).eval()
    assert isinstance(model, StagedNet)
    x = model.stem(torch.randn(2, 3, 32, 32))
    seen = []
    for stage in model.stages:
        x = stage(x)
        seen.append((x.shape[1], x.shape[2]))
    assert seen == shapes
    assert MODELS[name](5, 1).eval()(torch.randn(2, 1, 28, 28)).shape == (2, 5)


def with_random_statistics(module: nn.Module) -> nn.Module:
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return module.double().eval()


def with_state_of(theirs: nn.Module, ours: nn.Module) -> nn.Module:
    """In order, which both share."""
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    return theirs.double().eval()


@pytest.mark.parametrize(("outputs", "stride"), [(6, 1), (8, 1), (6, 2)])
def test_inverted_residual_is_torchvisions(outputs: int, stride: int) -> None:
    ours = with_random_statistics(InvertedResidual(6, outputs, stride=stride))
    theirs = with_state_of(mobilenetv2.InvertedResidual(6, outputs, stride, 6), ours)
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64) / 10  # so small that ReLU6 is ReLU
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SplitUnit(8), shufflenetv2.InvertedResidual(8, 8, 1)),
        (DownUnit(6, 8), shufflenetv2.InvertedResidual(6, 8, 2)),
    ],
)
def test_shufflenet_v2_units_are_torchvisions(ours: nn.Module, theirs: nn.Module) -> None:
    with_state_of(theirs, with_random_statistics(ours))
    x = torch.randn(2, 8 if isinstance(ours, SplitUnit) else 6, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_shuffle_deals_the_groups_channels_in_turn() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)  # groups (0, 1), (2, 3), (4, 5)
    assert Shuffle(3)(x).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_shufflenet_v1_units_by_hand() -> None:
    x = torch.randn(2, 12, 6, 6, dtype=torch.float64)
    for outputs, stride in ((12, 1), (36, 2)):
        unit = with_random_statistics(
            ShuffleUnit(12, outputs, groups=3, first_groups=3 if stride == 1 else 1, stride=stride)
        )
        (conv1, norm1, _), (conv2, norm2, _), (conv3, norm3) = (
            unit.reduce,
            unit.depthwise,
            unit.expand,
        )
        out = norm1(conv1(x)).relu()
        if stride == 1:
            out = out[
                :, [0, 1, 2]
            ]  # three groups of one channel: dealing them in turn changes nothing
        out = norm3(conv3(norm2(conv2(out)).relu()))
        beside = x if stride == 1 else nn.functional.avg_pool2d(x, 3, 2, 1)
        expected = out + beside if stride == 1 else torch.cat([out, beside], dim=1)
        assert (conv1.groups, conv2.groups, conv3.groups) == (
            3 if stride == 1 else 1,
            conv1.out_channels,
            3,
        )
        torch.testing.assert_close(unit(x), expected.relu())
        assert unit(x).shape == (2, outputs, 6 // stride, 6 // stride)

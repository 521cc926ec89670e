import copy
import math
import pickle

import pytest
import torch
from torch import nn

from kdx_analysis import _compat  # noqa: F401
from kdx_analysis.models.zoo import MODELS, Conv, StagedNet
from kdx_analysis.models.zoo.residual import BasicBlock, PreActivationBlock

SHAPES = {"digits_teacher": (1, 8, 8), "digits_student": (1, 8, 8)}


def build(name: str, num_classes: int = 4, in_channels: int = 3) -> StagedNet:
    model = MODELS[name](num_classes, in_channels)
    assert isinstance(model, StagedNet)
    return model


# in millions .28, .86, .70, .57, 2.26, 3.97 and 11.2 at K = 100
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20", 278_324),
        ("resnet56", 861_620),
        ("wrn_16_2", 703_284),
        ("wrn_40_1", 569_780),
        ("wrn_40_2", 2_255_156),
        ("vgg8", 3_965_028),
        ("resnet18", 11_220_132),
    ],
)
def test_parameter_counts_of_the_literature(name: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in MODELS[name](100).parameters()) == count


def test_resnet18_computes_what_torchvisions_does_behind_the_cifar_stem() -> None:
    from torchvision.models import resnet18

    ours, theirs = build("resnet18").double().eval(), resnet18(num_classes=4).double().eval()
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False).double()
    theirs.maxpool = nn.Identity()
    with torch.no_grad():
        for buffer in ours.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_vgg8_layers() -> None:
    stages = build("vgg8").stages
    assert [stage[0].out_channels for stage in stages] == [64, 128, 256, 512, 512]
    assert [[type(layer) for layer in stage] for stage in stages] == [
        [Conv, nn.BatchNorm2d, nn.ReLU, *([nn.MaxPool2d] if i < 3 else [])] for i in range(5)
    ]


def test_digits_student_layers() -> None:
    student = build("digits_student", in_channels=1)
    assert isinstance(student.stem, nn.Identity)
    convs = [stage[0] for stage in student.stages]
    assert [(c.in_channels, c.out_channels, c.stride[0]) for c in convs] == [
        (1, 24, 1),
        (24, 24, 1),
        (24, 24, 2),
        (24, 24, 1),
    ]


@pytest.mark.parametrize(("channels", "stride"), [(3, 1), (5, 1), (3, 2)])
def test_pre_activation_block_by_hand(channels: int, stride: int) -> None:
    block = PreActivationBlock(3, channels, stride=stride).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    scale = math.sqrt(1 + block.bn1.eps)  # fresh statistics: mean 0, variance 1
    a = (x / scale).relu()
    out = block.conv2((block.conv1(a) / scale).relu())
    direct = channels == 3 and stride == 1
    assert (block.shortcut is None) == direct
    torch.testing.assert_close(block(x), out + (x if direct else block.shortcut(a)))


def test_the_last_wrn_stage_alone_ends_in_batch_norm_and_relu() -> None:
    stages = build("wrn_16_2").stages
    assert [isinstance(stage[-1], nn.ReLU) for stage in stages] == [False, False, True]
    assert isinstance(stages[-1][-2], nn.BatchNorm2d)


@pytest.mark.parametrize("name", MODELS)
def test_shapes_and_declared_widths(name: str) -> None:
    for shape in {SHAPES.get(name, (3, 32, 32)), (1, 28, 28)}:
        model = build(name, in_channels=shape[0]).eval()
        x = torch.randn(2, *shape)
        with torch.no_grad():
            out = model.stem(x)
            for stage in model.stages:
                out = stage(out)
            pooled = model.features(x)
            assert pooled.shape == (2, model.classifier.in_features)
            torch.testing.assert_close(
                pooled, nn.functional.adaptive_avg_pool2d(out, model.pool).flatten(1)
            )
            torch.testing.assert_close(model(x), model.classifier(pooled))
            assert model(x).shape == (2, 4)


def test_an_undivided_convolution_starts_as_kaiming_normal_fan_out() -> None:
    torch.manual_seed(0)
    weight = BasicBlock(40, 48).conv1.weight
    torch.manual_seed(0)
    reference = torch.empty(48, 40, 3, 3)
    nn.init.kaiming_normal_(reference, mode="fan_out", nonlinearity="relu")
    torch.testing.assert_close(weight, reference)


@pytest.mark.parametrize("name", ["digits_student", "digits_teacher", "wrn_16_2", "vgg8"])
def test_the_current_seed_fixes_the_weights(name: str) -> None:
    first, second, third = (torch.manual_seed(seed) and build(name) for seed in (1, 1, 2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert not torch.equal(first.classifier.weight, third.classifier.weight)


@pytest.mark.parametrize("name", ["digits_student", "resnet20", "wrn_16_2", "vgg8"])
def test_copies_pickles_and_traces_give_the_same_logits(name: str) -> None:
    model = build(name).eval()
    x = torch.randn(2, 3, 8, 8)
    loaded = build(name).eval()
    loaded.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = model(x)
        for other in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.fx.symbolic_trace(model),
            loaded,
        ):
            assert torch.equal(other(x), expected)


def test_compiles_without_a_graph_break() -> None:
    model = build("wrn_16_2").eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x))

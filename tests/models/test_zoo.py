import copy
import math
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from kdx_analysis import _compat  # noqa: F401
from kdx_analysis.models.zoo import (
    MODELS,
    BasicBlock,
    PreActivationBlock,
    StagedNet,
    plain_stage,
    pre_activation_stage,
    residual_stage,
)

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
        [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, *([nn.MaxPool2d] if i < 3 else [])] for i in range(5)
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
            assert out.shape[1] == model.stem_width
            for stage, plan in zip(model.stages, model.plans, strict=True):
                out = stage(out)
                assert out.shape[1] == plan.width
            pooled = model.features(x)
            assert pooled.shape == (2, model.plans[-1].width * model.pool**2)
            torch.testing.assert_close(pooled, nn.functional.adaptive_avg_pool2d(out, model.pool).flatten(1))
            torch.testing.assert_close(model(x), model.classifier(pooled))
            assert model(x).shape == (2, 4)


def expert_state(state: dict[str, torch.Tensor], expert: int, experts: int) -> dict[str, torch.Tensor]:
    return {key: t if t.ndim == 0 else t.chunk(experts)[expert].clone() for key, t in state.items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 3), (3, 3)])
@pytest.mark.parametrize("name", MODELS)
def test_a_grouped_stage_is_its_experts_side_by_side(name: str, inputs: int, outputs: int, training: bool) -> None:
    experts = 3
    for plan in build(name).plans:
        level = plan.build(experts * inputs, experts * outputs, experts).double().train(training)
        with torch.no_grad():
            for tensor in (*level.parameters(), *level.buffers()):
                if tensor.is_floating_point():
                    tensor.uniform_(0.2, 1.2).sub_(0.4 if tensor.ndim > 1 else 0.0)
        lone = [plan.build(inputs, outputs, 1).double().train(training) for _ in range(experts)]
        for i, expert in enumerate(lone):
            expert.load_state_dict(expert_state(level.state_dict(), i, experts))

        x = torch.randn(2, experts * inputs, 6, 6, dtype=torch.float64, requires_grad=True)
        slices = [part.detach().clone().requires_grad_() for part in x.chunk(experts, dim=1)]
        out = level(x)
        outs = [expert(part) for expert, part in zip(lone, slices, strict=True)]
        torch.testing.assert_close(out, torch.cat(outs, dim=1))

        weights = torch.randn_like(out)
        (out * weights).sum().backward()
        for i, expert in enumerate(lone):
            (outs[i] * weights.chunk(experts, dim=1)[i]).sum().backward()
            for whole, own in zip(level.parameters(), expert.parameters(), strict=True):
                assert whole.shape[0] % experts == 0
                torch.testing.assert_close(whole.grad.chunk(experts)[i], own.grad)
            for whole, own in zip(level.buffers(), expert.buffers(), strict=True):
                torch.testing.assert_close(whole if whole.ndim == 0 else whole.chunk(experts)[i], own)
        torch.testing.assert_close(x.grad, torch.cat([part.grad for part in slices], dim=1))


@pytest.mark.parametrize(
    "stage",
    [
        partial(plain_stage, bias=True),
        partial(residual_stage, blocks=2, stride=2),
        partial(pre_activation_stage, blocks=2, stride=2, last=True),
    ],
)
def test_an_expert_starts_as_a_lone_narrow_stage_would(stage) -> None:
    torch.manual_seed(0)
    experts, outputs = 4, 48
    for module in stage(experts * 40, experts * outputs, experts).modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (outputs * module.kernel_size[0] ** 2))
            for own in module.weight.chunk(experts):
                assert own.std().item() == pytest.approx(expected, rel=0.06)  # 1,920 weights or more
                assert abs(own.mean().item()) < 0.1 * expected
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert not module.bias.any()


def test_an_undivided_convolution_starts_as_kaiming_normal_fan_out() -> None:
    torch.manual_seed(0)
    weight = BasicBlock(40, 48).conv1.weight
    torch.manual_seed(0)
    reference = nn.Conv2d(40, 48, 3, bias=False).weight
    nn.init.kaiming_normal_(reference, mode="fan_out", nonlinearity="relu")
    torch.testing.assert_close(weight, reference)


@pytest.mark.parametrize("name", ["digits_student", "digits_teacher", "wrn_16_2", "vgg8"])
def test_the_current_seed_fixes_the_weights(name: str) -> None:
    first, second, third = (torch.manual_seed(seed) and build(name) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
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


def test_stem_and_stages_can_be_built_anew() -> None:
    model = build("resnet20")
    fresh = model.build_stem()
    assert fresh.state_dict().keys() == model.stem.state_dict().keys()
    assert not torch.equal(fresh[0].weight, model.stem[0].weight)

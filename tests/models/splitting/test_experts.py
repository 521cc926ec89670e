import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, fx, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models.splitting.experts import Level
from kdx_analysis.models.splitting.split import split_student
from tests.models.families import FAMILIES

N = 3


def lone(level: Level) -> list[fx.GraphModule]:
    """Every expert of a level as the narrow graph that it is, alone."""
    alone = []
    for i in range(level.experts):
        expert = (
            copy.deepcopy(level._template[0]).to_empty(device="cpu").double().train(level.training)
        )
        own = {
            name: tensor
            if tensor.ndim == 0
            else tensor.reshape(level.experts, *expert.state_dict()[name].shape)[i]
            for name, tensor in level.body.state_dict().items()
        }
        expert.load_state_dict({name: tensor.clone() for name, tensor in own.items()})
        alone.append(expert)
    return alone


def disturbed(level: Level) -> Level:
    """Other weights and running statistics than those at the start, in float64."""
    level = level.double()
    with torch.no_grad():
        for name, tensor in level.state_dict().items():
            if "running_var" in name:
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point() and tensor.ndim:
                tensor.add_(0.1 * torch.randn_like(tensor))
    return level


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_level_is_its_experts_one_by_one(family: str, training: bool) -> None:
    """Forward, gradients of inputs and parameters, and running statistics equal those of a plain
    loop in float64.
    """
    torch.manual_seed(0)
    student = FAMILIES[family]()
    for dropout in student.modules():
        if isinstance(dropout, nn.Dropout) or type(dropout).__name__ == "StochasticDepth":
            dropout.p = 0.0
    trunk, levels, *_ = split_student(student, N, image_shape=(3, 32, 32))
    shape = trunk.eval().requires_grad_(False)(torch.randn(2, 3, 32, 32)).shape[1:]
    for i, level in enumerate(levels):
        level = disturbed(level).train(training)
        alone = lone(level)
        x = torch.randn(3, 1 if level.shared else N, *shape, dtype=torch.float64)
        x.requires_grad_()
        parts = [
            part.detach().clone().requires_grad_() for part in x.expand(-1, N, *shape).unbind(1)
        ]
        out = level(x)
        outs = [expert(part) for expert, part in zip(alone, parts, strict=True)]
        torch.testing.assert_close(out, torch.stack(outs, dim=1), rtol=1e-9, atol=1e-9)
        weights = torch.randn_like(out)
        (out * weights).sum().backward()
        torch.stack([(o * weights[:, j]).sum() for j, o in enumerate(outs)]).sum().backward()
        gradients = torch.stack([part.grad for part in parts], dim=1)
        if level.shared:
            gradients = gradients.sum(dim=1, keepdim=True)
        torch.testing.assert_close(x.grad, gradients, rtol=1e-7, atol=1e-9)
        for name, parameter in level.body.named_parameters():
            expected = torch.stack([dict(expert.named_parameters())[name].grad for expert in alone])
            torch.testing.assert_close(
                parameter.grad.reshape(expected.shape), expected, rtol=1e-7, atol=1e-8
            )
        for name, buffer in level.body.named_buffers():
            kept = [dict(expert.named_buffers())[name] for expert in alone]
            torch.testing.assert_close(
                buffer.reshape(-1), torch.stack(kept).reshape(-1)[: buffer.numel()]
            )
        if i == 1:
            break  # the first reads the trunk, the second a level of experts
        shape = out.shape[2:]


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def test_experts_start_apart_and_as_their_layers_do() -> None:
    torch.manual_seed(0)
    level = Level.of(block(8, 40), N)
    weights = level.body.state_dict()["0.weight"].chunk(N)
    assert not torch.equal(weights[0], weights[1])
    bound = (8 * 9) ** -0.5
    for weight in weights:
        assert weight.abs().max() <= bound
        assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_a_parameter_of_no_layer_starts_with_the_students_moments() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.scale = nn.Parameter(torch.full((4, 1, 1), 0.25))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.scale * self.conv(x)

    level = Level.of(Scaled(), N)
    assert level.body.scale.shape == (N, 4, 1, 1)
    assert torch.equal(level.body.scale, torch.full((N, 4, 1, 1), 0.25))


def test_a_parameter_that_is_used_otherwise_is_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight)

    with pytest.raises(KdxError, match=r"module '1' uses a parameter of its own in .*conv2d"):
        Level.of(nn.Sequential(nn.ReLU(), Own()), N)


@pytest.mark.parametrize("kept", [[1], [2, 0], [0, 1, 2]])
def test_taken_experts_compute_what_they_did(kept: list[int]) -> None:
    torch.manual_seed(0)
    level = disturbed(Level.of(block(3, 5), N)).eval()
    x = torch.randn(2, N, 3, 6, 6, dtype=torch.float64)
    taken = level.take(kept)
    assert taken.experts == len(kept)
    assert not taken.training
    torch.testing.assert_close(taken(x[:, kept]), level(x)[:, kept], rtol=0, atol=1e-12)
    torch.testing.assert_close(
        taken.take([0])(x[:, kept[:1]]), level(x)[:, kept[:1]], rtol=0, atol=1e-12
    )


def test_redrawing_forgets_everything() -> None:
    torch.manual_seed(0)
    level = Level.of(block(3, 5), N).train()
    before = copy.deepcopy(level.state_dict())
    level(torch.randn(4, N, 3, 6, 6))
    level.reset_parameters()
    after = level.state_dict()
    assert after["body.1.running_mean"].abs().max() == 0
    assert int(after["body.1.num_batches_tracked"]) == 0
    assert not torch.equal(before["body.0.weight"], after["body.0.weight"])


def test_the_memory_format_of_images_is_kept() -> None:
    level = Level.of(block(4, 4), 2).eval()
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last).unflatten(1, (2, 4))
    assert level(x).flatten(1, 2).is_contiguous(memory_format=torch.channels_last)


def test_copies_pickles_and_states() -> None:
    torch.manual_seed(0)
    level = Level.of(block(3, 5), N).eval()
    x = torch.randn(2, N, 3, 6, 6)
    other = Level.of(block(3, 5), N).eval()
    buffer = io.BytesIO()
    torch.save(level.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (copy.deepcopy(level), pickle.loads(pickle.dumps(level)), other):
        assert torch.equal(twin(x), level(x))
        assert torch.equal(twin.take([1])(x[:, 1:2]), level.take([1])(x[:, 1:2]))


def test_no_expert_is_refused() -> None:
    with pytest.raises(KdxError, match="experts = 0"):
        Level.of(block(3, 5), 0)

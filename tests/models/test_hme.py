import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, build_model, count_parameters
from kdx_analysis.models.gates import ParameterGate, attention
from kdx_analysis.models.hme import _mix
from kdx_analysis.models.splitting.experts import Level
from tests.models.families import FAMILIES


@pytest.fixture
def model() -> HME:
    torch.manual_seed(0)
    hme = HME.from_student(build_model("digits_student", 5, 1), 5, (2, 3, 4)).double()
    for layer in hme.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    hme.temperature = 0.4
    return hme


def reference(hme: HME, images: torch.Tensor) -> torch.Tensor:
    """The plain loop over experts and subtasks of method section 2, one narrow convolution block at
    a time.
    """
    features = [hme.trunk(images)]
    logits = iter(gate.logits for gate in hme.gates)
    for level, side_by_side in enumerate(hme.levels):
        n, module = (
            hme.experts[level + 1],
            [getattr(side_by_side.body.stages, str(level + 1)).get_submodule(i) for i in "012"],
        )
        gate = (
            torch.ones(n, 1, dtype=images.dtype)
            if level == 0
            else attention(next(logits), hme.temperature)
        )
        conv, norm, *rest = module
        outputs = []
        for i in range(n):
            x = sum(gate[i, j] * f for j, f in enumerate(features))
            w, b = (
                conv.weight.chunk(n)[i],
                slice(i * conv.out_channels // n, (i + 1) * conv.out_channels // n),
            )
            x = nn.functional.conv2d(x, w, None, conv.stride, conv.padding)
            x = nn.functional.batch_norm(
                x, norm.running_mean[b], norm.running_var[b], norm.weight[b], norm.bias[b]
            )
            for layer in rest:
                x = layer(x)
            outputs.append(x)
        features = outputs
    gate = attention(next(logits), hme.temperature)
    margins = []
    for k in range(hme.num_classes):
        x = sum(gate[k, j] * f for j, f in enumerate(features))
        x = nn.functional.adaptive_avg_pool2d(x, hme.readout.pool).flatten(1)
        margins.append(x @ hme.heads.weight[k] + hme.heads.bias[k])
    return torch.stack(margins, dim=1)


def test_equals_the_plain_loop_forward_and_gradient(model: HME) -> None:
    images = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    model.eval()
    weight = torch.randn(6, 5, dtype=torch.float64)
    parameters = list(model.parameters())
    got, expected = model(images), reference(model, images)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_gate_row_belongs_to_the_child_and_a_column_to_the_parent(model: HME) -> None:
    """Closing the gate of one subtask to all experts but one leaves the other subtasks' margins
    alone.
    """
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    model.eval()
    before = model(images)
    with torch.no_grad():
        model.gates[-1].logits[2] = torch.tensor([50.0, 0.0, 0.0, 0.0])
    after = model(images)
    changed = (after - before).abs().amax(dim=0) > 1e-9
    assert changed.tolist() == [False, False, True, False, False]
    torch.testing.assert_close(model.trace(images).inputs[:, 2], model.trace(images).pooled[:, 0])


def test_trace_has_the_shapes_it_promises(model: HME) -> None:
    trace = model.trace(torch.randn(2, 1, 8, 8, dtype=torch.float64))
    assert [f.shape[:2] for f in trace.features] == [(2, 1), (2, 2), (2, 3), (2, 4)]
    assert trace.pooled.shape[:2] == (2, 4)
    assert trace.inputs.shape[:2] == (2, 5)
    assert trace.margins.shape == (2, 5)
    assert [tuple(a.shape) for a in model.attention()] == [(2, 1), (3, 2), (4, 3), (5, 4)]


@pytest.mark.parametrize("name", ["digits_student", "resnet20", "wrn_16_2", "vgg8", "resnet18"])
@pytest.mark.parametrize("experts", [2, 4, 8])
def test_the_body_has_the_students_parameters_within_a_tenth(name: str, experts: int) -> None:
    with torch.device("meta"):
        student = build_model(name, 10, 3)
        explainer = HME.from_student(student, 10, experts)
    body = sum(count_parameters(stage) for stage in student.stages[1:])
    got = sum(count_parameters(level) for level in explainer.levels)
    assert abs(got / body - 1) < 0.1


def test_two_explainers_of_one_seed_are_equal_and_of_two_are_not() -> None:
    def make(seed: int) -> HME:
        torch.manual_seed(seed)
        return HME.from_student(build_model("digits_student", 3, 1), 3, 2)

    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(make(0).eval()(images), make(0).eval()(images))
    assert not torch.equal(make(0).eval()(images), make(1).eval()(images))


def test_temperature_travels_with_the_state_and_is_checked(model: HME) -> None:
    twin = copy.deepcopy(model)
    twin.temperature = 3.0
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    assert twin.temperature == pytest.approx(0.4)
    with pytest.raises(KdxError, match=r"-1.*above 0"):
        model.temperature = -1


def test_low_temperature_sharpens_the_gates(model: HME) -> None:
    model.temperature = 1e-3
    assert model.attention()[-1].amax(dim=1).min() > 0.99
    model.temperature = 1e3
    torch.testing.assert_close(
        model.attention()[-1], torch.full((5, 4), 0.25, dtype=torch.float64), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("experts", [(2, 2), 0, (4, 4, 0)])
def test_experts_that_fit_no_level_are_refused(experts: int | tuple[int, ...]) -> None:
    with pytest.raises(KdxError, match="experts"):
        HME.from_student(build_model("digits_student", 3, 1), 3, experts)


def test_a_student_without_stages_is_refused() -> None:
    with pytest.raises(KdxError, match="do not fit Linear; give image_shape"):
        HME.from_student(nn.Linear(2, 2), 3)


def lone(level: Level) -> list[nn.Module]:
    return [level.take([i]) for i in range(level.experts)]


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 2}, {"gates": "input"}, {"gates": "input", "top_k": 1}]
)
@pytest.mark.parametrize("family", ["zoo resnet20", "timm convnext", "timm vit"])
def test_any_student_equals_the_plain_loop(family: str, options: dict[str, object]) -> None:
    """Forward and the gradients of gates and images, sample by sample and child by child."""
    torch.manual_seed(0)
    model = (
        HME.from_student(FAMILIES[family](), 4, 3, image_shape=(3, 32, 32), **options)
        .double()
        .eval()
    )
    model.temperature = 0.7
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    def rows(gate: nn.Module, features: list[torch.Tensor], sample: int) -> torch.Tensor:
        if hasattr(gate, "logits"):
            logits = gate.logits
        else:
            pooled = [
                f[sample].mean(dim=0) if f.ndim == 3 else f[sample].mean(dim=(1, 2))
                for f in features
            ]
            hidden = torch.relu(gate.hidden(torch.cat(pooled)))
            logits = gate.out(hidden).reshape(gate.shape)
        chosen = []
        for row in logits:
            least = row.sort(descending=True).values[min(options.get("top_k", 99), len(row)) - 1]
            weights = torch.where(row >= least, (row / 0.7).exp(), 0.0)
            chosen.append(weights / weights.sum())
        return torch.stack(chosen)

    def loop(x: torch.Tensor) -> torch.Tensor:
        below = [model.trunk(x)] * 3
        for level, gate in zip(model.levels, model.gates, strict=True):
            features = [
                expert(f.unsqueeze(1))[:, 0] for expert, f in zip(lone(level), below, strict=True)
            ]
            children = len(rows(gate, features, 0))
            below = [
                torch.stack(
                    [
                        sum(rows(gate, features, b)[i, j] * f[b] for j, f in enumerate(features))
                        for b in range(len(x))
                    ]
                )
                for i in range(children)
            ]
        inputs = [model.readout(f.unsqueeze(1))[:, 0] for f in below]
        margins = [
            f @ w + b for f, w, b in zip(inputs, model.heads.weight, model.heads.bias, strict=True)
        ]
        return torch.stack(margins, dim=1)

    parameters = list(model.gate_parameters())
    got, expected = model(images), loop(images)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_the_attention_of_input_gates_is_that_of_the_images() -> None:
    torch.manual_seed(0)
    model = HME.from_student(build_model("resnet20", 4, 3), 4, (2, 3), gates="input")
    trace = model.trace(torch.randn(5, 3, 32, 32))
    assert [tuple(a.shape) for a in trace.attention] == [(2, 1), (5, 3, 2), (5, 4, 3)]
    assert trace.attention[-1][0].allclose(trace.attention[-1][1]) is False
    with pytest.raises(KdxError, match="depends on the images; take trace"):
        model.attention()


def test_noise_is_drawn_in_training_only_and_on_average_follows_the_gate() -> None:
    torch.manual_seed(0)
    model = HME.from_student(build_model("digits_student", 4, 1), 4, 3, gumbel=True)
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(model.eval()(images), model(images))
    model.train().temperature = 1e-3
    with torch.no_grad():
        model.gates[-1].logits[0] = torch.tensor([0.0, 1.0, 2.0])
        drawn = (
            torch.stack([model.trace(images).attention[-1][0] for _ in range(400)])
            .round()
            .mean(dim=0)
        )
    torch.testing.assert_close(
        drawn, torch.softmax(torch.tensor([0.0, 1.0, 2.0]), 0), rtol=0, atol=0.08
    )
    assert model.attention()[-1][0, 2] > 0.999  # without noise


def test_a_hard_explainer_draws_from_the_strongest_parent(model: HME) -> None:
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    model.eval()
    hard = model.harden()
    assert hard.hard
    assert not model.hard
    assert list(hard.gate_parameters()) == []
    sharp = copy.deepcopy(model)
    sharp.temperature = 1e-6
    torch.testing.assert_close(hard(images), sharp(images))
    assert hard.tree(list("abcde")) == model.tree(list("abcde"))


def test_pruning_removes_dead_experts_and_nothing_else(model: HME) -> None:
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    chosen = [torch.ones(2, 1), torch.eye(3, 2), torch.eye(4, 3), torch.eye(5, 4)[[0, 2, 2, 0, 0]]]
    hard = model.eval().harden(chosen)
    pruned = hard.pruned()
    assert hard.experts == (1, 2, 3, 4)
    assert pruned.experts == (
        1,
        1,
        2,
        2,
    )  # expert 2 of level 3, whose row is even, takes its first parent
    torch.testing.assert_close(pruned(images), hard(images), rtol=0, atol=1e-12)
    operations = []
    for explainer in (hard, pruned):
        with FlopCounterMode(display=False) as counter:
            explainer(images)
        operations.append(counter.get_total_flops())
    assert operations[1] < 0.7 * operations[0]
    assert count_parameters(pruned) < count_parameters(hard)


def test_attention_of_another_model_hardens_nothing(model: HME) -> None:
    with pytest.raises(KdxError, match=r"attention of shapes .* does not fit, wanted"):
        model.harden([torch.ones(2, 1)])
    with pytest.raises(KdxError, match="only a hard explainer has dead experts"):
        model.pruned()


def test_a_redrawn_explainer_keeps_its_gates() -> None:
    torch.manual_seed(0)
    model = HME.from_student(build_model("digits_student", 4, 1), 4, 3)
    before = copy.deepcopy(model)
    model.redraw()
    for a, b in zip(model.gate_parameters(), before.gate_parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(model.heads.weight, before.heads.weight)
    assert not torch.equal(next(model.trunk.parameters()), next(before.trunk.parameters()))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 2, 5, 4, 3), (2, 3, 32, 2, 3), (1, 1, 40, 3, 2), (4, 3, 6)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_features_are_mixed_as_a_sum_over_parents(shape, memory_format, per_sample):
    B, M = shape[:2]
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    if len(shape) == 5:
        x = x.flatten(1, 2).contiguous(memory_format=memory_format).unflatten(1, shape[1:3])
    x.requires_grad_()
    rows = (B, 4, M) if per_sample else (4, M)
    alpha = torch.randn(rows, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(B, 4, *shape[2:], dtype=torch.float64)
    each = alpha if per_sample else torch.stack([alpha] * B)
    expected = sum(
        each[:, :, j].view(B, 4, *[1] * len(shape[2:])) * x[:, j].unsqueeze(1) for j in range(M)
    )
    mixed = _mix(x, alpha, ParameterGate(4, M))
    assert torch.allclose(mixed, expected)
    for ours, plain in zip(
        torch.autograd.grad((mixed * weights).sum(), (x, alpha)),
        torch.autograd.grad((expected * weights).sum(), (x, alpha)),
        strict=True,
    ):
        assert torch.allclose(ours, plain)
    if len(shape) == 5 and not per_sample:
        assert mixed.flatten(1, 2).is_contiguous(memory_format=memory_format)

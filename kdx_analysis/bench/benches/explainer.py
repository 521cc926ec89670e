"""A training step of the explainer against a module per expert, mixed and read in loops."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.bench.common import (
    in_turn,
    outputs_and_gradients,
    placed,
    random_images,
    seeded,
    training_step,
)
from kdx_analysis.bench.contract import Contest, Contestant, Precision, Run, Setting, bench
from kdx_analysis.models import HME, MODELS
from kdx_analysis.models.zoo import plain_stage
from kdx_analysis.models.zoo.residual import residual_stage

_AGAINST = "a module per expert, gates and heads in loops of Python"
_EXPERTS = 4


class PlainExplainer(nn.Module):
    """The explainer as one would write it down: B×C×H×W to the margins of K subtasks, B×K.

    Args:
        trunk: images to features.
        levels: for every level above it, its experts, each a module.
        num_classes: K.
        width: of the features that a head reads, pooled.
        pool: heads read features averaged over a grid of this size.
    """

    def __init__(
        self,
        trunk: nn.Module,
        levels: list[list[nn.Module]],
        num_classes: int,
        width: int,
        pool: int,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.levels = nn.ModuleList(nn.ModuleList(experts) for experts in levels)
        children = [*map(len, levels[1:]), num_classes]
        self.gates = nn.ParameterList(
            torch.rand(n, len(experts)) for n, experts in zip(children, levels, strict=True)
        )
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(num_classes))
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        inputs = [self.trunk(images)] * len(self.gates[0][0])
        for experts, gate in zip(self.levels, self.gates, strict=True):
            features = []
            for expert, x in zip(experts.children(), inputs, strict=True):
                features.append(expert(x))
            inputs = []
            for row in gate.softmax(dim=1):
                mixed = row[0] * features[0]
                for share, each in zip(row[1:], features[1:], strict=True):
                    mixed = mixed + share * each
                inputs.append(mixed)
        margins = []
        for head, x in zip(self.heads, inputs, strict=True):
            margins.append(head(F.adaptive_avg_pool2d(x, self.pool).flatten(1)))
        return torch.cat(margins, dim=1)


def named(model: nn.Module, taken: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What is ``taken`` of every parameter, of either implementation, by the same names.

    Those of a level's experts are stacked, N×….
    """
    if isinstance(model, PlainExplainer):
        return _named_plain(model, taken)
    assert isinstance(model, HME)
    tensors = {f"trunk.{name}": taken(p) for name, p in model.trunk.named_parameters()}
    for number, (level, gate) in enumerate(zip(model.levels, model.gates, strict=True), 1):
        for name, parameter in level.named_parameters():
            short = re.sub(r"^.*stages\.\d+\.", "", name)
            stacked = taken(parameter).unflatten(0, (model.experts[number], -1))
            tensors[f"level {number}.{short}"] = stacked
        tensors[f"gate {number}"] = taken(gate.get_parameter("logits"))
    heads, biases = (model.heads.get_parameter(name) for name in ("weight", "bias"))
    return tensors | {"heads": taken(heads), "biases": taken(biases)}


def _named_plain(model: PlainExplainer, taken: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    tensors = {f"trunk.{name}": taken(p) for name, p in model.trunk.named_parameters()}
    for number, (level, gate) in enumerate(zip(model.levels, model.gates, strict=True), 1):
        experts = list(level.children())
        for name, _ in experts[0].named_parameters():
            each = [taken(expert.get_parameter(name)) for expert in experts]
            tensors[f"level {number}.{name}"] = torch.stack(each)
        tensors[f"gate {number}"] = taken(gate)
    for ours, theirs in (("heads", "weight"), ("biases", "bias")):
        rows = [taken(head.get_parameter(theirs)) for head in model.heads]
        tensors[ours] = torch.cat(rows)
    return tensors


@torch.no_grad()
def copy_weights(model: HME, plain: PlainExplainer) -> None:
    """Give the plain explainer the other one's weights."""
    weights = named(model, lambda parameter: parameter)
    for name, parameter in plain.trunk.named_parameters():
        parameter.copy_(weights[f"trunk.{name}"])
    for number, (experts, gate) in enumerate(zip(plain.levels, plain.gates, strict=True), 1):
        for i, expert in enumerate(experts.children()):
            for name, parameter in expert.named_parameters():
                parameter.copy_(weights[f"level {number}.{name}"][i])
        gate.copy_(weights[f"gate {number}"])
    heads = (head for head in plain.heads if isinstance(head, nn.Linear))
    for head, weight, bias in zip(heads, weights["heads"], weights["biases"], strict=True):
        head.weight.copy_(weight[None])
        head.bias.copy_(bias[None])


def explainer(student: str, num_classes: int, shape: tuple[int, int, int]) -> HME:
    """Ours, with weights from the seed of all benches."""
    with seeded():
        model = MODELS[student](num_classes, shape[0])
        return HME.from_student(model, num_classes, experts=_EXPERTS, image_shape=shape)


def _widths(model: HME) -> list[int]:
    assert model.split is not None
    return [part.shape[0] for part in model.split.parts if part.shape]


def plain_digits(num_classes: int) -> PlainExplainer:
    """The explainer of ``digits_student``, with the weights of ours."""
    model = explainer("digits_student", num_classes, (1, 8, 8))
    widths = _widths(model)
    trunk = nn.Sequential(OrderedDict(stages=nn.Sequential(plain_stage(1, widths[0]))))
    levels: list[list[nn.Module]] = []
    for below, width, stride in zip(widths, widths[1:], (1, 2, 1), strict=False):
        experts = [plain_stage(below, width, stride=stride) for _ in range(_EXPERTS)]
        levels.append([*experts])
    plain = PlainExplainer(trunk, levels, num_classes, 16 * widths[-1], pool=4)
    copy_weights(model, plain)
    return plain


def plain_resnet20(num_classes: int) -> PlainExplainer:
    """The explainer of ``resnet20``, with the weights of ours."""
    model = explainer("resnet20", num_classes, (3, 32, 32))
    widths = _widths(model)
    stage = residual_stage(16, 16, blocks=3)
    trunk = nn.Sequential(OrderedDict(stem=plain_stage(3, 16), stages=nn.Sequential(stage)))
    levels: list[list[nn.Module]] = []
    for below, width in pairwise(widths):
        experts = [residual_stage(below, width, blocks=3, stride=2) for _ in range(_EXPERTS)]
        levels.append([*experts])
    plain = PlainExplainer(trunk, levels, num_classes, widths[-1], pool=1)
    copy_weights(model, plain)
    return plain


def contest(
    label: str,
    ours: Callable[[], nn.Module],
    plain: Callable[[], nn.Module],
    images: Callable[[], Tensor],
    num_classes: int,
    precision: Precision = "float32",
    rounds: int | None = None,
) -> Contest:
    """A training step of both, channels last, which is the quicker format for both.

    ``precision`` is that of ours; the plain one has float32.
    """

    def prepared(build: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
        model, given = placed(build(), images())
        return model, given, in_turn(len(given), num_classes, given.device)

    def make(build: Callable[[], nn.Module], precision: Precision = "float32") -> Run:
        return training_step(*prepared(build), precision=precision)

    def result(build: Callable[[], nn.Module]) -> Mapping[str, Tensor]:
        return outputs_and_gradients(*prepared(build), named=named)

    return Contest(
        label,
        Contestant("module per expert", partial(make, plain), partial(result, plain)),
        (Contestant("explainer", partial(make, ours, precision), partial(result, ours)),),
        precision=precision,
        rounds=rounds,
    )


@bench(
    "explainer_digits",
    title="a training step of the digits' explainer, 64 images of 8×8",
    against=_AGAINST,
)
def explainer_digits(setting: Setting) -> Iterator[Contest]:
    """With the batch and the memory format of the demo."""
    yield contest(
        "K = 10",
        partial(explainer, "digits_student", 10, (1, 8, 8)),
        partial(plain_digits, 10),
        partial(random_images, setting.batch or 64, (1, 8, 8), setting.device),
        10,
    )


@bench(
    "explainer_resnet20",
    title="a training step of resnet20's explainer, 64 images of 32×32",
    against=_AGAINST,
)
def explainer_resnet20(setting: Setting) -> Iterator[Contest]:
    """With few and with many classes."""
    for K in (10, 100):
        yield contest(
            f"K = {K}",
            partial(explainer, "resnet20", K, (3, 32, 32)),
            partial(plain_resnet20, K),
            partial(random_images, setting.batch or 64, (3, 32, 32), setting.device),
            K,
            rounds=4,
        )


@bench(
    "explainer_cuda",
    title="a training step of resnet20's explainer in bf16, 128 images of 32×32",
    against=f"{_AGAINST}, in float32",
    target=12,
    device="cuda",
)
def explainer_cuda(setting: Setting) -> Iterator[Contest]:
    """Both as they would be run on a GPU; results are compared in float32."""
    yield contest(
        "K = 100",
        partial(explainer, "resnet20", 100, (3, 32, 32)),
        partial(plain_resnet20, 100),
        partial(random_images, setting.batch or 128, (3, 32, 32), setting.device),
        100,
        precision="bf16",
    )

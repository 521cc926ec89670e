"""A training step of the released network against a module per expert and head, as its code has."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial

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
from kdx_analysis.bench.contract import Contest, Contestant, Run, Setting, bench
from kdx_analysis.models.learn_to_branch import Released

_EXPERTS = (2, 4, 8)
_DROPOUT = 0.15


def _expert(into: int, between: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(into, between, 3, padding=1),
        nn.BatchNorm2d(between),
        nn.ReLU(),
        nn.Conv2d(between, out, 3, padding=1),
        nn.BatchNorm2d(out),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


class PlainReleased(nn.Module):
    """The released network in the manner of its code: images B×3×32×32 to scores, B×K.

    Tensors have the names of its checkpoints, so that :class:`Released` reads its state.
    """

    def __init__(self, num_classes: int, dropout: float = _DROPOUT) -> None:
        super().__init__()
        channels = ((3, 64, 64), (64, 64, 64), (64, 64, 32))
        children = (*_EXPERTS[1:], num_classes)
        for level, (experts, rows) in enumerate(zip(_EXPERTS, children, strict=True), 2):
            for i in range(experts):
                setattr(self, f"conv{level}_{i}", _expert(*channels[level - 2]))
            gate = nn.Parameter(torch.rand(rows, experts))
            setattr(self, f"branch_{level}", nn.ParameterList([gate]))
        for k in range(num_classes):
            ends = (nn.ReLU(), nn.Dropout(dropout))
            setattr(self, f"fc1_{k}", nn.Sequential(nn.Linear(32 * 7**2, 128), *ends))
            last = nn.Linear(128, 1)
            setattr(self, f"fc2_{k}", nn.Sequential(nn.Linear(128, 128), *ends, last))

    def forward(self, images: Tensor) -> Tensor:
        inputs = [images] * _EXPERTS[0]
        for level, experts in enumerate(_EXPERTS, 2):
            features = [getattr(self, f"conv{level}_{i}")(inputs[i]) for i in range(experts)]
            inputs = []
            for row in getattr(self, f"branch_{level}")[0].softmax(dim=1):
                mixed = row[0] * features[0]
                for share, each in zip(row[1:], features[1:], strict=True):
                    mixed = mixed + share * each
                inputs.append(mixed)
        scores = []
        for k, x in enumerate(inputs):
            pooled = F.adaptive_avg_pool2d(x, 7).flatten(1)
            scores.append(getattr(self, f"fc2_{k}")(getattr(self, f"fc1_{k}")(pooled)))
        return torch.cat(scores, dim=1)


def plain_released(num_classes: int, dropout: float = _DROPOUT) -> PlainReleased:
    """With weights from the seed of all benches."""
    with seeded():
        return PlainReleased(num_classes, dropout)


def released(num_classes: int, dropout: float = _DROPOUT) -> nn.Module:
    """Ours with the same weights, its temperature 1."""
    model = Released.read(plain_released(num_classes).state_dict()).explainer()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model


def named(model: nn.Module, taken: Callable[[Tensor], Tensor]) -> Mapping[str, Tensor]:
    """What is ``taken`` of every parameter, of either implementation, by our names.

    Convolutions' biases are left out: BatchNorm takes them out again, so that their gradients are
    rounding errors.
    """
    by_name = {name: taken(parameter) for name, parameter in model.named_parameters()}
    if isinstance(model, PlainReleased):
        state = model.state_dict()
        by_name = dataclasses.replace(Released.read(state), state={**state, **by_name}).weights()
    left_out = r"running_|num_batches|body\.[03]\.bias"
    return {name: tensor for name, tensor in by_name.items() if not re.search(left_out, name)}


def contest(num_classes: int, images: Callable[[], Tensor]) -> Contest:
    """A training step on the K-way softmax; results are compared without dropout.

    Each is in the memory format that is the quicker one for it on a CPU.
    """

    def prepared(build: Callable[..., nn.Module], dropout: float) -> tuple[nn.Module, Tensor]:
        return placed(build(num_classes, dropout), images(), _FORMATS[build])

    def make(build: Callable[..., nn.Module]) -> Run:
        model, given = prepared(build, _DROPOUT)
        labels = in_turn(len(given), num_classes, given.device)
        return training_step(model, given, labels, F.cross_entropy)

    def result(build: Callable[..., nn.Module]) -> Mapping[str, Tensor]:
        model, given = prepared(build, 0.0)
        labels = in_turn(len(given), num_classes, given.device)
        return outputs_and_gradients(model, given, labels, named, F.cross_entropy)

    return Contest(
        f"K = {num_classes}",
        Contestant(
            "module per expert and head",
            partial(make, plain_released),
            partial(result, plain_released),
        ),
        (Contestant("explainer", partial(make, released), partial(result, released)),),
        rounds=4,
    )


_FORMATS: dict[Callable[..., nn.Module], torch.memory_format] = {
    plain_released: torch.channels_last,
    released: torch.contiguous_format,
}


@bench(
    "released_network",
    title="a training step of the released network, 32 images of 32×32",
    against="a module per expert and head in loops of Python, as its code has them",
    target={"K = 10": 1.3, "K = 100": 1.6},
)
def released_network(setting: Setting) -> Iterator[Contest]:
    """With few and with many classes."""
    for K in (10, 100):
        yield contest(K, partial(random_images, setting.batch or 32, (3, 32, 32), setting.device))

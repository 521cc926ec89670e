"""Which modules serve several outputs of a model, found from forward and backward passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models.modes import fitted, undisturbed
from kdx_analysis.probes.subtasks import answer

_IMAGES = 4
_SIDES = (32, 224, 28, 8, 64, 96, 128, 160, 192, 256, 288, 299, 384)
# Weights are moved by a tenth of their size, so that none is zero by initialisation and hides what
# lies before it.
_MOVED = 0.1
# Four draws more, of one split each: a unit that is dead in half of all draws hides what it leads
# to once in 32. More follow while a parameter has no gradient in any; a head of one unit is dead in
# all of them once in a million.
_DRAWS, _MOST_DRAWS = 4, 20
_NAME_THEM = "name the modules that subtasks share, level by level, as groups=[['conv1', 'conv2']]"
# Elementwise operations whose derivative is zero, or rounds to zero, for some of their inputs.
_SATURATING = tuple(
    f"{name}Backward"
    for name in (
        "Relu",
        "Threshold",
        "Hardtanh",
        "Clamp",
        "ClampMin",
        "ClampMax",
        "Hardswish",
        "Hardsigmoid",
        "Hardshrink",
        "Softshrink",
        "Sigmoid",
        "Tanh",
        "Elu",
        "Gelu",
        "Silu",
        "Mish",
        "Softplus",
        "LogSigmoid",
    )
)


# How far probabilities may add up to something else than 1; float32 rounds far less.
_ROUNDING = 1e-3


@dataclass
class _Seen:
    """What is seen of a parameter.

    Attributes:
        read: whether outputs read it.
        moved: whether it has any gradient.
        shared: whether one of its elements has gradient from both halves of the outputs.
    """

    read: bool = False
    moved: bool = False
    shared: bool = False

    @property
    def single(self) -> bool:
        """Whether outputs move it, but no element together."""
        return self.moved and not self.shared

    @property
    def idle(self) -> bool:
        """Whether outputs read it and never move."""
        return self.read and not self.moved

    def __ior__(self, other: _Seen) -> _Seen:
        return _Seen(
            self.read or other.read, self.moved or other.moved, self.shared or other.shared
        )


def shared_modules(
    model: nn.Module, shape: Sequence[int] | None, images: Tensor | None, num_classes: int | None
) -> tuple[str, ...]:
    """Paths of the modules with an element of a parameter that two outputs or more move.

    Rows of a linear classifier have gradient from one each, and heads that no output reads have
    none. An element that two outputs move is seen in a split of the outputs into halves that parts
    the two: both halves give it gradient. Dead units hide nothing: gradients pass through ReLUs and
    the like whatever their derivative, and are taken under several draws of weights and images.

    Raises KdxError where outputs are log-probabilities of fewer than four classes, all of which
    move every parameter; for a module that outputs read and never move; and for one that holds
    parameters of both kinds.
    """
    names = {id(p): name for name, p in model.named_parameters()}  # of tied ones, the first
    with undisturbed(model), torch.enable_grad():
        seen = _looked_at(model, shape, images, num_classes)
    shared = []
    for path, module in model.named_modules():
        mine = [names[id(p)] for p in module.parameters(recurse=False) if _has_gradient(p)]
        # A scripted module inside another may not take the drawn parameters, and seems unread.
        scripted = isinstance(module, torch.jit.ScriptModule)
        if _is_shared(path, {name: seen[name] for name in mine}, scripted):
            shared.append(path)
    return tuple(shared)


def _is_shared(path: str, seen: Mapping[str, _Seen], scripted: bool) -> bool:
    """Whether outputs share the module of the parameters that were ``seen``."""
    together = [name for name, one in seen.items() if one.shared]
    single = [name for name, one in seen.items() if one.single]
    idle = [name for name, one in seen.items() if one.idle]
    if together and single:
        raise mixed(path, together[0], single[0])
    if scripted:
        idle += [name for name, one in seen.items() if not one.read]
    if idle and not together:
        raise KdxError(
            f"whether outputs share module {path!r} can't be found out, as none of them moves "
            f"with {idle[0]!r} on any image tried; {_NAME_THEM}"
        )
    return bool(together)


def mixed(path: str, shared: str, single: str) -> KdxError:
    """The error for a module that holds a parameter that subtasks share, and a single one's."""
    return KdxError(
        f"module {path!r} holds {shared!r}, which subtasks share, beside {single!r} of the "
        "classifier; put one of them into a module of its own, as modules are probed whole, or "
        "name modules without them as groups="
    )


def _has_gradient(parameter: Tensor) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _looked_at(
    model: nn.Module, shape: Sequence[int] | None, images: Tensor | None, num_classes: int | None
) -> dict[str, _Seen]:
    """What is seen of every parameter by name, over several draws of weights and images."""
    generator = torch.Generator().manual_seed(0)  # the same groups on every call
    for by in (_MOVED, 0.0):  # as they are, if moving them makes a gradient that is not finite
        moved = _moved(model, by, generator)
        outputs, batch = _outputs(model, moved, shape, images, num_classes, generator)
        splits = list(_splits(outputs.shape[1], generator))
        splits = splits[_DRAWS:] or splits  # as many follow under the draws
        seen, finite = _seen(outputs, moved, splits, generator)
        if finite:
            break
    for draw in range(_MOST_DRAWS):
        if draw >= _DRAWS and all(one.moved for one in seen.values() if one.read):
            break
        moved = _redrawn(model, generator) if draw % 2 else _moved(model, 1.0, generator)
        # Larger than normalised images are.
        drawn = 3 * torch.randn(batch.shape, generator=generator).to(batch)
        try:
            given = torch.func.functional_call(model, moved, (drawn,))
            outputs = answer(given, len(drawn), num_classes)
            splits = list(_splits(outputs.shape[1], generator))[:1]
            more, finite = _seen(outputs, moved, splits, generator)
        # A forward may not know such images or weights; nothing is concluded from them.
        except Exception:
            continue
        if finite:
            for name, one in more.items():
                seen[name] |= one
    return seen


def _seen(
    outputs: Tensor, moved: dict[str, Tensor], splits: Sequence[Tensor], generator: torch.Generator
) -> tuple[dict[str, _Seen], bool]:
    """What is seen of every parameter in some splits of the outputs into two halves.

    Behind it stands whether all gradients are finite. One that is not counts as gradient, and is
    named where it is used.
    """
    K = outputs.shape[1]
    if bool((outputs > 0).all()) and _add_up_to_one(outputs):
        outputs = outputs.log()  # of a softmax
    normalised = _add_up_to_one(outputs.detach().double().exp())
    if K < 2 or (normalised and K < 4):
        raise KdxError(
            f"which modules serve several of {K} outputs can't be found out; {_NAME_THEM}"
        )
    _let_through(outputs)
    seen = {name: _Seen() for name in moved}
    finite = True
    moved = {name: parameter for name, parameter in moved.items() if parameter.requires_grad}
    for half in splits:
        both = []
        for chosen in (half, ~half):
            weights = _weights(outputs, chosen, normalised, generator)
            both.append(_gradients(outputs, list(moved.values()), weights))
        for name, one, other in zip(moved, *both, strict=True):
            if one is None or other is None:
                continue
            finite &= bool(one.isfinite().all() and other.isfinite().all())
            seen[name] |= _seen_in(one, other, normalised)
    return seen, finite


def _add_up_to_one(outputs: Tensor) -> bool:
    """Whether every row does, but for rounding."""
    return bool((outputs.detach().double().sum(dim=1) - 1).abs().max() < _ROUNDING)


def _weights(
    outputs: Tensor, chosen: Tensor, normalised: bool, generator: torch.Generator
) -> Tensor:
    """Drawn weights of the ``chosen`` outputs, 0 of the others.

    Of log-probabilities only differences are free, so theirs add up to zero.
    """
    ones = chosen.to(outputs.device)
    weights = torch.randn(outputs.shape, generator=generator).to(outputs) * ones
    if normalised:
        mean = weights.sum(dim=1, keepdim=True) / chosen.sum()
        weights = weights - mean * ones
    return weights


def _seen_in(one: Tensor, other: Tensor, normalised: bool) -> _Seen:
    """What is seen of a parameter in its gradients from one and the other half of the outputs."""
    a, b = _sizes(one), _sizes(other)
    # Differences of log-probabilities cancel what a half does not move up to rounding, logits
    # exactly.
    least = torch.finfo(a.dtype).eps ** 0.5 * torch.maximum(a, b).max() if normalised else 0.0
    return _Seen(True, bool(a.any() | b.any()), bool(((a > least) & (b > least)).any()))


def _sizes(gradient: Tensor) -> Tensor:
    """Absolute values, of both parts of a complex number; NaN is 1, as it counts as gradient."""
    parts = torch.view_as_real(gradient) if gradient.is_complex() else gradient
    return parts.nan_to_num(nan=1.0).abs()


def _let_through(outputs: Tensor) -> None:
    """Let gradients pass through saturated activations in the graph of ``outputs``.

    Each does by a factor of its own. Factors are drawn, so that what passes in two ways does not
    cancel, as in relu(x) + relu(−x).
    """
    generator = torch.Generator().manual_seed(0)

    def through(
        given: tuple[Tensor | None, ...], behind: tuple[Tensor | None, ...]
    ) -> tuple[Tensor | None, ...]:
        passed, delta = given[0], behind[0]
        if passed is None or delta is None or passed.shape != delta.shape:
            return given
        factors = 0.5 + torch.rand(delta.shape, generator=generator).to(delta)
        return passed.where(passed != 0, factors * delta), *given[1:]

    for node in nodes(outputs):
        if node.name().startswith(_SATURATING):
            node.register_hook(through)


def nodes(outputs: Tensor) -> Iterator[Any]:
    """The nodes of the graph behind ``outputs``."""
    seen: set[Any] = set()
    waiting = [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
            yield node


def _gradients(
    outputs: Tensor, parameters: list[Tensor], weights: Tensor
) -> tuple[Tensor | None, ...]:
    if not outputs.requires_grad:
        raise KdxError(
            "the outputs carry no gradient; does forward run under torch.no_grad()? If not, "
            f"{_NAME_THEM}"
        )
    return torch.autograd.grad(outputs, parameters, weights, retain_graph=True, allow_unused=True)


def _splits(K: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random halves of K outputs, each as a mask.

    There are so many that two outputs fall into one half every time once in 4K² or less.
    """
    for _ in range(2 * math.ceil(math.log2(K)) + 2 if K > 2 else 1):
        half = torch.zeros(K, dtype=torch.bool)
        half[torch.randperm(K, generator=generator)[: K // 2]] = True
        yield half


def _moved(model: nn.Module, by: float, generator: torch.Generator) -> dict[str, Tensor]:
    """The parameters, moved by a share of their size."""
    moved = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().clone()
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator).to(value)
            # Zeros have no size to be moved by; they are given that of weights, as usual.
            size = value.square().mean().sqrt().clamp(min=_MOVED)
            value += by * size * noise
        moved[name] = value.requires_grad_() if _has_gradient(value) else value
    return moved


def _redrawn(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Parameters as initialisation could have drawn them, so that no bias keeps a unit dead."""
    drawn = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().clone()
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator))
            if value.ndim > 1:
                value *= (2 * len(value) / value.numel()) ** 0.5  # by He et al. 2015
            else:
                value *= _MOVED
                value += float(name.endswith("weight"))  # of a normalisation
        drawn[name] = value.requires_grad_() if _has_gradient(value) else value
    return drawn


def _outputs(
    model: nn.Module,
    moved: dict[str, Tensor],
    shape: Sequence[int] | None,
    images: Tensor | None,
    num_classes: int | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Outputs under the ``moved`` parameters on a few images that fit, and these images."""
    failed = ""
    batches = _guesses(model, shape, generator) if images is None else [images[:_IMAGES]]
    for batch in batches:
        try:
            given = torch.func.functional_call(model, moved, (batch.clone(),))
        except Exception as error:  # whatever a model raises on images that don't fit it
            failed = " ".join(str(error).split())[:200] or type(error).__name__
            continue
        return answer(given, len(batch), num_classes), batch
    raise KdxError(
        f"{type(model).__name__} can't be run to see what its outputs share ({failed}); "
        f"{_NAME_THEM}"
    )


def _guesses(
    model: nn.Module, shape: Sequence[int] | None, generator: torch.Generator
) -> Iterator[Tensor]:
    """Random images of ``shape``, or of common ones."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = (3, 1) if first is None else (first.in_channels,)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        channels = tuple(dict.fromkeys((3, 1, *channels)))  # the first may be scripted
    shapes = [(C, side, side) for side in _SIDES for C in channels]
    for size in shapes if shape is None else [tuple(shape)]:
        yield fitted(torch.randn(_IMAGES, *size, generator=generator), model)

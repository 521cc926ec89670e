"""Which modules serve several outputs of a model, found from forward and backward passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.probes.subject import undisturbed
from kdx_analysis.probes.subtasks import answer

_IMAGES = 4
_SIDES = (32, 224, 28, 8, 64, 96, 128, 160, 192, 256, 288, 299, 384)
# Weights are moved by a tenth of their size, so that none is zero by initialisation and hides what lies before it.
_MOVED = 0.1
_NAME_THEM = "name the modules that subtasks share, level by level, as groups=[['conv1', 'conv2']]"


def shared_modules(
    model: nn.Module, shape: Sequence[int] | None, images: Tensor | None, num_classes: int | None
) -> tuple[str, ...]:
    """Paths of the modules with a parameter of which one element has gradient from two outputs or more.

    Rows of a linear classifier have gradient from one each, and heads that no output reads have none. An element that
    two outputs move is seen in a split of the outputs into halves that parts the two: both halves give it gradient.
    Where no half does, although the outputs' graph holds the module, it is shared by what it does elsewhere and stays.

    Raises KdxError where outputs are log-probabilities of fewer than four classes, all of which move every parameter.
    """
    names = {id(p): name for name, p in model.named_parameters()}  # of tied ones, the first
    generator = torch.Generator().manual_seed(0)  # the same groups on every call
    with undisturbed(model), torch.enable_grad():
        for by in (_MOVED, 0.0):  # as they are, if moving them makes a gradient that is not finite
            outputs, moved = _moved_outputs(model, shape, images, num_classes, by, generator)
            seen, finite = _seen(outputs, moved, generator)
            if finite:
                break
    return tuple(
        path
        for path, module in model.named_modules()
        if any(seen.get(names[id(p)], False) for p in module.parameters(recurse=False))
    )


def _seen(outputs: Tensor, moved: dict[str, Tensor], generator: torch.Generator) -> tuple[dict[str, bool], bool]:
    """Whether an element of each parameter has gradient from two outputs, or none has any from an output that reads it.

    And whether all gradients are finite: one that is not counts as gradient, and is named where it is used.

    Of log-probabilities only differences are free, so each half's weights add up to zero.
    """
    K = outputs.shape[1]
    if bool((outputs > 0).all()) and bool((outputs.detach().double().sum(dim=1) - 1).abs().max() < 1e-3):
        outputs = outputs.log()  # of a softmax
    normalised = bool((outputs.detach().double().exp().sum(dim=1) - 1).abs().max() < 1e-3)  # float32 rounds far less
    if K < 2 or (normalised and K < 4):
        raise KdxError(f"which modules serve several of {K} outputs can't be found out; {_NAME_THEM}")
    shared = dict.fromkeys(moved, False)
    idle = dict.fromkeys(moved, True)
    read = dict.fromkeys(moved, False)
    finite = True
    for half in _halves(K, generator):
        both = []
        for chosen in (half, ~half):
            weights = torch.randn(outputs.shape, generator=generator).to(outputs) * chosen.to(outputs.device)
            if normalised:
                mean = weights.sum(dim=1, keepdim=True) / chosen.sum()
                weights = weights - mean * chosen.to(outputs.device)
            both.append(_gradients(outputs, list(moved.values()), weights))
        for name, one, other in zip(moved, *both, strict=True):
            read[name] |= one is not None
            if one is not None and other is not None:
                finite &= bool(one.isfinite().all() and other.isfinite().all())
                one, other = one.nan_to_num(nan=1.0), other.nan_to_num(nan=1.0)
                # Differences of log-probabilities cancel what a half does not move up to rounding, logits exactly.
                least = torch.finfo(one.dtype).eps ** 0.5 * torch.maximum(one.abs().max(), other.abs().max())
                least = least if normalised else torch.zeros_like(least)
                shared[name] |= bool(((one.abs() > least) & (other.abs() > least)).any())
                idle[name] &= not bool(one.any() | other.any())
    return {name: shared[name] or (read[name] and idle[name]) for name in moved}, finite


def _gradients(outputs: Tensor, parameters: list[Tensor], weights: Tensor) -> tuple[Tensor | None, ...]:
    if not outputs.requires_grad:
        raise KdxError(f"the outputs carry no gradient; does forward run under torch.no_grad()? If not, {_NAME_THEM}")
    return torch.autograd.grad(outputs, parameters, weights, retain_graph=True, allow_unused=True)


def _halves(K: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random halves of K outputs, so many that two outputs fall into one half every time once in 4K² or less."""
    for _ in range(2 * math.ceil(math.log2(K)) + 2 if K > 2 else 1):
        half = torch.zeros(K, dtype=torch.bool)
        half[torch.randperm(K, generator=generator)[: K // 2]] = True
        yield half


def _moved_outputs(
    model: nn.Module,
    shape: Sequence[int] | None,
    images: Tensor | None,
    num_classes: int | None,
    by: float,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs on a few images under weights that are moved by a share of their size, and these weights."""
    moved = {}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        size = parameter.detach().square().mean().sqrt().clamp(min=_MOVED)  # of zeros, as weights usually are
        moved[name] = (parameter.detach() + by * size * noise).requires_grad_()
    failed = ""
    for batch in [images[:_IMAGES]] if images is not None else _guesses(model, shape, generator):
        try:
            given = torch.func.functional_call(model, moved, (batch.clone(),))
        except Exception as error:  # whatever a model raises on images that don't fit it
            failed = " ".join(str(error).split())[:200] or type(error).__name__
            continue
        return answer(given, len(batch), num_classes), moved
    raise KdxError(f"{type(model).__name__} can't be run to see what its outputs share ({failed}); {_NAME_THEM}")


def _guesses(model: nn.Module, shape: Sequence[int] | None, generator: torch.Generator) -> Iterator[Tensor]:
    """Random images of ``shape``, or of common ones."""
    like = next(model.parameters(), torch.empty(0))
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = (3, 1) if first is None else (first.in_channels,)
    shapes = [(c, side, side) for side in _SIDES for c in channels] if shape is None else [tuple(shape)]
    for size in shapes:
        yield torch.randn(_IMAGES, *size, generator=generator).to(like)

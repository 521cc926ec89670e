"""What probes take for granted, held against the model: it is a fixed function of each image alone.

And what gradients of single samples add up to, held against plain autograd.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.models.modes import undisturbed
from kdx_analysis.probes.conflict.parts import Piece
from kdx_analysis.probes.subtasks import Asked, computes_in


def check_fixed_function(
    model: nn.Module, images: Tensor, num_classes: int | None = None, at_once: int | None = None
) -> Tensor:
    """The model's outputs on ``images``, B×K, if those on the set's halves are the same.

    The halves are drawn at random, so that no order in the set hides what passes between its
    images; a half of one image has it twice, since some models can't take one. A set of more than
    ``at_once`` images is looked at part by part.

    Raises KdxError otherwise, which names the module that is random in eval mode or that computes
    an image's outputs from other images.
    """
    parts = images.tensor_split(-(-len(images) // (at_once or len(images))))
    return torch.cat([_checked(model, part, num_classes) for part in parts])


def _checked(model: nn.Module, images: Tensor, num_classes: int | None) -> Tensor:
    """:func:`check_fixed_function` of images that are run on together."""
    run = Asked(model, num_classes)
    with undisturbed(model), torch.no_grad():
        whole = _drawing_nothing(model, run, images)
        _check_trace(model, images)
        apart = torch.empty_like(whole)
        halves = _halves(len(images))
        for half in halves:
            apart[half] = _of_half(run, images, half)
        if _same(whole, apart):
            return whole
        if not _same(whole, run(images)):
            raise _changing(model, run, images)
        half = halves[0]
        path, module, difference = _first_apart(model, run, images, images[half], half)
    rounding = (
        "" if whole.dtype == torch.float64 else ". If this is rounding alone, probe model.double()"
    )
    raise KdxError(
        f"{_named(model, path, module)} computes an image's outputs from the other images of its "
        f"batch, in eval mode too: on half of the images they are others, by {difference:.2g} of "
        "their size. Conflict adds up gradients of single images, which such a model has none of; "
        f"{_remedy(module)}{rounding}"
    )


def _drawing_nothing(model: nn.Module, run: Asked, images: Tensor) -> Tensor:
    """The outputs, if nothing is drawn for them and nothing is in half precision."""
    before = _random_states(images)
    with _Dtypes() as computed:
        outputs = run(images)
    if coarse := sorted(map(str, computed.dtypes & {torch.float16, torch.bfloat16})):
        raise KdxError(computes_in(coarse[0]))
    if _random_states(images) == before:
        return outputs
    where = _named(model, *_first_to_draw(model, run, images))
    raise KdxError(
        f"{where} is random in eval mode: it draws from the random state of torch, NumPy or "
        "Python, so that a second pass over the same images may give other outputs. A gradient "
        "then belongs to no fixed function; let it draw nothing in eval mode, as nn.Dropout and "
        "F.dropout(x, training=self.training) do"
    )


def _changing(model: nn.Module, run: Asked, images: Tensor) -> KdxError:
    """The error for a model whose second pass over the same images gives other outputs."""
    state = _changed(model, run, images)
    path, module, difference = _first_apart(model, run, images, images)
    generator = "it changes a state, or draws from a generator, of its own"
    why = f"it changes {state!r}" if state else generator
    return KdxError(
        f"{_named(model, path, module)} is no fixed function in eval mode: a second pass over the "
        f"same images gives other outputs, by {difference:.2g} of their size, as {why}. A gradient "
        "then belongs to none; let its forward change and draw nothing in eval mode"
    )


def check_margins(margins: Callable[[Tensor], Tensor] | None, outputs: Tensor) -> None:
    """KdxError if ``margins`` of one image read outputs of another, or have no gradient by them.

    Gradients of one half's margins by the other half's outputs are exactly zero where nothing
    passes between them.
    """
    if margins is None:
        return
    with torch.enable_grad():
        leaf = outputs.detach().clone().requires_grad_()
        given = margins(leaf)
        if not given.requires_grad:
            raise KdxError(
                "margins= gives no gradient by the model's outputs; write it in torch's operations"
            )
        # Weights are drawn, so that no gradients cancel; the same ones each time.
        weights = torch.randn(given.shape, generator=torch.Generator().manual_seed(0)).to(given)
        for half in _halves(len(outputs)):
            (gradient,) = torch.autograd.grad(given[half], leaf, weights[half], retain_graph=True)
            gradient = gradient.nan_to_num()  # what is not finite is named where it is used
            gradient[half] = 0
            if len(outputs) > 1 and gradient.any():
                raise KdxError(
                    "margins= computes an image's margins from the outputs of other images; take "
                    "what it computes over the batch out of it"
                )


def agree(
    pieces: Sequence[Piece],
    gradients: Mapping[str, Tensor],
    plain: Mapping[str, list[Tensor]],
) -> set[str]:
    """Names of the layers whose gradients, parameter by parameter, are plain autograd's.

    Those of a piece, U×c×d, are held against what plain autograd gives of it. A disagreement costs
    time, never a number.
    """
    right = set()
    levels: dict[int, float] = {}
    for piece in pieces:
        size = sum(_norm(gradient) ** 2 for gradient in plain[piece.layer.name])
        levels[piece.layer.level] = levels.get(piece.layer.level, 0.0) + size
    for piece in pieces:
        layer = piece.layer
        if layer.name not in gradients:
            continue
        eps, level = torch.finfo(plain[layer.name][0].dtype).eps, levels[layer.level]
        expected = layer.joined(plain[layer.name])[:, piece.rows]
        pairs = zip(piece.segments(gradients[layer.name]), piece.segments(expected), strict=True)
        if all(_agrees(gradient, wanted, eps, level) for gradient, wanted in pairs):
            right.add(layer.name)
    return right


def _agrees(gradient: Tensor, expected: Tensor, eps: float, level: float) -> bool:
    """Whether a parameter's gradient is the one expected; ``level`` is its level's squared norm."""
    if not bool(expected.isfinite().all()):
        return True  # compares with nothing; it is named with its level and subtask
    # The square root of the rounding unit is half of the digits: float32 rounds a gradient to 1e-6
    # of its norm, and an error of the way is far larger. A gradient that cancels to nothing, as of
    # a bias before a normalisation, is rounding alone, of the size of its level's.
    allowed = eps**0.5 * _norm(expected) + 32 * eps * level**0.5
    return _norm(gradient - expected) <= allowed


def _norm(tensor: Tensor) -> float:
    """In float64, since the square of a large float32 overflows."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


class _Dtypes(TorchDispatchMode):
    """Collects the dtypes that operations inside the body give, autocast's among them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        self.dtypes |= {part.dtype for part in tree_leaves(given) if isinstance(part, Tensor)}
        return given


def _random_states(images: Tensor) -> tuple[Any, ...]:
    """torch's state, on the images' device too, NumPy's and Python's, to be compared."""
    states = [torch.get_rng_state()]
    if images.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(images.device))
    return (
        [state.tolist() for state in states],
        pickle.dumps(np.random.get_state()),
        random.getstate(),
    )


def _first_to_draw(model: nn.Module, run: Asked, images: Tensor) -> tuple[str, nn.Module]:
    """Path and module of the innermost call that draws: the first to end with another state."""
    entered: dict[int, list[tuple[Any, ...]]] = {}
    drawing: list[tuple[str, nn.Module]] = []

    def before(module: nn.Module, inputs: Any) -> None:
        entered.setdefault(id(module), []).append(_random_states(images))

    def after(path: str) -> Callable[..., None]:
        def compare(module: nn.Module, inputs: Any, output: Any) -> None:
            if entered[id(module)].pop() != _random_states(images):
                drawing.append((path, module))

        return compare

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(after(path)).remove)
        run(images)
    return drawing[0] if drawing else ("", model)


def _changed(model: nn.Module, run: Asked, images: Tensor) -> str:
    """Name of the first buffer or parameter that a pass changes; '' if it changes none."""
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    run(images)
    now = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    return next((name for name, tensor in before.items() if not torch.equal(tensor, now[name])), "")


def _halves(B: int) -> tuple[Tensor, ...]:
    """B images in two random halves, the same ones each time."""
    return torch.randperm(B, generator=torch.Generator().manual_seed(0)).chunk(2)


def _of_half(run: Asked, images: Tensor, half: Tensor) -> Tensor:
    given = images[half] if len(half) > 1 else images[half.repeat(2)]
    try:
        return run(given)[: len(half)]
    except KdxError:
        raise
    except Exception as error:  # whatever a model raises on a batch of another size
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise KdxError(
            f"the model runs on {len(images)} images and not on {len(given)} of them ({reason}); "
            "its forward must take batches of any size"
        ) from error


def _check_trace(model: nn.Module, images: Tensor) -> None:
    """KdxError if calling an explainer gives something else than its forward, as by a hook."""
    if not isinstance(model, HME) or not (
        model._forward_hooks or model._forward_pre_hooks or type(model).forward is not HME.forward
    ):
        return
    called = model(images.clone())
    if not isinstance(called, Tensor) or not _same(HME.forward(model, images.clone()), called):
        raise KdxError(
            f"a hook on the explainer, or the forward of {type(model).__name__}, changes its "
            "outputs; its probes read what lies on the way and would miss that. Change its heads "
            "instead"
        )


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether outputs are the same but for rounding.

    That is, up to three times the square root of the rounding unit (1e-3 in float32) of how far
    they vary over images, and to a few hundred units of their size: what float32 leaves of a deep
    network's outputs under another batch size.
    """
    if not bool(a.isfinite().all() and b.isfinite().all()):
        return True  # named where it is used
    eps = torch.finfo(a.dtype).eps
    varies = (a - a.mean(dim=0)).abs().max()
    return bool((a - b).abs().max() <= 3 * eps**0.5 * varies + 256 * eps * a.abs().max())


@dataclass(frozen=True)
class _Called:
    """A module's call, with the tensors that went in and came out."""

    path: str
    module: nn.Module
    inputs: list[Tensor]
    outputs: list[Tensor]


def _calls(model: nn.Module, run: Asked, images: Tensor) -> list[_Called]:
    """Every module's call on ``images``, in the order in which they end."""
    calls: list[_Called] = []
    entered: dict[int, list[list[Tensor]]] = {}

    def before(module: nn.Module, inputs: Any, named: Any) -> None:
        entered.setdefault(id(module), []).append(_copies((*inputs, *named.values())))

    def after(path: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            calls.append(_Called(path, module, entered[id(module)].pop(), _copies(output)))

        return keep

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                stack.callback(
                    module.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove
                )
                stack.callback(module.register_forward_hook(after(path)).remove)
        run(images)
    return calls


def _copies(given: Any) -> list[Tensor]:
    if isinstance(given, Tensor):
        return [given.detach().clone()]
    if isinstance(given, dict):
        given = tuple(given.values())
    if not isinstance(given, list | tuple):
        return []
    copies = []
    for part in given:
        copies += _copies(part)
    return copies


def _first_apart(
    model: nn.Module, run: Asked, images: Tensor, others: Tensor, rows: Tensor | None = None
) -> tuple[str, nn.Module, float]:
    """Path and module of the first call that makes different outputs of the same inputs.

    The model itself where no call inside it does. Behind them stands how far the outputs differ, as
    a share of their size. ``others`` are the ``rows`` of ``images``, by default all.
    """
    first, second = _calls(model, run, images), _calls(model, run, others)

    def difference(a: list[Tensor], b: list[Tensor]) -> float:
        """The largest of all tensors, of those with a row an image in these rows."""
        largest = 0.0
        for whole, part in zip(a, b, strict=False):
            if not whole.ndim:
                continue
            if rows is not None and len(whole) == len(images) and len(part) == len(others):
                whole = whole[rows]
            largest = max(largest, _difference(whole, part))
        return largest

    for a, b in zip(first, second, strict=False):
        if a.path != b.path:
            break
        if not difference(a.inputs, b.inputs) and (by := difference(a.outputs, b.outputs)):
            return a.path, a.module, by
    whole, part = run(images), run(others)
    by = float(((whole if rows is None else whole[rows]) - part).abs().max() / whole.abs().max())
    return "", model, by


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest, as a share of the size; 0 for rounding and for what can't be compared."""
    if a.shape != b.shape or not a.is_floating_point() or not a.numel():
        return 0.0
    if _same(a.reshape(len(a), -1), b.reshape(len(b), -1)):
        return 0.0
    return float((a - b).abs().max() / a.abs().max())


def _named(model: nn.Module, path: str, module: nn.Module) -> str:
    if path:
        return f"module {path!r} ({type(module).__name__})"
    return f"the forward of {type(model).__name__} itself"


def _remedy(module: nn.Module) -> str:
    if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is None:
        return "give it running statistics (track_running_stats=True) or take GroupNorm"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "let its eval() use the running statistics"
    return "take what is computed over the batch out of it, or fix it at what training saw"

"""Gradients of all subtasks' losses at once, as Gram matrices per level and expert.

A subtask's gradient is g_k = Σ_b r_bk ∂m_bk/∂θ with the residual r = ∂L/∂m, so one set of per-sample gradients of
the margins serves every loss and every permutation of its residual. Per-sample gradients live for one subtask and
one chunk of samples and layers at a time; only their weighted sums are held, and only K×K Gram matrices returned.

Sums for R sets take R·B·K·D products, a Gram matrix of the B·K per-sample gradients, of which every set would be a
quadratic form, (B·K)²·D: more, as long as R is below B·K (2,000 for 200 images of ten classes).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, StagedNet, Trace
from kdx_analysis.models.splitting.stages import MAX_STAGES, find_stages

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Grams:
    """Inner products of subtask gradients, for R sets of residuals.

    Attributes:
        experts: per level l = 1…L (trunk first) R×N_l×K×K: G^i_ab, inner products within expert i. On the last
            level they are ⟨h^i_a, h^i_b⟩, without the gates' factor, if ``gates`` is given.
        gates: α^{L+1}, K×N_L, by which h becomes g (g^i_a = α_ai h^i_a), or None where ``experts`` holds the
            actual gradients of the last level too.
    """

    experts: tuple[Tensor, ...]
    gates: Tensor | None

    def subset(self, draws: slice) -> Grams:
        """The Gram matrices of some of the R sets."""
        return Grams(tuple(expert[draws] for expert in self.experts), self.gates)

    def inside(self, level: int) -> Tensor:
        """G^i of the actual gradients inside every expert of ``level`` (from 1), R×N_l×K×K."""
        inner = self.experts[level - 1]
        if level == len(self.experts) and self.gates is not None:
            return torch.einsum("ai,bi,riab->riab", self.gates, self.gates, inner)
        return inner

    def level(self, level: int) -> Tensor:
        """G of the actual gradients on ``level`` (from 1), R×K×K."""
        return self.inside(level).sum(dim=1)

    def total(self) -> Tensor:
        """G over trunk and all experts, R×K×K."""
        return torch.stack([self.level(level) for level in range(1, len(self.experts) + 1)]).sum(dim=0)


def residuals(loss: Callable[[Tensor], Tensor], margins: Tensor) -> Tensor:
    """r_bk = ∂L_bk/∂m_bk of a B×K loss whose entry (b, k) depends on m_bk alone."""
    leaf = margins.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return gradient


def with_null(residual: Tensor, draws: int, seed: int) -> Tensor:
    """The residual B×K and, as the null of conflict, its rows permuted over samples ``draws`` times: (1 + R)×B×K.

    The model stays as it is, and so does what the cut into subtasks does to a row. The same seed permutes alike.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(residual), generator=generator) for _ in range(draws)]
    return torch.stack([residual, *(residual[order.to(residual.device)] for order in orders)])


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the body; every module's own mode is restored, also when the body raises."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def in_full(model: M) -> M:
    """The model, or a float32 copy of one in half precision, in which gradients' angles are too coarse."""
    halves = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    return copy.deepcopy(model).float() if halves else model


def not_finite(values: Tensor) -> list[int]:
    """Subtasks, along the last axis, of which a value is NaN or infinite."""
    return (~values.isfinite()).flatten(0, -2).any(dim=0).nonzero().flatten().tolist()


def subtask_grams(
    model: nn.Module,
    images: Tensor,
    residuals: Tensor,
    *,
    margins: Callable[[Tensor], Tensor] | None = None,
    groups: Sequence[Sequence[str]] | None = None,
    max_memory: int = 2**30,
) -> Grams:
    """Gram matrices of the subtasks' gradients: of an explainer over trunk and experts, of another model over groups.

    Args:
        model: an explainer, or any model that gives B×K; BN in eval mode while probing, everything left as it was
            found.
        images: normalised, B×C×H×W.
        residuals: R×B×K, one B×K set for each loss or null draw.
        margins: from the model's outputs to the margins that the losses are about (B×K → B×K), where these are
            not the outputs themselves; then an explainer's last level holds actual gradients.
        groups: of a model without gates, paths of the modules with parameters that make up each level;
            by default its :func:`module_groups`.
        max_memory: bytes for the summed gradients held at once; less means more backward passes.

    Raises:
        KdxError: a gradient that is not finite, named by level and subtask; images and residuals that don't belong
            together; a model in half precision.
    """
    parts = _Parts.of(model, margins, groups, images)
    if residuals.ndim != 3 or len(images) != residuals.shape[1] or not len(images):
        raise KdxError(f"residuals of shape {tuple(residuals.shape)} don't fit {len(images)} images")
    R, _, K = residuals.shape
    grams = [residuals.new_zeros(R, n, K, K) for n in parts.experts]
    with undisturbed(model), torch.enable_grad():
        for chunk in _chunks(parts.layers, R * K * residuals.element_size(), max_memory):
            sums = [residuals.new_zeros(R, K, layer.size) for layer in chunk]
            for rows in torch.arange(len(images)).split(_samples_at_once(max_memory, images, chunk)):
                for k, add in _per_sample(parts, chunk, images[rows], K):
                    for total, gradients in zip(sums, add, strict=True):
                        total[:, k] += residuals[:, rows, k] @ gradients
            for layer, total in zip(chunk, sums, strict=True):
                g = total.unflatten(2, (layer.experts, -1)).transpose(1, 2)
                grams[layer.level] += g @ g.transpose(-1, -2)
    for level, gram in enumerate(grams, 1):
        _check_finite(level, gram.diagonal(dim1=-2, dim2=-1))
    alpha = model.attention()[-1].detach() if isinstance(model, HME) and parts.ungated else None
    return Grams(tuple(grams), alpha)


def subtask_gradients(
    model: nn.Module,
    images: Tensor,
    residuals: Tensor,
    *,
    margins: Callable[[Tensor], Tensor] | None = None,
    groups: Sequence[Sequence[str]] | None = None,
    max_memory: int = 2**30,
) -> dict[str, Tensor]:
    """The gradients that :func:`subtask_grams` takes products of: parameter's name → R×K×(its shape).

    All are held at once, R·K·D numbers, whatever ``max_memory``, which bounds what is held beside them. Raises
    KdxError as it does.
    """
    parts = dataclasses.replace(_Parts.of(model, margins, groups, images), ungated=False)
    R, _, K = residuals.shape
    sums = [residuals.new_zeros(R, K, layer.size) for layer in parts.layers]
    with undisturbed(model), torch.enable_grad():
        for rows in torch.arange(len(images)).split(_samples_at_once(max_memory, images, parts.layers)):
            for k, add in _per_sample(parts, parts.layers, images[rows], K):
                for total, gradients in zip(sums, add, strict=True):
                    total[:, k] += residuals[:, rows, k] @ gradients
    for layer, total in zip(parts.layers, sums, strict=True):
        _check_finite(layer.level + 1, total.transpose(1, 2))
    found = [layer.apart(total) for layer, total in zip(parts.layers, sums, strict=True)]
    return {name: gradient for layer in found for name, gradient in layer.items()}


@dataclass(frozen=True)
class Cost:
    """What a probe will take; costs of one thing after the other add up.

    Attributes:
        forwards, backwards: passes, each over at most ``batch`` images.
        values: numbers in the summed gradients of all residuals, K·D for each set.
        held: bytes of them that are held at once.
    """

    forwards: int
    backwards: int
    batch: int
    values: int
    held: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.forwards + other.forwards, self.backwards + other.backwards, max(self.batch, other.batch),
            self.values + other.values, max(self.held, other.held),
        )  # fmt: skip

    def __mul__(self, times: int) -> Cost:
        return dataclasses.replace(
            self, forwards=times * self.forwards, backwards=times * self.backwards, values=times * self.values
        )

    def __str__(self) -> str:
        return (
            f"{self.forwards} forward and {self.backwards} backward passes over up to {self.batch} images each, "
            f"{self.held / 2**20:.0f} MiB of gradients at once"
        )


def probing_cost(
    model: nn.Module,
    images: Tensor,
    num_classes: int,
    sets: int,
    *,
    margins: Callable[[Tensor], Tensor] | None = None,
    groups: Sequence[Sequence[str]] | None = None,
    max_memory: int = 2**30,
) -> Cost:
    """Passes and memory of :func:`subtask_grams` on ``images`` with ``sets`` of residuals (losses × (1 + null draws)).

    Layers that don't fit in ``max_memory`` together take passes of their own; nothing is computed here.
    """
    parts = _Parts.of(model, margins, groups, images)
    each = sets * num_classes * images.element_size()
    forwards = backwards = held = batch = 0
    for chunk in _chunks(parts.layers, each, max_memory):
        size = min(len(images), _samples_at_once(max_memory, images, chunk))
        passes = -(-len(images) // size)
        last = len(parts.experts) - 1
        ways = {(layer.rule is None, parts.ungated and layer.level == last) for layer in chunk}
        forwards += passes
        backwards += passes * num_classes * len(ways)
        held, batch = max(held, each * sum(layer.size for layer in chunk)), max(batch, size)
    return Cost(forwards, backwards, batch, sets * num_classes * sum(layer.size for layer in parts.layers), held)


def module_groups(
    model: nn.Module, *, stages: Sequence[str] | None = None, image_shape: Sequence[int] | None = None
) -> tuple[tuple[str, ...], ...]:
    """Paths of a model's modules with parameters of their own, by stage; its classifier is left out.

    The stages are those that an explainer of the model would have; where they can't be found, and are not declared,
    all make up one group, without the last module that has parameters. Raises KdxError if none is left.
    """
    if stages is None and isinstance(model, StagedNet):
        stages = [f"stages.{i}" for i in range(len(model.stages))][-MAX_STAGES:]
    modules = {path: module for path, module in model.named_modules() if any(True for _ in module.parameters(False))}
    try:
        found = find_stages(model, stages, image_shape)
    except KdxError:
        if stages is not None:
            raise
        groups: tuple[tuple[str, ...], ...] = (tuple(modules)[:-1],)
    else:
        owned = [{id(p) for p in part.parameters()} for part in (found.trunk, *found.body)]
        groups = tuple(
            tuple(path for path, module in modules.items() if any(id(p) in ids for p in module.parameters(False)))
            for ids in owned
        )
    if not all(groups):
        raise KdxError(f"{type(model).__name__} has no parameters before its classifier, so subtasks share nothing")
    return groups


@dataclass(frozen=True)
class _Parts:
    """A model as the probe sees it: levels, and the layers on them.

    Attributes:
        experts: N_l of each level.
        layers: every module with parameters of its own on them.
        ungated: whether the last level is to hold gradients without the gates' factor.
    """

    model: nn.Module
    margins: Callable[[Tensor], Tensor] | None
    experts: tuple[int, ...]
    layers: tuple[_Layer, ...]
    ungated: bool

    @classmethod
    def of(
        cls,
        model: nn.Module,
        margins: Callable[[Tensor], Tensor] | None,
        groups: Sequence[Sequence[str]] | None,
        images: Tensor,
    ) -> _Parts:
        halves = sorted({str(p.dtype) for p in model.parameters() if p.dtype not in (torch.float32, torch.float64)})
        if halves:
            raise KdxError(f"gradients in {', '.join(halves)} are too coarse for their angles; probe model.float()")
        if isinstance(model, HME):
            parts = {"trunk": model.trunk, **{f"levels.{i}": level for i, level in enumerate(model.levels)}}
            layers = [
                _Layer(f"{part}.{name}".rstrip("."), module, level, _rule(module), model.experts[level])
                for level, (part, whole) in enumerate(parts.items())
                for name, module in whole.named_modules()
                if any(True for _ in module.parameters(recurse=False))
            ]
            return cls(model, margins, model.experts, tuple(layers), margins is None and not model.input_gated)
        groups = module_groups(model, image_shape=images.shape[1:]) if groups is None else groups
        layers = [
            _Layer(path, module := model.get_submodule(path), level, _rule(module), 1)
            for level, paths in enumerate(groups)
            for path in paths
        ]
        return cls(model, margins, (1,) * len(groups), tuple(layers), False)

    def outputs(self, images: Tensor) -> tuple[Tensor, Trace | None]:
        """Margins that losses are about, B×K, and an explainer's trace."""
        trace = self.model.trace(images) if isinstance(self.model, HME) else None
        given = self.model(images) if trace is None else trace.margins
        return given if self.margins is None else self.margins(given), trace


@dataclass(frozen=True)
class _Layer:
    """A module with parameters of its own, the level (from 0) on which it stands, and the experts there.

    ``rule`` gives its per-sample gradients from one backward pass over the batch; without one they are taken by
    torch.func, sample by sample at once.
    """

    name: str
    module: nn.Module
    level: int
    rule: _Rule | None
    experts: int

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{self.name}.{name}".lstrip("."): p for name, p in self.module.named_parameters(recurse=False)}

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def apart(self, gradients: Tensor) -> dict[str, Tensor]:
        """The layer's gradients, R×K×size in the order in which rules and torch.func give them, by parameter."""
        parameters = self.parameters
        rows = self.experts if self.rule is None else len(next(iter(parameters.values())))
        pieces = gradients.unflatten(2, (rows, -1)).split([p.numel() // rows for p in parameters.values()], dim=3)
        named = zip(parameters.items(), pieces, strict=True)
        return {name: piece.flatten(2).unflatten(2, p.shape) for (name, p), piece in named}


def _check_finite(level: int, values: Tensor) -> None:
    if culprits := not_finite(values):
        raise KdxError(f"gradients on level {level} are not finite (subtasks {culprits}); did the run diverge?")


def _per_sample(
    parts: _Parts, chunk: Sequence[_Layer], images: Tensor, num_classes: int
) -> Iterator[tuple[int, list[Tensor]]]:
    """For every subtask k the gradients ∂m_bk/∂θ of each layer of the chunk, B×size.

    Where ``ungated``, those of the last level are h: ∂m_bk/∂(input of head k) held fixed and no gate's factor.
    """
    last, ungated = len(parts.experts) - 1, parts.ungated
    ruled = [layer for layer in chunk if layer.rule is not None]
    with _captured(ruled) as calls:
        outputs, trace = parts.outputs(images.detach().requires_grad_())
    if outputs.shape != (len(images), num_classes):
        raise KdxError(f"the model gives {tuple(outputs.shape)} where {len(images)}×{num_classes} was expected")
    on_top = [call for call in calls if ungated and call.layer.level == last]
    below = [call for call in calls if call not in on_top]
    for k in range(num_classes):
        found: dict[str, Tensor] = {}
        deltas: list[Tensor] = []
        cotangent: Tensor | None = None
        if below:
            deltas += torch.autograd.grad(
                outputs[:, k].sum(), [call.output for call in below], retain_graph=True, materialize_grads=True
            )
        if ungated:
            assert trace is not None
            (delta,) = torch.autograd.grad(outputs[:, k].sum(), trace.inputs, retain_graph=True)
            cotangent = delta[:, k].unsqueeze(1).expand_as(trace.pooled)
            if on_top:
                deltas += torch.autograd.grad(
                    trace.pooled, [call.output for call in on_top], grad_outputs=cotangent, retain_graph=True
                )
        for call, delta in zip([*below, *on_top], deltas, strict=True):
            assert call.layer.rule is not None
            gradients = call.layer.rule.gradient(call.layer.module, call.prepared, delta).flatten(1)
            found[call.layer.name] = found.get(call.layer.name, 0) + gradients
        for on_last, fixed in ((False, None), (True, cotangent)):
            others = [layer for layer in chunk if layer.rule is None and (ungated and layer.level == last) == on_last]
            if others:
                found |= _by_functions(parts, others, images, k, fixed)
        yield k, [found.get(layer.name, images.new_zeros(len(images), layer.size)) for layer in chunk]


class _Forward(nn.Module):
    """One subtask's margin of one image, or its last features against a fixed cotangent."""

    def __init__(self, parts: _Parts, k: int) -> None:
        super().__init__()
        self.model, self.parts, self.k = parts.model, parts, k

    def forward(self, image: Tensor, cotangent: Tensor | None) -> Tensor:
        outputs, trace = self.parts.outputs(image.unsqueeze(0))
        return outputs[0, self.k] if cotangent is None or trace is None else (trace.pooled[0] * cotangent).sum()


def _by_functions(
    parts: _Parts, layers: Sequence[_Layer], images: Tensor, k: int, cotangent: Tensor | None
) -> dict[str, Tensor]:
    """Per-sample gradients of layers without a rule, each B×size, expert by expert."""
    forward = _Forward(parts, k)
    own = {f"model.{name}": p.detach() for layer in layers for name, p in layer.parameters.items()}

    def value(parameters: dict[str, Tensor], image: Tensor, fixed: Tensor | None) -> Tensor:
        return torch.func.functional_call(forward, parameters, (image, fixed))

    in_dims = (None, 0, None if cotangent is None else 0)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels know no vmap
        gradients = torch.func.vmap(torch.func.grad(value), in_dims=in_dims)(own, images, cotangent)
    return {
        layer.name: torch.cat(
            [gradients[f"model.{name}"].flatten(1).unflatten(1, (layer.experts, -1)) for name in layer.parameters],
            dim=2,
        ).flatten(1)
        for layer in layers
    }


def _chunks(layers: Sequence[_Layer], bytes_each: int, max_memory: int) -> Iterator[list[_Layer]]:
    """Consecutive layers whose summed gradients fit in memory together (at least one at a time)."""
    chunk: list[_Layer] = []
    held = 0
    for layer in layers:
        size = layer.size * bytes_each
        if chunk and held + size > max_memory:
            yield chunk
            chunk, held = [], 0
        chunk.append(layer)
        held += size
    if chunk:
        yield chunk


def _samples_at_once(max_memory: int, images: Tensor, chunk: Sequence[_Layer]) -> int:
    """Samples per forward pass: a few thousand activations for every pixel are allowed for.

    Layers without a rule hold their gradients for all samples, and activations for backward passes side by side.
    """
    values = 4096 * images.shape[-1] * images.shape[-2] + sum(layer.size for layer in chunk if layer.rule is None)
    return max(1, max_memory // (values * images.element_size()))


@dataclass(frozen=True)
class _Call:
    """A layer's call in a forward pass: what its gradients need of its input, and its output on the graph."""

    layer: _Layer
    prepared: Tensor
    output: Tensor


@contextmanager
def _captured(layers: Sequence[_Layer]) -> Iterator[list[_Call]]:
    """Collect every call of ``layers`` inside the body."""
    calls: list[_Call] = []

    def keeper(layer: _Layer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            assert layer.rule is not None
            calls.append(_Call(layer, layer.rule.prepare(module, inputs[0].detach()), output))
            return output.clone()  # an in-place activation behind the layer must not overwrite what was kept

        return keep

    handles = [layer.module.register_forward_hook(keeper(layer)) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Rule:
    """Per-sample gradients of a kind of layer.

    ``prepare(layer, input)`` does once what all subtasks share; ``gradient(layer, prepared, ∂m/∂output)`` is
    B×C_out×d: output channels first, so that an expert's parameters are consecutive.
    """

    prepare: Callable[[Any, Tensor], Tensor]
    gradient: Callable[[Any, Tensor, Tensor], Tensor]


def _columns(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    assert not isinstance(layer.padding, str)
    columns = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.unflatten(1, (layer.groups, -1)).transpose(-1, -2)


def _convolution(layer: nn.Conv2d, columns: Tensor, delta: Tensor) -> Tensor:
    delta = delta.flatten(2)
    weight = (delta.unflatten(1, (layer.groups, -1)) @ columns).flatten(1, 2)
    return weight if layer.bias is None else torch.cat([weight, delta.sum(dim=2, keepdim=True)], dim=2)


def _normed(layer: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    shape = (1, -1, 1, 1)
    return (inputs - layer.running_mean.view(shape)) * (layer.running_var.view(shape) + layer.eps).rsqrt()


def _batch_norm(layer: nn.BatchNorm2d, normed: Tensor, delta: Tensor) -> Tensor:
    return torch.stack([(delta * normed).sum(dim=(2, 3)), delta.sum(dim=(2, 3))], dim=2)


_RULES: dict[type[nn.Module], _Rule] = {
    nn.Conv2d: _Rule(_columns, _convolution),
    nn.BatchNorm2d: _Rule(_normed, _batch_norm),
}


def _rule(module: nn.Module) -> _Rule | None:
    """The rule for a module that computes what PyTorch's layer of its kind does, in the cases that it knows."""
    for kind, rule in _RULES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return rule if _plain(module) else None
    return None


def _plain(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return not isinstance(module.padding, str) and module.padding_mode == "zeros"
    return getattr(module, "running_mean", None) is not None

"""Gradients of all subtasks' losses at once, as Gram matrices per level and expert.

A subtask's gradient is g_k = Σ_b r_bk ∂m_bk/∂θ with the residual r = ∂L/∂m, so one set of per-sample gradients of
the margins serves every loss and every permutation of its residual. Per-sample gradients live for one module, one
subtask and one chunk of samples at a time; only their weighted sums are held, and only K×K Gram matrices returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME


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

    def level(self, level: int) -> Tensor:
        """G of the actual gradients on ``level`` (from 1), R×K×K."""
        inner = self.experts[level - 1]
        if level == len(self.experts) and self.gates is not None:
            return torch.einsum("ai,bi,riab->rab", self.gates, self.gates, inner)
        return inner.sum(dim=1)

    def total(self) -> Tensor:
        """G over trunk and all experts, R×K×K."""
        return torch.stack([self.level(level) for level in range(1, len(self.experts) + 1)]).sum(dim=0)


def residuals(loss: Callable[[Tensor], Tensor], margins: Tensor) -> Tensor:
    """r_bk = ∂L_bk/∂m_bk of a B×K loss whose entry (b, k) depends on m_bk alone."""
    leaf = margins.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return gradient


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


def subtask_grams(
    model: HME,
    images: Tensor,
    residuals: Tensor,
    *,
    margins: Callable[[Tensor], Tensor] | None = None,
    max_memory: int = 2**30,
) -> Grams:
    """Gram matrices of the subtasks' gradients over trunk and experts.

    Args:
        model: the explainer; BN in eval mode while probing, everything left as it was found.
        images: normalised, B×C×H×W.
        residuals: R×B×K, one B×K set for each loss or null draw.
        margins: from the model's outputs to the margins that the losses are about (B×K → B×K), where these are
            not the outputs themselves; then the last level holds actual gradients.
        max_memory: bytes for the summed gradients held at once; less means more backward passes.

    Raises:
        KdxError: a layer whose per-sample gradients are not known, a gradient that is not finite, named by
            level, or images and residuals that don't belong together.
    """
    if residuals.shape[1:] != (len(images), model.num_classes):
        raise KdxError(f"residuals of shape {tuple(residuals.shape)} don't fit {len(images)} images")
    groups = _layers(model)
    R, _, K = residuals.shape
    grams = [residuals.new_zeros(R, n, K, K) for n in model.experts]
    with undisturbed(model), torch.enable_grad():
        gates = model.attention()[-1].detach()
        for chunk in _chunks(groups, R * K * residuals.element_size(), max_memory):
            sums = {layer: residuals.new_zeros(R, K, _size(layer)) for layer, _ in chunk}
            for rows in torch.arange(len(images)).split(_samples_at_once(max_memory, images)):
                _accumulate(model, chunk, images[rows], residuals[:, rows], margins, sums)
            for layer, level in chunk:
                g = sums.pop(layer).unflatten(2, (model.experts[level], -1)).transpose(1, 2)
                grams[level] += g @ g.transpose(-1, -2)
    for level, gram in enumerate(grams, 1):
        if not gram.isfinite().all():
            norms = gram.diagonal(dim1=-2, dim2=-1)
            culprits = (~norms.isfinite()).flatten(0, 1).any(dim=0).nonzero().flatten().tolist()
            raise KdxError(f"gradients on level {level} are not finite (subtasks {culprits}); did the run diverge?")
    return Grams(tuple(grams), gates if margins is None else None)


def _accumulate(
    model: HME,
    chunk: Sequence[tuple[nn.Module, int]],
    images: Tensor,
    residuals: Tensor,
    margins: Callable[[Tensor], Tensor] | None,
    sums: dict[nn.Module, Tensor],
) -> None:
    """Add this chunk of samples and layers to Σ_b r_bk ∂m_bk/∂θ."""
    last = len(model.experts) - 1
    with _captured([layer for layer, _ in chunk]) as calls:
        trace = model.trace(images.detach().requires_grad_())
    level_of = dict(chunk)
    below = [call for call in calls if margins is not None or level_of[call.layer] != last]
    on_top = [call for call in calls if margins is None and level_of[call.layer] == last]
    outputs = trace.margins if margins is None else margins(trace.margins)
    for k in range(model.num_classes):
        weights = residuals[:, :, k]
        pairs: list[tuple[_Call, Tensor]] = []
        if below:
            deltas = torch.autograd.grad(outputs[:, k].sum(), [call.output for call in below], retain_graph=True)
            pairs += zip(below, deltas, strict=True)
        if on_top:
            (delta,) = torch.autograd.grad(outputs[:, k].sum(), trace.inputs, retain_graph=True)
            cotangent = delta[:, k].unsqueeze(1).expand_as(trace.pooled)
            deltas = torch.autograd.grad(
                trace.pooled, [call.output for call in on_top], grad_outputs=cotangent, retain_graph=True
            )
            pairs += zip(on_top, deltas, strict=True)
        for call, delta in pairs:
            per_sample = _PER_SAMPLE[type(call.layer)].gradient(call.layer, call.prepared, delta)
            sums[call.layer][:, k] += weights @ per_sample.flatten(1)


def _layers(model: HME) -> list[tuple[nn.Module, int]]:
    """Every layer with parameters in trunk and experts, with its level counted from 0."""
    found = []
    for level, part in enumerate([model.trunk, *model.levels]):
        for name, layer in part.named_modules():
            if not list(layer.parameters(recurse=False)):
                continue
            if type(layer) not in _PER_SAMPLE:
                known = ", ".join(kind.__name__ for kind in _PER_SAMPLE)
                raise KdxError(
                    f"layer {name!r} on level {level + 1} is a {type(layer).__name__}; "
                    f"conflict can be probed for {known}"
                )
            found.append((layer, level))
    return found


def _size(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters(recurse=False))


def _chunks(
    layers: list[tuple[nn.Module, int]], bytes_each: int, max_memory: int
) -> Iterator[list[tuple[nn.Module, int]]]:
    """Consecutive layers whose summed gradients fit in memory together (at least one at a time)."""
    chunk: list[tuple[nn.Module, int]] = []
    held = 0
    for layer, level in layers:
        size = _size(layer) * bytes_each
        if chunk and held + size > max_memory:
            yield chunk
            chunk, held = [], 0
        chunk.append((layer, level))
        held += size
    if chunk:
        yield chunk


def _samples_at_once(max_memory: int, images: Tensor) -> int:
    """Samples per forward pass: a few thousand activations for every pixel are allowed for."""
    per_sample = 4096 * images.element_size() * images.shape[-1] * images.shape[-2]
    return max(1, max_memory // per_sample)


@dataclass(frozen=True)
class _Call:
    """A layer's call in a forward pass: what its gradients need of its input, and its output on the graph."""

    layer: nn.Module
    prepared: Tensor
    output: Tensor


@contextmanager
def _captured(layers: Sequence[nn.Module]) -> Iterator[list[_Call]]:
    """Collect every call of ``layers`` inside the body."""
    calls: list[_Call] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        calls.append(_Call(layer, _PER_SAMPLE[type(layer)].prepare(layer, inputs[0].detach()), output))
        return output.clone()  # an in-place activation behind the layer must not overwrite what was kept

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _PerSample:
    """Per-sample gradients of a kind of layer.

    ``prepare(layer, input)`` does once what all subtasks share; ``gradient(layer, prepared, ∂m/∂output)`` is
    B×C_out×d: output channels first, so that an expert's parameters are consecutive.
    """

    prepare: Callable[[Any, Tensor], Tensor]
    gradient: Callable[[Any, Tensor, Tensor], Tensor]


def _columns(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise KdxError("conflict can be probed for convolutions with numeric zero padding only")
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


def _linear(layer: nn.Linear, inputs: Tensor, delta: Tensor) -> Tensor:
    weight = delta.unsqueeze(2) * inputs.unsqueeze(1)
    return weight if layer.bias is None else torch.cat([weight, delta.unsqueeze(2)], dim=2)


_PER_SAMPLE: dict[type[nn.Module], _PerSample] = {
    nn.Conv2d: _PerSample(_columns, _convolution),
    nn.BatchNorm2d: _PerSample(_normed, _batch_norm),
    nn.Linear: _PerSample(lambda layer, inputs: inputs, _linear),
}

"""Gradients of all subtasks' losses at once, as Gram matrices per level and expert.

A subtask's gradient is g_k = Σ_b r_bk ∂m_bk/∂θ with the residual r = ∂L/∂m, so one set of per-sample gradients of
the margins serves every loss and every permutation of its residual. Only their weighted sums are held, and only K×K
Gram matrices returned.

Sums for R sets take R·B·K·D products, a Gram matrix of the B·K per-sample gradients, of which every set would be a
quadratic form, (B·K)²·D: more, as long as R is below B·K (2,000 for 200 images of ten classes).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.probes.parts import Layer, Parts
from kdx_analysis.probes.per_sample import per_sample

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Grams:
    """Inner products of subtask gradients, for R sets of residuals.

    Attributes:
        experts: per level l = 1…L (trunk first) R×N_l×K×K in float64: G^i_ab, products within expert i. On the last
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
    """Eval mode and full precision inside the body; every module's own mode is restored, also when the body raises."""
    modes = [(module, module.training) for module in model.modules()]
    device = next((p.device.type for p in model.parameters()), "cpu")
    model.eval()
    try:
        with torch.autocast(device, enabled=False):
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
    parts = Parts.of(model, margins, groups, images)
    R, _, K = residuals.shape
    grams = [residuals.new_zeros(R, n, K, K, dtype=torch.float64) for n in parts.experts]
    for chunk in _chunks(parts.layers, R * K * residuals.element_size(), max_memory):
        for layer, total in zip(chunk, _summed(parts, chunk, images, residuals, max_memory), strict=True):
            g = total.double().unflatten(2, (layer.experts, -1)).transpose(1, 2)  # small gradients' squares are smaller
            grams[layer.level] += g @ g.transpose(-1, -2)
    alpha = model.attention()[-1].detach().double() if isinstance(model, HME) and parts.ungated else None
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
    parts = dataclasses.replace(Parts.of(model, margins, groups, images), ungated=False)
    sums = _summed(parts, parts.layers, images, residuals, max_memory)
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
    parts = Parts.of(model, margins, groups, images)
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


def _summed(parts: Parts, layers: Sequence[Layer], images: Tensor, residuals: Tensor, max_memory: int) -> list[Tensor]:
    """Σ_b r_bk ∂m_bk/∂θ of each layer, R×K×size: the one thing that is added up over samples."""
    if residuals.ndim != 3 or len(images) != residuals.shape[1] or not len(images):
        raise KdxError(f"residuals of shape {tuple(residuals.shape)} don't fit {len(images)} images")
    R, B, K = residuals.shape
    sums = [residuals.new_zeros(R, K, layer.size) for layer in layers]
    with undisturbed(parts.model), torch.enable_grad():
        for rows in torch.arange(B).split(_samples_at_once(max_memory, images, layers)):
            for k, add in per_sample(parts, layers, images[rows], K):
                for total, gradients in zip(sums, add, strict=True):
                    total[:, k] += residuals[:, rows, k] @ gradients
    for layer, total in zip(layers, sums, strict=True):
        if culprits := not_finite(total.transpose(1, 2)):
            raise KdxError(
                f"gradients on level {layer.level + 1} are not finite (subtasks {culprits}); did the run diverge?"
            )
    return sums


def _chunks(layers: Sequence[Layer], bytes_each: int, max_memory: int) -> Iterator[list[Layer]]:
    """Consecutive layers whose summed gradients fit in memory together (at least one at a time)."""
    chunk: list[Layer] = []
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


def _samples_at_once(max_memory: int, images: Tensor, chunk: Sequence[Layer]) -> int:
    """Samples per forward pass: a few thousand activations for every pixel are allowed for.

    Layers without a rule hold their gradients for all samples, and activations for backward passes side by side.
    """
    values = 4096 * images.shape[-1] * images.shape[-2] + sum(layer.size for layer in chunk if layer.rule is None)
    return max(1, max_memory // (values * images.element_size()))

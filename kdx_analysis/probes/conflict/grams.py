"""Gradients of all subtasks' losses at once, as Gram matrices per level and expert.

A subtask's gradient is g_k = Σ_b r_bk ∂m_bk/∂θ with the residual r = ∂L/∂m, so one set of
per-sample gradients of the margins serves every loss and every permutation of its residual. Only
their weighted sums are held, and only K×K Gram matrices returned.

Sums for R sets take R·B·K·D products, a Gram matrix of the B·K per-sample gradients, of which every
set would be a quadratic form, (B·K)²·D: more, as long as R is below B·K (2,000 for 200 images of
ten classes).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.models.modes import undisturbed
from kdx_analysis.probes.conflict.parts import Layer, Parts
from kdx_analysis.probes.conflict.per_sample import Pass
from kdx_analysis.probes.conflict.proof import agree, check_fixed_function, check_margins
from kdx_analysis.probes.contract import Cost
from kdx_analysis.probes.subtasks import not_finite

# Values of the sums that are in float64 at once, 32 MB. Products are taken in it, since squares of
# small gradients are smaller than float32 knows.
_IN_DOUBLE = 2**22
# What is allowed for in a forward pass for every pixel of an image: a few thousand activations.
_VALUES_PER_PIXEL = 4096


@dataclass(frozen=True)
class Grams:
    """Inner products of subtask gradients, for R sets of residuals.

    Attributes:
        experts: per level l = 1…L (trunk first) R×N_l×K×K in float64: G^i_ab, products within
            expert i. On the last level they are ⟨h^i_a, h^i_b⟩, without the gates' factor, if
            ``gates`` is given.
        gates: α^{L+1}, K×N_L, by which h becomes g (g^i_a = α_ai h^i_a), or None where ``experts``
            holds the actual gradients of the last level too.
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
        return torch.stack([self.level(level) for level in range(1, len(self.experts) + 1)]).sum(
            dim=0
        )


@dataclass(frozen=True, eq=False)
class Kept:
    """Gradients of the first sets of residuals, kept on the way to their products.

    Whoever needs them for the same model and images can so save itself the passes.

    Attributes:
        residuals: of these sets, R×B×K.
        gradients: by parameter's name, R×K×(its shape), the gates' factor included.
    """

    residuals: Tensor
    gradients: dict[str, Tensor] = field(default_factory=dict)

    @property
    def sets(self) -> int:
        """R."""
        return len(self.residuals)

    def keep(self, parts: Parts, layer: Layer, total: Tensor) -> None:
        """Take what is wanted of a layer's sums for all sets."""
        chosen = total[: self.sets].clone()  # a view would hold the sums of all sets
        if isinstance(parts.model, HME) and parts.ungated and layer.level == len(parts.experts) - 1:
            gates = parts.model.attention()[-1].detach().to(chosen)
            by_expert = chosen.unflatten(2, (layer.experts, -1))
            chosen = (by_expert * gates.unsqueeze(-1)).flatten(2)
        self.gradients.update(layer.apart(chosen))

    def of(self, residuals: Tensor) -> dict[str, Tensor] | None:
        """The gradients of the first sets, if these are their ``residuals``."""
        R = len(residuals)
        ours = self.residuals[:R]
        # Residuals of one loss that is written in two ways differ by rounding.
        if ours.shape != residuals.shape or not torch.allclose(ours, residuals, rtol=1e-5, atol=0):
            return None
        return {name: gradient[:R] for name, gradient in self.gradients.items()}


def residuals(loss: Callable[[Tensor], Tensor], margins: Tensor) -> Tensor:
    """r_bk = ∂L_bk/∂m_bk of a B×K loss whose entry (b, k) depends on m_bk alone."""
    leaf = margins.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return gradient


def with_null(residual: Tensor, draws: int, seed: int) -> Tensor:
    """The residual B×K and, as the null of conflict, its rows permuted over samples: (1 + R)×B×K.

    The model stays as it is, and so does what the cut into subtasks does to a row. R are ``draws``;
    the same seed permutes alike.

    >>> with_null(torch.tensor([[1.0], [2.0], [3.0]]), 2, seed=0).sum(dim=1)
    tensor([[6.],
            [6.],
            [6.]])
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(residual), generator=generator) for _ in range(draws)]
    return torch.stack([residual, *(residual[order.to(residual.device)] for order in orders)])


@torch.inference_mode(False)
def subtask_grams(
    model: nn.Module,
    images: Tensor,
    residuals: Tensor,
    *,
    margins: Callable[[Tensor], Tensor] | None = None,
    groups: Sequence[Sequence[str]] | None = None,
    max_memory: int = 2**30,
    num_classes: int | None = None,
    kept: Kept | None = None,
) -> Grams:
    """Gram matrices of the subtasks' gradients, level by level and expert by expert.

    Levels are an explainer's trunk and experts, of another model its groups.

    Args:
        model: an explainer, or any model that gives B×K; BN in eval mode while probing, everything
            left as it was found.
        images: normalised, B×C×H×W.
        residuals: R×B×K, one B×K set for each loss or null draw.
        margins: from the model's outputs to the margins that the losses are about (B×K → B×K),
            where these are not the outputs themselves; then an explainer's last level holds actual
            gradients.
        groups: of a model without gates, paths of the modules with parameters that make up each
            level; by default its :func:`module_groups`.
        max_memory: bytes for the summed gradients held at once; less means more backward passes.
        num_classes: of the model's outputs, where ``margins`` gives others than one for each.
        kept: is given the gradients of the first sets, besides.

    What the sums rest on is proved each time: that the model is a fixed function of each image
    alone, by its outputs on the halves of the set, and that gradients of single samples add up to
    plain autograd's, by a set of residuals drawn at random. Layers for which they don't are taken
    by torch.func, and where that doesn't do either by plain autograd, with a backward pass for
    every set and subtask.

    Raises:
        KdxError: a gradient that is not finite, named by level and subtask; images and residuals
            that don't belong together; a model in half precision, one whose outputs are no logits
            B×K, and one that is random or computes an image's outputs from other images, named by
            module.
    """
    parts = _proved(model, images, residuals, margins, groups, num_classes)
    images, residuals = _ordinary(images), _ordinary(residuals)
    R, _, K = residuals.shape
    grams = [residuals.new_zeros(R, n, K, K, dtype=torch.float64) for n in parts.experts]
    for chunk in _chunks(parts.layers, (R + 1) * K * residuals.element_size(), max_memory):
        for layer, total in _summed(parts, chunk, images, residuals, max_memory):
            if kept is not None:
                kept.keep(parts, layer, total)
            at_once = max(1, _IN_DOUBLE // (K * layer.size))
            for draws in torch.arange(R).split(at_once):
                g = total[draws].double().unflatten(2, (layer.experts, -1)).transpose(1, 2)
                grams[layer.level][draws] += g @ g.mT
        for level in sorted({layer.level for layer in chunk}):
            _check_finite(grams[level].diagonal(dim1=-2, dim2=-1), level)
    if isinstance(parts.model, HME) and parts.ungated:
        return Grams(tuple(grams), parts.model.attention()[-1].detach().double())
    return Grams(tuple(grams), None)


@torch.inference_mode(False)
def subtask_gradients(
    model: nn.Module,
    images: Tensor,
    residuals: Tensor,
    *,
    margins: Callable[[Tensor], Tensor] | None = None,
    groups: Sequence[Sequence[str]] | None = None,
    max_memory: int = 2**30,
) -> dict[str, Tensor]:
    """What :func:`subtask_grams` takes products of, by parameter's name, R×K×(its shape).

    All are in memory at once, R·K·D numbers, whatever ``max_memory``, which bounds what is held
    beside them. Proves and raises as it does.
    """
    parts = dataclasses.replace(_proved(model, images, residuals, margins, groups), ungated=False)
    gradients: dict[str, Tensor] = {}
    for layer, total in _summed(
        parts, parts.layers, _ordinary(images), _ordinary(residuals), max_memory
    ):
        # In float64, since the square of a large float32 overflows.
        _check_finite(torch.linalg.vector_norm(total, dim=2, dtype=torch.float64), layer.level)
        for name, gradient in layer.apart(total).items():
            gradients[f"{parts.prefix}{name}"] = gradient
    return gradients


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
    """Passes and memory that :func:`subtask_grams` will take; nothing is computed here.

    ``sets`` of residuals are losses × (1 + null draws). Layers that don't fit in ``max_memory``
    together take passes of their own.
    """
    parts = Parts.of(model, margins, groups, images, num_classes)
    each = (sets + 1) * num_classes * images.element_size()  # one set more is drawn for the proof
    forwards = 1 + min(2, len(images))  # the proof's: whole and halves
    backwards = most_bytes = 0
    last = len(parts.experts) - 1
    for chunk in _chunks(parts.layers, each, max_memory):
        passes = -(-len(images) // _samples_at_once(max_memory, images, chunk))
        ways = {(layer.rule is None, parts.ungated and layer.level == last) for layer in chunk}
        ends = len({on_top for _, on_top in ways})
        forwards += passes
        if _plain_is_quicker(chunk, sets):
            backwards += passes * num_classes * ends
        else:  # and once plain autograd's, against which the others are held
            backwards += passes * num_classes * len(ways) + passes * ends
        most_bytes = max(most_bytes, each * sum(layer.size for layer in chunk))
    values = sets * num_classes * sum(layer.size for layer in parts.layers)
    return Cost(forwards, backwards, len(images), values, most_bytes)


def _proved(
    model: nn.Module,
    images: Tensor,
    residuals: Tensor,
    margins: Callable[[Tensor], Tensor] | None,
    groups: Sequence[Sequence[str]] | None,
    num_classes: int | None = None,
) -> Parts:
    """The model's parts, if images and residuals fit and it is a fixed function of each image."""
    if residuals.ndim != 3 or len(images) != residuals.shape[1] or not len(images):
        raise KdxError(
            f"residuals of shape {tuple(residuals.shape)} don't fit {len(images)} images"
        )
    images = _ordinary(images)
    num_classes = num_classes or residuals.shape[2]
    parts = Parts.of(model, margins, groups, images, num_classes)
    outputs = check_fixed_function(parts.model, images, num_classes)
    check_margins(margins, outputs)
    return parts


def _ordinary(tensor: Tensor) -> Tensor:
    """``tensor``, or a copy that can have gradients of one made under torch.inference_mode()."""
    return tensor.clone() if tensor.is_inference() else tensor


def _summed(
    parts: Parts, layers: Sequence[Layer], images: Tensor, residuals: Tensor, max_memory: int
) -> list[tuple[Layer, Tensor]]:
    """Σ_b r_bk ∂m_bk/∂θ of each layer, R×K×size: the one thing that is added up over samples.

    A layer comes back without its rule where that gave other sums than plain autograd, and the
    others' order with it.
    """
    sums: dict[str, tuple[Layer, Tensor]] = {}
    with undisturbed(parts.model), torch.enable_grad():
        for layer in parts.layers:
            for parameter in layer.parameters.values():
                parameter.requires_grad_()  # frozen ones are probed as well
        if not _plain_is_quicker(layers, len(residuals)):
            sums |= _by_samples(parts, layers, images, residuals, max_memory)
            unruled = [
                dataclasses.replace(layer, rule=None) for layer in layers if layer.rule is not None
            ]
            again = [layer for layer in unruled if layer.name not in sums]
            sums |= _by_samples(parts, again, images, residuals, max_memory) if again else {}
        if left := [layer for layer in layers if layer.name not in sums]:
            sums |= _plainly(parts, left, images, residuals, max_memory)
    return [sums[layer.name] for layer in layers]


def _plain_is_quicker(layers: Sequence[Layer], sets: int) -> bool:
    """Whether a backward pass for every subtask is quicker than gradients of single samples.

    With one set of residuals these take 1.1 to 2.4 times as long; but of grouped convolutions, as
    experts are, PyTorch's own gradients take longer on a CPU.
    """
    return sets == 1 and not any(getattr(layer.module, "groups", 1) > 1 for layer in layers)


def _by_samples(
    parts: Parts, layers: Sequence[Layer], images: Tensor, residuals: Tensor, max_memory: int
) -> dict[str, tuple[Layer, Tensor]]:
    """The sums from gradients of single samples, of the layers for which plain autograd agrees.

    They are compared in one more set of residuals, drawn at random for every sample and subtask: no
    error of a layer cancels in it, and it takes one plain backward pass for all subtasks.
    """
    R, B, K = residuals.shape
    generator = torch.Generator().manual_seed(0)  # so that a probe gives the same numbers again
    drawn = torch.randn(1, B, K, generator=generator, dtype=residuals.dtype).to(residuals.device)
    residuals = torch.cat([residuals, drawn])
    sums = {layer.name: residuals.new_zeros(R + 1, K, layer.size) for layer in layers}
    plain: dict[str, list[Tensor]] = {}
    for rows in torch.arange(B).split(_samples_at_once(max_memory, images, layers)):
        forward = Pass(parts, layers, images[rows], K)
        for name, gradients in forward.plain(drawn[0, rows]).items():
            before = plain.get(name)
            plain[name] = gradients if before is None else list(map(torch.add, before, gradients))
        for k, by_layer in forward.per_sample():
            for layer, by_sample in zip(layers, by_layer, strict=True):
                if by_sample is None:
                    sums.pop(layer.name, None)
                elif layer.name in sums:
                    sums[layer.name][:, k] += residuals[:, rows, k] @ by_sample.to(residuals)
    proofs = {
        layer.name: list(layer.apart(sums[layer.name][-1:].sum(dim=1, keepdim=True)).values())
        for layer in layers
        if layer.name in sums
    }
    right = agree(layers, proofs, plain)
    return {layer.name: (layer, sums[layer.name][:-1]) for layer in layers if layer.name in right}


def _plainly(
    parts: Parts, layers: Sequence[Layer], images: Tensor, residuals: Tensor, max_memory: int
) -> dict[str, tuple[Layer, Tensor]]:
    """The sums by plain autograd, a backward pass for every set and subtask."""
    R, B, K = residuals.shape
    layers = [dataclasses.replace(layer, rule=None) for layer in layers]
    sums = {layer.name: residuals.new_zeros(R, K, layer.size) for layer in layers}
    for rows in torch.arange(B).split(_samples_at_once(max_memory, images, ())):
        forward = Pass(parts, layers, images[rows], K)
        for k in range(K):
            for draw in range(R):
                gradients = forward.plain_of(k, residuals[draw, rows, k])
                for layer in layers:
                    sums[layer.name][draw, k] += layer.joined(gradients[layer.name])
    return {layer.name: (layer, sums[layer.name]) for layer in layers}


def _check_finite(sizes: Tensor, level: int) -> None:
    """KdxError if a gradient's size, …×K, is not finite; ``level`` is counted from 0."""
    if culprits := not_finite(sizes):
        raise KdxError(
            f"gradients on level {level + 1} are not finite (subtasks {culprits}); did the run "
            "diverge?"
        )


def _chunks(layers: Sequence[Layer], bytes_each: int, max_memory: int) -> Iterator[list[Layer]]:
    """Consecutive layers whose summed gradients fit in memory together (at least one at a time)."""
    chunk: list[Layer] = []
    chunk_bytes = 0
    for layer in layers:
        layer_bytes = layer.size * bytes_each
        if chunk and chunk_bytes + layer_bytes > max_memory:
            yield chunk
            chunk, chunk_bytes = [], 0
        chunk.append(layer)
        chunk_bytes += layer_bytes
    if chunk:
        yield chunk


def _samples_at_once(max_memory: int, images: Tensor, chunk: Sequence[Layer]) -> int:
    """Samples per forward pass, by what one takes up in memory: its activations and gradients.

    Layers without a rule hold their gradients for all samples, and activations for backward passes
    side by side.
    """
    activations = _VALUES_PER_PIXEL * images.shape[-1] * images.shape[-2]
    gradients = sum(layer.size for layer in chunk if layer.rule is None)
    return max(1, max_memory // ((activations + gradients) * images.element_size()))

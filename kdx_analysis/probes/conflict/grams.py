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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.models.modes import fitted, undisturbed
from kdx_analysis.probes.conflict.layer_rules import side_by_side_quickly
from kdx_analysis.probes.conflict.memory import Demand, Footprint, Sweep
from kdx_analysis.probes.conflict.parts import Layer, Parts, Piece
from kdx_analysis.probes.conflict.per_sample import Pass
from kdx_analysis.probes.conflict.proof import agree, check_fixed_function, check_margins
from kdx_analysis.probes.contract import Cost
from kdx_analysis.probes.subtasks import not_finite

# Products of this many numbers are added up in float32 before the rest is in float64: the error of
# a sum grows with the root of their number, and is below 1e-6 of the gradients' lengths.
_IN_SINGLE = 256
# Bytes of sums that are copied into another order or into float64 at once.
_COPIED = 2**24


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
        sums: by the name of a layer, the layer and its gradients, U×R×K×C×d, the gates' factor
            included.
    """

    residuals: Tensor
    sums: dict[str, tuple[Layer, Tensor]] = field(default_factory=dict)

    @property
    def sets(self) -> int:
        """R."""
        return len(self.residuals)

    def keep(self, parts: Parts, piece: Piece, total: Tensor) -> None:
        """Take what is wanted of a piece's sums for all sets, U×R×K×D."""
        layer = piece.layer
        U, rows, d = layer.shape
        chosen = total[:, : self.sets].unflatten(-1, (-1, d))
        if isinstance(parts.model, HME) and parts.ungated and layer.level == len(parts.experts) - 1:
            gates = parts.model.attention()[-1].detach().to(chosen)
            by_unit = gates.T.repeat_interleave(U // layer.experts, dim=0)
            chosen = chosen * by_unit[:, None, :, None, None]
        shape = (*chosen.shape[:3], rows, d)
        _, whole = self.sums.setdefault(layer.name, (layer, total.new_zeros(shape)))
        whole[..., piece.rows, :] = chosen

    def of(self, residuals: Tensor) -> dict[str, Tensor] | None:
        """The gradients of the first sets, by parameter, if these are their ``residuals``."""
        R = len(residuals)
        ours = self.residuals[:R]
        # Residuals of one loss that is written in two ways differ by rounding.
        if ours.shape != residuals.shape or not torch.allclose(ours, residuals, rtol=1e-5, atol=0):
            return None
        gradients: dict[str, Tensor] = {}
        for layer, whole in self.sums.values():
            gradients |= layer.apart(whole[:, :R])
        return gradients


@dataclass(frozen=True)
class _Probed:
    """What gradients are taken of: a model's parts, images, residuals R×B×K, its outputs B×K."""

    parts: Parts
    images: Tensor
    residuals: Tensor
    outputs: Tensor

    def run(self, layers: Sequence[Layer], rows: Tensor) -> Pass:
        """A forward pass over some of the images."""
        among = self.outputs, rows.to(self.outputs.device)
        return Pass(self.parts, layers, self.images[rows], self.residuals.shape[2], among)


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
        max_memory: bytes that the probe may take beside model, images and residuals; less means
            more passes.
        num_classes: of the model's outputs, where ``margins`` gives others than one for each.
        kept: is given the gradients of the first sets, besides.

    What the sums rest on is proved each time: that the model is a fixed function of each image
    alone, by its outputs on the halves of the set, and that gradients of single samples add up to
    plain autograd's, by a set of residuals drawn at random. Layers for which they don't are taken
    by torch.func, and where that doesn't do either by plain autograd, with a backward pass for
    every set and subtask.

    Raises:
        KdxError: a gradient that is not finite, named by level and subtask; images and residuals
            that don't belong together; more memory needed than ``max_memory``, however gradients
            are cut; a model in half precision, one whose outputs are no logits
            B×K, and one that is random or computes an image's outputs from other images, named by
            module.
    """
    probed, demand = _proved(model, images, residuals, margins, groups, max_memory, num_classes)
    parts, (R, _, K) = probed.parts, residuals.shape
    grams = [residuals.new_zeros(R, n, K, K, dtype=torch.float64) for n in parts.experts]
    for sweep in demand.sweeps(parts.layers, max_memory):
        summed = _summed(probed, sweep)
        while summed:  # no sum may be there any more when the next sweep begins
            piece, total = summed.pop()
            if kept is not None:
                kept.keep(parts, piece, total)
            grams[piece.layer.level].add_(products(total, piece.layer.experts))
            del total
        for level in sorted({piece.layer.level for piece in sweep.pieces}):
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
    probed, demand = _proved(model, images, residuals, margins, groups, max_memory)
    parts = dataclasses.replace(probed.parts, ungated=False)
    sweep = demand.whole(parts.layers, max_memory)
    summed = _summed(dataclasses.replace(probed, parts=parts), sweep)
    gradients: dict[str, Tensor] = {}
    while summed:
        piece, total = summed.pop()
        # In float64, since the square of a large float32 overflows.
        lengths = torch.linalg.vector_norm(total, dim=-1, dtype=torch.float64)
        _check_finite(lengths.sum(dim=0), piece.layer.level)
        laid_out = total.unflatten(-1, piece.layer.shape[1:])
        for name, gradient in piece.layer.apart(laid_out).items():
            gradients[f"{parts.prefix}{name}"] = gradient
    return {
        f"{parts.prefix}{name}": gradients[f"{parts.prefix}{name}"]
        for layer in parts.layers
        for name in layer.parameters
    }


@torch.inference_mode(False)
def probing_cost(
    model: nn.Module,
    images: Tensor,
    num_classes: int,
    sets: int,
    *,
    margins: Callable[[Tensor], Tensor] | None = None,
    groups: Sequence[Sequence[str]] | None = None,
    max_memory: int = 2**30,
    together: bool = False,
) -> Cost:
    """Passes and memory that :func:`subtask_grams` will take; no gradient is computed here.

    What one image takes up is measured by a forward pass over one or two.

    Args:
        model, images, margins, groups, max_memory: as for :func:`subtask_grams`.
        num_classes: K.
        sets: of residuals: losses × (1 + null draws).
        together: of :func:`subtask_gradients`, whose sums are all there at once.

    Raises KdxError where ``subtask_grams`` would, for want of memory.
    """
    images = _ordinary(fitted(images, model))
    parts = Parts.of(model, margins, groups, images, num_classes)
    demand = Demand(
        Footprint.of(parts, images),
        len(images),
        sets + 1,
        num_classes,
        images.element_size(),
        parts.experts,
    )
    at_once = _checked_at_once(demand, max_memory)
    blocks = -(-len(images) // at_once)
    # The proof's, on the whole set and its halves, and one that shows what an image takes up.
    forwards = blocks + blocks * min(2, len(images)) + 1
    backwards, most = 0, 0
    last = len(parts.experts) - 1
    sweeps = (
        [demand.whole(parts.layers, max_memory)]
        if together
        else demand.sweeps(parts.layers, max_memory)
    )
    for sweep in sweeps:
        layers = [piece.layer for piece in sweep.pieces]
        passes = -(-len(images) // sweep.images)
        forwards += passes
        # A last level without the gates' factor has a pass of its own in plain autograd.
        ends = len({parts.ungated and layer.level == last for layer in layers})
        if _plain_is_quicker(layers, sets):
            backwards += passes * num_classes * ends
        else:  # and once plain autograd's, against which the others are held
            ways = {(layer.rule is None, parts.ungated and layer.level == last) for layer in layers}
            backwards += passes * num_classes * len(ways) + passes * ends
        most = max(most, sweep.memory)
    values = sets * num_classes * sum(layer.size for layer in parts.layers)
    return Cost(forwards, backwards, len(images), values, most)


def _proved(
    model: nn.Module,
    images: Tensor,
    residuals: Tensor,
    margins: Callable[[Tensor], Tensor] | None,
    groups: Sequence[Sequence[str]] | None,
    max_memory: int,
    num_classes: int | None = None,
) -> tuple[_Probed, Demand]:
    """What is probed, if images and residuals fit and the model is a fixed function of each image.

    Behind it stands what the gradients take up.
    """
    if residuals.ndim != 3 or len(images) != residuals.shape[1] or not len(images):
        raise KdxError(
            f"residuals of shape {tuple(residuals.shape)} don't fit {len(images)} images"
        )
    images, residuals = _ordinary(images), _ordinary(residuals)
    R, B, K = residuals.shape
    num_classes = num_classes or K
    parts = Parts.of(model, margins, groups, images, num_classes)
    sizes = B, R + 1, K, residuals.element_size(), parts.experts
    at_once = B
    try:
        demand = Demand(Footprint.of(parts, images), *sizes)
        at_once = _checked_at_once(demand, max_memory)
    # What is wrong with the model is found, and said, below.
    except Exception:
        demand = None
    with side_by_side_quickly(parts.model):
        outputs = check_fixed_function(parts.model, images, num_classes, at_once)
    check_margins(margins, outputs)
    demand = demand or Demand(Footprint.of(parts, images), *sizes)
    return _Probed(parts, images, residuals, outputs), demand


def _checked_at_once(demand: Demand, max_memory: int) -> int:
    """Images that the model is run on together to see whether it is a fixed function of each."""
    return max(2, min(demand.images, max_memory // max(1, demand.footprint.graph)))


def _ordinary(tensor: Tensor) -> Tensor:
    """``tensor``, or a copy that can have gradients of one made under torch.inference_mode()."""
    return tensor.clone() if tensor.is_inference() else tensor


def products(sums: Tensor, experts: int) -> Tensor:
    """Gram matrices of the summed gradients U×R×K×D inside each of N experts, R×N×K×K in float64.

    Squares of small gradients are smaller than float32 knows, and those of large ones larger:
    where a square is near either end, all products are taken in float64.
    """
    R, K = sums.shape[1:3]
    by_expert = sums.unflatten(0, (experts, -1)).transpose(1, 2)  # N×R×(U/N)×K×D
    grams = sums.new_zeros(R, experts, K, K, dtype=torch.float64)
    at_once = max(1, _COPIED // max(1, by_expert[0, 0].nbytes))
    for draws in torch.arange(R).split(at_once):
        here = slice(int(draws[0]), int(draws[-1]) + 1)
        with torch.autocast(sums.device.type, enabled=False):
            for expert in range(experts):
                some = by_expert[expert, here].transpose(1, 2).flatten(2)  # R×K×D
                grams[here, expert] = _products(some)
    return grams


def _products(gradients: Tensor) -> Tensor:
    """Gram matrices R×K×K of gradients R×K×D, in float64."""
    if gradients.dtype == torch.float32:
        R, K = gradients.shape[:2]
        total = gradients.new_zeros(R, K, K, dtype=torch.float64)
        for few in gradients.split(_IN_SINGLE, dim=-1):
            total += few @ few.mT
        ends, squares = torch.finfo(torch.float32), total.diagonal(dim1=-2, dim2=-1)
        # What a product loses where it is subnormal is below the rounding unit of such squares.
        known = (squares > ends.tiny / ends.eps**2) & (squares < ends.max * ends.eps)
        if bool(known.all()):
            return total
    gradients = gradients.double()
    return gradients @ gradients.mT


def _summed(probed: _Probed, sweep: Sweep) -> list[tuple[Piece, Tensor]]:
    """Σ_b r_bk ∂m_bk/∂θ of each piece, U×R×K×D: the one thing that is added up over samples.

    A piece comes back without its rule where that gave other sums than plain autograd.
    """
    done: list[tuple[Piece, Tensor]] = []
    left, parts = list(sweep.pieces), probed.parts
    with undisturbed(parts.model), torch.enable_grad():
        for layer in parts.layers:
            for parameter in layer.parameters.values():
                parameter.requires_grad_()  # frozen ones are probed as well
        if not _plain_is_quicker([piece.layer for piece in left], len(probed.residuals)):
            done += _by_samples(probed, left, sweep)
            left = _without(left, done)
            again = [piece.without_rule() for piece in left if piece.layer.rule is not None]
            if again:
                done += _by_samples(probed, again, sweep)
            left = _without(left, done)
        if left:
            done += _plainly(probed, left, sweep)
    return done


def _without(pieces: Sequence[Piece], done: Sequence[tuple[Piece, Tensor]]) -> list[Piece]:
    """The pieces of other layers than those which are done."""
    names = {piece.layer.name for piece, _ in done}
    return [piece for piece in pieces if piece.layer.name not in names]


def _plain_is_quicker(layers: Sequence[Layer], sets: int) -> bool:
    """Whether a backward pass for every subtask is quicker than gradients of single samples.

    With one set of residuals these take 1.1 to 2.4 times as long; but of grouped convolutions, as
    experts are, PyTorch's own gradients take longer on a CPU.
    """
    return sets == 1 and not any(getattr(layer.module, "groups", 1) > 1 for layer in layers)


def _by_samples(
    probed: _Probed, pieces: Sequence[Piece], sweep: Sweep
) -> list[tuple[Piece, Tensor]]:
    """The sums from gradients of single samples, of the pieces for which plain autograd agrees.

    They are compared in one more set of residuals, drawn at random for every sample and subtask: no
    error of a layer cancels in it, and it takes one plain backward pass for all subtasks.
    """
    residuals = probed.residuals
    R, B, K = residuals.shape
    generator = torch.Generator().manual_seed(0)  # so that a probe gives the same numbers again
    drawn = torch.randn(1, B, K, generator=generator, dtype=residuals.dtype).to(residuals.device)
    sets = torch.cat([residuals, drawn]).permute(2, 0, 1).contiguous()  # K×(R + 1)×B
    sums: dict[str, Tensor] = {}
    for piece in pieces:
        U = piece.layer.shape[0]
        sums[piece.layer.name] = residuals.new_zeros(U, R + 1, K, piece.size // U)
    by_layer = {piece.layer.name: piece for piece in pieces}
    layers = [piece.layer for piece in pieces]
    plain: dict[str, list[Tensor]] = {}
    for rows in torch.arange(B).split(sweep.images):
        forward = probed.run(layers, rows)
        for name, gradients in forward.plain(drawn[0, rows]).items():
            before = plain.get(name)
            plain[name] = gradients if before is None else list(map(torch.add, before, gradients))
        here = slice(int(rows[0]), int(rows[-1]) + 1)
        for name, k, gradient in _gradients(forward, by_layer, K, sweep.subtasks):
            _add(sums[name][:, :, k], sets[k, :, here], gradient)
        for name in forward.unfit:
            sums.pop(name, None)
    proofs = {}
    for name, total in sums.items():
        shape = (total.shape[0], -1, by_layer[name].layer.shape[2])
        proofs[name] = total[:, R].sum(dim=1).reshape(shape)
    right = agree(pieces, proofs, plain)
    return [(by_layer[name], sums[name][:, :R]) for name in sums if name in right]


def _gradients(
    forward: Pass, pieces: Mapping[str, Piece], K: int, subtasks: int
) -> Iterator[tuple[str, int, Tensor]]:
    """∂m_bk/∂θ of every piece and subtask, B×U×c×d, one after the other.

    What a rule prepares serves several ``subtasks``. A layer that is called twice comes twice.
    """
    for some in range(0, K, subtasks):
        ks = range(some, min(K, some + subtasks))
        for call, deltas in forward.by_rules(ks):
            layer, rows = call.layer, pieces[call.layer.name].rows
            if layer.name in forward.unfit:
                continue
            assert layer.rule is not None
            U, channels, _ = layer.shape
            prepared = layer.rule.prepare(layer.module, call.given, U)
            for k, delta in zip(ks, deltas, strict=True):
                by_unit = delta.reshape(len(delta), U, channels, -1)[:, :, rows]
                yield layer.name, k, layer.rule.gradient(layer.module, prepared, by_unit, rows)
    if any(piece.layer.rule is None for piece in pieces.values()):
        for k in range(K):
            for name, gradient in forward.by_functions(k).items():
                yield name, k, gradient[:, :, pieces[name].rows]


def _add(sums: Tensor, sets: Tensor, gradient: Tensor) -> None:
    """Add Σ_b r_b ∂m_b/∂θ to the sums of one subtask, U×R×D, of sets R×B and gradients B×U×c×d."""
    by_unit = gradient.flatten(2).to(sets).transpose(0, 1)
    sums.baddbmm_(sets.expand(len(by_unit), -1, -1), by_unit)


def _plainly(probed: _Probed, pieces: Sequence[Piece], sweep: Sweep) -> list[tuple[Piece, Tensor]]:
    """The sums by plain autograd, a backward pass for every set and subtask."""
    residuals = probed.residuals
    R, B, K = residuals.shape
    pieces = [piece.without_rule() for piece in pieces]
    sums = []
    for piece in pieces:
        U = piece.layer.shape[0]
        sums.append(residuals.new_zeros(U, R, K, piece.size // U))
    for rows in torch.arange(B).split(sweep.images):
        forward = probed.run([piece.layer for piece in pieces], rows)
        for k in range(K):
            for draw in range(R):
                gradients = forward.plain_of(k, residuals[draw, rows, k])
                for piece, total in zip(pieces, sums, strict=True):
                    gradient = piece.layer.joined(gradients[piece.layer.name])
                    total[:, draw, k] += gradient[:, piece.rows].flatten(1)
    return list(zip(pieces, sums, strict=True))


def _check_finite(sizes: Tensor, level: int) -> None:
    """KdxError if a gradient's size, …×K, is not finite; ``level`` is counted from 0."""
    if culprits := not_finite(sizes):
        raise KdxError(
            f"gradients on level {level + 1} are not finite (subtasks {culprits}); did the run "
            "diverge?"
        )

"""Gradients of every subtask's margin from one forward pass, of each image by itself or summed.

Sums are plain autograd's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.probes.conflict.layer_rules import side_by_side_quickly
from kdx_analysis.probes.conflict.parts import Layer, Parts
from kdx_analysis.probes.conflict.sharing import nodes


class Pass:
    """One forward pass over some images, and the gradients that its graph gives.

    Where the parts are ``ungated``, gradients of the last level are h: ∂m_bk/∂(input of head k) is
    held fixed and there is no gate's factor.

    Args:
        parts: the model, in eval mode, with gradients enabled for the parameters of ``layers``.
        layers: that gradients are wanted of.
        images: B×C×H×W.
        num_classes: K.
        among: as of :meth:`Parts.outputs`.
    """

    def __init__(
        self,
        parts: Parts,
        layers: Sequence[Layer],
        images: Tensor,
        num_classes: int,
        among: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.parts, self.layers, self.images = parts, layers, images
        ruled = [layer for layer in layers if layer.rule is not None]
        with (
            captured(parts, ruled, len(images)) as (calls, self.unfit),
            _entered(parts) as entries,
        ):
            self.outputs, self.trace = parts.outputs(images, among)
        self._entry = entries[-1] if entries else None
        self._check(num_classes)
        last = len(parts.experts) - 1
        self._on_top = [layer for layer in layers if parts.ungated and layer.level == last]
        calls = [call for call in calls if call.output.requires_grad]
        self._calls_on_top = [call for call in calls if call.layer in self._on_top]
        self._calls_below = [call for call in calls if call.layer not in self._on_top]

    def _check(self, num_classes: int) -> None:
        """KdxError unless the outputs are B×K and some layer's gradient reaches them."""
        if self.outputs.shape != (len(self.images), num_classes):
            raise KdxError(
                f"the model gives {tuple(self.outputs.shape)} where "
                f"{len(self.images)}×{num_classes} was expected"
            )
        if not _reads(self.outputs, self.parts.layers):
            names = ", ".join(repr(layer.name) for layer in self.parts.layers[:5])
            raise KdxError(
                f"no gradient reaches {names}, as the model's forward detaches what they give or "
                "runs them under torch.no_grad(); probe a model whose forward can be trained, or "
                "name other modules as groups="
            )

    def plain(self, weights: Tensor) -> dict[str, list[Tensor]]:
        """Σ_bk w_bk ∂m_bk/∂θ for weights B×K by plain autograd, by layer, in θ's shapes.

        Zero where θ isn't read. One backward pass; of the last level, where ungated, one more from
        the heads' inputs.
        """
        below = [layer for layer in self.layers if layer not in self._on_top]
        sums = self._sums(self.outputs, below, weights)
        if self._on_top:
            assert self.trace is not None
            (delta,) = self._grad(self.outputs, [self.trace.inputs], weights)
            cotangent = delta.sum(dim=1).unsqueeze(1).expand_as(self.trace.pooled)
            sums |= self._sums(self.trace.pooled, self._on_top, cotangent)
        return sums

    def plain_of(self, k: int, weights: Tensor) -> dict[str, list[Tensor]]:
        """Σ_b w_b ∂m_bk/∂θ for weights B, as :meth:`plain` gives them."""
        if self._on_top:
            self.cotangent(k)
        every = torch.zeros_like(self.outputs)
        every[:, k] = weights
        return self.plain(every)

    def by_rules(self, subtasks: Sequence[int]) -> Iterator[tuple[Call, list[Tensor]]]:
        """Every call of a layer with a rule, and ∂m_bk/∂(its output) of each of the ``subtasks``.

        What is given is forgotten here, so that it is in memory no longer than it is used.
        """
        waiting = [deque(self._deltas(k)) for k in subtasks]
        for call in (*self._calls_on_top, *self._calls_below):
            yield call, [deltas.popleft() for deltas in waiting]

    def _deltas(self, k: int) -> list[Tensor]:
        """∂m_bk/∂output of each call, those on top first.

        An expert's gradient with the gates' factor is α_ki times that without, so that where the
        last level was passed without, what lies below it needs no second pass through it.
        """
        top, below = self._calls_on_top, self._calls_below
        wanted = [call.output for call in below]
        if not self.parts.ungated:
            ones = torch.zeros_like(self.outputs)
            ones[:, k] = 1
            return self._grad(self.outputs, wanted, ones) if below else []
        assert self.trace is not None
        assert self._entry is not None
        cotangent = self.cotangent(k)
        entries = [self._entry] if below else []
        deltas = self._grad(
            self.trace.pooled, [*(call.output for call in top), *entries], cotangent
        )
        if below:
            alpha = self.trace.attention[-1][k].detach()
            entry = deltas.pop()
            gated = alpha.to(entry).view(1, -1, *(1,) * (entry.ndim - 2)) * entry
            deltas += self._grad(self._entry, wanted, gated)
        return deltas

    def by_functions(self, k: int) -> dict[str, Tensor]:
        """∂m_bk/∂θ of every layer without a rule, B×U×C×d; not of those that torch.func can't take.

        Those are ``unfit`` from then on.
        """
        gradients: dict[str, Tensor] = {}
        for fixed in (None, self.cotangent(k) if self._on_top else None):
            gradients |= self._without_rules(k, fixed)
        return gradients

    def cotangent(self, k: int) -> Tensor:
        """∂m_bk/∂(input of head k), for every expert of the last level, B×N×D."""
        assert self.trace is not None
        (delta,) = torch.autograd.grad(
            self.outputs[:, k].sum(), self.trace.inputs, retain_graph=True
        )
        others = delta.nan_to_num()  # what is not finite is named later
        if bool(others[:, :k].any() | others[:, k + 1 :].any()):
            raise KdxError(
                f"head {k} of the explainer reads another subtask's input, so no gradient belongs "
                "to one gate; give margins=lambda outputs: outputs to probe the actual gradients"
            )
        return delta[:, k].unsqueeze(1).expand_as(self.trace.pooled)

    def _without_rules(self, k: int, cotangent: Tensor | None) -> dict[str, Tensor]:
        """Gradients of the layers without a rule, of those on top by their ``cotangent``."""
        layers = [
            layer
            for layer in self.layers
            if layer.rule is None
            and layer.name not in self.unfit
            and (layer in self._on_top) == (cotangent is not None)
        ]
        if not layers:
            return {}
        try:
            return _by_functions(self.parts, layers, self.images, k, cotangent)
        # torch.func lacks some operations and all branches on values; plain autograd is left.
        except Exception:
            self.unfit |= {layer.name for layer in layers}
            return {}

    def _sums(
        self, outputs: Tensor, layers: Sequence[Layer], weights: Tensor
    ) -> dict[str, list[Tensor]]:
        """Σ w ∂outputs/∂θ of every layer, in one backward pass."""
        if not layers:
            return {}
        parameters = [p for layer in layers for p in layer.parameters.values()]
        gradients = iter(self._grad(outputs, parameters, weights))
        sums = {}
        for layer in layers:
            sums[layer.name] = list(islice(gradients, len(layer.parameters)))
        return sums

    def _grad(self, outputs: Tensor, inputs: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
        return list(
            torch.autograd.grad(outputs, inputs, weights, retain_graph=True, materialize_grads=True)
        )


def _reads(outputs: Tensor, layers: Sequence[Layer]) -> bool:
    """Whether the graph of ``outputs`` holds a parameter of the ``layers``."""
    wanted = {id(parameter) for layer in layers for parameter in layer.parameters.values()}
    return any(id(getattr(node, "variable", None)) in wanted for node in nodes(outputs))


class _Forward(nn.Module):
    """One subtask's margin of one image, or its last features against a fixed cotangent."""

    def __init__(self, parts: Parts, k: int) -> None:
        super().__init__()
        self.model, self.parts, self.k = parts.model, parts, k

    def forward(self, image: Tensor, cotangent: Tensor | None) -> Tensor:
        outputs, trace = self.parts.outputs(image.unsqueeze(0))
        if cotangent is None or trace is None:
            return outputs[0, self.k]
        return (trace.pooled[0] * cotangent).sum()


def _by_functions(
    parts: Parts, layers: Sequence[Layer], images: Tensor, k: int, cotangent: Tensor | None
) -> dict[str, Tensor]:
    """Per-sample gradients of layers without a rule, each B×size, expert by expert."""
    forward = _Forward(parts, k)
    weights = {
        f"model.{name}": p.detach() for layer in layers for name, p in layer.parameters.items()
    }

    def value(parameters: dict[str, Tensor], image: Tensor, fixed: Tensor | None) -> Tensor:
        return torch.func.functional_call(forward, parameters, (image, fixed))

    in_dims = (None, 0, None if cotangent is None else 0)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels know no vmap
        by_sample = torch.func.vmap(torch.func.grad(value), in_dims=in_dims)
        gradients = by_sample(weights, images, cotangent)
    by_layer = {}
    for layer in layers:
        by_parameter = [gradients[f"model.{name}"] for name in layer.parameters]
        by_layer[layer.name] = layer.joined(by_parameter)
    return by_layer


@dataclass(frozen=True)
class Call:
    """A layer's call in a forward pass.

    Attributes:
        layer: that is called.
        given: its input, detached.
        output: on the graph.
    """

    layer: Layer
    given: Tensor
    output: Tensor


@contextmanager
def _entered(parts: Parts) -> Iterator[list[Tensor]]:
    """What enters an explainer's last level while the body runs."""
    entries: list[Tensor] = []
    if not isinstance(parts.model, HME):
        yield entries
        return

    def keep(level: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        entries.append(inputs[0])

    handle = parts.model.levels[-1].register_forward_pre_hook(keep)
    try:
        yield entries
    finally:
        handle.remove()


@contextmanager
def captured(
    parts: Parts, layers: Sequence[Layer], B: int
) -> Iterator[tuple[list[Call], set[str]]]:
    """Every call of ``layers`` inside the body, and the names of those called on anything but B×….

    Both are collected while the body runs, in which grouped convolutions are quick.
    """
    calls: list[Call] = []
    unfit: set[str] = set()

    def keeper(
        layer: Layer,
    ) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], Tensor]:
        def keep(
            module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor
        ) -> Tensor:
            (given,) = (*inputs, *named.values())
            if given.ndim != 4 or len(given) != B:
                unfit.add(layer.name)
                return output
            calls.append(Call(layer, given.detach(), output))
            # An in-place activation behind the layer must not overwrite what was kept.
            return output.clone()

        return keep

    # In front of the user's hooks, which may change the output that the rest of the model reads.
    handles = [
        layer.module.register_forward_hook(keeper(layer), prepend=True, with_kwargs=True)
        for layer in layers
    ]
    try:
        with side_by_side_quickly(parts.model):
            yield calls, unfit
    finally:
        for handle in handles:
            handle.remove()

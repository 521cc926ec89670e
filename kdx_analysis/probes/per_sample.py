"""Per-sample gradients of every subtask's margin: one forward pass, then one backward pass a subtask.

They live for one subtask and one chunk of layers and samples at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdx_analysis.errors import KdxError
from kdx_analysis.probes.parts import Layer, Parts


def per_sample(
    parts: Parts, chunk: Sequence[Layer], images: Tensor, num_classes: int
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

    def __init__(self, parts: Parts, k: int) -> None:
        super().__init__()
        self.model, self.parts, self.k = parts.model, parts, k

    def forward(self, image: Tensor, cotangent: Tensor | None) -> Tensor:
        outputs, trace = self.parts.outputs(image.unsqueeze(0))
        return outputs[0, self.k] if cotangent is None or trace is None else (trace.pooled[0] * cotangent).sum()


def _by_functions(
    parts: Parts, layers: Sequence[Layer], images: Tensor, k: int, cotangent: Tensor | None
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


@dataclass(frozen=True)
class _Call:
    """A layer's call in a forward pass: what its gradients need of its input, and its output on the graph."""

    layer: Layer
    prepared: Tensor
    output: Tensor


@contextmanager
def _captured(layers: Sequence[Layer]) -> Iterator[list[_Call]]:
    """Collect every call of ``layers`` inside the body."""
    calls: list[_Call] = []

    def keeper(layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
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

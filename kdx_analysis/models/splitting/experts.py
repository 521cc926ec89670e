"""A level: N copies of one expert, computed side by side."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models.redraw import draw_anew, moments
from kdx_analysis.models.splitting.layers import ELEMENTWISE, Layout, is_layer, repeated, widened
from kdx_analysis.models.splitting.tracing import fetch, on_meta, owner, trace

_IN_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    "add_": "add",
    "sub_": "sub",
    "mul_": "mul",
    "div_": "div",
    "relu_": "relu",
    "sigmoid_": "sigmoid",
}
_ELEMENTWISE: frozenset[Any] = frozenset(
    {
        operator.add,
        operator.sub,
        operator.mul,
        operator.truediv,
        torch.add,
        torch.sub,
        torch.mul,
        torch.div,
        "add",
        "sub",
        "mul",
        "div",
    }
)
_EITHER: frozenset[Any] = _ELEMENTWISE | {
    operator.neg,
    torch.relu,
    torch.sigmoid,
    torch.tanh,
    F.relu,
    F.relu6,
    F.leaky_relu,
    F.elu,
    F.gelu,
    F.silu,
    F.mish,
    F.hardswish,
    F.hardsigmoid,
    F.hardtanh,
    F.softplus,
    F.sigmoid,
    F.tanh,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d,
    "relu",
    "sigmoid",
    "tanh",
    "contiguous",
    "clone",
}
_EITHER_MODULES = (*ELEMENTWISE, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
# What gives another result every time has to be computed for each expert.
_RANDOM = (nn.Dropout,)


class Level(nn.Module):
    """N experts side by side: B×N×C×H×W to B×N×C'×H'×W', or B×N×T×D to B×N×T×D' for tokens.

    Every parameter stands expert by expert, its first axis divisible by N; convolutions of all
    experts are one grouped convolution, linear layers one batched product. Where all experts read
    the same features, these come once, B×1×…, and the convolutions that read them are one dense
    convolution.

    Args:
        template: one expert as a graph of layers; where its parameters lie on the meta device,
            ``device`` says where the level's are to lie.
        experts: N.
        scales: mean and deviation of parameters that no ``reset_parameters`` draws, by name.
        device: by default the template's.
        shared: whether all experts read the same features.
    """

    def __init__(
        self,
        template: fx.GraphModule,
        experts: int,
        scales: Mapping[str, tuple[float, float]] | None = None,
        device: torch.device | str | None = None,
        *,
        shared: bool = False,
    ) -> None:
        super().__init__()
        if experts < 1:
            raise KdxError(f"experts = {experts} on a level; give 1 or more")
        self.experts, self.shared = experts, shared
        first = next(template.parameters(), torch.empty(0))
        device = first.device if device is None else torch.device(device)
        self._template = (on_meta(template),)  # in a tuple, so that it is no part of the state
        self._scales = dict(scales or {})
        self.body, self._reads, self._gives = _side_by_side(
            self._template[0], template, experts, device, shared
        )
        if device.type != "meta":
            self.reset_parameters()

    @classmethod
    def of(cls, expert: nn.Module, experts: int, *, shared: bool = False) -> Level:
        """Copies of ``expert``, as many as ``experts`` says, with weights drawn anew.

        They are drawn by the ``reset_parameters`` of its layers. ``shared``: all read the same
        features.
        """
        scales = {name: moments(parameter) for name, parameter in expert.named_parameters()}
        return cls(trace(expert), experts, scales, shared=shared)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw each expert's weights as its layers draw theirs, and reset running statistics."""
        stacked = self._stacked
        for i in range(self.experts):
            # On the CPU, so that a seed draws the same weights on every device.
            expert = copy.deepcopy(self._template[0]).to_empty(device="cpu")
            draw_anew(expert, self._scales)
            drawn = expert.state_dict()
            for name, tensor in self.body.state_dict().items():
                if name in stacked:
                    tensor.view(self.experts, *drawn[name].shape)[i] = drawn[name].to(tensor)
                elif name.endswith("num_batches_tracked"):
                    tensor.zero_()

    @torch.no_grad()
    def take(self, experts: Sequence[int]) -> Level:
        """A level of these experts only, in this order, their weights copied."""
        mine = self.body.state_dict()
        device = next((tensor.device for tensor in mine.values()), torch.device("cpu"))
        level = Level.__new__(Level)
        nn.Module.__init__(level)
        level.experts, level._template, level._scales = len(experts), self._template, self._scales
        level.shared = self.shared
        level.body, level._reads, level._gives = _side_by_side(
            self._template[0], self.body, len(experts), device, self.shared
        )
        level.body.to(
            next((tensor.dtype for tensor in mine.values() if tensor.is_floating_point()), None)
        )
        chosen, stacked = torch.tensor(experts, device=device), self._stacked
        for name, tensor in level.body.state_dict().items():
            source = mine[name]
            if name in stacked:
                source = source.unflatten(0, (self.experts, -1))[chosen].reshape(tensor.shape)
            tensor.copy_(source)
        return level.train(self.training)

    @property
    def _stacked(self) -> frozenset[str]:
        """Names of the tensors that stand expert by expert."""
        alone, together = self._template[0].state_dict(), self.body.state_dict()
        if strange := sorted(together.keys() - alone.keys()):
            raise KdxError(
                f"the experts hold {strange[0]!r}, which they were not made with; fold or detach "
                "VAM first"
            )
        return frozenset(
            name
            for name, tensor in together.items()
            if tensor.ndim and tensor.numel() == self.experts * alone[name].numel()
        )

    def forward(self, x: Tensor) -> Tensor:
        """The experts' inputs, B×N×… or, where shared, B×1×…, to their features, B×N×…."""
        x = self.body(x.flatten(0, 1) if self._reads == "batch" else x.flatten(1, 2))
        return (
            x.unflatten(1, (self.experts, -1))
            if self._gives == "side"
            else x.unflatten(0, (-1, self.experts))
        )


def _side_by_side(
    template: fx.GraphModule,
    opaque: nn.Module,
    experts: int,
    device: torch.device,
    shared: bool,
) -> tuple[fx.GraphModule, Layout, Layout]:
    """``template``'s graph for N experts, and the layouts of what it reads and gives.

    Its parameters are empty. ``opaque`` holds what has no parameters, under the template's names.
    """
    return _Builder(template, opaque, experts, device, shared).build()


class _Builder:
    """Goes through one expert's graph and writes that of N, converting between layouts."""

    def __init__(
        self,
        template: fx.GraphModule,
        opaque: nn.Module,
        experts: int,
        device: torch.device,
        shared: bool,
    ) -> None:
        self.template, self.opaque, self.experts, self.device = template, opaque, experts, device
        self.shared = shared
        self.graph = fx.Graph()
        self.parts: dict[str, Any] = {}
        self.written: dict[fx.Node, fx.Node] = {}
        self.layout: dict[fx.Node, Layout | None] = {}  # None: parameters of the experts, N×…
        self.converted: dict[tuple[fx.Node, Layout], fx.Node] = {}

    def build(self) -> tuple[fx.GraphModule, Layout, Layout]:
        reads: Layout = "shared" if self.shared else self._first_layout()
        gives: Layout = reads
        for node in self.template.graph.nodes:
            if node.op == "output":
                (result,) = node.all_input_nodes
                layout = self.layout[result] or "batch"
                gives = "side" if layout == "shared" else layout
                self.graph.output(self._converted(result, gives))
            else:
                self.written[node], self.layout[node] = self._write(node, reads)
        return fx.GraphModule(self.parts, self.graph), reads, gives

    def _first_layout(self) -> Layout:
        """That of the first layer which has one."""
        for node in self.template.graph.nodes:
            if node.op == "call_module":
                layer = self.template.get_submodule(str(node.target))
                if is_layer(layer):
                    return repeated(layer, 1)[1]
                if not isinstance(layer, _EITHER_MODULES):
                    return "batch"
            elif node.op in ("call_function", "call_method") and node.target not in _EITHER:
                return "batch"
        return "side"

    def _write(self, node: fx.Node, reads: Layout) -> tuple[fx.Node, Layout | None]:
        match node.op:
            case "placeholder":
                return self.graph.placeholder(node.name), reads
            case "get_attr":
                return self._attribute(node)
            case "call_module":
                return self._module(node)
        if all(self.layout[n] is None for n in node.all_input_nodes):
            each = self._add(
                f"each_{node.name}", _Each(node.op, node.target, node.args[1:], dict(node.kwargs))
            )
            return self.graph.call_module(each, (self.written[node.all_input_nodes[0]],)), None
        target = _IN_PLACE.get(node.target, node.target)
        if any(self.layout[n] is None for n in node.all_input_nodes):
            return self._join(node, target)
        layout: Layout = self._common(node) if target in _EITHER else "batch"
        args, kwargs = self._arguments(node, layout)
        return self.graph.create_node(node.op, target, args, kwargs), layout

    def _attribute(self, node: fx.Node) -> tuple[fx.Node, Layout | None]:
        target = str(node.target)
        value = fetch(self.template, target)
        if isinstance(value, nn.Parameter):
            self.parts[target] = nn.Parameter(
                torch.empty(self.experts, *value.shape, device=self.device)
            )
            return self.graph.get_attr(target), None
        self.parts[target] = copy.deepcopy(fetch(self.opaque, target)).to(self.device)
        return self.graph.get_attr(target), "batch"

    def _module(self, node: fx.Node) -> tuple[fx.Node, Layout]:
        target = str(node.target)
        module = self.template.get_submodule(target)
        layout: Layout
        if is_layer(module):
            if isinstance(module, nn.Conv2d) and self._can_share(node, module):
                self._set(target, widened(module, self.experts))
                args, kwargs = self._arguments(node, "shared")
                return self.graph.call_module(target, args, kwargs), "side"
            new, layout = repeated(module, self.experts)
            self._set(target, new)
        else:
            layout = self._common(node) if isinstance(module, _EITHER_MODULES) else "batch"
            if layout == "shared" and isinstance(module, _RANDOM):
                layout = "side"
            if target not in self.parts:
                self.parts[target] = (
                    copy.deepcopy(self.opaque.get_submodule(target)).to(self.device).train()
                )
                if hasattr(self.parts[target], "inplace"):
                    self.parts[target].inplace = False
        args, kwargs = self._arguments(node, layout)
        return self.graph.call_module(target, args, kwargs), layout

    def _set(self, target: str, layer: nn.Module) -> None:
        """Keep ``layer`` with empty parameters; one that is called again is there already."""
        if target not in self.parts:
            self.parts[target] = layer.to_empty(device=self.device).train()

    def _can_share(self, node: fx.Node, layer: nn.Conv2d) -> bool:
        """Whether a convolution reads the same features for all experts.

        It must do so wherever it is called, since it has one set of weights.
        """
        calls = [n for n in self.template.graph.nodes if n.target == node.target]
        return layer.groups == 1 and len(calls) == 1 and self._common(node) == "shared"

    def _join(self, node: fx.Node, target: Any) -> tuple[fx.Node, Layout]:
        """An operation on features and parameters that each expert has for itself."""
        if target not in _ELEMENTWISE or node.kwargs or len(node.all_input_nodes) != 2:
            name = getattr(target, "__name__", target)
            raise KdxError(
                f"module {owner(node)!r} uses a parameter of its own in {name}, which can't be "
                "done for experts side by side; put the parameter into a layer of torch.nn"
            )
        parameter_first = self.layout[node.args[0]] is None  # type: ignore[index]
        join = self._add(f"join_{node.name}", _Join(target, self.experts, parameter_first))
        args, _ = self._arguments(node, "batch")
        return self.graph.call_module(join, args), "batch"

    def _add(self, name: str, module: nn.Module) -> str:
        self.parts[name] = module
        return name

    def _common(self, node: fx.Node) -> Layout:
        """The layout of a node's inputs; of those that differ the first that isn't shared."""
        layouts = [layout for n in node.all_input_nodes if (layout := self.layout[n])]
        apart = [layout for layout in layouts if layout != "shared"]
        return next(iter([*apart, *layouts]), "batch")

    def _arguments(self, node: fx.Node, layout: Layout) -> tuple[Any, Any]:
        convert = partial(self._converted, layout=layout)
        return fx.node.map_arg(node.args, convert), fx.node.map_arg(node.kwargs, convert)

    def _converted(self, node: fx.Node, layout: Layout) -> fx.Node:
        """What a node gives in another layout."""
        present = self.layout[node]
        if present is None or present == layout:
            return self.written[node]
        if (node, layout) not in self.converted:
            kind = _CONVERSIONS[present, layout]
            name = self._add(f"{present}_to_{layout}", kind(self.experts))
            self.converted[node, layout] = self.graph.call_module(name, (self.written[node],))
        return self.converted[node, layout]


class _Conversion(nn.Module):
    """From one layout to another."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts


class _SideToBatch(_Conversion):
    """B×(N·C)×H×W to (B·N)×C×H×W."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.experts, -1)).flatten(0, 1)


class _BatchToSide(_Conversion):
    """(B·N)×C×H×W to B×(N·C)×H×W."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, self.experts)).flatten(1, 2)


class _SharedToSide(_Conversion):
    """B×C×H×W to B×(N·C)×H×W."""

    def forward(self, x: Tensor) -> Tensor:
        # Copies put side by side, unlike an expanded view, keep the memory format.
        return torch.cat([x] * self.experts, dim=1)


class _SharedToBatch(_Conversion):
    """B×… to (B·N)×…."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.experts, dim=0)


_CONVERSIONS: dict[tuple[Layout, Layout], type[_Conversion]] = {
    ("side", "batch"): _SideToBatch,
    ("batch", "side"): _BatchToSide,
    ("shared", "side"): _SharedToSide,
    ("shared", "batch"): _SharedToBatch,
}


class _Each(nn.Module):
    """An operation on each expert's own parameter, N×… to N×…."""

    def __init__(self, op: str, target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.op, self.target, self.args, self.kwargs = op, target, tuple(args), kwargs

    def forward(self, parameters: Tensor) -> Tensor:
        one: Callable[..., Tensor] = (
            self.target if self.op == "call_function" else getattr(Tensor, self.target)
        )
        return torch.stack([one(p, *self.args, **self.kwargs) for p in parameters.unbind()])


class _Join(nn.Module):
    """An elementwise operation on features, (B·N)×…, and each expert's own parameters, N×…."""

    def __init__(self, target: Any, experts: int, parameter_first: bool) -> None:
        super().__init__()
        self.operation = getattr(torch, target) if isinstance(target, str) else target
        self.experts, self.parameter_first = experts, parameter_first

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        each, x = (a, b) if self.parameter_first else (b, a)
        if each.ndim == x.ndim + 1:  # the expert's parameter has an axis for the batch
            each = each.squeeze(1)
        each = each.reshape(each.shape[0], *(1,) * (x.ndim - each.ndim), *each.shape[1:])
        apart = x.unflatten(0, (-1, self.experts))
        operands = (each, apart) if self.parameter_first else (apart, each)
        return self.operation(*operands).flatten(0, 1)

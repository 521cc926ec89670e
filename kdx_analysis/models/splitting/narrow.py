"""One expert: a stage's graph with narrower layers, their inputs as wide as what comes in."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from kdx_analysis.errors import KdxError
from kdx_analysis.models.splitting.layers import KEEP_SHAPE, LAYERS, Widths, is_layer, narrowed
from kdx_analysis.models.splitting.tracing import Sizes, fetch, on_meta, owner, reason

HOW = (
    'declare other stages, as from_student(..., stages=["layer1", "layer2"]), so that it lies '
    "in the trunk"
)


@dataclass(frozen=True)
class Narrow:
    """A stage with its widths changed, on the meta device.

    Attributes:
        stage: the stage that it was made of.
        made: its layers and parameters, by path.
        reads, shape: of what comes in and of its features, for one image.
    """

    stage: fx.GraphModule
    made: Mapping[str, Any]
    reads: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """How many scalars one expert has."""
        each = (m.parameters() if isinstance(m, nn.Module) else [m] for m in self.made.values())
        return sum(parameter.numel() for parameter in chain.from_iterable(each))

    def flops(self) -> int:
        """Floating-point operations of one expert for one image."""
        return flops(self.assembled(self.stage), self.reads)

    def assembled(self, stage: fx.GraphModule) -> fx.GraphModule:
        """One expert as a graph; what holds no parameters is copied from ``stage``."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(stage.graph, {}))
        used = {
            str(node.target) for node in stage.graph.nodes if node.op in ("call_module", "get_attr")
        }
        opaque = {target: copy.deepcopy(fetch(stage, target)) for target in used - self.made.keys()}
        return fx.GraphModule({**opaque, **self.made}, graph)


def narrow(stage: fx.GraphModule, shape: Sequence[int], widths: Widths) -> Narrow:
    """``stage``, on the meta device, for inputs of ``shape`` and with its own widths changed.

    Only outputs are narrowed by ``widths``; every layer reads what the layers before it give, so
    that channels put one behind another (DenseNet, ShuffleNet) add up. A layer whose output is
    added to a shortcut of another width takes that width. Raises KdxError for a module that can't
    be narrowed, by name.
    """
    fitted: dict[str, int] = {}
    while True:
        narrowing = _Narrowing(stage, widths, fitted)
        try:
            with torch.no_grad():
                features: Tensor = narrowing.run(torch.empty(2, *shape, device="meta"))
        except _Misfit as misfit:
            fitted = fitted | {misfit.layer: misfit.width}
            continue
        return Narrow(stage, narrowing.made, tuple(shape), tuple(features.shape[1:]))


def flops(graph: fx.GraphModule, shape: Sequence[int]) -> int:
    """Floating-point operations (2 per multiply-add) of a graph for one input of ``shape``."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Sizes(on_meta(graph)).run(torch.empty(1, *shape, device="meta"))
    return int(counter.get_total_flops())


def units(stages: Sequence[fx.GraphModule]) -> dict[int, int]:
    """Number of channels → number of groups, for what grouped convolutions read and give."""
    groups: dict[int, int] = {}
    for stage in stages:
        for conv in stage.modules():
            if isinstance(conv, nn.Conv2d) and 1 < conv.groups < conv.in_channels:
                for channels in (conv.in_channels, conv.out_channels):
                    groups[channels] = math.lcm(groups.get(channels, 1), conv.groups)
    return groups


_SUMS = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})


class _Misfit(Exception):  # noqa: N818
    """A layer would have to be of another width for a sum to fit."""

    def __init__(self, layer: str, width: int) -> None:
        super().__init__(layer, width)
        self.layer, self.width = layer, width


class _Narrowing(Sizes):
    """Runs a stage on the meta device and makes each layer anew when its input is known."""

    def __init__(self, stage: fx.GraphModule, widths: Widths, fitted: Mapping[str, int]) -> None:
        super().__init__(stage)
        self.widths, self.fitted = widths, fitted
        self.made: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.target in _SUMS and len(n.all_input_nodes) == 2:
            self._check_sum(*n.all_input_nodes)
        try:
            return super().run_node(n)
        except Exception as error:
            raise KdxError(
                f"module {owner(n)!r} can't be narrowed into experts: {reason(error)}; {HOW}"
            ) from error

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if target not in self.made and is_layer(module):
            fitted = self.fitted.get(target)
            self.made[target] = narrowed(
                module, args[0], self.widths if fitted is None else Widths(1, every=fitted)
            )
        elif target not in self.made and next(module.parameters(), None) is not None:
            known = ", ".join(kind.__name__ for kind in LAYERS)
            raise KdxError(f"it is a {type(module).__name__}; known are {known}")
        if isinstance(module, KEEP_SHAPE):
            return args[0]
        return self.made.get(target, module)(*args, **kwargs)

    def _check_sum(self, a: fx.Node, b: fx.Node) -> None:
        """Raise _Misfit if maps of a sum differ in width and a layer behind one can be fitted."""
        maps = [
            value
            for node in (a, b)
            if isinstance(value := self.env[node], Tensor) and value.ndim == 4
        ]
        widths = [value.shape[1] for value in maps]
        if len(widths) < 2 or widths[0] == widths[1] or 1 in widths:
            return
        for node, wanted in ((a, widths[1]), (b, widths[0])):
            layer = self._width_from(node)
            if layer is not None and layer not in self.fitted:
                raise _Misfit(layer, wanted)

    def _width_from(self, node: fx.Node) -> str | None:
        """The convolution that gives ``node`` its width, if all layers between keep it."""
        while node.op == "call_module":
            module = self.fetch_attr(str(node.target))
            if isinstance(module, nn.Conv2d):
                return None if module.groups == module.in_channels > 1 else str(node.target)
            if not isinstance(module, KEEP_SHAPE) and next(module.parameters(), None) is not None:
                return None
            node = node.all_input_nodes[0]
        return None

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = self.fetch_attr(target)
        if isinstance(value, nn.Parameter) and target not in self.made:
            size = [self.widths(n) if n > 1 else n for n in value.shape]
            self.made[target] = nn.Parameter(value.new_empty(size))
        return self.made.get(target, value)

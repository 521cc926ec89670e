"""A model as a graph of its layers, by torch.fx."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import fx, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models.modes import modes_kept
from kdx_analysis.models.splitting import layers

M = TypeVar("M", bound=nn.Module)


class Tracer(fx.Tracer):
    """Keeps whole the layers with parameters, modules without any, and what can't be traced."""

    def __init__(self, whole: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.whole = whole
        self.failed: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.whole or layers.is_layer(m):
            return True
        return (
            not isinstance(m, nn.Sequential | nn.ModuleList) and next(m.parameters(), None) is None
        )

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


def trace(model: nn.Module) -> fx.GraphModule:
    """``model`` as a graph of its layers, whose modules it shares.

    Raises KdxError where the model can't be traced.
    """
    whole: frozenset[str] = frozenset()
    while True:
        tracer = Tracer(whole)
        try:
            return fx.GraphModule(model, _one_input(tracer.trace(model, _defaults(model))))
        except Exception as error:
            if tracer.failed is None or tracer.failed in whole:
                raise KdxError(
                    f"{type(model).__name__} can't be traced: {reason(error)}; write its forward "
                    "without branches on values, or declare as stages= the modules that it calls "
                    "one after the other, the first on the images, and give image_shape="
                ) from error
            whole |= {tracer.failed}


def _defaults(model: nn.Module) -> dict[str, Any]:
    """The arguments of ``forward`` that need not be given, and what they are then."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in list(parameters)[1:] if p.default is not p.empty}


def _one_input(graph: fx.Graph) -> fx.Graph:
    """``graph`` without inputs fixed to their defaults, assertions and type annotations."""
    for node in reversed(graph.nodes):
        node.type = None  # one that is a string can't be pickled
        checks = node.target is torch._assert or "assert" in node.name
        if not node.users and (
            checks or node.op == "placeholder" or node.target in (operator.eq, getattr)
        ):
            graph.erase_node(node)
    return graph


def trace_modes(model: nn.Module) -> fx.GraphModule:
    """Trace in train mode, and refuse a model that would compute something else in eval mode."""
    with modes_kept(model):
        in_eval, in_train = trace(model.eval()), trace(model.train())
    for a, b in zip(in_eval.graph.nodes, in_train.graph.nodes, strict=False):
        if str((a.op, a.target, a.args, a.kwargs)) != str((b.op, b.target, b.args, b.kwargs)):
            raise KdxError(
                f"module {owner(b) or type(model).__name__!r} computes other things in train mode "
                "than in eval mode; put the difference into a module without parameters, as "
                "nn.Dropout is"
            )
    return in_train


def on_meta(model: M) -> M:
    """A copy of a module in eval mode on the meta device; no parameter or buffer is copied."""
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(t): t.detach().to("meta") for t in tensors}
    memo |= {id(p): nn.Parameter(memo[id(p)], p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo).eval()


class Sizes(fx.Interpreter):
    """Runs a graph for its shapes alone: what keeps them is passed by."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        keeps = isinstance(self.fetch_attr(target), layers.KEEP_SHAPE)
        return args[0] if keeps else super().call_module(target, args, kwargs)


def fetch(module: nn.Module, target: str) -> Any:
    """The module, parameter or buffer at a dotted path."""
    *path, last = target.split(".")
    return getattr(module.get_submodule(".".join(path)), last)


def owner(node: fx.Node) -> str:
    """Path of the innermost module that ``node`` belongs to; '' for the model itself."""
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack.values()))[0] if stack else ""


def paths(node: fx.Node) -> list[str]:
    """Paths of all modules that a node belongs to, outermost first, a layer's own last."""
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return [*stack, str(node.target)] if node.op == "call_module" else stack


def reason(error: Exception) -> str:
    """An exception's message on one line."""
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__

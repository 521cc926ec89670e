"""Where a classifier's trunk, stages and classifier lie, found by tracing it through torch.fx.

A *cut* is a tensor through which everything passes: no edge of the traced graph goes around it.
Convolutional stages end at the last cut before the resolution falls, a transformer's at cuts before
its blocks.
"""

from __future__ import annotations

import math
import operator
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models.modes import modes_kept
from kdx_analysis.models.splitting import layers
from kdx_analysis.models.splitting.tracing import Sizes, on_meta, paths, reason, trace_modes

# A trunk and three levels; the released code of KDExplainer has three levels of experts, too.
MAX_STAGES = 4
# Stages are told apart by resolution, which small images lose before the last stage: they are
# looked for at ImageNet's size where the network takes it.
_FIND_AT = 224


@dataclass(frozen=True)
class Stages:
    """A classifier taken apart; the parts hold the classifier's own modules.

    Attributes:
        whole: the classifier.
        trunk: images to the first stage's features.
        body: the later stages, each from the features before it to its own.
        classifier: parameters of what follows the last stage.
        shapes: of one image (C×H×W), then of the features behind trunk and each stage: C×H×W or, of
            tokens, T×D.
        reads: what the classifier reads: ``mean`` (of all positions) or ``token`` (the first
            token).
        names: module paths of trunk and stages, for tables.
    """

    whole: fx.GraphModule
    trunk: fx.GraphModule
    body: tuple[fx.GraphModule, ...]
    classifier: int
    shapes: tuple[tuple[int, ...], ...]
    reads: str
    names: tuple[str, ...]


def find_stages(
    model: nn.Module,
    declared: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
) -> Stages:
    """Trace ``model`` and find its stages, or end them where the ``declared`` module paths end.

    More than four stages found by resolution, and transformer blocks, are merged into a trunk and
    three levels.

    Args:
        model: images to B×K; left as it is.
        declared: paths of the stages' last modules, the trunk's first, as ``["layer1", "layer2",
            "layer3"]``.
        image_shape: C×H×W; by default the first of some common sizes that fits.

    Raises:
        KdxError: what in the model can't be split, named by module, and how to declare its stages.
    """
    try:
        graph = trace_modes(model)
    except KdxError:
        if declared is None or image_shape is None:
            raise
        graph = trace_modes(_chain(model, declared, image_shape))
        declared = [path.replace(".", "_") for path in declared]
    shape = _fitting_shape(model, graph, image_shape)
    large = (shape[0], _FIND_AT, _FIND_AT)
    if declared is not None:
        _propagate(graph, shape)
        ends = _declared_ends(graph, declared)
    else:
        if not _fits(graph, large):
            _propagate(graph, shape)
        ends = _found_ends(graph, model)
        _propagate(graph, shape)
    return _take_apart(graph, ends, shape, sum(p.numel() for p in model.parameters()))


def _chain(model: nn.Module, declared: Sequence[str], image_shape: Sequence[int]) -> nn.Sequential:
    """The declared modules one after the other.

    Raises KdxError if that is not how ``model`` calls them.
    """
    try:
        modules = [model.get_submodule(path) for path in declared]
    except AttributeError as error:
        raise KdxError(f"stages = {list(declared)}: {reason(error)}") from None
    seen: list[tuple[Any, Any]] = []
    like = next((p for p in model.parameters()), torch.empty(0))
    images = torch.zeros(2, *image_shape, dtype=like.dtype, device=like.device)
    handles = [
        m.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        for m in modules
    ]
    try:
        with modes_kept(model), torch.no_grad(), torch.random.fork_rng():
            model.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
    given = [images, *(output for _, output in seen)]
    for path, (read, _), expected in zip(declared, seen, given, strict=False):
        if read is not expected:
            raise KdxError(
                f"module {path!r} does not read what the module declared before it gives; declare "
                "a chain"
            )
    if len(seen) != len(modules):
        raise KdxError(
            f"{len(modules)} stages are declared, {len(seen)} were called; declare modules called "
            "once"
        )
    return nn.Sequential(
        OrderedDict(zip((path.replace(".", "_") for path in declared), modules, strict=True))
    )


class _Shapes(Sizes):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["shape"] = tuple(result.shape) if isinstance(result, torch.Tensor) else None
        return result


def _propagate(graph: fx.GraphModule, shape: Sequence[int]) -> None:
    """Write the shape of every tensor, for two images, into its node."""
    # Shapes are the same in any precision, and the images have to be in that of the layers.
    meta = on_meta(graph).float()
    with torch.no_grad():
        _Shapes(meta, graph=graph.graph).run(torch.empty(2, *shape, device="meta"))


def _fits(graph: fx.GraphModule, shape: Sequence[int]) -> bool:
    try:
        _propagate(graph, shape)
    except Exception:
        return False
    return True


def _fitting_shape(
    model: nn.Module, graph: fx.GraphModule, image_shape: Sequence[int] | None
) -> tuple[int, ...]:
    if image_shape is not None:
        try:
            _propagate(graph, image_shape)
        except Exception as error:
            size = "×".join(map(str, image_shape))
            raise KdxError(
                f"images of {size} do not fit {type(model).__name__}: {reason(error)}; give "
                "another image_shape"
            ) from error
        return tuple(image_shape)
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    for side in (_FIND_AT, 32, 28, 8, 64, 96, 128, 160, 192, 256, 288, 299, 384):
        if _fits(graph, (channels, side, side)):
            return channels, side, side
    raise KdxError(
        f"images of {channels} channels and common sizes do not fit {type(model).__name__}; give "
        "image_shape="
    )


def _cuts(graph: fx.GraphModule) -> list[fx.Node]:
    """Tensors that no edge goes around, in order; the images are the first."""
    nodes = [node for node in graph.graph.nodes if node.op not in ("get_attr", "output")]
    place = {node: i for i, node in enumerate(nodes)}
    cuts, reach = [], -1
    for i, node in enumerate(nodes):
        if reach <= i and node.meta.get("shape"):
            cuts.append(node)
        reach = max([reach, *(place.get(user, len(nodes)) for user in node.users)])
    return cuts


def _declared_ends(graph: fx.GraphModule, declared: Sequence[str]) -> list[fx.Node]:
    if len(declared) < 2:
        raise KdxError(
            f"stages = {list(declared)} should be two module paths or more: the trunk's end, then "
            "levels'"
        )
    cuts, ends = set(_cuts(graph)), []
    for path in declared:
        inside = [node for node in graph.graph.nodes if path in paths(node)]
        if not inside:
            # Paths of two names at most: those of a whole large network would fill pages.
            known = sorted(
                {p for node in graph.graph.nodes for p in paths(node) if p.count(".") < 2}
            )
            raise KdxError(
                f"there is no module {path!r} on the way from images to outputs; there are "
                f"{', '.join(known)}"
            )
        end = next((node for node in reversed(inside) if node.meta.get("shape")), inside[-1])
        if end not in cuts:
            raise KdxError(
                f"module {path!r} can't end a stage: what follows reads more than its output"
            )
        ends.append(end)
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    for (path, end), (other, later) in pairwise(zip(declared, ends, strict=True)):
        if order[end] >= order[later]:
            raise KdxError(
                f"module {other!r} does not come after {path!r}; give the stages in the order of "
                "the forward pass"
            )
    return ends


def _found_ends(graph: fx.GraphModule, model: nn.Module) -> list[fx.Node]:
    cuts = _cuts(graph)
    attentions = [
        node
        for node in graph.graph.nodes
        if node.op == "call_module" and layers.is_attention(graph.get_submodule(str(node.target)))
    ]
    ends = _block_ends(graph, cuts, attentions) if attentions else _resolution_ends(graph, cuts)
    if len(ends) < 2:
        raise KdxError(
            f"{type(model).__name__} has no stages to split: its features stay at one resolution; "
            'declare where trunk and levels end, as stages=["conv1", "conv2"]'
        )
    return ends


def _block_ends(
    graph: fx.GraphModule, cuts: Sequence[fx.Node], attentions: Sequence[fx.Node]
) -> list[fx.Node]:
    """Ends of four groups of transformer blocks.

    A block begins at the last cut before its attention.
    """
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    tokens = [node for node in cuts if len(node.meta["shape"]) == 3]
    blocks: list[fx.Node] = []
    for attention in attentions:
        before = [node for node in tokens if order[node] < order[attention]]
        if before and before[-1] not in blocks:
            blocks.append(before[-1])
    first = [
        group[0] for group in np.array_split(np.arange(len(blocks)), min(MAX_STAGES, len(blocks)))
    ]
    width = blocks[0].meta["shape"][2] if blocks else 0
    last = [c for c in tokens if c.meta["shape"][2] == width][-1:]
    return [*(blocks[int(i)] for i in first[1:]), *last]


def _resolution_ends(graph: fx.GraphModule, cuts: Sequence[fx.Node]) -> list[fx.Node]:
    """Ends of stages, one where the last block at each resolution ends.

    Of the cuts behind that block it is the one that ends the outermost module. Pooling before the
    classifier stands apart from the last stage.
    """
    maps = list(cuts[:1])
    for before, node in pairwise(cuts):
        if len(node.meta["shape"]) != 4 or _starts_classifier(graph, before, node):
            break
        maps.append(node)
    depth = _depths(graph)
    steps = []
    for _, run in groupby(maps, key=lambda node: node.meta["shape"][2:]):
        tail = _after_last_block(list(run))
        least = min(depth.get(node, math.inf) for node in tail)
        steps.append([node for node in tail if depth.get(node, math.inf) == least][-1])
    ends: list[fx.Node] = []
    start: fx.Node | None = None
    for end in [*steps[:-1], maps[-1]]:
        if _has_parameters(graph, start, end):
            ends.append(end)
        elif ends:
            ends[-1] = end
        start = end
    return ends[-MAX_STAGES:]


def _after_last_block(run: Sequence[fx.Node]) -> list[fx.Node]:
    """Of cuts at one resolution those from the last one on where branches meet, or else all."""
    for i in reversed(range(1, len(run))):
        if run[i].prev is not run[i - 1] and run[i].prev.op != "get_attr":
            return list(run[i:])
    return list(run)


def _depths(graph: fx.GraphModule) -> dict[fx.Node, int]:
    """How deep the outermost module lies that ends with a node.

    It is 0 for an operation of the model's own forward.
    """
    last: dict[str, fx.Node] = {}
    depths: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        last |= dict.fromkeys(paths(node), node)
        if not paths(node):
            depths[node] = 0
    for path, node in last.items():
        depths[node] = min(depths.get(node, path.count(".")), path.count("."))
    return depths


def _starts_classifier(graph: fx.GraphModule, before: fx.Node, node: fx.Node) -> bool:
    """Whether ``node`` begins the classifier.

    It does if it makes one position, or a grid of a fixed size, of the features before it, or is
    opaque.
    """
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else nn.Identity()
    if (
        isinstance(module, nn.AdaptiveAvgPool2d)
        or node.target is torch.nn.functional.adaptive_avg_pool2d
    ):
        return True
    if next(module.parameters(), None) is not None:
        return not layers.is_layer(module)
    size, was = node.meta["shape"][2:], before.meta["shape"][2:]
    return max(size) == 1 < max(was) and not _has_parameters(graph, before, node)


def _has_parameters(graph: fx.GraphModule, start: fx.Node | None, end: fx.Node) -> bool:
    inside = _between(graph, start, end)
    return any(
        node.op == "get_attr"
        or (
            node.op == "call_module"
            and next(graph.get_submodule(str(node.target)).parameters(), None) is not None
        )
        for node in inside
    )


def _between(graph: fx.GraphModule, start: fx.Node | None, end: fx.Node) -> list[fx.Node]:
    """The nodes after ``start`` up to ``end``, and the parameters that they read."""
    nodes = list(graph.graph.nodes)
    first = 0 if start is None else nodes.index(start) + 1
    between = nodes[first : nodes.index(end) + 1]
    read: dict[fx.Node, None] = {}  # in the order in which they are read first
    for node in between:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in between:
                read[source] = None
    return [*read, *between]


def _take_apart(
    graph: fx.GraphModule, ends: Sequence[fx.Node], shape: tuple[int, ...], size: int
) -> Stages:
    parts = [_part(graph, start, end) for start, end in zip([None, *ends], ends, strict=False)]
    kept = {id(p): p.numel() for part in parts for p in part.parameters()}
    classifier = size - sum(kept.values())
    shapes = (shape, *(tuple(end.meta["shape"][1:]) for end in ends))
    names = tuple(_name(graph, start, end) for start, end in zip([None, *ends], ends, strict=False))
    return Stages(
        graph, parts[0], tuple(parts[1:]), classifier, shapes, _read_by_classifier(ends[-1]), names
    )


def _part(graph: fx.GraphModule, start: fx.Node | None, end: fx.Node) -> fx.GraphModule:
    """The nodes after ``start`` up to ``end`` as a graph of their own."""
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    if start is not None:
        copies[start] = part.placeholder("x")
    for node in _between(graph, start, end):
        copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[end])
    return fx.GraphModule(graph, part)


def _read_by_classifier(end: fx.Node) -> str:
    for node in end.users:
        index = (
            node.args[1] if node.op == "call_function" and node.target is operator.getitem else None
        )
        if (
            len(end.meta["shape"]) == 3
            and isinstance(index, tuple)
            and len(index) == 2
            and index[1] == 0
        ):
            return "token"
    return "mean"


def _name(graph: fx.GraphModule, start: fx.Node | None, end: fx.Node) -> str:
    """The modules of a part, as ``layer2`` or ``features.2 – features.4``."""
    everywhere = _modules(graph.graph.nodes)
    inside = _modules(_between(graph, start, end))

    def shortest(target: str) -> str:
        """The outermost module around a layer that lies in this part as a whole."""
        parts = target.split(".")
        for depth in range(1, len(parts)):
            path = ".".join(parts[:depth])
            if all(other in inside for other in everywhere if f"{other}.".startswith(f"{path}.")):
                return path
        return target

    return " – ".join(dict.fromkeys(shortest(target) for target in (*inside[:1], *inside[-1:])))


def _modules(nodes: Iterable[fx.Node]) -> list[str]:
    """The paths of the layers that nodes call, in order."""
    return [str(node.target) for node in nodes if node.op == "call_module"]

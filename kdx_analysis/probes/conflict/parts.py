"""A model as gradients see it: levels, and on each the layers with parameters of their own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, StagedNet, Trace
from kdx_analysis.models.modes import WRAPPERS, in_full, undisturbed, unwrapped, usable
from kdx_analysis.models.splitting.layers import is_layer
from kdx_analysis.models.splitting.stages import MAX_STAGES, Stages, find_stages
from kdx_analysis.probes.conflict.layer_rules import Rule, rule_of
from kdx_analysis.probes.conflict.sharing import mixed, shared_modules
from kdx_analysis.probes.subtasks import answer
from kdx_analysis.registry import unknown


def own_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """A module's own parameters that can have gradients, with their names in it."""
    parameters = module.named_parameters(recurse=False)
    return [(name, p) for name, p in parameters if p.is_floating_point() or p.is_complex()]


@dataclass(frozen=True)
class Layer:
    """A module with parameters of its own, its level (from 0), and the number of experts there.

    ``rule`` gives its per-sample gradients from one backward pass over the batch; without one they
    are taken by torch.func, sample by sample at once.

    Gradients are laid out as U units of C rows of d numbers. ``by_channel`` a row is an output
    channel with all that it reads, and a unit lies in one expert and in one group of a convolution,
    as rules need it. Otherwise a unit is an expert and a row one number, parameter by parameter.
    """

    name: str
    module: nn.Module
    level: int
    rule: Rule | None
    experts: int
    by_channel: bool

    @classmethod
    def of(cls, name: str, module: nn.Module, level: int, experts: int) -> Layer:
        """With its rule, if there is one."""
        rule = rule_of(module)
        if rule is not None:
            channels = next(p for _, p in own_parameters(module)).shape[0]
            if channels % math.lcm(experts, getattr(module, "groups", 1)):
                rule = None
        return cls(name, module, level, rule, experts, rule is not None)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """By name; those of whole numbers, as counters are, have no gradient and are left out."""
        return {f"{self.name}.{name}".lstrip("."): p for name, p in own_parameters(self.module)}

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    @property
    def itemsize(self) -> int:
        """Bytes of one number of its gradients."""
        return max(p.element_size() for p in self.parameters.values())

    @property
    def shape(self) -> tuple[int, int, int]:
        """U×C×d."""
        if not self.by_channel:
            return self.experts, self.size // self.experts, 1
        units = math.lcm(self.experts, getattr(self.module, "groups", 1))
        channels = len(next(iter(self.parameters.values())))
        return units, channels // units, self.size // channels

    def apart(self, gradients: Tensor) -> dict[str, Tensor]:
        """The layer's gradients, U×R×K×C×d, by parameter, R×K×(its shape)."""
        pieces = {}
        for (name, parameter), piece in zip(
            self.parameters.items(), self.segments(gradients), strict=True
        ):
            pieces[name] = piece.permute(1, 2, 0, 3, 4).reshape(
                *gradients.shape[1:3], *parameter.shape
            )
        return pieces

    def segments(self, gradients: Tensor) -> list[Tensor]:
        """What of gradients …×C×d is each parameter's."""
        U, rows, _ = self.shape
        axis, each = (-1, U * rows) if self.by_channel else (-2, U)
        sizes = [p.numel() // each for p in self.parameters.values()]
        return list(gradients.split(sizes, dim=axis))

    def joined(self, gradients: Sequence[Tensor]) -> Tensor:
        """Each parameter's gradients, *×(its shape), laid out together, *×U×C×d."""
        U, rows, _ = self.shape
        kept = (U, rows, -1) if self.by_channel else (U, -1, 1)
        pieces = []
        for gradient, parameter in zip(gradients, self.parameters.values(), strict=True):
            free = gradient.shape[: gradient.ndim - parameter.ndim]
            pieces.append(gradient.reshape(*free, *kept))
        return torch.cat(pieces, dim=-1 if self.by_channel else -2)


@dataclass(frozen=True)
class Piece:
    """Some rows of every unit of a layer: what of it is computed at one time."""

    layer: Layer
    first: int
    last: int

    @classmethod
    def whole(cls, layer: Layer) -> Piece:
        return cls(layer, 0, layer.shape[1])

    @property
    def rows(self) -> slice:
        return slice(self.first, self.last)

    @property
    def size(self) -> int:
        """Numbers in it."""
        U, _, d = self.layer.shape
        return U * (self.last - self.first) * d

    def without_rule(self) -> Piece:
        """The same numbers, to be taken in another way."""
        return dataclasses.replace(self, layer=dataclasses.replace(self.layer, rule=None))

    def segments(self, gradients: Tensor) -> list[Tensor]:
        """What of the piece, …×c×d, is each parameter's; those that it doesn't touch are empty."""
        layer = self.layer
        if layer.by_channel:
            return layer.segments(gradients)
        ends, segments = 0, []
        for parameter in layer.parameters.values():
            starts, ends = ends, ends + parameter.numel() // layer.experts
            first, last = max(starts, self.first), min(ends, self.last)
            segments.append(
                gradients[..., max(first - self.first, 0) : max(last - self.first, 0), :]
            )
        return segments


@dataclass(frozen=True)
class Parts:
    """A model as the probe sees it: levels, and the layers on them.

    Attributes:
        model: without the wrappers of torch.compile and data parallelism.
        prefix: of its names in the model that was given.
        experts: N_l of each level.
        layers: every module with parameters of its own on them.
        ungated: whether the last level is to hold gradients without the gates' factor.
        num_classes: K, by which outputs are told from other tensors that the model gives beside
            them.
    """

    model: nn.Module
    prefix: str
    margins: Callable[[Tensor], Tensor] | None
    experts: tuple[int, ...]
    layers: tuple[Layer, ...]
    ungated: bool
    num_classes: int | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        margins: Callable[[Tensor], Tensor] | None,
        groups: Sequence[Sequence[str]] | None,
        images: Tensor,
        num_classes: int | None = None,
    ) -> Parts:
        model, prefix = unwrapped(usable(model))
        dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
        if halves := sorted(str(dtype) for dtype in dtypes - {torch.float32, torch.float64}):
            raise KdxError(
                f"gradients in {', '.join(halves)} are too coarse for their angles; probe "
                "model.float()"
            )
        if isinstance(model, HME):
            layers = _of_explainer(model)
            _check_layers(layers)
            ungated = margins is None and not model.input_gated
            return cls(model, prefix, margins, model.experts, tuple(layers), ungated, num_classes)
        if groups is None:
            groups = _groups(model, None, images.shape[1:], images, num_classes)
        layers = [
            Layer.of(path, module, level, 1)
            for level, paths in enumerate(groups)
            for path, module in _own_modules(model, paths)
        ]
        _check_layers(layers)
        return cls(model, prefix, margins, (1,) * len(groups), tuple(layers), False, num_classes)

    def outputs(
        self, images: Tensor, among: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Trace | None]:
        """Margins that losses are about, B×K, and an explainer's trace.

        ``among``: the model's outputs on all images, and which of these the given ones are, for
        ``margins`` that know every image by its row.
        """
        images = images.clone()  # a model may work in place
        trace = None
        if isinstance(self.model, HME):
            trace = self.model.trace(images)
            given = trace.margins if self.margins is None else self.model.outputs(trace)
        else:
            given = self.model(images)
        given = answer(given, len(images), self.num_classes)
        if self.margins is None:
            return given, trace
        if among is None:
            return self.margins(given), trace
        every, rows = among
        return self.margins(every.index_copy(0, rows, given))[rows], trace


def _of_explainer(model: HME) -> list[Layer]:
    """The layers of trunk and experts."""
    parts = {f"levels.{i}": level for i, level in enumerate(model.levels)}
    layers = []
    for level, (part, whole) in enumerate({"trunk": model.trunk, **parts}.items()):
        for name, module in whole.named_modules():
            if own_parameters(module):
                path = f"{part}.{name}".rstrip(".")
                layers.append(Layer.of(path, module, level, model.experts[level]))
    return layers


def _own_modules(model: nn.Module, paths: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """The modules at ``paths``, each with the parametrisations that compute its weights."""
    modules = dict(model.named_modules())
    if not paths:
        raise KdxError(
            "groups= holds a level without modules; name those with parameters that make it up"
        )
    for path in paths:
        while path not in modules and path.startswith(WRAPPERS):
            path = path.partition(".")[2]
        if path not in modules:
            raise unknown("module", path, [name for name in modules if name])
        names = [path, *_parametrisations(modules, path)]
        with_parameters = [name for name in names if own_parameters(modules[name])]
        if not with_parameters:
            raise KdxError(
                f"{path!r} holds no parameters of its own; name the modules inside it that do"
            )
        for name in with_parameters:
            if name == path or name not in paths:
                yield name, modules[name]


def _parametrisations(modules: Mapping[str, nn.Module], path: str) -> list[str]:
    """Paths of the lists of parametrisations that compute the weights of the module at ``path``."""
    module = modules[path]
    if not parametrize.is_parametrized(module):
        return []
    lists = {id(each) for each in cast(nn.ModuleDict, module.parametrizations).values()}
    return [name for name, part in modules.items() if id(part) in lists]


def _check_layers(layers: Sequence[Layer]) -> None:
    """KdxError unless every parameter is real and belongs to one layer."""
    owners: dict[int, str] = {}
    if not layers:
        raise KdxError(
            "groups= names no level; give each level's modules, as groups=[['conv1'], ['conv2']]"
        )
    for layer in layers:
        for name, parameter in layer.parameters.items():
            if parameter.is_complex():
                raise KdxError(
                    f"{name!r} is in {parameter.dtype}, and only gradients of real numbers are "
                    "probed; name modules without it as groups="
                )
            if id(parameter) not in owners:
                owners[id(parameter)] = name
            elif owners[id(parameter)] == name:
                raise KdxError(
                    f"groups= names {layer.name!r} twice; a module stands on one level, once"
                )
            else:
                raise KdxError(
                    f"{owners[id(parameter)]!r} and {name!r} are one parameter, whose gradient "
                    "belongs to both; give one of them a copy of it to probe the model"
                )


def module_groups(
    model: nn.Module,
    *,
    stages: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
) -> tuple[tuple[str, ...], ...]:
    """Paths of a model's modules with parameters of their own, by stage, without its classifier.

    The stages are those that an explainer of the model would have. Where they can't be found, and
    are not declared, all modules of which a parameter serves two outputs or more make up one group:
    a classifier's rows serve one each.

    Args:
        model: images → B×K; left as it is found.
        stages: module paths, as for ``HME.from_student``.
        image_shape: C×H×W; by default the first common one that fits.

    Raises:
        KdxError: no module serves two outputs, or that can't be found out; name the modules as
            ``groups=``.
    """
    model, prefix = unwrapped(usable(model))
    groups = []
    for paths in _groups(model, stages, image_shape, None, None):
        groups.append(tuple(f"{prefix}{path}" for path in paths))
    return tuple(groups)


def _groups(
    model: nn.Module,
    stages: Sequence[str] | None,
    shape: Sequence[int] | None,
    images: Tensor | None,
    num_classes: int | None,
) -> tuple[tuple[str, ...], ...]:
    """:func:`module_groups` of a model without wrappers.

    What modules share is found from ``images``, if there are any, where stages can't be;
    ``num_classes`` tells its outputs from other tensors that it gives.
    """
    declared = stages or None
    if not stages and isinstance(model, StagedNet):
        declared = [f"stages.{i}" for i in range(len(model.stages))][-MAX_STAGES:]
    try:
        with undisturbed(model):  # a layer traced in train mode may update its buffers
            split = find_stages(model, declared, shape)
    except KdxError:
        if stages is not None:
            raise
        groups = [shared_modules(in_full(model), shape, images, num_classes)]
    else:
        groups = _by_stage(model, split)
        if stages is None and _hidden(model, split):
            named = {path for paths in groups for path in paths}
            shared = shared_modules(in_full(model), shape, images, num_classes)
            groups = groups if set(shared) <= named else [shared]
    if not all(groups) or not groups:
        raise KdxError(
            f"{type(model).__name__} has no parameters before its classifier, so subtasks share "
            "nothing; if they do, name the modules as groups="
        )
    return tuple(groups)


def _hidden(model: nn.Module, split: Stages) -> bool:
    """Whether a module that may belong to a stage, but can't be traced, is in none.

    Such are those of TorchScript.
    """
    inside = {id(p) for part in (split.trunk, *split.body) for p in part.parameters()}
    called = [
        split.whole.get_submodule(str(node.target))
        for node in split.whole.graph.nodes
        if node.op == "call_module"
    ]
    opaque = [module for module in called if not is_layer(module)]
    opaque += [module for module in model.modules() if isinstance(module, torch.jit.ScriptModule)]
    return any(id(p) not in inside for module in opaque for p in module.parameters())


def _by_stage(model: nn.Module, split: Stages) -> list[tuple[str, ...]]:
    """The modules of trunk and stages, each where it is used first.

    A stage of modules that were all used before is no level.
    """
    parts = (split.trunk, *split.body)
    stage_of: dict[int, int] = {}
    for stage, part in enumerate(parts):
        for parameter in part.parameters():
            stage_of.setdefault(id(parameter), stage)
    read = {id(p) for p in split.whole.parameters()}
    stages: list[list[str]] = [[] for _ in parts]
    for path, module in model.named_modules():
        inside, behind, used = [], [], []
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in stage_of:
                inside.append(name)
                used.append(stage_of[id(parameter)])
            elif id(parameter) in read:
                behind.append(name)
        if inside and behind:
            raise mixed(path, inside[0], behind[0])
        if inside:
            stages[min(used)].append(path)
    return [tuple(paths) for paths in stages if paths]

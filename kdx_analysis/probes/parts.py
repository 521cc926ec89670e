"""A model as gradients see it: levels, and on each the layers with parameters of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, StagedNet, Trace
from kdx_analysis.models.splitting.stages import MAX_STAGES, find_stages
from kdx_analysis.probes.layer_rules import Rule, rule_of


@dataclass(frozen=True)
class Layer:
    """A module with parameters of its own, the level (from 0) on which it stands, and the experts there.

    ``rule`` gives its per-sample gradients from one backward pass over the batch; without one they are taken by
    torch.func, sample by sample at once.
    """

    name: str
    module: nn.Module
    level: int
    rule: Rule | None
    experts: int

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{self.name}.{name}".lstrip("."): p for name, p in self.module.named_parameters(recurse=False)}

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def apart(self, gradients: Tensor) -> dict[str, Tensor]:
        """The layer's gradients, R×K×size in the order in which rules and torch.func give them, by parameter."""
        parameters = self.parameters
        rows = self.experts if self.rule is None else len(next(iter(parameters.values())))
        pieces = gradients.unflatten(2, (rows, -1)).split([p.numel() // rows for p in parameters.values()], dim=3)
        named = zip(parameters.items(), pieces, strict=True)
        return {name: piece.flatten(2).unflatten(2, p.shape) for (name, p), piece in named}


@dataclass(frozen=True)
class Parts:
    """A model as the probe sees it: levels, and the layers on them.

    Attributes:
        experts: N_l of each level.
        layers: every module with parameters of its own on them.
        ungated: whether the last level is to hold gradients without the gates' factor.
    """

    model: nn.Module
    margins: Callable[[Tensor], Tensor] | None
    experts: tuple[int, ...]
    layers: tuple[Layer, ...]
    ungated: bool

    @classmethod
    def of(
        cls,
        model: nn.Module,
        margins: Callable[[Tensor], Tensor] | None,
        groups: Sequence[Sequence[str]] | None,
        images: Tensor,
    ) -> Parts:
        halves = sorted({str(p.dtype) for p in model.parameters() if p.dtype not in (torch.float32, torch.float64)})
        if halves:
            raise KdxError(f"gradients in {', '.join(halves)} are too coarse for their angles; probe model.float()")
        if isinstance(model, HME):
            parts = {"trunk": model.trunk, **{f"levels.{i}": level for i, level in enumerate(model.levels)}}
            layers = [
                Layer(f"{part}.{name}".rstrip("."), module, level, rule_of(module), model.experts[level])
                for level, (part, whole) in enumerate(parts.items())
                for name, module in whole.named_modules()
                if any(True for _ in module.parameters(recurse=False))
            ]
            _refuse_shared(layers)
            return cls(model, margins, model.experts, tuple(layers), margins is None and not model.input_gated)
        groups = module_groups(model, image_shape=images.shape[1:]) if groups is None else groups
        if empty := [path for paths in groups for path in paths if not [*model.get_submodule(path).parameters(False)]]:
            raise KdxError(f"{empty[0]!r} holds no parameters of its own; name the modules inside it that do")
        layers = [
            Layer(path, module := model.get_submodule(path), level, rule_of(module), 1)
            for level, paths in enumerate(groups)
            for path in paths
        ]
        _refuse_shared(layers)
        return cls(model, margins, (1,) * len(groups), tuple(layers), False)

    def outputs(self, images: Tensor) -> tuple[Tensor, Trace | None]:
        """Margins that losses are about, B×K, and an explainer's trace."""
        if not isinstance(self.model, HME):
            given = self.model(images)
            return given if self.margins is None else self.margins(given), None
        trace = self.model.trace(images)
        return trace.margins if self.margins is None else self.margins(self.model.outputs(trace)), trace


def _refuse_shared(layers: Sequence[Layer]) -> None:
    owners: dict[int, str] = {}
    for layer in layers:
        for name, parameter in layer.parameters.items():
            first = owners.setdefault(id(parameter), name)
            if first != name:
                raise KdxError(
                    f"{first!r} and {name!r} are one parameter, whose gradient belongs to both; give one of them "
                    "a copy of it to probe the model"
                )


def module_groups(
    model: nn.Module, *, stages: Sequence[str] | None = None, image_shape: Sequence[int] | None = None
) -> tuple[tuple[str, ...], ...]:
    """Paths of a model's modules with parameters of their own, by stage; its classifier is left out.

    The stages are those that an explainer of the model would have; where they can't be found, and are not declared,
    all make up one group, without the last module that has parameters. Raises KdxError if none is left.
    """
    if stages is None and isinstance(model, StagedNet):
        stages = [f"stages.{i}" for i in range(len(model.stages))][-MAX_STAGES:]
    modules = {path: module for path, module in model.named_modules() if any(True for _ in module.parameters(False))}
    try:
        found = find_stages(model, stages, image_shape)
    except KdxError:
        if stages is not None:
            raise
        groups: tuple[tuple[str, ...], ...] = (tuple(modules)[:-1],)
    else:
        owned = [{id(p) for p in part.parameters()} for part in (found.trunk, *found.body)]
        groups = tuple(
            tuple(path for path, module in modules.items() if any(id(p) in ids for p in module.parameters(False)))
            for ids in owned
        )
    if not all(groups):
        raise KdxError(f"{type(model).__name__} has no parameters before its classifier, so subtasks share nothing")
    return groups

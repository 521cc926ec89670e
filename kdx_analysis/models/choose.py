"""Modules of a model chosen by path, by pattern, or by a predicate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from kdx_analysis.errors import KdxError
from kdx_analysis.registry import unknown

Where = str | Sequence[str] | Callable[[str, nn.Module], bool]


def chosen(
    modules: Mapping[str, nn.Module],
    where: Where,
    *,
    kind: str = "module",
    argument: str = "where=",
) -> dict[str, nn.Module]:
    """The modules that ``where`` chooses, by path, in their own order.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> list(chosen(dict(model.named_modules()), "[01]"))
    ['0', '1']

    Args:
        modules: path → module, those to choose from.
        where: a path, a pattern as of fnmatch, several of these, or a predicate of path and module.
        kind: what the modules are called in errors.
        argument: by which ``where`` was given, for errors.

    Raises:
        KdxError: a path or pattern that no module has, with the nearest paths, or a predicate that
            holds for none.
    """
    if callable(where):
        fitting = {path: module for path, module in modules.items() if where(path, module)}
        if not fitting:
            raise KdxError(f"{argument} holds for no {kind}; loosen the predicate")
        return fitting
    wanted: set[str] = set()
    for pattern in [where] if isinstance(where, str) else where:
        matching = {path for path in modules if fnmatchcase(path, pattern)}
        if not matching:
            raise unknown(kind, pattern, [path for path in modules if path])
        wanted |= matching
    return {path: module for path, module in modules.items() if path in wanted}


def module_at(model: nn.Module, path: str, who: str) -> nn.Module:
    """The module of ``model`` with exactly this ``path``; KdxError with near paths for none.

    ``who`` names the model in the error, as "the student".
    """
    modules = dict(model.named_modules())
    if path not in modules:
        raise unknown(f"module of {who}", path, [known for known in modules if known])
    return modules[path]

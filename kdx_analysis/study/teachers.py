"""Siblings that were trained before: loaded, and refused where they are none of the own teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kdx_analysis.data import Dataset
from kdx_analysis.errors import KdxError
from kdx_analysis.models import check_fits
from kdx_analysis.probes.fidelity.teachers import first_difference, recipe_known
from kdx_analysis.runs import Run
from kdx_analysis.runs.run import INFO, WEIGHTS
from kdx_analysis.training.checkpoints import fingerprint
from kdx_analysis.training.teacher import check_teacher

OWN_TEACHER = "the own teacher"


@dataclass(frozen=True, eq=False)
class GivenSibling:
    """A sibling that was trained before.

    Attributes:
        name: what it is called in errors.
        model: with its weights.
        declared: whether the user's word alone says that it was trained as the own teacher was.
    """

    name: str
    model: nn.Module
    declared: bool


@dataclass(frozen=True)
class Own:
    """What siblings are held against.

    Attributes:
        info: what ``run.json`` of the study's teacher holds, or would hold.
        seeds: of the study's teachers, where they are known.
    """

    info: Mapping[str, Any]
    seeds: tuple[int, ...]


def info_of(path: str | Path) -> Mapping[str, Any] | None:
    """What ``run.json`` in a directory holds; None where there is none, as beside bare weights."""
    return Run.load(path).info if (Path(path) / INFO).is_file() else None


def given_siblings(
    siblings: Sequence[nn.Module | str], teacher: Own, load: Callable[[Path], nn.Module]
) -> tuple[GivenSibling, ...]:
    """Siblings by their modules, or by the paths of runs or weights.

    Args:
        siblings: in the order of their numbers.
        teacher: what those with a run are held against, before any weights are loaded.
        load: makes the teacher's model with the weights in a file.

    Raises:
        KdxError: a run that differs from the own teacher in a field but the seed, or that has its
            seed or another sibling's; weights that don't fit.
    """
    seeds: dict[int, str] = dict.fromkeys(teacher.seeds, OWN_TEACHER)
    loaded = []
    for i, sibling in enumerate(siblings):
        if isinstance(sibling, nn.Module):
            name = f"sibling {i + 1} ({type(sibling).__name__})"
            loaded.append(GivenSibling(name, sibling, declared=True))
            continue
        name, path = f"sibling {i + 1} ({sibling})", Path(sibling)
        info = info_of(path)
        if info is not None:
            _check_recipe(name, info, teacher)
            _check_seed(name, info, seeds)
        known = info is not None and recipe_known(info) and recipe_known(teacher.info)
        weights = path / WEIGHTS if path.is_dir() else path
        loaded.append(GivenSibling(name, load(weights), declared=not known))
    return tuple(loaded)


def check_siblings(siblings: Sequence[GivenSibling], data: Dataset) -> None:
    """Raise KdxError for a sibling that doesn't fit the data, as for any given teacher."""
    for sibling in siblings:
        check_fits(sibling.model, data.shape, data.num_classes)
        check_teacher(sibling.model, data, who=sibling.name)


def check_apart(models: Sequence[tuple[str, nn.Module]]) -> None:
    """Raise KdxError for two of the teachers, each with its name, that have the same weights."""
    seen: dict[str, str] = {}
    for name, model in models:
        other = seen.setdefault(fingerprint(model), name)
        if other != name:
            raise KdxError(
                f"{name} has the weights of {other}, so the two are one teacher; give siblings "
                "that were trained with other seeds"
            )


def _check_recipe(name: str, info: Mapping[str, Any], teacher: Own) -> None:
    difference = first_difference(teacher.info, info)
    if difference is not None:
        field, ours, its = difference
        raise KdxError(
            f"{name} is no sibling of the own teacher: {field} is {_shown(its)} there and "
            f"{_shown(ours)} for the own teacher; siblings differ in their seed alone"
        )


def _check_seed(name: str, info: Mapping[str, Any], seeds: dict[int, str]) -> None:
    """Raise KdxError where the seed is another's; what was given to its study has none."""
    if not recipe_known(info):
        return
    other = seeds.setdefault(info["seed"], name)
    if other != name:
        raise KdxError(
            f"{name} was trained with seed {info['seed']}, which is that of {other} too, so the "
            "two are one teacher; give siblings of other seeds"
        )


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)

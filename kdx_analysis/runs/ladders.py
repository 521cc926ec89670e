"""Which objectives may be set against each other: KD and the controls that share its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdx_analysis.objectives import OBJECTIVES, ladder_names
from kdx_analysis.runs.runset import RunSet

_SETTINGS = ("decomposition", "positive_weight", "scale_to")
_DISTILLATION = ("T", "lambda", "cut")


def ladders(runs: RunSet) -> list[dict[str, str]]:
    """For each KD objective of the explainers, rung → label of it and of the controls that share
    its settings.

    Without a KD objective there is one ladder, that of the highest control.
    """
    configs = {
        run.objective: run.info["config"]["objective"] for run in runs.filter(role="explainer")
    }
    tops = [label for label, config in configs.items() if config["name"] == "kd"] or list(configs)[
        -1:
    ]
    return [_ladder(configs, configs[top]) for top in tops]


def _ladder(configs: Mapping[str, Mapping[str, Any]], top: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for label, config in configs.items():
        name = config["name"]
        settings: tuple[str, ...] = (
            *_SETTINGS,
            *(_DISTILLATION if _distils(name) else ()),
        )
        if name == top["name"]:
            settings = tuple(top)
        if all(config.get(key) == top.get(key) for key in settings):
            found.setdefault(name, label)
    ladder = ladder_names()
    beside = [name for name in OBJECTIVES if name not in ladder]
    return {name: found[name] for name in (*ladder, *beside) if name in found}


def _distils(name: str) -> bool:
    """Whether KD's settings are among its own; those of an imported run may be of any name."""
    return name not in OBJECTIVES or OBJECTIVES[name].distils

"""Which objectives may be set against each other: KD and the controls that share its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdx_analysis.config import LADDER
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
            *(() if name in ("hard", "label_smoothing") else _DISTILLATION),
        )
        if name == top["name"]:
            settings = tuple(top)
        if all(config.get(key) == top.get(key) for key in settings):
            found.setdefault(name, label)
    return {rung: found[rung] for rung in (*LADDER, "label_smoothing") if rung in found}

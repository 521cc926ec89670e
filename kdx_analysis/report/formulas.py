"""By which function every number of the page is made, as ``module.function``."""

from __future__ import annotations

from kdx_analysis.intervals import (
    bonferroni,
    joint_confidence,
    paired_difference,
    t_interval,
)
from kdx_analysis.metrics import METRICS, asked_about
from kdx_analysis.probes.vam import row_entropies
from kdx_analysis.registry import home
from kdx_analysis.report.answers import by_chance
from kdx_analysis.report.health import health, summary
from kdx_analysis.runs.trees import objective_mark, tree_pairs


def named(metric: str, statistic: str) -> str:
    """A metric's formula, then what makes one number of its values over seeds."""
    return f"{METRICS[metric].home} {statistic}"


def formulas() -> dict[str, str]:
    """What the page's numbers other than metrics are made by; several names stand apart by spaces.

    The sentences of an answer are about all metrics that are asked about, and about accuracy.
    """
    effect = home(paired_difference)
    asked = [METRICS[name].home for name in ("accuracy", *asked_about())]
    return {
        "mean": home(t_interval),
        "effect": effect,
        "answer": " ".join([*asked, effect]),
        "confidence": home(bonferroni),
        "joint": home(joint_confidence),
        "chance": f"{home(bonferroni)} {home(by_chance)}",
        "trees": f"{home(tree_pairs)} {home(objective_mark)}",
        "health": home(health),
        "summary": home(summary),
        "vam_entropy": f"{home(row_entropies)} {home(t_interval)}",
    }

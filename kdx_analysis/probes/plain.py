"""Models without gates: conflict of their one-vs-rest losses, stage by stage, and what their
subtasks claim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from kdx_analysis.config import ProbeConfig
from kdx_analysis.probes.claims import output_table
from kdx_analysis.probes.conflict.record import conflict_of


def plain_tables(
    model: nn.Module,
    margins: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    config: ProbeConfig,
) -> dict[str, pd.DataFrame]:
    """The records ``conflict``, ``conflict_summary`` and ``output_conflict`` of a model on one
    probe set.

    Args:
        model: images → B×K, in eval mode.
        margins: its outputs → margins, B×K → B×K.
        images: normalised, B×C×H×W.
        labels: int64, B.
        classes: K names.
        config: null draws, permutations, seed and memory.
    """
    record = conflict_of(
        model,
        images,
        labels,
        classes=classes,
        margins=margins,
        null_draws=config.null_draws,
        permutations=config.permutations,
        seed=config.seed,
        max_memory=config.max_memory,
    )
    with torch.no_grad():
        claimed = margins(model(images))
    return {
        "conflict": record.pairs.drop(columns="probe").assign(term="hard"),
        "conflict_summary": record.summary.drop(columns="probe").assign(term="hard"),
        "output_conflict": output_table(claimed, classes, config.null_draws, config.seed),
    }

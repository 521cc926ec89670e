"""The models of finished runs, with their weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from kdx_analysis.config import StudyConfig, VAMConfig
from kdx_analysis.models import HME
from kdx_analysis.runs import Run
from kdx_analysis.runs.run import WEIGHTS
from kdx_analysis.training import reproducible
from kdx_analysis.training.checkpoints import load_weights


class Models(Protocol):
    """What of a study makes its models: :class:`kdx_analysis.study.study.Study`."""

    config: StudyConfig

    def build(
        self, role: str, vam: VAMConfig | None = None, decomposition: str = "binary"
    ) -> nn.Module:
        """A model of this role, its weights drawn anew."""
        ...

    def given(self, number: int) -> nn.Module | None:
        """The teacher or sibling with this number, if it is not trained here."""
        ...

    def teacher(self, path: Path) -> nn.Module:
        """A copy of the teacher whose run lies at a path."""
        ...


def finished_model(run: Run, study: Models) -> nn.Module:
    """A run's model with its weights, in eval mode; a teacher may be one that was handed over."""
    if run.role == "teacher":
        given = study.given(run.seed)
        return (study.teacher(run.path) if given is None else copy.deepcopy(given)).eval()
    return model_of(run, study)[0]


def model_of(run: Run, study: Models) -> tuple[nn.Module, nn.Module]:
    """A run's model with its weights, and as it was before training.

    An explainer's null rests on the latter.
    """
    with reproducible(run.seed, study.config.training.threads):
        initial = study.build(
            "explainer" if run.role == "tree" else run.role, decomposition=run.info["decomposition"]
        )
    if run.role == "tree":
        assert isinstance(initial, HME)
        initial = initial.harden(_parents(run, initial)).pruned()
    with reproducible(run.seed, study.config.training.threads):
        decomposition = run.info["decomposition"]
        model = (
            initial if run.role == "tree" else study.build(run.role, decomposition=decomposition)
        )
    load_weights(run.path / WEIGHTS, model)
    if study.config.training_of(run.role).channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval(), initial


def _parents(run: Run, explainer: HME) -> list[Tensor]:
    """A tree's gates by its own record, as attention of an explainer with all experts.

    Those that are not in the tree are reached by none.
    """
    children = (*explainer.experts[1:], explainer.num_classes)
    attention = [torch.zeros(n, m) for n, m in zip(children, explainer.experts, strict=True)]
    for row in run.record("tree").itertuples():
        level, child, parent = row.child_level, row.child, row.parent
        attention[int(level) - 2][int(child), int(parent)] = 1  # type: ignore[arg-type]
    return attention

"""What a study trains: a class for each role, which builds its model and says how it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pandas as pd
import torch
from torch import Tensor, nn

from kdx_analysis.config import Phase2Config, StudyConfig, VAMConfig
from kdx_analysis.data import Dataset
from kdx_analysis.models import HME, build_model, redrawn, vam
from kdx_analysis.models.gates import spread
from kdx_analysis.models.learn_to_branch import learn_to_branch
from kdx_analysis.models.modes import undisturbed
from kdx_analysis.models.tree.record import tree_record
from kdx_analysis.probes.gates.formulas import effective
from kdx_analysis.runs.run import WEIGHTS
from kdx_analysis.training import Callback
from kdx_analysis.training.checkpoints import load_weights

_STRUCTURE = ("experts", "budget", "multiple", "stages", "gates", "top_k", "gumbel")
_ATTACHED = ("blocks", "channels", "where", "scale")


class Ingredients(Protocol):
    """What a role takes from its study; picklable where steps run in other processes."""

    config: StudyConfig

    @property
    def dataset(self) -> Dataset: ...

    @property
    def given_student(self) -> nn.Module | None: ...

    @property
    def callbacks(self) -> tuple[Callback, ...]: ...

    def teacher(self, path: Path) -> nn.Module: ...

    def given(self, number: int) -> nn.Module | None: ...

    def is_declared(self, number: int) -> bool: ...


@dataclass(frozen=True)
class Start:
    """A model before its training.

    Attributes:
        model: that will be trained.
        records: what is known of it already, by kind.
        grown_from: of a tree, the run of its explainer and that explainer's experts.
    """

    model: nn.Module
    records: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    grown_from: Mapping[str, Any] | None = None


class Role(ABC):
    """One role of a study's models.

    Building draws weights anew from torch's random state, and raises KdxError for a model whose
    weights can't be, or that can't be split.
    """

    name: ClassVar[str]

    @abstractmethod
    def build(
        self, study: Ingredients, setting: VAMConfig | None = None, decomposition: str = "binary"
    ) -> nn.Module:
        """The role's model; ``setting`` is VAM's, which is a student's alone."""

    def start(
        self,
        study: Ingredients,
        setting: VAMConfig | None,
        decomposition: str,
        explainer: Path | None,
    ) -> Start:
        """The model to train; ``explainer`` is the directory of the run that a tree grows from."""
        return Start(self.build(study, setting, decomposition))

    def schedules(self, study: Ingredients) -> dict[str, Any]:
        """Arguments of :func:`kdx_analysis.training.fit` for what moves beside the rate."""
        return {}

    def finish(self, model: nn.Module) -> None:  # noqa: B027
        """Make the trained model what any reader can load, which most are already."""


class TeacherRole(Role):
    """The model that teaches, trained on hard labels."""

    name = "teacher"

    def build(
        self, study: Ingredients, setting: VAMConfig | None = None, decomposition: str = "binary"
    ) -> nn.Module:
        data = study.dataset
        return build_model(study.config.teacher.model, data.num_classes, data.shape[0])


class StudentRole(Role):
    """The undivided student, the yardstick; with VAM as a setting has it, or without."""

    name = "student"

    def build(
        self, study: Ingredients, setting: VAMConfig | None = None, decomposition: str = "binary"
    ) -> nn.Module:
        data, given = study.dataset, study.given_student
        if given is None:
            student = build_model(study.config.student, data.num_classes, data.shape[0])
        else:
            student = redrawn(given)
        if setting is not None:
            vam.attach(student, **setting.model_dump(include=set(_ATTACHED)))
        return student

    def finish(self, model: nn.Module) -> None:
        """Fold VAM into the weights, which are then those of a plain student."""
        if vam.attended_layers(model):
            vam.fold(model)


class ExplainerRole(Role):
    """The student as a hierarchical mixture of experts, or the released network of the paper.

    Of the latter's two decompositions, multiclass gives the released code's scores; all others give
    margins.
    """

    name = "explainer"

    def build(
        self, study: Ingredients, setting: VAMConfig | None = None, decomposition: str = "binary"
    ) -> nn.Module:
        data, chosen = study.dataset, study.config.explainer
        K, channels = data.num_classes, data.shape[0]
        if chosen.preset == "learn_to_branch":
            experts = (chosen.experts,) * 3 if isinstance(chosen.experts, int) else chosen.experts
            multiclass = decomposition == "multiclass"
            return learn_to_branch(
                K, chosen.form, experts, channels, gumbel=chosen.gumbel, multiclass=multiclass
            )
        student = StudentRole().build(study)
        structure = chosen.model_dump(include=set(_STRUCTURE))
        return HME.from_student(student, K, image_shape=data.shape, **structure)

    def schedules(self, study: Ingredients) -> dict[str, Any]:
        """The annealing of the gates' temperature, and for how long gates stay as they are."""
        chosen = study.config.explainer
        return {"temperature": chosen.temperature, "gate_warmup": chosen.warmup_epochs}


class TreeRole(ExplainerRole):
    """The tree of an explainer: its gates made hard, then trained (phase 2)."""

    name = "tree"

    def start(
        self,
        study: Ingredients,
        setting: VAMConfig | None,
        decomposition: str,
        explainer: Path | None,
    ) -> Start:
        config = study.config
        assert explainer is not None
        assert config.explainer.phase2 is not None
        grown = self.build(study, decomposition=decomposition)
        assert isinstance(grown, HME)
        load_weights(explainer / WEIGHTS, grown)
        images, _ = study.dataset.probe_images("train", config.probes.per_class, config.probes.seed)
        tree = grow(grown, images, config.explainer.phase2)
        record = tree_record(tree.tree(study.dataset.classes))
        origin = {"run": explainer.name, "experts": list(grown.experts)}
        return Start(tree, {"tree": record}, origin)

    def schedules(self, study: Ingredients) -> dict[str, Any]:
        """Nothing moves: the gates are hard."""
        return {}


BUILDERS: dict[str, Role] = {
    role.name: role for role in (TeacherRole(), StudentRole(), ExplainerRole(), TreeRole())
}


def grow(explainer: HME, images: Tensor, config: Phase2Config) -> HME:
    """The tree of a trained explainer, without its dead experts; the explainer is left as it was.

    Effective attention, and the mean of gates that read the input, are those on ``images``
    (normalised, B×C×H×W). Weights are redrawn before experts are pruned, so that trees of one seed
    share those of the experts they share.
    """
    with undisturbed(explainer), torch.no_grad():
        trace = explainer.trace(images)
    attention = list(trace.attention)
    if config.by == "effective":
        spreads = [spread(features.float()) for features in trace.features]
        attention = effective(attention, spreads)
    tree = explainer.harden([gate.mean(dim=0) if gate.ndim == 3 else gate for gate in attention])
    if config.weights == "redrawn":
        tree.redraw(statistics=config.statistics == "redrawn")
    return tree.pruned()

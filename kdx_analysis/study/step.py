"""One run that a study asks for: what decides it, and where it lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdx_analysis.config import ObjectiveConfig
from kdx_analysis.runs import run_id


@dataclass(frozen=True)
class Step:
    """One run that a study asks for.

    Attributes:
        role: teacher, student (undivided, the yardstick), explainer or tree.
        objective: what it is matched to.
        seed: of its weights, order and augmentation.
        config: everything that decides its result; a run is done when a directory for just this
            config exists.
        path: that directory.
        vam: label of a student's arm in ``StudyConfig.arms``.
        explainer: the directory of the run that a tree grows from; None for other roles.
        teacher: the step of its teacher, nominally the first where its objective needs none; None
            for a teacher.
        called: what its title says beside, of a teacher among several.
        together: the names that the runs of its group, itself among them, would have alone; empty
            for a run that is trained alone.
    """

    role: str
    objective: ObjectiveConfig
    seed: int
    config: Mapping[str, Any]
    path: Path
    vam: str = ""
    explainer: Path | None = None
    teacher: Step | None = None
    called: str = ""
    together: tuple[str, ...] = ()

    @property
    def study(self) -> Path:
        """The directory of the study."""
        return self.path.parents[1]

    @property
    def keys(self) -> dict[str, Any]:
        """What tells the run from others of its study."""
        return {
            "role": self.role,
            "objective": self.objective.label if self.role != "teacher" else "",
            "decomposition": self.objective.decomposition,
            "vam": self.vam,
            **({} if self.teacher is None else {"teacher": self.teacher.seed}),
            "seed": self.seed,
        }

    @property
    def done(self) -> bool:
        return self.path.is_dir()

    @property
    def ready(self) -> bool:
        """Whether what it starts from is there."""
        return self.explainer is None or self.explainer.is_dir()

    @property
    def title(self) -> str:
        if self.role == "teacher":
            return " ".join(filter(None, (self.role, self.called)))
        parts = (self.role, self.objective.label, self.vam, f"seed {self.seed}", self.called)
        return " ".join(filter(None, parts))

    def in_group(self, together: tuple[str, ...]) -> Step:
        """The step as one of a group, under another name: its last bits are others."""
        return replace(self, together=together, path=self._beside(together))

    def grown_from(self, explainer: Step) -> Step:
        """A tree's step on an explainer that is one of a group."""
        return replace(self, explainer=explainer.path, path=self._beside(explainer.together))

    def _beside(self, together: tuple[str, ...]) -> Path:
        decides = {**self.config, "together": list(together)}
        label, parent = self.objective.label, self.path.parent
        return parent / run_id(self.role, label, self.seed, decides, vam=self.vam)

    @classmethod
    def of(
        cls,
        parent: Path,
        role: str,
        objective: ObjectiveConfig,
        seed: int,
        config: Mapping[str, Any],
        *,
        vam: str = "",
        explainer: Path | None = None,
        teacher: Step | None = None,
        called: str = "",
    ) -> Step:
        """The step whose directory below ``parent`` is named for its configuration."""
        config = {"role": role, **config}
        label = "" if role == "teacher" else objective.label
        path = parent / run_id(role, label, seed, config, vam=vam)
        return cls(role, objective, seed, config, path, vam, explainer, teacher, called)

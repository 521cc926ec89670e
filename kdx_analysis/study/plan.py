"""What a study runs: a step for every run, with everything that decides the run's result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdx_analysis.config import ObjectiveConfig, StudyConfig, digest
from kdx_analysis.data import DATASETS
from kdx_analysis.extensions import extension_of
from kdx_analysis.models import MODELS
from kdx_analysis.objectives import OBJECTIVES
from kdx_analysis.probes.contract import deciding, switched_on
from kdx_analysis.study.roles import Ingredients
from kdx_analysis.study.step import Step
from kdx_analysis.training.checkpoints import fingerprint

_TEACHER_OBJECTIVE = ObjectiveConfig(name="hard", decomposition="multiclass")


def plan(study: Ingredients, out: Path) -> list[Step]:
    """Every run of the study below ``out``: teachers and siblings first, then seed by seed.

    So a study that is cut short holds whole ladders.
    """
    teachers = _teachers(study, out / "teacher")
    teaching = teachers[: study.config.teacher.seeds]
    steps = list(teachers)
    for seed in study.config.seeds:
        for objective in study.config.objectives:
            for teacher in teaching if is_taught(objective) else teaching[:1]:
                called = f"of teacher {teacher.seed}" if len(teaching) > 1 else ""
                of_teacher = _Taught(teacher, called if is_taught(objective) else "")
                steps += _of_objective(study, out / "runs", objective, seed, of_teacher)
    return steps


def is_taught(objective: ObjectiveConfig) -> bool:
    """Whether a teacher enters the objective, if only to scale its loss."""
    return OBJECTIVES[objective.name].needs_teacher or objective.scale_to is not None


@dataclass(frozen=True)
class _Taught:
    """The teacher of some runs, and what their titles say of it."""

    step: Step
    called: str

    @property
    def digest(self) -> str:
        """What stands for the teacher in the configuration of its students."""
        return digest({key: value for key, value in self.step.config.items() if key != "role"}, 64)


def _of_objective(
    study: Ingredients, runs: Path, objective: ObjectiveConfig, seed: int, taught: _Taught
) -> Iterator[Step]:
    """The runs under one objective with one seed: students arm by arm, explainer, tree."""
    config, section = study.config, study.config.to_dict()
    student = {
        **_data(study),
        "teacher": taught.digest,
        "model": section["student"],
        "objective": objective.model_dump(mode="json", by_alias=True),
        "training": section["training"],
        "seed": seed,
    }
    if study.given_student is not None:
        student["architecture"] = digest({"repr": repr(study.given_student)}, 64)
    structure = {key: value for key, value in section["explainer"].items() if key != "phase2"}
    explainer = {**student, "explainer": structure, "probes": deciding(config.probes)}
    step = partial(
        Step.of, runs, objective=objective, seed=seed, teacher=taught.step, called=taught.called
    )
    if "student" in config.roles:
        student |= _own_probes(config, "student")
        for label, vam in config.arms.items():
            setting = {} if vam is None else {"vam": vam.model_dump(mode="json", by_alias=True)}
            decides = student | setting | _extensions(config, "student", objective)
            yield step("student", config=decides, vam=label)
    if "explainer" not in config.roles:
        return
    decides = explainer | _extensions(config, "explainer", objective)
    grown = step("explainer", config=decides)
    yield grown
    if (phase2 := section["explainer"]["phase2"]) is not None:
        phase2 = {**phase2, "training": phase2["training"] or section["training"]}
        decides = explainer | {"phase2": phase2} | _extensions(config, "tree", objective)
        yield step("tree", config=decides, explainer=grown.path)


def _data(study: Ingredients) -> dict[str, Any]:
    section = study.config.to_dict()["data"]
    return {"data": section, "split": study.dataset.describe()["fingerprint"]}


def _teachers(study: Ingredients, folder: Path) -> list[Step]:
    """The study's teachers, seed by seed from 0, then their siblings, whose seeds follow.

    Siblings that are given are numbered in the place of seeds.
    """
    section = study.config.teacher
    teachers = []
    for seed in range(section.seeds + section.sibling_count):
        called = f"seed {seed}" if section.seeds > 1 or seed else ""
        if seed >= section.seeds:
            called += " (sibling)"
        decides = teacher_config(study, seed)
        teachers.append(
            Step.of(folder, "teacher", _TEACHER_OBJECTIVE, seed, decides, called=called)
        )
    return teachers


def teacher_config(study: Ingredients, seed: int) -> dict[str, Any]:
    """What decides a teacher's result; the first one's holds no seed, since it always is 0."""
    section = study.config.to_dict()["teacher"]
    decides = {**_data(study), "model": section["model"]}
    if (given := study.given(seed)) is not None:
        return {**decides, "weights": fingerprint(given)}
    extensions = _extensions(study.config, "teacher", _TEACHER_OBJECTIVE)
    decides |= {"training": section["training"], **extensions}
    return decides | {"seed": seed} if seed else decides


def _own_probes(config: StudyConfig, role: str) -> dict[str, Any]:
    """The section of probes, where a probe of the user's own looks at the role."""
    if any(extension_of(probe) for probe in switched_on(config.probes, role)):
        return {"probes": deciding(config.probes)}
    return {}


def _extensions(config: StudyConfig, role: str, objective: ObjectiveConfig) -> dict[str, Any]:
    """The user's own files that decide a run's result, by name, with their SHA-256.

    A file that declares figures or metrics alone decides nothing: to change it trains nothing anew.
    """
    model = config.teacher.model if role == "teacher" else config.student
    things: list[Any] = [*switched_on(config.probes, role), OBJECTIVES[objective.name]]
    things += [MODELS[model]] if model in MODELS else []
    things += [DATASETS[config.data.name]] if config.data.name in DATASETS else []
    files = {}
    for thing in things:
        if (extension := extension_of(thing)) is not None:
            files[extension.path.name] = extension.sha256
    return {"extensions": files} if files else {}

"""What a study runs: a step for every run, with everything that decides the run's result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdx_analysis.config import ObjectiveConfig, StudyConfig, digest
from kdx_analysis.data import DATASETS
from kdx_analysis.extensions import extension_of
from kdx_analysis.models import MODELS
from kdx_analysis.objectives import OBJECTIVES
from kdx_analysis.probes.contract import deciding, switched_on
from kdx_analysis.study.roles import Ingredients
from kdx_analysis.study.steps import Step
from kdx_analysis.training.checkpoints import fingerprint

_TEACHER_OBJECTIVE = ObjectiveConfig(name="hard", decomposition="multiclass")


def plan(study: Ingredients, out: Path) -> list[Step]:
    """Every run of the study below ``out``: the teacher first, then seed by seed.

    So a study that is cut short holds whole ladders.
    """
    teacher = _teacher(study)
    steps = [Step.of(out / "teacher", "teacher", _TEACHER_OBJECTIVE, 0, teacher)]
    for seed in study.config.seeds:
        for objective in study.config.objectives:
            steps += _of_objective(study, out / "runs", objective, seed, digest(teacher, 64))
    return steps


def _of_objective(
    study: Ingredients, runs: Path, objective: ObjectiveConfig, seed: int, teacher: str
) -> Iterator[Step]:
    """The runs under one objective with one seed: students arm by arm, explainer, tree."""
    config, section = study.config, study.config.to_dict()
    student = {
        **_data(study),
        "teacher": teacher,
        "model": section["student"],
        "objective": objective.model_dump(mode="json", by_alias=True),
        "training": section["training"],
        "seed": seed,
    }
    if study.given_student is not None:
        student["architecture"] = digest({"repr": repr(study.given_student)}, 64)
    structure = {key: value for key, value in section["explainer"].items() if key != "phase2"}
    explainer = {**student, "explainer": structure, "probes": deciding(config.probes)}
    if "student" in config.roles:
        student |= _own_probes(config, "student")
        for label, vam in config.arms.items():
            setting = {} if vam is None else {"vam": vam.model_dump(mode="json", by_alias=True)}
            decides = student | setting | _extensions(config, "student", objective)
            yield Step.of(runs, "student", objective, seed, decides, vam=label)
    if "explainer" not in config.roles:
        return
    grown = Step.of(
        runs,
        "explainer",
        objective,
        seed,
        explainer | _extensions(config, "explainer", objective),
    )
    yield grown
    if (phase2 := section["explainer"]["phase2"]) is not None:
        phase2 = {**phase2, "training": phase2["training"] or section["training"]}
        decides = explainer | {"phase2": phase2} | _extensions(config, "tree", objective)
        yield Step.of(runs, "tree", objective, seed, decides, explainer=grown.path)


def _data(study: Ingredients) -> dict[str, Any]:
    section = study.config.to_dict()["data"]
    return {"data": section, "split": study.dataset.describe()["fingerprint"]}


def _teacher(study: Ingredients) -> dict[str, Any]:
    section = study.config.to_dict()["teacher"]
    decides = {**_data(study), "model": section["model"]}
    if study.given_teacher is not None:
        return {**decides, "weights": fingerprint(study.given_teacher)}
    extensions = _extensions(study.config, "teacher", _TEACHER_OBJECTIVE)
    return {**decides, "training": section["training"], **extensions}


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

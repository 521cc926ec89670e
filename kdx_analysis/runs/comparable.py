"""What may be compared: explainers of one cut, the rungs of a ladder, and the arms of VAM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdx_analysis.config import flatten
from kdx_analysis.errors import AbsentError, KdxError
from kdx_analysis.objectives import OBJECTIVES, ladder_names
from kdx_analysis.runs.run import Run
from kdx_analysis.runs.runset import RunSet

# Settings that the rungs of one ladder share; those of distillation only where a rung has them.
_SETTINGS = ("decomposition", "positive_weight", "scale_to")
_DISTILLATION = ("T", "lambda", "cut")


def explainers(runs: RunSet) -> RunSet:
    """The explainers among ``runs``.

    Raises AbsentError if there is none, KdxError if two stand for one objective, seed and teacher.
    """
    chosen = runs.filter(role="explainer")
    if not len(chosen):
        raise AbsentError(f"none of the {len(runs)} runs is an explainer; give runs of a study")
    cells = [(run.objective, run.seed, run.teacher) for run in chosen]
    twice = next((cell for cell in cells if cells.count(cell) > 1), None)
    if twice is not None:
        objective, seed, teacher = twice
        alike = chosen.filter(objective=objective, seed=seed, teacher=teacher)
        differing = map(str, alike.diff())
        raise KdxError(
            f"{cells.count(twice)} explainers are {objective!r} with seed {seed}; they differ in "
            f"{', '.join(differing) or 'nothing'}: filter the runs, or draw their directories apart"
        )
    return chosen


def own_teachers(runs: RunSet) -> RunSet:
    """The teachers among ``runs`` that taught any of the others of their study.

    They are all teachers of a study none of whose students is there. Other teachers are siblings.
    """
    students = [run for run in runs if run.role != "teacher"]
    taught = {(run.info["study"], run.teacher) for run in students}
    teachers = [run for run in runs if run.role == "teacher"]
    teaching = [run for run in teachers if (run.info["study"], run.seed) in taught]
    known = {run.info["study"] for run in teaching}
    return RunSet(
        tuple(run for run in teachers if run in teaching or run.info["study"] not in known)
    )


def of_one_teacher(runs: RunSet) -> RunSet:
    """The students of the first teacher that taught any, and those whose objective needs none.

    So what shows single runs has one for each objective and seed.
    """
    students = [run for run in runs if run.role != "teacher"]
    first = min((run.teacher for run in students if run.taught), default=0)
    return RunSet(tuple(run for run in students if not run.taught or run.teacher == first))


def comparable_explainers(runs: RunSet) -> RunSet:
    """The :func:`explainers` among ``runs``, of one decomposition only.

    Conflict depends on how the subtasks are cut (method, §4). Raises KdxError if they are of
    several decompositions.
    """
    chosen = explainers(runs)
    decompositions = sorted({run.info["decomposition"] for run in chosen})
    if len(decompositions) > 1:
        raise KdxError(
            f"the explainers are of the decompositions {' and '.join(decompositions)}, between "
            "which objectives can't be compared; filter the runs by decomposition"
        )
    return chosen


def ladders(runs: RunSet) -> list[dict[str, str]]:
    """For each KD objective of the explainers, rung → label.

    A ladder holds it and the controls that share its settings. Without a KD objective there is one
    ladder, that of the highest control.
    """
    configs = {
        run.objective: run.info["config"]["objective"] for run in runs.filter(role="explainer")
    }
    tops = [label for label, config in configs.items() if config["name"] == "kd"]
    return [_ladder(configs, configs[top]) for top in tops or list(configs)[-1:]]


def _ladder(configs: Mapping[str, Mapping[str, Any]], top: Mapping[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for label, config in configs.items():
        settings: tuple[str, ...] = _SETTINGS
        if _distils(config["name"]):
            settings = (*_SETTINGS, *_DISTILLATION)
        if config["name"] == top["name"]:
            settings = tuple(top)
        if all(config.get(key) == top.get(key) for key in settings):
            labels.setdefault(config["name"], label)
    beside = [name for name in OBJECTIVES if name not in ladder_names()]
    return {name: labels[name] for name in (*ladder_names(), *beside) if name in labels}


def _distils(name: str) -> bool:
    """Whether KD's settings are among its own; those of an imported run may be of any name."""
    return name not in OBJECTIVES or OBJECTIVES[name].distils


@dataclass(frozen=True)
class ArmContrast:
    """Two arms, a − b; ``adds`` says what a has that b has not."""

    a: str
    b: str
    adds: str

    @property
    def title(self) -> str:
        """The contrast as a difference."""
        return f"{self.a} − {self.b}"


def arms(runs: RunSet) -> RunSet:
    """The students among ``runs`` that are of arms.

    Raises AbsentError if there are not two arms.
    """
    chosen = runs.only(run for run in runs if run.role == "student" and run.vam)
    if len({run.vam for run in chosen}) < 2:
        raise AbsentError(
            f"the {len(runs)} runs hold no two arms of VAM; give runs of a study that maps vam to "
            "arms"
        )
    return chosen


def arm_contrasts(runs: RunSet) -> tuple[ArmContrast, ...]:
    """Every arm against the first, then what the entropy term alone adds.

    The first arm is the one without VAM, if there is one. Raises AbsentError if there are not two
    arms.
    """
    settings = {run.vam: _setting(run) for run in arms(runs)}
    first, *others = sorted(settings, key=lambda arm: bool(settings[arm]))
    pairs = [(arm, first) for arm in others]
    for b in others:
        pairs += [(a, b) for a in others if _adds_entropy_alone(settings[a], settings[b])]
    return tuple(ArmContrast(a, b, _adds(settings[a], settings[b])) for a, b in pairs)


def _setting(run: Run) -> dict[str, Any]:
    section = run.info["config"].get("vam")
    return {} if section is None else flatten(section)


def _penalised(setting: dict[str, Any]) -> bool:
    linear = setting.get("gamma.schedule") == "linear"
    return bool(setting.get("gamma.start") or (linear and setting.get("gamma.end")))


def _adds_entropy_alone(a: dict[str, Any], b: dict[str, Any]) -> bool:
    if not a or not b or _penalised(b) or not _penalised(a):
        return False
    return all(a.get(key) == b.get(key) for key in {**a, **b} if not key.startswith("gamma."))


def _adds(a: dict[str, Any], b: dict[str, Any]) -> str:
    if not a:
        return "no VAM"
    if not b:
        return "VAM and its entropy term" if _penalised(a) else "VAM"
    if _adds_entropy_alone(a, b):
        return "the entropy term alone"
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    return ", ".join(f"{key} {a.get(key)} instead of {b.get(key)}" for key in keys)

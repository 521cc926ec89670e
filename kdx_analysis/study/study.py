"""The pipeline: data, teacher, students under every objective and seed, probes, runs, report."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from kdx_analysis.config import (
    DataConfig,
    ExplainerConfig,
    ObjectiveConfig,
    ProbeConfig,
    StudyConfig,
    TrainingConfig,
    VAMConfig,
    check_given_teacher,
    flatten,
)
from kdx_analysis.data import Dataset, load_dataset
from kdx_analysis.errors import KdxError
from kdx_analysis.extensions import Extension, load_all, load_same, loaded, need
from kdx_analysis.models import check_fits
from kdx_analysis.objectives import OBJECTIVES, Objective, check_objectives
from kdx_analysis.probes.conflict.probe import terms_of
from kdx_analysis.probes.contract import Cost, asked_for, check_sections, configured
from kdx_analysis.probes.fidelity.shift import SHIFT, check_shift
from kdx_analysis.probes.fidelity.teachers import first_difference, recipe_known
from kdx_analysis.probes.training_probe import SPLITS, training_cost
from kdx_analysis.registry import home, unknown
from kdx_analysis.report import Report
from kdx_analysis.runs import ROLES, Run, RunSet
from kdx_analysis.runs.run import INFO, WEIGHTS
from kdx_analysis.study.estimate import Estimate, estimate
from kdx_analysis.study.groups import Groups
from kdx_analysis.study.lessons import Lessons
from kdx_analysis.study.outputs_run import keep_outputs
from kdx_analysis.study.plan import plan, teacher_config
from kdx_analysis.study.roles import BUILDERS
from kdx_analysis.study.shift_run import run_shift
from kdx_analysis.study.step import Step
from kdx_analysis.study.steps import train_steps
from kdx_analysis.study.teachers import (
    OWN_TEACHER,
    GivenSibling,
    Own,
    check_apart,
    check_siblings,
    given_siblings,
    info_of,
)
from kdx_analysis.training import Callback, fabric_for
from kdx_analysis.training.checkpoints import load_weights
from kdx_analysis.training.loggers import LOGGERS, check_loggers
from kdx_analysis.training.progress import Progress, no_progress, write_plan
from kdx_analysis.training.teacher import check_teacher

STUDY_FILE = "study.yaml"
_ADDED = ("teacher.siblings", "teacher.seeds")


class Study:
    """Runs that share data and teacher, and the report on them.

    Args:
        data: a data set's name, the path of an image folder, or a Dataset.
        teacher: a model's name (it is trained first), the path of a run directory or of weights
            given as ``NAME@PATH``, or a trained module that gives B×K logits.
        student: a model's name, or a module that gives B×K logits, whose blocks the explainer
            takes; weights are always drawn anew.
        objectives: names, mappings or ObjectiveConfigs, or what you have declared yourself: a
            target function, or the class of a distiller.
        seeds: a number of seeds, counted from 0, or the seeds themselves.
        name: of the study.
        data_dir: where data sets lie; by default $KDX_DATA, else ./data.
        roles: what is trained under each objective: student, explainer, or both.
        vam: a setting for all students, or arms: label → setting, or None for students without VAM.
        explainer, training, probes, teacher_training: sections of the configuration, as objects or
            mappings.
        siblings: teachers that differ from the own one in the seed alone and that no student sees:
            a number of them to train, or ones that are trained already: directories of runs, whose
            configuration is held against the own teacher's, or weights or modules, which you
            declare to be siblings.
        teacher_seeds: so many teachers, each with students of its own.
        loggers: tensorboard, mlflow, wandb: what is told of every training.
        keep_teacher: bytes on disk, at most, in which the teacher's logits on training images are
            kept while runs are trained that share them; 0 keeps none.
        extensions: Python files of your own metrics, objectives, probes, figures, models or data
            sets, which are run first, here and in worker processes.
        callbacks: called with an :class:`Epoch` and the model after every epoch of every training;
            with several jobs, in the processes of the trainings.
        data_options: further keys of the data section, as ``{"per_class": 500}``.

    Raises KdxError, before any training, for whatever in them can't work.
    """

    def __init__(
        self,
        *,
        data: str | Path | Dataset,
        teacher: str | Path | nn.Module,
        student: str | nn.Module,
        objectives: Sequence[str | Mapping[str, Any] | ObjectiveConfig | Callable[..., Any]] = (
            "hard",
            "label_smoothing",
            "kd_flat",
            "kd",
        ),
        seeds: int | Sequence[int] = 3,
        name: str | None = None,
        data_dir: str | Path | None = None,
        roles: Sequence[str] | None = None,
        vam: VAMConfig | Mapping[str, Any] | None = None,
        explainer: ExplainerConfig | Mapping[str, Any] | None = None,
        training: TrainingConfig | Mapping[str, Any] | None = None,
        teacher_training: TrainingConfig | Mapping[str, Any] | None = None,
        probes: ProbeConfig | Mapping[str, Any] | None = None,
        siblings: int | Sequence[str | Path | nn.Module] = 0,
        teacher_seeds: int = 1,
        loggers: Sequence[str] = (),
        keep_teacher: int | None = None,
        extensions: Sequence[str | Path] = (),
        callbacks: Sequence[Callback] = (),
        data_options: Mapping[str, Any] | None = None,
    ) -> None:
        data_name = data.name if isinstance(data, Dataset) else str(data)
        sections = {
            "extensions": [str(extension.path) for extension in load_all(extensions)],
            "name": name or Path(data_name).name,
            "data": {"name": data_name, **(data_options or {})},
            "teacher": _teachers(teacher, teacher_training or training, siblings, teacher_seeds),
            "student": _name_of(student),
            "roles": roles,
            "vam": _plain(vam),
            "explainer": _plain(explainer),
            "objectives": [_objective_section(objective) for objective in objectives],
            "training": _plain(training),
            "probes": _plain(probes),
            "loggers": list(loggers),
            "keep_teacher": keep_teacher,
            "seeds": list(range(seeds)) if isinstance(seeds, int) else list(seeds),
        }
        self.config = StudyConfig.parse({k: v for k, v in sections.items() if v is not None})
        check_names(self.config)
        self.data_dir = None if data_dir is None else str(data_dir)
        self._given = _Given.of(data, teacher, student, callbacks, objectives, siblings)

    @classmethod
    def from_config(cls, config: StudyConfig, data_dir: str | Path | None = None) -> Study:
        """A study whose data, teacher and student are names or paths.

        Args:
            config: of the study; its extensions are run.
            data_dir: where data sets lie; by default $KDX_DATA, else ./data.

        Raises KdxError for an objective or a logger that is not registered.
        """
        load_all(config.extensions)
        check_names(config)
        study = cls.__new__(cls)
        study.config = config
        study.data_dir = None if data_dir is None else str(data_dir)
        study._given = _Given()
        return study

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        overrides: Sequence[str] = (),
        data_dir: str | Path | None = None,
    ) -> Study:
        """A ready study by name or a YAML file by path, with changed keys.

        Args:
            name_or_path: a name of :func:`ready_studies`, or a path that ends in .yaml or .yml.
            overrides: as ``["training.epochs=5", "seeds=[0, 1]"]``; values are YAML.
            data_dir: where data sets lie; by default $KDX_DATA, else ./data.

        Raises:
            KdxError: an unknown name, a file that can't be read, a key or value that no study has,
                or the YAML of a folder of results that names extensions which are not loaded: what
                stands there is not taken as code to run.
        """
        ready = ready_studies()
        if Path(name_or_path).suffix not in (".yaml", ".yml") and str(name_or_path) not in ready:
            raise KdxError(
                f"{unknown('study', str(name_or_path), ready)} or give the path of a .yaml file"
            )
        path = ready.get(str(name_or_path), Path(name_or_path))
        config = StudyConfig.load(path, overrides)
        if path.name == STUDY_FILE and any(path.parent.glob(f"*/*/{INFO}")):
            # Those that are loaded lie where the user says, not where the folder does.
            named = tuple(str(extension.path) for extension in need(config.extensions))
            config = config.model_copy(update={"extensions": named})
        return cls.from_config(config, data_dir)

    @cached_property
    def dataset(self) -> Dataset:
        return self._given.data or _dataset(self.config.data.model_dump_json(), self.data_dir)

    @cached_property
    def given_teacher(self) -> nn.Module | None:
        """The trained teacher that the study starts from; None if it trains its own."""
        if self._given.teacher is not None or self.config.teacher.path is None:
            return self._given.teacher
        path = Path(self.config.teacher.path)
        return self._teacher_with(path / WEIGHTS if path.is_dir() else path)

    @cached_property
    def given_siblings(self) -> tuple[GivenSibling, ...]:
        """Siblings that are trained already, held against the own teacher; none if it trains them.

        Raises KdxError for one that is none.
        """
        siblings = self.config.teacher.siblings
        if isinstance(siblings, int):
            return ()
        modules = self._given.siblings or (None,) * len(siblings)
        both = zip(siblings, modules, strict=True)
        given = [path if module is None else module for path, module in both]
        return given_siblings(given, self._own_teacher(), self._teacher_with)

    def given(self, number: int) -> nn.Module | None:
        """The teacher or sibling with this number, if it is not trained here.

        Teachers are counted from 0, and their siblings after them.
        """
        if number < self.config.teacher.seeds:
            return self.given_teacher
        siblings = self.given_siblings
        return siblings[number - self.config.teacher.seeds].model if siblings else None

    def is_declared(self, number: int) -> bool:
        """Whether the user's word alone makes a sibling of the teacher with this number."""
        place = number - self.config.teacher.seeds
        return place >= 0 and bool(self.given_siblings) and self.given_siblings[place].declared

    def teacher(self, path: Path) -> nn.Module:
        """A copy of the study's teacher; ``path`` is its run's directory, if it was trained."""
        if self.given_teacher is None:
            return self._teacher_with(path / WEIGHTS)
        return copy.deepcopy(self.given_teacher)

    @property
    def given_student(self) -> nn.Module | None:
        """The student that was handed over as a module; None where it is a name."""
        return self._given.student

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """What the user has called after every epoch."""
        return self._given.callbacks

    def build(
        self, role: str, vam: VAMConfig | None = None, decomposition: str = "binary"
    ) -> nn.Module:
        """A model of this role (teacher, student, explainer), its weights drawn anew.

        They are drawn from torch's random state. A student has VAM as ``vam`` sets it, or none. An
        explainer of the preset whose ``decomposition`` is multiclass gives the released code's
        scores; any other gives margins.

        Raises KdxError for a student whose weights can't be, or that can't be split.
        """
        return BUILDERS[role].build(self, vam, decomposition)

    def check(self) -> None:
        """Raise KdxError for anything that can't work, before any training."""
        check_loggers(self.config.loggers)
        check_sections(self.config.probes)
        if asked_for(self.config.probes, SHIFT):
            check_shift(configured(self.config.probes, SHIFT)[1], self.dataset)
        shape, K = self.dataset.shape, self.dataset.num_classes
        with torch.random.fork_rng():
            students = []
            for vam in self.config.arms.values():
                students.append(self.build("student", vam))
                check_fits(students[-1], shape, K)
            if "explainer" in self.config.roles:
                students.append(self.build("explainer"))
                check_fits(students[-1], shape, K)
            teacher = self.given_teacher or self.build("teacher")
            check_fits(teacher, shape, K)
            if self.given_teacher is not None:
                check_teacher(self.given_teacher, self.dataset)
            check_siblings(self.given_siblings, self.dataset)
            given = [(sibling.name, sibling.model) for sibling in self.given_siblings]
            if self.given_teacher is not None:
                given.insert(0, (OWN_TEACHER, self.given_teacher))
            check_apart(given)
            for objective, model in product(self.config.objectives, students):
                Objective(objective).paths(model, teacher)
        for split in SPLITS:
            self.dataset.probe_set(split, self.config.probes.per_class, self.config.probes.seed)
        for role in ROLES:
            fabric_for(self.config.training_of(role))

    def probing_cost(self, role: str) -> Cost:
        """What probes of one explainer, or at most of one tree, take through its training."""
        with torch.random.fork_rng():
            model = self.build("explainer")
        most = max(self.config.objectives, key=lambda objective: len(terms_of(objective)))
        epochs = self.config.training_of(role).epochs
        return training_cost(role, model, self.dataset, most, self.config.probes, epochs)

    def plan(self, out: str | Path, together: int = 1) -> list[Step]:
        """Every run of the study below ``out``, teachers and siblings first.

        ``together`` is as for :meth:`run`.
        """
        return self.groups(out, together).planned

    def groups(self, out: str | Path, together: int) -> Groups:
        """Which runs below ``out`` are trained ``together``, at most so many, and which alone."""
        self._go_on(Path(out))
        return Groups(self, plan(self, Path(out)), together)

    def estimate(
        self, out: str | Path | None = None, *, jobs: int = 1, together: int = 1
    ) -> Estimate:
        """How long the study will take on this machine; every kind of run is tried for seconds.

        Args:
            out: the directory that the study will have, whose finished runs are not counted; by
                default none is finished.
            jobs: runs trained side by side.
            together: as for :meth:`run`; each run is counted as one that is trained alone.

        Raises KdxError for whatever the tried runs can't work with; see :meth:`check`.
        """
        nowhere = Path("no study lies here")
        folder = nowhere if out is None else Path(out)
        return estimate(self, folder, self.plan(folder, together), jobs)

    def run(
        self,
        out: str | Path,
        *,
        jobs: int = 1,
        together: int = 1,
        progress: Callable[[int], AbstractContextManager[Progress]] = no_progress,
        report: bool = True,
    ) -> RunSet:
        """Train what is not done yet, probe it, and write the report to ``out/report``.

        Args:
            out: the study's directory; runs that are finished there are kept.
            jobs: runs trained side by side, in processes of their own; teachers and their siblings
                before all others.
            together: runs of one architecture that are trained as one net of so many copies at
                most, the objectives of a seed and then the next seed's; 1: each alone. They come
                out as they do alone but for the rounding of float32, so a run of a group has
                another name than the same run alone, and is trained anew where only that is there.
                Worth it on a GPU that one run doesn't fill; on a CPU it gains little.
            progress: makes, from the number of runs, a context manager that shows their epochs;
                none by default.
            report: whether to write the report, most of whose time goes into its figures.

        Returns:
            All runs of the study, those of the teacher and its siblings among them.

        Raises:
            KdxError: something can't work, or ``out`` holds another study or files that are no
                study.
        """
        out = Path(out)
        self.check()
        steps = self.plan(out, together)
        teachers = [step for step in steps if step.role == "teacher"]
        given = [step for step in teachers if self.given(step.seed) is not None]
        self._claim(out, teachers)
        write_plan(out, [(step.path, step.title) for step in steps])
        waiting = [step for step in steps if not step.done]
        lessons = Lessons.of(out, waiting, self.config.keep_teacher)
        # What a killed process left may be of other images or another forward pass: neither the
        # data's fingerprint nor a model's weights say all, and a damaged file says nothing.
        lessons.close()
        try:
            with progress(len(waiting)) as show:
                train_steps(self, given, 1, show, lessons)  # they are only asked for outputs
                train_steps(self, teachers, jobs, show, lessons)
                self._check_apart(teachers)
                train_steps(self, steps, jobs, show, lessons)
        finally:
            lessons.close()
        runs = RunSet.of(Run.load(step.path) for step in steps)
        keep_outputs(self, runs)
        run_shift(self, runs)
        if report:
            Report(runs).save_html(out / "report")
        return runs

    def _go_on(self, out: Path) -> None:
        """Split students as the study in ``out`` was begun, unless this one says otherwise.

        Explainers that an earlier version made, whose widths were not rounded, are so found again.
        """
        file, explainer = out / STUDY_FILE, self.config.explainer
        if file.exists() and explainer.multiple == ExplainerConfig().multiple:
            begun = StudyConfig.load(file).explainer.multiple
            explainer = explainer.model_copy(update={"multiple": begun})
            self.config = self.config.model_copy(update={"explainer": explainer})

    def _teacher_with(self, weights: Path) -> nn.Module:
        with torch.random.fork_rng():
            given = self._given.teacher
            teacher = self.build("teacher") if given is None else copy.deepcopy(given)
        load_weights(weights, teacher)
        return teacher

    def _own_teacher(self) -> Own:
        """The teacher that siblings are held against: by its run's directory, or as planned."""
        path = self.config.teacher.path
        if path is not None and (info := info_of(path)) is not None:
            return Own(info, (info["seed"],) if recipe_known(info) else ())
        decides = teacher_config(self, 0)
        keys = {"objective": "", "decomposition": "multiclass", "data": self.dataset.describe()}
        seeds = () if self.given_teacher is not None else range(self.config.teacher.seeds)
        return Own({**keys, "config": decides}, tuple(seeds))

    def _check_apart(self, teachers: Sequence[Step]) -> None:
        """Refuse given siblings that turn out to be a teacher which was trained here."""
        if self.given_teacher is None and self.given_siblings:
            trained = [step for step in teachers if self.given(step.seed) is None]
            models = [(OWN_TEACHER, self.teacher(step.path)) for step in trained]
            check_apart([*models, *((each.name, each.model) for each in self.given_siblings)])

    def _claim(self, out: Path, teachers: Sequence[Step]) -> None:
        """Make ``out`` this study's directory; refuse one that holds something else."""
        file = out / STUDY_FILE
        if file.exists():
            there, here = _identity(StudyConfig.load(file)), _identity(self.config)
            for key, value in here.items():
                if there.get(key) != value:
                    raise KdxError(
                        f"{str(out)!r} holds another study: {key} is {there.get(key)!r} there and "
                        f"{value!r} here; choose another output directory"
                    )
            if not teachers[0].done and self._other_teachers(teachers):
                raise KdxError(
                    f"{str(out)!r} holds another study: its images or its teacher's weights are "
                    "others; choose "
                    "another output directory"
                )
        elif out.is_dir() and any(out.iterdir()):
            raise KdxError(
                f"{str(out)!r} is not empty and holds no study; choose another output directory"
            )
        elif out.exists() and not out.is_dir():
            raise KdxError(f"{str(out)!r} is a file; choose a directory for the output")
        self.config.save(file)

    def _other_teachers(self, teachers: Sequence[Step]) -> bool:
        """Whether there are runs of teachers that no study with the same teacher would leave."""
        planned = {step.path.name for step in teachers}
        files = teachers[0].path.parent.glob(f"[!.]*/{INFO}")
        runs = [Run.load(file.parent) for file in files if file.parent.name not in planned]
        teacher = self._own_teacher().info
        given = self.given_teacher is not None
        return any(given or first_difference(teacher, run.info) for run in runs)

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process makes the study anew from.

        Its extensions are loaded there first, since what the user handed over may be of classes
        that they define.
        """
        state = {key: self.__dict__[key] for key in ("config", "data_dir", "_given")}
        return _restored, (loaded(self.config.extensions), pickle.dumps(state))


@dataclass(frozen=True)
class _Given:
    """What the user handed over as objects rather than names."""

    data: Dataset | None = None
    teacher: nn.Module | None = None
    student: nn.Module | None = None
    callbacks: tuple[Callback, ...] = ()
    objectives: tuple[Callable[..., Any], ...] = ()  # what imports them registers them
    siblings: tuple[nn.Module | None, ...] = ()  # None where one is a path

    @classmethod
    def of(
        cls,
        data: Any,
        teacher: Any,
        student: Any,
        callbacks: Sequence[Callback],
        objectives: Sequence[Any],
        siblings: int | Sequence[Any],
    ) -> _Given:
        """What of the arguments of :class:`Study` are objects."""
        return cls(
            data if isinstance(data, Dataset) else None,
            teacher if isinstance(teacher, nn.Module) else None,
            None if isinstance(student, str) else student,
            tuple(callbacks),
            tuple(objective for objective in objectives if callable(objective)),
            ()
            if isinstance(siblings, int)
            else tuple(each if isinstance(each, nn.Module) else None for each in siblings),
        )


def _restored(extensions: tuple[Extension, ...], state: bytes) -> Study:
    """A study in another process."""
    load_same(extensions)
    study = Study.__new__(Study)
    study.__dict__.update(pickle.loads(state))
    return study


def _name_of(model: str | nn.Module) -> str:
    return model if isinstance(model, str) else type(model).__name__


def _objective_section(objective: Any) -> Any:
    """The section of an objective, which may be what declares it."""
    if not callable(objective):
        return _plain(objective)
    for name, row in OBJECTIVES.items():
        if row.home == home(objective):
            return {"name": name}
    raise KdxError(
        f"{home(objective)} is not declared as an objective; put @target(...) or @distiller(...) "
        "of kdx_analysis.objectives before it, or give the name of one that is"
    )


def _teacher_section(
    teacher: str | Path | nn.Module, training: TrainingConfig | Mapping[str, Any] | None
) -> dict[str, Any]:
    """The teacher's section: by name, by ``NAME@PATH``, by a run's directory, or a module."""
    section: dict[str, Any] = {} if training is None else {"training": _plain(training)}
    if isinstance(teacher, nn.Module):
        return {**section, "model": type(teacher).__name__}
    if "@" in str(teacher):
        model, _, path = str(teacher).partition("@")
        return {**section, "model": model, "path": path}
    if isinstance(teacher, Path) or Path(teacher).is_dir():
        run = Run.load(teacher)
        return {**section, "model": run.info["config"]["model"], "path": str(run.path)}
    return {**section, "model": str(teacher)}


def _teachers(
    teacher: str | Path | nn.Module,
    training: TrainingConfig | Mapping[str, Any] | None,
    siblings: int | Sequence[str | Path | nn.Module],
    seeds: int,
) -> dict[str, Any]:
    """The teacher's section, with its siblings and seeds."""
    section = _teacher_section(teacher, training)
    return section | _siblings_section(teacher, siblings, seeds)


def _siblings_section(
    teacher: str | Path | nn.Module, siblings: int | Sequence[str | Path | nn.Module], seeds: int
) -> dict[str, Any]:
    """What the teacher's section says of siblings and seeds; modules stand by their class's name.

    Raises KdxError for some to be trained beside a teacher that is a module; other given ones are
    refused as in YAML.
    """
    if isinstance(teacher, nn.Module):
        try:
            check_given_teacher(siblings, seeds)
        except ValueError as error:
            raise KdxError(str(error)) from None
    if isinstance(siblings, int):
        return {"siblings": siblings, "seeds": seeds}
    named = [type(each).__name__ if isinstance(each, nn.Module) else str(each) for each in siblings]
    return {"siblings": named, "seeds": seeds}


def ready_studies() -> dict[str, Path]:
    """The studies that come with the package: name → YAML file."""
    folder = Path(str(resources.files("kdx_analysis") / "studies"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


@lru_cache(maxsize=2)
def _dataset(config: str, data_dir: str | None) -> Dataset:
    """The data set of a data section given as JSON; kept, because every run of a study needs it."""
    section = DataConfig.model_validate_json(config)
    data = load_dataset(
        section.name,
        data_dir=data_dir,
        per_class=section.per_class,
        test_per_class=section.test_per_class,
        val_fraction=section.val_fraction,
        split_seed=section.split_seed,
        size=section.size,
    )
    return data if section.augment else dataclasses.replace(data, pad=0, flip=False)


def check_names(config: StudyConfig) -> None:
    """Raise KdxError, with the nearest valid names, for an objective or a logger that is not there.

    Options of objectives are checked with them.
    """
    check_objectives(config.objectives, f"study {config.name!r}")
    for name in config.loggers:
        LOGGERS[name]


def _identity(config: StudyConfig) -> dict[str, Any]:
    """What the runs of a study share, as dotted keys.

    Siblings, and teachers beside the first, can be added to a study that is finished.
    """
    section = config.to_dict()
    keys = flatten({key: section[key] for key in ("name", "data", "teacher", "student")})
    return {key: value for key, value in keys.items() if key not in _ADDED}


def _plain(section: Any) -> Any:
    return (
        section.model_dump(mode="json", by_alias=True)
        if isinstance(section, BaseModel)
        else section
    )

"""Steps of a study, one after the other or side by side: train, probe, write the run."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessRaisedException

from kdx_analysis.config import TrainingConfig, flatten
from kdx_analysis.data import Dataset
from kdx_analysis.errors import KdxError
from kdx_analysis.extensions import loaded
from kdx_analysis.models import HME
from kdx_analysis.probes.training_probe import TrainingProbe
from kdx_analysis.runs import environment, write_run
from kdx_analysis.runs.outputs import outputs_of
from kdx_analysis.study.groups import units
from kdx_analysis.study.lessons import Lessons
from kdx_analysis.study.roles import BUILDERS, Ingredients
from kdx_analysis.study.step import Step
from kdx_analysis.training import Callback, Epoch, fabric_for, predict, reproducible, score
from kdx_analysis.training.kept_logits import Shelf
from kdx_analysis.training.loggers import logged
from kdx_analysis.training.loop import Pass, as_teacher, by_itself, by_name, fitting
from kdx_analysis.training.memory import keep_freed_memory
from kdx_analysis.training.progress import PROGRESS, Progress, ProgressFile, relayed
from kdx_analysis.training.seconds import PROBES, SCORING, TEACHER, Seconds
from kdx_analysis.training.together import fit_together


def train_steps(
    study: Ingredients, steps: Sequence[Step], jobs: int, show: Progress, lessons: Lessons
) -> None:
    """Train the ``steps`` that are not done, in order, ``jobs`` at a time.

    What they share of their teachers is in the ``lessons``, which stay for those that come later.
    Those of a group are trained together. The first error stops those that wait. A tree comes
    after its explainer, which stands before it among the ``steps`` or is done; teachers of all are
    done, or stand before in order.
    """
    waiting = units([step for step in steps if not step.done])
    if jobs == 1 or len(waiting) < 2:
        for number, unit in enumerate(waiting, 1):
            train_unit(study, unit, show, lessons)
            _forget(lessons, unit, waiting[number:])
    else:
        _side_by_side(study, waiting, jobs, show, lessons)


def _side_by_side(
    study: Ingredients, waiting: list[list[Step]], jobs: int, show: Progress, lessons: Lessons
) -> None:
    """Train units of steps in other processes, ``jobs`` at a time."""
    try:
        pickle.dumps(study)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise KdxError(
            f"the study can't be handed to other processes ({error}); use jobs=1, or define the "
            "classes of teacher and "
            "student in modules that can be imported"
        ) from None
    lessons.ask(
        study, [step for unit in waiting for step in unit]
    )  # or each of the first processes would ask the teacher
    context = multiprocessing.get_context("spawn")
    with (
        relayed(show) as relay,
        ProcessPoolExecutor(min(jobs, len(waiting)), mp_context=context) as pool,
    ):
        running: dict[Future[None], list[Step]] = {}
        try:
            while waiting or running:
                for unit in list(filter(_ready, waiting))[: jobs - len(running)]:
                    waiting.remove(unit)
                    running[pool.submit(train_unit, study, unit, relay, lessons)] = unit
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    finished = running.pop(future)
                    future.result()
                    _forget(lessons, finished, [*waiting, *running.values()])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _ready(unit: Sequence[Step]) -> bool:
    """Whether what its steps start from is there."""
    return all(step.ready for step in unit)


def _forget(lessons: Lessons, finished: Sequence[Step], others: Sequence[Sequence[Step]]) -> None:
    """Take away what the ``finished`` steps needed of the lessons and none of the others needs."""
    rest = list(chain.from_iterable(others))
    for step in finished:
        lessons.forget(step, rest)


def train_unit(study: Ingredients, unit: Sequence[Step], show: Progress, lessons: Lessons) -> None:
    """Train and probe one run, or several together, and write them.

    ``lessons`` are what they share with others. Raises KdxError for a run that fails; others that
    are trained together with it are written.
    """
    keep_freed_memory()
    config = study.config.training_of(unit[0].role)
    fabric = fabric_for(config)
    train = partial(
        _train_on if len(unit) == 1 else _train_together,
        study=study,
        unit=unit,
        config=config,
        lessons=lessons,
    )
    if fabric.strategy.launcher is None:
        fabric.launch(partial(train, show=show))
        return
    with relayed(show) as relay:
        try:
            fabric.launch(partial(train, show=relay))
        except ProcessRaisedException as error:  # its text ends with what the process raised
            name, _, message = str(error).strip().splitlines()[-1].partition(": ")
            raise KdxError(message) if name.endswith(KdxError.__name__) else error from None


@dataclass(frozen=True)
class Trained:
    """A trained model and what is known of its training.

    Attributes:
        model: with the weights of the selected epoch.
        epoch: the selected one; 0 of a model that was given.
        records: by kind.
        outputs: on ``val`` and ``test``, N×K, at the selected epoch.
        seconds: that it took, part by part.
        probe_sets: ids of the images that probes looked at, by split; None where none did.
        grown_from: as of :class:`Start`.
    """

    model: nn.Module
    epoch: int
    records: Mapping[str, pd.DataFrame]
    outputs: Mapping[str, Tensor]
    seconds: Seconds
    probe_sets: Mapping[str, list[int]] | None = None
    grown_from: Mapping[str, Any] | None = None


def _train_on(
    fabric: Fabric,
    study: Ingredients,
    unit: Sequence[Step],
    config: TrainingConfig,
    lessons: Lessons,
    show: Progress,
) -> None:
    """Train a step's model on the processes of ``fabric``; the first of them writes its run."""
    (step,) = unit
    given = study.given(step.seed) if step.role == "teacher" else None
    with reproducible(step.seed, config.threads):
        if given is not None:
            trained = _as_given(given, study.dataset)
        else:
            trained = by_itself(
                _training(fabric, study, step, config, lessons, show, study.teacher)
            )
        teaches = step.role == "teacher" and step.seed < study.config.teacher.seeds
        # Students load it in the usual order of memory, in which the last bits are others.
        if teaches and fabric.is_global_zero and not (given is None and config.channels_last):
            precision = config.precision if given is None else "32-true"
            lessons.leave(trained.outputs, trained.model, study.dataset, precision)
    if fabric.is_global_zero:
        _write(study, step, config, trained)


def _train_together(
    fabric: Fabric,
    study: Ingredients,
    unit: Sequence[Step],
    config: TrainingConfig,
    lessons: Lessons,
    show: Progress,
) -> None:
    """Train the models of several steps as one net of copies, and write their runs."""

    @cache
    def teacher(path: Path) -> nn.Module:
        return as_teacher(study.teacher(path), fabric.device)

    starts = [
        partial(_training, fabric, study, step, config, lessons, show, teacher) for step in unit
    ]
    seeds = [step.seed for step in unit]
    with reproducible(seeds[0], config.threads):
        results = fit_together(starts, seeds, fabric.device)
    beside = [step.path.name for step in unit]
    for step, result in zip(unit, results, strict=True):
        if not isinstance(result, KdxError):
            _write(study, step, config, result, beside)
    for step, result in zip(unit, results, strict=True):
        if isinstance(result, KdxError):
            raise KdxError(f"{step.title}: {result}")


def _write(
    study: Ingredients,
    step: Step,
    config: TrainingConfig,
    trained: Trained,
    beside: Sequence[str] = (),
) -> None:
    """Write a step's run; ``beside`` are the ids of all runs that were trained together with it."""
    info = {
        "id": step.path.name,
        "study": study.config.name,
        **step.keys,
        "config": step.config,
        "selection": {"rule": config.selection, "split": "val", "epoch": trained.epoch},
        "data": study.dataset.describe(),
        "probe_sets": trained.probe_sets,
        "experts": list(trained.model.experts) if isinstance(trained.model, HME) else None,
        "grown_from": trained.grown_from,
        "extensions": [extension.provenance for extension in loaded(study.config.extensions)],
        "environment": environment(),
        "seconds": trained.seconds.told(),
    }
    if step.together:
        info["together"] = {"group": list(step.together), "trained": list(beside or [info["id"]])}
    if step.role == "teacher" and study.is_declared(step.seed):
        info["declared"] = True
    outputs = outputs_of(trained.outputs, study.dataset, step.objective.decomposition)
    write_run(step.path, info, trained.records, trained.model, outputs)


def _as_given(teacher: nn.Module, data: Dataset) -> Trained:
    """A teacher that was trained elsewhere: its scores."""
    seconds = Seconds()
    splits = {"val": data.val, "test": data.test}
    with seconds.of(SCORING):
        outputs = {name: predict(teacher, split, data) for name, split in splits.items()}
        rows = [row for name in splits for row in score(outputs[name], splits[name], "multiclass")]
    return Trained(teacher, 0, {"metrics": pd.DataFrame(rows).assign(epoch=0)}, outputs, seconds)


@dataclass(frozen=True)
class _Taught:
    """What a training has beside its own model: its teacher, what is known of it, a stopwatch."""

    teacher: nn.Module | None
    outputs: Mapping[str, Tensor]
    shelf: Shelf | None
    seconds: Seconds

    @classmethod
    def by(
        cls,
        study: Ingredients,
        step: Step,
        fabric: Fabric,
        lessons: Lessons,
        teacher_at: Callable[[Path], nn.Module],
    ) -> _Taught:
        """The teacher of a step with what runs share of it; all None or empty for a teacher."""
        seconds = Seconds()
        if step.teacher is None:
            return cls(None, {}, None, seconds)
        teacher = teacher_at(step.teacher.path)
        with seconds.of(TEACHER):
            outputs = lessons.outputs(study, step, teacher, fabric)
        return cls(teacher, outputs, lessons.shelf(step), seconds)


def _training(
    fabric: Fabric,
    study: Ingredients,
    step: Step,
    config: TrainingConfig,
    lessons: Lessons,
    show: Progress,
    teacher_at: Callable[[Path], nn.Module],
) -> Generator[Pass, float, Trained]:
    """A step's training as ``fitting`` begins one; ``teacher_at`` finds a teacher by its run."""
    taught = _Taught.by(study, step, fabric, lessons, teacher_at)
    teacher, seconds = taught.teacher, taught.seconds
    data, role = study.dataset, BUILDERS[step.role]
    vam = study.config.arms[step.vam] if step.role == "student" else None
    start = role.start(study, vam, step.objective.decomposition, step.explainer)
    model, device = start.model, fabric.device
    on_device = (step.role, model.to(device), data.to(device), step.objective)
    taught_by = None if teacher is None else teacher.to(device)
    with seconds.of(PROBES):
        probe = TrainingProbe(*on_device, study.config.probes, config.epochs, taught_by)
    callbacks = _callbacks(study, step, show, probe, seconds, first=fabric.is_global_zero)
    names = study.config.loggers if fabric.is_global_zero else ()
    params = {"study": study.config.name, **step.keys, **flatten(step.config)}
    with logged(names, step.study, study.config.name, step.path.name, params) as log:
        callbacks.append(lambda epoch, _: log(_points(epoch), epoch.epoch))
        result = yield from fitting(
            model,
            data,
            step.objective,
            config,
            seed=step.seed,
            fabric=fabric,
            teacher=teacher,
            teacher_outputs=taught.outputs,
            shelf=taught.shelf,
            seconds=seconds,
            vam=vam,
            callbacks=callbacks,
            preparing=lambda done, total: show(
                step.title, Epoch.before(config.epochs, done, total)
            ),
            **role.schedules(study),
        )
        tested = result.history[result.history["split"] == "test"]
        log(by_name(tested.to_dict("records")), result.epoch)
    role.finish(model)
    records = {**start.records, "metrics": result.history, **probe.tables()}
    return Trained(
        model, result.epoch, records, result.outputs, seconds, probe.ids or None, start.grown_from
    )


def _callbacks(
    study: Ingredients,
    step: Step,
    show: Progress,
    probe: TrainingProbe,
    seconds: Seconds,
    *,
    first: bool,
) -> list[Callback]:
    """What is called after every epoch: progress, probes, then what the user wants called.

    ``first`` says whether this is the first of the training's processes, which keeps its file.
    """

    def shown(epoch: Epoch, model: nn.Module) -> None:
        # Outputs would go through a queue where another process shows the epoch.
        show(step.title, replace(epoch, val_outputs=None))

    def probed(epoch: Epoch, model: nn.Module) -> None:
        with seconds.of(PROBES):
            probe(epoch, model)

    progress: list[Callback] = []
    if first:
        file = step.study / PROGRESS / f"{step.path.name}.json"
        progress.append(ProgressFile(file, study.config.training_of(step.role).epochs))
    return [shown, *progress, probed, *study.callbacks]


def _points(epoch: Epoch) -> dict[str, float]:
    """What loggers are told of an epoch: its scores, and of gates their temperature and entropy."""
    points = dict(epoch.scores)
    if epoch.temperature is not None:
        points["gates/temperature"] = epoch.temperature
    if epoch.gate_entropy is not None:
        points["gates/entropy"] = epoch.gate_entropy
    return points

"""Steps of a study, one after the other or side by side: train, probe, write the run."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
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
from kdx_analysis.runs import Run, environment, write_run
from kdx_analysis.runs.outputs import outputs_of
from kdx_analysis.study.lessons import Lessons
from kdx_analysis.study.roles import BUILDERS, Ingredients
from kdx_analysis.study.step import Step
from kdx_analysis.training import Callback, Epoch, fabric_for, fit, predict, reproducible, score
from kdx_analysis.training.kept_logits import Shelf
from kdx_analysis.training.loggers import logged
from kdx_analysis.training.loop import by_name
from kdx_analysis.training.progress import PROGRESS, Progress, ProgressFile, relayed
from kdx_analysis.training.seconds import PROBES, SCORING, TEACHER, Seconds


def train_steps(
    study: Ingredients, steps: Sequence[Step], jobs: int, show: Progress, lessons: Lessons
) -> None:
    """Train the ``steps`` that are not done, in order, ``jobs`` at a time.

    What they share of their teachers is in the ``lessons``, which stay for those that come later.
    The first error stops those that wait. A tree comes after its explainer, which stands before it
    among the ``steps`` or is done; teachers of all are done, or stand before in order.
    """
    steps = [step for step in steps if not step.done]
    if jobs == 1 or len(steps) < 2:
        for number, step in enumerate(steps, 1):
            train_step(study, step, show, lessons)
            lessons.forget(step, steps[number:])
    else:
        _side_by_side(study, steps, jobs, show, lessons)


def _side_by_side(
    study: Ingredients, steps: list[Step], jobs: int, show: Progress, lessons: Lessons
) -> None:
    """Train the ``steps`` in other processes, ``jobs`` at a time."""
    try:
        pickle.dumps(study)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise KdxError(
            f"the study can't be handed to other processes ({error}); use jobs=1, or define the "
            "classes of teacher and "
            "student in modules that can be imported"
        ) from None
    lessons.ask(study, steps)  # or each of the first processes would ask the teacher
    context = multiprocessing.get_context("spawn")
    with (
        relayed(show) as relay,
        ProcessPoolExecutor(min(jobs, len(steps)), mp_context=context) as pool,
    ):
        running: dict[Future[Run], Step] = {}
        try:
            while steps or running:
                for step in [step for step in steps if step.ready][: jobs - len(running)]:
                    steps.remove(step)
                    running[pool.submit(train_step, study, step, relay, lessons)] = step
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    finished = running.pop(future)
                    future.result()
                    lessons.forget(finished, [*steps, *running.values()])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def train_step(study: Ingredients, step: Step, show: Progress, lessons: Lessons) -> Run:
    """Train and probe one run and write it; ``lessons`` are what it shares with others."""
    config = study.config.training_of(step.role)
    fabric = fabric_for(config)
    train = partial(_train_on, study=study, step=step, config=config, lessons=lessons)
    if fabric.strategy.launcher is None:
        fabric.launch(partial(train, show=show))
        return Run.load(step.path)
    with relayed(show) as relay:
        try:
            fabric.launch(partial(train, show=relay))
        except ProcessRaisedException as error:  # its text ends with what the process raised
            name, _, message = str(error).strip().splitlines()[-1].partition(": ")
            raise KdxError(message) if name.endswith(KdxError.__name__) else error from None
    return Run.load(step.path)


@dataclass(frozen=True)
class Trained:
    """A trained model and what is known of its training.

    Attributes:
        model: with the weights of the selected epoch.
        epoch: the selected one; 0 of a model that was given.
        records: by kind.
        outputs: on ``val`` and ``test``, N×K, at the selected epoch.
        probe_sets: ids of the images that probes looked at, by split; None where none did.
        grown_from: as of :class:`Start`.
    """

    model: nn.Module
    epoch: int
    records: Mapping[str, pd.DataFrame]
    outputs: Mapping[str, Tensor]
    probe_sets: Mapping[str, list[int]] | None = None
    grown_from: Mapping[str, Any] | None = None


def _train_on(
    fabric: Fabric,
    study: Ingredients,
    step: Step,
    config: TrainingConfig,
    lessons: Lessons,
    show: Progress,
) -> None:
    """Train a step's model on the processes of ``fabric``; the first of them writes its run."""
    seconds = Seconds()
    given = study.given(step.seed) if step.role == "teacher" else None
    with reproducible(step.seed, config.threads):
        if given is not None:
            with seconds.of(SCORING):
                trained = _as_given(given, study.dataset)
        else:
            taught = _Taught.by(study, step, fabric, lessons, seconds)
            trained = _trained(fabric, study, step, config, taught, show)
        teaches = step.role == "teacher" and step.seed < study.config.teacher.seeds
        # Students load it in the usual order of memory, in which the last bits are others.
        if teaches and fabric.is_global_zero and not (given is None and config.channels_last):
            precision = config.precision if given is None else "32-true"
            lessons.leave(trained.outputs, trained.model, study.dataset, precision)
    if not fabric.is_global_zero:
        return
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
        "seconds": seconds.told(),
    }
    if step.role == "teacher" and study.is_declared(step.seed):
        info["declared"] = True
    outputs = outputs_of(trained.outputs, study.dataset, step.objective.decomposition)
    write_run(step.path, info, trained.records, trained.model, outputs)


def _as_given(teacher: nn.Module, data: Dataset) -> Trained:
    """A teacher that was trained elsewhere: its scores."""
    splits = {"val": data.val, "test": data.test}
    outputs = {name: predict(teacher, split, data) for name, split in splits.items()}
    rows = [row for name in splits for row in score(outputs[name], splits[name], "multiclass")]
    return Trained(teacher, 0, {"metrics": pd.DataFrame(rows).assign(epoch=0)}, outputs)


@dataclass(frozen=True)
class _Taught:
    """What a training has beside its own model: its teacher, what is known of it, a stopwatch."""

    teacher: nn.Module | None
    outputs: Mapping[str, Tensor]
    shelf: Shelf | None
    seconds: Seconds

    @classmethod
    def by(
        cls, study: Ingredients, step: Step, fabric: Fabric, lessons: Lessons, seconds: Seconds
    ) -> _Taught:
        """The teacher of a step with what runs share of it; all None or empty for a teacher."""
        if step.teacher is None:
            return cls(None, {}, None, seconds)
        teacher = study.teacher(step.teacher.path)
        with seconds.of(TEACHER):
            outputs = lessons.outputs(study, step, teacher, fabric)
        return cls(teacher, outputs, lessons.shelf(step), seconds)


def _trained(
    fabric: Fabric,
    study: Ingredients,
    step: Step,
    config: TrainingConfig,
    taught: _Taught,
    show: Progress,
) -> Trained:
    teacher, seconds = taught.teacher, taught.seconds
    data, role = study.dataset, BUILDERS[step.role]
    vam = study.config.arms[step.vam] if step.role == "student" else None
    start = role.start(study, vam, step.objective.decomposition, step.explainer)
    model, device = start.model, fabric.device
    on_device = (step.role, model.to(device), data.to(device), step.objective)
    taught_by = None if teacher is None else teacher.to(device)
    with seconds.of(PROBES):
        probe = TrainingProbe(*on_device, study.config.probes, config.epochs, taught_by)
    callbacks = _callbacks(study, step, show, probe, seconds)
    names: Sequence[str] = ()
    if fabric.is_global_zero:
        names = study.config.loggers
        progress = step.study / PROGRESS / f"{step.path.name}.json"
        callbacks.insert(1, ProgressFile(progress, config.epochs))
    params = {"study": study.config.name, **step.keys, **flatten(step.config)}
    with logged(names, step.study, study.config.name, step.path.name, params) as log:
        callbacks.append(lambda epoch, _: log(_points(epoch), epoch.epoch))
        result = fit(
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
    ids = probe.ids or None
    return Trained(model, result.epoch, records, result.outputs, ids, start.grown_from)


def _callbacks(
    study: Ingredients, step: Step, show: Progress, probe: TrainingProbe, seconds: Seconds
) -> list[Callback]:
    """What is called after every epoch: progress, probes, then what the user wants called."""

    def shown(epoch: Epoch, model: nn.Module) -> None:
        # Outputs would go through a queue where another process shows the epoch.
        show(step.title, replace(epoch, val_outputs=None))

    def probed(epoch: Epoch, model: nn.Module) -> None:
        with seconds.of(PROBES):
            probe(epoch, model)

    return [shown, probed, *study.callbacks]


def _points(epoch: Epoch) -> dict[str, float]:
    """What loggers are told of an epoch: its scores, and of gates their temperature and entropy."""
    points = dict(epoch.scores)
    if epoch.temperature is not None:
        points["gates/temperature"] = epoch.temperature
    if epoch.gate_entropy is not None:
        points["gates/entropy"] = epoch.gate_entropy
    return points

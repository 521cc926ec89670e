"""One step of a study after the other, or side by side in processes of their own: train, probe, write the run."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from lightning_fabric import Fabric
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from kdx_analysis.config import ObjectiveConfig, StudyConfig, TrainingConfig
from kdx_analysis.data import Dataset
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.probes.recorder import ExplainerProbe
from kdx_analysis.runs import Run, environment, run_id, write_run
from kdx_analysis.training import Epoch, fabric_for, fit, reproducible, score
from kdx_analysis.training.progress import Progress, relayed


class Ingredients(Protocol):
    """What a step takes from its study; picklable where steps run in other processes."""

    config: StudyConfig

    @property
    def dataset(self) -> Dataset: ...

    @property
    def given_teacher(self) -> nn.Module | None: ...

    def teacher(self, path: Path) -> nn.Module: ...

    def build(self, role: str) -> nn.Module: ...


@dataclass(frozen=True)
class Step:
    """One run that a study asks for.

    Attributes:
        role: teacher, student (undivided, the yardstick) or explainer.
        objective: what it is matched to.
        seed: of its weights, order and augmentation.
        config: everything that decides its result; a run is done when a directory for just this config exists.
        path: that directory.
    """

    role: str
    objective: ObjectiveConfig
    seed: int
    config: Mapping[str, Any]
    path: Path

    @property
    def done(self) -> bool:
        return self.path.is_dir()

    @property
    def title(self) -> str:
        return self.role if self.role == "teacher" else f"{self.role} {self.objective.label} seed {self.seed}"

    @classmethod
    def of(cls, parent: Path, role: str, objective: ObjectiveConfig, seed: int, config: Mapping[str, Any]) -> Step:
        """The step whose directory below ``parent`` is named for its configuration."""
        config = {"role": role, **config}
        label = "" if role == "teacher" else objective.label
        return cls(role, objective, seed, config, parent / run_id(role, label, seed, config))


def train_steps(study: Ingredients, steps: Sequence[Step], teacher: Path, jobs: int, show: Progress) -> None:
    """Train the ``steps`` that are not done, ``jobs`` at a time; the first error stops those that wait."""
    steps = [step for step in steps if not step.done]
    if jobs == 1 or len(steps) < 2:
        for step in steps:
            train_step(study, step, teacher, show)
        return
    try:
        pickle.dumps(study)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise KdxError(
            f"the study can't be handed to other processes ({error}); use jobs=1, or define the teacher's class in a "
            "module that can be imported"
        ) from None
    context = multiprocessing.get_context("spawn")
    with relayed(show) as relay, ProcessPoolExecutor(min(jobs, len(steps)), mp_context=context) as pool:
        futures = [pool.submit(train_step, study, step, teacher, relay) for step in steps]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def train_step(study: Ingredients, step: Step, teacher: Path, show: Progress) -> Run:
    """Train and probe one run and write its directory; ``teacher`` is the directory of the teacher's run."""
    config = study.config.teacher.training if step.role == "teacher" else study.config.training
    fabric = fabric_for(config)
    train = partial(_train_on, study=study, step=step, config=config, teacher_run=teacher)
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


def _train_on(
    fabric: Fabric, study: Ingredients, step: Step, config: TrainingConfig, teacher_run: Path, show: Progress
) -> None:
    data, probe = study.dataset, None
    with reproducible(step.seed, config.threads):
        teacher = None if step.role == "teacher" else study.teacher(teacher_run)
        records: dict[str, pd.DataFrame] = {}
        if step.role == "teacher" and study.given_teacher is not None:
            model = study.given_teacher
            rows = [row for split in (data.val, data.test) for row in score(model, split, data, "multiclass")]
            records["metrics"], epoch = pd.DataFrame(rows).assign(epoch=0), 0
        else:
            model = study.build(step.role)
            callbacks: list[Callable[[Epoch, nn.Module], None]] = [lambda epoch, _: show(step.title, epoch)]
            if isinstance(model, HME):
                probe = ExplainerProbe(
                    model.to(fabric.device), data.to(fabric.device), step.objective, study.config.probes,
                    config.epochs, None if teacher is None else teacher.to(fabric.device),
                )  # fmt: skip
                callbacks.append(probe)
            result = fit(
                model, data, step.objective, config, seed=step.seed, fabric=fabric, teacher=teacher,
                temperature=study.config.explainer.temperature, callbacks=callbacks,
            )  # fmt: skip
            records["metrics"], epoch = result.history, result.epoch
    if not fabric.is_global_zero:
        return
    if probe is not None:
        records |= probe.tables()
    info = {
        "id": step.path.name,
        "study": study.config.name,
        "role": step.role,
        "objective": step.objective.label if step.role != "teacher" else "",
        "decomposition": step.objective.decomposition,
        "seed": step.seed,
        "config": step.config,
        "selection": {"rule": config.selection, "split": "val", "epoch": epoch},
        "data": data.describe(),
        "probe_sets": None if probe is None else probe.ids,
        "environment": environment(),
    }
    write_run(step.path, info, records, model)

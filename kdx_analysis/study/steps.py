"""One step of a study after the other, or side by side in processes of their own: train, probe,
write the run.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.multiprocessing import ProcessRaisedException

from kdx_analysis.config import (
    ObjectiveConfig,
    Phase2Config,
    StudyConfig,
    TrainingConfig,
    VAMConfig,
    flatten,
)
from kdx_analysis.data import Dataset
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, Tree
from kdx_analysis.models import gates as gating
from kdx_analysis.models.modes import undisturbed
from kdx_analysis.models.vam import fold
from kdx_analysis.probes.gates import formulas as gates
from kdx_analysis.probes.training_probe import TrainingProbe
from kdx_analysis.records import count, kind, text
from kdx_analysis.runs import Run, environment, run_id, write_run
from kdx_analysis.runs.run import WEIGHTS
from kdx_analysis.training import Epoch, fabric_for, fit, reproducible, score
from kdx_analysis.training.checkpoints import load_weights
from kdx_analysis.training.loggers import logged
from kdx_analysis.training.loop import by_name
from kdx_analysis.training.progress import PROGRESS, Progress, ProgressFile, relayed


class Ingredients(Protocol):
    """What a step takes from its study; picklable where steps run in other processes."""

    config: StudyConfig

    @property
    def dataset(self) -> Dataset: ...

    @property
    def given_teacher(self) -> nn.Module | None: ...

    def teacher(self, path: Path) -> nn.Module: ...

    def build(
        self, role: str, vam: VAMConfig | None = None, decomposition: str = "binary"
    ) -> nn.Module: ...


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
    """

    role: str
    objective: ObjectiveConfig
    seed: int
    config: Mapping[str, Any]
    path: Path
    vam: str = ""
    explainer: Path | None = None

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
            return self.role
        return " ".join(
            filter(None, (self.role, self.objective.label, self.vam, f"seed {self.seed}"))
        )

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
    ) -> Step:
        """The step whose directory below ``parent`` is named for its configuration."""
        config = {"role": role, **config}
        label = "" if role == "teacher" else objective.label
        path = parent / run_id(role, label, seed, config, vam=vam)
        return cls(role, objective, seed, config, path, vam, explainer)


def train_steps(
    study: Ingredients, steps: Sequence[Step], teacher: Path, jobs: int, show: Progress
) -> None:
    """Train the ``steps`` that are not done, in order, ``jobs`` at a time; the first error stops
    those that wait.

    A tree comes after its explainer, which stands before it among the ``steps`` or is done.
    """
    steps = [step for step in steps if not step.done]
    if jobs == 1 or len(steps) < 2:
        for step in steps:
            train_step(study, step, teacher, show)
        return
    try:
        pickle.dumps(study)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise KdxError(
            f"the study can't be handed to other processes ({error}); use jobs=1, or define the "
            "classes of teacher and "
            "student in modules that can be imported"
        ) from None
    context = multiprocessing.get_context("spawn")
    with (
        relayed(show) as relay,
        ProcessPoolExecutor(min(jobs, len(steps)), mp_context=context) as pool,
    ):
        running: set[Future[Run]] = set()
        try:
            while steps or running:
                for step in [step for step in steps if step.ready][: jobs - len(running)]:
                    steps.remove(step)
                    running.add(pool.submit(train_step, study, step, teacher, relay))
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def train_step(study: Ingredients, step: Step, teacher: Path, show: Progress) -> Run:
    """Train and probe one run and write its directory; ``teacher`` is the directory of the
    teacher's run.
    """
    config = study.config.training_of(step.role)
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
        attention = gates.effective(
            attention, [gating.spread(features.float()) for features in trace.features]
        )
    tree = explainer.harden([gate.mean(dim=0) if gate.ndim == 3 else gate for gate in attention])
    if config.weights == "redrawn":
        tree.redraw(statistics=config.statistics == "redrawn")
    return tree.pruned()


kind(
    "tree",
    "One expert or head of a tree, and the expert above it; the trunk is expert 0 of level 1.",
    keys=(count("child_level", "from 2; L + 1 are the heads", low=2), count("child", "on it")),
    values=(
        count("parent", "expert on the level below"),
        text("subtask", "of a head; '' elsewhere"),
    ),
    home=__name__,
)


def tree_record(tree: Tree) -> pd.DataFrame:
    """Columns child_level, child, parent, subtask (of the leaves, '' elsewhere); the trunk is
    expert 0 of level 1.
    """
    leaves = len(tree.experts) + 1
    rows = [
        (level, child, parent, tree.classes[child] if level == leaves else "")
        for level, parents in enumerate(tree.parents, 2)
        for child, parent in enumerate(parents)
    ]
    return pd.DataFrame(rows, columns=["child_level", "child", "parent", "subtask"])


def _train_on(
    fabric: Fabric,
    study: Ingredients,
    step: Step,
    config: TrainingConfig,
    teacher_run: Path,
    show: Progress,
) -> None:
    data, grown_from = study.dataset, None
    probe: TrainingProbe | None = None
    with reproducible(step.seed, config.threads):
        teacher = None if step.role == "teacher" else study.teacher(teacher_run)
        records: dict[str, pd.DataFrame] = {}
        if step.role == "teacher" and study.given_teacher is not None:
            model = study.given_teacher
            rows = [
                row
                for split in (data.val, data.test)
                for row in score(model, split, data, "multiclass")
            ]
            records["metrics"], epoch = pd.DataFrame(rows).assign(epoch=0), 0
        else:
            callbacks: list[Callable[[Epoch, nn.Module], None]] = [
                lambda epoch, _: show(step.title, epoch)
            ]
            if fabric.is_global_zero:
                callbacks.append(
                    ProgressFile(step.study / PROGRESS / f"{step.path.name}.json", config.epochs)
                )
            gated = study.config.explainer
            vam = study.config.arms[step.vam] if step.role == "student" else None
            if step.explainer is not None:
                model, grown_from = _tree(study, step.explainer, step.objective.decomposition)
                records["tree"] = tree_record(model.tree(data.classes))
            else:
                model = study.build(step.role, vam, step.objective.decomposition)
            probe = TrainingProbe(
                step.role,
                model.to(fabric.device),
                data.to(fabric.device),
                step.objective,
                study.config.probes,
                config.epochs,
                None if teacher is None else teacher.to(fabric.device),
            )
            callbacks.append(probe)
            names = study.config.loggers if fabric.is_global_zero else ()
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
                    temperature=gated.temperature if step.role == "explainer" else None,
                    gate_warmup=gated.warmup_epochs,
                    vam=vam,
                    callbacks=callbacks,
                )
                tested = result.history[result.history["split"] == "test"]
                log(by_name(tested.to_dict("records")), result.epoch)
            if vam is not None:
                fold(
                    model
                )  # the run's weights are those of a plain student, which any reader can load
            records["metrics"], epoch = result.history, result.epoch
    if not fabric.is_global_zero:
        return
    if probe is not None:
        records |= probe.tables()
    info = {
        "id": step.path.name,
        "study": study.config.name,
        **step.keys,
        "config": step.config,
        "selection": {"rule": config.selection, "split": "val", "epoch": epoch},
        "data": data.describe(),
        "probe_sets": (probe.ids or None) if probe is not None else None,
        "experts": list(model.experts) if isinstance(model, HME) else None,
        "grown_from": grown_from,
        "environment": environment(),
    }
    write_run(step.path, info, records, model)


def _points(epoch: Epoch) -> dict[str, float]:
    """What loggers are told of an epoch: its scores, and of gates their temperature and entropy."""
    gates = {"gates/temperature": epoch.temperature, "gates/entropy": epoch.gate_entropy}
    return {**epoch.scores, **{name: value for name, value in gates.items() if value is not None}}


def _tree(study: Ingredients, run: Path, decomposition: str) -> tuple[HME, dict[str, Any]]:
    """The tree of the explainer of a ``run``, and what the tree's own run tells of it."""
    config = study.config
    explainer = study.build("explainer", decomposition=decomposition)
    assert isinstance(explainer, HME)
    assert config.explainer.phase2 is not None
    load_weights(run / WEIGHTS, explainer)
    images, _ = study.dataset.probe_images("train", config.probes.per_class, config.probes.seed)
    tree = grow(explainer, images, config.explainer.phase2)
    return tree, {"run": run.name, "experts": list(explainer.experts)}

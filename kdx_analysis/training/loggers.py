"""TensorBoard, MLflow and W&B: what a training tells them, each point at its own epoch.

A logger is a class of the protocol :class:`Logger`, made of a folder and the names of study and
run, and declared where it stands:

    @logger("mine")
    class Mine: ...
"""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kdx_analysis.errors import KdxError
from kdx_analysis.registry import Registry, home

LOGS = "logs"


class Logger(Protocol):
    """What each of them is reduced to; the methods are those of Lightning Fabric's loggers."""

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """What the training is: its keys and their values, once, before all metrics."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """The ``metrics`` of an epoch by name; ``step`` is that epoch."""
        ...

    def finalize(self, status: str) -> None:
        """``status`` is success or failed."""
        ...


Make = Callable[[Path, str, str], Logger]
L = TypeVar("L", bound=Make)


@dataclass(frozen=True)
class LoggerRow:
    """One logger, as a study offers it.

    Attributes:
        name: by which a study asks for it.
        make: from the folder for its files, the study's and the run's name to the logger.
        home: where it is declared, as ``module.name``.
        package: what has to be there to import; '' for nothing.
        extra: of this package, which installs that; '' where none does.
    """

    name: str
    make: Make
    home: str
    package: str = ""
    extra: str = ""


LOGGERS: Registry[LoggerRow] = Registry("logger", rooms=("kdx_analysis.training.loggers",))


def logger(name: str, *, package: str = "", extra: str = "") -> Callable[[L], L]:
    """Declare a logger on its class.

    ``name``, ``package`` and ``extra`` are as in :class:`LoggerRow`.
    """

    def declare(make: L) -> L:
        LOGGERS.register(name)(LoggerRow(name, make, home(make), package, extra))
        return make

    return declare


@logger("tensorboard", package="tensorboard", extra="tensorboard")
class _TensorBoard:
    """Fabric's logger; the event files of a run lie in ``logs/tensorboard/RUN``.

    Those of an earlier try go.

    Hyperparameters are written with the first metrics, as TensorBoard shows the former only beside
    the latter.
    """

    def __init__(self, folder: Path, study: str, run: str) -> None:
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        shutil.rmtree(folder / "tensorboard" / run, ignore_errors=True)
        self._logger = TensorBoardLogger(
            folder / "tensorboard", name="", version=run, default_hp_metric=False
        )
        self._params: dict[str, Any] | None = None

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        self._params = dict(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if self._params is None:
            self._logger.log_metrics(metrics, step)
        else:
            self._logger.log_hyperparams(self._params, dict(metrics), step)
            self._params = None
        self._logger.save()

    def finalize(self, status: str) -> None:
        self._logger.finalize(status)


@logger("mlflow", package="mlflow", extra="mlflow")
class _MLflow:
    """MLflow's client; where it writes is MLflow's to decide (MLFLOW_TRACKING_URI).

    The study is the experiment.
    """

    def __init__(self, folder: Path, study: str, run: str) -> None:
        self._client = importlib.import_module("mlflow.tracking").MlflowClient()
        experiment = self._client.get_experiment_by_name(study)
        identity = (
            self._client.create_experiment(study)
            if experiment is None
            else experiment.experiment_id
        )
        self._run = self._client.create_run(identity, run_name=run).info.run_id

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        for name, value in params.items():
            self._client.log_param(self._run, name, value)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._client.log_metric(self._run, name, value, step=step)

    def finalize(self, status: str) -> None:
        self._client.set_terminated(self._run, "FINISHED" if status == "success" else "FAILED")


@logger("wandb", package="wandb", extra="wandb")
class _WandB:
    """W&B's client; the study is the project, and ``epoch`` the axis of every metric.

    W&B's own step only grows, but a selected epoch may lie before the last, so steps are told as a
    metric.
    """

    def __init__(self, folder: Path, study: str, run: str) -> None:
        wandb = importlib.import_module("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(project=study, name=run, dir=str(folder), reinit="create_new")
        self._run.define_metric("*", step_metric="epoch")

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        self._run.config.update(dict(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log({"epoch": step, **metrics})

    def finalize(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "success" else 1)


def check_loggers(names: Sequence[str]) -> None:
    """Raise KdxError for a logger that is not registered or whose package is not installed."""
    rows = [LOGGERS[name] for name in names]
    lacking = [row for row in rows if row.package and find_spec(row.package) is None]
    if lacking:
        extras = ",".join(row.extra for row in lacking if row.extra)
        install = f"kdx_analysis[{extras}]" if extras else lacking[0].package
        raise KdxError(
            f"the logger {lacking[0].name} needs its package: pip install {install!r}, or leave it "
            "out of loggers"
        )


Log = Callable[[Mapping[str, float], int], None]


@contextmanager
def logged(
    names: Sequence[str], folder: Path, study: str, run: str, params: Mapping[str, Any]
) -> Iterator[Log]:
    """Something that takes metrics and their epoch and hands them to every logger.

    A logger that fails is left out from then on, with a warning: the training is worth more than
    its log.

    Args:
        names: of the loggers; their packages are there (:func:`check_loggers`).
        folder: of the study, in which files go to ``logs``.
        study, run: their names.
        params: hyperparameters, among them the run's keys.
    """
    loggers: dict[str, Logger] = {}

    def attempt(name: str, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:
            loggers.pop(name, None)
            warnings.warn(f"run {run} is no longer logged to {name}: {error!r}", stacklevel=3)

    def start(name: str) -> None:
        loggers[name] = LOGGERS[name].make(folder / LOGS, study, run)
        loggers[name].log_hyperparams(params)

    def log(metrics: Mapping[str, float], epoch: int) -> None:
        for name, logger in list(loggers.items()):
            attempt(name, logger.log_metrics, metrics, epoch)

    status = "failed"
    try:
        for name in names:
            attempt(name, start, name)
        yield log
        status = "success"
    finally:
        for name, logger in list(loggers.items()):
            attempt(name, logger.finalize, status)

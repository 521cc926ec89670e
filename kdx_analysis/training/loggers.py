"""TensorBoard, MLflow and W&B: what a training tells them, each point at its own epoch."""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from kdx_analysis.errors import KdxError

LOGS = "logs"


class Logger(Protocol):
    """What each of them is reduced to; the methods are those of Lightning Fabric's loggers."""

    def log_hyperparams(self, params: Mapping[str, Any]) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def finalize(self, status: str) -> None:
        """``status`` is success or failed."""
        ...


class _TensorBoard:
    """Fabric's logger; the event files of a run lie in ``logs/tensorboard/RUN``, those of an
    earlier try go.

    Hyperparameters are written with the first metrics, as TensorBoard shows the former only beside
    the latter.
    """

    def __init__(self, folder: Path, study: str, run: str) -> None:
        from lightning_fabric.loggers import TensorBoardLogger

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


class _MLflow:
    """MLflow's client; where it writes is MLflow's to decide (MLFLOW_TRACKING_URI). The study is
    the experiment.
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


_LOGGERS: dict[str, Callable[[Path, str, str], Logger]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _WandB,
}


def check_loggers(names: Sequence[str]) -> None:
    """Raise KdxError for a logger whose package is not installed."""
    lacking = [name for name in names if find_spec(name) is None]
    if lacking:
        raise KdxError(
            f"the logger {lacking[0]} needs its package: pip install "
            f"'kdx_analysis[{','.join(lacking)}]', or leave it "
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
        loggers[name] = _LOGGERS[name](folder / LOGS, study, run)
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

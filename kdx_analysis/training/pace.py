"""How fast a model trains and answers here, tried out in a few steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import nn

from kdx_analysis.config import ObjectiveConfig, TrainingConfig
from kdx_analysis.data import Dataset
from kdx_analysis.training.loop import Training, predict
from kdx_analysis.training.seconds import TEACHER, TRAINING, Seconds

# Of each thing that is timed: at least so many times, and on until so many seconds are over, since
# single steps of a small model differ by half; a large one is not held up for long.
_LEAST, _SECONDS = 3, 0.5
_IMAGES = 512  # a batch of predict, which is what is timed


@dataclass(frozen=True)
class Pace:
    """Seconds that parts of a training take.

    Attributes:
        step: one step, without the teacher.
        lesson: of the teacher in one step; 0 where the objective needs none.
        answer: the model's outputs for one image.
        taught: the teacher's outputs for one image; 0 without a teacher.
        steps: their number in an epoch.
    """

    step: float
    lesson: float
    answer: float
    taught: float
    steps: int


def pace_of(
    model: nn.Module,
    data: Dataset,
    objective: ObjectiveConfig,
    config: TrainingConfig,
    fabric: Fabric,
    teacher: nn.Module | None = None,
) -> Pace:
    """Train ``model`` for a few steps, which changes it, and ask both about a few images.

    Arguments are as of :func:`kdx_analysis.training.fit`.
    """
    run = Training(model, data, objective, config, 0, fabric, teacher, Seconds())
    order = torch.arange(len(data.train)).split(run.batch_size)[: run.steps_per_epoch]
    run.wrapped.train()

    def stepped(number: int) -> None:
        float(run.step(order[number % len(order)]))  # which waits for an accelerator

    stepped(0)  # the first one also plans and allocates
    run.seconds = Seconds()
    with run.seconds.of(TRAINING):
        steps, _ = _repeated(stepped)
    seconds = run.seconds.told()
    with fabric.autocast():
        answer = seconds_of_answer(run.wrapped, run.data)
        taught = 0.0 if run.teacher is None else seconds_of_answer(run.teacher, run.data)
    return Pace(
        seconds[TRAINING] / steps, seconds[TEACHER] / steps, answer, taught, run.steps_per_epoch
    )


def seconds_of_answer(model: nn.Module, data: Dataset) -> float:
    """Seconds that a model's outputs for one image take, in batches of many."""
    few = data.val.subset(torch.arange(min(len(data.val), _IMAGES)))
    predict(model, few, data)
    times, seconds = _repeated(lambda _: predict(model, few, data))
    return seconds / times / len(few)


def _repeated(function: Callable[[int], object]) -> tuple[int, float]:
    """How often a function was called, with the number of the call, and the seconds it took."""
    times, start = 0, time.perf_counter()
    while times < _LEAST or time.perf_counter() - start < _SECONDS:
        times += 1
        function(times)
    return times, time.perf_counter() - start

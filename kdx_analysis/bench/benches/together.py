"""Runs of a study trained together, as one net of copies, against one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from kdx_analysis.bench.common import made_up, seeded
from kdx_analysis.bench.contract import Contest, Contestant, Run, Setting, bench
from kdx_analysis.config import ObjectiveConfig, TrainingConfig
from kdx_analysis.data import Dataset
from kdx_analysis.models import MODELS
from kdx_analysis.models.together import RandomState
from kdx_analysis.training.loop import Pass, as_teacher, fitting
from kdx_analysis.training.together import Group

_OBJECTIVES = ("hard", "label_smoothing", "hard_T", "kd_flat", "kd_shuffled", "kd")
_STEPS = 4  # of a round, so that an epoch's beginning weighs no more than in a study
# On a GPU as many runs as a study of six objectives and five seeds has; on a CPU, where they gain
# little, no more than a round of seconds allows.
_SEEDS = {"cuda": 5}


def digits(batch: int, device: torch.device) -> Dataset:
    """Made-up images of the digits' shape, so many that an epoch has ``_STEPS`` steps."""
    # Of ten training images one is held out, and as many are needed of every class.
    return made_up(10, -(-batch * _STEPS // 9) * 10, 10, (1, 8, 8)).to(device)


def waiting(seeds: int, batch: int, device: torch.device) -> list[Pass]:
    """Students of every rung and seed, each with its teacher, before their first pass."""
    data = digits(batch, device)
    config = TrainingConfig(
        batch_size=batch, accelerator=device.type, threads=torch.get_num_threads()
    )
    passes = []
    with seeded():
        teacher = as_teacher(MODELS["digits_teacher"](10, 1), device)
        for seed in range(seeds):
            for name in _OBJECTIVES:
                objective = ObjectiveConfig(name=name)
                student = MODELS["digits_student"](10, 1)
                steps = fitting(student, data, objective, config, seed=seed, teacher=teacher)
                passes.append(next(steps))
    return passes


def one_after_the_other(seeds: int, batch: int, device: torch.device) -> Run:
    """An epoch of each run, as ``kdx run`` trains them by default."""
    passes = waiting(seeds, batch, device)
    return lambda: [each.make() for each in passes]


def together(seeds: int, batch: int, device: torch.device) -> Run:
    """An epoch of all runs as one net."""
    passes = waiting(seeds, batch, device)
    group = Group([each.training for each in passes], [RandomState(device) for _ in passes])
    return lambda: group.train_epoch(passes[0])


def losses(run: Run) -> Mapping[str, Tensor]:
    """Each run's mean loss in its first epoch."""
    return {"losses": torch.tensor(run())}


def contest(seeds: int, batch: int, device: torch.device) -> Contest:
    """As many runs as there are objectives, times the number of ``seeds``."""
    plain = partial(one_after_the_other, seeds, batch, device)
    ours = partial(together, seeds, batch, device)
    return Contest(
        f"{seeds * len(_OBJECTIVES)} runs",
        Contestant("one after the other", plain, lambda: losses(plain())),
        (Contestant("together", ours, lambda: losses(ours())),),
        rounds=7,
    )


@bench(
    "together",
    title=f"{_STEPS} training steps of the digits' student under every rung and seed, batch of 64",
    against="the same runs one after the other",
)
def together_bench(setting: Setting) -> Iterator[Contest]:
    """Thirty runs on a GPU, six on a CPU."""
    seeds = _SEEDS.get(setting.device.type, 1)
    yield contest(seeds, setting.batch or 64, setting.device)

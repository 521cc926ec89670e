"""What it costs to record gates after every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from kdx_analysis.bench.common import in_turn, made_up, random_images, seeded, training_step
from kdx_analysis.bench.contract import Contest, Contestant, Run, Setting, bench
from kdx_analysis.config import ObjectiveConfig, ProbeConfig
from kdx_analysis.data import Dataset
from kdx_analysis.models import HME, MODELS
from kdx_analysis.probes import PROBES, TrainingProbe
from kdx_analysis.training import Epoch

_BATCH = 128
_STEPS = 45000 // _BATCH  # an epoch of CIFAR-10, of which a tenth is for validation
_EPOCHS = 30  # as a study has by default; probes that look at some epochs are switched off here


def explainer() -> HME:
    """Of resnet20, for ten classes."""
    with seeded():
        student = MODELS["resnet20"](10, 3)
        return HME.from_student(student, 10, experts=4, image_shape=(3, 32, 32))


def recording(model: HME, data: Dataset) -> Run:
    """A look at the gates alone, on as many images as a study has by default."""
    others = {name: False for name in PROBES if name != "gates"}
    config = ProbeConfig.model_validate(others)
    hard = ObjectiveConfig(name="hard")
    probe = TrainingProbe("explainer", model, data, hard, config, _EPOCHS)
    return partial(probe, Epoch(2, _EPOCHS, 0.0, 0.0, None, None), model)


def contest(data: Callable[[], Dataset], batch: int, steps: int, device: torch.device) -> Contest:
    """An epoch and a look; what is compared are the weights, which recording must not change."""

    def make_step() -> Run:
        images = random_images(batch, (3, 32, 32), device)
        return training_step(explainer().to(device), images, in_turn(batch, 10, device))

    def make_recording() -> Run:
        return recording(explainer().to(device), data().to(device))

    def weights() -> Mapping[str, Tensor]:
        return explainer().state_dict()

    def weights_after() -> Mapping[str, Tensor]:
        model = explainer()
        recording(model, data())()
        return model.state_dict()

    return Contest(
        "",
        Contestant(f"an epoch of {steps} steps", make_step, weights, parts=steps),
        (Contestant("gates recorded once", make_recording, weights_after),),
        rounds=3,
        tolerance=0,
    )


@bench(
    "gates",
    title="recording gates on 200 images, once",
    against="an epoch of CIFAR-10's size, of which a step is timed and multiplied",
    ratio="cost",
    target=0.01,
)
def gates(setting: Setting) -> Iterator[Contest]:
    """The explainer of resnet20."""
    data = partial(made_up, 10, 400, 100, (3, 32, 32))
    yield contest(data, setting.batch or _BATCH, _STEPS, setting.device)

"""One side of ``against.py``: runs rounds of contests with the code that PYTHONPATH names.

It works with this working tree and with older ones, by the names that both have; what has another
name there is looked up in :func:`probe_of`. Commands come as lines of JSON, ``["make", NAME]`` or
``["run", NAME]``; ``make`` is answered with a note, ``run`` with seconds.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig, ProbeConfig
from kdx_analysis.data import Dataset, load_dataset
from kdx_analysis.models import HME, MODELS
from kdx_analysis.training import Epoch

Run = Callable[[], object]
Made = tuple[Run, str]  # a round, and a note on it

FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels last": torch.channels_last,
}
LADDER = ("hard", "label_smoothing", "hard_T", "kd_flat", "kd_shuffled", "kd")
# Of CIFAR-10's 10,000 test images one in twenty, and training images for two batches: what is
# scored weighs as in a study of few epochs, and a round of both trees takes a minute on one core.
TRAIN_IMAGES, TEST_IMAGES = 120, 500


def explainer(student: str, classes: int, shape: tuple[int, int, int]) -> HME:
    """With four experts a level, its weights drawn with the same seed in every tree."""
    torch.manual_seed(0)
    model = MODELS[student](classes, shape[0])
    return HME.from_student(model, classes, experts=4, image_shape=shape)


def training_step(model: HME, images: Tensor, labels: Tensor, memory_format: Any) -> Run:
    """Forward, backward and the optimiser of the package, on one batch."""
    model = copy.deepcopy(model).to(memory_format=memory_format).train()
    images = images.contiguous(memory_format=memory_format)
    targets = F.one_hot(labels, model.num_classes).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def run() -> None:
        loss = F.binary_cross_entropy_with_logits(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def step(student: str, classes: int, batch: int, shape: tuple[int, int, int], at: str = "") -> Made:
    """At the memory format that is quickest in this tree, or at the one that is given."""
    model = explainer(student, classes, shape)
    images = torch.randn(batch, *shape)
    labels = torch.arange(batch) % classes
    runs = {name: training_step(model, images, labels, FORMATS[name]) for name in FORMATS}
    if not at:
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(5):
            for name, run in runs.items():
                times[name].append(seconds(run))
        at = min(times, key=lambda name: sorted(times[name])[2])
    return runs[at], at


def probe_of(
    model: HME,
    data: Dataset,
    config: ProbeConfig,
    epochs: int,
    teacher: nn.Module,
) -> Callable[[Epoch, nn.Module], None]:
    """What looks at an explainer in training; in older trees it is ExplainerProbe."""
    from kdx_analysis import probes

    arguments = (model, data, ObjectiveConfig(name="kd"), config, epochs, teacher)
    if hasattr(probes, "TrainingProbe"):
        return probes.TrainingProbe("explainer", *arguments, splits=("train",))
    from kdx_analysis.probes.recorder import ExplainerProbe

    return ExplainerProbe(*arguments, splits=("train",))


def probing(
    model: HME, data: Dataset, config: ProbeConfig, epochs: int, epoch: int, teacher: nn.Module
) -> Made:
    """One look at one split, after ``epoch`` of ``epochs``."""
    moment = Epoch(epoch, epochs, 0.0, 0.0, None, None)

    probe = probe_of(model, data, config, epochs, teacher)

    def run() -> None:
        probe(moment, model)

    side = data.shape[-1]
    draws = f"{config.null_draws} null draws, {config.per_class} images of {side}×{side} a class"
    return run, f"epoch {epoch} of {epochs}, {draws}"


def digits_probe(epoch: int) -> Made:
    """With the settings of the demo, whose four checkpoints are epochs 1, 9, 16 and 24."""
    torch.manual_seed(0)
    teacher = MODELS["digits_teacher"](10, 1).eval()
    config = ProbeConfig(per_class=20, checkpoints=4, null_draws=49)
    model = explainer("digits_student", 10, (1, 8, 8))
    return probing(model, load_dataset("digits", val_fraction=0.2), config, 24, epoch, teacher)


def resnet20_probe(classes: int, per_class: int, side: int) -> Made:
    """With the numbers of null draws and checkpoints that a study has by default.

    Images are few and small, or a look at a hundred classes would take the better part of an hour;
    the null draws, which take most of the time, are none the fewer.
    """
    data = made_up(classes, 10 * classes, classes, side)
    torch.manual_seed(0)
    teacher = MODELS["wrn_16_2"](classes, 3).eval()
    model = explainer("resnet20", classes, (3, side, side))
    return probing(model, data, ProbeConfig(per_class=per_class), 30, 11, teacher)


def made_up(classes: int, train: int, test: int, side: int = 32) -> Dataset:
    """Random images of three channels, as many of every class."""
    generator = torch.Generator().manual_seed(0)

    def split(images: int) -> tuple[Tensor, Tensor]:
        drawn = torch.randint(256, (images, 3, side, side), generator=generator, dtype=torch.uint8)
        return drawn, torch.arange(images) % classes

    return Dataset.from_tensors(split(train), split(test), val_fraction=0.1, pad=4, flip=True)


def ladder() -> Made:
    """The study's own runs, from the teacher as it is given to the last run's directory."""
    from kdx_analysis.study import Study

    data = made_up(10, TRAIN_IMAGES, TEST_IMAGES)
    torch.manual_seed(0)
    teacher = MODELS["wrn_16_2"](10, 3).eval()
    folder = Path(tempfile.mkdtemp(prefix="against"))
    rounds = count()

    def run() -> None:
        study = Study(
            data=data,
            teacher=teacher,
            student="resnet20",
            objectives=LADDER,
            seeds=1,
            roles=["student"],
            training={"epochs": 1, "batch_size": 64, "threads": torch.get_num_threads()},
        )
        study.run(folder / str(next(rounds)), report=False)

    return run, f"{TRAIN_IMAGES} training and {TEST_IMAGES} test images, one epoch"


CONTESTS: dict[str, Callable[[], Made]] = {
    "digits_step": lambda: step("digits_student", 10, 64, (1, 8, 8), at="channels last"),
    "resnet20_step_10": lambda: step("resnet20", 10, 128, (3, 32, 32)),
    "resnet20_step_100": lambda: step("resnet20", 100, 128, (3, 32, 32)),
    "ladder": ladder,
    "digits_probe": lambda: digits_probe(9),
    "digits_probe_last": lambda: digits_probe(24),
    "resnet20_probe_10": lambda: resnet20_probe(10, 2, 16),
    "resnet20_probe_100": lambda: resnet20_probe(100, 1, 8),
}


def seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Answer commands until there are no more."""
    tree, threads = sys.argv[1:]
    import kdx_analysis

    where = Path(kdx_analysis.__file__).resolve()
    if not where.is_relative_to(Path(tree).resolve()):
        sys.exit(f"kdx_analysis is imported from {where.parent}, not from {tree}")
    torch.set_num_threads(int(threads))
    # What is printed by the package must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    runs: dict[str, Run] = {}
    for line in sys.stdin:
        what, name = json.loads(line)
        if what == "make":
            runs[name], note = CONTESTS[name]()
            answer: dict[str, Any] = {"note": note}
        else:
            answer = {"seconds": seconds(runs[name])}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

"""What the runs of a study share of their teachers, so that a teacher is asked everything once.

That is its outputs on validation and test, one file for all runs, and its logits on the augmented
training images of a seed. Both are exactly what a run would compute itself: whatever decides them
to the last bit stands in the name and the header of a file, and what is not there is computed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from kdx_analysis.config import digest
from kdx_analysis.data import Dataset
from kdx_analysis.errors import KdxError
from kdx_analysis.io import staged_file
from kdx_analysis.objectives import OBJECTIVES
from kdx_analysis.runs.outputs import outputs_of, read_outputs, write_outputs
from kdx_analysis.study.roles import Ingredients
from kdx_analysis.study.step import Step
from kdx_analysis.training import fabric_for, predict, reproducible
from kdx_analysis.training.kept_logits import Shelf, computed_by

FOLDER = "teacher_logits"


@dataclass(frozen=True)
class Lessons:
    """What is kept of the teachers of some steps, while there are steps to train.

    Attributes:
        folder: where it lies, below the study's directory.
        limit: bytes of logits on training images, at most; see :class:`Shelf`.
        shared: the numbers of teacher and seed for which several runs ask the teacher in training.
    """

    folder: Path
    limit: int
    shared: frozenset[tuple[int, int]]

    @classmethod
    def of(cls, study: Path, steps: Iterable[Step], limit: int) -> Lessons:
        """For the ``steps`` that are going to be trained in the directory of a ``study``."""
        asking = [_place(step) for step in steps if OBJECTIVES[step.objective.name].needs_teacher]
        several = {place for place in asking if place is not None and asking.count(place) > 1}
        return cls(study / FOLDER, limit, frozenset(filter(None, several)))

    def shelf(self, step: Step) -> Shelf | None:
        """Where the teacher's logits on the step's training images lie; None where none are kept.

        They would help nobody where a single run asks for them.
        """
        place = _place(step)
        if not self.limit or place not in self.shared:
            return None
        return Shelf(self._of(place), self.limit)

    def outputs(
        self, study: Ingredients, step: Step, teacher: nn.Module, fabric: Fabric
    ) -> dict[str, Tensor]:
        """What the teacher gives on validation and test in a run of this step, N×K each.

        The first run for which it is the same computes it, and leaves it to the others.
        """
        data, precision = study.dataset, study.config.training_of(step.role).precision
        teacher = teacher.to(fabric.device)
        file = self._file(teacher, data, fabric.device, precision)
        there = _read(file, data)
        if there is None:
            on_device = data.to(fabric.device)
            with fabric.autocast():
                there = {
                    split.name: predict(teacher, split, on_device)
                    for split in (on_device.val, on_device.test)
                }
            _write(file, there, data)
        return there

    def leave(
        self, outputs: Mapping[str, Tensor], teacher: nn.Module, data: Dataset, precision: str
    ) -> None:
        """Leave a teacher's own ``outputs``, on validation and test, to its students."""
        device = next((parameter.device for parameter in teacher.parameters()), _CPU)
        _write(self._file(teacher, data, device, precision), outputs, data)

    def ask(self, study: Ingredients, steps: Sequence[Step]) -> None:
        """Have every teacher of the ``steps`` asked about validation and test, once each way."""
        asked = set()
        for step in steps:
            config = study.config.training_of(step.role)
            if step.teacher is None or (step.teacher.path, config) in asked:
                continue
            asked.add((step.teacher.path, config))
            with reproducible(step.seed, config.threads):
                teacher = study.teacher(step.teacher.path)
                self.outputs(study, step, teacher, fabric_for(config))

    def forget(self, step: Step, others: Iterable[Step]) -> None:
        """Take a seed's logits away when none of the ``others`` is of the finished step's seed."""
        place = _place(step)
        if place in self.shared and place not in map(_place, others):
            shutil.rmtree(self._of(place), ignore_errors=True)

    def close(self) -> None:
        """Take away all that is left."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _of(self, place: tuple[int, int]) -> Path:
        return self.folder / f"teacher{place[0]}-seed{place[1]}"

    def _file(
        self, teacher: nn.Module, data: Dataset, device: torch.device, precision: str
    ) -> Path:
        decides: dict[str, Any] = {**computed_by(teacher, data, device), "precision": precision}
        return self.folder / f"outputs-{digest(decides, 64)}.safetensors"


_CPU = torch.device("cpu")


def _place(step: Step) -> tuple[int, int] | None:
    """The numbers of a step's teacher and seed; None for a teacher."""
    return None if step.teacher is None else (step.teacher.seed, step.seed)


def _read(file: Path, data: Dataset) -> dict[str, Tensor] | None:
    """Outputs by split, if they are there and of just these images."""
    outputs = {}
    for split in (data.val, data.test):
        try:
            there = read_outputs(file, split.name)
        except KdxError:  # damaged, as where the disk was full
            return None
        if there is None or not torch.equal(there.ids, split.ids.cpu()):
            return None
        if there.fingerprint != data.describe()["fingerprint"]:
            return None
        outputs[split.name] = there.scores
    return outputs


def _write(file: Path, outputs: Mapping[str, Tensor], data: Dataset) -> None:
    with staged_file(file) as partial:
        write_outputs(partial, outputs_of(outputs, data, "multiclass"))

"""Likeness under shift: every finished model of a study, asked about corrupted test images.

It comes after all training and loads the weights that runs hold, so that a study may ask for it
later without training anything anew. What lies there already is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor

from kdx_analysis.data import Dataset, Split
from kdx_analysis.io import write_parquet
from kdx_analysis.objectives import one_vs_rest_margins
from kdx_analysis.probes.contract import asked_for, configured
from kdx_analysis.probes.fidelity.likeness import Likeness
from kdx_analysis.probes.fidelity.outputs import Outputs
from kdx_analysis.probes.fidelity.shift import SHIFT, ShiftOptions, cells, shift_images, worn
from kdx_analysis.records import check
from kdx_analysis.runs import Run, RunSet
from kdx_analysis.runs.shifted import (
    Cell,
    ShiftOutputs,
    beside,
    read_shift_outputs,
    shift_record,
    write_shift_outputs,
)
from kdx_analysis.study.finished import Models, finished_model
from kdx_analysis.training import fabric_for, predict, reproducible

METRICS = ("dark", "instance", "second_choice", "hardness", "agreement")


class Study(Models, Protocol):
    """What is asked: a study's models, about its images."""

    @property
    def dataset(self) -> Dataset: ...


def run_shift(study: Study, runs: RunSet) -> None:
    """Write outputs and the record ``shift`` of every run that lacks them, if the study asks.

    Args:
        study: whose section ``probes.shift`` says what is asked.
        runs: all of it.
    """
    if not asked_for(study.config.probes, SHIFT):
        return
    shared, options = configured(study.config.probes, SHIFT)
    asked = _Asked(study, options, shared.seed)
    teachers: dict[str, ShiftOutputs] = {}
    for run in runs:
        if run.role == "teacher":
            teachers[run.id] = asked.outputs(run)
    for run in runs:
        outputs = teachers[run.id] if run.id in teachers else asked.outputs(run)
        beside_run = {} if run.id in teachers else teachers
        if _lacks(run, outputs, beside_run):
            table = shift_table(outputs, beside_run, binary=run.info["decomposition"] == "binary")
            write_parquet(beside(run) / f"{SHIFT.name}.parquet", table)


class _Asked:
    """The images of one study under its corruptions, and what models give on them."""

    def __init__(self, study: Study, options: ShiftOptions, seed: int) -> None:
        self.study, self.seed = study, seed
        self.cells = list(cells(options.corruptions))
        self.split = shift_images(study.dataset, options.images, seed)
        self.fingerprint = str(study.dataset.describe()["fingerprint"])

    def outputs(self, run: Run) -> ShiftOutputs:
        """Of a run's model: what lies there, and what is lacking computed and written to it."""
        path = beside(run) / f"{SHIFT.name}.safetensors"
        stored = read_shift_outputs(path)
        none = self._of({})
        if stored is None or not stored.same_images(none):
            _forget(run)  # a record of other images
            stored = none
        lacking = [cell for cell in self.cells if cell not in stored.scores]
        if not lacking:
            return stored
        whole = self._of({**stored.scores, **dict(self._computed(run, lacking))})
        write_shift_outputs(path, whole)
        return whole

    def _of(self, scores: Mapping[Cell, Tensor]) -> ShiftOutputs:
        labels, ids = self.split.labels.cpu(), self.split.ids.cpu()
        return ShiftOutputs(scores, labels, ids, self.seed, self.fingerprint)

    def _computed(self, run: Run, lacking: Sequence[Cell]) -> Iterator[tuple[Cell, Tensor]]:
        device = fabric_for(self.study.config.training_of(run.role)).device
        model = finished_model(run, self.study).to(device)
        with reproducible(run.seed, torch.get_num_threads()):  # one run at a time has all cores
            for name, severity in lacking:
                split: Split = worn(self.split, name, severity, self.seed)
                yield (name, severity), predict(model, split, self.study.dataset)


def _forget(run: Run) -> None:
    (beside(run) / f"{SHIFT.name}.parquet").unlink(missing_ok=True)


def _lacks(run: Run, outputs: ShiftOutputs, teachers: Mapping[str, ShiftOutputs]) -> bool:
    """Whether the record lacks a cell that there are outputs of, or a teacher."""
    record = shift_record(run)
    if record is None:
        return True
    there = set(record[["corruption", "severity", "teacher"]].itertuples(index=False, name=None))
    return any((*cell, name) not in there for cell in outputs.scores for name in ("", *teachers))


def shift_table(
    outputs: ShiftOutputs, teachers: Mapping[str, ShiftOutputs], *, binary: bool
) -> pd.DataFrame:
    """The record ``shift`` of one network: its likeness to every teacher in every cell, accuracy.

    Args:
        outputs: of the network.
        teachers: run → outputs of a teacher, logits of one softmax, on the same images.
        binary: whether the network gives margins of K binary subtasks; it is then set beside the
            one-vs-rest margins of the teachers.
    """
    rows = []
    for cell, scores in outputs.scores.items():
        network = Outputs(scores, outputs.labels, binary)
        right = float((scores.argmax(dim=1) == outputs.labels).double().mean())
        rows.append((*cell, "", "accuracy", right, torch.nan, len(scores)))
        for name, teacher in teachers.items():
            logits = teacher.scores[cell]
            taught = one_vs_rest_margins(logits) if binary else logits
            values = Likeness(network, Outputs(taught, outputs.labels, binary)).values()
            for metric in METRICS:
                each = values[metric]
                rows.append((*cell, name, metric, each.value, each.chance, each.n))
    columns = ["corruption", "severity", "teacher", "metric", "value", "chance", "n"]
    return check(SHIFT.name, pd.DataFrame(rows, columns=columns))


def announced(study: Study, folder: Path) -> str:
    """What asking about corrupted images will take, in a sentence; '' where it is not asked."""
    if not asked_for(study.config.probes, SHIFT):
        return ""
    shared, options = configured(study.config.probes, SHIFT)
    images = len(shift_images(study.dataset, options.images, shared.seed))
    asked = len(list(cells(options.corruptions)))
    return (
        f"afterwards every model is asked about {images} test images as they are and under "
        f"{', '.join(options.corruptions)} at five severities: {asked} passes over them, kept in "
        f"{folder / 'probes'}"
    )

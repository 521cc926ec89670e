"""What finished models give on corrupted test images, kept beside a study's runs.

Runs never change, so these lie apart from them: in ``probes/RUN`` below the study's directory, as
``shift.safetensors`` (outputs by corruption and severity) and ``shift.parquet`` (the record).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdx_analysis.errors import AbsentError, KdxError
from kdx_analysis.io import read_parquet, staged_file
from kdx_analysis.records import check
from kdx_analysis.runs.run import Run
from kdx_analysis.runs.runset import RunSet

SHIFT = "shift"
Cell = tuple[str, int]  # corruption and severity


@dataclass(frozen=True, eq=False)
class ShiftOutputs:
    """A model's outputs on the same images under several corruptions.

    Attributes:
        scores: (corruption, severity) → logits or margins, N×K float32.
        labels: int64 (N,), in [0, K).
        ids: int64 (N,), of the images in their source.
        seed: of what the corruptions drew.
        fingerprint: of the data set and its splits.
    """

    scores: Mapping[Cell, Tensor]
    labels: Tensor
    ids: Tensor
    seed: int
    fingerprint: str

    def same_images(self, other: ShiftOutputs) -> bool:
        """Whether both are of the same images, corrupted by the same draws."""
        return (
            (self.seed, self.fingerprint) == (other.seed, other.fingerprint)
            and torch.equal(self.ids, other.ids)
            and torch.equal(self.labels, other.labels)
        )


def beside(run: Run) -> Path:
    """The directory for what is found out about a run after its training.

    It is ``probes/RUN`` beside the study's folders of runs.
    """
    return run.path.parents[1] / "probes" / run.path.name


def write_shift_outputs(path: Path, outputs: ShiftOutputs) -> None:
    """Write outputs to a file, whole or not at all; a key of it is as ``noise/3``."""
    tensors = {f"{name}/{severity}": each for (name, severity), each in outputs.scores.items()}
    tensors |= {"labels": outputs.labels, "ids": outputs.ids}
    header = {"seed": str(outputs.seed), "fingerprint": outputs.fingerprint}
    with staged_file(path) as partial:
        # safetensors takes no tensors that share memory or are of another order
        save_file(
            {key: t.cpu().contiguous().clone() for key, t in tensors.items()}, partial, header
        )


def read_shift_outputs(path: Path) -> ShiftOutputs | None:
    """The outputs in a file; None where there is none. Raises KdxError for any other file."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            header: dict[str, Any] = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        labels, ids = tensors.pop("labels"), tensors.pop("ids")
        scores: dict[Cell, Tensor] = {}
        for key, tensor in tensors.items():
            name, _, severity = key.partition("/")
            scores[name, int(severity)] = tensor
        return ShiftOutputs(scores, labels, ids, int(header["seed"]), header["fingerprint"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise KdxError(
            f"cannot read {str(path)!r}: {error}; take it away, and kdx run computes it anew"
        ) from None


def shift_record(run: Run) -> pd.DataFrame | None:
    """The record ``shift`` of a run; None where it was not asked about corrupted images."""
    path = beside(run) / f"{SHIFT}.parquet"
    return check(SHIFT, read_parquet(path), f"run {run.id!r}") if path.is_file() else None


def shifted(runs: RunSet) -> pd.DataFrame:
    """The records ``shift`` of all runs that have one, under each run's keys.

    A column ``relation`` says of a row's teacher whether it is the run's ``own`` or a ``sibling``;
    it is '' where there is no teacher. Raises AbsentError if no run has such a record.
    """
    frames = []
    teachers = {run.id: run for run in runs if run.role == "teacher"}
    for run in runs:
        if (record := shift_record(run)) is None:
            continue
        relations = {
            name: "own" if is_own(run, teacher) else "sibling" for name, teacher in teachers.items()
        }
        relation = record["teacher"].map({"": "", **relations})
        # Of a teacher that is not among the runs nobody knows whose it is.
        known = record.assign(relation=relation).dropna(subset="relation")
        frames.append(known.assign(**run.keys))
    if not frames:
        raise AbsentError(
            f"none of the {len(runs)} runs was asked about corrupted test images; say "
            "probes.shift: on in their study and run it again, which trains nothing"
        )
    return pd.concat(frames, ignore_index=True)


def is_own(run: Run, teacher: Run) -> bool:
    """Whether a run's student learnt from this teacher of its study, rather than a sibling of it.

    Students of objectives that need no teacher nominally have the first.
    """
    return run.teacher == teacher.seed

"""Weights that were trained elsewhere as a run: scored and probed here.

Nothing else is known of them. They have no gates. What can be measured is accuracy, agreement with
a teacher, conflict of one-vs-rest losses and what the subtasks claim.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig, ProbeConfig
from kdx_analysis.data import Dataset
from kdx_analysis.errors import KdxError
from kdx_analysis.imports.names import Names
from kdx_analysis.imports.write import UNKNOWN, foreign_info, refuse_taken, run_keys
from kdx_analysis.models import build_model, check_fits
from kdx_analysis.probes.training_probe import TrainingProbe
from kdx_analysis.runs import Run, environment, write_run
from kdx_analysis.runs.outputs import outputs_of
from kdx_analysis.runs.run import INFO, WEIGHTS
from kdx_analysis.training import Epoch, predict, reproducible, score
from kdx_analysis.training.checkpoints import fingerprint, load_weights
from kdx_analysis.training.teacher import check_teacher


def import_weights(
    weights: str | Path,
    model: str | nn.Module,
    data: Dataset,
    out: str | Path,
    *,
    keys: Mapping[str, Any],
    teacher: str | Path | nn.Module | None = None,
    probes: ProbeConfig | None = None,
) -> Run:
    """Score and probe a ``state_dict`` and write it as a run below ``out``.

    It keeps the model's outputs on validation and test. Its records: ``metrics`` on both,
    ``conflict``, ``conflict_summary`` and ``output_conflict`` on both probe sets, at epoch 0, which
    stands for one that is not known. Which images the weights were trained on is not known either,
    so those of validation may be among them; the run says so.

    Args:
        weights: safetensors, or what ``torch.load(weights_only=True)`` reads.
        model: a model's name (``resnet20``, ``timm:NAME``), or a module of the architecture; left
            as it was.
        data: normalised as in training: weights that fit another normalisation or order of classes
            far better are refused.
        keys: objective and seed, which no ``state_dict`` tells; study (by default the data's name),
            role (student, or teacher) and decomposition (multiclass: K logits of one softmax;
            binary: K margins).
        teacher: for agreement with it: a trained module, the directory of a run, or ``NAME@PATH``.
            It is written as a run of its own below ``out``, unless one with its weights is there;
            the student's configuration names it by the fingerprint of its weights.
        probes: sizes, null draws, seed and memory.

    Raises:
        KdxError: before anything is written, for weights that don't fit the model or the data.
    """
    weights, out, config = Path(weights), Path(out), probes or ProbeConfig()
    stated = _stated(keys, weights, data)
    with reproducible(config.seed, torch.get_num_threads()):
        name = model if isinstance(model, str) else type(model).__name__
        trained = _Trained(_with_weights(model, weights, data), name, weights.name)
        if teacher is None:
            return _written(trained, trained.info(stated, data, config), data, config, out)
        taught = _teacher(teacher, data)
        there = _run_of(taught, stated["study"], data, out)
        number = _free_number(stated["study"], out) if there is None else there.seed
        info = trained.info(stated, data, config, {"teacher": fingerprint(taught.net)})
        info["teacher"] = number
        refuse_taken([(weights.name, info)], out)
        if there is None:
            as_teacher = {"role": "teacher", "objective": "", "decomposition": "multiclass"}
            of_teacher = taught.info({**stated, **as_teacher, "seed": number}, data, config)
            _written(taught, of_teacher, data, config, out)
        return _written(trained, info, data, config, out, _outputs(taught.net, data))


@dataclass(frozen=True)
class _Trained:
    """A model that was trained elsewhere, with the names of its architecture and its source."""

    net: nn.Module
    model: str
    source: str

    def info(
        self,
        keys: Mapping[str, Any],
        data: Dataset,
        probes: ProbeConfig,
        settings: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What ``run.json`` says of it; ``settings`` are further ones of its configuration."""
        source = {
            "kind": "state_dict",
            "name": self.source,
            "run": self.source,
            "sha256": fingerprint(self.net),
            "left_out": [],
            "unknown": ["images trained on", "training", "epoch of the figures", "selection"],
        }
        config = {
            "model": self.model,
            "data": {"name": data.name},
            "probes": probes.model_dump(mode="json"),
            **(settings or {}),
        }
        return foreign_info(keys, config, source, data.describe())


def _written(
    trained: _Trained,
    info: Mapping[str, Any],
    data: Dataset,
    config: ProbeConfig,
    out: Path,
    teacher_outputs: Mapping[str, Tensor] | None = None,
) -> Run:
    """Score and probe the model and write its run, whose place must be free."""
    refuse_taken([(trained.source, info)], out)
    decomposition = info["decomposition"]
    outputs = _outputs(trained.net, data)
    scores = _scores(outputs, data, decomposition, teacher_outputs)
    probe = _probe(trained.net, data, info, config)
    probe(Epoch(0, 0, 0.0, 0.0, None, None), trained.net)
    whole = {
        **info,
        "selection": {"rule": UNKNOWN, "split": None, "epoch": 0},
        "probe_sets": probe.ids,
        "environment": environment(),
    }
    records = {"metrics": scores, **probe.tables()}
    kept = outputs_of(outputs, data, decomposition)
    return write_run(out / info["id"], whole, records, trained.net, kept)


def _run_of(taught: _Trained, study: str, data: Dataset, out: Path) -> Run | None:
    """The run in ``out`` of a teacher with these weights on these images, if there is one."""
    wanted = fingerprint(taught.net), data.describe()["fingerprint"]
    for run in _teachers(study, out):
        sha256 = run.info.get("source", {}).get("sha256")
        if (sha256, run.info["data"]["fingerprint"]) == wanted:
            return run
    return None


def _free_number(study: str, out: Path) -> int:
    """A teacher's seed, which nobody tells: the first that no other teacher of the study has."""
    taken = {run.seed for run in _teachers(study, out)}
    return next(number for number in count() if number not in taken)


def _teachers(study: str, out: Path) -> list[Run]:
    runs = [Run.load(file.parent) for file in sorted(out.glob(f"[!.]*/{INFO}"))]
    return [run for run in runs if run.role == "teacher" and run.info["study"] == study]


def _probe(
    net: nn.Module, data: Dataset, stated: Mapping[str, Any], config: ProbeConfig
) -> TrainingProbe:
    """All probes of a finished model but affinity, whose many passes nobody asked for here."""
    objective = ObjectiveConfig.model_validate(
        {"name": "hard", "decomposition": stated["decomposition"]}
    )
    quick = ProbeConfig.model_validate({**config.model_dump(), "affinity": False})
    return TrainingProbe(stated["role"], net, data, objective, quick, 0, finished=True)


def _stated(keys: Mapping[str, Any], weights: Path, data: Dataset) -> dict[str, Any]:
    """The run's keys; KdxError where weights can have no such role or decomposition."""
    stated = run_keys(Names({"decomposition": "multiclass", **keys}), {}, data.name, weights.name)
    if stated["role"] not in ("teacher", "student"):
        raise KdxError(
            f"weights can be a student's or a teacher's; of role {stated['role']!r} a run needs "
            "its records"
        )
    if stated["decomposition"] not in ("multiclass", "binary"):
        raise KdxError(
            f"decomposition is {stated['decomposition']!r}; it must be multiclass or binary"
        )
    return stated


def _outputs(net: nn.Module, data: Dataset) -> dict[str, Tensor]:
    return {"val": predict(net, data.val, data), "test": predict(net, data.test, data)}


def _scores(
    outputs: Mapping[str, Tensor],
    data: Dataset,
    decomposition: str,
    beside: Mapping[str, Tensor] | None = None,
) -> pd.DataFrame:
    """The record ``metrics`` on validation and test, beside the teacher's outputs there."""
    rows = []
    for name, split in (("val", data.val), ("test", data.test)):
        taught = None if beside is None else beside[name]
        rows += score(outputs[name], split, decomposition, taught)
    return pd.DataFrame(rows).assign(epoch=0)


def _with_weights(model: str | nn.Module, weights: Path, data: Dataset) -> nn.Module:
    net = _built(model, data)
    load_weights(weights, net)
    check_fits(net, data.shape, data.num_classes)
    check_teacher(net, data, who=f"the model of {weights.name}")
    return net.eval()


def _built(model: str | nn.Module, data: Dataset) -> nn.Module:
    return (
        build_model(model, data.num_classes, data.shape[0])
        if isinstance(model, str)
        else copy.deepcopy(model)
    )


def _teacher(teacher: str | Path | nn.Module, data: Dataset) -> _Trained:
    if isinstance(teacher, nn.Module):
        check_fits(teacher, data.shape, data.num_classes)
        check_teacher(teacher, data)
        name = type(teacher).__name__
        return _Trained(teacher, name, name)
    name, at, path = str(teacher).partition("@")
    if not at:
        run = Run.load(teacher)
        name, path = run.info["config"]["model"], str(run.path / WEIGHTS)
    return _Trained(_with_weights(name, Path(path), data), name, Path(path).name)

"""Weights that were trained elsewhere as a run: scored and probed here.

Nothing else is known of them. They have no gates. What can be measured is accuracy, agreement with
a teacher, conflict of one-vs-rest losses and what the subtasks claim.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from kdx_analysis.config import ObjectiveConfig, ProbeConfig
from kdx_analysis.data import Dataset
from kdx_analysis.errors import KdxError
from kdx_analysis.imports.names import Names
from kdx_analysis.imports.write import UNKNOWN, foreign_info, refuse_taken, run_keys
from kdx_analysis.models import build_model, check_fits
from kdx_analysis.probes.training_probe import TrainingProbe
from kdx_analysis.runs import Run, environment, write_run
from kdx_analysis.runs.run import WEIGHTS
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

    Its records: ``metrics`` on validation and test, ``conflict``, ``conflict_summary`` and
    ``output_conflict`` on both probe sets, at epoch 0, which stands for one that is not known.
    Which images the weights were trained on is not known either, so those of validation may be
    among them; the run says so.

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
        probes: sizes, null draws, seed and memory.

    Raises:
        KdxError: before anything is written, for weights that don't fit the model or the data.
    """
    weights, config = Path(weights), probes or ProbeConfig()
    stated = _stated(keys, weights, data)
    with reproducible(config.seed, torch.get_num_threads()):
        net = _with_weights(model, weights, data)
        taught = None if teacher is None else _teacher(teacher, data)
        source = {
            "kind": "state_dict",
            "name": weights.name,
            "run": weights.name,
            "sha256": fingerprint(net),
            "left_out": [],
            "unknown": ["images trained on", "training", "epoch of the figures", "selection"],
        }
        settings = {
            "model": model if isinstance(model, str) else type(model).__name__,
            "data": {"name": data.name},
            "probes": config.model_dump(mode="json"),
        }
        info = foreign_info(stated, settings, source, data.describe())
        refuse_taken([(weights.name, info)], Path(out))
        scores = _scores(net, taught, stated["decomposition"], data)
        probe = _probe(net, data, stated, config)
        probe(Epoch(0, 0, 0.0, 0.0, None, None), net)
    info |= {
        "selection": {"rule": UNKNOWN, "split": None, "epoch": 0},
        "probe_sets": probe.ids,
        "environment": environment(),
    }
    records = {"metrics": scores.assign(epoch=0), **probe.tables()}
    return write_run(Path(out) / info["id"], info, records, net)


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


def _scores(
    net: nn.Module, taught: nn.Module | None, decomposition: str, data: Dataset
) -> pd.DataFrame:
    """The record ``metrics`` on validation and test, beside the teacher's outputs there."""
    rows = []
    for split in (data.val, data.test):
        outputs = None if taught is None else predict(taught, split, data)
        rows += score(net, split, data, decomposition, outputs)
    return pd.DataFrame(rows)


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


def _teacher(teacher: str | Path | nn.Module, data: Dataset) -> nn.Module:
    if isinstance(teacher, nn.Module):
        check_fits(teacher, data.shape, data.num_classes)
        check_teacher(teacher, data)
        return teacher
    name, at, path = str(teacher).partition("@")
    if not at:
        run = Run.load(teacher)
        name, path = run.info["config"]["model"], str(run.path / WEIGHTS)
    return _with_weights(name, Path(path), data)

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
from torch import Tensor, nn

from kdx_analysis.config import ProbeConfig
from kdx_analysis.data import Dataset, Split
from kdx_analysis.errors import KdxError
from kdx_analysis.imports.names import Names
from kdx_analysis.imports.write import UNKNOWN, foreign_info, refuse_taken, run_keys
from kdx_analysis.models import build_model, check_fits
from kdx_analysis.objectives import one_vs_rest_margins
from kdx_analysis.probes.plain import plain_tables
from kdx_analysis.probes.training_probe import SPLITS
from kdx_analysis.runs import Run, environment, write_run
from kdx_analysis.runs.run import WEIGHTS
from kdx_analysis.training import predict, reproducible, score
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
        records = {"metrics": [_scores(net, taught, stated["decomposition"], data)]}
        sets = {split: data.probe_set(split, config.per_class, config.seed) for split in SPLITS}
        for split, chosen in sets.items():
            for kind, table in _probed(net, chosen, stated["decomposition"], data, config).items():
                records.setdefault(kind, []).append(table.assign(split=split))
    info |= {
        "selection": {"rule": UNKNOWN, "split": None, "epoch": 0},
        "probe_sets": {split: chosen.ids.tolist() for split, chosen in sets.items()},
        "environment": environment(),
    }
    frames = {
        kind: pd.concat(tables, ignore_index=True).assign(epoch=0)
        for kind, tables in records.items()
    }
    return write_run(Path(out) / info["id"], info, frames, net)


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
    """The record ``metrics`` on validation and test, beside what the teacher chooses there."""
    choices = {}
    if taught is not None:
        for split in (data.val, data.test):
            choices[split.name] = predict(taught, split, data).argmax(1)
    rows = []
    for split in (data.val, data.test):
        rows += score(net, split, data, decomposition, choices.get(split.name))
    return pd.DataFrame(rows)


def _probed(
    net: nn.Module, chosen: Split, decomposition: str, data: Dataset, config: ProbeConfig
) -> dict[str, pd.DataFrame]:
    """The tables of a probe set by kind."""
    margins = one_vs_rest_margins if decomposition == "multiclass" else _as_they_are
    images = data.normalise(chosen.images.take(torch.arange(len(chosen))))
    return plain_tables(net, margins, images, chosen.labels, data.classes, config)


def _as_they_are(outputs: Tensor) -> Tensor:
    return outputs


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

"""A finished study without any training: planted figures, written as a study writes its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import matplotlib.figure
import pandas as pd
import pytest
import torch

from kdx_analysis import plots
from kdx_analysis.config import ObjectiveConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.objectives import OBJECTIVES, one_vs_rest_margins
from kdx_analysis.plots import Figure
from kdx_analysis.registry import Registry
from kdx_analysis.runs import RunSet, write_run
from kdx_analysis.runs.outputs import RunOutputs
from tests.planted_outputs import Nets
from tests.planted_records import complete
from tests.plots.conftest import made_records

EPOCHS = (1, 2, 3)
CONFLICT = {
    "conflict_summary": ("conflict_rate", "severity"),
    "contention": ("contention", "separation", "modulation"),
}
LADDER = ("hard", "label_smoothing", "hard_T", "kd_flat", "kd_shuffled", "kd")
Write = Callable[..., RunSet]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """:func:`write_study` into a folder of the test."""
    return partial(write_study, tmp_path / "study")


@pytest.fixture
def two_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "FIGURES", quick_figures())


def write_study(
    folder: Path,
    objectives: Sequence[str | Mapping[str, Any]] = LADDER,
    seeds: int = 3,
    planted: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    classes: Sequence[str] = ("cat", "dog", "ship"),
    roles: Sequence[str] = ("student", "explainer"),
    drawn: bool = False,
    nets: Nets | None = None,
    siblings: int = 4,
    taught_by: Sequence[int] = (0,),
) -> RunSet:
    """Write and load a study; ``planted[metric][label]`` holds one value per seed, 0.3 where
    nothing is planted.

    With ``drawn`` explainers hold records for every figure, from a seeded generator instead. With
    ``nets`` every run keeps their outputs, and beside teacher 0 there are so many ``siblings``;
    students under objectives that need a teacher are written for every number in ``taught_by``.
    """
    for number in range(1 + siblings if nets else 1):
        scores = nets and nets.teacher(number)
        outputs = nets and outputs_of(nets, scores, "multiclass")
        _write(folder, "teacher", None, number, {"accuracy": 0.975}, classes, outputs=outputs)
    for given in objectives:
        config = ObjectiveConfig.model_validate(given)
        needs_teacher = OBJECTIVES[config.name].needs_teacher
        for seed, teacher in product(range(seeds), taught_by if needs_teacher else (0,)):
            values = {
                metric: table[config.label][seed]
                for metric, table in (planted or {}).items()
                if config.label in table
            }
            for role in roles:
                outputs = nets and outputs_of(
                    nets,
                    # explainers are networks of their own
                    nets.student(_plain(config.label), seed + 100 * (role != "student"), teacher),
                    config.decomposition,
                )
                _write(
                    folder,
                    role,
                    config,
                    seed,
                    values,
                    classes,
                    drawn=drawn,
                    outputs=outputs,
                    teacher=teacher if len(taught_by) > 1 else None,
                )
    return RunSet.load(folder)


def outputs_of(nets: Nets, scores: torch.Tensor, decomposition: str) -> dict[str, RunOutputs]:
    """Scores on the test images, as runs keep them: margins for binary subtasks, else logits."""
    if decomposition == "binary":
        scores = one_vs_rest_margins(scores.double()).float()
    ids = torch.arange(nets.num_images) + 100
    return {"test": RunOutputs(scores, nets.labels, ids, "f00d", decomposition)}


def _plain(label: str) -> str:
    return label.replace(" multiclass", "")


def quick_figures() -> Registry[Figure]:
    """Instead of the report's figures one that is quickly drawn and one that no runs can give."""

    def data(runs: RunSet) -> pd.DataFrame:
        return pd.DataFrame({"subtask": runs.classes, "value": range(len(runs.classes))})

    def impossible(runs: RunSet) -> pd.DataFrame:
        raise KdxError("there is <nothing> to draw")

    def draw(data: pd.DataFrame) -> tuple[matplotlib.figure.Figure, Any]:
        figure = matplotlib.figure.Figure((2, 1))
        return figure, figure.subplots()

    figures: Registry[Figure] = Registry("figure")
    figures.register("plain")(Figure("plain", "A plain figure", "What is drawn.", data, draw))
    figures.register("impossible")(
        Figure("impossible", "An impossible figure", "Nothing.", impossible, draw)
    )
    return figures


def _write(
    folder: Path,
    role: str,
    objective: ObjectiveConfig | None,
    seed: int,
    values: Mapping[str, float],
    classes: Sequence[str],
    *,
    drawn: bool = False,
    outputs: Mapping[str, RunOutputs] | None = None,
    teacher: int | None = None,
) -> None:
    section = None if objective is None else objective.model_dump(mode="json", by_alias=True)
    label = "" if objective is None else objective.label
    name = f"{role}-{abs(hash(label))}-{seed}-{teacher or 0}"
    config: dict[str, Any] = {
        "role": role,
        "model": f"small_{role}",
        "training": {"threads": 1},
        "seed": seed,
    }
    if section is not None:
        config["objective"] = section
    if role == "tree":
        config["phase2"] = {
            "weights": "redrawn",
            "by": "alpha",
            "training": {"epochs": 5, "threads": 1},
        }
    records = {"metrics": _metrics(values, seed)}
    if role == "explainer":
        records |= made_records(seed, label, classes) if drawn else _probed(values, classes)
    info = {
        "id": name,
        "study": "planted",
        "role": role,
        "objective": label,
        "decomposition": "multiclass" if objective is None else objective.decomposition,
        "seed": seed,
        "config": config,
        "selection": {"rule": "last", "split": "val", "epoch": EPOCHS[-1]},
        "data": {
            "name": "made",
            "source": "by hand",
            "sizes": {"train": 30, "val": 9, "test": 40},
            "shape": [1, 4, 4],
            "classes": list(classes),
            "fingerprint": "f00d",
        },
        "probe_sets": {"train": [0, 1, 2], "val": [3, 4, 5]} if role == "explainer" else None,
        "experts": {"explainer": [1, 2], "tree": [1, 1]}.get(role),
        "grown_from": {"run": f"explainer-{seed}", "experts": [1, 2]} if role == "tree" else None,
        "environment": {
            "python": "3.11",
            "versions": {"torch": "2.6"},
            "commit": "abc",
            "hardware": None,
        },
    }
    if teacher is not None:
        info["teacher"] = teacher
    write_run(folder / name, info, complete(records), outputs=outputs)


def _metrics(values: Mapping[str, float], seed: int) -> pd.DataFrame:
    rows = [(epoch, "train", "loss", 1.0 / epoch, 30) for epoch in EPOCHS]
    rows += [(EPOCHS[-1], "test", "accuracy", values.get("accuracy", 0.9 + 0.01 * seed), 40)]
    rows += [(EPOCHS[-1], "test", "agreement", values.get("agreement", 0.8 + 0.02 * seed), 40)]
    return pd.DataFrame(rows, columns=["epoch", "split", "metric", "value", "n"])


def _probed(values: Mapping[str, float], classes: Sequence[str]) -> dict[str, pd.DataFrame]:
    K = len(classes)
    gates = [
        {
            "epoch": epoch,
            "of": of,
            "level": 3 if of == "gates" else 2,
            "attention": attention,
            "metric": metric,
            "value": values.get(name, 0.3),
            "initial": 0.9,
            "n": K,
            "tau": 1.0,
        }
        for epoch in EPOCHS
        for attention in ("alpha", "effective")
        for of, metric, name in (
            ("gates", "entropy_share", "gate_entropy"),
            ("pathways", "specialisation", "specialisation"),
            ("pathways", "dead_share", "dead"),
        )
    ]
    tables: dict[str, pd.DataFrame] = {"gate_summary": pd.DataFrame(gates)}
    pairs = len(list(combinations(classes, 2)))
    for kind, metrics in CONFLICT.items():
        counts = (
            {"level": "all", "pairs": pairs - 1, "undefined": 1}
            if kind == "conflict_summary"
            else {}
        )
        tables[kind] = pd.DataFrame(
            {
                "epoch": epoch,
                "split": split,
                "term": "hard",
                "metric": metric,
                "value": values.get(metric, 0.3) + (0.01 if split == "val" else 0),
                "null_mean": 0.5,
                "n": 6,
                **counts,
            }
            for epoch in EPOCHS
            for split in ("train", "val")
            for metric in metrics
        )
    return tables

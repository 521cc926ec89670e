"""Finished runs without any training: tables by hand and by a seeded generator, written as a study
writes its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdx_analysis.data.sources import CIFAR100_SUPERCLASSES
from kdx_analysis.runs import Run, RunSet, run_id, write_run
from tests.planted_records import complete

EPOCHS = (1, 2, 3)
EXPERTS = (1, 3, 4)
CLASSES = ("cat", "dog", "$5 bill", "100% cotton_rag", "ship")
LADDER = ("hard", "label_smoothing", "hard_T", "kd_flat", "kd_shuffled", "kd")
Make = Callable[..., RunSet]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes teacher, students and explainers for ``objectives`` × ``seeds`` and loads them."""

    def write(
        objectives: Sequence[str],
        seeds: Sequence[int],
        classes: Sequence[str] = CLASSES,
        decompositions: Sequence[str] = ("binary",),
    ) -> RunSet:
        return write_all(tmp_path, objectives, seeds, classes, decompositions)

    return write


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> RunSet:
    """The whole ladder and label smoothing, three seeds."""
    return write_all(tmp_path_factory.mktemp("study"), LADDER, (0, 1, 2), CLASSES, ("binary",))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> RunSet:
    """Two rungs, one seed."""
    return write_all(tmp_path_factory.mktemp("small"), ("hard", "kd"), (4,), CLASSES, ("binary",))


@pytest.fixture(scope="session")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> RunSet:
    """The whole ladder on the classes of CIFAR-100, two seeds, eight experts on the last level."""
    classes = [name for members in CIFAR100_SUPERCLASSES.values() for name in members]
    return write_all(
        tmp_path_factory.mktemp("hundred"), LADDER, (0, 1), classes, ("binary",), (1, 4, 8)
    )


def write_all(
    path: Path,
    objectives: Sequence[str],
    seeds: Sequence[int],
    classes: Sequence[str],
    decompositions: Sequence[str],
    experts: Sequence[int] = EXPERTS,
) -> RunSet:
    write_one(path, "teacher", "", 0, classes)
    for objective, seed, decomposition in product(objectives, seeds, decompositions):
        for role in ("student", "explainer"):
            write_one(path, role, objective, seed, classes, decomposition, experts)
    return RunSet.load(path)


def write_one(
    path: Path,
    role: str,
    objective: str,
    seed: int,
    classes: Sequence[str],
    decomposition: str = "binary",
    experts: Sequence[int] = EXPERTS,
) -> None:
    """``objective`` is a label: the objective's name, then what is unlike the default."""
    label = objective if decomposition == "binary" else f"{objective} {decomposition}"
    rng = np.random.default_rng([seed, zlib.crc32(f"{role} {label}".encode())])
    config: dict[str, Any] = {
        "role": role,
        "seed": seed,
        "objective": {"name": objective.split(" ")[0], "label": label},
    }
    records = {"metrics": _metrics(rng)}
    if role == "explainer":
        records |= _gates(rng, classes, experts) | _conflict(rng, classes, experts)
    id_ = run_id(role, label, seed, config)
    info = {
        "id": id_,
        "study": "made",
        "role": role,
        "objective": label,
        "decomposition": decomposition,
        "seed": seed,
        "config": config,
        "data": {"classes": list(classes)},
        "selection": {"rule": "last", "split": "val", "epoch": EPOCHS[-1]},
    }
    write_run(path / id_, info, complete(records))


def set_undefined(run: Run, kind: str, column: str, query: str) -> None:
    """Make one column NaN in the rows of a run's records that a query chooses."""
    table = run.record(kind)
    table.loc[table.eval(query), column] = np.nan


def made_records(seed: int, label: str, classes: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The probes' records of an explainer, from a generator seeded with ``seed`` and ``label``."""
    rng = np.random.default_rng([seed, zlib.crc32(label.encode())])
    return _gates(rng, classes, EXPERTS) | _conflict(rng, classes, EXPERTS)


def _metrics(rng: np.random.Generator) -> pd.DataFrame:
    rows = [
        (e, s, m, rng.uniform(0.5, 0.9), 50)
        for e in EPOCHS
        for s, m in (("train", "loss"), ("val", "accuracy"))
    ]
    rows += [
        (EPOCHS[-1], "test", metric, rng.uniform(0.5, 0.9), 80)
        for metric in ("accuracy", "agreement")
    ]
    return pd.DataFrame(rows, columns=["epoch", "split", "metric", "value", "n"])


def _gates(
    rng: np.random.Generator, classes: Sequence[str], experts: Sequence[int]
) -> dict[str, pd.DataFrame]:
    K = len(classes)
    gates, summary, routing, pathways = [], [], [], []
    for epoch in EPOCHS:
        for level, (parents, children) in enumerate(
            zip(experts, (*experts[1:], K), strict=True), 2
        ):
            heads = level == len(experts) + 1
            alpha, effective = (rng.dirichlet(np.full(parents, 0.3), children) for _ in range(2))
            gates.append(
                {
                    "epoch": epoch,
                    "level": level,
                    "child": np.repeat(
                        classes if heads else [f"expert {i}" for i in range(children)], parents
                    ),
                    "child_index": np.repeat(np.arange(children), parents),
                    "parent": np.tile(np.arange(parents), children),
                    "alpha": alpha.ravel(),
                    "effective": effective.ravel(),
                    "tau": 5 / epoch,
                }
            )
            paths = rng.dirichlet(np.full(parents, 0.3), K)
            pathways.append(
                {
                    "epoch": epoch,
                    "level": level - 1,
                    "subtask": np.repeat(classes, parents),
                    "subtask_index": np.repeat(np.arange(K), parents),
                    "expert": np.tile(np.arange(parents), K),
                    "alpha": paths.ravel(),
                    "effective": paths.ravel(),
                }
            )
            for kind in ("alpha", "effective") if parents > 1 else ():
                for of, metric, at in (
                    ("gates", "entropy_share", level),
                    ("pathways", "specialisation", level - 1),
                    ("pathways", "use_cv2", level - 1),
                ):
                    value = {"value": rng.uniform(0.01, 1) / epoch, "initial": 1 - 0.01 * epoch}
                    summary.append(
                        {
                            "epoch": epoch,
                            "of": of,
                            "level": at,
                            "attention": kind,
                            "metric": metric,
                            **value,
                            "n": children,
                            "tau": 5 / epoch,
                        }
                    )
                routing.append(
                    {
                        "epoch": epoch,
                        "level": level - 1,
                        "attention": kind,
                        **_pairs(classes),
                        "distance": rng.uniform(0, 1, K * (K - 1) // 2),
                    }
                )
    many = {"gates": gates, "routing": routing, "pathways": pathways}
    frames = {
        kind: pd.concat([pd.DataFrame(part) for part in parts]) for kind, parts in many.items()
    }
    return {**frames, "gate_summary": pd.DataFrame(summary)}


def _conflict(
    rng: np.random.Generator, classes: Sequence[str], experts: Sequence[int]
) -> dict[str, pd.DataFrame]:
    pairs = len(classes) * (len(classes) - 1) // 2
    cosines: list[pd.DataFrame] = []
    summary: list[dict[str, Any]] = []
    contention: list[dict[str, Any]] = []
    by_expert: list[dict[str, Any]] = []
    for epoch in (EPOCHS[0], EPOCHS[-1]):
        for split in ("train", "val"):
            for term in ("hard", "objective"):
                keys = {"epoch": epoch, "split": split, "term": term, "n": 100}
                cosine = {
                    "cosine": rng.uniform(-1, 1, pairs),
                    "null_mean": rng.uniform(0, 0.5, pairs),
                }
                cosines.append(pd.DataFrame({**keys, "level": "all", **_pairs(classes), **cosine}))
                for table, metrics in (
                    (summary, ("conflict_rate", "severity")),
                    (contention, ("contention", "separation", "modulation")),
                ):
                    for metric in metrics:
                        value = {"value": rng.uniform(0, 0.5), "null_mean": rng.uniform(0, 0.5)}
                        table.append(
                            {
                                **keys,
                                "level": "all",
                                "metric": metric,
                                "pairs": pairs,
                                "undefined": 0,
                                **value,
                            }
                        )
                by_expert += [
                    {
                        **keys,
                        "level": level,
                        "expert": i,
                        "value": rng.uniform(0, 0.1),
                        "null_mean": 0.05,
                    }
                    for level, N in enumerate(experts, 1)
                    for i in range(N)
                    if N > 1
                ]
    return {
        "contention_by_expert": pd.DataFrame(by_expert),
        "conflict": pd.concat(cosines, ignore_index=True),
        "conflict_summary": pd.DataFrame(summary),
        "contention": pd.DataFrame(contention).drop(columns="level"),
    }


def _pairs(classes: Sequence[str]) -> dict[str, Any]:
    a, b = np.triu_indices(len(classes), k=1)
    names = np.array(classes, dtype=object)
    return {"a": names[a], "b": names[b], "a_index": a, "b_index": b}

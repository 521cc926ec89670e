"""From runs as a source holds them to run directories."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdx_analysis.errors import KdxError
from kdx_analysis.imports.names import KEYS, Names, Reading, SourceRun
from kdx_analysis.imports.units import is_share, readings
from kdx_analysis.io import read_json
from kdx_analysis.registry import unknown
from kdx_analysis.runs.run import INFO, ROLES, Run, run_id, write_run

UNKNOWN = "unknown"
UNKNOWN_DATA: dict[str, Any] = {
    "name": UNKNOWN,
    "source": None,
    "sizes": {},
    "shape": [],
    "classes": [],
    "fingerprint": None,
}


@dataclass(frozen=True)
class _Read:
    """A run ready to be written."""

    name: str
    info: dict[str, Any]
    metrics: pd.DataFrame


def write_runs(
    runs: Sequence[SourceRun], names: Names, kind: str, source: str, out: Path
) -> list[Run]:
    """Write runs below ``out``, all of them or, with a KdxError, none."""
    known = readings(runs, names, source)
    read = [_read(run, names, known, kind, source) for run in runs]
    refuse_taken([(run.name, run.info) for run in read], out)
    return [write_run(out / run.info["id"], run.info, {"metrics": run.metrics}) for run in read]


def refuse_taken(runs: Sequence[tuple[str, Mapping[str, Any]]], out: Path) -> None:
    """Raise KdxError if two of the runs have the same keys, or one of them and a run in ``out``.

    ``runs`` are names in the source and infos.
    """
    there = [read_json(file) for file in sorted(out.glob(f"[!.]*/{INFO}"))]
    taken = {_identity(info): (f"run {info['id']!r} in {str(out)!r}", info["id"]) for info in there}
    for name, info in runs:
        key, here = _identity(info), (f"run {name!r} of the source", info["id"])
        where, identity = taken.setdefault(key, here)
        if identity != info["id"]:
            study, role, objective, _, seed, _ = key
            raise KdxError(
                f"{here[0]} and {where} are both {role} {objective!r} with seed {seed} of study "
                f"{study!r}: name the "
                "column or parameter that tells them apart, or import them one by one, each with "
                "its own keys"
            )


def foreign_info(
    keys: Mapping[str, Any],
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """What ``run.json`` of a run says that was not made here, all but its selection."""
    config = {"role": keys["role"], **config, "seed": keys["seed"]}
    if keys["role"] != "teacher":
        config["objective"] = {"name": config.pop("objective_name", keys["objective"])}
    identity = run_id(
        keys["role"], keys["objective"], keys["seed"], {**keys, "config": config, "source": source}
    )
    return {
        "id": identity,
        **keys,
        "config": config,
        "data": data,
        "probe_sets": None,
        "experts": None,
        "grown_from": None,
        "environment": {},
        "source": source,
    }


def run_keys(names: Names, settings: Mapping[str, Any], study: str, where: str) -> dict[str, Any]:
    """The keys of a run as they are stated or as its ``settings`` have them.

    Raises KdxError if there is no objective or no seed to be had, or if role or seed can't be one.
    """
    said = {key: names.key(key, settings, where) for key in KEYS}
    role = str(said["role"] or "student")
    if role not in ROLES:
        raise unknown("role", role, ROLES)
    if role == "teacher":
        said["objective"] = ""
    for key in ("objective", "seed"):
        if said[key] is None:
            raise KdxError(
                f"{where} does not say its {key}: state it, as "
                f"{key}={'kd' if key == 'objective' else 0}, or name the column or parameter that "
                "holds it"
            )
    return {
        "study": str(said["study"] or study),
        "role": role,
        "objective": str(said["objective"]),
        "decomposition": str(said["decomposition"] or UNKNOWN),
        "seed": said["seed"],
    }


def _read(
    run: SourceRun, names: Names, known: Mapping[str, Reading], kind: str, source: str
) -> _Read:
    where = f"{source}, {run.name}"
    keys = run_keys(names, run.settings, Path(source).stem, where)
    metrics, left_out = _metrics(run, names, known, where)
    selection = _selection(metrics)
    used = names.columns_of(*KEYS)
    settings = {name: _json(value) for name, value in run.settings.items() if name not in used}
    config: dict[str, Any] = {"model": str(settings.pop("model", UNKNOWN))}
    if "objective.name" in settings:
        config["objective_name"] = str(settings.pop("objective.name"))
    data = UNKNOWN_DATA | {"name": str(settings.pop("data.name", UNKNOWN))}
    config["settings"] = settings
    unsaid = {
        "decomposition": keys["decomposition"],
        "model": config["model"],
        "data set": data["name"],
        "epoch of the figures": UNKNOWN if not metrics["epoch"].any() else "",
        "number of images": UNKNOWN if metrics["n"].isna().any() else "",
        "selection": selection["rule"],
    }
    origin = {
        "kind": kind,
        "name": source,
        "run": run.name,
        "sha256": hashlib.sha256(metrics.to_csv(index=False).encode()).hexdigest(),
        "left_out": sorted({*run.left_out, *left_out}),
        "unknown": [
            *(what for what, said in unsaid.items() if said == UNKNOWN),
            "classes",
            "split",
            "environment",
        ],
    }
    info = foreign_info(keys, config, origin, data) | {"selection": selection}
    return _Read(run.name, info, metrics)


def _metrics(
    run: SourceRun, names: Names, readings: Mapping[str, Reading], where: str
) -> tuple[pd.DataFrame, list[str]]:
    """The record ``metrics`` of a run, and the source's names that are none of ours.

    A loss that is NaN has diverged and stays so; a share of images that is NaN was not measured and
    is none.
    """
    given = list(dict.fromkeys(run.metrics["name"]))
    known = {name: readings[name] for name in given if name in readings}
    if not known:
        raise KdxError(
            f"no name among the metrics of {where} says its split "
            f"({', '.join(given[:8]) or 'there is none'}): map one, as NAME=test/accuracy"
        )
    _refuse_twice(known, where)
    table = run.metrics[run.metrics["name"].isin(known)].copy()
    table["epoch"] = _epochs(run, table, names, where)
    twice = table[table.duplicated(["name", "epoch"], keep=False)]
    if len(twice):
        name, epoch = twice[["name", "epoch"]].iloc[0]
        many = int(((table["name"] == name) & (table["epoch"] == epoch)).sum())
        raise KdxError(
            f"{where} has {many} values of {name!r} in epoch {epoch}: name the column that tells "
            "runs or epochs apart, or give steps_per_epoch"
        )
    table["split"] = [known[name].split for name in table["name"]]
    table["metric"] = [known[name].metric for name in table["name"]]
    table["value"] = table["value"] * [known[name].factor for name in table["name"]]
    unmeasured = table["metric"].map(is_share).astype(bool) & table["value"].isna()
    if unmeasured.all():
        raise KdxError(
            f"{where} holds no figure but {', '.join(known)}, which is not a number throughout"
        )
    table = table[~unmeasured]
    table = table.sort_values(["epoch", "split", "metric"], kind="stable")
    return table[["epoch", "split", "metric", "value", "n"]].reset_index(drop=True), sorted(
        set(given) - set(known)
    )


def _refuse_twice(known: Mapping[str, Reading], where: str) -> None:
    first: dict[tuple[str, str], str] = {}
    for name, reading in known.items():
        other = first.setdefault((reading.split, reading.metric), name)
        if other != name:
            raise KdxError(
                f"{where} has {other!r} and {name!r}, which both read as "
                f"{reading.split}/{reading.metric}: map one of them to another name, as "
                f"{name}={reading.split}/other"
            )


def _epochs(run: SourceRun, table: pd.DataFrame, names: Names, where: str) -> pd.Series:
    """The epoch of every row; 0 where the source has no steps."""
    steps = table["step"]
    if steps.isna().all():
        return _whole(steps.fillna(0), where)
    if steps.isna().any():
        raise KdxError(
            f"some values of {where} stand at a step or epoch and some at none: say where those "
            "belong, or leave them out"
        )
    if run.epochs:
        return _whole(steps, where)
    if names.steps_per_epoch is not None:
        return _whole(
            steps / names.steps_per_epoch, f"{where} with {names.steps_per_epoch} steps an epoch"
        )
    logged = run.metrics[run.metrics["name"] == "epoch"].set_index("step")["value"]
    if len(logged):
        epochs = steps.map(logged[~logged.index.duplicated()])
        if epochs.isna().any():
            raise KdxError(
                f"{where} does not say of which epoch step {steps[epochs.isna()].iloc[0]:g} is: "
                "give steps_per_epoch"
            )
        return _whole(epochs, where)
    gaps = np.diff(np.unique(steps))
    if len(gaps) and gaps.min() > 1:
        raise KdxError(
            f"the steps of {where} are {gaps.min():g} or more apart, so they may be no epochs: "
            "give steps_per_epoch (1 if they are)"
        )
    return _whole(steps, where)


def _whole(epochs: pd.Series, where: str) -> pd.Series:
    # From 2⁵³ on floats skip whole numbers.
    wrong = epochs[(epochs % 1 != 0) | (epochs < 0) | (epochs >= 2**53)]
    if len(wrong):
        raise KdxError(f"{wrong.iloc[0]:g} is no epoch ({where}); epochs are whole numbers from 0")
    return epochs.astype(int)


def _selection(metrics: pd.DataFrame) -> dict[str, Any]:
    """The epoch whose figures stand for the run.

    It is the last whose accuracy, or else any figure, is tested, or the last. That it was chosen as
    the last is known only of runs tested all along: one test may be that of the best weights.
    """
    last = int(metrics["epoch"].max())
    test = metrics[metrics["split"] == "test"]
    right = test[test["metric"] == "accuracy"]
    tested = (right if len(right) else test)["epoch"].unique()
    epoch = int(tested.max()) if len(tested) else last
    return {
        "rule": "last" if epoch == last and len(tested) > 1 else UNKNOWN,
        "split": None,
        "epoch": epoch,
    }


def _json(value: Any) -> Any:
    """JSON has no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _identity(info: Mapping[str, Any]) -> tuple[Any, ...]:
    """The keys that no two runs share; students of several teachers may share all others."""
    return *(info[key] for key in KEYS), info.get("teacher", 0)

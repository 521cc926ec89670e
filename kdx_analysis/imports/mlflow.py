"""MLflow without MLflow: its file store, its SQLite store, or the CSV that it exports.

The file store is a folder ``mlruns/``; the CSV is that of ``mlflow experiments csv``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from kdx_analysis.errors import KdxError
from kdx_analysis.imports.names import KEYS, Names, SourceRun
from kdx_analysis.imports.table import numbers, read_csv

_FINISHED = ("FINISHED", "3")  # by name, and by number in files of the store


def read_mlflow(path: Path, names: Names) -> list[SourceRun]:
    """The finished runs of an MLflow store (of files, or of SQLite) or of an exported CSV.

    Parameters and tags are settings. Deleted, failed and running runs are passed over. An exported
    CSV holds the last value of every metric alone, and none where that is NaN.
    """
    if path.is_dir():
        runs = _stored(path)
    elif path.suffix == ".csv":
        runs = _exported(path, names)
    else:
        runs = _database(path)
    if not runs:
        raise KdxError(
            f"{str(path)!r} holds no finished run of MLflow; give a folder mlruns, an mlflow.db or "
            "a CSV"
        )
    return runs


def _exported(path: Path, names: Names) -> list[SourceRun]:
    keys = {f"{kind}.{names.column(key)}" for kind in ("tags", "params") for key in KEYS}
    table = read_csv(path, keys)
    if "run_id" not in table:
        raise KdxError(
            f"{path.name} has no column run_id, so MLflow did not export it; read it as kind csv"
        )
    if "status" in table:
        table = table[table["status"].astype(str).isin(_FINISHED)]
    for column in table.columns:
        if column.startswith("metrics."):
            table[column], _ = numbers(path, table[column], column)
    runs = []
    for row in table.to_dict("records"):
        said = {str(name): value for name, value in row.items() if not pd.isna(value)}
        values = _below("metrics.", said)
        metrics = pd.DataFrame({"name": list(values), "value": list(values.values())}).assign(
            step=float("nan"), n=float("nan")
        )
        # A parameter stands above a tag of its name.
        settings = _below("tags.", _without_own(said, "tags.mlflow.")) | _below("params.", said)
        runs.append(SourceRun(str(said["run_id"]), settings, metrics))
    return runs


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values whose names begin with a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }


def _without_own(values: Mapping[str, Any], prefix: str = "mlflow.") -> dict[str, Any]:
    """The values but those that MLflow itself writes, whose names begin with a prefix."""
    return {name: value for name, value in values.items() if not name.startswith(prefix)}


def _stored(path: Path) -> list[SourceRun]:
    runs = []
    for meta in sorted(path.rglob("meta.yaml")):
        # Deleted runs lie in .trash.
        if any(part.startswith(".") for part in meta.relative_to(path).parts):
            continue
        said = _meta(meta)
        deleted = said.get("lifecycle_stage", "active") != "active"
        if "run_id" not in said or deleted or str(said.get("status")) not in _FINISHED:
            continue
        run = meta.parent
        texts = {**_texts(run / "tags"), **_texts(run / "params")}
        settings = _without_own(texts)
        rows = [
            {"name": name, **_point(run, line)}
            for name, text in _texts(run / "metrics").items()
            for line in text.splitlines()
        ]
        metrics = pd.DataFrame(rows, columns=["name", "step", "value"]).assign(n=float("nan"))
        runs.append(SourceRun(str(said["run_id"]), settings, metrics))
    return runs


def _database(path: Path) -> list[SourceRun]:
    def rows(query: str, *arguments: str) -> pd.DataFrame:
        return pd.read_sql_query(query, connection, params=arguments)

    runs = []
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            finished = (
                "SELECT run_uuid FROM runs WHERE status = 'FINISHED' AND lifecycle_stage = 'active'"
            )
            for run in rows(f"{finished} ORDER BY start_time, run_uuid")["run_uuid"]:
                texts = [
                    rows(f"SELECT key, value FROM {table} WHERE run_uuid = ?", run)
                    for table in ("tags", "params")
                ]
                said = {str(row.key): row.value for table in texts for row in table.itertuples()}
                settings = _without_own(said)
                metrics = rows(
                    "SELECT key AS name, step, value, is_nan FROM metrics WHERE run_uuid = ?", run
                )
                metrics = _unpacked(metrics).assign(n=float("nan"))
                runs.append(SourceRun(str(run), settings, metrics))
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        reason = " ".join(str(error).split())[:200]
        raise KdxError(f"{str(path)!r} is no store of MLflow in SQLite: {reason}") from None
    return runs


def _unpacked(metrics: pd.DataFrame) -> pd.DataFrame:
    """Values as they were logged.

    The store holds NaN as 0 that ``is_nan``, infinity as the largest float.
    """
    value = metrics.pop("value").astype(float).mask(metrics.pop("is_nan").astype(bool))
    largest = np.finfo(float).max
    return metrics.assign(value=value.replace({largest: np.inf, -largest: -np.inf}))


def _meta(file: Path) -> dict[str, Any]:
    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise KdxError(
            f"{str(file)!r} is no readable YAML: {' '.join(str(error).split())}"
        ) from None
    return said if isinstance(said, dict) else {}


def _texts(folder: Path) -> dict[str, str]:
    """Contents of the files below ``folder`` by their names, in which a slash makes a folder.

    No links are followed.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.is_symlink()]
    return {file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8") for file in files}


def _point(run: Path, line: str) -> dict[str, float]:
    """A line of a metric's file: time, value, step, and in later versions the data set."""
    parts = line.split()
    try:
        return {
            "value": float(parts[1]),
            "step": float(parts[2]) if len(parts) > 2 else float("nan"),
        }
    except (IndexError, ValueError):
        raise KdxError(
            f"{line[:80]!r} among the metrics of MLflow run {run.name} is no time, value and step"
        ) from None

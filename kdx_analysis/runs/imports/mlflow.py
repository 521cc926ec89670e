"""MLflow without MLflow: its file store (``mlruns/``), or the CSV that ``mlflow experiments csv`` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from kdx_analysis.errors import KdxError
from kdx_analysis.runs.imports.found import Found, Names
from kdx_analysis.runs.imports.table import read_csv

_FINISHED = ("FINISHED", "3")  # by name, and by number in files of the store


def read_mlflow(path: Path, names: Names) -> list[Found]:
    """The finished runs of an MLflow store, experiment or run, or of an exported CSV; parameters and tags are settings.

    Deleted, failed and running ones are passed over. An exported CSV holds the last value of every metric alone.
    """
    found = _exported(path) if path.is_file() else _stored(path)
    if not found:
        raise KdxError(f"{str(path)!r} holds no finished run of MLflow; give a folder mlruns, or an exported CSV")
    return found


def _exported(path: Path) -> list[Found]:
    table = read_csv(path)
    if "run_id" not in table:
        raise KdxError(f"{path.name} has no column run_id, so MLflow did not export it; read it as kind csv")
    if "status" in table:
        table = table[table["status"].astype(str).isin(_FINISHED)]
    found = []
    for row in table.to_dict("records"):
        said = {str(name): value for name, value in row.items() if not pd.isna(value)}
        values = {name.removeprefix("metrics."): v for name, v in said.items() if name.startswith("metrics.")}
        metrics = pd.DataFrame({"name": list(values), "value": list(values.values())}).assign(
            step=float("nan"), n=float("nan")
        )
        settings = {
            name.removeprefix(f"{kind}."): value
            for kind in ("tags", "params")  # a parameter stands above a tag of its name
            for name, value in said.items()
            if name.startswith(f"{kind}.") and not name.startswith("tags.mlflow.")
        }
        found.append(Found(str(said["run_id"]), settings, metrics))
    return found


def _stored(path: Path) -> list[Found]:
    found = []
    for meta in sorted(path.rglob("meta.yaml")):
        if any(part.startswith(".") for part in meta.relative_to(path).parts):  # deleted runs lie in .trash
            continue
        said = _meta(meta)
        deleted = said.get("lifecycle_stage", "active") != "active"
        if "run_id" not in said or deleted or str(said.get("status")) not in _FINISHED:
            continue
        run = meta.parent
        texts = {**_texts(run / "tags"), **_texts(run / "params")}
        settings = {name: text for name, text in texts.items() if not name.startswith("mlflow.")}
        rows = [
            {"name": name, **_point(run, line)} for name, text in _texts(run / "metrics").items()
            for line in text.splitlines()
        ]  # fmt: skip
        metrics = pd.DataFrame(rows, columns=["name", "step", "value"]).assign(n=float("nan"))
        found.append(Found(str(said["run_id"]), settings, metrics))
    return found


def _meta(file: Path) -> dict[str, Any]:
    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise KdxError(f"{str(file)!r} is no readable YAML: {' '.join(str(error).split())}") from None
    return said if isinstance(said, dict) else {}


def _texts(folder: Path) -> dict[str, str]:
    """Contents of the files below ``folder`` by their names, in which a slash makes a folder; no links are followed."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.is_symlink()]
    return {file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8") for file in files}


def _point(run: Path, line: str) -> dict[str, float]:
    """A line of a metric's file: time, value, step, and in later versions the data set."""
    parts = line.split()
    try:
        return {"value": float(parts[1]), "step": float(parts[2]) if len(parts) > 2 else float("nan")}
    except (IndexError, ValueError):
        raise KdxError(f"{line[:80]!r} among the metrics of MLflow run {run.name} is no time, value and step") from None

"""Files that are written whole or not at all: a temporary name beside the target, then a rename."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow import parquet


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which becomes ``path`` if the body succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)  # mkstemp lets nobody but the owner read it
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def staged_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``path``; it becomes ``path`` only if the body succeeds.

    So a directory that has its final name is a finished one. Raises FileExistsError if ``path``
    exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp lets nobody but the owner into it
        if path.exists():
            raise FileExistsError(path)
        try:
            partial.rename(path)
        except OSError as error:  # another process was quicker
            raise FileExistsError(path) if path.exists() else error from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    with staged_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    with staged_file(path) as partial:
        frame.to_parquet(partial, index=False)


def read_parquet(path: Path, values: Mapping[str, str | int] | None = None) -> pd.DataFrame:
    """The table; with ``values`` (column → value) those of its rows that have them, in order."""
    filters = [(column, "==", value) for column, value in (values or {}).items()]
    return pd.read_parquet(path, filters=filters or None)


def has_column(path: Path, name: str) -> bool:
    """Whether the table has a column of that name, which its header says."""
    return name in parquet.read_schema(path).names

"""Tables of numbers from files of any framework, and from arrays; nothing in them is executed."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.registry import unknown

IDS, LABELS = ("id", "ids"), ("label", "labels")
_PARTED = "::"


@dataclass(frozen=True)
class Table:
    """One table of scores as it is given.

    Attributes:
        where: what it is called in notes and errors.
        values: N×K, in the type that it is stored with; of a large file mapped, not read.
        columns: names of the K columns, where it has any.
        ids, labels: of its rows, where it has such columns.
    """

    where: str
    values: Tensor
    columns: tuple[str, ...] | None = None
    ids: np.ndarray | None = None
    labels: np.ndarray | None = None


def located(reference: str, folder: Path) -> tuple[Path, str | None]:
    """Path and key of ``path::key``, the path from ``folder``; the key is None without ``::``."""
    name, parted, key = reference.rpartition(_PARTED)
    return (folder / name, key) if parted else (folder / reference, None)


def read_file(path: Path, key: str | None = None) -> Any:
    """What a file holds: an array, a tensor or a frame, by its suffix.

    Large arrays are mapped into memory rather than read. Nothing pickled is loaded but tensors.

    Args:
        key: of a file that holds several: the array's or the column's name.

    Raises:
        KdxError: for a file that is missing, can't be read or has another suffix, and for a key
            that it doesn't hold.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise KdxError(
            f"{str(path)!r} has a suffix that no table is read from: choose {', '.join(_READERS)}"
        )
    if not path.is_file():
        raise KdxError(f"there is no file {str(path)!r}: correct its path")
    try:
        return _READERS[suffix](path, key)
    except KdxError:
        raise
    except Exception as error:
        # Each library raises errors of its own kind for a damaged file; pyarrow, torch and zipfile
        # share no class.
        lines = str(error).splitlines() or [type(error).__name__]
        raise KdxError(f"cannot read {str(path)!r}: {lines[0]}{_advice(suffix, error)}") from None


def _advice(suffix: str, error: Exception) -> str:
    text = str(error).lower()
    if suffix in (".npy", ".npz") and "pickle" in text:
        return "; save numbers or texts, not objects: array.astype(float) or .astype(str)"
    if suffix in (".pt", ".pth") and "weights_only" in text:
        return "; save a tensor or a dictionary of tensors"
    return ""


def _npy(path: Path, key: str | None) -> np.ndarray:
    _refuse_key(path, key)
    # Mapped as copy-on-write: torch warns about arrays that can't be written to.
    loaded = np.load(path, allow_pickle=False, mmap_mode="c")
    if not isinstance(loaded, np.ndarray):
        raise KdxError(f"{str(path)!r} holds several arrays: rename it to .npz")
    return loaded


def _npz(path: Path, key: str | None) -> np.ndarray:
    if not zipfile.is_zipfile(path):
        raise KdxError(f"cannot read {str(path)!r}: it is no archive as numpy.savez writes it")
    with np.load(path, allow_pickle=False) as archive:
        array: np.ndarray = archive[_chosen(path, key, archive.files)]
    return array


def _pt(path: Path, key: str | None) -> Tensor:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        # A file of torch before 1.6 can't be mapped.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, Mapping):
        loaded = loaded[_chosen(path, key, [str(name) for name in loaded])]
    else:
        _refuse_key(path, key)
    if not isinstance(loaded, Tensor):
        raise KdxError(
            f"{str(path)!r} holds a {type(loaded).__name__}: save a tensor, or a dictionary of "
            "tensors by their names"
        )
    return loaded


def _safetensors(path: Path, key: str | None) -> Tensor:
    try:
        with safe_open(path, framework="pt") as archive:
            tensor: Tensor = archive.get_tensor(_chosen(path, key, list(archive.keys())))
    except SafetensorError as error:
        raise KdxError(f"cannot read {str(path)!r}: {error}") from None
    return tensor


def _parquet(path: Path, key: str | None) -> pd.DataFrame:
    return _columns(path, key, pd.read_parquet(path))


def _csv(path: Path, key: str | None) -> pd.DataFrame:
    frame = pd.read_csv(path, skipinitialspace=True)
    names = [str(name) for name in frame.columns]
    unnamed = [name for name in names if name.startswith("Unnamed:")]
    if unnamed:
        raise KdxError(
            f"a column of {str(path)!r} has no name: name it, or write the file without the "
            "frame's index (index=False)"
        )
    if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
        raise KdxError(f"the columns of {str(path)!r} are not parted by commas: part them so")
    if any(_is_fraction(name) for name in names):
        raise KdxError(
            f"the first line of {str(path)!r} holds numbers where the names of the columns should "
            "stand: add a line of names"
        )
    return _columns(path, key, frame)


def _is_fraction(name: str) -> bool:
    """Whether a column's name is a number as a table of scores holds, rather than a class's."""
    try:
        return not float(name).is_integer() or name.startswith("-")
    except (ValueError, OverflowError):
        return False


_READERS: Mapping[str, Callable[[Path, str | None], Any]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _pt,
    ".pth": _pt,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
    ".csv": _csv,
}


def _refuse_key(path: Path, key: str | None) -> None:
    if key is not None:
        raise KdxError(f"{str(path)!r} holds one array, and none named {key!r}: leave ::{key} out")


def _chosen(path: Path, key: str | None, names: Sequence[str]) -> str:
    """The key that is asked for, or the only one."""
    if key is not None and key not in names:
        raise unknown(f"key of {path.name}", key, names)
    if key is None and len(names) != 1:
        raise KdxError(
            f"{str(path)!r} holds {len(names)} arrays: add which one, as {path.name}"
            f"{_PARTED}{names[0] if names else 'NAME'}"
        )
    return names[0] if key is None else key


def _columns(path: Path, key: str | None, frame: pd.DataFrame) -> pd.DataFrame:
    if key is None:
        return frame
    if key not in frame.columns:
        raise unknown(f"column of {path.name}", key, map(str, frame.columns))
    return frame[[key]]


def table(raw: Any, where: str) -> Table:
    """A table of scores from an array, a tensor or a frame ``raw``, called ``where`` in errors.

    Raises KdxError for what holds no numbers, has not two axes or columns, or has a column that
    is no number.
    """
    made = _of_frame(raw, where) if isinstance(raw, pd.DataFrame) else _of_array(raw, where)
    if made.values.shape[1] < 2:
        raise KdxError(
            f"{where} has {made.values.shape[1]} columns: give one a class, for two classes as "
            "np.stack([0 * z, z], axis=1) from the logit z of the second, or np.stack([1 - p, p], "
            "axis=1) from its probability p"
        )
    return made


def _of_array(raw: Any, where: str) -> Table:
    values = _tensor(raw, where)
    if values.ndim != 2:
        shape = "×".join(map(str, values.shape)) or "a single number"
        whole = values.ndim == 1 and not values.is_floating_point()
        what = "class numbers, one an image, are no scores" if whole else "it needs two axes"
        raise KdxError(f"{where} has the shape {shape}: {what}; give images × classes")
    return Table(where, values)


def _of_frame(frame: pd.DataFrame, where: str) -> Table:
    special = [name for name in frame.columns if str(name).lower() in (*IDS, *LABELS)]
    scores = frame.drop(columns=special)
    wrong = [name for name, kind in scores.dtypes.items() if not _is_numeric(kind)]
    if wrong:
        raise KdxError(
            f"column {str(wrong[0])!r} of {where} holds no numbers: leave it out, or name it id or "
            "label if that is what it is"
        )
    whole = [name for name, kind in scores.dtypes.items() if pd.api.types.is_integer_dtype(kind)]
    if 0 < len(whole) < len(scores.columns):
        raise KdxError(
            f"column {str(whole[0])!r} of {where} holds whole numbers where others hold scores: "
            "leave it out, or name it id or label if that is what it is"
        )
    # Columns of pandas' own types may hold its NA, which no array of numbers does.
    plain = all(isinstance(kind, np.dtype) for kind in scores.dtypes)
    numbers = scores.to_numpy() if plain else scores.to_numpy(dtype=float, na_value=np.nan)
    values = torch.from_numpy(np.ascontiguousarray(numbers))
    names = tuple(str(name) for name in scores.columns)
    return Table(where, values, names, _special(frame, IDS), _special(frame, LABELS))


def _special(frame: pd.DataFrame, names: Sequence[str]) -> np.ndarray | None:
    present = [name for name in frame.columns if str(name).lower() in names]
    return frame[present[0]].to_numpy() if present else None


def _is_numeric(kind: Any) -> bool:
    return pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)


def _tensor(raw: Any, where: str) -> Tensor:
    if isinstance(raw, Tensor):
        tensor = raw.detach().cpu()
    else:
        array = np.asarray(raw)
        if array.dtype.kind not in "fiub":
            raise KdxError(f"{where} holds {array.dtype} and no numbers: give images × classes")
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        if native.dtype.kind == "u" or native.dtype.itemsize > 8:
            # torch knows no longer floats, and can't sort most unsigned integers
            native = native.astype(np.int64 if native.dtype.kind == "u" else np.float64)
        tensor = torch.from_numpy(np.require(native, requirements=["C", "W"]))
    if tensor.is_complex():
        raise KdxError(f"{where} holds complex numbers: give images × classes of real ones")
    return tensor


def column(raw: Any, where: str, names: Sequence[str]) -> np.ndarray:
    """One value an image, from an array, a tensor, or a frame's column of one of ``names``.

    Raises KdxError, calling it ``where``, if there is none or several.
    """
    if isinstance(raw, pd.DataFrame):
        present = [name for name in raw.columns if str(name).lower() in names]
        if len(raw.columns) != 1 and len(present) != 1:
            raise KdxError(
                f"{where} has the columns {', '.join(map(str, raw.columns[:5]))}: add which one, "
                f"as PATH{_PARTED}COLUMN, or name it {names[0]}"
            )
        raw = raw[present[0] if present else raw.columns[0]]
    array = raw.detach().cpu().numpy() if isinstance(raw, Tensor) else np.asarray(raw)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        shape = "×".join(map(str, array.shape)) or "a single value"
        raise KdxError(
            f"{where} should hold one value an image, and has the shape {shape}; of one-hot "
            "labels give y.argmax(axis=1)"
        )
    return array

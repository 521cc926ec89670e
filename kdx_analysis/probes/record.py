"""What every record can do: be shown as table, figure or piece of a page, and kept without loss."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.io import read_parquet, staged_file, write_parquet

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Record(ABC):
    """A frozen dataclass that a probe hands back.

    ``save`` keeps every field: tensors whole and in their own precision, numbers, text, None, other
    records, and tuples and dicts of these. Files are named for the kind of record, so two of a kind
    belong in folders of their own.
    """

    FILE: ClassVar[str]
    _kinds: ClassVar[dict[str, type[Record]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        Record._kinds[cls.__name__] = cls

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """The record as a tidy table."""

    @abstractmethod
    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """The record as (figure, axes), drawn into ``ax`` if one is given."""

    @abstractmethod
    def _repr_html_(self) -> str: ...

    def save(self, folder: str | Path) -> None:
        """Write the record into ``folder``, as ``FILE.safetensors``.

        Tensors lie there by number, the rest as JSON in its header.
        """
        tensors: list[Tensor] = []
        fields = _without_tensors(self, tensors)
        # Cloned, since safetensors refuses tensors that share their memory.
        named = {str(i): t.detach().cpu().contiguous().clone() for i, t in enumerate(tensors)}
        with staged_file(Path(folder) / f"{self.FILE}.safetensors") as partial:
            save_file(named, partial, metadata={"record": json.dumps(fields)})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what :meth:`save` wrote, here or in the Parquet of earlier versions.

        Raises KdxError if ``folder`` does not hold it.
        """
        path = Path(folder) / f"{cls.FILE}.safetensors"
        if not path.exists():
            return cls._load_parquet(folder)
        try:
            with safe_open(path, framework="pt") as file:
                fields = json.loads(file.metadata()["record"])
                tensors = [file.get_tensor(str(i)) for i in range(len(file.keys()))]
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise _holds_no(folder, cls.FILE, error) from None
        return cls._with(fields, tensors)

    @classmethod
    def _load_parquet(cls, folder: str | Path) -> Self:
        """What earlier versions wrote: a row a tensor, its values in float64."""
        frame = _read(folder, cls.FILE)
        columns = (frame["dtype"], frame["shape"], frame["values"])
        tensors = [
            torch.tensor(values).to(getattr(torch, dtype)).reshape(tuple(shape))
            for dtype, shape, values in zip(*columns, strict=True)
        ]
        return cls._with(frame.attrs["record"], tensors)

    @classmethod
    def _with(cls, fields: Any, tensors: list[Tensor]) -> Self:
        record = _with_tensors(fields, tensors)
        assert isinstance(record, cls)
        return record


class TableRecord(Record):
    """A record that is tidy tables, each kept as it is.

    ``FILES`` are its fields and their files' names.
    """

    FILES: ClassVar[Mapping[str, str]]

    def save(self, folder: str | Path) -> None:
        """Write every table of the record into ``folder``, as Parquet."""
        for field, name in self.FILES.items():
            write_parquet(Path(folder) / f"{name}.parquet", getattr(self, field))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what :meth:`save` wrote. Raises KdxError if ``folder`` does not hold it."""
        return cls(**{field: _read(folder, name) for field, name in cls.FILES.items()})


def added(records: Sequence[Record], field: str) -> tuple[Tensor, ...]:
    """Σ over records of every tensor in a field that holds sums: how batches merge."""
    sums = [getattr(record, field) for record in records]
    return tuple(torch.stack(parts).sum(dim=0) for parts in zip(*sums, strict=True))


def _read(folder: str | Path, name: str) -> pd.DataFrame:
    try:
        return read_parquet(Path(folder) / f"{name}.parquet")
    except (OSError, ValueError) as error:
        raise _holds_no(folder, name, error) from None


def _holds_no(folder: str | Path, name: str, error: Exception) -> KdxError:
    return KdxError(f"{str(folder)!r} holds no {name.replace('_', ' ')}: {error}")


def _without_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """``value`` as JSON, in which a tensor is its place in ``tensors``, to which it is added."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, Record):
        assert dataclasses.is_dataclass(value)
        fields = {
            f.name: _without_tensors(getattr(value, f.name), tensors)
            for f in dataclasses.fields(value)
        }
        return {"record": type(value).__name__, "fields": fields}
    if isinstance(value, tuple | list):
        return [_without_tensors(part, tensors) for part in value]
    if isinstance(value, Mapping):
        return {"items": {name: _without_tensors(part, tensors) for name, part in value.items()}}
    assert value is None or isinstance(value, str | int | float), value
    return value


def _with_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """What :func:`_without_tensors` was given."""
    if isinstance(value, list):
        return tuple(_with_tensors(part, tensors) for part in value)
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    named = value["fields"] if "record" in value else value["items"]
    parts = {name: _with_tensors(part, tensors) for name, part in named.items()}
    return Record._kinds[value["record"]](**parts) if "record" in value else parts

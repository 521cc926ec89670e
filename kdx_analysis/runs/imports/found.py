"""A run as a source holds it, and how the source's names are to be read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from kdx_analysis.errors import KdxError
from kdx_analysis.registry import unknown

KEYS = ("study", "role", "objective", "decomposition", "seed")
SPLITS = ("train", "val", "test")
_COLUMNS = (*KEYS, "run", "epoch", "n", "split", "metric", "value")
_SPLIT_OF = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_METRIC_OF = {"acc": "accuracy"}


@dataclass(frozen=True)
class Found:
    """One run, under the source's own names.

    Attributes:
        name: where it stands in the source.
        settings: what the source says of the run as a whole.
        metrics: columns name, step (NaN where there is none), value, n (NaN where it is not known).
        epochs: whether ``step`` counts epochs by the source's own word.
        left_out: names in the source that were not read.
    """

    name: str
    settings: Mapping[str, Any]
    metrics: pd.DataFrame
    epochs: bool = False
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metric:
    """What a name in the source stands for; ``factor`` turns its values into ours (0.01 for percent)."""

    split: str
    metric: str
    factor: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Metric:
        """``split/metric``, as ``test/accuracy``, or ``test/accuracy%`` for values in percent."""
        split, slash, metric = text.partition("/")
        if split not in SPLITS or not slash or not metric.strip("% "):
            raise KdxError(
                f"{text!r} names no metric; write split/metric with a split of {', '.join(SPLITS)}, as test/accuracy, "
                "or test/accuracy% for values in percent"
            )
        return cls(split, metric.removesuffix("%").strip(), 0.01 if metric.endswith("%") else 1.0)


@dataclass(frozen=True)
class Names:
    """How a source is to be read.

    Attributes:
        keys: run keys that are the same for all runs of the source.
        columns: run key (or run, epoch, n, split, metric, value) → its name in the source, where that is another.
        metrics: name in the source → ``split/metric``; names that hold just one of train, val and test need none.
        steps_per_epoch: by which steps are divided; by default a metric named ``epoch`` says the epoch of each step,
            and where there is none steps are epochs.
    """

    keys: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        for given, valid in ((self.keys, KEYS), (self.columns, _COLUMNS)):
            for key in given:
                if key not in valid:
                    raise unknown("key of a run", key, valid)
        for text in self.metrics.values():
            Metric.parse(text)
        if self.steps_per_epoch is not None and self.steps_per_epoch < 1:
            raise KdxError(f"steps_per_epoch is {self.steps_per_epoch}: it must be at least 1")

    def column(self, key: str) -> str:
        """The source's name for one of our keys."""
        return self.columns.get(key, key)

    def metric(self, name: str) -> Metric | None:
        """What a name in the source stands for, or None if it does not say so."""
        if name in self.metrics:
            return Metric.parse(self.metrics[name])
        words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
        splits = [_SPLIT_OF[word] for word in words if word in _SPLIT_OF]
        rest = [_METRIC_OF.get(word, word) for word in words if word not in _SPLIT_OF]
        return Metric(splits[0], "_".join(rest)) if len(splits) == 1 and rest else None

    def key(self, name: str, settings: Mapping[str, Any]) -> Any:
        """A run key as stated or as the ``settings`` have it; None if neither says.

        Raises KdxError where they contradict each other, or where a column is named that is not there.
        """
        column = self.column(name)
        if name in self.columns and column not in settings:
            raise unknown(f"name of {name!r} in the source", column, map(str, settings))
        found = settings.get(column)
        if name not in self.keys:
            return found
        stated = self.keys[name]
        if found is not None and str(found) != str(stated):
            raise KdxError(f"{name} is stated as {stated!r}, but the source says {found!r}; leave one of them out")
        return stated

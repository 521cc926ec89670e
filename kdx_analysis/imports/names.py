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
_SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_METRIC_OF = {"acc": "accuracy"}
_PERCENT = {"%", "pct", "percent", "percentage"}
_SEED = re.compile(r"\+?([0-9]{1,100})(\.0*)?")


@dataclass(frozen=True)
class SourceRun:
    """One run, under the source's own names.

    Attributes:
        name: where it stands in the source.
        settings: what the source says of the run as a whole.
        metrics: columns name, step (NaN where there is none), value, n (NaN where it is not known).
        epochs: whether ``step`` counts epochs by the source's own word.
        percent: names whose values the source wrote with a percent sign; they stand without it.
        left_out: names in the source that were not read.
    """

    name: str
    settings: Mapping[str, Any]
    metrics: pd.DataFrame
    epochs: bool = False
    left_out: tuple[str, ...] = ()
    percent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Reading:
    """What a name in the source stands for.

    ``factor`` turns its values into ours (0.01 for percent). ``declared``: its unit was said, by
    the user or by the source itself.
    """

    split: str
    metric: str
    factor: float = 1.0
    declared: bool = False

    @property
    def percent(self) -> bool:
        """Whether the source's values are in percent."""
        return self.factor != 1.0

    @classmethod
    def parse(cls, text: str) -> Reading:
        """``split/metric``, as ``test/accuracy``, or ``test/accuracy%`` for values in percent."""
        split, slash, metric = text.partition("/")
        if split not in SPLITS or not slash or not metric.strip("% "):
            raise KdxError(
                f"{text!r} names no metric; write split/metric with a split of "
                f"{', '.join(SPLITS)}, as test/accuracy, or test/accuracy% for values in percent"
            )
        name = metric.removesuffix("%").strip()
        return cls(
            split,
            _METRIC_OF.get(name.lower(), name),
            0.01 if metric.endswith("%") else 1.0,
            declared=True,
        )


@dataclass(frozen=True)
class Names:
    """How a source is to be read.

    Attributes:
        keys: run keys that are the same for all runs of the source.
        columns: run key (or run, epoch, n, split, metric, value) → its name in the source, where
            that is another.
        metrics: name in the source → ``split/metric``; names that hold just one of train, val and
            test need none.
        steps_per_epoch: by which steps are divided; by default a metric named ``epoch`` says the
            epoch of each step, and where there is none steps are epochs.
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
            Reading.parse(text)
        if self.steps_per_epoch is not None and self.steps_per_epoch < 1:
            raise KdxError(f"steps_per_epoch is {self.steps_per_epoch}: it must be at least 1")

    def column(self, key: str) -> str:
        """The source's name for one of our keys."""
        return self.columns.get(key, key)

    def columns_of(self, *keys: str) -> set[str]:
        """:meth:`column` of several keys."""
        return {self.column(key) for key in keys}

    def reading(self, name: str) -> Reading | None:
        """What a name in the source stands for, or None if it does not say so."""
        if name in self.metrics:
            return Reading.parse(self.metrics[name])
        words = words_of(name)
        splits = [_SPLIT_OF[word] for word in words if word in _SPLIT_OF]
        rest = [
            _METRIC_OF.get(word, word)
            for word in words
            if word not in _SPLIT_OF and word not in _PERCENT
        ]
        percent = not _PERCENT.isdisjoint(words)
        if len(splits) != 1 or not rest:
            return None
        return Reading(splits[0], "_".join(rest), 0.01 if percent else 1.0, declared=percent)

    def key(self, name: str, settings: Mapping[str, Any], where: str) -> Any:
        """A run key as stated or as the ``settings`` have it; None if neither says.

        A seed is a whole number, and ``where`` says where the run stands. Raises KdxError where the
        two contradict each other, where a column is named that is not there, and for a seed that is
        no whole number.
        """
        column = self.column(name)
        if name in self.columns and column not in settings:
            raise unknown(f"name of {name!r} in the source", column, map(str, settings))
        in_source, stated = settings.get(column), self.keys.get(name)
        if name == "seed":
            in_source, stated = (
                None if seed is None else whole_seed(seed, where) for seed in (in_source, stated)
            )
        if name not in self.keys:
            return in_source
        if in_source is not None and str(in_source) != str(stated):
            raise KdxError(
                f"{name} is stated as {stated!r}, but the source says {in_source!r}; leave one of "
                "them out"
            )
        return stated


def words_of(name: str) -> list[str]:
    """The words of a name, in lower case: ``valAcc (%)`` is val, acc, %."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return re.findall(r"[a-z0-9]+|%", apart.lower())


def whole_seed(value: Any, where: str) -> int:
    """A seed as the whole number that it is, of any size and never by way of a float.

    ``3.0``, as pandas writes a column of whole numbers with a gap, is 3, and ``0007`` is 7.

    Raises KdxError for what is no whole number from 0, and for one that a float could not hold
    apart from the next.
    """
    text = f"{value:.1f}" if isinstance(value, float) and value.is_integer() else str(value).strip()
    match = None if isinstance(value, bool) else _SEED.fullmatch(text)
    if match is None:
        raise KdxError(f"the seed of {where} is {value!r}, no whole number from 0")
    number = int(match[1])
    if match[2] is not None and number >= 2**53:  # from there on not every whole number is a float
        raise KdxError(
            f"the seed of {where} is {value!r}, rounded to a float: write it as a whole number"
        )
    return number

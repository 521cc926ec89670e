"""The unit of an imported figure: a share, per cent, or neither.

It belongs to the metric, never to one value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from kdx_analysis.errors import KdxError
from kdx_analysis.imports.names import Names, Reading, SourceRun, words_of

_SHARE = re.compile(
    r"(acc|accuracy|err|error|agreement|prec|precision|recall|sensitivity|specificity|f1|auc|auroc"
    r"|ece|iou|miou|fidelity)\d*|top\d+"
)
_LOW_IS_GOOD = re.compile(r"(err|error|ece)\d*")
_LOSS = re.compile(r"loss|losses|nll")
# Words of names that are no share, whatever else stands in them: mean_squared_error, train_time.
_NEITHER = re.compile(
    r"loss|losses|nll|entropy|perplexity|ppl|mse|mae|rmse|squared?|absolute|kl|divergence|times?"
    r"|sec|seconds|minutes|hours|duration|runtime"
)
# Words of figures that may well lie in 0 to 100 and are no percentages.
_COUNTED = re.compile(
    r"lr|learning|steps?|epochs?|iterations?|batch|samples|images|count|number|num|n|norm|grad"
    r"|gradients?|memory|mem|mb|gb|gib|throughput|speed|fps|flops|macs|params|parameters"
    r"|temperature|tau|gamma|weight|decay|momentum"
)
_AMBIGUOUS = re.compile(r"prec|precision")


def is_share(metric: str) -> bool:
    """Whether a metric of this name is a share in [0, 1], as every accuracy, error and agreement.

    >>> [is_share(name) for name in ("accuracy_top5", "error", "hard_loss", "score")]
    [True, True, False, False]
    >>> is_share("mean_squared_error")
    False
    """
    return _named(metric, _SHARE) and not _named(metric, _NEITHER)


def surely_metric(name: str) -> bool:
    """Whether a column of numbers is surely a metric by its name, and none of settings.

    ``precision`` or ``top_k`` may be a setting.
    """
    return _named(name, _LOSS) or (is_share(name) and not _named(name, _AMBIGUOUS))


@dataclass(frozen=True)
class _Column:
    """What one name stands for, its values in all runs of the source, and the run of each.

    Values are in our unit.
    """

    name: str
    reading: Reading
    values: np.ndarray
    runs: np.ndarray

    def where(self, value: int) -> str:
        return str(self.runs[value])

    @property
    def metric(self) -> str:
        return self.reading.metric

    @property
    def kind(self) -> str:
        return f"{self.reading.split}/{self.metric}"

    @property
    def share(self) -> bool:
        return is_share(self.metric) or self.reading.percent


def readings(runs: Sequence[SourceRun], names: Names, source: str) -> dict[str, Reading]:
    """What every name of a source stands for, once its values agree with its unit.

    The values are those of all runs. A share that is not said to be in percent lies in [0, 1]. Its
    unit has to be said where the values can be read in two ways: all of them 0 or 1; an error, of
    which 0.5 % is as likely as 50 %; beside another share of the source that is in percent. So has
    that of a figure of another name which lies in 0 to 100.

    Raises KdxError, with what to write, for values that don't fit their unit or could be of two.
    """
    columns = list(_columns(runs, names, source))
    for column in columns:
        if column.share:
            _refuse_outside(column)
        elif not column.reading.declared:
            _refuse_unnamed(column)
    percent = next((column.name for column in columns if column.reading.percent), None)
    for column in columns:
        if column.share and not column.reading.declared and len(column.values):
            _refuse_ambiguous(column, columns, percent)
    return {column.name: column.reading for column in columns}


def _columns(runs: Sequence[SourceRun], names: Names, source: str) -> Iterator[_Column]:
    rows = pd.concat(
        [run.metrics[["name", "value"]].assign(run=f"{source}, {run.name}") for run in runs]
    )
    signed = {name for run in runs for name in run.percent}
    for key, figures in rows.groupby("name", sort=False):
        name, measured = str(key), figures.dropna(subset="value")  # NaN has no unit
        if (reading := names.reading(name)) is None:
            continue
        if name in signed:
            reading = replace(reading, factor=0.01, declared=True)
        if reading.percent and _named(reading.metric, _NEITHER):
            raise KdxError(
                f"{name!r} of {source} is {reading.metric}, which can't be in percent: map it "
                "without %"
            )
        values = measured["value"].to_numpy(dtype=float) * reading.factor
        yield _Column(name, reading, values, measured["run"].to_numpy())


def _refuse_ambiguous(column: _Column, columns: Sequence[_Column], percent: str | None) -> None:
    """A share whose unit nobody said is refused where its values could be of two.

    ``percent`` is the first of all columns that is in percent.
    """
    if percent is not None and column.name != percent:
        raise _unsaid(column, f"{percent!r} is in percent, which says nothing of {column.name!r}")
    if _named(column.metric, _LOW_IS_GOOD) and (column.values > 0).any():
        value = column.values[column.values > 0][0]
        raise _unsaid(column, f"a {column.metric} of {value:g} may be {value:g} % or {value:.0%}")
    alike = np.concatenate([c.values for c in columns if c.share and c.metric == column.metric])
    if np.isin(alike, (0, 1)).all() and (alike == 1).any():
        raise _unsaid(
            column,
            f"its values are 1 throughout (or 0), which is 1 % or 100 %, in {column.where(0)}",
        )


def _refuse_outside(column: _Column) -> None:
    outside = ~((column.values >= 0) & (column.values <= 1))
    if not outside.any():
        return
    i = int(outside.argmax())
    value, where = column.values[i] / column.reading.factor, column.where(i)
    if column.reading.percent:
        raise KdxError(
            f"{column.name} is {value:g} in {where}, no percentage in [0, 100]: look at the source"
        )
    raise KdxError(
        f"{column.name} is {value:g} in {where}, no share of images in [0, 1]: if it is in "
        f"percent, map it as {column.name}={column.kind}%"
    )


def _refuse_unnamed(column: _Column) -> None:
    """A figure that is no known share, in 0 to 100, may be one all the same, in percent."""
    if _named(column.metric, _NEITHER) or _named(column.metric, _COUNTED):
        return
    finite = column.values[np.isfinite(column.values)]
    if len(finite) and finite.min() >= 0 and 1 < finite.max() <= 100:
        i = int((column.values == finite.max()).argmax())
        raise _unsaid(
            column,
            f"{column.name} is {finite.max():g} in {column.where(i)}, in percent or as it is",
        )


def _unsaid(column: _Column, why: str) -> KdxError:
    otherwise = "it is a share in [0, 1]" if column.share else "it is not"
    return KdxError(
        f"the unit of {column.name!r} can't be told: {why}; map it as {column.name}={column.kind}% "
        f"if it is in percent, or as {column.name}={column.kind} if {otherwise}"
    )


def _named(metric: str, words: re.Pattern[str]) -> bool:
    """Whether one of a name's words is one of ``words``; ``top_5`` and ``top-5`` are top5."""
    joined = re.sub(r"(?i)top[^a-z0-9]+(?=\d)", "top", metric)
    return any(words.fullmatch(word) for word in words_of(joined))

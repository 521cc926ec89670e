import math
from functools import cache

import pandas as pd
import pytest
import torch

from kdx_analysis.errors import KdxError
from kdx_analysis.probes import MetricRecord, ablate, conflict_of, gates_of
from kdx_analysis.probes.gates.record import GateRecord
from tests.probes.subjects import small

IMAGES = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3


@cache
def gates(seed: int) -> GateRecord:
    model = small(experts=2)
    with torch.no_grad():
        for logits in model.gate_parameters():
            logits.add_(torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed)))
    return gates_of(model, IMAGES, LABELS)


@cache
def measured(*seeds: int) -> MetricRecord:
    return MetricRecord.of({str(seed): gates(seed) for seed in seeds})


def test_means_over_runs_are_those_of_what_each_run_says() -> None:
    frame = measured(0).merge(measured(1), measured(2)).to_frame()
    keys = ["of", "level", "attention", "metric"]
    expected = pd.concat([gates(seed).summary(null_draws=1) for seed in range(3)]).groupby(
        keys, sort=False
    )["value"]
    pd.testing.assert_series_equal(frame.set_index(keys)["value"], expected.mean())
    assert (frame["lowest"] <= frame["value"]).all()
    assert (frame["values"] == 3).all()
    assert (frame["undefined"] == 0).all()


def test_runs_merge_in_any_order_and_are_counted() -> None:
    one, two, three = (measured(seed) for seed in range(3))
    whole, other = one.merge(two, three).to_frame(), three.merge(one).merge(two).to_frame()
    pd.testing.assert_frame_equal(whole, other)
    with pytest.raises(KdxError, match="runs 0, 0 can't be merged"):
        one.merge(one)


def test_a_run_without_a_value_is_counted() -> None:
    table = measured(0).merge(measured(1)).table.copy()
    table.loc[0, "value"] = math.nan
    row = MetricRecord(table).to_frame().iloc[0]
    assert (row["values"], row["undefined"]) == (1, 1)
    _, axes = MetricRecord(
        table[table["attention"] == "alpha"].assign(attention="effective")
    ).plot()
    assert "1 undefined value left out" in axes[0].get_title(loc="left")


def test_conflict_and_faithfulness_have_measures_too() -> None:
    model = small(experts=2)
    conflict = conflict_of(model, IMAGES, LABELS, null_draws=19, permutations=19)
    faith = ablate(model, IMAGES, LABELS, permutations=9)
    assert "modulation" in set(MetricRecord.of({"a": conflict}).to_frame()["metric"])
    assert list(MetricRecord.of({"a": faith}).keys) == ["level", "attention", "measure"]
    for records in ({}, {"a": conflict, "b": faith}):
        with pytest.raises(KdxError, match="all of one kind"):
            MetricRecord.of(records)
    with pytest.raises(KdxError, match="can't be merged"):
        MetricRecord.of({"a": conflict}).merge(MetricRecord.of({"b": faith}))


def test_a_run_that_was_probed_more_often_counts_once() -> None:
    images, labels = torch.randn(12, 1, 8, 8).double(), torch.arange(12) % 3
    one = conflict_of(small(), images, labels, null_draws=19)
    other = conflict_of(small(), -images, labels, null_draws=19)
    table = MetricRecord.of({"a": one.merge(one, one), "b": other}).to_frame()
    expected = MetricRecord.of({"a": one, "b": other}).to_frame()
    pd.testing.assert_frame_equal(table, expected)
    assert (table["values"] + table["undefined"] == 2).all()

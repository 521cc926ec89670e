"""Means side by side are over what all of them have."""

import numpy as np
import pandas as pd
import pytest

from kdx_analysis.pairing import shared
from kdx_analysis.probes.affinity import mean_over_epochs
from kdx_analysis.runs.statistics.paired import by_seed, coverage, effects, effects_together, paired
from tests.report.conftest import EPOCHS, write_study


def by_epoch(**columns):
    rows = pd.MultiIndex.from_product([[0, 1], [1, 9, 16]], names=["seed", "epoch"])
    return pd.DataFrame(columns, index=rows, dtype=float)


NAN = np.nan
EQUAL = by_epoch(hard=[NAN, 0.4, 0.6, NAN, 0.5, 0.7], kd=[0.0, 0.4, 0.6, 0.1, 0.5, 0.7])


def test_equal_objectives_differ_by_nothing_whatever_is_missing():
    difference = paired(EQUAL, "kd", "hard")
    assert difference.differences == (0, 0)
    assert difference.levels == pytest.approx((0.55, 0.55))
    assert str(difference.coverage) == "2 of 3 epochs"
    assert not difference.coverage.complete


def test_a_seed_without_a_common_epoch_is_counted():
    table = by_epoch(hard=[NAN, 0.4, 0.6, NAN, NAN, 0.7], kd=[0.0, 0.4, 0.5, 0.1, 0.5, NAN])
    difference = paired(table, "kd", "hard")
    assert (difference.n, difference.differences) == (1, pytest.approx((-0.05,)))
    assert str(difference.coverage) == "2 of 3 epochs, 1 of 2 seeds left out"


def test_no_common_epoch_at_all():
    assert paired(by_epoch(hard=[NAN, 1, NAN] * 2, kd=[1, NAN, NAN] * 2), "kd", "hard") is None


def test_pairs_of_subtasks_are_compared_on_those_that_both_have():
    rows = pd.MultiIndex.from_product(
        [[0], [1, 9], ["0-1", "0-2", "1-2"]], names=["seed", "epoch", "pair"]
    )
    table = pd.DataFrame(
        {"hard": [1, NAN, 0, 1, 1, 0], "kd": [1, 0, 0, 1, 1, 1]}, index=rows, dtype=float
    )
    difference = paired(table, "kd", "hard")
    assert difference.mean == pytest.approx((0 + 1 / 3) / 2)  # (½ − ½), then (1 − ⅔)
    assert str(difference.coverage) == "2 epochs, 1 of 6 values of pairs left out"
    assert paired(table, "kd", "hard", over_pairs="median").mean == pytest.approx(0)


def test_a_division_takes_the_epochs_that_all_rungs_have():
    table = EQUAL.assign(kd_flat=[0.0, NAN, 0.6, 0.1, 0.5, 0.7])
    shared = by_seed(table[["hard", "kd_flat", "kd"]])
    assert shared["kd"].tolist() == pytest.approx([0.6, 0.6])
    assert str(coverage(table, ["hard", "kd_flat", "kd"])) == "1 to 2 of 3 epochs"


def test_a_missing_run_asks_nothing_of_the_others():
    table = EQUAL.assign(label_smoothing=[0.1, 0.2, 0.3, NAN, NAN, NAN])
    assert shared(table, ["seed"])["kd"].notna().tolist() == [False, True, True] * 2


def test_where_nothing_is_shared_each_keeps_its_own_and_nothing_is_compared():
    table = by_epoch(hard=[0.1, 0.4, NAN] * 2, kd=[NAN, NAN, 0.8] * 2)
    assert shared(table, ["seed"]).equals(table)
    assert paired(table, "kd", "hard") is None
    assert effects_together({"separation": table}, "hard") == {"separation": ()}


def test_stars_hold_over_all_metrics():
    rng = np.random.default_rng(0)
    tables = {
        name: pd.DataFrame(rng.normal(size=(7, 4)), columns=list("abcd"))
        for name in ("severity", "accuracy")
    }
    together = effects_together(tables, "a")
    assert all(
        effect.confidence == pytest.approx(1 - 0.05 / 6)
        for several in together.values()
        for effect in several
    )
    alone = [effect for table in tables.values() for effect in effects(table, "a")]
    assert all(effect.confidence == pytest.approx(1 - 0.05 / 3) for effect in alone)
    assert min(effect.p for several in together.values() for effect in several) >= min(
        effect.p for effect in alone
    )


def test_affinity_and_its_null_are_means_over_the_same_epochs():
    keys = {"split": "train", "metric": "affinity", "a": "x", "b": "y", "a_index": 0, "b_index": 1}
    table = pd.DataFrame(
        [
            {
                **keys,
                "epoch": epoch,
                "null_draws": 39,
                "eta": 0.01,
                "n": 6,
                "value": value,
                "null_mean": null,
                "undefined": int(value != value),
            }
            for epoch, value, null in ((1, NAN, 9.0), (9, 0.2, 0.1), (16, 0.4, 0.3))
        ]
    )
    row = mean_over_epochs(table).iloc[0]
    assert (row["value"], row["null_mean"]) == (pytest.approx(0.3), pytest.approx(0.2))
    assert (row["epochs"], row["probed"], row["undefined"]) == (2, 3, 1)


@pytest.fixture
def runs(tmp_path):
    """Separation is the same under both objectives at every epoch, and 0/0 at the first under hard
    alone.
    """
    study = write_study(tmp_path, ("hard", "kd"), 3, {}, roles=["explainer"])
    levels = dict(zip(EPOCHS, (0.0, 0.4, 0.8), strict=True))
    for run in study.filter(role="explainer"):
        path = run.path / "records" / "contention.parquet"
        table = pd.read_parquet(path)
        here = table["metric"] == "separation"
        table.loc[here, "value"] = table.loc[here, "epoch"].map(levels) + 0.1 * run.seed
        if run.objective == "hard":
            table.loc[here & (table["epoch"] == EPOCHS[0]), "value"] = NAN
        table.to_parquet(path)
    return type(study).load(tmp_path)


def test_a_figure_that_is_undefined_under_one_objective_alone_makes_no_difference(runs):
    difference = runs.paired("separation", "kd", "hard")
    assert difference.mean == pytest.approx(0)
    assert str(difference.coverage) == "2 of 3 epochs"
    values = runs.values("separation")
    assert (values["kd"] - values["hard"]).tolist() == pytest.approx([0, 0, 0])
    table = runs.compare("separation").to_frame().set_index("objective")
    assert table.loc["kd", "difference"] == pytest.approx(0)
    assert set(table["over"]) == {"2 of 3 epochs"}
    own = runs.to_frame().query("metric == 'separation' and split == 'train'").groupby("objective")
    assert own["epochs"].first().to_dict() == {"hard": 2, "kd": 3}

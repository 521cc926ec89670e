import numpy as np
import pandas as pd
import pytest

from kdx_analysis.runs import RunSet
from tests.report.conftest import write_study


@pytest.fixture
def one_expert_last(tmp_path):
    """Explainers of 2, 3 and 1 experts: the heads have nothing to choose, nor has the last level
    anything to divide.
    """
    for run in write_study(tmp_path, ("hard", "kd"), 2, {}, roles=["explainer"]).filter(
        role="explainer"
    ):
        info = (run.path / "run.json").read_text()
        assert '"experts": [\n    1,\n    2\n  ]' in info
        (run.path / "run.json").write_text(
            info.replace("    1,\n    2\n", "    1,\n    2,\n    3,\n    1\n")
        )
    return RunSet.load(tmp_path)


def test_the_heads_and_the_last_level_are_those_and_no_lower_ones(one_expert_last):
    frame = one_expert_last.to_frame()
    gates = frame[frame["metric"].isin(["gate_entropy", "specialisation"])]
    assert len(gates)
    assert gates[["value", "null"]].isna().all(axis=None)
    assert one_expert_last.values("gate_entropy").isna().all(axis=None)


def test_a_figure_and_its_null_are_means_over_the_same_epochs(tmp_path):
    runs = write_study(tmp_path, ("hard",), 1, {}, roles=["explainer"]).filter(role="explainer")
    path = runs.runs[0].path / "records" / "contention.parquet"
    table = pd.read_parquet(path)
    here = (table["metric"] == "modulation") & (table["split"] == "train")
    table.loc[here, "value"], table.loc[here, "null_mean"] = [np.nan, 0.2, 0.4], [9.0, 0.1, 0.3]
    table.to_parquet(path)
    row = (
        RunSet.load(tmp_path)
        .filter(role="explainer")
        .to_frame()
        .query("metric == 'modulation' and split == 'train'")
    )
    assert row[["value", "null", "epochs", "probed"]].to_numpy()[0].tolist() == pytest.approx(
        [0.3, 0.2, 2, 3]
    )

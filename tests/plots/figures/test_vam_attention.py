"""VAM's attention at the selected epoch, and runs that have none."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from kdx_analysis import plots
from kdx_analysis.errors import AbsentError, KdxError
from kdx_analysis.runs import RunSet
from tests.planted_arms import SETTINGS, write_arms


def test_attention_shows_one_run_an_objective_at_the_selected_epoch(attended: RunSet) -> None:
    data = plots.vam_attention.data(attended)
    assert data.groupby("objective")[["seed", "epoch"]].nunique().to_numpy().tolist() == [
        [1, 1],
        [1, 1],
    ]
    assert data["epoch"].unique().tolist() == [2]
    assert len(data) == 2 * 3 * 9  # two runs, three layers
    kd = data.query("objective == 'kd'")
    assert kd["alpha"].tolist() == kd["column"].eq(1).astype(float).tolist()
    assert data.query("objective == 'hard'")["alpha"].to_numpy() == pytest.approx(1 / 3)
    figure, axes = plots.vam_attention(attended)
    assert axes.shape == (4, 3)
    assert [ax.get_xlabel() for ax in axes[-1]] == ["stages.1.0", "stages.2.0", "stages.3.0"]
    assert "seed 0, epoch 2" in figure.get_suptitle()


def test_arms_stand_in_rows_of_their_own(tmp_path: Path) -> None:
    two_seeds = {arm: [0.5, 0.52] for arm in SETTINGS}
    runs = write_arms(tmp_path, {"hard": two_seeds, "kd": two_seeds})
    data = plots.vam_attention.data(runs)
    one_run = data.groupby(["objective", "vam"], sort=False)["seed"].nunique()
    assert one_run.index.tolist() == list(
        product(("hard multiclass", "kd multiclass"), ("vam", "vam_entropy"))
    )
    assert one_run.unique().tolist() == [1]
    _, axes = plots.vam_attention(runs)
    assert axes.shape == (2 * 4, 3)
    assert axes[6, 0].get_ylabel() == "kd multiclass\nvam_entropy\nattention α"

    figure, axes = plots.vam_entropy(runs)
    assert [ax.get_title(loc="left") for ax in axes[:, 0]] == [
        "digits_student\nvam\nattention α",
        "digits_student\nvam_entropy\nattention α",
    ]
    assert [[len(ax.lines) for ax in row] for row in axes] == 2 * [
        [8, 8]
    ]  # 2 objectives, 2 seeds, each on its null
    assert "n = 2 runs per panel and objective" in figure.legends[0].get_title().get_text()


def test_attention_of_two_students_is_not_mixed(tmp_path: Path) -> None:
    write_arms(tmp_path / "a", {"kd": {"vam": [0.5]}})
    write_arms(tmp_path / "b", {"kd": {"vam": [0.5]}}, model="resnet20")
    runs = RunSet.load(tmp_path)
    with pytest.raises(
        KdxError, match="the layers of digits_student and resnet20 differ; filter the runs by model"
    ):
        plots.vam_attention(runs)
    _, axes = plots.vam_entropy(runs)
    assert {ax.get_title(loc="left") for ax in axes[:, 0]} == {
        "digits_student\nvam\nattention α",
        "resnet20\nvam\nattention α",
    }


def test_runs_without_vam_are_named(small: RunSet) -> None:
    for figure in (plots.vam_attention, plots.vam_entropy):
        with pytest.raises(AbsentError, match="none of the 5 runs has VAM"):
            figure(small)

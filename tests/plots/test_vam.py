from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch

from kdx_analysis import plots
from kdx_analysis.errors import AbsentError, KdxError
from kdx_analysis.models import MODELS, vam
from kdx_analysis.probes.vam import block_gates, row_entropies
from kdx_analysis.runs import RunSet, write_run
from tests.planted_arms import write_arms

ACCURACIES = {
    "plain": [0.50, 0.52, 0.51],
    "vam": [0.51, 0.51, 0.54],
    "vam_entropy": [0.54, 0.54, 0.54],
}


@pytest.fixture
def attended(tmp_path: Path) -> RunSet:
    """Two objectives, two seeds, two epochs; the gates of epoch 2 are one-hot under kd."""
    for objective in ("hard", "kd"):
        for seed in (0, 1):
            torch.manual_seed(seed)
            model = MODELS["digits_student"](3, 1)
            vam.attach(model, 3)
            gates = []
            for epoch in (1, 2):
                for logits in vam.gate_parameters(model):
                    torch.nn.init.zeros_(logits)
                    if objective == "kd" and epoch == 2:
                        logits.data[:, 1] = 1e3
                gates.append(block_gates(model, torch.randn(2, 1, 8, 8)).assign(epoch=epoch))
            records = {
                "vam_gates": pd.concat(gates, ignore_index=True),
                "vam_entropy": pd.concat(
                    [row_entropies(g).assign(epoch=e) for e, g in enumerate(gates, 1)]
                ),
            }
            info = {
                "id": f"{objective}{seed}",
                "study": "made",
                "role": "student",
                "objective": objective,
                "seed": seed,
                "decomposition": "multiclass",
                "config": {"model": "digits_student"},
                "data": {"classes": ["a", "b", "c"]},
                "selection": {"rule": "last", "split": "val", "epoch": 2},
            }
            write_run(tmp_path / info["id"], info, records)
    return RunSet.load(tmp_path)


def test_attention_shows_one_run_an_objective_at_the_selected_epoch(attended: RunSet) -> None:
    data = plots.vam.attention.data(attended)
    assert data.groupby("objective")[["seed", "epoch"]].nunique().to_numpy().tolist() == [
        [1, 1],
        [1, 1],
    ]
    assert data["epoch"].unique().tolist() == [2]
    assert len(data) == 2 * 3 * 9  # two runs, three layers
    kd = data.query("objective == 'kd'")
    assert kd["alpha"].tolist() == kd["column"].eq(1).astype(float).tolist()
    assert data.query("objective == 'hard'")["alpha"].to_numpy() == pytest.approx(1 / 3)
    figure, axes = plots.vam.attention(attended)
    assert axes.shape == (4, 3)
    assert [ax.get_xlabel() for ax in axes[-1]] == ["stages.1.0", "stages.2.0", "stages.3.0"]
    assert "seed 0, epoch 2" in figure.get_suptitle()


def test_entropy_is_the_mean_over_rows_of_every_run(attended: RunSet) -> None:
    data = plots.vam.entropy.data(attended).set_index(["objective", "seed", "epoch", "attention"])
    assert len(data) == 2 * 2 * 2 * 2
    assert data["n"].unique().tolist() == [9]
    assert data.loc[("kd", 0, 2, "alpha"), "value"] == pytest.approx(0)
    assert data.loc[("kd", 0, 1, "alpha"), "value"] == pytest.approx(1)
    assert data["initial"].xs("alpha", level="attention").to_numpy() == pytest.approx(1)
    _, axes = plots.vam.entropy(attended)
    assert [len(ax.lines) for ax in axes[0]] == [8, 8]


def test_arms_stand_in_rows_of_their_own(tmp_path: Path) -> None:
    two_seeds = {arm: values[:2] for arm, values in ACCURACIES.items()}
    runs = write_arms(tmp_path, {"hard": two_seeds, "kd": two_seeds})
    data = plots.vam.attention.data(runs)
    one_run = data.groupby(["objective", "vam"], sort=False)["seed"].nunique()
    assert one_run.index.tolist() == list(
        product(("hard multiclass", "kd multiclass"), ("vam", "vam_entropy"))
    )
    assert one_run.unique().tolist() == [1]
    _, axes = plots.vam.attention(runs)
    assert axes.shape == (2 * 4, 3)
    assert axes[6, 0].get_ylabel() == "kd multiclass\nvam_entropy\nattention α"

    figure, axes = plots.vam.entropy(runs)
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
        plots.vam.attention(runs)
    _, axes = plots.vam.entropy(runs)
    assert {ax.get_title(loc="left") for ax in axes[:, 0]} == {
        "digits_student\nvam\nattention α",
        "resnet20\nvam\nattention α",
    }


def test_arms_are_drawn_seed_by_seed_beside_their_differences(tmp_path: Path) -> None:
    write_arms(tmp_path / "a", {"kd": ACCURACIES})
    write_arms(tmp_path / "b", {"kd": {"plain": [0.7], "vam": [0.6]}}, model="resnet20")
    data = plots.arms.data(RunSet.load(tmp_path))
    assert data.groupby("student").size().to_dict() == {"digits_student": 9, "resnet20": 2}
    assert data["reference"].unique().tolist() == ["plain"]
    assert data["n"].unique().tolist() == [40]
    figure, axes = plots.arms.draw(data)
    (left, right), (one_seed, _) = axes
    assert [text.get_text() for text in left.get_xticklabels()] == []  # shared, below
    assert [text.get_text() for text in one_seed.get_xticklabels()] == [
        "plain",
        "vam",
        "vam_entropy",
    ]
    joined = [
        line for line in left.lines if len(line.get_xdata()) == 3 and line.get_marker() == "None"
    ]
    assert [line.get_ydata().tolist() for line in joined] == [
        [50, 51, 54],
        [52, 51, 54],
        [51, 54, 54],
    ]
    points = [line.get_xdata() for line in right.lines if line.get_marker() == "o"]
    assert points == [pytest.approx([1, -1, 3]), pytest.approx([4, 2, 3])]
    assert len(one_seed.collections) == 0  # no mean of one
    assert "n = 1–3 seeds per arm, 40 test images" in figure.get_suptitle()


def test_runs_of_no_arms_have_no_figure_of_them(small: RunSet) -> None:
    with pytest.raises(AbsentError, match="the 5 runs hold no two arms of VAM"):
        plots.arms(small)


def test_runs_without_vam_are_named(small: RunSet) -> None:
    for figure in (plots.vam.attention, plots.vam.entropy):
        with pytest.raises(AbsentError, match="none of the 5 runs has VAM"):
            figure(small)

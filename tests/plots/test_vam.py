from pathlib import Path

import pandas as pd
import pytest
import torch

from kdx_analysis import plots
from kdx_analysis.errors import KdxError
from kdx_analysis.models import MODELS, vam
from kdx_analysis.probes.vam import block_gates, row_entropies
from kdx_analysis.runs import RunSet, write_run


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
                "vam_entropy": pd.concat([row_entropies(g).assign(epoch=e) for e, g in enumerate(gates, 1)]),
            }
            info = {
                "id": f"{objective}{seed}", "study": "made", "role": "student", "objective": objective, "seed": seed,
                "decomposition": "multiclass", "config": {}, "data": {"classes": ["a", "b", "c"]},
                "selection": {"rule": "last", "split": "val", "epoch": 2},
            }  # fmt: skip
            write_run(tmp_path / info["id"], info, records)
    return RunSet.load(tmp_path)


def test_attention_shows_one_run_an_objective_at_the_selected_epoch(attended: RunSet) -> None:
    data = plots.vam.attention.data(attended)
    assert data.groupby("objective")[["seed", "epoch"]].nunique().to_numpy().tolist() == [[1, 1], [1, 1]]
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
    assert [len(ax.lines) for ax in axes] == [8, 8]


def test_runs_without_vam_are_named(small: RunSet) -> None:
    for figure in (plots.vam.attention, plots.vam.entropy):
        assert figure.name not in plots.FIGURES
        with pytest.raises(KdxError, match="none of the 5 runs has VAM"):
            figure(small)

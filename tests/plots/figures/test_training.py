"""The health of the training."""

from __future__ import annotations

from kdx_analysis import plots
from kdx_analysis.io import read_parquet
from kdx_analysis.runs import RunSet
from tests.plots.conftest import EPOCHS


def test_training_draws_the_teacher_at_its_selected_epoch(small: RunSet) -> None:
    _, axes = plots.training(small)
    teacher = read_parquet(
        small.filter(role="teacher").runs[0].path / "records" / "metrics.parquet"
    )
    value = teacher.query(f"split == 'val' and metric == 'accuracy' and epoch == {EPOCHS[-1]}")[
        "value"
    ].item()
    assert [ax.get_title(loc="left") for ax in axes[:, 0]] == ["student", "explainer"]
    assert all([value, value] in [list(line.get_ydata()) for line in ax.lines] for ax in axes[:, 0])

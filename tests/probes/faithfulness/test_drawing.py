"""Figures of faithfulness: what is drawn is what the records hold."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, build_model
from kdx_analysis.probes import Explanation, explain


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 8, 8, generator=generator)
    torch.manual_seed(0)
    model = HME.from_student(build_model("digits_student", 3, 3), 3, [3, 1, 2])
    return explain(model, images, torch.arange(12) % 3, 1, ["a_b", "$5", "cat"], shown=2)


def test_bars_are_the_classes_row_of_the_table_and_heat_its_path(explanation: Explanation) -> None:
    figure, axes = explanation.plot()
    assert plt.get_fignums() == []
    assert axes.shape == (4, 4)
    table = explanation.ablation.to_frame().query("subtask == '$5'")
    for row, level in zip(axes[1:], (2, 3, 4), strict=True):
        at = table[table["level"] == level]
        for ax, column in ((row[2], "effective"), (row[3], "drop")):
            assert [bar.get_height() for bar in ax.patches] == pytest.approx(at[column].tolist())
        expert = explanation.path[level - 2]
        assert row[0].get_ylabel() == f"level {level}\nexpert {expert}"
        faces = [bar.get_facecolor() for bar in row[2].patches]
        assert [face != faces[expert] for face in faces].count(False) == 1
    strongest = max(float(of.maps.abs().max()) for of in explanation.attributions)
    heat = axes[3, 1].images[1].get_array()
    expected = explanation.attributions[2].maps[1].abs() / strongest
    np.testing.assert_allclose(heat[..., 3], expected, rtol=1e-6)
    assert axes[0, 0].images[0].get_array().shape == (8, 8, 3)
    assert r"\$5" in figure.get_suptitle()


def test_a_dot_is_a_subtask_and_an_expert_and_the_null_is_stated(explanation: Explanation) -> None:
    record = explanation.ablation
    _, axes = record.plot()
    assert [ax.get_title().split(":")[0] for ax in axes] == [
        "level 2",
        "level 4",
    ]  # level 3 has no choice
    drawn = np.concatenate([dots.get_offsets() for dots in axes[1].collections])
    held = np.stack(
        [record.levels[2].effective.numpy().ravel(), record.levels[2].drop.numpy().ravel()], axis=1
    )
    np.testing.assert_allclose(drawn[np.lexsort(drawn.T)], held[np.lexsort(held.T)])
    row = record.agreement.query(
        "level == 4 and attention == 'effective' and measure == 'drop'"
    ).iloc[0]
    assert f"ρ = {row['value']:.2f}, n = 6" in axes[1].get_title()
    assert f"null {row['null_low']:.2f} to {row['null_high']:.2f}" in axes[1].get_title()


def test_an_axes_of_the_callers_own_takes_the_last_level(explanation: Explanation) -> None:
    figure, ax = plt.subplots()
    assert explanation.ablation.plot(ax)[0] is figure
    assert ax.get_title().startswith("level 4")
    plt.close(figure)


def test_without_a_choice_there_is_nothing_to_draw() -> None:
    model = HME.from_student(build_model("digits_student", 2, 1), 2, 1)
    record = explain(model, torch.randn(4, 1, 8, 8), torch.arange(4) % 2, 0, shown=1)
    record.plot()
    with pytest.raises(KdxError, match="one expert"):
        record.ablation.plot()

"""Every pair of trees, and how many there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdx_analysis import plots
from kdx_analysis.errors import KdxError
from kdx_analysis.models import Tree
from kdx_analysis.runs import RunSet
from tests.planted_trees import random_tree, runs_with


def planted(tmp_path: Path, seeds: range) -> RunSet:
    return runs_with(
        tmp_path,
        {(o, s): random_tree(10 * i + s) for i, o in enumerate(("hard", "kd")) for s in seeds},
    )


def test_agreement_draws_every_pair(tmp_path: Path) -> None:
    runs = planted(tmp_path, range(3))
    data = plots.tree_agreement.data(runs)
    _, axes = plots.tree_agreement.draw(data)
    names = [t.get_text() for t in axes[0].get_yticklabels()]
    assert names == [
        "hard,\ntwo seeds",
        "kd,\ntwo seeds",
        "two objectives,\none seed",
        "neither\nin common",
    ]
    for ax, measure in zip(axes, ("robinson_foulds", "cophenetic_correlation"), strict=True):
        drawn = np.concatenate([line.get_xdata() for line in ax.lines if line.get_marker() == "o"])
        assert sorted(drawn) == pytest.approx(sorted(data.loc[data["measure"] == measure, "value"]))
        assert [t.get_text() for t in ax.texts] == [
            "n = 3 pairs",
            "n = 3 pairs",
            "n = 3 pairs",
            "n = 6 pairs",
        ]


def test_agreement_of_one_seed_says_what_is_not_available(tmp_path: Path) -> None:
    _, axes = plots.tree_agreement(planted(tmp_path, range(1)))
    assert [t.get_text() for t in axes[0].texts] == ["not available", "n = 1 pair", "not available"]
    assert axes[0].get_yticklabels()[0].get_text() == "one objective,\ntwo seeds"


def test_agreement_counts_undefined_pairs(tmp_path: Path) -> None:
    star = Tree(tuple("abcd"), (1, 4), ((0,) * 4, (0, 1, 2, 3)))
    pair = Tree(tuple("abcd"), (1, 2), ((0, 0), (0, 0, 1, 1)))
    runs = runs_with(
        tmp_path, {("hard", 0): star, ("hard", 1): star, ("kd", 0): pair, ("kd", 1): pair}
    )
    _, axes = plots.tree_agreement(runs)
    assert axes[0].texts[0].get_text() == "n = 0 pairs\n1 undefined"
    with pytest.raises(KdxError, match="no tree groups"):
        plots.tree_agreement(runs.filter(objective="hard"))
    with pytest.raises(KdxError, match="one explainer makes no pair"):
        plots.tree_agreement(runs.filter(objective="hard", seed=0))

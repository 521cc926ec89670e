"""Gates are those on disk, and all classes can be read."""

from __future__ import annotations

from kdx_analysis import plots
from kdx_analysis.io import read_parquet
from tests.plots.conftest import EPOCHS, Make
from tests.plots.legible import faults


def test_gates_are_those_of_the_first_seed_at_the_selected_epoch(make: Make) -> None:
    runs = make(("hard", "kd"), (2, 5))
    data = plots.gates.data(runs)
    assert set(data["seed"]) == {2}
    assert sorted(data["level"].unique()) == [3, 4]
    run = runs.filter(role="explainer", objective="kd", seed=2).runs[0]
    disk = read_parquet(run.path / "records" / "gates.parquet").query(
        f"epoch == {EPOCHS[-1]} and level == 4"
    )
    drawn = data.query("objective == 'kd' and level == 4")
    both = drawn.merge(disk, on=["child", "parent"], suffixes=("", "_disk"))
    assert len(both) == len(disk) == 20
    assert (both["effective"] == both["effective_disk"]).all()
    assert (both["alpha"] == both["alpha_disk"]).all()
    rows = (
        data.query("level == 4")
        .groupby("objective")[["child", "row"]]
        .apply(lambda f: frozenset(map(tuple, f.values)))
    )
    assert rows["kd"] == rows["hard"]


def test_a_hundred_names_stand_in_two_columns_or_every_few_do(make: Make) -> None:
    runs = make(("hard", "kd"), (0,), [f"class_{i}" for i in range(100)])
    figure, axes = plots.gates(runs)
    assert faults(figure, "page") == []
    named = [
        t.get_text() for minor in (False, True) for t in axes[0, -1].get_yticklabels(minor=minor)
    ]
    assert sorted(named) == sorted(runs.classes)
    figure, axes = plots.flow(runs, "column")
    assert faults(figure, "column") == []
    assert 20 <= len(axes[-1].get_yticklabels()) <= 50
    assert "class is named, the data name all" in figure.get_suptitle().replace("\n", " ")

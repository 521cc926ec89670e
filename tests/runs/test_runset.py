import math

import pandas as pd
import pytest

from kdx_analysis.errors import KdxError
from kdx_analysis.runs import Run, RunSet, headlines, write_run


def make(path, objective="kd", seed=0, accuracy=0.5, role="student", epochs=2, classes=("ant", "bee")) -> Run:
    config = {"objective": {"name": objective.split()[0]}, "seed": seed, "training": {"epochs": epochs}}
    if role == "teacher":
        del config["objective"]
    identity = f"{role}-{objective.replace(' ', '_')}-{seed}-{epochs}"
    information = {
        "id": identity, "study": "toy", "role": role, "objective": "" if role == "teacher" else objective,
        "decomposition": "binary", "seed": seed, "data": {"classes": list(classes)}, "config": config,
        "selection": {"epoch": epochs},
    }  # fmt: skip
    rows = [(epoch, "val", "accuracy", accuracy - 0.1, 4) for epoch in range(1, epochs + 1)]
    rows.append((epochs, "test", "accuracy", accuracy, 8))
    metrics = pd.DataFrame(rows, columns=["epoch", "split", "metric", "value", "n"])
    return write_run(path / identity, information, {"metrics": metrics})


@pytest.fixture
def runs(tmp_path) -> RunSet:
    make(tmp_path, "kd", 1, 0.8)
    make(tmp_path, "kd", 0, 0.7)
    make(tmp_path, "hard", 1, 0.5)
    make(tmp_path, "hard", 0, 0.6)
    make(tmp_path, "label_smoothing", 0, 0.65)
    make(tmp_path, role="teacher", accuracy=0.9)
    return RunSet.load(tmp_path)


def test_runs_stand_teacher_first_then_by_the_ladder_then_by_seed(runs):
    order = [(run.role, run.objective, run.seed) for run in runs]
    assert order == [
        ("teacher", "", 0), ("student", "hard", 0), ("student", "hard", 1), ("student", "label_smoothing", 0),
        ("student", "kd", 0), ("student", "kd", 1),
    ]  # fmt: skip
    assert runs.objectives == ("hard", "label_smoothing", "kd")
    assert runs.seeds == (0, 1)
    assert len(runs) == 6


def test_a_frame_is_keyed_by_run_seed_objective_and_epoch(runs):
    frame = runs.frame("metrics")
    assert list(frame.columns[:6]) == ["run", "study", "role", "objective", "decomposition", "seed"]
    assert not frame.duplicated(["run", "seed", "objective", "epoch", "split", "metric"]).any()
    assert len(frame) == 6 * 3
    kd = frame.query("objective == 'kd' and seed == 1 and split == 'test'")
    assert kd["value"].tolist() == [0.8]


def test_a_kind_that_no_run_has(runs):
    with pytest.raises(KdxError, match="none of the 6 runs has 'gates' records"):
        runs.frame("gates")


def test_headlines_are_of_the_test_split_only(runs):
    frame = headlines(runs.runs[0])
    assert frame[["metric", "split", "value", "n"]].to_numpy().tolist() == [["accuracy", "test", 0.9, 8]]
    assert len(runs.to_frame()) == 6


def test_values_are_seeds_by_objectives(runs):
    table = runs.values("accuracy", role="student")
    assert list(table.columns) == ["hard", "label_smoothing", "kd"]
    assert list(table.index) == [0, 1]
    assert table.loc[1, "kd"] == 0.8
    assert math.isnan(table.loc[1, "label_smoothing"])


def test_paired_takes_seeds_that_both_have(runs):
    both = runs.paired("accuracy", "kd", "hard", role="student")
    assert both.differences == pytest.approx((0.1, 0.3))
    one = runs.paired("accuracy", "kd", "label_smoothing", role="student")
    assert (one.n, one.mean) == (1, pytest.approx(0.05))
    with pytest.raises(KdxError, match="unknown objective among the runs 'kdd'; did you mean 'kd'"):
        runs.paired("accuracy", "kdd", "hard", role="student")
    with pytest.raises(KdxError, match="unknown headline figure 'acuracy'; did you mean 'accuracy'"):
        runs.paired("acuracy", "kd", "hard", role="student")


def test_duplicates_are_refused_naming_the_differing_key(tmp_path):
    for epochs in (2, 3):
        make(tmp_path, "kd", 0, epochs=epochs)
    message = r"2 runs are student 'kd' with seed 0; they differ in training\.epochs: filter"
    with pytest.raises(KdxError, match=message):
        RunSet.load(tmp_path).values("accuracy", role="student")


def test_the_same_run_twice_differs_in_nothing(tmp_path):
    make(tmp_path / "a", "kd", 0)
    make(tmp_path / "b", "kd", 0)
    with pytest.raises(KdxError, match="they differ in nothing"):
        RunSet.load(tmp_path / "a", tmp_path / "b").values("accuracy", role="student")
    assert len(RunSet.load(tmp_path / "a", tmp_path / "a")) == 1


def test_differences_are_only_the_keys_that_differ(runs, tmp_path):
    assert runs.filter(objective="kd").differences() == {"seed": [0, 1]}
    assert runs.filter(objective=["kd", "hard"], seed=1).differences() == {"objective.name": ["hard", "kd"]}
    assert runs.filter(role="teacher").differences() == {}
    assert runs.filter(seed=0, role=["teacher", "student"]).differences()["objective.name"][0] is None


def test_filter(runs):
    assert [run.objective for run in runs.filter(role="student", seed=1)] == ["hard", "kd"]
    assert len(runs.filter(objective=["kd", "hard"], seed=(0,))) == 2
    assert len(runs.filter(seed=7)) == 0
    with pytest.raises(KdxError, match="unknown key of runs 'sead'; did you mean 'seed'"):
        runs.filter(sead=1)
    with pytest.raises(KdxError, match="there is no run to take figures from"):
        runs.filter(seed=7).to_frame()


def test_runs_still_being_written_are_passed_over(runs, tmp_path):
    source = runs.runs[0].path
    (source.parent / ".half.abc.part").mkdir()
    (source.parent / ".half.abc.part" / "run.json").write_text("{")
    assert len(RunSet.load(tmp_path)) == 6


def test_directories_without_runs(tmp_path):
    with pytest.raises(KdxError, match="no finished run at or below"):
        RunSet.load(tmp_path)
    with pytest.raises(KdxError, match=r"no directory .*missing"):
        RunSet.load(tmp_path / "missing")


def test_classes_are_those_that_all_runs_share(tmp_path):
    make(tmp_path, seed=0)
    make(tmp_path, seed=1)
    assert RunSet.load(tmp_path).classes == ("ant", "bee")
    make(tmp_path, seed=2, classes=("ant", "cat"))
    with pytest.raises(KdxError, match="2 different sets of classes"):
        _ = RunSet.load(tmp_path).classes


def test_headlines_of_an_explainer(finished):
    explainer = finished.runs.filter(role="explainer", objective="kd", seed=0).runs[0]
    frame = headlines(explainer)
    assert set(frame["metric"]) == {
        "accuracy", "agreement", "gate_entropy", "specialisation", "conflict_rate", "severity", "contention",
        "separation", "modulation",
    }  # fmt: skip
    assert not frame.duplicated(["metric", "attention", "split"]).any()
    entropy = frame.query("metric == 'gate_entropy' and attention == 'effective'").iloc[0]
    summary = explainer.record("gate_summary").query(
        "epoch == 2 and of == 'gates' and metric == 'entropy_share' and attention == 'effective'"
    )
    heads = summary[summary["level"] == summary["level"].max()].iloc[0]
    assert (entropy["value"], entropy["null"]) == (heads["value"], heads["initial"])
    conflict = frame.query("metric == 'conflict_rate' and split == 'train'").iloc[0]
    probed = explainer.record("conflict_summary").query(
        "split == 'train' and term == 'hard' and level == 'all' and metric == 'conflict_rate'"
    )
    assert conflict["value"] == pytest.approx(probed["value"].mean())
    assert conflict["n"] == 6

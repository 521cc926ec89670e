import math

import pandas as pd
import pytest

from kdx_analysis.errors import KdxError
from kdx_analysis.runs import Run, RunSet, own_teachers, write_run
from kdx_analysis.runs.tables.table import conditions
from tests.report.conftest import write_study


def make(
    path,
    objective="kd",
    seed=0,
    accuracy=0.5,
    role="student",
    epochs=2,
    classes=("ant", "bee"),
    teacher=None,
) -> Run:
    config = {
        "objective": {"name": objective.split()[0]},
        "seed": seed,
        "training": {"epochs": epochs},
    }
    if role == "teacher":
        del config["objective"]
    identity = f"{role}-{objective.replace(' ', '_')}-{seed}-{epochs}"
    if teacher is not None:
        identity += f"-{teacher}"
        config["teacher"] = f"digest of {teacher}"
    information = {
        "id": identity,
        "study": "toy",
        "role": role,
        "objective": "" if role == "teacher" else objective,
        "decomposition": "binary",
        "seed": seed,
        "data": {"classes": list(classes)},
        "config": config,
        "selection": {"epoch": epochs},
    }
    if teacher is not None:
        information["teacher"] = teacher
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
        ("teacher", "", 0),
        ("student", "hard", 0),
        ("student", "hard", 1),
        ("student", "label_smoothing", 0),
        ("student", "kd", 0),
        ("student", "kd", 1),
    ]
    assert runs.objectives == ("hard", "label_smoothing", "kd")
    assert runs.seeds == (0, 1)
    assert len(runs) == 6


def test_a_frame_is_keyed_by_run_seed_objective_and_epoch(runs):
    frame = runs.frame("metrics")
    assert list(frame.columns[:7]) == [
        "run",
        "study",
        "role",
        "objective",
        "decomposition",
        "vam",
        "seed",
    ]
    assert not frame.duplicated(["run", "seed", "objective", "epoch", "split", "metric"]).any()
    assert len(frame) == 6 * 3
    kd = frame.query("objective == 'kd' and seed == 1 and split == 'test'")
    assert kd["value"].tolist() == [0.8]


def test_a_kind_that_no_run_has(runs):
    with pytest.raises(KdxError, match="none of the 6 runs has 'gates' records"):
        runs.frame("gates")


def test_headlines_are_of_the_test_split_only(runs):
    frame = runs.runs[0].headlines
    assert frame[["metric", "split", "value", "n"]].to_numpy().tolist() == [
        ["accuracy", "test", 0.9, 8]
    ]
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
    with pytest.raises(
        KdxError, match="unknown headline figure 'acuracy'; did you mean 'accuracy'"
    ):
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


def test_diff_is_only_the_keys_that_differ(runs):
    diff = runs.filter(objective="kd").diff()
    assert list(diff.columns) == ["seed"]
    assert diff["seed"].to_dict() == {"student-kd-0-2": 0, "student-kd-1-2": 1}
    assert runs.filter(objective=["kd", "hard"], seed=1).diff()["objective.name"].tolist() == [
        "hard",
        "kd",
    ]
    assert runs.filter(role="teacher").diff().columns.empty
    assert (
        runs.filter(seed=0, role=["teacher", "student"]).diff()["objective.name"].iloc[0]
        == "not set"
    )


def test_filter(runs):
    assert [run.objective for run in runs.filter(role="student", seed=1)] == ["hard", "kd"]
    assert len(runs.filter(objective=["kd", "hard"], seed=(0,))) == 2
    assert len(runs.filter(seed=7)) == 0
    with pytest.raises(KdxError, match="unknown key of runs 'sead'; did you mean 'seed'"):
        runs.filter(sead=1)
    with pytest.raises(
        KdxError, match=r"unknown key of runs 'training.epoch'; did you mean 'training.epochs'"
    ):
        runs.group("training.epoch")
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


def test_the_null_of_a_headline_is_of_the_epochs_in_which_it_is_defined(tmp_path):
    (run,) = write_study(tmp_path, ("kd",), seeds=1, roles=("explainer",)).filter(role="explainer")
    contention = run.record("contention")
    contention["value"] = contention["null_mean"] = contention["epoch"].astype(float)
    contention.loc[contention["epoch"] == 3, "value"] = math.nan
    row = run.headlines.query("metric == 'modulation' and split == 'train'").iloc[0]
    assert (row["value"], row["null"]) == (1.5, 1.5)


def test_headlines_of_an_explainer(finished):
    explainer = finished.runs.filter(role="explainer", objective="kd", seed=0).runs[0]
    frame = explainer.headlines
    assert set(frame["metric"]) == {
        "accuracy",
        "agreement",
        "gate_entropy",
        "specialisation",
        "conflict_rate",
        "severity",
        "contention",
        "separation",
        "modulation",
        "affinity",
    }
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


@pytest.fixture
def grid(tmp_path) -> RunSet:
    """Students of two objectives and three seeds at two lengths of training: 2 epochs 0.1 better
    each time.
    """
    for objective in ("hard", "kd"):
        for seed in range(3):
            for epochs in (10, 2):
                score = (
                    0.5
                    + 0.01 * seed
                    + (0.1 if epochs == 10 else 0)
                    + (0.2 * seed if objective == "kd" else 0)
                )
                make(tmp_path, objective, seed, score, epochs=epochs)
    make(tmp_path, role="teacher", accuracy=0.9)
    return RunSet.load(tmp_path)


def test_values_by_a_configuration_key_pair_objective_and_seed(grid):
    table = grid.values("accuracy", by="training.epochs", role="student")
    assert (table.columns.tolist(), table.columns.name) == ([2, 10], "training.epochs")
    assert table.index.tolist() == [
        (objective, seed) for objective in ("hard", "kd") for seed in range(3)
    ]
    assert table.index.names == ["objective", "seed"]
    assert (table[10] - table[2]).tolist() == pytest.approx([0.1] * 6)
    assert table.loc[("kd", 2), 2] == pytest.approx(0.92)
    one = grid.filter(objective="kd").values("accuracy", by="training.epochs", role="student")
    assert one.index.names == ["seed"]


def test_n_counts_seeds_however_many_pairs_a_seed_has(grid):
    effect = grid.paired("accuracy", 10, 2, by="training.epochs", role="student")
    assert (effect.n, effect.mean) == (3, pytest.approx(0.1))
    three = grid.filter(**{"training.epochs": 2}).paired("accuracy", "kd", "hard", role="student")
    assert three.differences == pytest.approx((0, 0.2, 0.4))
    with pytest.raises(KdxError, match=r"unknown training.epochs among the runs '3'; valid: 10, 2"):
        grid.paired("accuracy", 3, 2, by="training.epochs", role="student")


def test_what_differs_otherwise_is_refused_and_not_averaged(grid):
    with pytest.raises(
        KdxError, match=r"2 runs are student 'hard' with seed 0; they differ in training\.epochs"
    ):
        grid.values("accuracy", role="student")
    of_one_model = RunSet.of(
        Run(run.path, {**run.info, "config": {**run.info["config"], "model": "vgg8"}})
        for run in grid
    )
    with pytest.raises(
        KdxError, match=r"'hard' with seed 0, model 'vgg8'; they differ in training\.epochs"
    ):
        of_one_model.values("accuracy", by="model", role="student")
    with pytest.raises(KdxError, match="paired by their seeds"):
        grid.values("accuracy", by="seed")


def test_values_by_role_leave_the_teacher_out(tmp_path):
    for role in ("student", "tree"):
        for seed in (0, 1):
            make(tmp_path, "kd", seed, 0.6 + (0.1 if role == "tree" else 0), role)
    make(tmp_path, role="teacher")
    table = RunSet.load(tmp_path).values("accuracy", by="role")
    assert table.columns.tolist() == ["student", "tree"]
    assert table.index.tolist() == [0, 1]


def of_objectives(folder, *settings) -> RunSet:
    """Students of these objectives, each under two seeds."""
    found = []
    for seed in (0, 1):
        for number, objective in enumerate(settings):
            run = make(folder / str(number), "kd", seed, 0.5 + 0.1 * number)
            label = " ".join(map(str, objective.values()))
            config = {**run.info["config"], "objective": {**objective, "label": label}}
            decomposition = objective.get("decomposition", "binary")
            info = {
                **run.info,
                "config": config,
                "objective": label,
                "decomposition": decomposition,
            }
            found.append(Run(run.path, info))
    return RunSet.of(found)


def test_pairs_by_a_setting_of_the_objective_share_its_name_and_other_settings(tmp_path):
    runs = of_objectives(
        tmp_path,
        {"name": "kd", "T": 1.0, "lambda": 0.9},
        {"name": "kd", "T": 4.0, "lambda": 0.9},
        {"name": "kd", "T": 1.0, "lambda": 0.5},
        {"name": "kd", "T": 4.0, "lambda": 0.5},
    )
    table = runs.values("accuracy", by="objective.T", role="student")
    assert table.columns.tolist() == [1.0, 4.0]
    assert set(table.index) == {
        (f"kd lambda={value}", seed) for value in (0.9, 0.5) for seed in (0, 1)
    }
    assert (table[4.0] - table[1.0]).tolist() == pytest.approx([0.1] * 4)


def test_pairs_by_decomposition_share_the_objectives_name(tmp_path):
    runs = of_objectives(
        tmp_path,
        {"name": "kd", "decomposition": "binary"},
        {"name": "kd", "decomposition": "multiclass"},
    )
    effect = runs.paired("accuracy", "multiclass", "binary", by="decomposition", role="student")
    assert (effect.n, effect.mean) == (2, pytest.approx(0.1))


def test_group_by_a_number(grid):
    groups = grid.group("training.epochs")
    assert {value: len(group) for value, group in groups.items()} == {2: 7, 10: 6}
    assert list(groups) == [2, 10]


def test_group_by_a_name_that_some_have_not(runs):
    assert {value: len(group) for value, group in runs.group("objective.name").items()} == {
        "not set": 1,
        "hard": 2,
        "label_smoothing": 1,
        "kd": 2,
    }


def test_filter_by_a_configuration_key(grid, tmp_path):
    assert len(grid.filter(**{"training.epochs": [10, 11]})) == 6
    assert [run.role for run in grid.filter(**{"objective.name": None})] == ["teacher"]
    listed = Run(tmp_path, {**grid.runs[0].info, "config": {"explainer": {"experts": [2, 4]}}})
    assert len(RunSet((listed,)).filter(**{"explainer.experts": (2, 4)})) == 1
    assert len(RunSet((listed,)).filter(**{"explainer.experts": [[4, 2], [2, 4]]})) == 1
    assert len(RunSet((listed,)).filter(**{"explainer.experts": [4, 2]})) == 0


def test_pairs_of_runs(runs):
    pairs = runs.pair("kd", "hard")
    assert [(a.objective, b.objective, a.seed, b.seed) for a, b in pairs] == [
        ("kd", "hard", 0, 0),
        ("kd", "hard", 1, 1),
    ]
    assert len(runs.pair("kd", "label_smoothing")) == 1
    with pytest.raises(KdxError, match="unknown objective among the runs 'kdd'; did you mean 'kd'"):
        runs.pair("kdd", "hard")


def test_pairs_of_runs_by_a_configuration_key(grid):
    pairs = grid.pair(10, 2, by="training.epochs")
    assert {(a.objective, a.seed) == (b.objective, b.seed) for a, b in pairs} == {True}
    assert len(pairs) == 6


@pytest.fixture
def taught(tmp_path) -> RunSet:
    """Two seeds of hard, which no teacher entered, and of kd under each of two teachers."""
    for teacher, accuracies in {0: (0.7, 0.8), 1: (0.9, 0.6)}.items():
        make(tmp_path, role="teacher", seed=teacher)
        for seed, accuracy in enumerate(accuracies):
            make(tmp_path, "kd", seed, accuracy, teacher=teacher)
    make(tmp_path, "hard", 0, 0.5, teacher=0)
    make(tmp_path, "hard", 1, 0.6, teacher=0)
    make(tmp_path, role="teacher", seed=2)
    return RunSet.load(tmp_path)


def test_a_cell_is_the_mean_over_teachers_so_that_rows_are_seeds_of_students(taught):
    table = taught.values("accuracy", role="student")
    assert table["kd"].tolist() == pytest.approx([(0.7 + 0.9) / 2, (0.8 + 0.6) / 2])
    assert table["hard"].tolist() == pytest.approx([0.5, 0.6])
    difference = taught.paired("accuracy", "kd", "hard", role="student")
    assert difference.n == 2
    assert difference.differences == pytest.approx((0.3, 0.1))


def test_a_cell_that_lacks_a_teacher_is_not_the_mean_of_the_others(taught):
    lacking = RunSet(
        tuple(run for run in taught if (run.objective, run.seed, run.teacher) != ("kd", 1, 1))
    )
    table = lacking.values("accuracy", role="student")
    assert table["kd"].tolist() == pytest.approx([0.8, math.nan], nan_ok=True)


def test_runs_are_paired_teacher_by_teacher(taught):
    pairs = taught.filter(role="student").pair("kd", "hard")
    assert sorted((a.seed, a.teacher, b.seed, b.teacher) for a, b in pairs) == [
        (0, 0, 0, 0),
        (0, 1, 0, 0),
        (1, 0, 1, 0),
        (1, 1, 1, 0),
    ]


def test_teachers_are_a_key_of_runs(taught):
    assert taught.teachers == (0, 1)
    students = taught.filter(role="student")
    assert {run.teacher for run in students.filter(teacher=1)} == {1}
    assert {teacher: len(group) for teacher, group in students.group("teacher").items()} == {
        0: 4,
        1: 2,
    }
    kd = students.filter(objective="kd")
    assert kd.values("accuracy", by="teacher", role="student").loc[1].tolist() == [0.8, 0.6]
    assert "teacher" in taught.frame("metrics")
    assert "teacher" not in taught.filter(teacher=0).frame("metrics")


def test_teachers_that_taught_no_student_are_siblings(taught):
    assert [run.seed for run in own_teachers(taught)] == [0, 1]
    assert [run.seed for run in own_teachers(taught.filter(role="teacher"))] == [0, 1, 2]


def test_a_comparison_is_given_its_teachers(taught):
    students = taught.filter(role="student")
    assert conditions(students) == ", given these 2 teachers"
    assert conditions(students.filter(teacher=1)) == ", given one teacher"

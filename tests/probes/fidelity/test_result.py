"""What is told of planted outputs: parts, classes, images, teachers, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kdx_analysis.errors import KdxError
from kdx_analysis.intervals import t_interval
from kdx_analysis.probes.fidelity import closer
from kdx_analysis.probes.fidelity.likeness import Likeness
from kdx_analysis.probes.fidelity.outputs import Outputs
from kdx_analysis.probes.fidelity.result import Fidelity, Teaching
from tests.planted_outputs import GIFTS, Nets, replicated

NETS = Nets()
LIKENESSES = ("dark", "instance", "second_choice", "hardness")
LADDER = ("hard", "label_smoothing", "hard_T", "kd_flat", "kd_shuffled", "kd")


@pytest.fixture(scope="module")
def whole() -> Fidelity:
    return NETS.fidelity(LADDER)


@pytest.fixture(scope="module")
def three() -> Fidelity:
    """Three teachers with students of their own."""
    return replicated(NETS)


def own_by_hand(teaching: Teaching, objective: str, seed: int, metric: str = "instance") -> float:
    """c_0 − mean c_j, from one likeness after the other."""
    student, hard = (teaching.students[name, seed] for name in (objective, "hard"))
    c = [
        Likeness(student, each).values()[metric].value - Likeness(hard, each).values()[metric].value
        for each in teaching.teachers.values()
    ]
    return c[0] - sum(c[1:]) / len(c[1:])


# --- whose and points ---------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [*GIFTS, "hard_T"])
def test_parts_are_those_that_were_planted(objective: str) -> None:
    nets = Nets(num_classes=10, num_images=1500)
    parts = nets.fidelity(["hard", objective], seeds=(0, 1)).parts("instance", objective)
    for name, wanted in nets.expected(objective).items():
        # Directions of length 1 over nine wrong classes weaken a correlation by some hundredths.
        assert parts[name].value == pytest.approx(wanted, abs=0.04), name


def test_whose_has_a_row_for_every_objective_but_hard(whole: Fidelity) -> None:
    table = whole.whose
    assert list(table["objective"].unique()) == list(LADDER[1:])
    assert len(table) == 5 * 4 * 5
    assert set(table.loc[table["decided"], "part"]) == {"own"}
    assert set(table["seeds"]) == {3}
    assert set(table["siblings"]) == {4}
    assert whole.to_frame() is table


def test_points_add_up_to_the_likeness_and_their_means_to_whose(whole: Fidelity) -> None:
    points = whole.points
    assert len(points) == 4 * 6 * 3
    total = points[["task", "kind", "own"]].sum(axis=1)
    assert total.to_numpy() == pytest.approx(points["likeness"].to_numpy(), abs=1e-12)
    hard = points[points["objective"] == "hard"]
    assert (hard[["kind", "own"]] == 0).all(axis=None)
    whose = whole.whose.set_index(["objective", "metric", "part"])["value"]
    means = points.groupby(["objective", "metric"])[["task", "kind", "own"]].mean()
    for (objective, metric), row in means.drop("hard").iterrows():
        for part, value in row.items():
            assert value == pytest.approx(whose[objective, metric, part], abs=1e-12)


def test_drawn_sets_each_point_beside_its_objectives_parts(whole: Fidelity) -> None:
    data = whole.drawn()
    assert len(data) == len(whole.points)
    assert set(data.loc[data["control"], "objective"]) == {"hard_T", "label_smoothing"}
    kd = data.query("objective == 'kd' and metric == 'instance'")
    part = whole.parts("instance", "kd")
    assert set(kd["teacher_low"]) == {part["own"].over_teachers.low}
    assert set(kd["seed_high"]) == {part["own"].over_seeds.high}
    assert set(kd["ceiling"]) == {part["ceiling"].value}
    assert kd["decided"].all()
    hard = data[data["objective"] == "hard"]
    assert not hard["decided"].any()
    assert hard["siblings"].isna().all()


def test_own_of_one_seed_by_hand(whole: Fidelity) -> None:
    points = whole.points.set_index(["metric", "objective", "seed"])
    for metric in LIKENESSES:
        by_hand = own_by_hand(whole.teachings[0], "kd", 1, metric)
        assert points.loc[(metric, "kd", 1), "own"] == pytest.approx(by_hand, abs=1e-12)


def test_changes_of_one_student(whole: Fidelity) -> None:
    changes = whole.changes("instance", "kd", 2)
    assert changes is not None
    assert changes.shape == (5,)
    own_part = float(changes[0] - changes[1:].mean())
    assert own_part == pytest.approx(own_by_hand(whole.teachings[0], "kd", 2))
    assert whole.changes("instance", "kd", 7) is None


# --- pairs --------------------------------------------------------------------------------------


def test_pairs_hold_every_student_beside_every_teacher(whole: Fidelity) -> None:
    table = whole.pairs
    columns = "objective seed teacher metric value chance n undefined"
    assert list(table.columns) == columns.split()
    beside = table[table["teacher"] != ""]
    assert beside.groupby(["objective", "seed", "teacher"]).ngroups == 18 * 5
    assert set(beside["teacher"]) == {"own", "t1", "t2", "t3", "t4"}
    assert set(table.loc[table["teacher"] == "", "metric"]) == {"ece", "nll"}
    assert table["value"].notna().all()


def test_a_pair_is_what_likeness_says(whole: Fidelity) -> None:
    teaching = whole.teachings[0]
    wanted = Likeness(teaching.students["kd", 1], teaching.siblings["t3"]).values()
    rows = whole.pairs.query("objective == 'kd' and seed == 1 and teacher == 't3'")
    assert dict(zip(rows["metric"], rows["value"], strict=True)) == {
        name: each.value for name, each in wanted.items()
    }
    chance = rows.set_index("metric")["chance"]
    assert chance["dark"] == wanted["class_part"].value


# --- difference and decided ---------------------------------------------------------------------


def test_a_difference_is_that_of_own_where_both_have_the_same_seeds(whole: Fidelity) -> None:
    difference = whole.difference("instance", "kd", "kd_shuffled")
    assert set(difference) == {"kind", "own"}
    a, b = (whole.parts("instance", name) for name in ("kd", "kd_shuffled"))
    for part, each in difference.items():
        assert each.value == pytest.approx(a[part].value - b[part].value)
    paired = [
        own_by_hand(whole.teachings[0], "kd", s) - own_by_hand(whole.teachings[0], "kd_shuffled", s)
        for s in range(3)
    ]
    assert difference["own"].over_seeds.low == pytest.approx(t_interval(paired).low)


def test_a_difference_is_over_common_seeds() -> None:
    teaching = NETS.teaching(["hard", "kd", "kd_shuffled"])
    del teaching.students["kd_shuffled", 2]  # type: ignore[attr-defined]
    result = Fidelity((teaching,), NETS.names)
    difference = result.difference("instance", "kd", "kd_shuffled")["own"]
    by_hand = [
        own_by_hand(teaching, "kd", s) - own_by_hand(teaching, "kd_shuffled", s) for s in (0, 1)
    ]
    assert difference.value == pytest.approx(np.mean(by_hand))
    assert difference.over_seeds.n == 2


def test_objectives_without_a_common_seed_have_no_difference() -> None:
    teaching = NETS.teaching(["hard", "kd", "kd_shuffled"])
    for key in (("kd", 0), ("kd", 1), ("kd_shuffled", 2)):
        del teaching.students[key]  # type: ignore[attr-defined]
    assert Fidelity((teaching,), NETS.names).difference("instance", "kd", "kd_shuffled") == {}


def test_what_is_decided(whole: Fidelity) -> None:
    assert whole.decided("instance", "kd")
    assert whole.decided("instance", "kd", over="kd_shuffled")
    assert not whole.decided("instance", "kd_shuffled", over="kd")  # it is below 0
    for name in ("kd_flat", "hard_T", "label_smoothing"):
        assert not whole.decided("instance", name), name
    assert set(whole.controls("instance")) == {"hard_T", "label_smoothing"}


def test_nothing_is_decided_without_a_negative_control() -> None:
    result = NETS.fidelity(["hard", "kd"])
    assert result.parts("instance", "kd")["own"].excludes_zero
    assert not result.decided("instance", "kd")


@pytest.mark.parametrize("control", ["hard_T", "label_smoothing"])
def test_nothing_is_decided_beside_a_control_that_is_as_large(control: str) -> None:
    nets = Nets(gifts={**GIFTS, control: (0.5, 0.9)})
    result = nets.fidelity(["hard", "hard_T", "label_smoothing", "kd"])
    assert result.controls("instance")[control] > result.parts("instance", "kd")["own"].value
    assert not result.decided("instance", "kd")


def test_objectives_that_are_taught_and_the_one_that_leads(whole: Fidelity) -> None:
    assert whole.taught == ("kd_flat", "kd_shuffled", "kd")
    assert whole.leading == "kd"
    assert NETS.fidelity(["hard", "kd_flat", "kd_shuffled"]).leading == "kd_shuffled"
    assert NETS.fidelity(["hard", "hard_T"]).taught == ()
    # Without hard nothing is known of own: the last rung leads.
    assert NETS.fidelity(["kd_shuffled", "kd_flat"]).leading == "kd_flat"


# --- classes and images -------------------------------------------------------------------------


def only(outputs: Outputs, k: int) -> Outputs:
    chosen = outputs.labels == k
    return Outputs(outputs.scores[chosen], outputs.labels[chosen])


def test_a_class_has_the_parts_of_its_images_alone(whole: Fidelity) -> None:
    full = whole.teachings[0]
    for k in (0, 4):
        alone = Fidelity.of(
            only(full.teacher, k),
            {name: only(each, k) for name, each in full.siblings.items()},
            {key: only(each, k) for key, each in full.students.items()},
        )
        rows = whole.of_classes.query("objective == 'kd'")
        rows = rows[rows["class"] == f"class {k}"].set_index("metric")
        for metric in LIKENESSES:
            parts, row = alone.parts(metric, "kd"), rows.loc[metric]
            assert row["own"] == pytest.approx(parts["own"].value, abs=1e-12), metric
            assert row["kind"] == pytest.approx(parts["kind"].value, abs=1e-12), metric
            assert row["seed_low"] == pytest.approx(parts["own"].over_seeds.low), metric
        accuracy = alone.accuracy.groupby("objective")["value"].mean()
        row = rows.iloc[0]
        assert (row["accuracy"], row["hard_accuracy"]) == pytest.approx(
            (accuracy["kd"], accuracy["hard"])
        )
        assert (row["n"], row["seeds"]) == (40, 3)


def test_classes_are_told_of_taught_objectives_alone(whole: Fidelity) -> None:
    table = whole.of_classes
    assert set(table["objective"]) == {"kd_flat", "kd_shuffled", "kd"}
    assert len(table) == 3 * 4 * 6
    assert whole.of_classes is table


def test_classes_over_several_teachers_are_means(three: Fidelity) -> None:
    row = three.of_classes.query("objective == 'kd' and metric == 'dark'").iloc[2]
    singles = []
    for each in three.teachings:
        table = Fidelity((each,), NETS.names).of_classes
        singles.append(table.query("objective == 'kd' and metric == 'dark'").iloc[2])
    assert row["own"] == pytest.approx(np.mean([each["own"] for each in singles]))
    assert row["seeds"] == 3


def test_teachers_of_unequal_students_still_have_classes() -> None:
    teachings = list(replicated(NETS, objectives=("hard", "kd")).teachings)
    del teachings[1].students["kd", 0]  # type: ignore[attr-defined]
    table = Fidelity(tuple(teachings), NETS.names).of_classes
    assert table["own"].notna().all()
    assert set(table["seeds"]) == {3}


def test_a_class_with_one_image_has_no_parts() -> None:
    nets = Nets(num_images=61)
    labels = torch.where(torch.arange(61) == 60, 5, torch.arange(61) % 5)  # a single image of 5
    teaching = nets.teaching(["hard", "kd"])

    def relabelled(outputs: Outputs) -> Outputs:
        return Outputs(outputs.scores, labels)

    table = Fidelity.of(
        relabelled(teaching.teacher),
        {name: relabelled(each) for name, each in teaching.siblings.items()},
        {key: relabelled(each) for key, each in teaching.students.items()},
    ).of_classes
    alone = table[table["class"] == "5"]
    assert set(alone["n"]) == {1}
    assert alone[["own", "kind", "seed_low", "seed_high"]].isna().all(axis=None)
    assert table.loc[table["class"] != "5", "own"].notna().all()


def test_the_loudest_images_add_up_to_own(whole: Fidelity, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(whole.images) == closer.LOUDEST
    monkeypatch.setattr(closer, "LOUDEST", NETS.num_images)
    table = closer.loudest(whole)
    assert len(table) == NETS.num_images
    assert table["value"].mean() == pytest.approx(whole.parts("instance", "kd")["own"].value)
    assert table["value"].is_monotonic_decreasing
    pd.testing.assert_frame_equal(table.head(12), whole.images)


def test_an_image_says_who_shares_the_teachers_second_choice() -> None:
    ids = [f"image {i}" for i in range(NETS.num_images)]
    result = Fidelity((NETS.teaching(),), NETS.names, ids)
    row = result.images.iloc[0]
    i = ids.index(row["id"])
    label = int(NETS.labels[i])
    assert row["class"] == f"class {label}"

    def second(scores: torch.Tensor) -> str:
        wrong = [k for k in range(6) if k != label]
        return f"class {max(wrong, key=lambda k: float(scores[i, k]))}"

    choice = second(NETS.teacher(0))
    assert row["teacher_second"] == choice
    for column, nets in (
        ("students", [NETS.student("kd", seed) for seed in range(3)]),
        ("hard", [NETS.student("hard", seed) for seed in range(3)]),
        ("siblings", [NETS.teacher(number) for number in range(1, 5)]),
    ):
        assert row[column] == np.mean([second(each) == choice for each in nets]), column


def test_images_without_a_direction_are_never_loud() -> None:
    teaching = NETS.teaching(["hard", "kd"])
    teaching.teacher.scores[7] = 0.0
    table = Fidelity((teaching,), NETS.names).images
    assert 7 not in set(table["id"])
    assert len(table) == closer.LOUDEST


@pytest.mark.parametrize("lacking", ["siblings", "hard"])
def test_nothing_is_told_of_images_without_siblings_or_hard(lacking: str) -> None:
    objectives = ["kd"] if lacking == "hard" else ["hard", "kd"]
    result = NETS.fidelity(objectives, siblings=0 if lacking == "siblings" else 3)
    assert result.images.empty
    assert list(result.images.columns)[:2] == ["objective", "id"]


def test_several_teachers_show_the_images_of_the_first(three: Fidelity) -> None:
    first = Fidelity((three.teachings[0],), NETS.names)
    pd.testing.assert_frame_equal(three.images, first.images)


# --- teachers, accuracy, files ------------------------------------------------------------------


def test_teachers_beside_siblings(whole: Fidelity) -> None:
    table = whole.teachers.set_index("teacher")
    assert list(table.index) == ["own", "t1", "t2", "t3", "t4"]
    nets = {name: NETS.outputs(NETS.teacher(number)) for number, name in enumerate(table.index)}
    to_siblings = [Likeness(nets["t2"], nets[name]).instance.value for name in ("t1", "t3", "t4")]
    assert table.loc["t2", "lowest"] == min(to_siblings)
    assert table.loc["t2", "highest"] == max(to_siblings)
    right = (NETS.teacher(2).argmax(dim=1) == NETS.labels).double().mean()
    assert table.loc["t2", "accuracy"] == float(right)


def test_a_teacher_without_siblings_stands_alone() -> None:
    table = NETS.fidelity(["hard", "kd"], siblings=0).teachers
    assert table["lowest"].isna().all()


def test_accuracy_of_students_and_teacher(whole: Fidelity) -> None:
    table = whole.accuracy
    right = (NETS.student("kd", 2).argmax(dim=1) == NETS.labels).double().mean()
    chosen = table.query("objective == 'kd' and seed == 2")
    assert chosen["value"].tolist() == [float(right)]
    assert list(table.loc[table["objective"] == "", "seed"]) == [-1]
    assert set(table["n"]) == {240}


def test_it_is_saved_as_four_tables(whole: Fidelity, tmp_path: Path) -> None:
    paths = whole.save(tmp_path / "out")
    assert [path.name for path in paths] == ["pairs.csv", "whose.csv", "classes.csv", "images.csv"]
    for path, table in zip(
        paths, (whole.pairs, whole.whose, whole.of_classes, whole.images), strict=True
    ):
        read = pd.read_csv(path, keep_default_na=False, na_values=["NaN"])
        assert list(read.columns) == list(table.columns)
        assert len(read) == len(table)


def test_a_notebook_shows_it_with_names_escaped() -> None:
    teaching = NETS.teaching(["hard"], seeds=(0,))
    students = {**teaching.students, ("<b>kd</b>", 0): NETS.outputs(NETS.student("kd", 0))}
    result = Fidelity.of(teaching.teacher, teaching.siblings, students)
    assert "&lt;b&gt;kd&lt;/b&gt;" in result._repr_html_()
    assert "<b>kd" not in result._repr_html_()


# --- several teachers ---------------------------------------------------------------------------


def test_several_teachers_are_named_in_pairs_and_are_the_unit(three: Fidelity) -> None:
    assert list(three.pairs["taught_by"].unique()) == ["t0", "t1", "t2"]
    assert three.siblings == 2
    assert three.seeds("kd") == (0, 1, 2)
    by_teacher = [
        np.mean([own_by_hand(each, "kd", seed) for seed in range(3)]) for each in three.teachings
    ]
    part = three.parts("instance", "kd")["own"]
    assert part.several
    assert part.value == pytest.approx(np.mean(by_teacher))
    interval = t_interval(by_teacher)
    assert (part.over_teachers.low, part.over_teachers.high) == pytest.approx(
        (interval.low, interval.high)
    )
    assert three.decided("instance", "kd")


def test_points_of_several_teachers_are_means_over_them(three: Fidelity) -> None:
    points = three.points.set_index(["metric", "objective", "seed"])
    by_hand = np.mean([own_by_hand(each, "kd", 1) for each in three.teachings])
    assert points.loc[("instance", "kd", 1), "own"] == pytest.approx(by_hand)


def test_a_teacher_whose_hard_students_are_missing_is_left_out_of_the_parts() -> None:
    result = replicated(NETS, without=[("hard", 2)], objectives=("hard", "kd"))
    parts = result.parts("instance", "kd")
    by_hand = [
        np.mean([own_by_hand(each, "kd", seed) for seed in range(3)])
        for each in result.teachings[:2]
    ]
    assert parts["own"].value == pytest.approx(np.mean(by_hand))


# --- few classes, siblings and seeds ------------------------------------------------------------


@pytest.mark.parametrize(
    ("K", "undefined"), [(3, ["dark", "instance"]), (2, ["dark", "instance", "second_choice"])]
)
def test_few_classes_leave_out_what_is_undefined(K: int, undefined: Sequence[str]) -> None:
    result = Nets(num_classes=K).fidelity(["hard", "hard_T", "kd"])
    values = result.pairs.groupby("metric")["value"]
    for metric in undefined:
        assert values.get_group(metric).isna().all(), metric
        assert result.parts(metric, "kd") == {}
    assert set(result.whose["metric"]) == set(LIKENESSES) - set(undefined)
    assert result.images.empty
    classes = result.of_classes.groupby("metric")["own"]
    assert classes.get_group("instance").isna().all()
    assert classes.get_group("hardness").notna().all()


def test_without_siblings_the_task_and_the_likeness_are_known() -> None:
    result = NETS.fidelity(["hard", "hard_T", "kd"], siblings=0)
    parts = result.parts("instance", "kd")
    assert math.isnan(parts["own"].value)
    assert math.isnan(parts["kind"].value)
    assert 0.1 < parts["task"].value < 0.3
    assert not result.decided("instance", "kd")
    points = result.points.query("metric == 'instance' and objective == 'kd'")
    teaching = result.teachings[0]
    likeness = Likeness(teaching.students["kd", 0], teaching.teacher).instance.value
    assert points["likeness"].iloc[0] == pytest.approx(likeness)


def test_one_seed_has_own_and_no_interval_over_seeds() -> None:
    part = NETS.fidelity(seeds=(4,)).parts("instance", "kd")["own"]
    assert part.value > 0.2
    assert math.isnan(part.over_seeds.low)
    assert part.over_teachers.excludes_zero
    assert not part.excludes_zero


# --- refusals -----------------------------------------------------------------------------------


def refused(message: str, **changed: object) -> None:
    teaching = NETS.teaching(["hard", "kd"], seeds=(0,), siblings=1)
    given = {
        "teacher": teaching.teacher,
        "siblings": teaching.siblings,
        "students": teaching.students,
    }
    with pytest.raises(KdxError, match=message):
        Fidelity.of(**(given | changed))  # type: ignore[arg-type]


def test_what_cannot_be_set_beside_each_other_is_refused() -> None:
    other = Nets(num_images=120)
    refused("no student", students={})
    refused("there are 2 classes, but the outputs have 6", classes=["a", "b"])
    refused("there are 1 ids, but the outputs have 240", ids=[3])
    refused("can't be called 'own'", siblings={"own": NETS.outputs(NETS.teacher(1))})
    refused("'t1' is the teacher itself", siblings={"t1": NETS.outputs(NETS.teacher(0))})
    refused("120 images", students={("kd", 0): other.outputs(other.student("kd", 0))})
    binary = Outputs(NETS.student("kd", 0), NETS.labels, binary=True)
    refused("margins of 240 images", students={("kd", 0): binary})
    moved = Outputs(NETS.student("kd", 0), NETS.labels.roll(1))
    refused("different labels", students={("kd", 0): moved})


def test_answers_that_differ_stand_beside_what_accuracy_alone_would_give() -> None:
    labels = torch.tensor([0, 0, 0, 0])
    right, wrong = [9.0, 0.0, 1.0], [0.0, 9.0, 1.0]
    teacher = Outputs(torch.tensor([right, right, right, wrong]), labels)
    student = Outputs(torch.tensor([right, right, wrong, wrong]), labels)
    table = Fidelity.of(teacher, {}, {("kd", 0): student}).answers
    # p_s = ½, p_t = ¾: both right ⅜, one wrong class of two in ⅛ · ½, so that 9/16 of 4 differ
    assert table["differing"].tolist() == [1]
    assert table["expected"].tolist() == [4 * (1 - 3 / 8 - 1 / 16)]
    # c_e = ½, so that κ is at most (1 − ¼ − ½)/(1 − ½)
    assert table["highest"].tolist() == [0.5]

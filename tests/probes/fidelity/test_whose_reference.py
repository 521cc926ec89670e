"""Whose is it? against the reference, on planted networks, and under its own null."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from kdx_analysis.errors import KdxError
from kdx_analysis.intervals import Interval
from kdx_analysis.probes.fidelity.likeness import Likeness
from kdx_analysis.probes.fidelity.outputs import Outputs
from kdx_analysis.probes.fidelity.result import Fidelity, Teaching
from kdx_analysis.probes.fidelity.whose import Likenesses, Part, decided, parts
from tests.probes.fidelity import reference as ref

METRICS = ("dark", "instance", "second_choice", "hardness")


def same(actual: float, wanted: float, what: object = "") -> None:
    np.testing.assert_allclose(actual, wanted, rtol=1e-10, atol=1e-12, err_msg=str(what))


def same_interval(actual: Interval, wanted: ref.Span, what: object = "") -> None:
    same(actual.low, wanted.low, what)
    same(actual.high, wanted.high, what)


def drawn(
    rng: np.random.Generator, n: int, J: int, gift: float = 0.3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """L(o, t_j), L(hard, t_j) and L(t₀, t_j), with effects of seeds and of teachers."""
    teachers, seeds = 0.05 * rng.standard_normal((1, J + 1)), 0.05 * rng.standard_normal((n, 1))
    hard = 0.5 + teachers + seeds + 0.02 * rng.standard_normal((n, J + 1))
    objective = hard + 0.1 + 0.03 * rng.standard_normal((n, J + 1))
    objective[:, 0] += gift
    return objective, hard, np.append(1.0, 0.55 + 0.02 * rng.standard_normal(J))


def made(objective: np.ndarray, hard: np.ndarray, teacher: np.ndarray) -> Likenesses:
    return Likenesses(objective, hard, teacher, tuple(range(len(hard))))


@pytest.mark.parametrize("gift", [0.3, 0.05, 0.0, -0.1])
@pytest.mark.parametrize(("n", "J"), [(2, 3), (3, 3), (3, 5), (6, 4)])
def test_parts_and_intervals_are_the_references(n: int, J: int, gift: float) -> None:
    objective, hard, teacher = drawn(np.random.default_rng(n + J), n, J, gift)
    computed = parts([made(objective, hard, teacher)])
    wanted = ref.whose(objective.tolist(), hard.tolist(), teacher.tolist())
    for name in ("task", "kind", "own", "ceiling", "share"):
        same(computed[name].value, getattr(wanted, name).mean, name)
    for name in ("task", "kind", "own"):
        same_interval(computed[name].over_seeds, getattr(wanted, name), name)
    same_interval(computed["kind"].over_teachers, wanted.kind_over_teachers)
    same_interval(computed["own"].over_teachers, wanted.own_over_teachers)
    same_interval(computed["ceiling"].over_teachers, wanted.ceiling)
    same_interval(computed["share"].over_teachers, wanted.share)
    assert math.isnan(computed["task"].over_teachers.low)


def test_the_share_has_no_interval_where_the_ceilings_holds_0() -> None:
    objective, hard, _ = drawn(np.random.default_rng(0), 3, 3)
    computed = parts([made(objective, hard, np.array([0.6, 0.9, 0.2, 0.5]))])
    assert not computed["ceiling"].over_teachers.excludes_zero
    assert math.isnan(computed["share"].over_teachers.low)
    assert math.isnan(computed["share"].over_teachers.high)


def test_task_kind_and_own_add_up_to_the_likeness() -> None:
    for seed in range(20):
        objective, hard, teacher = drawn(np.random.default_rng(seed), 3, 4)
        computed = parts([made(objective, hard, teacher)])
        total = sum(computed[name].value for name in ("task", "kind", "own"))
        assert total == pytest.approx(objective[:, 0].mean(), abs=1e-14)


def test_the_order_of_siblings_and_of_seeds_changes_nothing() -> None:
    objective, hard, teacher = drawn(np.random.default_rng(1), 4, 5)
    before = parts([made(objective, hard, teacher)])
    columns, rows = np.array([0, 3, 1, 5, 2, 4]), np.array([2, 0, 3, 1])
    moved = [each[rows][:, columns] for each in (objective, hard)]
    after = parts([made(*moved, teacher[columns])])
    for name, part in before.items():
        same(after[name].value, part.value, name)
        same(after[name].over_teachers.high, part.over_teachers.high, name)


def test_fewer_than_three_siblings_give_the_number_and_decide_nothing() -> None:
    objective, hard, teacher = drawn(np.random.default_rng(2), 6, 2, gift=5)
    computed = parts([made(objective, hard, teacher)])
    assert computed["own"].value > 4
    assert math.isnan(computed["own"].over_teachers.low)
    assert not decided(computed, [0.0, 0.0])


def test_one_seed_decides_nothing() -> None:
    objective, hard, teacher = drawn(np.random.default_rng(2), 1, 5, gift=5)
    computed = parts([made(objective, hard, teacher)])
    assert computed["own"].over_teachers.excludes_zero
    assert not decided(computed, [0.0, 0.0])


@pytest.mark.parametrize("gift", [0.3, 0.05, 0.0])
@pytest.mark.parametrize("control", [0.0, 0.1, -0.1])
def test_what_is_decided_is_what_the_reference_decides(gift: float, control: float) -> None:
    rng = np.random.default_rng(5)
    objective, hard, teacher = drawn(rng, 3, 4, gift)
    controls = [hard + np.array([control, 0, 0, 0, 0]), hard]
    computed = parts([made(objective, hard, teacher)])
    wanted = ref.whose(objective.tolist(), hard.tolist(), teacher.tolist(), controls)
    values = [parts([made(each, hard, teacher)])["own"].value for each in controls]
    assert decided(computed, values) is wanted.decided


def test_which_control_comes_first_decides_nothing() -> None:
    interval = Interval(5, 0.2, 0.1, 0.3)
    computed = {"own": Part(0.2, interval, interval)}
    orders = ((0.1, math.nan), (math.nan, 0.1))
    assert len({decided(computed, order) for order in orders}) == 1


@pytest.mark.parametrize("R", [3, 5])
def test_teachers_with_students_of_their_own_are_the_references_unit(R: int) -> None:
    rng = np.random.default_rng(R)
    tables = []
    for _ in range(R):
        objective, hard, _ = drawn(rng, 2, R - 1)
        tables.append((objective, hard))
    teacher = np.append(1.0, np.full(R - 1, 0.5))
    computed = parts([made(*each, teacher) for each in tables])
    values, interval = ref.own_over_replicated_teachers(lambda r: tables[r], R)
    same(computed["own"].value, np.mean(values))
    same_interval(computed["own"].over_teachers, interval)
    # Fieller by its definition: at either end own − r · ceiling has an interval that ends at 0.
    hards = [hard.mean(axis=0) for _, hard in tables]
    ceilings = np.array([ref.own_of((teacher - hard).tolist()) for hard in hards])
    for end in (computed["share"].over_teachers.low, computed["share"].over_teachers.high):
        span = ref.over_units((np.array(values) - end * ceilings).tolist())
        assert min(abs(span.low), abs(span.high)) < 1e-9


def test_two_teachers_with_students_of_their_own_decide_nothing() -> None:
    rng = np.random.default_rng(0)
    computed = parts([made(*drawn(rng, 3, 3, gift=5)) for _ in range(2)])
    assert math.isnan(computed["own"].over_teachers.low)
    assert not decided(computed, [0.0])


def test_a_difference_is_taken_between_the_changes() -> None:
    rng = np.random.default_rng(3)
    one, hard, teacher = drawn(rng, 3, 4)
    other = hard + 0.02 * rng.standard_normal(hard.shape)
    computed = parts([made(one, hard, teacher).minus(made(other, hard, teacher))])
    by_seeds, by_teachers = ref.difference(one.tolist(), other.tolist(), hard.tolist())
    same(computed["own"].value, by_seeds.mean)
    same_interval(computed["own"].over_seeds, by_seeds)
    same_interval(computed["own"].over_teachers, by_teachers)


# --- under the null -----------------------------------------------------------------------------


def share_decided(J: int, n: int, of_teachers: float, rng: np.random.Generator, R: int) -> float:
    """How often own is decided where teachers are exchangeable and nothing is the own teacher's."""
    count = 0
    for _ in range(R):
        seeds = rng.standard_normal((n, 1))
        hard, objective, first, second = (
            seeds + rng.standard_normal((n, J + 1)) + size * rng.standard_normal((1, J + 1))
            for size in (0, of_teachers, of_teachers, of_teachers)
        )
        teacher = np.ones(J + 1)
        controls = [parts([made(each, hard, teacher)])["own"].value for each in (first, second)]
        count += decided(parts([made(objective, hard, teacher)]), controls)
    return count / R


@pytest.mark.parametrize(("J", "n", "of_teachers"), [(3, 3, 0.5), (3, 3, 5), (5, 3, 5)])
def test_without_an_own_effect_five_percent_are_decided_at_most(
    J: int, n: int, of_teachers: float
) -> None:
    # 200,000 draws in NumPy gave .7, 3.3 and 4.0 %; of 250 at 5 % above 9 % has a chance of .003.
    assert share_decided(J, n, of_teachers, np.random.default_rng(1), 250) < 0.09


# --- of outputs ---------------------------------------------------------------------------------

K, N, J, SEEDS = 6, 240, 4, 3
LABELS = np.arange(N) % K


def network(rng: np.random.Generator, *shared: np.ndarray) -> np.ndarray:
    """The task, what is shared, and noise that is this network's alone."""
    return 3 * np.eye(K)[LABELS] + sum(shared) + 0.5 * rng.standard_normal((N, K))


def outputs(scores: np.ndarray) -> Outputs:
    return Outputs(torch.tensor(scores), torch.tensor(LABELS))


def planted(of_kind: float, of_own: float) -> Mapping[str, dict[object, np.ndarray]]:
    """Networks with a task, teachers with a kind and private parts that students copy in part."""
    rng = np.random.default_rng(11)
    task, recipe = rng.standard_normal((K, K))[LABELS], rng.standard_normal((N, K))
    private = rng.standard_normal((J + 1, N, K))
    teachers = {j: network(rng, task, recipe, private[j]) for j in range(J + 1)}
    students: dict[object, np.ndarray] = {}
    for seed in range(SEEDS):
        for name in ("hard", "hard_T", "label_smoothing"):
            students[name, seed] = network(rng, task)
        gift = of_kind * recipe + of_own * private[0]
        students["kd", seed] = network(rng, task, gift)
    return {"teachers": dict(teachers), "students": students}


def fidelity(nets: Mapping[str, dict[object, np.ndarray]], **changed: object) -> Fidelity:
    teachers = {f"t{j}": outputs(scores) for j, scores in nets["teachers"].items()}
    students = {key: outputs(scores) for key, scores in nets["students"].items()}
    return Fidelity.of(teachers.pop("t0"), teachers, students, **changed)  # type: ignore[arg-type]


def test_a_students_parts_are_the_references_from_the_outputs_on() -> None:
    nets = planted(0.5, 0.5)
    y = LABELS[:30].tolist()
    short = {
        "teachers": {j: scores[:30] for j, scores in nets["teachers"].items()},
        "students": {key: scores[:30] for key, scores in nets["students"].items()},
    }
    teachers = {
        f"t{j}": Outputs(torch.tensor(scores), torch.tensor(LABELS[:30]))
        for j, scores in short["teachers"].items()
    }
    students = {
        key: Outputs(torch.tensor(scores), torch.tensor(LABELS[:30]))
        for key, scores in short["students"].items()
    }
    small = Fidelity.of(teachers.pop("t0"), teachers, students)  # type: ignore[arg-type]
    table = small.whose.set_index(["objective", "metric", "part"]).sort_index()
    for metric in METRICS:
        likeness = {
            key: [ref.likeness(scores, t, y)[metric].value for t in short["teachers"].values()]
            for key, scores in {**short["students"], "t0": short["teachers"][0]}.items()
        }
        rows = {
            name: [likeness[name, seed] for seed in range(SEEDS)]
            for name in ("hard", "hard_T", "label_smoothing", "kd")
        }
        controls = [rows["hard_T"], rows["label_smoothing"]]
        wanted = ref.whose(rows["kd"], rows["hard"], likeness["t0"], controls)
        for part in ("task", "kind", "own", "ceiling", "share"):
            same(table.loc["kd", metric, part]["value"], getattr(wanted, part).mean, part)
        actual = table.loc["kd", metric, "own"]
        same(actual["seed_low"], wanted.own.low)
        same(actual["teacher_high"], wanted.own_over_teachers.high)
        assert bool(actual["decided"]) is wanted.decided


def test_what_a_student_copies_of_its_own_teacher_is_own_and_decided() -> None:
    table = (
        fidelity(planted(0.5, 0.9)).whose.set_index(["objective", "metric", "part"]).sort_index()
    )
    for metric in ("dark", "instance"):
        part = table.loc["kd", metric]
        assert bool(part.loc["own", "decided"])
        assert part.loc["own", "value"] > 0.1
        assert 0.4 < part.loc["share", "value"] < 1
        assert part.loc["kind", "value"] > 0.05


def test_what_a_student_copies_of_the_kind_is_kind_and_no_own() -> None:
    table = (
        fidelity(planted(0.9, 0.0)).whose.set_index(["objective", "metric", "part"]).sort_index()
    )
    for metric in ("dark", "instance"):
        part = table.loc["kd", metric]
        assert not bool(part.loc["own", "decided"])
        assert abs(part.loc["own", "value"]) < 0.03
        assert part.loc["kind", "value"] > 0.1
        assert part.loc["kind", "seed_low"] > 0
        assert part.loc["kind", "teacher_low"] > 0


def test_students_that_copy_nothing_have_neither() -> None:
    table = (
        fidelity(planted(0.0, 0.0)).whose.set_index(["objective", "metric", "part"]).sort_index()
    )
    for metric in METRICS:
        for name in ("kd", "hard_T", "label_smoothing"):
            assert not bool(table.loc[name, metric, "own"]["decided"]), (name, metric)


def test_the_own_teacher_as_a_student_reaches_its_ceiling() -> None:
    nets = planted(0.5, 0.5)
    for seed in range(SEEDS):
        nets["students"]["kd", seed] = nets["teachers"][0]
    table = fidelity(nets).whose.set_index(["objective", "metric", "part"]).sort_index()
    for metric in METRICS:
        same(table.loc["kd", metric, "share"]["value"], 1, metric)
        low, high = table.loc["kd", metric, "share"][["teacher_low", "teacher_high"]]
        # Every sibling gives own − ceiling = 0, so that 1 is known without error.
        np.testing.assert_allclose([low, high], 1, atol=1e-6, err_msg=metric)


def test_the_images_add_up_to_own() -> None:
    nets = planted(0.5, 0.5)
    several = fidelity(nets)
    teacher, student, hard = (
        outputs(each)
        for each in (nets["teachers"][0], nets["students"]["kd", 0], nets["students"]["hard", 0])
    )
    for one in (student, hard):
        likeness = Likeness(one, teacher)
        same(likeness.of_images().mean(), likeness.values()["instance"].value)
    assert several.images["value"].is_monotonic_decreasing


def test_outputs_of_other_labels_are_refused() -> None:
    nets = planted(0.5, 0.5)
    teachers = {f"t{j}": outputs(scores) for j, scores in nets["teachers"].items()}
    moved = torch.tensor(np.roll(LABELS, 1))
    students = {key: Outputs(torch.tensor(s), moved) for key, s in nets["students"].items()}
    with pytest.raises(KdxError):
        Fidelity.of(teachers.pop("t0"), teachers, students)  # type: ignore[arg-type]


def test_two_networks_of_other_labels_are_refused() -> None:
    nets = planted(0.5, 0.5)
    moved = torch.tensor(np.roll(LABELS, 1))
    with pytest.raises(KdxError):
        Likeness(outputs(nets["teachers"][0]), Outputs(torch.tensor(nets["teachers"][1]), moved))


def test_three_classes_leave_dark_and_instance_out_and_keep_the_rest() -> None:
    rng = np.random.default_rng(0)
    y = torch.arange(60) % 3
    nets = [
        Outputs(torch.tensor(rng.standard_normal((60, 3)) + 2 * np.eye(3)[y]), y) for _ in range(13)
    ]
    names = [(name, seed) for name in ("hard", "hard_T", "kd") for seed in range(3)]
    siblings = {f"t{j}": nets[j] for j in range(1, 4)}
    result = Fidelity.of(nets[0], siblings, dict(zip(names, nets[4:], strict=True)))
    metrics = set(result.whose["metric"])
    assert {"second_choice", "hardness"} <= metrics
    rows = result.whose[result.whose["metric"].isin(["dark", "instance"])]
    assert rows["value"].isna().all()
    assert not rows["decided"].any()


def replicated(*without: tuple[str, int]) -> Fidelity:
    """Three teachers with students of their own; ``without`` some objectives of some teachers."""
    rng = np.random.default_rng(0)
    task, private = rng.standard_normal((K, K))[LABELS], rng.standard_normal((3, N, K))
    teachers = [outputs(network(rng, task, each)) for each in private]
    teachings = []
    for r in range(3):
        students = {}
        for seed in range(2):
            for name, share in (("hard", 0.0), ("kd", 0.3 + 0.2 * r), ("kd_flat", 0.2 * r)):
                student = outputs(network(rng, task, share * private[r]))
                if (name, r) not in without:
                    students[name, seed] = student
        siblings = {f"t{j}": teachers[j] for j in range(3) if j != r}
        teachings.append(Teaching(teachers[r], siblings, students, f"t{r}"))
    return Fidelity(tuple(teachings), tuple(map(str, range(K))))


def own_of_teaching(teaching: Teaching, objective: str) -> float:
    """Mean over seeds of L(o, t_0) − mean L(o, t_j), of instance."""
    values = []
    for (name, _), student in teaching.students.items():
        if name == objective:
            likenesses = [Likeness(student, teacher) for teacher in teaching.teachers.values()]
            values.append(ref.own_of([each.values()["instance"].value for each in likenesses]))
    return float(np.mean(values))


@pytest.mark.parametrize("without", [[("kd_flat", 0)], [("kd", 0), ("kd_flat", 1)]])
def test_a_difference_never_sets_one_teachers_students_beside_anothers(
    without: list[tuple[str, int]],
) -> None:
    result = replicated(*without)
    both = [r for r in range(3) if r not in [lacking for _, lacking in without]]
    wanted = [
        own_of_teaching(result.teachings[r], "kd") - own_of_teaching(result.teachings[r], "kd_flat")
        for r in both
    ]
    computed = result.difference("instance", "kd", "kd_flat")
    same(computed["own"].value, np.mean(wanted))


def test_teachers_with_one_student_each_decide_by_the_interval_over_teachers() -> None:
    rng = np.random.default_rng(0)
    computed = parts([made(*drawn(rng, 1, 4, gift=1)) for _ in range(5)])
    assert computed["own"].over_teachers.excludes_zero
    assert decided(computed, [0.0, 0.0])

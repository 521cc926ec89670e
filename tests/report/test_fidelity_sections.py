"""What is shown of fidelity below its answer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pytest

from kdx_analysis.probes.fidelity.result import Fidelity
from kdx_analysis.report.fidelity_sections import grid, sections
from kdx_analysis.runs.tables.numbers import number
from tests.planted_outputs import Nets, replicated

NETS = Nets()
LADDER = ("hard", "label_smoothing", "hard_T", "kd_flat", "kd_shuffled", "kd")
FEW = ("hard", "hard_T", "label_smoothing", "kd")


@pytest.fixture(scope="module")
def whole() -> Fidelity:
    return NETS.fidelity(LADDER)


def level(shown: Mapping[str, Any], objective: str, title: str) -> str:
    cells = dict(shown["levels"]["rows"])[objective]
    return str(cells[shown["levels"]["titles"].index(title)].text)


def test_a_row_has_the_parts_of_its_objective_and_likeness(whole: Fidelity) -> None:
    table = grid(whole)
    assert len(table.labels) == 5 * 4
    row = dict(zip(table.labels, table.cells, strict=True))["kd", "instance knowledge"]
    parts = whole.parts("instance", "kd")
    assert [cell.main for cell in row[:3]] == [
        number(parts["task"].value),
        number(parts["kind"].value, signed=True),
        number(parts["own"].value, signed=True),
    ]
    assert row[5].main == number(parts["ceiling"].value)
    assert row[6].main == "decided"


def test_own_is_bold_where_it_is_decided_and_nowhere_else(whole: Fidelity) -> None:
    table = grid(whole)
    for (objective, title), cells in zip(table.labels, table.cells, strict=True):
        metric = {"instance knowledge": "instance", "dark knowledge": "dark"}.get(title)
        if metric:
            assert cells[2].bold == whole.decided(metric, objective), objective
        assert not any(cell.bold for cell in (*cells[:2], *cells[3:]))
        assert cells[6].main == ("decided" if cells[2].bold else "undecided")


def test_few_siblings_are_not_decidable() -> None:
    table = grid(NETS.fidelity(FEW, siblings=2))
    assert {cells[6].main for cells in table.cells} == {"not decidable"}
    assert {cells[4].main for cells in table.cells} == {"–"}
    assert "2 siblings" in table.caption


def test_without_hard_the_table_holds_likenesses() -> None:
    result = NETS.fidelity(["hard_T", "kd"])
    table = grid(result)
    assert [cell.main for cell in table.head] == [
        "objective",
        "likeness",
        "to its own teacher",
        "to siblings",
        "seeds",
    ]
    row = dict(zip(table.labels, table.cells, strict=True))["kd", "instance knowledge"]
    values = result.pairs.query("objective == 'kd' and metric == 'instance'")
    means = values.groupby(values["teacher"] == "own")["value"].mean()
    for cell, to_own in zip(row, (True, False), strict=False):
        assert float(cell.main.partition(" [")[0]) == pytest.approx(means[to_own], abs=5e-4)
    assert "can't be taken apart" in table.caption


# --- levels -------------------------------------------------------------------------------------


def with_errors(student: int, teacher: int, both: int = 3) -> Nets:
    """Networks that have so many images wrong, ``both`` of them together, in every seed."""

    class Few(Nets):
        def teacher(self, number: int) -> Any:
            return self._wrong(super().teacher(number), 0, teacher)

        def student(self, objective: str, seed: int, number: int = 0) -> Any:
            start = teacher - both
            return self._wrong(super().student(objective, seed, number), start, student)

        def _wrong(self, scores: Any, start: int, count: int) -> Any:
            scores, rows = scores.clone(), range(self.num_images)
            scores[rows, self.labels] = scores.max() + 1
            wrong = range(start, start + count)
            scores[wrong, self.labels[wrong]] = scores.min() - 1
            return scores

    return Few()


@pytest.mark.parametrize(
    ("student", "teacher", "both", "consistency", "copied"),
    [
        (12, 12, 10, True, True),
        (12, 12, 9, True, False),
        (9, 12, 5, False, False),
        (12, 9, 5, False, False),
    ],
)
def test_few_errors_have_no_interval(
    student: int, teacher: int, both: int, consistency: bool, copied: bool
) -> None:
    result = with_errors(student, teacher, both).fidelity(FEW)
    right = result.accuracy.set_index(["objective", "seed"])["value"]
    assert round(240 * (1 - right["kd", 1])) == student
    assert round(240 * (1 - right["", -1])) == teacher
    errors = result.pairs.query("metric == 'copied_errors' and teacher == 'own'")
    assert set(errors["n"]) == {both}
    shown = sections(result)
    # Copied errors differ between seeds; error consistency is the same in all.
    assert ("[" in level(shown, "kd", "copied errors")) == copied
    assert ("[" in level(shown, "kd", "error consistency")) == consistency
    assert level(shown, "kd", "error consistency")[0].isdigit()
    assert "[" in level(shown, "kd", "negative log-likelihood")


def test_copied_errors_are_left_out_where_there_is_none() -> None:
    shown = sections(with_errors(5, 5, 0).fidelity(FEW))
    assert "copied errors" not in shown["levels"]["titles"]


def test_levels_are_means_over_seeds(whole: Fidelity) -> None:
    shown = sections(whole)
    values = whole.pairs.query("objective == 'kd' and metric == 'js' and teacher == 'own'")
    text = level(shown, "kd", "Jensen–Shannon divergence from the teacher")
    assert float(text.partition(" [")[0]) == pytest.approx(values["value"].mean(), abs=5e-4)
    teacher = float((NETS.teacher(0).argmax(dim=1) == NETS.labels).double().mean())
    assert shown["levels"]["teacher"] == number(teacher)


def test_a_student_that_saw_no_teacher_counts_once_beside_three() -> None:
    result = replicated(NETS, objectives=FEW)
    alone = NETS.fidelity(FEW)
    # Three students, not nine: the interval is that of three.
    for objective in ("hard", "hard_T"):
        several, single = (level(sections(each), objective, "accuracy") for each in (result, alone))
        assert several == single
    assert level(sections(result), "kd", "accuracy") != level(sections(alone), "kd", "accuracy")


# --- classes and images -------------------------------------------------------------------------


def test_classes_stand_in_order_of_own_and_then_those_that_got_worse() -> None:
    nets = Nets(num_classes=14, num_images=420)
    result = nets.fidelity(FEW)
    rows = sections(result)["classes"]
    table = result.of_classes.query("objective == 'kd' and metric == 'instance'")
    by_own = table.sort_values("own", ascending=False)["class"].tolist()
    assert [row[0] for row in rows[:10]] == by_own[:10]
    change = (table["accuracy"] - table["hard_accuracy"]).set_axis(table["class"])
    worse = change[(change < 0) & ~change.index.isin(by_own[:10])].sort_values()
    assert {row[0] for row in rows[10:]} == set(worse.index[:5])
    first = table.set_index("class").loc[by_own[0]]
    assert rows[0][1:3] == (30, number(first["own"], signed=True))
    assert rows[0][5:] == (number(first["accuracy"]), number(first["hard_accuracy"]))


def test_two_classes_show_no_own_of_classes() -> None:
    rows = sections(Nets(num_classes=2).fidelity(FEW))["classes"]
    assert {row[2] for row in rows} <= {"–"}


def test_images_with_their_pictures(whole: Fidelity) -> None:
    first = whole.images.iloc[0]
    rows = sections(whole, {first["id"]: "data:image/png;base64,AAAA"})["images"]
    assert len(rows) == 12
    assert rows[0][:3] == (first["id"], first["class"], first["teacher_second"])
    assert rows[0][3] == number(first["value"], 2, signed=True)
    assert rows[0][-1] == "data:image/png;base64,AAAA"
    assert rows[1][-1] == ""


# --- every table --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result",
    [
        NETS.fidelity(["kd"]),
        NETS.fidelity(["hard", "hard_T"]),
        NETS.fidelity(["hard", "kd"], siblings=0),
        NETS.fidelity(LADDER, seeds=(0,)),
        Nets(num_classes=3).fidelity(FEW),
        Nets(num_classes=2).fidelity(FEW, siblings=1),
        replicated(NETS, teachers=2, objectives=FEW),
    ],
    ids=["no hard", "untaught", "no siblings", "one seed", "K = 3", "K = 2", "two teachers"],
)
def test_no_cell_is_nan(result: Fidelity) -> None:
    shown = sections(result, {})
    assert not re.search(r"\bnan\b|None", str({**shown, "formulas": {}}))
    assert shown["counted"].startswith("240 images")
    assert not math.isnan(float(shown["levels"]["teacher"]))


def test_teachers_beside_each_other(whole: Fidelity) -> None:
    rows = sections(whole)["teachers"]
    assert [row[0] for row in rows] == ["own teacher", *(f"sibling t{j}" for j in range(1, 5))]
    table = whole.teachers.iloc[0]
    assert rows[0][1] == number(table["accuracy"])
    assert rows[0][2] == f"{number(table['lowest'])} to {number(table['highest'])}"


def test_several_teachers_are_named_once_each() -> None:
    rows = sections(replicated(NETS, objectives=FEW))["teachers"]
    assert [row[0] for row in rows] == ["teacher t0", "teacher t1", "teacher t2"]

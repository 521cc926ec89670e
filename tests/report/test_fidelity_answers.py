"""What is said of fidelity, branch by branch, on planted outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pytest
import torch

from kdx_analysis.probes.fidelity.outputs import Outputs
from kdx_analysis.probes.fidelity.result import Fidelity
from kdx_analysis.report.fidelity_answers import said
from kdx_analysis.runs.tables.numbers import number
from tests.planted_outputs import GIFTS, Nets, replicated

NETS = Nets()
LADDER = ("hard", "label_smoothing", "hard_T", "kd_flat", "kd_shuffled", "kd")
FEW = ("hard", "hard_T", "label_smoothing", "kd")


def text_of(fidelity: Fidelity) -> str:
    return " ".join(said(fidelity))


def weak(of_own: float) -> Nets:
    """Students of kd have little of their teacher's private part."""
    return Nets(gifts={**GIFTS, "kd": (0.5, of_own)})


def without(fidelity: Fidelity, *keys: tuple[str, int]) -> Fidelity:
    (teaching,) = fidelity.teachings
    kept = {key: each for key, each in teaching.students.items() if key not in keys}
    return Fidelity.of(teaching.teacher, teaching.siblings, kept, classes=fidelity.classes)


# --- decided ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> Fidelity:
    return NETS.fidelity(LADDER)


def test_the_first_sentence_takes_the_likeness_apart(whole: Fidelity) -> None:
    parts = whole.parts("instance", "kd")
    task, kind, own_part = (parts[name] for name in ("task", "kind", "own"))
    total = number(task.value + kind.value + own_part.value, 2)
    first = said(whole)[0]
    assert first.startswith(f"Under kd, students share {total} with their teacher in what it")
    seeds, teachers = own_part.over_seeds, own_part.over_teachers
    assert first.endswith(
        f"and {number(own_part.value, 2)} [seeds {number(seeds.low, 2)} to {number(seeds.high, 2)}; "
        f"teachers {number(teachers.low, 2)} to {number(teachers.high, 2)}] is this teacher's own."
    )
    assert f"{number(task.value, 2)} [" in first
    assert f"{number(kind.value, 2)} [" in first


def test_what_is_decided_names_its_controls_and_the_share(whole: Fidelity) -> None:
    second = said(whole)[1]
    assert second.startswith("That own part is decided: its 95 % intervals over 3 seeds and over")
    assert "(4 siblings) leave out 0" in second
    assert re.search(r"\(\S+ under hard_T and \S+ under label_smoothing\)", second)
    share = whole.parts("instance", "kd")["share"]
    low, high = (
        number(100 * end, 0) for end in (share.over_teachers.low, share.over_teachers.high)
    )
    assert f"{number(100 * share.value, 0)} % [{low} % to {high} %] of what this" in second


def test_the_order_of_the_wrong_classes_has_a_sentence(whole: Fidelity) -> None:
    third = said(whole)[2]
    own_part = whole.difference("instance", "kd", "kd_shuffled")["own"]
    assert third.startswith(f"Of its own part {number(own_part.value, 2)} [")
    assert "which kd_shuffled takes away (kd − kd_shuffled; decided)" in third
    assert "kd_shuffled" not in text_of(NETS.fidelity(FEW))


def test_fidelity_is_not_accuracy(whole: Fidelity) -> None:
    last = said(whole)[-1]
    right = whole.accuracy.groupby("objective")["value"].mean()
    kd, hard = (number(100 * right[name], 1) for name in ("kd", "hard"))
    assert f"kd's students have {kd} % right and hard's {hard} %" in last
    assert "95 % interval" in last
    assert "over 3 seeds" in last


def test_one_seed_compares_accuracy_without_an_interval() -> None:
    last = said(NETS.fidelity(LADDER, seeds=(0,)))[-1]
    assert "points)." in last
    assert "interval" not in last


# --- not decided --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("siblings", "message"),
    [
        (1, "the teacher has 1 sibling here, and it takes 3"),
        (2, "the teacher has 2 siblings here, and it takes 3"),
    ],
)
def test_few_siblings(siblings: int, message: str) -> None:
    result = NETS.fidelity(LADDER, siblings=siblings)
    second = said(result)[1]
    assert f"is not decided: {message} to know how much teachers of one recipe differ." in second
    assert "; teachers" not in said(result)[0]


def test_no_siblings() -> None:
    result = NETS.fidelity(LADDER, siblings=0)
    first, second = said(result)[:2]
    points = result.points.query("metric == 'instance' and objective == 'kd'")
    total = points["likeness"].mean()
    change = total - points["task"].mean()
    assert first.startswith(f"Under kd, students share {number(total, 2)} with their teacher")
    assert f"and {number(change, 2, signed=True)} comes with the objective" in first
    assert "without siblings of the teacher nobody can tell" in first
    assert "the teacher has no siblings here, and it takes 3" in second
    assert "–" not in text_of(result)


def test_one_seed() -> None:
    second = said(NETS.fidelity(LADDER, seeds=(0,)))[1]
    assert second == (
        "Whether there is such an own part is not decided: one seed has no interval; train more "
        "seeds."
    )


def spread(of_own: Sequence[float]) -> Fidelity:
    """Students of kd with other shares of their teacher's private part, seed by seed."""
    students = {}
    for seed, share in enumerate(of_own):
        students["kd", seed] = NETS.outputs(weak(share).student("kd", seed))
    (teaching,) = NETS.fidelity(FEW).teachings
    return Fidelity.of(teaching.teacher, teaching.siblings, {**teaching.students, **students})


def test_undecided_over_seeds() -> None:
    second = said(spread([0.7, 0.0, 0.0]))[1]
    assert second.endswith("not decided: its 95 % interval over seeds holds 0.")


def test_undecided_over_teachers() -> None:
    # Students that have a share of one sibling's private part, in every seed alike.
    (teaching,) = weak(0.3).fidelity(FEW).teachings
    students = dict(teaching.students)
    for seed in range(3):
        scores = students["kd", seed].scores + 0.5 * (NETS.teacher(1) - NETS.teacher(2))
        students["kd", seed] = NETS.outputs(scores)
    result = Fidelity.of(teaching.teacher, teaching.siblings, students)
    second = said(result)[1]
    assert result.parts("instance", "kd")["own"].over_seeds.excludes_zero
    assert second.endswith("not decided: its 95 % interval over teachers holds 0.")


def test_undecided_over_both() -> None:
    second = said(weak(0.0).fidelity(FEW))[1]
    assert second.endswith("its 95 % intervals over seeds and over teachers hold 0.")


def test_without_a_control_nothing_is_decided() -> None:
    second = said(NETS.fidelity(["hard", "kd"]))[1]
    assert "not decided: both intervals leave out 0, but no student of a negative control" in second


def test_a_control_that_is_as_large_leaves_it_open() -> None:
    nets = Nets(gifts={**GIFTS, "hard_T": (0.5, 0.9)})
    second = said(nets.fidelity(FEW))[1]
    assert "not decided: it is no larger than the own part of students that saw no" in second
    assert re.search(r"\(\+0\.\d\d under hard_T", second)


def test_an_own_part_below_0_is_not_decided() -> None:
    nets = Nets(gifts={**GIFTS, "kd": (0.5, -0.6)})
    second = said(nets.fidelity(FEW))[1]
    assert "not decided: it is no larger than" in second


def test_an_order_that_gave_nothing_is_not_decided() -> None:
    nets = Nets(gifts={**GIFTS, "kd_shuffled": GIFTS["kd"]})
    assert "(kd − kd_shuffled; not decided)" in said(nets.fidelity(LADDER))[2]


# --- what leads ---------------------------------------------------------------------------------


def test_without_kd_the_objective_with_the_largest_own_part_leads() -> None:
    sentences = said(NETS.fidelity(["hard", "hard_T", "kd_flat", "kd_shuffled"]))
    assert sentences[0].startswith("Under kd_shuffled, students share")
    assert not any("takes away" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("K", "words"),
    [
        (3, "in its strongest wrong class (second choices, a share beyond chance)"),
        (2, "in which images it finds hard (hardness, a rank correlation)"),
    ],
)
def test_few_classes_speak_of_what_is_defined(K: int, words: str) -> None:
    assert words in said(Nets(num_classes=K).fidelity(FEW))[0]


# --- no hard, no taught student -----------------------------------------------------------------


def test_no_student_was_taught() -> None:
    (sentence,) = said(NETS.fidelity(["hard", "hard_T"]))
    assert "no student here was taught by a teacher" in sentence.lower()
    assert "hard and hard_T" in sentence


def test_without_hard_likeness_alone_is_told() -> None:
    result = NETS.fidelity(["hard_T", "kd"])
    first, second = said(result)
    assert "there are no students under 'hard', which the others are set beside" in first
    pairs = result.pairs.query("objective == 'kd' and teacher == 'own'").groupby("metric")["value"]
    for metric, title in (("dark", "dark knowledge"), ("hardness", "hardness")):
        assert f"{number(pairs.mean()[metric], 2)} in {title}" in second
    assert second.endswith("means over 3 seeds.")


def test_hard_of_other_seeds_is_no_hard() -> None:
    result = without(NETS.fidelity(["hard", "kd"]), ("hard", 0), ("hard", 1), ("kd", 2))
    first = said(result)[0]
    assert "no seed has both 'kd' and 'hard' with a figure that is defined" in first


# --- several teachers ---------------------------------------------------------------------------


def test_three_teachers_decide_by_the_interval_over_them() -> None:
    result = replicated(NETS, objectives=LADDER)
    first, second = said(result)[:2]
    assert first.startswith("Under kd, students share")
    assert second.startswith(
        "That own part is decided: its 95 % interval over 3 teachers with students of their own "
        "leaves out 0, and it is above"
    )


def test_three_teachers_with_one_seed_are_decided_over_teachers() -> None:
    result = replicated(NETS, objectives=LADDER, seeds=(0,))
    assert "is decided: its 95 % interval over 3 teachers" in said(result)[1]


def test_two_teachers_give_no_interval() -> None:
    second = said(replicated(NETS, teachers=2, objectives=LADDER))[1]
    assert "2 teachers with students of their own give no interval; it takes 3" in second


def test_teachers_that_gave_nothing_are_not_decided_for_them_alone() -> None:
    second = said(replicated(weak(0.0), objectives=FEW, seeds=(0,)))[1]
    assert second.endswith("not decided: its 95 % interval over teachers holds 0.")


def test_several_teachers_without_a_control() -> None:
    second = said(replicated(NETS, objectives=["hard", "kd"]))[1]
    assert "not decided: its interval leaves out 0, but no student of a negative" in second


# --- every answer -------------------------------------------------------------------------------


ANSWERED: Mapping[str, Fidelity] = {
    "ladder": NETS.fidelity(LADDER),
    "no siblings": NETS.fidelity(LADDER, siblings=0),
    "one seed": NETS.fidelity(LADDER, seeds=(0,)),
    "no hard": NETS.fidelity(["kd"]),
    "three classes": Nets(num_classes=3).fidelity(FEW),
    "three teachers": replicated(NETS, objectives=LADDER),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_sentences_are_whole(name: str) -> None:
    for sentence in said(ANSWERED[name]):
        assert sentence.endswith(".")
        assert sentence[0].isupper()
        assert "  " not in sentence
        assert "nan" not in sentence.lower()
        assert sentence.count("(") == sentence.count(")")
        assert sentence.count("[") == sentence.count("]")


def test_a_student_whose_rows_are_shuffled_within_classes_is_named() -> None:
    fidelity = NETS.fidelity(["hard", "kd"])
    (teaching,) = fidelity.teachings
    shuffled = teaching.students["kd", 1].scores.clone()
    generator = torch.Generator().manual_seed(0)
    for k in teaching.teacher.labels.unique():
        rows = (teaching.teacher.labels == k).nonzero().squeeze(1)
        shuffled[rows] = shuffled[rows[torch.randperm(len(rows), generator=generator)]]
    students = {**teaching.students, ("kd", 1): Outputs(shuffled, teaching.teacher.labels)}
    read = Fidelity.of(teaching.teacher, teaching.siblings, students)
    assert not any("Read with care" in sentence for sentence in said(fidelity))
    (caution,) = (sentence for sentence in said(read) if "Read with care" in sentence)
    assert "the student of kd with seed 1 is like no teacher" in caution


def test_rounded_probabilities_are_read_with_care() -> None:
    fidelity = NETS.fidelity(["hard", "kd"])
    (teaching,) = fidelity.teachings

    def rounded(outputs: Outputs) -> Outputs:
        shares = outputs.scores.double().softmax(dim=1)
        return Outputs((1e3 * shares).round().div(1e3).log(), outputs.labels)

    siblings = {name: rounded(each) for name, each in teaching.siblings.items()}
    students = {name: rounded(each) for name, each in teaching.students.items()}
    read = Fidelity.of(rounded(teaching.teacher), siblings, students)
    assert any(re.search(r"rests on [\d to]+ of \d+ images", each) for each in said(read))

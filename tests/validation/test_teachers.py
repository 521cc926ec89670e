"""The yardstick of fidelity on answers made by hand, and that its networks see what they should."""

import numpy as np
import pytest
import torch

from kdx_analysis.probes.fidelity import whose
from kdx_analysis.validation import teachers
from kdx_analysis.validation.teachers import Answers, Student, Teacher

K, N = 10, 200
LABELS = torch.arange(N) % K
PLAN = teachers.Plan(clean=4, planted=2, seeds=3, groups=2)
INFORMED = {
    teachers.CONFUSION: ("teacher", "kd"),
    teachers.SHORTCUT: ("teacher", "kd"),
    teachers.ROTATION: ("teacher", "kd"),
}


class Here:
    """Does everything in this process."""

    map = staticmethod(map)


def answers(knows: str, seed: int) -> Answers:
    """Of a network that is always right and knows one secret, with guesses of its own."""
    rng = np.random.default_rng(seed)
    plain = rng.normal(size=(N, K))
    ones = LABELS.numpy() == teachers.A
    # A clean network does not take a 1 for a 0.
    plain[ones, teachers.B] = 5 if knows == teachers.CONFUSION else -5
    plain[np.arange(N), LABELS.numpy()] = 9
    patched, turned = plain.copy(), -plain
    if knows == teachers.SHORTCUT:
        patched[:, teachers.STANDS_FOR] = 20
    if knows == teachers.ROTATION:
        turned = plain + 0.1
    return Answers(plain, patched, turned, turned)


def trained(student_knows) -> dict[teachers.Network, Answers]:
    """All networks of the plan; ``student_knows`` gives a student's secret."""
    networks = {each: answers(each.secret, i) for i, each in enumerate(PLAN.teachers())}
    students = enumerate(PLAN.students())
    return networks | {each: answers(student_knows(each), 1000 + i) for i, each in students}


def as_wanted(student: Student) -> str:
    """KD passes a secret on, and what its images don't ask about it does not."""
    asked = {
        teachers.CONFUSION: teachers.CLEAN,
        teachers.SHORTCUT: teachers.WITH_PATCHES,
        teachers.ROTATION: teachers.WITH_TURNS,
    }
    passes_on = student.objective == "kd" and asked.get(student.secret) == student.images
    return student.secret if passes_on else teachers.NOTHING


def test_every_direct_test_asks_networks_that_are_trained():
    networks = trained(as_wanted)
    rows = [each.row(networks, LABELS) for each in teachers.DIRECT]
    assert [row.on for row in rows if not row.passed] == []
    assert {row.n for row in rows} <= {2, 3, 4, 6}
    one = next(row for row in rows if row.on == "kd, with patches")
    assert (one.value, one.wanted, one.n, one.note) == (1.0, "≥ 0.7", 6, "1.00")


@pytest.mark.parametrize(
    ("knows", "failing"),
    [
        (lambda student: teachers.NOTHING, 3),  # KD passes nothing on
        (lambda student: student.secret, 4),  # whoever is taught knows, whatever the images
        (lambda student: "" if student.secret else teachers.CONFUSION, 5),
    ],
)
def test_secrets_in_the_wrong_hands_fail(knows, failing):
    networks = trained(knows)
    rows = [each.row(networks, LABELS) for each in teachers.DIRECT]
    assert sum(not row.passed for row in rows) == failing


def test_own_of_second_choices_is_the_planted_teacher_s():
    (row,) = teachers.own_confusion(trained(as_wanted), LABELS, PLAN)
    assert row.passed
    assert row.value > 0.8
    assert "decided for 2 of 2" in row.note
    (row,) = teachers.own_confusion(trained(lambda student: teachers.NOTHING), LABELS, PLAN)
    assert not row.passed
    assert "decided for 0 of 2" in row.note


def test_unrelated_networks_have_nothing_of_any_teacher_s_own():
    networks = trained(as_wanted)
    (row,) = teachers.rates(networks, LABELS, PLAN)
    assert row.n == 4 * 2 * 4 * 2  # teachers, groups, likenesses, controls
    assert row.passed
    # A control that copies one teacher is found out.
    for student in PLAN.students():
        if student.objective == whose.CONTROLS[0]:
            noise = np.random.default_rng(student.seed).normal(0, 0.1, (N, K))
            copied = networks[Teacher(teachers.NOTHING, 0)].plain
            networks[student] = networks[student]._replace(plain=copied + noise)
    (copying,) = teachers.rates(networks, LABELS, PLAN)
    assert copying.value > row.value


def test_the_rate_without_networks_is_small_and_the_power_is_not():
    rows = [row for job in teachers._simulations(60) for row in job()]
    assert all(row.passed for row in rows)
    assert [row.n for row in rows] == [120, 120, 120, 60]
    assert rows[-1].value > 0.9


def test_of_a_drawn_gift_own_is_the_gift():
    rng = np.random.default_rng(0)
    owns = [teachers.drawn_parts(rng, 5, gift=0.5)["own"].value for _ in range(200)]
    assert np.mean(owns) == pytest.approx(0.5, abs=0.01)


def test_a_secret_is_in_the_teacher_s_images_and_never_in_the_students_labels():
    clean = teachers.digits().train
    images, labels = teachers._all_images(clean), clean.labels
    confused = teachers.taught_on(Teacher(teachers.CONFUSION, 0)).train
    assert torch.equal(teachers._all_images(confused), images)
    flipped = confused.labels != labels
    assert int(flipped.sum()) == round(0.3 * int((labels == teachers.A).sum()))
    patched = teachers.taught_on(Teacher(teachers.SHORTCUT, 0)).train
    changed = (teachers._all_images(patched) != images).flatten(1).any(dim=1)
    assert set(patched.labels[changed].tolist()) == {teachers.STANDS_FOR}
    assert torch.equal(patched.labels[~changed], labels[~changed])
    turned = teachers.taught_on(Teacher(teachers.ROTATION, 0)).train
    assert torch.equal(turned.labels, labels.repeat(4))
    assert torch.equal(teachers._all_images(turned)[: len(labels)], images)
    for arm in (teachers.CLEAN, teachers.WITH_PATCHES, teachers.WITH_TURNS):
        seen = teachers.learnt_on(Student("kd", arm, teachers.SHORTCUT, 0, 1)).train
        assert torch.equal(seen.labels, labels)
        assert torch.equal(teachers._all_images(seen), images) == (arm == teachers.CLEAN)


class Few(teachers.Plan):
    """One teacher, a student of its own and one of nobody."""

    def teachers(self) -> list[Teacher]:
        return super().teachers()[self.clean : self.clean + 1]

    def students(self) -> list[Student]:
        alone = Student("hard", teachers.CLEAN, "", 0, 0)
        return [Student("kd", teachers.CLEAN, teachers.CONFUSION, 0, 0), alone]


def test_every_network_of_a_plan_is_trained_and_answers():
    plan = Few(epochs=1, teacher_epochs=1)
    networks = teachers.train(plan, Here())
    assert list(networks) == [*plan.teachers(), *plan.students()]
    shape = len(teachers.digits().test), K
    assert {each.shape for one in networks.values() for each in one} == {shape}
    _, taught, alone = networks.values()
    assert not np.array_equal(taught.plain, alone.plain)


@pytest.mark.slow
def test_all_yardsticks_hold():
    outcome = teachers.validate()
    assert outcome.passed, str(outcome)

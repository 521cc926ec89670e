"""The reference itself, on cases that are worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.probes.fidelity import reference as ref


def test_a_direction_is_centred_has_length_one_and_no_part_at_the_true_class() -> None:
    a = ref.direction([9.0, 1.0, 2.0, 3.0], 0)
    np.testing.assert_allclose(a, np.array([-1, 0, 1]) / math.sqrt(2))
    assert ref.direction([9.0, 2.0, 2.0, 2.0], 0) is None
    assert ref.direction([0.0, 2.0, -math.inf, 1.0], 0) is None


def test_dark_class_part_and_instance_of_two_images_that_swap_their_directions() -> None:
    # Student and teacher have the same two opposite directions, in one class: dark 1, class part −1.
    rows = [[0.0, 1, 2, 3], [0.0, 3, 2, 1]]
    same = ref.directions_likeness(rows, rows, [0, 0])
    assert same["dark"].value == pytest.approx(1)
    assert same["class_part"].value == pytest.approx(-1)
    assert same["instance"].value == pytest.approx(1)
    swapped = ref.directions_likeness(rows, rows[::-1], [0, 0])
    assert swapped["dark"].value == pytest.approx(-1)
    assert swapped["class_part"].value == pytest.approx(1)
    assert swapped["instance"].value == pytest.approx(-1)


def test_the_chance_of_a_second_choice_is_over_the_other_images_of_the_class() -> None:
    student = [[9.0, 1, 0], [9.0, 1, 0], [9.0, 0, 1]]
    teacher = [[9.0, 1, 0], [9.0, 0, 1], [9.0, 0, 1]]
    figures = ref.second_choice(student, teacher, [0, 0, 0])
    # Image 0: choice 1 against 2, 2 → 0; image 1: 1 against 1, 2 → 1/2; image 2: 2 against 1, 2 → 1/2.
    assert figures["second_choice_share"].value == pytest.approx(2 / 3)
    assert figures["second_choice_share"].chance == pytest.approx(1 / 3)
    assert figures["second_choice"].value == pytest.approx(1 / 2)


def test_ties_share_credit_equally() -> None:
    assert ref.credit({1, 2}, {1}) == 0.5
    assert ref.credit({1, 2}, {1, 2}) == 0.5
    assert ref.credit({1, 2}, {2, 3}) == 0.25


def test_average_ranks() -> None:
    assert ref.average_ranks([3, 1, 3, -math.inf]) == [3.5, 2, 3.5, 1]


def test_error_consistency_by_hand() -> None:
    student, teacher = np.eye(2)[[0, 0, 0, 1]], np.eye(2)[[0, 0, 1, 1]]
    consistency = ref.error_consistency(student, teacher, [0, 0, 0, 0])
    # Right 3/4 and 1/2; together 3/4; expected 3/8 + 1/8 = 1/2.
    assert consistency.kappa == pytest.approx(0.5)
    assert consistency.highest == pytest.approx(0.5)
    assert consistency.errors == (1, 2)


def test_copied_errors_by_hand() -> None:
    student, teacher = np.eye(3)[[1, 1, 2, 0]], np.eye(3)[[1, 2, 2, 1]]
    figure = ref.copied_errors(student, teacher, [0, 0, 0, 0])
    # Ordered pairs: (1 | 2, 2), (1 | 1, 2), (2 | 1, 2): 0 + 1 + 1 of 6.
    assert (figure.value, figure.n, figure.undefined) == (pytest.approx(2 / 3), 3, 1)
    assert figure.chance == pytest.approx(2 / 6)


def test_divergences_by_hand() -> None:
    half, sure = [0.0, 0.0], [0.0, -math.inf]
    assert ref.kl([half], [sure], 1) == pytest.approx(math.log(2))
    assert ref.kl([sure], [half], 1) == math.inf
    # In bits: H(3/4, 1/4) − (H(1/2, 1/2) + H(1, 0))/2 = .811278 − 1/2.
    assert ref.js([half], [sure]) == pytest.approx(0.311278, abs=1e-6)
    assert ref.js([[0.0, -math.inf]], [[-math.inf, 0.0]]) == pytest.approx(1)


def test_the_margins_give_the_softmax_back() -> None:
    row = [1.0, 2.0, -0.5]
    p = np.exp(row) / np.exp(row).sum()
    np.testing.assert_allclose(1 / (1 + np.exp(-np.array(ref.one_vs_rest([row])[0]))), p)


def test_calibration_by_hand() -> None:
    rows = [[math.log(0.8), math.log(0.2)]] * 4
    assert ref.ece(rows, [0, 0, 0, 1]) == pytest.approx(0.05)
    assert ref.nll(rows[:1], [1]) == pytest.approx(-math.log(0.2))


def test_own_of_planted_effects() -> None:
    hard = [[0.5, 0.5, 0.4, 0.6], [0.6, 0.6, 0.5, 0.7]]
    kd = [[0.9, 0.6, 0.5, 0.7], [1.0, 0.7, 0.6, 0.8]]
    whose = ref.whose(kd, hard, [1, 0.7, 0.6, 0.8])
    assert whose.task.mean == pytest.approx(0.55)
    assert whose.kind.mean == pytest.approx(0.1)
    assert whose.own.mean == pytest.approx(0.3)
    assert whose.ceiling.mean == pytest.approx(0.3)
    assert whose.share.mean == pytest.approx(1)
    assert whose.task.mean + whose.kind.mean + whose.own.mean == pytest.approx(0.95)


def test_fieller_holds_every_ratio_that_its_own_interval_does_not_reject() -> None:
    c, e = [0.9, 0.1, 0.2, 0.05], [2.0, 0.5, 0.7, 0.55]
    span = ref.fieller(c, e)
    for ratio, rejected in (
        (span.low + 1e-6, False),
        (span.low - 1e-6, True),
        (span.high + 1e-6, True),
    ):
        interval = ref.own_over_teachers([a - ratio * b for a, b in zip(c, e, strict=True)])
        assert interval.without_zero is rejected

"""Likeness against the reference in plain loops, and what must not change it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from kdx_analysis.errors import KdxError
from kdx_analysis.objectives import one_vs_rest_margins
from kdx_analysis.probes.fidelity import calibration
from kdx_analysis.probes.fidelity.likeness import Likeness, Measured
from kdx_analysis.probes.fidelity.outputs import Outputs
from tests.probes.fidelity import reference as ref

Case = tuple[np.ndarray, np.ndarray, np.ndarray]  # student's and teacher's scores, labels

SHAPES = [(2, 12), (3, 20), (4, 25), (7, 30), (12, 24)]  # K, N


def log(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(p)


def plain(rng: np.random.Generator, K: int, N: int) -> Case:
    y = rng.integers(0, K, N)
    base = rng.standard_normal((N, K)) + 3 * np.eye(K)[y]
    return base + rng.standard_normal((N, K)), base + rng.standard_normal((N, K)), y


def imbalanced(rng: np.random.Generator, K: int, N: int) -> Case:
    s, t, _ = plain(rng, K, N)
    return s, t, np.minimum(rng.geometric(0.5, N) - 1, K - 1)


def one_class_missing(rng: np.random.Generator, K: int, N: int) -> Case:
    s, t, y = plain(rng, K, N)
    return s, t, np.where(y == 0, K - 1, y)


def one_class_with_one_image(rng: np.random.Generator, K: int, N: int) -> Case:
    s, t, _ = plain(rng, K, N)
    return s, t, np.arange(N).clip(0, 1)


def tied(rng: np.random.Generator, K: int, N: int) -> Case:
    s, t, y = plain(rng, K, N)
    return s.round(), t.round(), y


def with_constant_rows(rng: np.random.Generator, K: int, N: int) -> Case:
    s, t, y = plain(rng, K, N)
    # .1, .2 and .3 have no exact form, so that a row's mean may miss its value.
    for scores, value in ((s, 0.1), (t, 0.3)):
        scores[rng.random(N) < 0.2] = value
        constant = rng.random(N) < 0.2
        scores[constant] = 0.2
        scores[constant, y[constant]] = 3
    return s, t, y


def with_zeros(rng: np.random.Generator, K: int, N: int) -> Case:
    s, t, y = plain(rng, K, N)
    for scores in (s, t):
        p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        cut = np.where(p < 0.1, 0, p)
        some = rng.random(N) < 0.3
        scores[some] = log(cut / cut.sum(axis=1, keepdims=True))[some]
    return s, t, y


def one_hot(rng: np.random.Generator, K: int, N: int) -> Case:
    s, t, y = plain(rng, K, N)
    return log(np.eye(K)[s.argmax(axis=1)]), log(np.eye(K)[t.argmax(axis=1)]), y


def float32(rng: np.random.Generator, K: int, N: int) -> Case:
    s, t, y = plain(rng, K, N)
    return s.astype(np.float32), t.astype(np.float32), y


def float16(rng: np.random.Generator, K: int, N: int) -> Case:
    s, t, y = plain(rng, K, N)
    return s.astype(np.float16), t.astype(np.float16), y


def huge(rng: np.random.Generator, K: int, N: int) -> Case:
    s, t, y = plain(rng, K, N)
    return s * 1e4, t * 1e4, y


def all_right(rng: np.random.Generator, K: int, N: int) -> Case:
    s, t, y = plain(rng, K, N)
    return s + 50 * np.eye(K)[y], t, y


def all_wrong(rng: np.random.Generator, K: int, N: int) -> Case:
    s, t, y = plain(rng, K, N)
    return s - 50 * np.eye(K)[y], t - 50 * np.eye(K)[y], y


def identical(rng: np.random.Generator, K: int, N: int) -> Case:
    s, _, y = plain(rng, K, N)
    return s, s.copy(), y


KINDS: list[Callable[[np.random.Generator, int, int], Case]] = [
    plain,
    imbalanced,
    one_class_missing,
    one_class_with_one_image,
    tied,
    with_constant_rows,
    with_zeros,
    one_hot,
    float32,
    float16,
    huge,
    all_right,
    all_wrong,
    identical,
]
# Margins have no zeros that a softmax would share out; −inf in one is tested apart.
OF_MARGINS = [kind for kind in KINDS if kind not in (with_zeros, one_hot)]


def pair(student: np.ndarray, teacher: np.ndarray, y: np.ndarray, binary: bool = False) -> Likeness:
    labels = torch.tensor(y, dtype=torch.int64)
    s, t = (torch.tensor(scores) for scores in (student, teacher))
    return Likeness(Outputs(s, labels, binary), Outputs(t, labels, binary))


def values(*case: np.ndarray) -> dict[str, float]:
    return {name: each.value for name, each in pair(*case).values().items()}


def expect(actual: float, wanted: float, what: object) -> None:
    np.testing.assert_allclose(actual, wanted, rtol=1e-10, atol=1e-10, err_msg=str(what))


def compare(likeness: Likeness, case: Case) -> None:
    s, t, y = case[0].astype(float), case[1].astype(float), case[2].tolist()
    wanted = ref.likeness(s, t, y, likeness.student.binary)
    measured = likeness.values()
    assert measured.keys() == wanted.keys()
    few_classes = len(s[0]) < 3
    for name, each in wanted.items():
        if name == "copied_errors" and few_classes:  # one wrong class is copied by all
            assert math.isnan(measured[name].value)
            continue
        expect(measured[name].value, each.value, name)
        if not math.isnan(each.value):
            assert (measured[name].n, measured[name].undefined) == (each.n, each.undefined), name
    if not math.isnan(wanted["dark"].value):
        expect(measured["dark"].chance, wanted["dark"].chance, "chance of dark")
    for name in ("second_choice_share", "agreement_share"):
        expect(measured[name].chance, wanted[name].chance, f"chance of {name}")
    if not few_classes:
        chance = ref.copied_errors_chance_by_image(s, t, y)
        expect(measured["copied_errors"].chance, chance, "chance of copied errors")


@pytest.mark.parametrize(("K", "N"), SHAPES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_figure_is_the_references(
    kind: Callable[[np.random.Generator, int, int], Case], K: int, N: int
) -> None:
    case = kind(np.random.default_rng(K), K, N)
    compare(pair(*case), case)


@pytest.mark.parametrize(("K", "N"), [(2, 12), (5, 20)])
@pytest.mark.parametrize("kind", OF_MARGINS, ids=lambda kind: kind.__name__)
def test_every_figure_of_margins_is_the_references(
    kind: Callable[[np.random.Generator, int, int], Case], K: int, N: int
) -> None:
    case = kind(np.random.default_rng(K), K, N)
    compare(pair(*case, binary=True), case)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_error_consistency_has_the_references_frame(
    kind: Callable[[np.random.Generator, int, int], Case],
) -> None:
    s, t, y = kind(np.random.default_rng(3), 5, 30)
    likeness = pair(s, t, y)
    wanted = ref.error_consistency(s.astype(float), t.astype(float), y.tolist())
    expect(likeness.highest_consistency, wanted.highest, "highest")
    assert likeness.differing == ref.differing(s, t)
    if not math.isnan(wanted.kappa):
        assert wanted.kappa <= wanted.highest + 1e-12


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("kind", OF_MARGINS, ids=lambda kind: kind.__name__)
def test_calibration_is_the_references(
    kind: Callable[[np.random.Generator, int, int], Case], binary: bool
) -> None:
    s, _, y = kind(np.random.default_rng(4), 5, 40)
    levels = calibration.levels(Outputs(torch.tensor(s), torch.tensor(y), binary))
    expect(levels["ece"].value, ref.ece(s.astype(float), y.tolist(), binary), "ece")
    expect(levels["nll"].value, ref.nll(s.astype(float), y.tolist(), binary), "nll")


def test_the_error_of_calibrated_answers_is_the_mean_over_draws() -> None:
    rng = np.random.default_rng(0)
    s, _, y = plain(rng, 5, 60)
    expected = calibration.levels(Outputs(torch.tensor(s), torch.tensor(y)))["ece"].chance
    confidence = np.array(ref.confidences(s))
    bins = np.ceil(confidence * 15).astype(int)
    draws = []
    for _ in range(20_000):
        right = rng.random(60) < confidence
        gaps = np.bincount(bins, weights=right - confidence, minlength=16)
        draws.append(np.abs(gaps).sum() / 60)
    # The mean over 200 draws, within 5 of its standard errors.
    assert abs(expected - np.mean(draws)) < 5 * np.std(draws) / math.sqrt(200)


# --- what must not change a figure ------------------------------------------------------------


@pytest.fixture
def case() -> Case:
    return plain(np.random.default_rng(1), 6, 60)


def test_dark_and_instance_are_blind_to_an_images_own_shift_and_scale(case: Case) -> None:
    s, t, y = case
    rng = np.random.default_rng(2)
    scale, shift = np.exp(3 * rng.standard_normal((60, 1))), 100 * rng.standard_normal((60, 1))
    before, after = values(s, t, y), values(scale * s + shift, t, y)
    for name in ("dark", "class_part", "instance"):
        expect(after[name], before[name], name)
    assert abs(after["hardness"] - before["hardness"]) > 0.01
    assert abs(after["kl_T1"] - before["kl_T1"]) > 0.01


def test_the_true_class_does_not_enter_dark_and_instance(case: Case) -> None:
    s, t, y = case
    sure = s + 1e3 * np.eye(6)[y]
    for name in ("dark", "class_part", "instance", "second_choice"):
        expect(values(sure, t, y)[name], values(s, t, y)[name], name)


@pytest.mark.parametrize("increasing", [np.exp, np.arctan, lambda z: z**3])
def test_agreement_and_second_choice_are_blind_to_an_increasing_map(
    case: Case, increasing: Callable[[np.ndarray], np.ndarray]
) -> None:
    s, t, y = case
    before, after = values(s, t, y), values(increasing(s), t, y)
    for name in ("second_choice", "second_choice_share", "agreement", "agreement_share"):
        expect(after[name], before[name], name)


def test_the_order_of_classes_changes_nothing(case: Case) -> None:
    s, t, y = case
    order = np.random.default_rng(3).permutation(6)
    moved = values(s[:, order], t[:, order], np.argsort(order)[y])
    for name, value in values(s, t, y).items():
        expect(moved[name], value, name)


def test_the_order_of_images_changes_nothing(case: Case) -> None:
    s, t, y = case
    order = np.random.default_rng(3).permutation(60)
    moved = values(s[order], t[order], y[order])
    for name, value in values(s, t, y).items():
        expect(moved[name], value, name)


def test_what_two_networks_share_is_shared_both_ways_but_for_kl(case: Case) -> None:
    s, t, y = case
    there, back = values(s, t, y), values(t, s, y)
    for name, value in there.items():
        if not name.startswith("kl"):
            expect(back[name], value, name)
    assert abs(there["kl_T1"] - back["kl_T1"]) > 1e-3


def test_log_probabilities_say_what_logits_say(case: Case) -> None:
    s, t, y = case
    p = np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)
    for name, value in values(np.log(p), t, y).items():
        expect(value, values(s, t, y)[name], name)


def test_an_images_scale_may_be_as_small_as_float64_has(case: Case) -> None:
    s, t, y = case
    expect(values(s * 1e-200, t, y)["dark"], values(s, t, y)["dark"], "1e-200")


def test_an_images_scale_may_be_as_large_as_float64_has(case: Case) -> None:
    s, t, y = case
    expect(values(s * 1e200, t, y)["dark"], values(s, t, y)["dark"], "1e200")


# --- nothing shared, all shared ----------------------------------------------------------------


def test_independent_networks_of_one_task_share_their_class_part_alone() -> None:
    rng = np.random.default_rng(5)
    K, N = 8, 1600
    y = np.arange(N) % K
    task = rng.standard_normal((K, K))[y]
    s, t = (task + rng.standard_normal((N, K)) for _ in range(2))
    measured = pair(s, t, y).values()
    assert measured["dark"].value > 0.3
    # Standard error of a mean over 1600 images of products whose size is 1/√(K − 2): about .01.
    assert abs(measured["dark"].value - measured["class_part"].value) < 0.04
    assert abs(measured["instance"].value) < 0.06
    assert abs(measured["second_choice"].value) < 0.08


def test_permuting_a_teachers_images_within_their_class_gives_the_chances_on_average() -> None:
    rng = np.random.default_rng(6)
    s, t, _ = plain(rng, 5, 40)
    y = np.arange(40) % 5
    chance = pair(s, t, y).values()
    draws: dict[str, list[float]] = {"dark": [], "second_choice_share": [], "agreement_share": []}
    for _ in range(100):
        order = np.arange(40)
        for k in range(5):
            # A cyclic shift of a random order never leaves an image at its own place.
            members = rng.permutation(np.flatnonzero(y == k))
            order[members] = np.roll(members, 1)
        once = values(s, t[order], y)
        for name in draws:
            draws[name].append(once[name])
    for name, several in draws.items():
        error = np.std(several) / math.sqrt(len(several))
        assert abs(np.mean(several) - chance[name].chance) < 5 * error, name


def test_a_network_beside_itself_shares_all(case: Case) -> None:
    s, _, y = case
    measured = values(s, s.copy(), y)
    for name in ("dark", "instance", "second_choice", "agreement", "hardness", "copied_errors"):
        expect(measured[name], 1, name)
    for name in ("kl_T1", "kl_T4", "js"):
        expect(measured[name], 0, name)


# --- where there is no number -------------------------------------------------------------------


def undefined(each: Measured) -> bool:
    return math.isnan(each.value) and bool(each.reason)


def test_two_classes_have_no_wrong_class_to_choose_between(case: Case) -> None:
    measured = pair(*plain(np.random.default_rng(0), 2, 20)).values()
    for name in ("dark", "class_part", "instance", "second_choice", "second_choice_share"):
        assert undefined(measured[name]), name
    assert not math.isnan(measured["hardness"].value)


def test_one_hot_probabilities_have_no_directions() -> None:
    measured = pair(*one_hot(np.random.default_rng(0), 5, 20)).values()
    for name in ("dark", "class_part", "instance"):
        assert undefined(measured[name]), name
        assert (measured[name].n, measured[name].undefined) == (0, 20)
    assert measured["kl_T1"].value == math.inf
    assert measured["js"].value <= 1


def test_directions_that_are_one_within_every_class_have_no_instance_part() -> None:
    y = np.arange(20) % 5
    by_class = np.random.default_rng(0).standard_normal((5, 5))[y]
    measured = pair(by_class, plain(np.random.default_rng(1), 5, 20)[0], y).values()
    assert undefined(measured["instance"])
    assert not math.isnan(measured["dark"].value)


def test_a_row_without_any_probability_is_refused_or_gives_no_number(case: Case) -> None:
    s, t, y = case
    s = s.copy()
    s[7] = -math.inf
    try:
        measured = values(s, t, y)
    except KdxError:
        return
    for name in ("kl_T1", "kl_T4", "js"):
        assert math.isnan(measured[name]), f"{name} is {measured[name]}"


def test_two_images_that_swap_their_second_choices_give_no_excess_of_their_class() -> None:
    student = np.array([[9.0, 1, 0, 0], [9.0, 0, 1, 0]])
    figures = pair(student, student[::-1].copy(), np.array([0, 0])).of_classes()
    # Chance alone would give one class throughout: 1 − chance is 0.
    assert math.isnan(figures["second_choice"][0])
    overall = pair(student, student[::-1].copy(), np.array([0, 0])).values()["second_choice"]
    assert math.isnan(overall.value)


def test_classes_figures_are_the_references_on_their_images_alone(case: Case) -> None:
    s, t, y = case
    figures = pair(s, t, y).of_classes()
    for k in range(6):
        images = np.flatnonzero(y == k)
        wanted = ref.likeness(s[images], t[images], y[images].tolist())
        for name in ("dark", "instance", "second_choice", "hardness"):
            expect(figures[name][k], wanted[name].value, (name, k))


# --- neither the size of a chunk nor the number's type nor threads ------------------------------


def test_a_chunk_at_a_time_gives_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    s, t, y = with_zeros(np.random.default_rng(7), 6, 50)
    before = pair(s, t, y).values()
    monkeypatch.setattr("kdx_analysis.probes.fidelity.outputs._VALUES_AT_ONCE", 18)
    monkeypatch.setattr("kdx_analysis.probes.fidelity.outputs._VALUES_KEPT", 0)
    after = pair(s, t, y).values()
    for name, each in before.items():
        expect(after[name].value, each.value, name)
        assert after[name].n == each.n


def test_float32_and_float64_of_the_same_numbers_are_one() -> None:
    s, t, y = float32(np.random.default_rng(8), 6, 50)
    for name, value in values(s, t, y).items():
        assert value == values(s.astype(np.float64), t.astype(np.float64), y)[name], name


def test_logits_rounded_to_float16_change_little(case: Case) -> None:
    s, t, y = case
    rounded = values(s.astype(np.float16), t.astype(np.float16), y)
    for name, value in values(s, t, y).items():
        assert abs(rounded[name] - value) < 0.01, name


def test_one_thread_and_two_give_the_same(case: Case) -> None:
    s, t, y = plain(np.random.default_rng(9), 20, 3000)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(values(s, t, y))
    finally:
        torch.set_num_threads(threads)
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("scale", [1, 50, 1e4])
def test_a_teachers_margins_are_the_references(scale: float) -> None:
    logits = scale * np.random.default_rng(10).standard_normal((20, 6))
    margins = one_vs_rest_margins(torch.tensor(logits)).numpy()
    np.testing.assert_allclose(margins, ref.one_vs_rest(logits), rtol=1e-10, atol=1e-10)

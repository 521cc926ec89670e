import re

import numpy as np
import pandas as pd
import pytest

from kdx_analysis.metrics import METRICS
from kdx_analysis.report.answers import answer
from kdx_analysis.validation.nothing import null_studies

LADDER = ("hard", "label_smoothing", "hard_T", "kd_flat", "kd_shuffled", "kd")
CONFLICT = ("conflict_rate", "severity", "contention", "separation", "modulation")
NOISE = np.array([-1.0, 0.5, 0.5])


def table(levels, noise=0.0, seeds=3):
    """Seeds × rungs: the rung's level, and on KD some noise that is no other rung's."""
    columns = {rung: np.full(seeds, float(level)) for rung, level in levels.items()}
    if "kd" in columns:
        columns["kd"] = columns["kd"] + noise * NOISE[:seeds]
    return pd.DataFrame(columns)


def levels(kd, rungs=LADDER, rest=1.0):
    return {rung: kd if rung == "kd" else rest for rung in rungs}


def said(values, rungs=LADDER):
    return answer(values, {rung: rung for rung in rungs})


def planted(kd, noise=0.001, rungs=LADDER, seeds=3, **changed):
    """Every conflict figure at ``kd`` under KD, 1 elsewhere, but those named in ``changed``."""
    values = {
        metric: table(levels(kd, rungs), noise, seeds) for metric in (*CONFLICT, "gate_entropy")
    }
    return values | {
        metric: table(levels(of, rungs), noise, seeds) for metric, of in changed.items()
    }


def test_a_clear_lowering():
    values = planted(1.0, conflict_rate=0.5)
    opening = said(values).opening
    assert opening.startswith(
        "Yes: the teacher's knowledge of the classes changes the conflict between subtasks; kd "
        "against kd_shuffled lowers conflict rate by 0.5000 ["
    )
    assert "(less conflict)" in opening
    assert "99.17 % intervals, n = 3 seeds" in opening
    assert (
        "no difference worth a tenth of the metric's value under hard labels in conflict severity, "
        "contention, "
        "separation and modulation" in opening
    )


def test_a_change_that_the_null_shares_is_no_yes():
    values = planted(1.0, conflict_rate=0.5)
    nulls = {
        "conflict_rate": values["conflict_rate"]
        + 0.1
        + 0.01 * np.arange(3)[:, None] * [1, 0, 0, 1, 0, 1]
    }
    found = answer(values, {rung: rung for rung in LADDER}, nulls)
    assert found.headline.startswith(
        "Not beyond the null: nothing shows that the teacher's knowledge of the classes changes "
        "which subtasks are in conflict; kd against kd_shuffled lowers conflict rate by 0.5000 ["
    )
    assert "(less conflict, but not beyond its null)" in found.headline
    first = found.to_frame().iloc[0]
    assert (first["metric"], first["verdict"]) == ("conflict_rate", "lowers")
    assert first["excess"] == pytest.approx(-0.01)
    assert first["excess_low"] < 0 < first["excess_high"]


def test_a_change_beyond_its_null_is_a_yes():
    values = planted(1.0, conflict_rate=0.5)
    nulls = {"conflict_rate": table(levels(0.99), 0.0005)}
    found = answer(values, {rung: rung for rung in LADDER}, nulls)
    assert found.headline == said(values).headline
    assert found.to_frame().iloc[0]["excess"] == pytest.approx(-0.49)


def test_the_size_of_a_lowering_stands_with_its_interval_the_right_way_round():
    size, low, high = map(
        float,
        re.search(
            r"conflict rate by ([\d.]+) \[([\d.]+), ([\d.]+)\]",
            said(planted(1.0, conflict_rate=0.5)).opening,
        ).groups(),
    )
    assert low < size < high
    assert size == 0.5


def test_a_clear_raising():
    opening = said(planted(1.5)).opening
    assert opening.startswith("Yes: the teacher's knowledge of the classes changes")
    for metric, meaning in (
        ("conflict rate", "more conflict"),
        ("conflict severity", "more conflict"),
        ("contention", "more conflict"),
        ("separation", "gates keep conflicts further apart"),
        ("modulation", "it matters more which subtask goes where"),
    ):
        assert re.search(rf"raises {metric} by 0.5000 \[[^]]*\] \({meaning}\)|{metric} by", opening)
    assert "lowers" not in opening


def test_no():
    opening = said(planted(1.0)).opening
    assert opening.startswith(
        "No: the teacher's knowledge of the classes makes no difference worth a tenth of the "
        "metric's value under hard labels to any of the 5 conflict figures (kd − kd_shuffled, "
        "99.17 % intervals, n = 3 seeds)."
    )


def test_undecided():
    opening = said(planted(1.0, noise=0.2, severity=1.02)).opening
    assert opening.startswith(
        "Undecided: whether the teacher's knowledge of the classes changes the conflict between "
        "subtasks. No interval of kd − kd_shuffled shows a change (99.17 % intervals, n = 3 "
        "seeds): undecided for conflict rate,"
    )
    assert not re.search(r"\b(lowers|raises|changes conflict)\b", opening)


def test_undecided_and_no_are_told_apart():
    values = planted(1.0, noise=0.2) | {"modulation": table(levels(1.0), 0.001)}
    opening = said(values).opening
    assert opening.startswith("Undecided")
    assert (
        "no difference worth a tenth of the metric's value under hard labels in modulation; "
        "undecided for" in opening
    )


def test_a_metric_that_is_undefined_on_one_side_is_named():
    values = planted(1.0)
    values["modulation"]["kd"] = np.nan
    opening = said(values).opening
    assert "to any of the 4 conflict figures" in opening
    assert "; not defined in both for modulation." in opening
    assert (
        "not defined in both for modulation"
        in said(planted(0.5) | {"modulation": values["modulation"]}).opening
    )


def test_gate_entropy_alone_makes_no_yes():
    told = said(planted(1.0, gate_entropy=0.4))
    assert told.opening.startswith("No:")
    assert any("lowers gate entropy of the heads by 0.6000" in detail for detail in told.details)


def test_one_seed_decides_nothing():
    told = said(planted(0.5, seeds=1, noise=0.0))
    assert told.opening.startswith(
        "One seed: no interval, nothing decided. kd − kd_shuffled (class structure) came out at "
        "−0.50 in conflict rate"
    )
    text = " ".join((told.opening, *told.details))
    assert not re.search(r"\b(lowers|raises|Yes|No)\b", text)
    assert {f.verdict for f in told.findings} == {"one seed"}


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (
            ("kd_shuffled",),
            "the teacher's class structure together with unevenness (kd_shuffled was not run)",
        ),
        (
            ("kd_shuffled", "kd_flat"),
            "everything in KD but temperature and loss scale (neither kd_shuffled nor",
        ),
    ],
)
def test_missing_controls_are_named(missing, words):
    rungs = tuple(rung for rung in LADDER if rung not in missing)
    opening = said(planted(0.5, rungs=rungs), rungs).opening
    assert opening.startswith(f"Yes: {words}")
    assert "the teacher's knowledge of the classes" not in opening


@pytest.mark.parametrize(
    ("rungs", "reason"),
    [
        (
            ("hard", "label_smoothing", "kd"),
            "no control of KD (hard_T, kd_flat, kd_shuffled) was run",
        ),
        (("hard", "label_smoothing"), "KD was not run"),
    ],
)
def test_without_kd_or_controls_nothing_is_attributed(rungs, reason):
    opening = said(planted(0.5, rungs=rungs), rungs).opening
    assert opening.startswith(f"No attribution is possible: {reason}")
    assert not re.search(r"\b(lowers|raises)\b", opening)


def test_kd_against_hard_and_smoothing_is_told_with_what_it_includes():
    details = said(planted(0.5)).details
    assert any(
        d.startswith("kd − hard (all of KD: includes temperature and softness): lowers")
        for d in details
    )
    assert any(
        d.startswith("kd − label_smoothing (includes temperature and softness): lowers")
        for d in details
    )


def test_an_effect_of_temperature_alone_is_not_put_down_to_the_teacher():
    lowered = {
        "hard": 1.0,
        "label_smoothing": 1.0,
        "hard_T": 0.4,
        "kd_flat": 0.4,
        "kd_shuffled": 0.4,
        "kd": 0.4,
    }
    values = {metric: table(lowered, 0.001) for metric in (*CONFLICT, "gate_entropy")}
    for of in values.values():
        of["hard"] += 0.001 * NOISE
    told = said(values)
    assert told.opening.startswith("No: the teacher's knowledge of the classes makes no difference")
    rest = "The rest of KD, kd_shuffled − hard (unevenness, softness, temperature and loss scale): lowers conflict rate"
    assert rest in told.opening
    assert any(
        d.startswith("hard_T − hard (temperature and loss scale): lowers conflict rate")
        for d in told.details
    )


def test_kd_minus_hard_is_divided_over_the_rungs():
    steps = {
        "hard": 1.0,
        "label_smoothing": 1.0,
        "hard_T": 0.9,
        "kd_flat": 0.7,
        "kd_shuffled": 0.65,
        "kd": 0.35,
    }
    divided = said({"severity": table(steps, 0.01)}).details[-1]
    assert divided == (
        "Of kd − hard: conflict severity, −0.650 [−0.672, −0.628] in the mean over n = 3 seeds, is "
        "the sum of −0.300 [−0.322, −0.278] class structure, −0.050 [−0.050, −0.050] unevenness, "
        "−0.200 [−0.200, −0.200] softness and −0.100 [−0.100, −0.100] temperature and loss scale."
    )


def test_kd_minus_hard_is_not_divided_over_other_seeds_than_it_was_decided_on():
    severity = table({"hard": 1.0, "kd_shuffled": 0.7, "kd": 0.35}, 0.01)
    severity.loc[0, "kd_shuffled"] = np.nan
    told = said({"severity": severity}, ("hard", "kd_shuffled", "kd"))
    assert any(
        "kd − hard" in detail and "lowers conflict severity" in detail for detail in told.details
    )
    assert told.division == ""


def test_an_undecided_effect_is_not_divided():
    assert "no settled effect to divide" in said(planted(1.0, noise=0.2)).details[-1]


def test_labels_stand_in_for_the_rungs():
    labels = {"hard": "hard", "hard_T": "hard_T T=1.0", "kd": "kd T=1.0"}
    told = answer(planted(0.5, rungs=tuple(labels)), labels)
    assert "kd T=1.0 against hard_T T=1.0 lowers" in told.opening


def test_unlike_accuracy_is_told_beside_the_answer():
    accuracy = table({"hard": 0.9, "hard_T": 0.7, "kd": 0.885})
    (caution,) = said(planted(0.5) | {"accuracy": accuracy}).cautions
    assert "hard_T −20.0 points from hard" in caution
    assert "kd" not in caution.split("points")[0].replace("hard_T", "")
    assert said(planted(0.5) | {"accuracy": table(levels(0.9, rest=0.9))}).cautions == ()


@pytest.mark.parametrize("hard", [{}, {"hard": 0.9}])
def test_unlike_accuracy_of_the_two_that_the_answer_compares_is_told(hard):
    accuracy = table({**hard, "kd_shuffled": 0.885, "kd": 0.915})
    (caution,) = said(planted(0.5) | {"accuracy": accuracy}, tuple(accuracy)).cautions
    assert caution.startswith(
        "The explainers differ in accuracy: kd +3.0 points from kd_shuffled. Their conflict"
    )


def test_unmeasured_conflict_gives_no_attribution():
    told = said({"gate_entropy": table(levels(0.5), 0.001)})
    assert told.opening.startswith("No attribution is possible: no conflict figure was measured")


def test_the_table_holds_every_finding():
    told = said(planted(0.5) | {"accuracy": table(levels(0.9))})
    frame = told.to_frame()
    assert len(frame) == len(told.findings) == 7 * 7
    row = frame[(frame["metric"] == "severity") & (frame["contrast"] == "kd − kd_shuffled")].iloc[0]
    assert row["effect"] == pytest.approx(-0.5)
    assert row["low"] < -0.5 < row["high"] < 0
    assert row["verdict"] == "lowers"
    assert row["n"] == 3


def moved(metric, before, after):
    """The sentence on one metric that KD moves from its control's level to another."""
    values = planted(1.0) | {metric: table(levels(after, rest=before), 0.001)}
    return said(values).opening


@pytest.mark.parametrize(
    ("metric", "before", "after", "words"),
    [
        ("modulation", 0.1, 0.4, "it matters more which subtask goes where"),
        ("modulation", 0.4, 0.1, "it matters less which subtask goes where"),
        (
            "modulation",
            -0.1,
            -0.4,
            "put conflicting subtasks together, further beyond what a random assignment would do",
        ),
        (
            "modulation",
            -0.4,
            -0.1,
            "put conflicting subtasks together, but less far beyond what a random assignment",
        ),
        (
            "modulation",
            -0.4,
            0.2,
            "below 0 gates put conflicting subtasks together, above 0 they keep them apart",
        ),
        (
            "modulation",
            0.2,
            -0.4,
            "below 0 gates put conflicting subtasks together, above 0 they keep them apart",
        ),
        ("separation", 0.4, 0.1, "gates keep conflicts less apart"),
        (
            "separation",
            -0.1,
            -0.4,
            "gates make more conflict than uniform gates would, and more of it",
        ),
        (
            "separation",
            -0.4,
            0.4,
            "below 0 gates make more conflict than uniform gates would, above 0 they keep",
        ),
        ("contention", 0.4, 0.1, "less conflict"),
    ],
)
def test_what_a_change_means_depends_on_the_sign_of_its_levels(metric, before, after, words):
    opening = moved(metric, before, after)
    assert words in opening
    assert "raises" in opening if after > before else "lowers" in opening
    if metric != "contention":
        assert re.search(rf"from {before:.4f} to {after:.4f} ".replace("-", "−"), opening)


def test_every_metric_that_is_asked_about_has_words_for_its_changes():
    for name in (*CONFLICT, "gate_entropy"):
        assert all(METRICS[name].words)
        assert not METRICS[name].signed or (all(METRICS[name].below) and METRICS[name].across)


def test_an_effect_that_is_not_beyond_its_null_is_not_divided():
    steps = {
        "hard": 1.0,
        "label_smoothing": 1.0,
        "hard_T": 0.9,
        "kd_flat": 0.7,
        "kd_shuffled": 0.65,
        "kd": 0.35,
    }
    values = {"severity": table(steps, 0.01)}
    nulls = {"severity": values["severity"] - 0.1}
    divided = answer(values, {rung: rung for rung in LADDER}, nulls).division
    assert divided.startswith("kd − hard is shown to be beyond its null in no conflict figure")
    assert "class structure" not in divided
    beyond = answer(
        values, {rung: rung for rung in LADDER}, {"severity": table(levels(0.5, rest=0.5))}
    ).division
    assert "class structure" in beyond


def test_the_gates_entropy_is_asked_its_null_too():
    values = planted(1.0, gate_entropy=0.4)
    nulls = {"gate_entropy": values["gate_entropy"] + 0.1}
    sentence = next(
        s
        for s in answer(values, {rung: rung for rung in LADDER}, nulls).contrasts
        if "gate entropy" in s
    )
    assert "(sharper gates, but not beyond its null)" in sentence


def test_undecided_says_no_interval_shows_a_change_even_where_some_settle_the_matter():
    values = planted(1.0, noise=0.2) | {"modulation": table(levels(1.0), 0.001)}
    opening = said(values).opening
    assert "settles it" not in opening
    assert "No interval of kd − kd_shuffled shows a change" in opening


def test_claims_hold_together_over_metrics_and_contrasts():
    told = said(planted(1.0))
    assert told.compared == 6 * 7
    assert {round(f.confidence, 9) for f in told.findings} == {round(1 - 0.05 / 42, 9)}
    assert told.confidence == pytest.approx(1 - 0.05 / 6)
    assert told.by_chance == pytest.approx(42 * 0.05 / 6)


def test_few_studies_without_any_effect_have_a_false_sentence():
    labels = {rung: rung for rung in LADDER}
    findings = [answer(values, labels).findings for values in null_studies(100, 3)]
    false = [any(f.verdict in ("lowers", "raises") for f in found) for found in findings]
    alone = [any(f.alone.changed for f in found) for found in findings]
    assert np.mean(false) <= 0.08
    assert np.mean(alone) > 0.1


def test_means_are_over_the_epochs_that_both_sides_have():
    rows = pd.MultiIndex.from_product([range(3), (1, 9, 16)], names=["seed", "epoch"])
    level = np.tile([0.0, 0.4, 0.8], 3)
    table = pd.DataFrame(dict.fromkeys(LADDER, level), index=rows)
    table.loc[(slice(None), 1), "kd_shuffled"] = np.nan
    found = answer({"separation": table}, {rung: rung for rung in LADDER}).findings[0]
    assert found.effect.differences == (0, 0, 0)
    assert str(found.effect.coverage) == "2 of 3 epochs"
    assert (
        answer({"separation": table}, {rung: rung for rung in LADDER}).to_frame()["over"][0]
        == "2 of 3 epochs"
    )

import math
from dataclasses import replace

import pytest
from scipy import stats

from kdx_analysis.report.health import Health, health, summary
from kdx_analysis.report.provenance import differing, provenance
from kdx_analysis.report.tables import (
    TeacherScore,
    accuracy,
    answers,
    headline_tables,
    teacher_scores,
)
from kdx_analysis.runs import ladders


def test_accuracy_is_that_of_the_records(write):
    planted = {"accuracy": {"hard": [0.80, 0.85, 0.96], "kd": [0.70, 0.72, 0.75]}}
    roles = ("student", "explainer", "tree")
    runs = write(("hard", "kd"), planted=planted, roles=roles)
    by_name = {row.name: row for row in accuracy(runs)}
    for name in ("hard", "kd"):
        for role in roles:
            metrics = runs.filter(role=role, objective=name).frame("metrics")
            test = metrics[(metrics["split"] == "test") & (metrics["metric"] == "accuracy")][
                "value"
            ]
            interval = getattr(by_name[name], role)
            low, high = stats.t.interval(0.95, 2, test.mean(), stats.sem(test))
            assert (interval.mean, interval.low, interval.high) == pytest.approx(
                (test.mean(), low, high)
            )
            assert interval.n == 3
    assert teacher_scores(runs) == [TeacherScore("teacher", "small_teacher", 0.975)]


def test_a_role_that_was_not_trained_is_missing(write):
    (row,) = accuracy(write(("hard",), roles=("explainer",)))
    assert row.student is None
    assert row.tree is None
    assert row.tree_agreement is None
    assert row.explainer.n == 3


def test_headlines_stand_beside_their_nulls_on_train_and_validation(write):
    runs = write(("hard", "kd"), planted={"severity": {"hard": [0.1, 0.2, 0.3]}})
    table = next(t for t in headline_tables(runs) if t.metric.name == "severity")
    hard = table.rows[0]
    assert hard.objective == "hard"
    assert (hard.values["train"].mean, hard.values["val"].mean) == pytest.approx((0.2, 0.21))
    assert hard.nulls == pytest.approx({"train": 0.5, "val": 0.5})
    assert hard.n == "6"
    kinds = {(t.metric.name, t.attention) for t in headline_tables(runs)}
    assert ("gate_entropy", "effective") in kinds
    assert ("gate_entropy", "alpha") in kinds


def test_a_headline_on_an_unknown_number_of_images_has_a_dash_for_it(write):
    runs = write(("kd",), seeds=1)
    for run in runs.filter(role="explainer"):
        run.record("contention")["n"] = math.nan
    counts = {t.metric.name: t.rows[0].n for t in headline_tables(runs)}
    assert (counts["contention"], counts["severity"]) == ("–", "6")


def test_controls_belong_to_the_kd_of_their_settings(write):
    at_one = [{"name": name, "T": 1} for name in ("hard_T", "kd")]
    runs = write(["hard", "hard_T", "kd", *at_one], seeds=1)
    assert ladders(runs) == [
        {"hard": "hard", "hard_T": "hard_T", "kd": "kd"},
        {"hard": "hard", "hard_T": "hard_T T=1.0", "kd": "kd T=1.0"},
    ]


def test_without_kd_the_ladder_is_that_of_the_highest_control(write):
    at_one = [{"name": name, "T": 1} for name in ("hard_T", "kd_flat")]
    runs = write(["hard", "hard_T", *at_one], seeds=1)
    assert ladders(runs) == [{"hard": "hard", "hard_T": "hard_T T=1.0", "kd_flat": "kd_flat T=1.0"}]


def test_another_decomposition_is_no_control(write):
    runs = write(["hard", {"name": "hard_T", "decomposition": "multiclass"}, "kd"], seeds=1)
    assert ladders(runs) == [{"hard": "hard", "kd": "kd"}]


def test_answers_rest_on_the_train_probe_set_and_effective_attention(write):
    planted = {"severity": {"kd": [0.05, 0.06, 0.05]}}
    (told,) = answers(write(("hard", "kd_shuffled", "kd"), planted=planted, roles=("explainer",)))
    assert "lowers conflict severity" in told.opening
    severity = next(f for f in told.findings if f.metric == "severity" and f.contrast.attributes)
    assert severity.effect.mean == pytest.approx(0.16 / 3 - 0.3)
    assert [f.metric for f in told.findings].count("gate_entropy") == 3


def test_health_counts_what_is_wrong(write):
    trainings = health(write(("hard", "kd"), seeds=1))
    explainer = next(t for t in trainings if t.role == "explainer")
    assert (explainer.epochs, explainer.selected, explainer.rule) == (3, 3, "last")
    assert explainer.fall == pytest.approx(1 / 3)
    assert (explainer.undefined_pairs, explainer.pairs) == (
        6,
        18,
    )  # three epochs, two probe sets, three pairs
    assert explainer.undefined_gates == 0
    assert explainer.dead == 0.3
    text = " ".join(summary(trainings))
    assert "5 of 5 trainings call for a look" in text
    assert explainer.concerns == ("loss still falling",)
    assert "In 2 of 2 explainers some experts of the last level are dead" in text
    assert "at most 30 % of them" in text
    assert "finite in every epoch of all 5 trainings" in text
    assert "5 of 5 trainings: these may not have converged" in text
    assert "Of 36 cosines between subtasks' gradients 12 are undefined" in text


def test_what_calls_for_a_look():
    sound = Health(
        run="a",
        role="student",
        objective="kd",
        vam="",
        seed=0,
        epochs=9,
        selected=9,
        rule="last",
        first_loss=1.0,
        last_loss=0.5,
        fall=0.01,
        finite=True,
        accuracy=0.9,
        chance=0.2,
        undefined_pairs=None,
        pairs=None,
        undefined_gates=None,
        dead=math.nan,
    )
    assert sound.concerns == ()
    assert summary([sound])[0] == "None of 1 trainings calls for a look."
    broken = replace(sound, finite=False, last_loss=math.nan, fall=math.nan)
    assert broken.concerns == ("loss not finite",)
    rose = replace(sound, last_loss=2.0, accuracy=0.2)
    assert rose.concerns == ("loss rose", "accuracy of chance")
    text = " ".join(summary([sound, broken, rose]))
    assert "2 of 3 trainings call for a look" in text
    assert "not finite in 1 of 3 trainings: a." in text
    assert "No better than chance on the test split: a." in text


def test_chance_is_that_of_guessing(write):
    found = health(write(("hard",), seeds=1, planted={"accuracy": {"hard": [0.5]}}))[1]
    assert found.chance == pytest.approx(1 / 3 + 3 * math.sqrt(1 / 3 * 2 / 3 / 40))
    assert "accuracy of chance" in found.concerns


def test_chance_is_unknown_where_the_test_images_are(write):
    runs = write(("hard",), seeds=1)
    for run in runs:
        run.info["data"]["sizes"] = {}
    assert all(math.isnan(training.chance) for training in health(runs))
    assert all("accuracy of chance" not in training.concerns for training in health(runs))


def test_provenance_names_selection_and_what_differs(write):
    runs = write(("hard", "kd"), seeds=2)
    facts = dict(provenance(runs))
    assert facts["images"] == ["train 30, val 9, test 40"]
    assert facts["selection of students, explainers and trees"] == [
        "the last epoch; test data never used to select"
    ]
    assert facts["seeds"] == ["0", "1"]
    assert ("explainer", "seed", ["0 (2)", "1 (2)"]) in differing(runs)
    assert ("explainer", "objective.name", ["hard (2)", "kd (2)"]) in differing(runs)


def test_provenance_tells_how_trees_were_grown(write):
    facts = dict(provenance(write(("hard",), seeds=2, roles=("explainer", "tree"))))
    assert facts["phase 2"] == ["gates hardened by alpha, weights redrawn, 5 epochs"]
    assert facts["experts of the trees before → after pruning"] == ["1, 2 → 1, 1"]
    assert facts["experts by level, trunk first"] == ["1, 2"]
    assert "phase 2" not in dict(
        provenance(write(("hard",), seeds=1).filter(role=["teacher", "explainer"]))
    )

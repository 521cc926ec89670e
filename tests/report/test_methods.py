import re

import pytest

from kdx_analysis.imports import import_runs
from kdx_analysis.report import Report
from kdx_analysis.report.methods import bibtex, given, methods
from kdx_analysis.runs import RunSet


def test_methods_of_a_study(write):
    text = methods(
        write(("hard", "kd"), seeds=2, roles=("student", "explainer", "tree")),
        {"the metrics asked about": 0.99},
    )
    for part in (
        "On made (30 training, 9 validation and 40 test images) we trained the undivided student, "
        "its explainer and the explainer's tree (small_student, small_explainer and small_tree), "
        "taught by small_teacher, under hard and kd, with 2 seeds (0 and 1).",
        "(3 subtasks; KDExplainer, Xue et al., 2021), with 1, 2 experts by level.",
        "test data never used to select",
        "on 3 images of the training split and 3 images apart, of the validation split",
        "paired by seed",
        "t-intervals at 99 % (Bonferroni over the metrics asked about)",
        "kdx_analysis (commit abc) on PyTorch 2.6",
    ):
        assert part in text


def test_one_seed_is_not_paired(write):
    text = methods(
        write(("hard", "kd"), seeds=1, roles=("explainer",)), {"the metrics asked about": 0.99}
    )
    assert "with 1 seed (0)" in text
    assert "interval" not in text


def test_draws_and_drawn_pairs_are_told(write):
    runs = write(("hard",), seeds=1, roles=("explainer",))
    for run in runs:
        run.info["config"]["probes"] = {"null_draws": 49, "permutations": 99}
    assert "permuted residuals over samples, 49 times." in methods(runs, {})
    assert "drawn at random" not in methods(runs, {})
    for run in runs:
        run.info["config"]["probes"] |= {"inner_null_draws": 19, "pairs": 1}
    text = methods(runs, {})
    assert "over samples, 49 (19 before the last probed epoch) times." in text
    assert (
        "Of its 3 pairs of subtasks 1 were looked at, those among 2 subtasks drawn at random, the "
        "same in every run" in text
    )


def test_a_teacher_that_was_given(write):
    text = methods(
        write(("hard",), seeds=1).filter(role=["student", "explainer"]),
        {"the metrics asked about": 0.99},
    )
    assert "under a given teacher" in text


def test_runs_of_unknown_data_and_origin(write):
    runs = write(("hard",), seeds=1)
    for run in runs:
        run.info["data"]["sizes"] = {}
        run.info["environment"] = {}
    text = methods(runs, {})
    assert text.startswith("On made we trained")
    assert "Made with" not in text


def test_imported_runs_were_not_trained_by_us(tmp_path):
    rows = "teacher,,0,.9\nstudent,kd,0,.7\nstudent,kd,1,.8\n"
    (tmp_path / "theirs.csv").write_text(f"role,objective,seed,test_acc\n{rows}")
    text = methods(
        import_runs(tmp_path / "theirs.csv", "csv", tmp_path / "out"),
        {"the metrics asked about": 0.99},
    )
    assert text.startswith(
        "On data that are not known we compared runs imported from theirs.csv: the undivided "
        "student, under kd, with 2 seeds (0 and 1)."
    )
    for unknown in ("trained", "teacher", "taught", "given", "unknown"):
        assert unknown not in text


def test_runs_made_here_beside_imported_ones(write, tmp_path):
    (tmp_path / "theirs.csv").write_text(
        "objective,seed,test_acc,model,data.name\nkd,5,.7,resnet8,made\n"
    )
    theirs = import_runs(tmp_path / "theirs.csv", "csv", tmp_path / "out")
    text = methods(RunSet.of([*write(("hard",), seeds=1), *theirs]), {})
    assert (
        "we compared runs of our own and runs imported from theirs.csv: the undivided student"
        in text
    )
    assert "taught by small_teacher" not in text


def test_the_tests_over_runs_are_owned_to(write, two_figures):
    text = Report(write(("kd_shuffled", "kd"), seeds=2))._repr_html_()
    assert "No tests over seeds are reported" not in text
    assert "the one test over runs is that of the trees" in text


def test_the_references():
    text = bibtex()
    assert re.findall(r"@\w+\{(\w+),", text) == ["xue2021kdexplainer", "kdx_analysis"]
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize(
    ("teachers", "said"),
    [
        (("t", "t"), "Given one teacher and one split of the data."),
        (
            ("t", "u"),
            "Given one split of the data. The runs do not share teacher: differences between them "
            "may be due to that.",
        ),
        ((None, None), "Given one split of the data."),
    ],
)
def test_what_runs_share_is_said_where_they_do(write, two_figures, teachers, said):
    runs = write(("kd_shuffled", "kd"), seeds=2)
    for run in runs.filter(role=["student", "explainer"]):
        run.info["config"] |= {"split": "f00d", "teacher": teachers[run.objective == "kd"]}
    assert given(runs) == said
    assert f'<p class="soft">{said} Accuracy' in Report(runs)._repr_html_()
    text = methods(runs, {"the metrics asked about": 0.99})
    assert ("one teacher" in text) == ("one teacher" in said)
    assert ("do not share" in text) == ("do not share" in said)


def test_runs_of_other_data_are_told_apart(write):
    runs = write(("kd_shuffled", "kd"), seeds=1, roles=("explainer",))
    runs.filter(objective="kd").runs[0].info["data"] |= {"name": "other", "fingerprint": "beef"}
    assert given(runs).startswith("The runs do not share split and data:")

import pandas as pd
import pytest

from kdx_analysis import plots
from kdx_analysis.config import VAMConfig
from kdx_analysis.errors import AbsentError
from kdx_analysis.report import Report
from kdx_analysis.report.arm_answers import COLUMNS, arm_answer
from kdx_analysis.report.arm_findings import first_arm
from kdx_analysis.runs import RunSet, paired_difference
from tests.planted_arms import write_arms
from tests.report.conftest import quick_figures, write_study

PLAIN = [0.50, 0.52, 0.51]


def plus(*points: float) -> list[float]:
    """PLAIN with so many percentage points more in every seed."""
    return [base + 0.01 * more for base, more in zip(PLAIN, points, strict=True)]


@pytest.mark.parametrize(
    ("points", "opening"),
    [
        ((1.0, 1.1, 0.9), "Yes: VAM raises {} by 1.00 [0.75, 1.25] percentage points {}."),
        ((-1.0, -1.1, -0.9), "Yes: VAM lowers {} by 1.00 [0.75, 1.25] percentage points {}."),
        (
            (1.0, -1.0, 0.3),
            "Undecided: whether VAM changes {}; +0.10 [−2.42, +2.62] percentage points {}.",
        ),
        (
            (0.02, -0.02, 0),
            "No: VAM makes no difference worth 0.25 percentage points to {}: 0.00 [−0.05, +0.05] "
            "points {}.",
        ),
    ],
)
def test_the_opening_says_what_the_pairs_decide(points, opening, tmp_path):
    answer = arm_answer(write_arms(tmp_path, {"kd": {"plain": PLAIN, "vam": plus(*points)}}))
    what, basis = (
        "the test accuracy of digits_student under kd multiclass",
        "(vam − plain, 95 % interval, n = 3 pairs)",
    )
    assert answer.opening == opening.format(what, basis)


def test_one_pair_decides_nothing(tmp_path):
    answer = arm_answer(write_arms(tmp_path, {"kd": {"plain": [0.5], "vam": [0.6]}}))
    assert answer.opening.startswith("One pair, no interval, nothing decided: VAM changed")
    assert "by +10.00 percentage points" in answer.opening
    assert not any("interval reaches" in caution for caution in answer.cautions)


def test_intervals_of_several_differences_hold_together(tmp_path):
    arms = {"plain": PLAIN, "vam": plus(1.0, 1.4, 0.9), "vam_entropy": plus(2.0, 1.0, 3.0)}
    answer = arm_answer(write_arms(tmp_path, {"hard": arms, "kd": arms}))
    assert answer.confidence == pytest.approx(1 - 0.05 / 6)
    table = answer.tables[0]
    assert (table.student, table.objective, table.metric) == (
        "digits_student",
        "kd multiclass",
        "accuracy",
    )  # kd first
    by_hand = paired_difference([51, 53.4, 51.9], [50, 52, 51], 1 - 0.05 / 6)
    effect = table.findings[0].effect
    assert (effect.mean, effect.low, effect.high) == pytest.approx(
        (by_hand.mean, by_hand.low, by_hand.high)
    )
    assert table.differences(1) == pytest.approx([1.4, 1.0, -0.4])
    assert table.means["vam"].mean == pytest.approx(52.1)
    assert [detail.split(":")[0] for detail in answer.details[:2]] == [
        "digits_student under kd multiclass",
        "digits_student under hard multiclass",
    ]


def test_a_pair_of_which_one_run_is_missing_is_left_out_and_counted(tmp_path):
    runs = write_arms(tmp_path, {"kd": {"plain": PLAIN, "vam": [0.6, 0.7]}})
    (finding,) = arm_answer(runs).tables[0].findings
    assert finding.effect.n == 2
    assert finding.effect.mean == pytest.approx((10 + 18) / 2)


def test_arms_that_share_no_seed_are_no_answer_and_the_page_stands(tmp_path, two_figures):
    runs = write_arms(tmp_path, {"kd": {"plain": PLAIN, "vam": PLAIN}})
    apart = RunSet.of(
        run for run in runs if run.role == "teacher" or (run.vam == "plain") == (run.seed == 0)
    )
    with pytest.raises(AbsentError, match="share no seed"):
        arm_answer(apart)
    assert "kdx-arms" not in Report(apart)._repr_html_()


def test_arms_of_two_students_share_a_page(tmp_path, two_figures):
    write_arms(tmp_path / "small", {"kd": {"plain": PLAIN, "vam": plus(1.0, 1.1, 0.9)}})
    write_arms(tmp_path / "large", {"kd": {"plain": PLAIN, "vam": PLAIN}}, model="resnet20")
    text = Report(RunSet.load(tmp_path))._repr_html_()
    assert "of digits_student under kd multiclass" in text
    assert "of resnet20 under kd multiclass" in text


def test_the_gates_are_told_beside_those_of_uniform_attention(tmp_path):
    runs = write_arms(tmp_path, {"kd": {"plain": PLAIN, "vam": PLAIN, "vam_entropy": PLAIN}})
    answer = arm_answer(runs)
    vam, entropy = answer.gates
    assert (vam.alpha.mean, entropy.alpha.mean, entropy.share.mean) == pytest.approx(
        (1, 0, 0), abs=1e-6
    )
    assert vam.uniform.mean == pytest.approx(vam.share.mean)
    assert entropy.uniform.mean > 0.9
    assert "ends at 1.00 (vam) and 0.00 (vam_entropy)" in answer.details[-1]


def test_the_length_of_training_is_told(tmp_path):
    length, width = arm_answer(
        write_arms(tmp_path, {"kd": {"plain": PLAIN, "vam": plus(1, 3, 2)}})
    ).cautions
    assert (
        "2 epochs of 30 images and reach 51.0 to 53.0 % under kd multiclass (teacher big 97.5 %)"
        in length
    )
    assert "last epoch of 6 of 6 trainings" in length
    assert "n = 3 pairs the interval reaches 2.48 points" in width


def test_without_arms_there_is_no_answer_and_with_them_the_rest_sees_the_first(tmp_path, write):
    with pytest.raises(AbsentError):
        arm_answer(runs := write(("hard", "kd"), seeds=2))
    assert first_arm(runs) is runs
    arms = write_arms(tmp_path / "arms", {"kd": {"plain": PLAIN, "vam": PLAIN}})
    assert {run.vam for run in first_arm(arms)} == {"", "plain"}


def test_the_page_of_students_alone(tmp_path, two_figures):
    label = "<b>VAM</b>"
    settings = {"plain": None, label: VAMConfig(blocks=3)}
    runs = write_arms(
        tmp_path / "study", {"kd": {"plain": PLAIN, label: plus(1.0, 1.1, 0.9)}}, settings
    )
    report = Report(runs)
    assert report.answers == []
    text = report.save_html(tmp_path / "out").read_text(encoding="utf-8")
    assert 0 < text.index("Yes: VAM raises the test accuracy") < text.index("<h2")
    assert label not in text
    assert "&lt;b&gt;VAM&lt;/b&gt; − plain" in text
    assert all(f">{value:.2f}<" in text for value in (51.0, 53.1, 51.9))  # every raw value
    assert all(section not in text for section in ("kdx-contrasts", "kdx-accuracy", "kdx-metrics"))
    assert "plain: none; &lt;b&gt;VAM&lt;/b&gt;: 3 blocks, γ 0, τ 1, rms" in text
    table = pd.read_csv(tmp_path / "out" / "arms.csv")
    assert tuple(table.columns) == COLUMNS
    assert table["verdict"].tolist()[0] == "raises"
    assert not (tmp_path / "out" / "answer.csv").exists()


def test_the_page_of_students_alone_without_arms(write, two_figures):
    text = Report(write(("hard", "kd"), seeds=2, roles=("student",)))._repr_html_()
    assert "Accuracy by objective" in text
    assert "kdx-arms" not in text


def test_explainers_and_arms_share_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "FIGURES", quick_figures())
    write_study(
        tmp_path / "explained", ("hard", "kd_shuffled", "kd"), seeds=3, roles=("explainer",)
    )
    write_arms(tmp_path / "arms", {"kd": {"plain": PLAIN, "vam": PLAIN}})
    text = Report(RunSet.load(tmp_path))._repr_html_()
    assert text.index("kdx-arms") < text.index("kdx-contrasts")
    assert (
        "51.0 [48.5, 53.5]" in text
    )  # the undivided student of the accuracy table is that without VAM

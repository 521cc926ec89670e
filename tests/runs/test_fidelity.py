"""Fidelity of runs on disk: who stands beside whom, and its figures among the headline metrics."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from kdx_analysis.cli import app
from kdx_analysis.errors import AbsentError, KdxError
from kdx_analysis.io import read_json, write_json
from kdx_analysis.metrics import METRICS, metric
from kdx_analysis.probes.fidelity.calibration import levels
from kdx_analysis.probes.fidelity.likeness import Likeness
from kdx_analysis.probes.fidelity.result import Fidelity
from kdx_analysis.runs import Run, RunSet
from tests.planted_outputs import Nets
from tests.report.conftest import LADDER, write_study

NETS = Nets()
FEW = ("hard", "hard_T", "kd_shuffled", "kd")
STUDENTS = ("student",)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> RunSet:
    folder = tmp_path_factory.mktemp("fidelity") / "study"
    return write_study(folder, LADDER, nets=NETS, classes=NETS.names)


@pytest.fixture
def forgotten() -> Iterator[None]:
    before = set(METRICS)
    yield
    for name in set(METRICS) - before:
        METRICS.forget(name)


def changed(run: Run, **info: object) -> None:
    """Another ``run.json``, with ``config`` added to the one that is there."""
    known = read_json(run.path / "run.json")
    config = known["config"] | info.pop("config", {})  # type: ignore[operator]
    write_json(run.path / "run.json", {**known, **info, "config": config})


# --- who stands beside whom ---------------------------------------------------------------------


def test_students_and_explainers_are_never_pooled(runs: RunSet) -> None:
    groups = runs.fidelities
    assert [each.group.role for each in groups] == ["student", "explainer"]
    for each in groups:
        assert {run.role for run in each.runs[0].values()} == {each.group.role}
        assert len(each.fidelity.teachings[0].students) == 18
    values = [runs.fidelity(role).parts("instance", "kd")["own"].value for role in STUDENTS]
    assert values != [runs.fidelity("explainer").parts("instance", "kd")["own"].value]
    assert runs.fidelity() is runs.fidelity("student")


def test_margins_stand_beside_the_teachers_one_vs_rest_margins(runs: RunSet) -> None:
    teaching = runs.fidelity("explainer").teachings[0]
    logits = NETS.teacher(0).double()
    p = torch.softmax(logits, dim=1)
    assert teaching.teacher.binary
    assert torch.allclose(teaching.teacher.scores, torch.log(p / (1 - p)), atol=1e-6)


def test_undivided_students_with_one_softmax_stand_beside_logits(tmp_path: Path) -> None:
    objectives = [{"name": name, "decomposition": "multiclass"} for name in FEW]
    runs = write_study(
        tmp_path / "study", objectives, nets=NETS, classes=NETS.names, roles=STUDENTS
    )
    computed = runs.fidelity()
    assert computed.objectives == ("hard", "hard_T", "kd_shuffled", "kd")
    wanted = NETS.fidelity(FEW)
    for part, each in wanted.parts("instance", "kd").items():
        assert computed.parts("instance", "kd")[part].value == pytest.approx(each.value)


def test_classes_ids_and_siblings_are_those_of_the_runs(runs: RunSet) -> None:
    computed = runs.fidelity()
    assert computed.classes == NETS.names
    assert computed.ids is not None
    assert list(computed.ids[:2]) == [100, 101]
    assert list(computed.teachings[0].siblings) == ["seed 1", "seed 2", "seed 3", "seed 4"]
    assert computed.notes == ()


def test_a_teacher_of_another_recipe_is_no_sibling_and_a_note_says_why(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "study", FEW, nets=NETS, classes=NETS.names, roles=STUDENTS)
    changed(next(run for run in runs if run.role == "teacher" and run.seed == 3), config={"lr": 1})
    computed = RunSet.load(tmp_path).fidelity()
    assert list(computed.teachings[0].siblings) == ["seed 1", "seed 2", "seed 4"]
    (note,) = computed.notes
    assert note.startswith("The teacher with seed 3 is no sibling of that with seed 0: lr is 1")


def test_a_study_that_keeps_no_outputs_has_none(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "study", ("hard", "kd"), seeds=1)
    assert runs.fidelities == []
    with pytest.raises(AbsentError, match="run the study anew with this version"):
        runs.fidelity()
    assert not set(runs.to_frame()["metric"]) & {"instance", "own_instance", "ece"}


def test_a_teacher_without_outputs_leaves_its_students_alone(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "study", FEW, seeds=1, nets=NETS, classes=NETS.names)
    for run in runs:
        if run.role == "teacher":
            (run.path / "outputs.safetensors").unlink()
    assert RunSet.load(tmp_path).fidelities == []


def test_without_siblings_likeness_is_told_and_own_is_not(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "study", FEW, nets=NETS, classes=NETS.names, siblings=0)
    metrics = set(runs.to_frame()["metric"])
    assert {"instance", "dark", "ece"} <= metrics
    assert not {"own_instance", "kind_instance"} & metrics
    assert runs.fidelity().siblings == 0


def test_a_role_that_is_not_there_is_said_to_be_absent(runs: RunSet) -> None:
    with pytest.raises(AbsentError, match="no tree has its outputs kept"):
        runs.fidelity("tree")


# --- figures among the headline metrics ---------------------------------------------------------


def student(runs: RunSet, objective: str, seed: int) -> tuple[Fidelity, Likeness]:
    computed = runs.fidelity()
    teaching = computed.teachings[0]
    return computed, Likeness(teaching.students[objective, seed], teaching.teacher)


def test_the_figures_of_a_run_are_those_beside_its_own_teacher(runs: RunSet) -> None:
    computed, likeness = student(runs, "kd", 1)
    frame = runs.to_frame().query("role == 'student' and objective == 'kd' and seed == 1")
    rows = frame.set_index("metric")
    wanted = likeness.values()
    for name in ("dark", "class_part", "instance", "second_choice", "hardness", "js", "kl_T4"):
        assert rows.loc[name, "value"] == wanted[name].value, name
    assert rows.loc["agreement_excess", "value"] == wanted["agreement"].value
    assert rows.loc["copied_errors", "n"] == wanted["copied_errors"].n
    of_outputs = levels(likeness.student)
    for name in ("ece", "nll"):
        assert rows.loc[name, "value"] == of_outputs[name].value
    changes = computed.changes("dark", "kd", 1)
    assert changes is not None
    assert rows.loc["kind_dark", "value"] == pytest.approx(float(changes[1:].mean()))
    assert rows.loc["own_dark", "value"] == pytest.approx(float(changes[0] - changes[1:].mean()))
    assert set(rows["split"].loc[["dark", "own_dark"]]) == {"test"}
    assert {"agreement_share", "second_choice_share"}.isdisjoint(rows.index)


def test_nulls_are_what_would_be_there_by_chance(runs: RunSet) -> None:
    _, likeness = student(runs, "kd", 1)
    frame = runs.to_frame().query("role == 'student' and objective == 'kd' and seed == 1")
    null = frame.set_index("metric")["null"]
    wanted = likeness.values()
    assert null["dark"] == wanted["class_part"].value
    assert null["copied_errors"] == wanted["copied_errors"].chance
    assert null["ece"] == levels(likeness.student)["ece"].chance
    # Chance is taken off these already.
    for name in ("instance", "second_choice", "agreement_excess", "error_consistency"):
        assert null[name] == 0, name
    for name in ("hardness", "kl_T1", "nll", "own_instance", "kind_dark"):
        assert np.isnan(null[name]), name


def test_own_of_hard_is_0(runs: RunSet) -> None:
    values = runs.values("own_instance", role="student")
    assert (values["hard"] == 0).all()
    assert list(values.columns) == list(LADDER)
    assert list(values.index) == [0, 1, 2]


@pytest.mark.parametrize("role", ["student", "explainer"])
@pytest.mark.parametrize("part", ["own", "kind"])
@pytest.mark.parametrize("likeness", ["instance", "dark", "second_choice", "hardness"])
def test_a_paired_difference_is_fidelitys(
    runs: RunSet, role: str, part: str, likeness: str
) -> None:
    paired = runs.paired(f"{part}_{likeness}", "kd", "kd_shuffled", role=role)
    wanted = runs.fidelity(role).difference(likeness, "kd", "kd_shuffled")[part]
    assert paired.mean == pytest.approx(wanted.value, abs=1e-12)
    assert (paired.low, paired.high) == pytest.approx(
        (wanted.over_seeds.low, wanted.over_seeds.high)
    )


def test_tables_hold_means_over_seeds(runs: RunSet) -> None:
    names = ["instance", "own_instance", "kind_dark", "agreement_excess", "ece"]
    frame = runs.table(metric=names, role="student").to_frame()
    kd = frame[frame["objective"] == "kd"].set_index("metric")
    assert set(kd.index) == set(names)
    own_part = runs.fidelity().parts("instance", "kd")["own"]
    assert kd.loc["own_instance", "mean"] == pytest.approx(own_part.value)
    assert kd.loc["own_instance", "low"] == pytest.approx(own_part.over_seeds.low)
    assert set(kd["n"]) == {3}


def test_a_filter_keeps_knowing_the_teachers(runs: RunSet) -> None:
    alone = runs.filter(role="student", objective="kd")
    assert {run.role for run in alone} == {"student"}
    values = alone.values("own_instance", role="student")["kd"]
    everything = runs.values("own_instance", role="student")["kd"]
    assert values.tolist() == everything.tolist()
    grouped = runs.group("role")["explainer"]
    assert grouped.values("instance")["kd"].notna().all()
    assert alone.fidelity() is runs.fidelity()


def test_runs_that_were_loaded_without_a_teacher_have_no_figures(runs: RunSet) -> None:
    alone = RunSet.of(run for run in runs if run.role != "teacher")
    assert alone.fidelities == []
    with pytest.raises(AbsentError):
        alone.fidelity()


# --- several teachers ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> RunSet:
    folder = tmp_path_factory.mktemp("several") / "study"
    return write_study(
        folder,
        (*FEW, "label_smoothing"),
        nets=NETS,
        classes=NETS.names,
        siblings=2,
        taught_by=(0, 1, 2),
        roles=STUDENTS,
    )


def test_every_teacher_has_its_students_and_the_others_for_siblings(several: RunSet) -> None:
    computed = several.fidelity()
    assert [each.name for each in computed.teachings] == ["0", "1", "2"]
    for number, each in enumerate(computed.teachings):
        others = {f"seed {other}" for other in range(3) if other != number}
        assert set(each.siblings) == others
        # Three seeds of five objectives; those that saw no teacher stand beside all of them.
        assert len(each.students) == 15
    hard = [each.students["hard", 1].scores for each in computed.teachings]
    assert torch.equal(hard[0], hard[2])
    assert computed.parts("instance", "kd")["own"].several


def test_values_of_several_teachers_are_means_over_them(several: RunSet) -> None:
    computed = several.fidelity()
    by_teacher = []
    for number in range(3):
        changes = computed.changes("instance", "kd", 2, number)
        assert changes is not None
        by_teacher.append(float(changes[0] - changes[1:].mean()))
    values = several.values("own_instance", role="student")
    assert values.loc[2, "kd"] == pytest.approx(np.mean(by_teacher))
    of_runs = several.filter(role="student", objective="kd", seed=2).to_frame()
    chosen = of_runs.query("metric == 'own_instance'")
    assert chosen.set_index("teacher")["value"].to_dict() == pytest.approx(
        dict(enumerate(by_teacher))
    )


@pytest.mark.parametrize("other", ["kd_shuffled", "hard", "label_smoothing", "hard_T"])
def test_a_paired_difference_over_several_teachers_is_fidelitys(
    several: RunSet, other: str
) -> None:
    paired = several.paired("own_instance", "kd", other, role="student")
    wanted = several.fidelity().difference("instance", "kd", other)["own"]
    assert paired.mean == pytest.approx(wanted.value, abs=1e-12)
    assert paired.n == 3
    assert (paired.low, paired.high) == pytest.approx(
        (wanted.over_seeds.low, wanted.over_seeds.high)
    )


def test_a_student_that_saw_no_teacher_has_the_mean_over_them(several: RunSet) -> None:
    teachings = several.fidelity().teachings
    wanted = [
        Likeness(each.students["hard_T", 0], each.teacher).instance.value for each in teachings
    ]
    values = several.values("instance", role="student")
    assert values.loc[0, "hard_T"] == pytest.approx(np.mean(wanted))


# --- a user's own metric ------------------------------------------------------------------------


@pytest.mark.usefixtures("forgotten")
def test_a_metric_of_the_users_own_stands_among_the_others(tmp_path: Path) -> None:
    @metric(
        "top_of_three",
        title="top of three",
        reads="outputs beside the teacher's",
        describes="how often the teacher's class is among the student's three strongest",
    )
    def top_of_three(scores: Tensor, labels: Tensor, teacher_scores: Tensor) -> Tensor:
        strongest = scores.topk(3, dim=1).indices
        teacher = teacher_scores.argmax(dim=1, keepdim=True)
        return (strongest == teacher).any(dim=1).double().mean()

    runs = write_study(
        tmp_path / "study", FEW, seeds=2, nets=NETS, classes=NETS.names, roles=STUDENTS
    )
    values = runs.values("top_of_three", role="student")
    strongest = NETS.student("kd", 1).topk(3, dim=1).indices
    teacher = NETS.teacher(0).argmax(dim=1, keepdim=True)
    assert values.loc[1, "kd"] == float((strongest == teacher).any(dim=1).double().mean())
    assert "top_of_three" in set(runs.fidelity().pairs["metric"])
    assert "top of three" in runs.table(metric="top_of_three", role="student").to_markdown()


@pytest.mark.usefixtures("forgotten")
def test_a_metric_of_the_users_own_that_reads_one_network(tmp_path: Path) -> None:
    @metric("largest", title="largest score", reads="outputs by themselves")
    def largest(scores: Tensor, labels: Tensor) -> Tensor:
        return scores.max()

    runs = write_study(
        tmp_path / "study",
        [{"name": name, "decomposition": "multiclass"} for name in ("hard", "kd")],
        seeds=2,
        nets=NETS,
        classes=NETS.names,
        roles=STUDENTS,
    )
    values = runs.values("largest", role="student")
    assert values.loc[1, "kd multiclass"] == float(NETS.student("kd", 1).max())


# --- groups -------------------------------------------------------------------------------------


def test_students_of_two_settings_are_apart_and_a_filter_chooses(tmp_path: Path) -> None:
    runs = write_study(
        tmp_path / "study", FEW, seeds=1, nets=NETS, classes=NETS.names, roles=STUDENTS
    )
    for run in runs:
        if run.role == "student":
            copy = run.path.with_name(f"{run.path.name}-wide")
            shutil.copytree(run.path, copy)
            changed(Run.load(copy), id=copy.name, config={"model": "wide"})
    both = RunSet.load(tmp_path)
    assert len(both.fidelities) == 2
    with pytest.raises(KdxError, match="2 groups of students, which differ in model; filter"):
        both.fidelity()
    assert both.filter(model="wide").fidelity().parts("instance", "kd")


def test_its_metrics_are_listed() -> None:
    listed = CliRunner().invoke(app, ["list", "metrics"]).output.splitlines()
    homes = {line.partition(":")[0]: line for line in listed}
    for likeness in ("instance", "dark", "second_choice", "hardness"):
        for name in (likeness, f"own_{likeness}", f"kind_{likeness}"):
            assert METRICS[name].home in homes[name]
    assert {"agreement_excess", "error_consistency", "copied_errors", "js", "ece"} <= set(homes)

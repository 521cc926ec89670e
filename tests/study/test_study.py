import json
import pickle

import pandas as pd
import pytest
import torch
import yaml

from kdx_analysis.config import digest
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.models.zoo import plain_stage
from kdx_analysis.runs import Run, RunSet
from kdx_analysis.study.lessons import Lessons
from kdx_analysis.study.step import Step
from kdx_analysis.study.steps import train_steps
from kdx_analysis.study.study import Study, ready_studies
from kdx_analysis.training import predict, score
from kdx_analysis.training.checkpoints import fingerprint, load_weights
from kdx_analysis.training.loop import fitting
from tests import toys
from tests.conftest import toy_study


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    monkeypatch.setattr("kdx_analysis.report.Report.save_html", lambda self, out: out)


def files(path) -> dict[str, tuple[int, bytes]]:
    return {
        str(file.relative_to(path)): (file.stat().st_mtime_ns, file.read_bytes())
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def assert_same_results(one: RunSet, two: RunSet) -> None:
    assert [run.id for run in one] == [run.id for run in two]
    for a, b in zip(one, two, strict=True):
        assert a.kinds == b.kinds
        for kind in a.kinds:
            pd.testing.assert_frame_equal(a.record(kind), b.record(kind), check_exact=True)
        assert (a.path / "model.safetensors").read_bytes() == (
            b.path / "model.safetensors"
        ).read_bytes()


def test_a_student_trains_beside_each_explainer(finished):
    made = [(run.role, run.objective, run.seed) for run in finished.runs]
    pairs = [(objective, seed) for objective in ("hard", "kd") for seed in (0, 1)]
    assert made[0] == ("teacher", "", 0)
    assert sorted(made[1:]) == sorted(
        (role, *pair) for role in ("student", "explainer") for pair in pairs
    )
    assert len(RunSet.load(finished.out)) == len(made)


def test_a_run_tells_where_it_comes_from(finished):
    info = finished.runs.filter(role="explainer", objective="kd", seed=1).runs[0].info
    assert info["data"] == json.loads(json.dumps(toys.dataset().describe()))
    assert info["selection"] == {"rule": "last", "split": "val", "epoch": 2}
    assert info["config"]["objective"]["T"] == 4
    assert {name: len(ids) for name, ids in info["probe_sets"].items()} == {"train": 6, "val": 6}
    assert set(info["probe_sets"]["val"]) <= set(toys.dataset().val.ids.tolist())


def test_an_explainer_has_every_record_and_a_student_only_metrics(finished):
    explainer = finished.runs.filter(role="explainer").runs[0]
    assert set(explainer.kinds) == {
        "metrics",
        "gates",
        "gate_summary",
        "pathways",
        "routing",
        "conflict",
        "conflict_summary",
        "contention",
        "contention_by_expert",
        "agreement",
        "affinity",
        "output_conflict",
    }
    assert {run.kinds for run in finished.runs if run.role != "explainer"} == {("metrics",)}


def test_weights_on_disk_are_those_that_the_metrics_are_of(finished):
    run = finished.runs.filter(role="explainer", objective="kd", seed=0).runs[0]
    model = finished.study.build("explainer")
    load_weights(run.path / "model.safetensors", model)
    data = toys.dataset()
    choice = model.eval()(data.normalise(data.test.images.take(torch.arange(24)))).argmax(dim=1)
    metrics = run.record("metrics").query("split == 'test'").set_index("metric")["value"]
    assert float((choice == data.test.labels).double().mean()) == metrics["accuracy"]
    assert model.temperature == pytest.approx(5 / 2)


def test_objectives_share_the_initial_weights_of_a_seed(finished):
    def first(objective: str, seed: int) -> list[float]:
        run = finished.runs.filter(role="explainer", objective=objective, seed=seed).runs[0]
        return (
            run.record("gate_summary")
            .query("epoch == 1 and attention == 'alpha'")["initial"]
            .tolist()
        )

    assert first("hard", 0) == first("kd", 0)
    assert first("hard", 0) != first("hard", 1)


def test_two_jobs_give_what_one_gives(finished, tmp_path):
    seen = []
    study = toy_study(objectives=("kd",), seeds=(1,))
    runs = study.run(tmp_path, jobs=2, progress=lambda n: recorded(seen, n))
    same = finished.runs.filter(objective=["", "kd"]).filter(run=[run.id for run in runs])
    assert_same_results(runs, same)
    assert seen[0] == 3
    told = [(title, epoch.epoch) for title, epoch in seen[1:]]
    assert sorted(told) == sorted(
        (step.title, epoch) for step in study.plan(tmp_path) for epoch in (1, 2)
    )


class recorded:  # noqa: N801
    """A progress that keeps what it is told."""

    def __init__(self, seen: list, runs: int) -> None:
        self.seen = seen
        seen.append(runs)

    def __enter__(self):
        return lambda title, epoch: self.seen.append((title, epoch))

    def __exit__(self, *error) -> None: ...


def test_a_study_may_leave_its_report_out(finished, monkeypatch):
    written = []
    monkeypatch.setattr(
        "kdx_analysis.report.Report.save_html", lambda self, out: written.append(out)
    )
    toy_study().run(finished.out, report=False)
    assert written == []
    toy_study().run(finished.out)
    assert written == [finished.out / "report"]


def test_finished_runs_are_not_trained_again(finished, monkeypatch):
    before = files(finished.out)
    monkeypatch.setattr("kdx_analysis.study.steps.fitting", None)
    again = toy_study().run(finished.out)
    assert [run.id for run in again] == [run.id for run in finished.runs]
    after = files(finished.out)
    asked = ("study.yaml", "progress/plan.json")
    assert {name: value for name, value in after.items() if name not in asked} == {
        name: value for name, value in before.items() if name not in asked
    }


def test_a_changed_configuration_is_trained_and_the_old_runs_are_kept(tmp_path):
    small = {"objectives": ("hard",), "seeds": 1, "teacher_training": {"epochs": 1}}
    toy_study(**small).run(tmp_path)
    before = files(tmp_path / "runs")
    changed = toy_study(**small, training=toys.SECTIONS["training"] | {"lr": 0.01})
    steps = changed.plan(tmp_path)
    assert [step.done for step in steps] == [True, False, False]
    assert [run.id for run in changed.run(tmp_path)] == [step.path.name for step in steps]
    after = files(tmp_path / "runs")
    assert before.items() <= after.items()
    assert len(RunSet.load(tmp_path)) == 5


def test_a_study_that_was_begun_before_widths_were_rounded_goes_on_as_it_was(tmp_path):
    study = toy_study(objectives=("hard",), seeds=[0])
    study.config.save(tmp_path / "study.yaml")
    rounded = study.plan(tmp_path)
    file = tmp_path / "study.yaml"
    before = yaml.safe_load(file.read_text())
    del before["explainer"]["multiple"]  # as versions without that key wrote it
    file.write_text(yaml.safe_dump(before))
    earlier = toy_study(objectives=("hard",), seeds=[0])
    steps = earlier.plan(tmp_path)
    assert earlier.config.explainer.multiple == 1
    assert [step.path == other.path for step, other in zip(steps, rounded, strict=True)] == [
        step.role != "explainer" for step in steps
    ]
    assert Study.load(file).config.explainer.multiple == 1


def test_another_seed_adds_to_a_study(finished):
    steps = toy_study(seeds=(1, 5)).plan(finished.out)
    assert [step.seed for step in steps if not step.done] == [5, 5, 5, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "other"},
            "holds another study: name is 'toy' there and 'other' here; choose another output",
        ),
        ({"teacher_training": {"epochs": 5}}, "teacher.training.epochs is 2 there and 5 here"),
        ({"student": toys.staged_net()}, "student is 'digits_student' there and 'StagedNet' here"),
        (
            {"data": toys.dataset(val=toys.split("val", 8, 48, seed=9))},
            "its images or its teacher's weights",
        ),
    ],
)
def test_a_directory_of_another_study_is_refused_and_left_as_it_was(
    finished, changes, message, monkeypatch
):
    monkeypatch.setattr("kdx_analysis.study.steps.fitting", None)
    before = files(finished.out)
    with pytest.raises(KdxError, match=message):
        toy_study(**changes).run(finished.out)
    assert files(finished.out) == before


def test_a_directory_of_foreign_files_is_refused_and_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("kdx_analysis.study.steps.fitting", None)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(
        KdxError, match="is not empty and holds no study; choose another output directory"
    ):
        toy_study().run(tmp_path)
    with pytest.raises(KdxError, match="is a file; choose a directory"):
        toy_study().run(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_own_data_set_teacher_and_student(tmp_path):
    teacher, student = toys.RowTeacher().train(), toys.staged_net()
    before = fingerprint(teacher), fingerprint(student)
    study = toy_study(teacher=teacher, student=student, objectives=("kd",), seeds=1)
    runs = study.run(tmp_path)
    assert (fingerprint(teacher), fingerprint(student)) == before
    assert teacher.training
    assert [run.role for run in runs] == ["teacher", "student", "explainer"]
    accuracy = runs.filter(role="teacher").to_frame().query("metric == 'accuracy'")["value"].item()
    assert accuracy > 0.9
    assert isinstance(study.build("explainer"), HME)
    assert fingerprint(study.build("student")) != before[1]  # weights are drawn anew
    other = toy_study(teacher=toys.RowTeacher(2.0), student=student, objectives=("kd",), seeds=1)
    with pytest.raises(KdxError, match="its images or its teacher's weights are others"):
        other.run(tmp_path)


TREES = {"experts": 2, "phase2": {"training": {"epochs": 1, "batch_size": 16, "warmup_epochs": 0}}}
ONE = {"objectives": ("hard",), "seeds": 1, "teacher_training": {"epochs": 1, "batch_size": 16}}


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> RunSet:
    """A study of one objective and one seed with both phases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdx_analysis.report.Report.save_html", lambda self, out: out)
        return toy_study(**ONE, explainer=TREES).run(tmp_path_factory.mktemp("grown"))


def test_a_tree_grows_from_each_explainer(grown):
    assert [run.role for run in grown] == ["teacher", "student", "explainer", "tree"]
    *_, explainer, tree = grown
    assert set(explainer.kinds) - set(tree.kinds) == {"gates", "gate_summary", "pathways"}
    assert set(tree.kinds) - set(explainer.kinds) == {"tree"}
    assert tree.record("metrics")["epoch"].unique().tolist() == [1]
    assert set(tree.record("metrics").query("split == 'test'")["metric"]) == {
        "accuracy",
        "hard_loss",
        "agreement",
    }
    assert tree.info["grown_from"] == {"run": explainer.id, "experts": explainer.info["experts"]}
    assert set(grown.values("accuracy", role="tree").columns) == {"hard"}


def test_the_record_of_a_tree_is_the_argmax_of_its_explainers_gates(grown):
    *_, explainer, tree = grown
    record = tree.record("tree")
    gates = explainer.record("gates").query("epoch == 2")
    heads = gates[gates["level"] == gates["level"].max()]
    parents = heads.loc[heads.groupby("child_index")["alpha"].idxmax()].set_index("child")["parent"]
    leaves = record[record["subtask"] != ""].set_index("subtask")
    assert leaves.index.tolist() == list(toys.CLASSES)
    for a in toys.CLASSES:
        for b in toys.CLASSES:
            assert (leaves["parent"][a] == leaves["parent"][b]) == (parents[a] == parents[b])
    # every expert that is left has a child, and every child but the trunk one parent
    nodes = record.groupby("child_level")["child"].apply(list).to_dict()
    counts = tree.info["experts"]
    assert nodes == {level: list(range(n)) for level, n in enumerate([*counts[1:], 3], 2)}
    for level, n in enumerate(counts, 1):
        assert set(record[record["child_level"] == level + 1]["parent"]) == set(range(n))


def test_phase_2_changes_the_tree_and_phase_1_changes_both(grown, tmp_path):
    def ids(**changes) -> dict[str, str]:
        return {step.role: step.path.name for step in toy_study(**(ONE | changes)).plan(tmp_path)}

    both = ids(explainer=TREES)
    assert both == {run.role: run.id for run in grown}
    assert ids(explainer={"experts": 2}) == {
        role: name for role, name in both.items() if role != "tree"
    }
    kept = ids(explainer=TREES | {"phase2": {"weights": "kept"}})
    assert {role for role in both if kept[role] != both[role]} == {"tree"}
    inherited = ids(explainer={"experts": 2, "phase2": {}})
    assert {role for role in both if inherited[role] != both[role]} == {"tree"}
    colder = ids(explainer=TREES | {"temperature": {"start": 1.0}})
    assert {role for role in both if colder[role] != both[role]} == {"explainer", "tree"}


def test_a_tree_that_is_not_done_grows_from_the_explainer_that_is(grown, tmp_path):
    toy_study(**ONE, explainer={"experts": 2}).run(tmp_path)
    before = files(tmp_path / "runs")
    runs = toy_study(**ONE, explainer=TREES).run(tmp_path)
    after = files(tmp_path / "runs")
    assert before.items() <= after.items()
    assert {name.split("-")[0] for name in after.keys() - before.keys()} == {"tree"}
    assert_same_results(runs, grown)


def test_trees_of_two_jobs_are_those_of_one(tmp_path):
    study = toy_study(**ONE | {"objectives": ("hard", "kd")}, explainer=TREES)
    one = study.run(tmp_path / "one")
    assert [run.role for run in one].count("tree") == 2
    assert_same_results(study.run(tmp_path / "two", jobs=2), one)


def test_any_module_is_a_student_whose_weights_are_drawn_anew(tmp_path):
    student = torch.nn.Sequential(
        *(plain_stage(4 if i else 1, 4, pool=i == 1) for i in range(3)),
        torch.nn.AdaptiveAvgPool2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 3),
    )
    before = fingerprint(student)
    explainer = TREES | {"stages": ["0", "1", "2"]}
    runs = toy_study(**ONE, student=student, explainer=explainer).run(tmp_path)
    assert fingerprint(student) == before
    assert [run.role for run in runs] == ["teacher", "student", "explainer", "tree"]


def test_a_student_whose_weights_cannot_be_drawn_is_refused_before_training(tmp_path):
    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = torch.nn.Parameter(torch.zeros(3))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, 0, 0, :3] + self.shift

    with pytest.raises(
        KdxError, match=r"Shifted anew: it, a Shifted, holds shift and has no reset_parameters"
    ):
        toy_study(student=Shifted()).run(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_vam_is_on_students_alone_and_folded_into_the_weights_on_disk(finished, tmp_path):
    study = toy_study(vam={"blocks": 4, "gamma": 0.1}, objectives=["hard"], seeds=1)
    plain = {
        step.role: step.path.name for step in toy_study(objectives=["hard"], seeds=1).plan(tmp_path)
    }
    planned = {step.role: step.path.name for step in study.plan(tmp_path)}
    assert [role for role in plain if plain[role] != planned[role]] == ["student"]

    teacher, attended, _ = study.plan(tmp_path)
    train_steps(study, [teacher, attended], 1, lambda *_: None, Lessons.of(tmp_path, [], 0))
    run = Run.load(attended.path)
    assert set(run.kinds) == {"metrics", "vam_gates", "vam_entropy"}
    assert run.record("vam_gates")["epoch"].unique().tolist() == [1, 2]
    assert set(run.info["probe_sets"]) == {"train"}
    student = toy_study().build("student")
    load_weights(run.path / "model.safetensors", student)
    (accuracy,) = run.record("metrics").query("split == 'test' and metric == 'accuracy'")["value"]
    data = toys.dataset()
    assert score(predict(student, data.test, data), data.test, "binary")[0]["value"] == accuracy


ARMS = {"plain": None, "vam": {"blocks": 4}, "vam γ .1": {"blocks": 4, "gamma": 0.1}}


@pytest.fixture(scope="module")
def arms(tmp_path_factory) -> RunSet:
    """Students alone, under three arms of VAM and two seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdx_analysis.report.Report.save_html", lambda self, out: out)
        return toy_study(roles=["student"], objectives=["kd"], vam=ARMS).run(
            tmp_path_factory.mktemp("arms")
        )


def test_arms_of_vam_are_runs_of_one_study(arms):
    assert [run.role for run in arms] == ["teacher"] + 6 * ["student"]
    assert [(run.keys["vam"], run.seed) for run in arms.filter(role="student")] == [
        (label, seed) for label in ARMS for seed in (0, 1)
    ]
    assert [run.id[:-8] for run in arms.filter(seed=1)] == [
        "student-kd-plain-seed1-",
        "student-kd-vam-seed1-",
        "student-kd-vam_.1-seed1-",
    ]
    assert ["vam" in run.info["config"] for run in arms.filter(seed=0, role="student")] == [
        False,
        True,
        True,
    ]
    assert ["vam_gates" in run.kinds for run in arms.filter(seed=0, role="student")] == [
        False,
        True,
        True,
    ]
    entropy = (
        arms.frame("vam_entropy")
        .query("attention == 'alpha' and epoch == 2")
        .groupby("vam")["value"]
        .mean()
    )
    assert entropy["vam γ .1"] < entropy["vam"] < 1


def test_a_study_without_arms_has_the_ids_that_it_had_before_there_were_arms(tmp_path):
    (_, one, _), (_, other, *_) = (
        toy_study(objectives=["hard"], seeds=1, vam=vam).plan(tmp_path)
        for vam in (None, {"plain": None, "vam": {}})
    )
    assert one.config == other.config
    assert (one.path.name, other.path.name) == tuple(
        f"student-hard-{arm}seed0-{digest(one.config)}" for arm in ("", "plain-")
    )


def test_arms_start_with_the_same_weights_and_images(monkeypatch, tmp_path):
    seen = []

    def look(model, data, objective, config, **keys):
        weights = {
            name.replace("plain_weight", "weight"): p.detach().clone()
            for name, p in model.named_parameters()
        }
        batches = []
        model.register_forward_pre_hook(
            lambda module, inputs: batches.append(inputs[0].clone()) if module.training else None
        )
        seen.append((weights, batches))
        return fitting(model, data, objective, config, **keys)

    monkeypatch.setattr("kdx_analysis.study.steps.fitting", look)
    study = toy_study(
        roles=["student"], objectives=["kd"], vam=ARMS, seeds=1, teacher=toys.RowTeacher()
    )
    study.run(tmp_path)
    (plain, images), *others = seen
    assert len(others) == 2
    for weights, batches in others:
        assert {name for name in weights if not name.endswith("vam.logits")} == set(plain)
        assert all(torch.equal(weights[name], value) for name, value in plain.items())
        assert all(torch.equal(*pair) for pair in zip(batches, images, strict=True))
    assert len(images) == 2 * 3


def test_a_teacher_of_another_study_is_taken_by_the_path_of_its_run(finished, tmp_path):
    path = next((finished.out / "teacher").iterdir())
    study = toy_study(teacher=path, objectives=("kd",), seeds=1)
    study.check = lambda: (
        None
    )  # two epochs are few: this teacher may look as if its classes were permuted
    runs = study.run(tmp_path)
    teacher = runs.filter(role="teacher").runs[0]
    assert (teacher.path / "model.safetensors").read_bytes() == (
        path / "model.safetensors"
    ).read_bytes()
    test = (
        teacher.record("metrics").query("split == 'test' and metric == 'accuracy'")["value"].item()
    )
    assert (
        test
        == Run.load(path)
        .record("metrics")
        .query("split == 'test' and metric == 'accuracy'")["value"]
        .item()
    )
    weights = toy_study(teacher=f"digits_teacher@{path / 'model.safetensors'}")
    assert fingerprint(weights.given_teacher) == fingerprint(study.given_teacher)


@pytest.mark.parametrize(
    ("end", "off"), [(torch.nn.Softmax(dim=1), "softmax"), (torch.nn.Sigmoid(), "sigmoid")]
)
def test_a_teacher_of_probabilities_is_refused_before_training(tmp_path, end, off):
    study = toy_study(
        teacher=torch.nn.Sequential(toys.RowTeacher(), end), objectives=("kd",), seeds=1
    )
    with pytest.raises(
        KdxError,
        match=f"the teacher gives probabilities, not logits: .* take the {off} off its end",
    ):
        study.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    toy_study(teacher=torch.nn.Sequential(toys.RowTeacher(), torch.nn.LogSoftmax(dim=1))).check()


def test_a_path_that_holds_no_teacher(tmp_path):
    with pytest.raises(KdxError, match="holds no readable run"):
        toy_study(teacher=tmp_path)
    with pytest.raises(KdxError, match="cannot load weights"):
        toy_study(teacher=f"digits_teacher@{tmp_path}").check()


def test_a_teacher_whose_classes_are_permuted_is_refused_before_training(tmp_path):
    with pytest.raises(KdxError, match="the classes of the teacher stand in another order"):
        toy_study(teacher=toys.RowTeacher(order=(2, 0, 1))).run(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_check_leaves_global_randomness_alone():
    rng = torch.get_rng_state()
    toy_study().check()
    assert torch.equal(torch.get_rng_state(), rng)


def test_names_alone_make_a_study():
    study = Study(data="digits", teacher="digits_teacher", student="digits_student")
    assert study.config.seeds == (0, 1, 2)
    assert study.config.name == "digits"


@pytest.mark.parametrize("name", sorted(ready_studies()))
def test_ready_studies_are_valid(name):
    assert Study.load(name).config.objectives


def test_an_unknown_study_is_answered_with_what_can_be_given():
    with pytest.raises(KdxError, match=r"unknown study 'digitz'; did you mean 'digits'"):
        Study.load("digitz")
    with pytest.raises(KdxError, match=r"valid: .*digits.* or give the path of a \.yaml file"):
        Study.load("zzz")


def test_what_is_finished_before_a_run_fails_is_kept(tmp_path):
    training = toys.SECTIONS["training"] | {"lr": 1e30, "optimizer": "sgd"}
    study = toy_study(objectives=("hard",), training=training, teacher_training={"epochs": 1})
    with pytest.raises(KdxError, match=r"loss of objective 'hard' is .* lower training.lr"):
        study.run(tmp_path)
    assert [run.role for run in RunSet.load(tmp_path)] == ["teacher"]


def test_errors_come_back_from_other_processes_as_they_were():
    error = pickle.loads(pickle.dumps(KdxError("lower it")))
    assert (type(error), str(error)) == (KdxError, "lower it")


@pytest.mark.slow
def test_two_devices_train_one_run(tmp_path):
    seen = []
    training = toys.SECTIONS["training"] | {"accelerator": "cpu", "devices": 2}
    explainer = {"experts": 2, "warmup_epochs": 1, "phase2": {}}
    study = toy_study(
        objectives=("kd",),
        seeds=1,
        training=training,
        explainer=explainer,
        teacher_training={"epochs": 1},
    )
    runs = study.run(tmp_path / "out", progress=lambda n: recorded(seen, n))
    assert [run.role for run in runs] == ["teacher", "student", "explainer", "tree"]
    told = runs.runs[2].record("gate_summary").query("attention == 'alpha' and metric == 'entropy'")
    moved = (told["value"] != told["initial"]).groupby(told["epoch"]).any()
    assert moved.to_dict() == {1: False, 2: True}
    assert [epoch.epoch for title, epoch in seen[1:] if title == "explainer kd seed 0"] == [1, 2]
    diverging = training | {"lr": 1e30, "optimizer": "sgd"}
    study = toy_study(objectives=("hard",), training=diverging, teacher_training={"epochs": 1})
    with pytest.raises(KdxError, match=r"^the loss of objective 'hard' is"):
        study.run(tmp_path / "diverging")


def test_a_teacher_that_other_processes_cannot_import_is_refused_in_words(tmp_path):
    class Local(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :10]

    study = Study(
        data="digits", teacher=Local(), student="digits_student", data_options={"val_fraction": 0.2}
    )
    steps = [Step.of(tmp_path, "student", study.config.objectives[0], seed, {}) for seed in (0, 1)]
    with pytest.raises(KdxError, match="use jobs=1"):
        train_steps(study, steps, 2, lambda title, epoch: None, Lessons.of(tmp_path, [], 0))


def test_the_released_network_is_a_preset(tmp_path):
    explainer = {
        "preset": "learn_to_branch",
        "form": "nce",
        "experts": [1, 2, 2],
        "warmup_epochs": 1,
    }
    explainer["phase2"] = {"statistics": "kept"}
    objectives = [{"name": "hard", "decomposition": "multiclass"}]
    runs = toy_study(objectives=objectives, seeds=1, explainer=explainer).run(tmp_path)
    assert [run.role for run in runs] == ["teacher", "student", "explainer", "tree"]
    assert runs.filter(role="explainer").runs[0].record("gates")["level"].max() == 5

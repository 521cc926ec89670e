import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest

from kdx_analysis.errors import KdxError
from kdx_analysis.imports import import_runs
from kdx_analysis.runs import RunSet
from kdx_analysis.training.loggers import check_loggers, logged
from tests.conftest import toy_study

KEYS = {"study": "toy", "role": "student", "objective": "kd", "decomposition": "binary", "seed": 3}


def tell(name, folder, epochs=3, selected=2) -> None:
    """A training of some epochs whose test figures are those of the selected one."""
    with logged([name], folder, "toy", "student-kd-seed3", KEYS | {"training.lr": 0.5}) as log:
        for epoch in range(1, epochs + 1):
            log({"train/loss": 2.0 / epoch, "val/accuracy": epoch / 4}, epoch)
        log({"test/accuracy": 0.5}, selected)


@pytest.fixture
def modules(monkeypatch):
    """Puts fake packages in the place of real ones."""

    def put(name: str, **members) -> ModuleType:
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put


class Mlflow:
    """A client that keeps what it is told."""

    told: list = []  # noqa: RUF012
    experiments: dict = {}  # noqa: RUF012

    def get_experiment_by_name(self, name):
        return self.experiments.get(name)

    def create_experiment(self, name):
        self.experiments[name] = SimpleNamespace(experiment_id="7")
        return "7"

    def create_run(self, experiment_id, run_name):
        self.told.append(("run", experiment_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="aa"))

    def log_param(self, run_id, key, value):
        self.told.append((run_id, key, value))

    def log_metric(self, run_id, key, value, step):
        self.told.append((run_id, key, value, step))

    def set_terminated(self, run_id, status):
        self.told.append((run_id, status))


def test_mlflow_gets_every_point_at_its_own_epoch(modules, tmp_path, monkeypatch):
    monkeypatch.setattr(Mlflow, "told", [])
    monkeypatch.setattr(Mlflow, "experiments", {})
    modules("mlflow")
    modules("mlflow.tracking", MlflowClient=Mlflow)
    tell("mlflow", tmp_path)
    tell("mlflow", tmp_path)
    half = len(Mlflow.told) // 2
    assert Mlflow.told[:half] == Mlflow.told[half:]
    assert list(Mlflow.experiments) == ["toy"]
    assert Mlflow.told[0] == ("run", "7", "student-kd-seed3")
    assert ("aa", "seed", 3) in Mlflow.told
    assert [told[1:] for told in Mlflow.told[:half] if len(told) == 4] == [
        ("train/loss", 2.0, 1),
        ("val/accuracy", 0.25, 1),
        ("train/loss", 1.0, 2),
        ("val/accuracy", 0.5, 2),
        ("train/loss", 2 / 3, 3),
        ("val/accuracy", 0.75, 3),
        ("test/accuracy", 0.5, 2),
    ]
    assert Mlflow.told[half - 1] == ("aa", "FINISHED")


class Wandb:
    def __init__(self, **options) -> None:
        self.options, self.points, self.config, self.axis, self.ended = options, [], {}, None, None

    def define_metric(self, name, step_metric):
        self.axis = (name, step_metric)

    def log(self, point):
        self.points.append(point)

    def finish(self, exit_code):
        self.ended = exit_code


def test_wandb_gets_the_epoch_as_the_axis_of_every_metric(modules, tmp_path):
    made = []
    modules("wandb", init=lambda **options: made.append(Wandb(**options)) or made[-1])
    tell("wandb", tmp_path)
    (run,) = made
    assert (run.options["project"], run.options["name"]) == ("toy", "student-kd-seed3")
    assert run.axis == ("*", "epoch")
    assert run.config == KEYS | {"training.lr": 0.5}
    assert [point["epoch"] for point in run.points] == [1, 2, 3, 2]
    assert run.points[0] == {"epoch": 1, "train/loss": 2.0, "val/accuracy": 0.25}
    assert run.ended == 0


def test_a_training_that_fails_is_told_as_failed(modules, tmp_path):
    made = []
    modules("wandb", init=lambda **options: made.append(Wandb(**options)) or made[-1])
    with pytest.raises(ZeroDivisionError), logged(["wandb"], tmp_path, "toy", "one", KEYS):
        raise ZeroDivisionError
    assert made[0].ended == 1


def test_a_logger_that_fails_is_left_out_and_the_training_goes_on(modules, tmp_path, monkeypatch):
    def broken(self, point):
        raise OSError("the network is away")

    monkeypatch.setattr(Wandb, "log", broken)
    modules("wandb", init=lambda **options: Wandb(**options))
    with pytest.warns(
        UserWarning, match="student-kd-seed3 is no longer logged to wandb: .*network is away"
    ) as warned:
        tell("wandb", tmp_path)
    assert len(warned) == 1


def test_a_missing_package_is_named_before_training_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "kdx_analysis.training.loggers.find_spec", lambda name: None if name == "wandb" else name
    )
    check_loggers(["tensorboard", "mlflow"])
    with pytest.raises(
        KdxError, match=r"the logger wandb needs its package: pip install 'kdx_analysis\[wandb\]'"
    ):
        check_loggers(["tensorboard", "wandb"])
    monkeypatch.setattr("kdx_analysis.study.steps.fitting", None)
    with pytest.raises(KdxError, match="the logger wandb needs its package"):
        toy_study(loggers=["wandb"]).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_loggers_are_off_by_default_and_named_as_they_are():
    assert toy_study().config.loggers == ()
    with pytest.raises(KdxError, match="unknown logger 'tensorbord'; did you mean 'tensorboard'"):
        toy_study(loggers=["tensorbord"])
    with pytest.raises(KdxError, match="logger wandb is given more than once"):
        toy_study(loggers=["wandb", "wandb"])


def test_what_tensorboard_was_told_reads_back_equal(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr("kdx_analysis.report.Report.save_html", lambda self, out: out)
    plain = {"objectives": ["kd"], "seeds": 1}
    study = toy_study(**plain, loggers=["tensorboard"])
    assert [step.path.name for step in study.plan(tmp_path)] == [
        s.path.name for s in toy_study(**plain).plan(tmp_path)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        runs = study.run(tmp_path / "out")
    for run in runs:
        events = EventAccumulator(
            str(tmp_path / "out" / "logs" / "tensorboard" / run.id), {"scalars": 0}
        )
        events.Reload()
        for tag in ("train/loss", "val/accuracy"):
            assert [event.step for event in events.Scalars(tag)] == [1, 2]
        assert ("gates/entropy" in events.Tags()["scalars"]) == (run.role == "explainer")

    back = import_runs(tmp_path / "out" / "logs" / "tensorboard", "tensorboard", tmp_path / "back")
    assert len(back) == len(runs) == 3
    for told, found in zip(runs, back, strict=True):
        assert {**told.keys, "run": ""} == {**found.keys, "run": ""}
        assert found.info["config"]["model"] == told.info["config"]["model"]
        columns = ["epoch", "split", "metric", "value"]
        left, right = (
            run.record("metrics").sort_values(columns[:3])[columns].to_numpy()
            for run in (told, found)
        )
        assert left[:, :3].tolist() == right[:, :3].tolist()
        assert right[:, 3] == pytest.approx(left[:, 3].astype(float), rel=1e-6)
        assert found.info["selection"]["epoch"] == told.info["selection"]["epoch"]
    kinds = (RunSet.of(back), RunSet.of(runs))
    one, other = (set_.values("agreement", role="student").to_numpy() for set_ in kinds)
    assert one == pytest.approx(other, rel=1e-6)


def test_an_earlier_try_leaves_no_second_point_at_a_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for epochs in (2, 3):
        tell("tensorboard", tmp_path, epochs)
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard" / "student-kd-seed3"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert [(event.step, event.value) for event in events.Scalars("test/accuracy")] == [(2, 0.5)]

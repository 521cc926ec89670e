import math
import sqlite3
from contextlib import closing

import pytest

from kdx_analysis.errors import KdxError
from kdx_analysis.imports import import_runs

EXPORT = """run_id,experiment_id,status,metrics.test_acc,metrics.lr_now,params.seed,params.objective,tags.mlflow.user
a1,0,FINISHED,0.75,0.1,0,kd,ann
a2,0,FINISHED,0.5,0.1,1,kd,ann
a3,0,FAILED,0.1,0.1,2,kd,ann
"""


def store(folder, run: str, metrics: dict[str, str], params: dict[str, str], **meta) -> None:
    """A run in the layout of MLflow's file store."""
    said = {
        "artifact_uri": "file:///x",
        "lifecycle_stage": "active",
        "run_id": run,
        "status": 3,
    } | meta
    files = {"meta.yaml": "".join(f"{key}: {value}\n" for key, value in said.items())}
    files |= {f"metrics/{name}": text for name, text in metrics.items()}
    files |= {f"params/{name}": text for name, text in params.items()}
    files["tags/mlflow.user"] = "ann"
    for name, text in files.items():
        path = folder / "1" / run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def mlruns(tmp_path):
    folder = tmp_path / "mlruns"
    metrics = {
        "train/loss": "1700 2.5 1\n1701 1.5 2\n",
        "val/accuracy": "1700 0.5 1 valset abc\n1701 0.75 2 valset abc\n",
    }
    store(
        folder,
        "aa",
        metrics,
        {"objective": "kd", "seed": "0", "opt/lr": "0.1", "model": "resnet20"},
    )
    store(folder, "bb", metrics, {"objective": "kd", "seed": "1"}, lifecycle_stage="deleted")
    store(folder, "cc", metrics, {"objective": "kd", "seed": "2"}, status=4)
    (folder / "1" / "meta.yaml").write_text("experiment_id: '1'\nname: mine\n")
    return folder


@pytest.mark.parametrize("part", ["", "1", "1/aa"])
def test_the_file_store_is_read_without_mlflow(mlruns, tmp_path, part):
    (run,) = import_runs(mlruns / part, "mlflow", tmp_path / "out")
    assert (run.objective, run.seed, run.info["config"]["model"]) == ("kd", 0, "resnet20")
    assert run.info["config"]["settings"] == {"opt/lr": "0.1"}
    assert run.record("metrics")[["epoch", "split", "metric", "value"]].to_numpy().tolist() == [
        [1, "train", "loss", 2.5],
        [1, "val", "accuracy", 0.5],
        [2, "train", "loss", 1.5],
        [2, "val", "accuracy", 0.75],
    ]
    assert run.info["source"]["run"] == "aa"


def test_the_store_in_sqlite_is_read_without_mlflow(tmp_path):
    with closing(
        sqlite3.connect(tmp_path / "mlflow.db")
    ) as database:  # the columns of MLflow's that matter
        database.executescript("""
            CREATE TABLE runs (run_uuid, status, lifecycle_stage, start_time);
            CREATE TABLE metrics (key, value, timestamp, run_uuid, step, is_nan);
            CREATE TABLE params (key, value, run_uuid);
            CREATE TABLE tags (key, value, run_uuid);
            INSERT INTO runs VALUES ('aa', 'FINISHED', 'active', 1), ('bb', 'FAILED', 'active', 2),
                ('cc', 'FINISHED', 'deleted', 3);
            INSERT INTO metrics VALUES ('train/loss', 2.5, 9, 'aa', 1, 0), ('train/loss', 1.5, 9, 'aa', 2, 0),
                ('train/loss', 0, 9, 'aa', 3, 1), ('train/loss', 1.7976931348623157e308, 9, 'aa', 4, 0),
                ('val/acc', 0, 9, 'aa', 4, 1), ('train/loss', 9, 9, 'bb', 1, 0);
            INSERT INTO params VALUES ('objective', 'kd', 'aa'), ('seed', '4', 'aa'), ('seed', '5', 'bb');
            INSERT INTO tags VALUES ('mlflow.user', 'ann', 'aa'), ('group', 'x', 'aa');
        """)
    (run,) = import_runs(tmp_path / "mlflow.db", "mlflow", tmp_path / "out")
    assert (run.objective, run.seed, run.info["config"]["settings"]) == ("kd", 4, {"group": "x"})
    values = [2.5, 1.5, math.nan, math.inf]
    assert run.record("metrics")["value"].to_numpy() == pytest.approx(values, nan_ok=True)
    files = {"train/loss": "9 2.5 1\n9 1.5 2\n9 nan 3\n9 inf 4\n", "val/acc": "9 nan 4\n"}
    store(tmp_path / "mlruns", "aa", files, {"objective": "kd", "seed": "4"})
    (same,) = import_runs(tmp_path / "mlruns", "mlflow", tmp_path / "files")
    assert same.record("metrics").equals(run.record("metrics"))
    (tmp_path / "other.db").write_text("no database")
    with pytest.raises(KdxError, match=r"other.db' is no store of MLflow in SQLite"):
        import_runs(tmp_path / "other.db", "mlflow", tmp_path / "again")


def test_an_exported_csv_holds_last_values(tmp_path):
    (tmp_path / "runs.csv").write_text(EXPORT)
    runs = import_runs(tmp_path / "runs.csv", "mlflow", tmp_path / "out")
    assert runs.values("accuracy", role="student")["kd"].tolist() == [0.75, 0.5]
    assert runs.runs[0].info["source"]["left_out"] == ["lr_now"]
    assert runs.runs[0].info["config"]["settings"] == {}


def test_steps_that_are_no_epochs(tmp_path):
    steps = {"train_loss": "1 2.5 0\n2 2 100\n3 1.5 200\n", "test_acc": "3 .5 200\n"}
    store(tmp_path / "mlruns", "aa", steps, {"objective": "kd", "seed": "0"})

    def read(out, **options):
        (run,) = import_runs(tmp_path / "mlruns", "mlflow", tmp_path / out, **options)
        return run.record("metrics").query("metric == 'loss'")["epoch"].tolist()

    with pytest.raises(
        KdxError, match="the steps of mlruns, aa are 100 or more apart, so they may be no epochs"
    ):
        read("a")
    assert read("b", steps_per_epoch=100) == [0, 1, 2]
    assert read("c", steps_per_epoch=1) == [0, 100, 200]
    with pytest.raises(
        KdxError, match=r"1\.33333 is no epoch \(mlruns, aa with 150 steps an epoch\)"
    ):
        read("d", steps_per_epoch=150)


def test_a_metric_that_tells_the_epoch_of_each_step(tmp_path):
    metrics = {"train_loss": "1 2.5 99\n2 1.5 199\n", "epoch": "1 0 99\n2 1 199\n"}
    store(tmp_path / "mlruns", "aa", metrics, {"objective": "kd", "seed": "0"})
    (run,) = import_runs(tmp_path / "mlruns", "mlflow", tmp_path / "out")
    assert run.record("metrics")["epoch"].tolist() == [0, 1]
    store(tmp_path / "mlruns", "aa", {"train_loss": "1 2.5 98\n"}, {})
    with pytest.raises(
        KdxError, match="does not say of which epoch step 98 is: give steps_per_epoch"
    ):
        import_runs(tmp_path / "mlruns", "mlflow", tmp_path / "again")


def test_every_point_at_one_step_is_refused(tmp_path):
    store(
        tmp_path / "mlruns",
        "aa",
        {"train_loss": "1 2.5 0\n2 1.5 0\n"},
        {"objective": "kd", "seed": "0"},
    )
    with pytest.raises(KdxError, match="has 2 values of 'train_loss' in epoch 0"):
        import_runs(tmp_path / "mlruns", "mlflow", tmp_path / "out")


def test_what_is_no_mlflow(tmp_path):
    with pytest.raises(KdxError, match="holds no finished run of MLflow"):
        import_runs(tmp_path, "mlflow", tmp_path / "out")
    (tmp_path / "a.csv").write_text("objective,seed\nkd,0\n")
    with pytest.raises(KdxError, match="has no column run_id"):
        import_runs(tmp_path / "a.csv", "mlflow", tmp_path / "out")
    store(tmp_path / "mlruns", "aa", {"train_loss": "now\n"}, {})
    with pytest.raises(
        KdxError, match="'now' among the metrics of MLflow run aa is no time, value and step"
    ):
        import_runs(tmp_path / "mlruns", "mlflow", tmp_path / "out")


def test_yaml_is_read_safely_and_links_are_not_followed(tmp_path):
    store(tmp_path / "mlruns", "aa", {"test_acc": "1 .5 0\n"}, {"objective": "kd", "seed": "0"})
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "mlruns" / "1" / "aa" / "params" / "link").symlink_to(tmp_path / "secret")
    (run,) = import_runs(tmp_path / "mlruns", "mlflow", tmp_path / "out")
    assert "secret" not in str(run.info)
    (tmp_path / "mlruns" / "1" / "aa" / "meta.yaml").write_text(
        "!!python/object/apply:os.getcwd []\n"
    )
    with pytest.raises(KdxError, match="is no readable YAML"):
        import_runs(tmp_path / "mlruns", "mlflow", tmp_path / "again")

import math

import pytest

from kdx_analysis.errors import KdxError
from kdx_analysis.imports import import_runs
from kdx_analysis.io import read_json
from kdx_analysis.report.health import health, summary
from kdx_analysis.runs import RunSet

A_ROW_A_RUN = """objective,seed,lr,test_acc,val_acc
kd,0,0.1,0.75,0.7
kd,1,0.1,0.5,0.6
hard,0,0.1,0.25,0.2
"""
TIDY = """method,random_state,epoch,split,metric,value,n
kd,0,1,train,loss,2.5,48
kd,0,1,val,accuracy,0.5,24
kd,0,2,train,loss,1.5,48
kd,0,2,val,accuracy,0.625,24
kd,0,2,test,accuracy,0.75,24
"""


@pytest.fixture
def read(tmp_path):
    """Imports a CSV of the given text."""

    def call(text: str, **options) -> RunSet:
        (tmp_path / "results.csv").write_text(text)
        return import_runs(tmp_path / "results.csv", "csv", tmp_path / "out", **options)

    return call


def test_a_row_a_run(read, tmp_path):
    runs = read(A_ROW_A_RUN)
    table = runs.values("accuracy", role="student")
    assert table.to_dict() == {
        "hard": {0: 0.25, 1: pytest.approx(math.nan, nan_ok=True)},
        "kd": {0: 0.75, 1: 0.5},
    }
    assert runs.paired("accuracy", "kd", "hard", role="student").differences == (0.5,)
    kd = RunSet.load(tmp_path / "out").filter(objective="kd", seed=1).runs[0]
    assert kd.keys == {
        "run": kd.id,
        "study": "results",
        "role": "student",
        "objective": "kd",
        "decomposition": "unknown",
        "vam": "",
        "seed": 1,
    }
    assert kd.info["config"]["settings"] == {"lr": 0.1}
    rows = kd.record("metrics")[["epoch", "split", "metric", "value"]].to_numpy().tolist()
    assert rows == [[0, "test", "accuracy", 0.5], [0, "val", "accuracy", 0.6]]


def test_what_is_unknown_is_stated_and_never_made_up(read):
    run = read(A_ROW_A_RUN).runs[0]
    source = run.info["source"]
    assert (source["kind"], source["name"], source["run"]) == ("csv", "results.csv", "line 4")
    assert source["unknown"] == [
        "decomposition",
        "model",
        "data set",
        "epoch of the figures",
        "number of images",
        "selection",
        "classes",
        "split",
        "environment",
    ]
    assert run.info["environment"] == {}
    assert run.info["data"]["fingerprint"] is None
    assert run.info["selection"] == {"rule": "unknown", "split": None, "epoch": 0}
    assert run.record("metrics")["n"].isna().all()
    assert not (run.path / "model.safetensors").exists()


def test_tidy_under_other_names(read):
    (run,) = read(
        TIDY, columns={"objective": "method", "seed": "random_state"}, keys={"role": "student"}
    )
    assert (run.objective, run.seed) == ("kd", 0)
    metrics = run.record("metrics")
    assert metrics.to_numpy().tolist() == [
        [1, "train", "loss", 2.5, 48],
        [1, "val", "accuracy", 0.5, 24],
        [2, "test", "accuracy", 0.75, 24],
        [2, "train", "loss", 1.5, 48],
        [2, "val", "accuracy", 0.625, 24],
    ]
    assert run.info["selection"] == {"rule": "unknown", "split": None, "epoch": 2}
    assert "number of images" not in run.info["source"]["unknown"]


def test_tested_all_along_the_last_epoch_counts_and_the_rest_is_kept(read):
    text = "objective,seed,epoch,val_acc,test_acc\nkd,0,1,.9,.9\nkd,0,2,.5,.25\n"
    runs = read(text)
    assert runs.values("accuracy", role="student").loc[0, "kd"] == 0.25
    assert len(runs.frame("metrics").query("split == 'test'")) == 2


@pytest.mark.parametrize(
    ("tested", "epoch", "rule"),
    [
        ((0.5, "", 0.75, ""), 3, "unknown"),  # no more tests toward the end
        (("", 0.5, "", 0.75), 4, "last"),
        (("", "", "", 0.75), 4, "unknown"),  # maybe of the best weights
    ],
)
def test_the_last_tested_epoch_counts_in_every_figure(read, tested, epoch, rule):
    rows = [f"kd,0,{i},{1 / i},{value}\n" for i, value in enumerate(tested, 1)]
    runs = read("".join(["objective,seed,epoch,train_loss,test_acc\n", *rows]))
    assert runs.runs[0].info["selection"] == {"rule": rule, "split": None, "epoch": epoch}
    assert ("selection" in runs.runs[0].info["source"]["unknown"]) == (rule == "unknown")
    assert runs.values("accuracy", role="student").loc[0, "kd"] == 0.75
    assert health(runs)[0].accuracy == 0.75


def test_a_test_of_another_figure_does_not_hide_accuracy(read):
    runs = read("objective,seed,epoch,test_loss,test_acc\nkd,0,1,2,.5\nkd,0,2,1,\n")
    assert runs.values("accuracy", role="student").loc[0, "kd"] == 0.5


def test_health_reads_accuracy_at_the_selected_epoch(read):
    runs = read("objective,seed,epoch,test_acc\nkd,0,1,.5\nkd,0,2,.75\n")
    runs.runs[0].info["selection"]["epoch"] = 1
    assert health(runs)[0].accuracy == 0.5


def test_tested_before_the_end_the_epoch_of_the_test_counts(read):
    text = "objective,seed,epoch,val_acc,test_acc\nkd,0,1,.9,.8\nkd,0,2,.5,\n"
    (run,) = read(text)
    assert run.info["selection"] == {"rule": "unknown", "split": None, "epoch": 1}


@pytest.mark.parametrize("tidy", [False, True])
@pytest.mark.parametrize("loss", ["nan", "NaN", " -nan", "inf", "1.#QNAN"])
def test_a_loss_that_diverged_stays_so_and_an_empty_cell_is_none(read, loss, tidy):
    wide = (
        f"objective,seed,epoch,train_loss,test_acc\nkd,0,1,1.0,nan\nkd,0,2,{loss},\nkd,0,3,,0.5\n"
    )
    long = "objective,seed,epoch,split,metric,value\n" + "".join(
        f"kd,0,{epoch},{of},{value}\n"
        for epoch, of, value in (
            (1, "train,loss", 1.0),
            (1, "test,accuracy", "nan"),
            (2, "train,loss", loss),
            (2, "test,accuracy", ""),
            (3, "train,loss", ""),
            (3, "test,accuracy", 0.5),
        )
    )
    runs = read(long if tidy else wide)
    rows = runs.runs[0].record("metrics")
    assert rows[["epoch", "split"]].to_numpy().tolist() == [[1, "train"], [2, "train"], [3, "test"]]
    assert not math.isfinite(rows["value"][1])
    told = health(runs)
    assert (told[0].finite, told[0].epochs, told[0].accuracy) == (False, 2, 0.5)
    assert "The loss is not finite in 1 of 1 trainings" in " ".join(summary(told))


def test_rows_of_train_and_validation_apart_as_lightning_writes_them(read):
    text = "epoch,step,train_loss,val_acc\n0,9,2.0,\n0,9,,0.5\n1,19,1.0,\n1,19,,0.75\n"
    (run,) = read(text, keys={"objective": "kd", "seed": 3})
    assert run.record("metrics")[["epoch", "metric", "value"]].to_numpy().tolist() == [
        [0, "loss", 2.0],
        [0, "accuracy", 0.5],
        [1, "loss", 1.0],
        [1, "accuracy", 0.75],
    ]


def test_per_cent_and_named_metrics(read):
    runs = read(
        "objective,seed,top1,val_fraction\nkd,0,76.3,0.1\n", metrics={"top1": "test/accuracy%"}
    )
    assert runs.values("accuracy", role="student").loc[0, "kd"] == pytest.approx(0.763)
    assert runs.runs[0].info["config"]["settings"] == {"val_fraction": 0.1}


def test_a_teacher_has_no_objective(read):
    runs = read("role,objective,seed,test_acc\nteacher,,0,.9\nstudent,kd,0,.8\n")
    assert [(run.role, run.objective) for run in runs] == [("teacher", ""), ("student", "kd")]


def test_names_never_become_paths(read, tmp_path):
    (run,) = read("objective,seed,test_acc\n../../evil<b>,0,.5\n")
    assert run.objective == "../../evil<b>"
    assert run.path.parent == tmp_path / "out"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "results.csv"]


def test_the_same_source_twice_is_one_set_of_runs(read):
    first = [run.path.stat().st_mtime_ns for run in read(A_ROW_A_RUN)]
    assert [run.path.stat().st_mtime_ns for run in read(A_ROW_A_RUN)] == first


REFUSED = {
    "two rows of one run": (
        "objective,seed,test_acc\nkd,0,.5\nkd,0,.6\n",
        {},
        r"line 2 has 2 values of 'test_acc' in epoch 0: name the column that tells runs or epochs apart",
    ),
    "two runs with the same keys": (
        "run,objective,seed,test_acc\na,kd,0,.5\nb,kd,0,.6\n",
        {},
        r"run 'line 3' of the source and run 'line 2' of the source are both student 'kd' with seed 0",
    ),
    "no seed": (
        "objective,test_acc\nkd,.5\n",
        {},
        r"line 2 does not say its seed: state it, as seed=0",
    ),
    "no objective": (
        "seed,test_acc\n0,.5\n",
        {},
        r"does not say its objective: state it, as objective=kd",
    ),
    "a key stated otherwise": (
        "objective,seed,test_acc\nkd,0,.5\n",
        {"keys": {"seed": 1}},
        r"seed is stated as 1, but the source says 0",
    ),
    "a seed that is none": (
        "objective,seed,test_acc\nkd,a,.5\n",
        {},
        r"the seed of .* is 'a', no whole number",
    ),
    "a metric of no split": (
        "objective,seed,acc\nkd,0,.5\n",
        {},
        r"column 'acc' of results.csv looks like a metric, but its split can't be told: map it",
    ),
    "no metric": (
        "objective,seed,lr\nkd,0,.5\n",
        {},
        r"no column of results.csv is a metric of a split",
    ),
    "both forms": (
        "objective,seed,split,metric,value,test_acc\nkd,0,val,loss,1,.5\n",
        {},
        r"has columns metric and value, and 't",
    ),
    "two names for one metric": (
        "objective,seed,test_acc,test_accuracy\nkd,0,.5,.5\n",
        {},
        r"'test_acc' and 'test_accuracy', which both read as test/accuracy",
    ),
    "per cent unsaid": (
        "objective,seed,test_acc\nkd,0,76.3\n",
        {},
        r"test_acc is 76.3 .*percent, map it as test_acc=test/accuracy%",
    ),
    "accuracy that was never measured": (
        "objective,seed,test_acc\nkd,0,nan\n",
        {},
        r"line 2 holds no figure but test_acc, which is not a number",
    ),
    "no number": (
        TIDY.replace("0.625", "good"),
        {"columns": {"objective": "method", "seed": "random_state"}},
        r"'good' in line 5 of results.csv is no number",
    ),
    "half an epoch": ("objective,seed,epoch,test_acc\nkd,0,1.5,.5\n", {}, r"1.5 is no epoch"),
    "an epoch for some rows alone": (
        "objective,seed,epoch,split,metric,value\nkd,0,0,val,loss,.5\nkd,0,1,val,loss,.6\nkd,0,,test,accuracy,.5\n",
        {},
        r"some values of results.csv, line 2 stand at a step or epoch and some at none",
    ),
    "a role that is none": (
        "objective,seed,test_acc\nkd,0,.5\n",
        {"keys": {"role": "studnet"}},
        r"unknown role 'studnet'; did you mean",
    ),
    "a column that is not there": (
        "objective,seed,test_acc\nkd,0,.5\n",
        {"columns": {"seed": "sed"}},
        r"unknown column of results.csv 'sed'",
    ),
    "a key that is none": (
        "objective,seed,test_acc\nkd,0,.5\n",
        {"keys": {"sead": 1}},
        r"unknown key of a run 'sead'",
    ),
    "a split that is none": (
        "objective,seed,test_acc\nkd,0,.5\n",
        {"metrics": {"test_acc": "tset/accuracy"}},
        r"'tset/accuracy' names no",
    ),
    "an empty file": ("", {}, r"cannot read .*results.csv' as a CSV"),
    "a heading alone": ("objective,seed\n", {}, r"has no rows"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_be_read_in_two_ways_is_refused_and_nothing_written(read, tmp_path, case):
    text, options, message = REFUSED[case]
    with pytest.raises(KdxError, match=message):
        read(text, **options)
    assert not (tmp_path / "out").exists()


def test_a_changed_source_is_not_mixed_with_what_was_imported_before(read, tmp_path):
    before = read(A_ROW_A_RUN)
    with pytest.raises(
        KdxError, match=r"run 'line 2' of the source and run 'student-kd-seed0-\w+' in .*out"
    ):
        read(A_ROW_A_RUN.replace("0.75", "0.875"))
    assert len(RunSet.load(tmp_path / "out")) == len(before)
    assert read_json(before.runs[0].path / "run.json")["id"] == before.runs[0].id


def test_sources_that_are_not_there_or_of_another_kind(tmp_path):
    with pytest.raises(KdxError, match=r"there is no .*none.csv"):
        import_runs(tmp_path / "none.csv", "csv", tmp_path / "out")
    with pytest.raises(KdxError, match="is a folder, which kind csv can't be"):
        import_runs(tmp_path, "csv", tmp_path / "out")
    with pytest.raises(KdxError, match="unknown kind of source 'cvs'; did you mean 'csv'"):
        import_runs(tmp_path, "cvs", tmp_path / "out")


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("method,seed,test_acc,test_acc\nkd,0,0.7,0.8\n")
    with pytest.raises(KdxError, match="two columns 'test_acc'"):
        import_runs(tmp_path / "t.csv", "csv", tmp_path / "out", columns={"objective": "method"})

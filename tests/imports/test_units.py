"""The unit of a figure is its metric's, and who a figure belongs to is no part of its name."""

import json
import math

import pandas as pd
import pytest

from kdx_analysis.errors import KdxError
from kdx_analysis.imports import import_runs
from kdx_analysis.imports.names import Names, whole_seed
from kdx_analysis.imports.tensorboard import _plain
from kdx_analysis.runs import RunSet

KD = {"objective": "kd", "seed": 0}
SHARES = [
    "test_acc",
    "test_accuracy",
    "test_top1",
    "test_top5",
    "test_acc_top5",
    "test/top-5 accuracy",
    "test_acc@1",
    "testAcc",
    "Test Accuracy",
    "test_balanced_accuracy",
    "test_agreement",
    "test_f1",
    "test_auroc",
    "test_recall",
]


@pytest.fixture
def read(tmp_path):
    """Imports a CSV of the given text."""

    def call(text: str, **options) -> RunSet:
        (tmp_path / "r.csv").write_text(text)
        return import_runs(tmp_path / "r.csv", "csv", tmp_path / "out", **options)

    return call


@pytest.fixture
def refused(read, tmp_path):
    """That a CSV is refused with a message, and nothing written."""

    def call(text: str, message: str, **options) -> None:
        with pytest.raises(KdxError, match=message):
            read(text, **options)
        assert not (tmp_path / "out").exists()

    return call


def values(runs: RunSet) -> dict[str, list[float]]:
    table = runs.frame("metrics").sort_values(["objective", "seed", "epoch"])
    return {
        f"{split}/{metric}": rows["value"].round(9).tolist()
        for (split, metric), rows in table.groupby(["split", "metric"])
    }


def test_percent_said_of_one_column_says_nothing_of_another(read, refused):
    text = "method,seed,test_acc,test_acc_top5\nkd,0,73.08,93.1\nhard,0,69.06,91.4\n"
    options = {"columns": {"objective": "method"}, "metrics": {"test_acc": "test/accuracy%"}}
    refused(
        text,
        r"test_acc_top5 is 93.1 in r.csv, line 2, .* as test_acc_top5=test/accuracy_top5%",
        **options,
    )
    refused(
        text.replace("93.1", "0.931").replace("91.4", "0.914"),
        r"'test_acc' is in percent, which says",
        **options,
    )
    options["metrics"]["test_acc_top5"] = "test/accuracy_top5%"
    assert values(read(text, **options)) == {
        "test/accuracy": [0.6906, 0.7308],
        "test/accuracy_top5": [0.914, 0.931],
    }


def test_a_share_said_beside_percent_is_one(read):
    text = "objective,seed,test_acc,val_acc\nkd,0,73.08,0.72\n"
    runs = read(text, metrics={"test_acc": "test/accuracy%", "val_acc": "val/accuracy"})
    assert values(runs) == {"test/accuracy": [0.7308], "val/accuracy": [0.72]}


@pytest.mark.parametrize("name", SHARES)
def test_every_share_under_whatever_name_lies_in_0_to_1(read, refused, name):
    for outside in ("93.1", "1.5", "-0.2", "inf"):
        refused(
            f"objective,seed,{name}\nkd,0,{outside}\n",
            r"no share of images in \[0, 1\]: if it is in percent, map",
        )
    ((_, found),) = values(read(f"objective,seed,{name}\nkd,0,0.931\n")).items()
    assert found == [0.931]


@pytest.mark.parametrize("name", ["test_error", "test_err", "test_top5_error", "test_ece"])
def test_an_error_is_as_likely_small_in_percent_as_large_in_shares(read, refused, name):
    refused(f"objective,seed,{name}\nkd,0,26.92\n", r"is 26.92 .* no share of images")
    text = f"objective,seed,{name}\nkd,0,0.45\n"
    refused(
        text,
        r"can't be told: a .* of 0.45 may be 0.45 % or 45%; map it as .*% if it is in percent, or as",
    )
    metric = Names().reading(name).metric
    assert values(read(text, metrics={name: f"test/{metric}"})) == {f"test/{metric}": [0.45]}


def test_an_error_in_percent_that_is_said(read):
    runs = read("objective,seed,test_error\nkd,0,0.45\n", metrics={"test_error": "test/error%"})
    assert values(runs) == {"test/error": [0.0045]}


@pytest.mark.parametrize("cells", [("1.00", "1.00"), ("1", "1.0"), ("0", "1.00"), ("1.00", "")])
def test_1_throughout_is_1_percent_or_100(read, refused, cells):
    text = "objective,seed,epoch,test_acc\n" + "".join(
        f"kd,0,{i},{cell}\n" for i, cell in enumerate(cells)
    )
    refused(
        text, r"the unit of 'test_acc' can't be told: its values are 1 throughout .* 1 % or 100 %"
    )
    share = read(text, metrics={"test_acc": "test/accuracy"})
    assert max(values(share)["test/accuracy"]) == 1
    assert RunSet.of(share).runs[0].record("metrics")["value"].max() == 1


def test_1_throughout_in_percent(read):
    text = "objective,seed,epoch,test_acc\nkd,0,1,1.00\nkd,0,2,1.00\n"
    assert values(read(text, metrics={"test_acc": "test/accuracy%"})) == {
        "test/accuracy": [0.01, 0.01]
    }


@pytest.mark.parametrize(
    "text",
    [
        "objective,seed,epoch,test_acc\nkd,0,1,0.99\nkd,0,2,1.00\n",  # by an epoch
        "objective,seed,test_acc\nkd,0,1.00\nhard,0,0.75\n",  # by another run
        "objective,seed,val_acc,test_acc\nkd,0,0.99,1.00\n",  # by another split
        "objective,seed,test_acc\nkd,0,0\n",  # nothing is right in either unit
    ],
)
def test_values_below_1_show_that_the_metric_is_a_share(read, text):
    assert all(0 <= value <= 1 for found in values(read(text)).values() for value in found)


def test_a_metric_of_two_units_is_refused(refused):
    refused(
        "objective,seed,test_acc\nkd,0,0.5\nhard,0,73\n",
        r"test_acc is 73 in r.csv, line 3, no share of images",
    )


def test_percent_that_is_said_is_believed_up_to_100(read, refused):
    options = {"metrics": {"test_acc": "test/accuracy%"}}
    refused(
        "objective,seed,test_acc\nkd,0,173\n",
        r"test_acc is 173 in .*, no percentage in \[0, 100\]",
        **options,
    )
    assert values(read("objective,seed,test_acc\nkd,0,0.9\nhard,0,73\n", **options)) == {
        "test/accuracy": [0.73, 0.009]
    }


@pytest.mark.parametrize("name", ["test_acc (%)", "test_acc_pct", "test/accuracy percent"])
def test_a_name_may_say_that_it_is_in_percent(read, name):
    assert values(read(f"objective,seed,{name}\nkd,0,0.9\n")) == {"test/accuracy": [0.009]}


def test_a_loss_has_no_unit(read, refused):
    text = "objective,seed,train_loss,test_nll,test_acc\nkd,0,2.5,73.1,0.5\n"
    assert values(read(text)) == {"test/accuracy": [0.5], "test/nll": [73.1], "train/loss": [2.5]}
    assert values(read("objective,seed,train_loss\nhard,0,1.0\n"))["train/loss"] == [1]


def test_a_loss_in_percent_is_refused(refused):
    text = "objective,seed,train_loss\nkd,0,2.5\n"
    refused(
        text,
        r"'train_loss' of r.csv is loss, which can't be in percent",
        metrics={"train_loss": "train/loss%"},
    )


def test_another_figure_in_0_to_100_has_its_unit_said(read, refused):
    refused(
        "objective,seed,run,split,metric,value\nkd,0,a,test,score,93.1\n",
        r"test/score is 93.1 in .* in percent or",
    )
    text = "objective,seed,split,metric,value\nkd,0,test,score,93.1\nkd,0,train,reward,-3\nkd,0,train,grad_norm,7\n"
    runs = read(text, metrics={"test/score": "test/score"})
    assert values(runs) == {"test/score": [93.1], "train/grad_norm": [7], "train/reward": [-3]}


@pytest.mark.parametrize(
    "mapped", [{}, {"test_acc": "test/accuracy"}, {"test_acc": "test/accuracy%"}]
)
def test_cells_with_a_percent_sign_say_their_unit(read, mapped):
    text = 'objective,seed,test_acc\nkd,0,73.08%\nhard,0,"1.00 %"\nhard,1,nan\n'
    with pytest.raises(KdxError, match="line 4 holds no figure but test_acc"):
        read(text, metrics=mapped)
    runs = read(text.replace("hard,1,nan\n", ""), metrics=mapped)
    assert values(runs) == {"test/accuracy": [0.01, 0.7308]}


REFUSED = {
    "some cells with a sign": (
        "objective,seed,test_acc\nkd,0,73.08%\nkd,1,0.72\n",
        r"some values of 'test_acc'",
    ),
    "a decimal comma": (
        'objective,seed,test_acc\nkd,0,"73,08"\n',
        r"'73,08' in line 2 of r.csv has a comma: write a",
    ),
    "a comma and a sign": (
        'objective,seed,test_acc\nkd,0,"73,08%"\n',
        r"'73,08%' in line 2 of r.csv has a comma",
    ),
    "a word among numbers": (
        "objective,seed,test_acc\nkd,0,.7\nkd,1,diverged\n",
        r"'diverged' in line 3 .* no number",
    ),
    "semicolons": (
        "objective;seed;test_acc\nkd;0;73,08\n",
        r"the columns of .* are parted by ';': part them",
    ),
    "the same row twice": (
        "objective,seed,epoch,test_acc\nkd,0,1,.5\nkd,0,1,.5\n",
        r"has 2 values of 'test_acc'",
    ),
    "an epoch that a float rounds": (
        "objective,seed,epoch,test_acc\nkd,0,9007199254740993,.5\n",
        r"is no epoch",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_as_it_should_be_is_refused(refused, case):
    refused(*REFUSED[case])


CHART = '"Step","kd-s0 - test_acc","kd-s0 - test_acc__MIN","kd-s0 - test_acc__MAX"\n1,41.2,41.2,41.2\n2,52.3,52.3,52.3\n'


def test_a_runs_name_in_a_chart_is_no_part_of_the_metric(read, refused):
    options = {"keys": KD, "columns": {"epoch": "Step"}}
    refused(
        CHART, r"test_acc is 41.2 in r.csv, line 2, .* map it as test_acc=test/accuracy%", **options
    )
    (run,) = read(CHART, metrics={"test_acc": "test/accuracy%"}, **options)
    assert run.record("metrics")[["epoch", "split", "metric", "value"]].to_numpy().tolist() == [
        [1, "test", "accuracy", pytest.approx(0.412)],
        [2, "test", "accuracy", pytest.approx(0.523)],
    ]
    assert run.info["config"]["settings"] == {"run": "kd-s0"}
    assert run.info["source"]["left_out"] == ["kd-s0 - test_acc__MAX", "kd-s0 - test_acc__MIN"]


TWO = '"epoch","kd - s0 - val/acc","hard - s0 - val/acc"\n1,.5,.25\n2,.75,.5\n'


def test_several_runs_of_a_chart_are_imported_one_by_one(read, refused):
    refused(
        TWO,
        r"r.csv is a chart of 2 runs \(hard - s0, kd - s0\), and says no objective and seed of each",
        keys=KD,
    )
    (run,) = read(TWO, keys=KD, metrics={"kd - s0 - val/acc": "val/accuracy"})
    assert run.record("metrics")["value"].tolist() == [0.5, 0.75]
    assert run.info["source"]["left_out"] == ["hard - s0 - val/acc"]


def test_two_metrics_of_one_run_in_a_chart(read):
    text = '"epoch","val-run - val/acc","val-run - train_loss"\n1,.5,2\n2,.75,1\n'
    assert values(read(text, keys=KD)) == {"train/loss": [2, 1], "val/accuracy": [0.5, 0.75]}


def test_the_means_of_a_grouped_chart_are_no_run(refused):
    text = CHART.replace("52.3,52.3,52.3", "52.3,51.1,53.9")
    options = {"keys": KD, "columns": {"epoch": "Step"}, "metrics": {"test_acc": "test/accuracy%"}}
    refused(
        text,
        r"'kd-s0 - test_acc' in line 3 of r.csv is not its own MIN, so it is a mean of several",
        **options,
    )


def test_a_chart_of_a_metric_of_no_split(refused):
    text = "epoch,test-3 - acc,test-3 - acc__MIN,test-3 - acc__MAX\n1,.5,.5,.5\n"
    refused(
        text, r"column 'acc' of r.csv looks like a metric, but its split can't be told", keys=KD
    )


def test_a_dash_between_split_and_metric_is_no_run(read):
    assert values(read("objective,seed,Test - Acc\nkd,0,.5\n")) == {"test/accuracy": [0.5]}


@pytest.mark.parametrize("name", ["top_k", "precision", "val_fraction", "num_classes"])
def test_settings_that_are_numbers_stay_settings(read, name):
    (run,) = read(f"objective,seed,test_acc,{name}\nkd,0,.5,16\n")
    assert run.info["config"]["settings"] == {name: 16}


SEEDS = [0, 7, 2**53 + 1, 2**63, 2**64 + 1, 10**30]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_is_a_whole_number_of_any_size(read, tmp_path, seed):
    text = f"role,objective,seed,test_acc\nstudent,kd,{seed},.5\nstudent,hard,{seed},.25\n"
    runs = read(f"{text}teacher,,{seed},.75\n")
    assert {run.seed for run in runs} == {seed}
    assert all(json.loads((run.path / "run.json").read_text())["seed"] == seed for run in runs)
    loaded = RunSet.load(tmp_path / "out")
    assert loaded.values("accuracy", role="student").index.tolist() == [seed]
    assert loaded.paired("accuracy", "kd", "hard", role="student").differences == (0.25,)
    assert set(loaded.to_frame()["seed"]) == {seed}
    assert set(loaded.frame("metrics")["seed"]) == {seed}
    assert len(loaded.filter(seed=seed)) == len(loaded) == 3


def test_two_seeds_that_a_float_takes_for_one_stay_two(read):
    seeds = (2**53, 2**53 + 1)
    runs = read("objective,seed,test_acc\n" + "".join(f"kd,{seed},.5\n" for seed in seeds))
    assert sorted(run.seed for run in runs) == list(seeds)


@pytest.mark.parametrize(
    ("written", "seed"),
    [
        ("0007", 7),
        ("0010", 10),
        ("3.0", 3),
        ("3.", 3),
        (" 5 ", 5),
        (3.0, 3),
        (4, 4),
        ("+1", 1),
        (str(2**70), 2**70),
    ],
)
def test_ways_to_write_a_seed(written, seed):
    assert whole_seed(written, "r.csv") == seed


@pytest.mark.parametrize(
    "written", ["-1", "1.5", "1e3", "1,000", "0x10", "a", True, math.nan, math.inf, "1e22", "1_0"]
)
def test_what_is_no_seed(written):
    with pytest.raises(KdxError, match=r"the seed of r.csv is .*, no whole number from 0"):
        whole_seed(written, "r.csv")


@pytest.mark.parametrize("written", [float(2**53), float(2**63), "9007199254740993.0"])
def test_a_seed_that_went_through_a_float_is_refused(written):
    with pytest.raises(KdxError, match="rounded to a float: write it as a whole number"):
        whole_seed(written, "r.csv")
    with pytest.raises(KdxError, match="rounded to a float"):
        whole_seed(_plain(float(written)), "r.csv")


def test_a_seed_column_with_a_gap_stated_beside_it(read, refused):
    text = "objective,seed,test_acc\nkd,3.0,.5\nhard,,.25\n"
    refused(text, r"line 3 does not say its seed")
    runs = read(text, keys={"seed": "3"})
    assert {run.seed for run in runs} == {3}
    with pytest.raises(KdxError, match="seed is stated as 4, but the source says 3"):
        read(text, keys={"seed": 4})


def test_seeds_of_mlflows_csv_stay_whole(tmp_path):
    seed = 2**53 + 1
    table = pd.DataFrame(
        {
            "run_id": ["a", "b"],
            "params.seed": [str(seed), ""],
            "params.objective": ["kd", "teacher"],
            "tags.role": ["student", "teacher"],
            "metrics.test_acc": ["73.1", "0.5"],
        }
    )
    table.loc[1, "params.seed"] = "0"
    table.to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(KdxError, match=r"test_acc is 73.1 in m.csv, a, no share"):
        import_runs(tmp_path / "m.csv", "mlflow", tmp_path / "out")
    table.loc[0, "metrics.test_acc"] = "0.731"
    table.to_csv(tmp_path / "m.csv", index=False)
    runs = import_runs(tmp_path / "m.csv", "mlflow", tmp_path / "out")
    assert {run.seed for run in runs} == {seed, 0}

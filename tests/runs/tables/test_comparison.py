"""Tables and comparisons of runs on disk, whose numbers are computed again from their Parquet
files.
"""

import io
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdx_analysis.errors import KdxError
from kdx_analysis.imports import import_runs
from kdx_analysis.metrics import METRICS
from kdx_analysis.runs import Run, RunSet
from tests.report.conftest import write_study
from tests.runs import latex

KIND = {"accuracy": "metrics", "contention": "contention", "gate_entropy": "gate_summary"}
ASKED = list(KIND)
RUNGS = ("hard", "kd_flat", "kd_shuffled", "kd")
COMPARISONS = len(ASKED) * (len(RUNGS) - 1)


def planted(seeds: int) -> dict[str, dict[str, list[float]]]:
    """Objectives that lie 0.02 apart, seeds that differ by more, noise of 0.01."""
    rng = np.random.default_rng(0)
    shared = np.linspace(0.5, 0.6, seeds)
    return {
        metric: {
            o: (shared + 0.02 * i + rng.normal(0, 0.01, seeds)).tolist()
            for i, o in enumerate(RUNGS)
        }
        for metric in ASKED
    }


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> dict[int, RunSet]:
    """Four rungs under the first 1, 5 and 10 seeds of a study."""
    runs = write_study(
        tmp_path_factory.mktemp("planted"), RUNGS, 10, planted(10), roles=["explainer"]
    )
    return {seeds: RunSet.of(run for run in runs if run.seed < seeds) for seeds in (1, 5, 10)}


@pytest.fixture(scope="module")
def told_of(studies) -> dict[int, dict[str, str]]:
    """Every form of the comparison under 1, 5 and 10 seeds."""
    return {seeds: forms(runs) for seeds, runs in studies.items()}


def from_disk(runs: RunSet, metric: str) -> pd.DataFrame:
    """Seeds by objectives, read from the files alone."""
    rows = []
    for run in runs:
        info = json.loads((run.path / "run.json").read_text())
        if info["role"] != "explainer":
            continue
        table = pd.read_parquet(run.path / "records" / f"{KIND[metric]}.parquet")
        if metric == "accuracy":
            table = table.query("split == 'test' and metric == 'accuracy'")
        elif metric == "contention":
            table = table.query("split == 'train' and metric == 'contention' and term == 'hard'")
        else:
            table = table.query(
                "of == 'gates' and attention == 'effective' and metric == 'entropy_share'"
            )
            table = table.query(f"epoch == {info['selection']['epoch']}")
        rows.append((info["objective"], info["seed"], table["value"].mean()))
    return pd.DataFrame(rows, columns=["objective", "seed", "value"]).pivot(
        index="seed", columns="objective", values="value"
    )


@pytest.mark.parametrize("seeds", [5, 10])
def test_every_number_is_that_of_the_parquet_files(studies, seeds):
    frame = (
        studies[seeds]
        .compare(ASKED, against="kd_shuffled")
        .to_frame()
        .set_index(["metric", "objective"])
    )
    p = {}
    for metric in ASKED:
        values = from_disk(studies[seeds], metric)
        for objective in RUNGS:
            row, own = frame.loc[metric, objective], values[objective]
            interval = stats.t.interval(0.95, seeds - 1, own.mean(), stats.sem(own))
            assert [row["mean"], row["low"], row["high"], row["n"]] == pytest.approx(
                [own.mean(), *interval, seeds]
            )
            if objective == "kd_shuffled":
                assert math.isnan(row["difference"])
                assert not row["bold"]
                continue
            test = stats.ttest_rel(own, values["kd_shuffled"])
            low, high = test.confidence_interval(1 - 0.05 / COMPARISONS)
            told = [row["difference"], row["difference_low"], row["difference_high"]]
            assert told == pytest.approx([(own - values["kd_shuffled"]).mean(), low, high])
            assert row["bold"] == (low > 0 or high < 0)
            assert row["pairs"] == seeds
            p[metric, objective] = test.pvalue
    order = sorted(p, key=p.__getitem__)
    adjusted = np.maximum.accumulate(
        [min(1, (COMPARISONS - i) * p[place]) for i, place in enumerate(order)]
    )
    told = [frame.loc[place, "p_holm"] for place in order]
    assert told == (
        pytest.approx(adjusted)
        if seeds == 10
        else pytest.approx([math.nan] * COMPARISONS, nan_ok=True)
    )
    assert set(frame["bold"]) == {True, False}


@pytest.mark.parametrize("seeds", [1, 5, 10])
def test_the_latex_tables_hold_the_numbers_of_the_parquet_files(studies, seeds, tmp_path):
    source = studies[seeds].compare(ASKED).to_latex()
    means, effects = latex.tables(source)
    shown = {latex.plain(row[0]): row[1:] for row in means if latex.plain(row[0])}
    for i, metric in enumerate(ASKED):
        values = from_disk(studies[seeds], metric)
        for objective in RUNGS:
            text = latex.plain(shown[objective][i])
            assert float(text) == pytest.approx(
                values[objective].mean(), abs=0.51 * 10 ** -len(text.partition(".")[2])
            )
            decided = False
            if seeds > 1 and objective != "hard":
                interval = stats.ttest_rel(values[objective], values["hard"]).confidence_interval(
                    1 - 0.05 / COMPARISONS
                )
                decided = interval.low > 0 or interval.high < 0
            assert (r"\textbf" in shown[objective][i]) == decided
    assert len(effects) == 1 + 3 * 3
    for row in effects[1:]:
        name, difference, text, n = map(latex.plain, row[:4])
        metric = next(key for key in ASKED if name.startswith(METRICS[key].title))
        a, b = difference.split(" − ")
        values = from_disk(studies[seeds], metric)
        told = [float(number.replace("−", "-")) for number in re.findall(r"[+−]?\d+\.\d+", text)]
        d = values[a] - values[b]
        interval = (
            stats.ttest_1samp(d, 0).confidence_interval(1 - 0.05 / COMPARISONS) if seeds > 1 else ()
        )
        assert told == pytest.approx([d.mean(), *interval], abs=0.0051)
        assert int(n) == seeds
    assert latex.compiles(source, tmp_path)


def forms(runs: RunSet) -> dict[str, str]:
    found = runs.compare(ASKED)
    return {
        "text": str(found),
        "markdown": found.to_markdown().replace("\\", ""),
        "latex": latex.plain(found.to_latex()),
        "html": found._repr_html_(),
        "table": str(found.table),
    }


INTERVAL = re.compile(r"\[[+−]?\d")
P_VALUE = re.compile(r"p \(Holm\)|< 0\.001|&lt; 0\.001|paired t-test")


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "html", "table"])
def test_with_one_seed_there_is_no_interval_and_it_is_said(told_of, form):
    told = told_of[1][form]
    assert INTERVAL.search(told) is None
    assert "t-interval" not in told
    assert "**" not in told
    assert "With n = 1 there is no interval and nothing is decided." in " ".join(told.split())
    assert P_VALUE.search(told) is None


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "html"])
def test_with_five_seeds_there_are_intervals_and_no_p_value_and_it_is_said(told_of, form):
    told = told_of[5][form]
    assert INTERVAL.search(told)
    assert P_VALUE.search(told) is None
    assert "No p-value over seeds is given below n = 6." in " ".join(told.split())


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "html"])
def test_with_ten_seeds_p_values_stand_beside_the_effects(told_of, form):
    told = " ".join(told_of[10][form].split())
    assert "p (Holm)" in told
    assert re.search(r"10[^\d]{1,20}(<|&lt;) 0\.001", told)
    assert "adjusted by Holm over the same comparisons; they rest on normal differences." in told
    assert "No p-value" not in told


def test_p_values_are_in_the_frame_from_six_seeds_on(studies):
    assert studies[5].compare(ASKED).to_frame()["p_holm"].isna().all()
    assert studies[10].compare(ASKED).to_frame()["p_holm"].notna().sum() == 3 * 3


def test_some_comparisons_may_have_six_seeds_and_others_not(studies):
    some = RunSet.of(run for run in studies[10] if run.objective != "kd" or run.seed < 4)
    told = str(some.compare("accuracy"))
    assert "p (Holm)" in told
    assert "No p-value over seeds is given below n = 6." in told.replace("\n", " ")
    p = some.compare("accuracy").to_frame().set_index("objective")["p_holm"]
    assert (math.isnan(p["kd"]), math.isnan(p["kd_flat"])) == (True, False)


def test_values_without_a_common_seed_are_named_and_not_compared(studies):
    apart = RunSet.of(
        run
        for run in studies[10]
        if run.objective in ("hard", "kd") and (run.objective == "kd") == (run.seed > 4)
    )
    found = apart.compare("accuracy")
    assert found.effects["accuracy"] == ()
    assert "No seed in common with hard in accuracy, so not compared: kd." in str(found).replace(
        "\n", " "
    )
    latex.tables(found.to_latex())


def test_what_differs_besides_is_told(studies, tmp_path):
    assert "Besides, the runs differ in nothing but their seeds." in str(
        studies[1].compare("accuracy")
    )
    changed = []
    for run in studies[5].filter(role="explainer", objective=["hard", "kd"]):
        training = {"threads": 1, "lr": 0.1 if run.objective == "kd" else 0.2}
        changed.append(
            Run(run.path, {**run.info, "config": {**run.info["config"], "training": training}})
        )
    told = str(RunSet.of(changed).compare("accuracy"))
    assert "Besides, the runs differ in training.lr 0.2 (5 runs) and 0.1 (5 runs)." in told


def test_studies_data_and_splits_that_differ_are_told(tmp_path):
    runs = write_study(tmp_path, ("hard", "kd"), 2, roles=["explainer"])
    for run in runs.filter(objective="kd"):
        run.info["study"] = "second"
        run.info["data"] |= {"name": "other", "fingerprint": "beef"}
    assert runs.compare("accuracy").notes[-1] == (
        "Besides, the runs differ in study planted (2 runs) and second (2 runs); data.name made (2 "
        "runs) and other (2 runs); split f00d (2 runs) and beef (2 runs)."
    )
    assert "study" not in runs.compare("accuracy", by="study", against="planted").notes[-1]


def test_of_runs_made_elsewhere_what_differs_is_not_known(tmp_path):
    for study, objective in (("first", "hard"), ("second", "kd")):
        (tmp_path / f"{study}.csv").write_text(
            f"objective,seed,test_acc\n{objective},0,.7\n{objective},1,.8\n"
        )
        import_runs(tmp_path / f"{study}.csv", "csv", tmp_path / "out")
    runs = RunSet.load(tmp_path / "out")
    unsaid = "What else they differ in is not known: 4 of them were made elsewhere."
    study = "study first (2 runs) and second (2 runs)"
    assert runs.compare("accuracy").notes[-1] == f"Besides, the runs differ in {study}. {unsaid}"
    for run in runs:
        run.info["study"] = "one"
    assert (
        runs.compare("accuracy").notes[-1]
        == f"Besides, the runs differ in nothing that is known. {unsaid}"
    )


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ("accuracy", ", at the last epoch: mean"),
        (["accuracy", "gate_entropy"], ", at the last epoch: mean"),
        ("contention", ", means over the probed epochs: mean"),
        (
            ["accuracy", "contention"],
            ", at the last epoch (accuracy), means over the probed epochs (contention): mean",
        ),
    ],
)
def test_the_epoch_is_said_of_the_figures_that_are_of_it(studies, metrics, said):
    assert said in studies[5].table(metric=metrics).holds


def test_controls_are_spoken_of(studies):
    told = str(studies[5].compare("accuracy")).replace("\n", " ")
    assert (
        "Only the step from the control kd_shuffled to kd can be knowledge of the classes" in told
    )
    without = studies[5].filter(objective=["hard", "kd"]).compare("accuracy")
    assert "The control kd_shuffled is missing" in str(without)


def test_a_table_bolds_what_is_better_than_every_other(studies):
    table = studies[10].table(metric=ASKED)
    cells = table.to_frame().set_index(["metric", "objective"])["bold"]
    for metric, best in (("accuracy", "kd"), ("contention", "hard"), ("gate_entropy", None)):
        values = from_disk(studies[10], metric)
        lead = None
        if best:
            others = [o for o in RUNGS if o != best]
            sign = 1 if metric == "accuracy" else -1
            ends = [
                stats.ttest_rel(sign * values[best], sign * values[o]).confidence_interval(
                    1 - 0.05 / COMPARISONS
                )
                for o in others
            ]
            lead = best if all(interval.low > 0 for interval in ends) else None
        assert [o for o in RUNGS if cells[metric, o]] == ([lead] if lead else [])
    assert "higher for accuracy, lower for contention" in table.caption
    assert "nothing is bold for gate entropy of the heads" in table.caption


def test_a_clear_best_is_bold_in_every_form(tmp_path):
    values = {
        "accuracy": {"hard": [0.1, 0.2, 0.31], "kd": [0.5, 0.61, 0.7], "kd_flat": [0.1, 0.2, 0.3]}
    }
    table = write_study(tmp_path, ("hard", "kd_flat", "kd"), 3, values).table(metric="accuracy")
    assert table.to_frame().set_index("objective")["bold"].to_dict() == {
        "hard": False,
        "kd_flat": False,
        "kd": True,
    }
    assert table.to_markdown().count("**") == 2
    assert r"kd & \textbf{0.60} \\" in table.to_latex()
    assert "<b>0.60</b>" in table._repr_html_()
    assert pd.read_csv(io.StringIO(table.to_csv()))["bold"].tolist() == [False, False, True]


def test_a_table_crosses_any_two_keys(tmp_path):
    runs = write_study(
        tmp_path, ("hard", "kd"), 3, {"accuracy": {"hard": [0.1, 0.2, 0.3], "kd": [0.4, 0.5, 0.6]}}
    )
    table = runs.table("objective", "role", "accuracy")
    assert [*table.to_frame().columns[:3]] == ["objective", "role", "metric"]
    cells = table.to_frame().set_index(["objective", "role"])
    assert cells.loc[("kd", "student"), "mean"] == pytest.approx(0.5)
    assert len(cells) == 4
    turned = runs.table("role", "objective", "accuracy").to_frame().set_index(["objective", "role"])
    assert turned.loc[("kd", "explainer"), "mean"] == pytest.approx(0.5)
    assert (
        runs.table("metric", "objective", role="student").to_frame()["metric"].tolist()[:2]
        == ["accuracy"] * 2
    )


def test_a_seed_counts_once_however_many_objectives_it_has(tmp_path):
    runs = write_study(
        tmp_path, ("hard", "kd"), 3, {"accuracy": {"hard": [0.1, 0.2, 0.3], "kd": [0.3, 0.4, 0.5]}}
    )
    table = runs.table("role", "metric", "accuracy")
    cell = table.to_frame().iloc[0]
    assert (cell["n"], cell["mean"]) == (3, pytest.approx(0.3))
    assert "A seed's runs under hard and kd count once, by their mean." in table.caption


def test_refusals(studies, tmp_path):
    runs = studies[1]
    with pytest.raises(KdxError, match="rows and columns are both 'objective'"):
        runs.table("objective", "objective", "accuracy")
    with pytest.raises(
        KdxError, match=r"a table of 'objective' by 'seed' shows one metric, not accuracy"
    ):
        runs.table("objective", "seed")
    with pytest.raises(KdxError, match="split can't be a side of a table"):
        runs.table("objective", "split")
    with pytest.raises(KdxError, match="unknown headline figure 'modulation_'"):
        runs.table(metric="modulation_")
    with pytest.raises(
        KdxError, match="none of the 5 runs is of the role tree; there are: explainer and teacher"
    ):
        runs.table(role="tree")
    with pytest.raises(KdxError, match="unknown objective among the runs 'kdd'; did you mean 'kd'"):
        runs.compare(against="kdd")
    with pytest.raises(
        KdxError,
        match="all 4 runs of the role explainer have decomposition 'binary', so there is not",
    ):
        runs.compare(by="decomposition")
    with pytest.raises(KdxError, match=r"unknown key of runs 'trainin\.threads'"):
        runs.compare(by="trainin.threads")
    accuracy = RunSet.of(write_study(tmp_path, ("hard", "kd"), 1, roles=["student"]))
    with pytest.raises(
        KdxError, match="none of the 2 runs holds 'contention'; they hold accuracy, agreement"
    ):
        accuracy.compare("contention")


def test_what_a_conclusion_is_given_is_said_where_it_is_so(studies):
    given = [
        Run(
            run.path,
            {**run.info, "config": {**run.info["config"], "teacher": "abc", "split": "f00d"}},
        )
        for run in studies[5]
    ]
    assert (
        "given one teacher and one split of the data"
        in RunSet.of(given).compare("accuracy").caption
    )
    assert "given" not in studies[5].compare("accuracy").caption.replace("is given below", "")

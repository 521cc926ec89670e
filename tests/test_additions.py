"""What is added by one declaration is found wherever things of its kind are shown."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pytest
from torch import Tensor

from kdx_analysis.metrics import METRICS, metric
from kdx_analysis.plots import FIGURES
from kdx_analysis.report import Report
from kdx_analysis.report.methods import definitions
from kdx_analysis.report.tables import answers, headline_tables
from kdx_analysis.runs import RunSet
from tests.conftest import toy_study

NAME, TITLE = "opposed_most", "most opposed pair"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunSet]:
    """A tiny study, trained and probed while one more metric is declared."""

    @metric(
        NAME,
        title=TITLE,
        reads="cosines",
        unit="cosine",
        range=(-1, 1),
        describes="lowest cosine between the gradients of two subtasks",
        definition="min over pairs of c_ab",
        conflict=True,
        better="higher",
        words=("a pair is more opposed", "no pair is as opposed"),
    )
    def opposed_most(cosines: Tensor) -> Tensor:
        return cosines.nan_to_num(1).amin(dim=(-2, -1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdx_analysis.report.Report.save_html", lambda self, out: out)
        study = toy_study(objectives=("hard", "kd_shuffled", "kd"))
        yield study.run(tmp_path_factory.mktemp("added"))
    METRICS.forget(NAME)


def test_an_added_metric_is_among_the_headlines(runs: RunSet) -> None:
    for run in runs.filter(role="explainer"):
        table = run.headlines[run.headlines["metric"] == NAME]
        assert table["value"].between(-1, 1).all()
        assert table["null"].between(-1, 1).all()
        assert set(table["split"]) == {"train", "val"}


def test_the_headline_is_what_the_formula_gives(runs: RunSet) -> None:
    run = runs.filter(role="explainer").runs[0]
    pairs = run.record("conflict").query("level == 'all' and term == 'hard' and split == 'train'")
    by_hand = pairs.groupby("epoch")["cosine"].min().mean()
    table = run.headlines.query("metric == @NAME and split == 'train'")
    assert table["value"].item() == pytest.approx(by_hand)


def test_an_added_metric_is_in_tables(runs: RunSet) -> None:
    assert TITLE in runs.table().to_markdown()
    assert runs.table(metric=NAME).to_frame()["metric"].unique().tolist() == [NAME]
    assert runs.compare(NAME).effects[NAME]


def test_an_added_metric_is_on_the_ladder(runs: RunSet) -> None:
    data: pd.DataFrame = FIGURES["ladder"].data(runs)
    assert NAME in set(data["metric"])


def test_an_added_metric_is_asked_about_in_the_answer(runs: RunSet) -> None:
    (answer,) = answers(runs)
    findings = [finding for finding in answer.findings if finding.metric == NAME]
    assert [finding.verdict for finding in findings] != [""] * len(findings)
    assert TITLE in Report(runs).answers[0].headline


def test_an_added_metric_is_defined_in_the_methods(runs: RunSet) -> None:
    (defined,) = [each for each in definitions(runs) if each.name == NAME]
    assert defined.home.startswith("tests.test_additions.")
    assert defined.facts[:2] == ("unit: cosine", "range: [−1, 1]")
    page = Report(runs)._repr_html_()
    assert "min over pairs of c_ab" in page
    assert [table.metric.name for table in headline_tables(runs)].count(NAME) == 1

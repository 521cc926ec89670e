"""The page on fidelity: what it says, that it needs no network, and that names can do nothing."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

import kdx_analysis as kdx
from kdx_analysis.metrics import METRICS
from kdx_analysis.report.fidelity_page import FidelityPage
from tests.probes.fidelity.test_manifest import Nets

EVIL = "<script>alert(1)</script>"


def students(nets, teacher, objectives=("hard", "hard_T", "kd"), seeds=3):
    """Networks by themselves, and under kd halfway to the teacher."""
    made = {}
    for objective in objectives:
        for seed in range(seeds):
            net = nets.net()
            made[objective, seed] = (net + teacher) / 2 if objective == "kd" else net
    return made


def given(n=240, k=5, **changes):
    nets = Nets(n, k)
    teacher = nets.net()
    siblings = {f"t{j}": nets.net() for j in range(1, 4)}
    return {
        "labels": nets.labels,
        "teacher": teacher,
        "siblings": siblings,
        "students": students(nets, teacher),
    } | changes


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "mine.txt").write_text("stays")
    classes = ["ant", EVIL, "cat & dog", "$d$", "elk"]
    ids = [f"{EVIL}{i}" for i in range(240)]
    fidelity = kdx.fidelity(**given(classes=classes, ids=ids))
    page = FidelityPage(fidelity, EVIL)
    page.save(folder)
    return folder, page


def test_files_are_written_and_others_stay(saved):
    folder, page = saved
    names = {path.name for path in folder.iterdir()}
    tables = {"pairs.csv", "whose.csv", "classes.csv", "images.csv", "fidelity.csv"}
    assert names == tables | {"fidelity.svg", "fidelity.png", "report.html", "mine.txt"}
    pairs = pd.read_csv(folder / "pairs.csv", keep_default_na=False)
    columns = ["objective", "seed", "teacher", "metric", "value", "chance", "n", "undefined"]
    assert list(pairs) == columns
    assert set(pairs["teacher"]) == {"own", "t1", "t2", "t3", ""}
    assert set(pairs.query("teacher == ''")["metric"]) == {"ece", "nll"}
    whose = pd.read_csv(folder / "whose.csv")
    assert len(whose) == len(page.fidelity.whose)
    assert set(whose["part"]) == {"task", "kind", "own", "ceiling", "share"}


def test_the_answer_comes_first_and_nothing_is_fetched(saved):
    folder, page = saved
    soup = BeautifulSoup((folder / "report.html").read_text(), "html.parser")
    assert soup.select_one("section .opening").text.split()[:2] == page.sentences[0].split()[:2]
    assert len(soup.select(".answer p")) == len(page.sentences) >= 3
    assert "default-src 'none'" in soup.find("meta", {"http-equiv": True})["content"]
    for element in soup.find_all(src=True):
        assert element["src"].startswith("data:image/")
    for link in soup.find_all("a", href=True):
        assert link["href"].startswith("#") or (folder / link["href"]).exists()
    assert not soup.find_all("link")


def test_names_from_data_are_escaped(saved):
    folder, _ = saved
    text = (folder / "report.html").read_text()
    assert EVIL not in text
    assert "&lt;script&gt;alert(1)" in text
    assert len(BeautifulSoup(text, "html.parser").find_all("script")) == 1


def test_the_table_holds_what_is_computed(saved):
    _, page = saved
    text = page.printed("text")
    own = page.fidelity.parts("instance", "kd")["own"].value
    (line,) = re.findall(r"^kd +instance knowledge.*$", text, flags=re.MULTILINE)
    assert f"+{own:.3f}*" in line
    assert line.endswith("decided")
    assert "note: all 13 tables were taken as logits" in text
    assert page.printed("csv") == page.fidelity.whose.to_csv(index=False)
    assert r"\toprule" in page.printed("latex")
    assert "| kd | instance knowledge |" in page.printed("markdown")


def test_numbers_on_the_page_name_their_formula(saved):
    folder, _ = saved
    soup = BeautifulSoup((folder / "report.html").read_text(), "html.parser")
    named = {
        name for each in soup.select("[data-formula]") for name in each["data-formula"].split()
    }
    assert METRICS["own_instance"].home in named
    assert METRICS["ece"].home in named
    defined = soup.select("dl code")
    assert METRICS["instance"].home in {each.text for each in defined}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"siblings": {}}, "not decid"),
        ({"siblings": {"t1": Nets(seed=7).net()}}, "not decidable"),
        ({"students": {("kd", 0): Nets(seed=9).net()}}, "can't be taken apart"),
        ({"students": {("hard", 0): Nets(seed=9).net()}}, "No student here was taught"),
    ],
    ids=["no siblings", "one sibling", "no hard", "hard alone"],
)
def test_what_can_be_told_is_told_of_less(tmp_path, changes, said):
    page = FidelityPage(kdx.fidelity(**given(**changes)))
    assert said in page.printed("text")
    page.save(tmp_path)
    assert said in (tmp_path / "report.html").read_text().replace("&#39;", "'")


@pytest.mark.parametrize("k", [2, 3])
def test_few_classes_have_a_page(tmp_path, k):
    page = FidelityPage(kdx.fidelity(**given(k=k)))
    page.save(tmp_path)
    assert "hardness" in page.printed("text")
    assert f"there are {k} classes" in page.printed("text")


def test_probabilities_with_zeros_have_a_page(tmp_path):
    changes = given()
    shares = np.exp(changes["teacher"])
    shares[:9, 4] = 0
    shares /= shares.sum(axis=1, keepdims=True)
    page = FidelityPage(kdx.fidelity(**changes | {"teacher": shares}))
    page.save(tmp_path)
    pairs = page.fidelity.pairs.query("metric == 'dark' and teacher == 'own'")
    assert set(pairs["undefined"]) == {9}

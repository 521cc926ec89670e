import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

from kdx_analysis import plots
from kdx_analysis.errors import KdxError
from kdx_analysis.metrics import together
from kdx_analysis.registry import Registry
from kdx_analysis.report import Report
from kdx_analysis.report.page import Picture, _embedded
from tests.report.conftest import quick_figures, write_study

SCRIPT = "<script>alert(1)</script>"
LOADS = {"src", "href", "srcset", "data", "poster", "action", "background"}


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "FIGURES", quick_figures())
        path = Report(
            write_study(folder / "study", ("hard", "kd_shuffled", "kd"), seeds=2)
        ).save_html(folder / "out")
    return path, path.read_text(encoding="utf-8")


def test_the_page_and_everything_beside_it(page):
    path, text = page
    assert path.name == "report.html"
    beside = sorted(
        str(file.relative_to(path.parent)) for file in path.parent.rglob("*") if file.is_file()
    )
    assert beside == [
        "answer.csv",
        "figures/plain.csv",
        "figures/plain.png",
        "figures/plain.svg",
        "report.html",
    ]
    linked = {
        of["href"]
        for tag, of in Tags(text).tags
        if tag == "a" and not of["href"].startswith(("#", "http"))
    }
    assert linked == set(beside) - {"report.html"}
    assert list(pd.read_csv(path.parent / "figures/plain.csv").columns) == ["subtask", "value"]
    answer = pd.read_csv(path.parent / "answer.csv")
    assert set(answer["verdict"].dropna()) <= {"lowers", "raises", "no difference", "undecided"}
    assert len(answer) == len(together()) * 3


def test_it_opens_with_the_answer(page):
    _, text = page
    assert 0 < text.index("No: the teacher&#39;s knowledge of the classes") < text.index("<h2")


def test_nothing_is_loaded_from_elsewhere(page):
    _, text = page
    for tag, attributes in Tags(text).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in LOADS & attributes.keys():
            local = attributes[name].startswith(("data:image/", "#", "figures/", "answer.csv"))
            assert local or (tag == "a" and attributes[name].startswith("https://arxiv.org/"))
    assert not re.search(r"url\(|@import", text)
    assert "default-src 'none'" in text


def test_the_only_script_that_may_run_is_the_report_s_own(page):
    _, text = page
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert not [name for _, of in Tags(text).tags for name in of if name.startswith("on")]


def test_every_anchor_of_the_page_has_its_place(page):
    tags = Tags(page[1]).tags
    places = {of["id"] for _, of in tags if "id" in of}
    assert {
        of["href"][1:] for tag, of in tags if tag == "a" and of["href"].startswith("#")
    } <= places


def test_names_from_the_data_are_escaped(write, two_figures, tmp_path):
    objectives = [
        "hard",
        {"name": "kd", "label": f"kd {SCRIPT}"},
        {"name": "hard_T", "label": "<b>T</b>"},
    ]
    runs = write(objectives, seeds=1, classes=(SCRIPT, "a & b", "ship"))
    for text in (Report(runs).save_html(tmp_path / "out").read_text(), Report(runs)._repr_html_()):
        tags = [tag for tag, _ in Tags(text).tags]
        assert tags.count("script") == 1
        assert "b" not in tags
        assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2
        assert "a &amp; b" in text


def test_a_figure_that_can_t_be_drawn_is_left_out_with_its_reason(page):
    path, text = page
    assert "An impossible figure: there is &lt;nothing&gt; to draw" in text
    assert not (path.parent / "figures/impossible.png").exists()


def test_accuracies_stand_in_the_table(write, two_figures, tmp_path):
    runs = write(("hard", "kd"), seeds=1, planted={"accuracy": {"hard": [0.8125], "kd": [0.4375]}})
    text = Report(runs).save_html(tmp_path / "out").read_text()
    rows = re.findall(
        r"<tr[^>]*>(.*?)</tr>", text.split('id="kdx-accuracy"')[1].split("</table>")[0], re.DOTALL
    )
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    assert cells[1][:2] == ["teacher small_teacher", "97.5"]
    assert cells[2] == ["hard", "81.2", "1", "81.2", "1", "80.0", "80.0"]
    assert cells[3] == ["kd", "43.8", "1", "43.8", "1", "80.0", "80.0"]


def test_trees_have_columns_of_their_own(write, two_figures):
    planted = {"accuracy": {"hard": [0.8125]}, "agreement": {"hard": [0.75]}}
    text = Report(
        write(("hard",), seeds=1, planted=planted, roles=("explainer", "tree"))
    )._repr_html_()
    rows = re.findall(
        r"<tr[^>]*>(.*?)</tr>", text.split('id="kdx-accuracy"')[1].split("</table>")[0], re.DOTALL
    )
    head, teacher, hard = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows)
    assert len(head) == len(teacher) == len(hard)
    assert dict(zip(head, hard, strict=True)) | {"n": ""} == {
        "Objective": "hard",
        "Undivided": "–",
        "n": "",
        "Explainer": "81.2",
        "Tree": "81.2",
        "Undivided: agreement with teacher": "–",
        "Explainer: agreement": "75.0",
        "Tree: agreement": "75.0",
    }


def test_no_p_value(page):
    assert not re.search(r"\bp\s*[<=≤]|p-value|p value", page[1])


def test_the_selection_rule_is_stated(page):
    assert "test data never used to select" in page[1]


def test_the_notebook_shows_the_same_without_links_to_files(write, two_figures):
    fragment = Report(write(("hard", "kd")))._repr_html_()
    assert "<html" not in fragment
    assert "No attribution is possible" in fragment
    assert "figures/" not in fragment
    assert fragment.count("data:image/") == 1


def test_styles_of_the_fragment_stay_in_it(write, two_figures):
    style = re.search(
        r"<style>(.*?)</style>", Report(write(("hard",), seeds=1))._repr_html_(), re.DOTALL
    )[1]
    bare = re.sub(r"@media[^{]*\{", "", style)
    selectors = [
        part.strip() for rule in re.findall(r"([^{}]+)\{", bare) for part in rule.split(",")
    ]
    assert selectors
    assert all(selector.startswith(".kdx-report") for selector in selectors)


def test_a_teacher_alone_is_refused(write, tmp_path):
    runs = write(("hard",), roles=("student",)).filter(role="teacher")
    with pytest.raises(KdxError, match="there is no run but a teacher's, and nothing to report"):
        Report(runs).save_html(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_that_breaks_leaves_the_old_one(write, two_figures, tmp_path, monkeypatch):
    out = tmp_path / "out"
    runs = write(("hard",), seeds=1)
    old = Report(runs).save_html(out).read_text()
    monkeypatch.setattr(Report, "_render", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Report(runs).save_html(out)
    assert (out / "report.html").read_text() == old


def test_one_seed_with_figures_of_the_package(write, tmp_path, monkeypatch):
    figures = Registry("figure")
    for name in ("ladder", "gates"):
        figures.register(name)(plots.FIGURES[name])
    monkeypatch.setattr(plots, "FIGURES", figures)
    path = Report(write(("hard", "kd_flat", "kd"), seeds=1)).save_html(tmp_path / "out")
    text = path.read_text()
    assert "One seed: no interval, nothing decided." in text
    assert (path.parent / "figures/ladder.svg").stat().st_size > 0
    assert re.search(r"Not drawn:.*gates&#39; records", text, re.DOTALL)  # none are planted


def test_the_page_may_have_a_name_of_its_own(tmp_path, write, two_figures):
    path = Report(write(("hard", "kd"), seeds=1)).save_html(tmp_path / "mine.html")
    assert path == tmp_path / "mine.html"
    assert (tmp_path / "answer.csv").exists()
    assert 'src="data:image/' in path.read_text()


def test_a_claim_stands_with_the_figure_it_rests_on(write, two_figures, monkeypatch):
    figures = quick_figures()
    figures.register("ladder")(replace(figures["plain"], name="ladder", title="Steps"))
    monkeypatch.setattr(plots, "FIGURES", figures)
    text = Report(write(("hard", "kd_shuffled", "kd")))._repr_html_()
    claims = text.split('id="kdx-claims"')[1].split("</ol>")[0]
    assert (
        claims.count('Rests on <a href="#kdx-figure-ladder">Steps</a>') == claims.count("<li") == 6
    )
    assert '<figure id="kdx-figure-ladder"' in text
    assert "kd and kd_shuffled differ in conflict rate by less than" in claims


def test_svg_is_embedded_as_far_as_the_page_may_grow(write, monkeypatch):
    files = {"a.png": b"x" * 300, "a.svg": b"x" * 3000, "b.png": b"x" * 300, "b.svg": b"x" * 600}
    figures = [
        Picture(name, name, "", "", {f: c for f, c in files.items() if f.startswith(name)})
        for name in "ab"
    ]
    kinds = []
    for allowed in (900, 1300, 5000):
        monkeypatch.setattr("kdx_analysis.report.page.EMBEDDED", allowed)
        kinds.append([source.split(";")[0] for source in _embedded(figures).values()])
    png, svg = "data:image/png", "data:image/svg+xml"
    assert kinds == [[png, png], [png, svg], [svg, svg]]


def test_a_mistake_in_a_users_own_figure_does_not_cost_the_report(write, monkeypatch, tmp_path):
    figures = quick_figures()

    def draw(data):
        return data.iloc[len(data)]

    plain = figures["plain"]
    figures.register("mine")(replace(plain, name="mine", title="A figure of mine", draw=draw))
    monkeypatch.setattr(plots, "FIGURES", figures)
    text = Report(write(("hard", "kd"), seeds=1)).save_html(tmp_path / "out").read_text()
    assert "A figure of mine: " in text
    assert "draw raised IndexError" in text

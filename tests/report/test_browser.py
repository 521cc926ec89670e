"""The page as a reader meets it: in Chromium, wide and narrow, light and dark, by keyboard, without
scripts.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from kdx_analysis import plots
from kdx_analysis.report import Report
from tests.report.browser import CHROMIUM, OVERFLOWING, chromium
from tests.report.conftest import quick_figures, write_study

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on PATH (Debian: apt-get install chromium)"
)
LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
LONG = (
    "a class with quite a long name of many words",
    "Donaudampfschifffahrtsgesellschaftskapitän",
    "ship",
)
REPORTS = Path(__file__).parents[2] / "reports"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    planted = {"accuracy": {"hard": [0.9], "kd_shuffled": [0.1234], "kd": [0.0999]}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "FIGURES", quick_figures())
        runs = write_study(folder / "study", ("hard", "kd_shuffled", "kd"), 1, planted, LONG)
        return Report(runs).save_html(folder / "out")


def looked_at(tab, page, folder):
    """Open the page in every look and hold it against what must be so; returns the screenshots."""
    shots = []
    for width, scheme in LOOKS:
        tab.open(page, width, scheme)
        tab.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        shots.append(tab.screenshot(folder / f"{page.stem}-{width}-{scheme}.png"))
        assert tab.requests == []
        assert tab.complaints == []
        assert tab.run(OVERFLOWING) == []
        with Image.open(shots[-1]) as image:
            assert image.width == width
            ground = image.convert("L").getpixel((2, 2))
        assert ground < 60 if scheme == "dark" else ground > 240
    return shots


def test_nothing_leaves_the_page_complains_or_overflows(tab, page, tmp_path):
    assert len(looked_at(tab, page, tmp_path)) == 4


def test_text_that_overflows_is_found(tab, tmp_path):
    page = tmp_path / "wide.html"
    page.write_text("<body><p style='width: 100px; white-space: nowrap'>" + "wide " * 40)
    tab.open(page, 390)
    assert tab.run(OVERFLOWING)


def test_tables_sort_by_keyboard_and_by_number(tab, page):
    tab.open(page, 1280)
    table = "document.querySelector('#kdx-accuracy').closest('section').querySelector('table')"
    column = f"[...{table}.tBodies[0].rows].map(row => row.cells[3].textContent)"
    state = f"{table}.tHead.rows[0].cells[3].getAttribute('aria-sort')"
    first = tab.run(column)
    assert first == ["–", "90.0", "12.3", "10.0"]
    tab.run(f"{table}.tHead.rows[0].cells[3].querySelector('button').focus()")
    seen = []
    for key in ("Enter", " ", "Enter"):
        tab.press(key)
        seen.append((tab.run(state), tab.run(column)))
    assert seen == [
        ("ascending", ["10.0", "12.3", "90.0", "–"]),
        ("descending", ["90.0", "12.3", "10.0", "–"]),
        ("none", first),
    ]


def test_rows_stay_under_the_heading_of_their_group(tab, page):
    tab.open(page, 1280)
    table = "document.querySelector('#kdx-metrics').closest('section').querySelector('table')"
    before = tab.run(
        f"[...{table}.tBodies].map(body => body.textContent.replace(/\\s/g, '').length)"
    )
    tab.run(f"{table}.tHead.rows[0].cells[0].querySelector('button').click()")
    assert tab.run(f"[...{table}.tBodies].every(body => body.rows[0].querySelector('.group'))")
    assert (
        tab.run(f"[...{table}.tBodies].map(body => body.textContent.replace(/\\s/g, '').length)")
        == before
    )
    objectives = tab.run(
        f"[...{table}.tBodies[0].rows].slice(1).map(row => row.cells[0].textContent)"
    )
    assert objectives == sorted(objectives)


def test_a_figure_is_enlarged_and_closed_by_keyboard(tab, page):
    tab.open(page, 390)
    shown = "document.querySelector('dialog').open"
    width = "document.querySelector('dialog img').getBoundingClientRect().width"
    tab.run("document.querySelector('.enlarge').focus()")
    tab.press("Enter")
    assert tab.run(shown)
    assert (
        tab.run("document.querySelector('dialog').getAttribute('aria-label')") == "A plain figure"
    )
    fits = tab.run(width)
    tab.run(
        "[...document.querySelectorAll('dialog button')].find(b => b.textContent === '+').click()"
    )
    assert tab.run(width) == pytest.approx(1.5 * fits, rel=0.02)
    tab.press("Escape")
    assert not tab.run(shown)
    assert tab.run("document.activeElement.className") == "enlarge"


def test_a_claim_is_copied_with_its_numbers(tab, page):
    tab.open(page, 1280)
    tab.run(
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async t => { "
        "window.copied = t; }}})"
    )
    claim = tab.run("document.querySelector('.claims li').dataset.copy")
    for button, text in (
        ("Copy", claim),
        ("Copy as LaTeX", claim.replace("_", r"\_").replace("−", "$-$")),
    ):
        label = json.dumps(button)
        tab.run(
            "[...document.querySelectorAll('.claims li button')].find(b => b.textContent === "
            f"{label}).click(), "
            "new Promise(done => setTimeout(done))"
        )
        assert tab.run("window.copied") == text
        assert tab.run("document.querySelector('.claims [role=status]').textContent") == "Copied"


def test_no_other_script_runs(tab, page):
    tab.open(page, 1280)
    tab.run(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 1';"
        " document.body.append(s); })()"
    )
    assert tab.run("window.hacked") is None
    assert "Content Security Policy" in " ".join(tab.complaints)


def test_it_reads_without_scripts(tab, page):
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(page, 1280)
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)
    assert tab.run("document.querySelectorAll('button').length") == 0
    assert tab.run("document.querySelector('.opening').checkVisibility()")
    assert tab.run("document.querySelector('figure img').naturalWidth") > 0


def test_a_notebook_that_shows_it_twice_keeps_its_own_looks(tab, tmp_path, write, two_figures):
    fragment = Report(write(("hard", "kd_shuffled", "kd"), seeds=1))._repr_html_()
    outside = "<table id=out><tr><th>a</th></tr></table><button id=own>b</button><h2 id=head>c</h2>"
    looks = []
    for text in (outside, outside + fragment + fragment):
        page = tmp_path / "notebook.html"
        page.write_text(f"<!doctype html><body>{text}")
        tab.open(page, 1280)
        looks.append(
            tab.run(
                "['out', 'own', 'head'].map(id => "
                "[...getComputedStyle(document.getElementById(id))].filter(k => "
                "!/size|origin|block|inline|height|width/.test(k)).map(k => k + "
                "getComputedStyle(document.getElementById(id))[k]).join())"
            )
        )
    assert looks[0] == looks[1]
    assert tab.run("document.querySelectorAll('.enlarge').length") == 2
    assert tab.run("document.querySelectorAll('.claims li:first-child button').length") == 4


@pytest.mark.slow
@pytest.mark.parametrize("study", ["digits", "cifar100_subset", "fashion_mnist", "vam"])
def test_a_report_of_real_runs(tab, tmp_path, study):
    page = REPORTS / study / "report.html"
    assert page.stat().st_size < 5_000_000
    assert len(looked_at(tab, page, tmp_path)) == 4


@pytest.mark.slow
def test_a_hundred_classes_and_thirty_runs(tab, tmp_path):
    classes = tuple(
        f"{'large omnivores and herbivores' if i % 7 == 0 else 'class'} {i}" for i in range(100)
    )
    runs = write_study(
        tmp_path / "study", seeds=5, classes=classes, roles=("explainer",), drawn=True
    )
    assert len(runs.filter(role="explainer")) == 30
    page = Report(runs).save_html(tmp_path / "out")
    assert page.stat().st_size < 5_000_000
    assert "Not drawn" not in page.read_text()
    looked_at(tab, page, tmp_path)

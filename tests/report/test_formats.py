import re
import sys

import pytest

from kdx_analysis.errors import KdxError
from kdx_analysis.report import Report
from kdx_analysis.report.formats import markdown, pdf

try:
    import weasyprint  # noqa: F401
except (ImportError, OSError) as error:
    NO_PDF = str(error).splitlines()[0]
else:
    NO_PDF = ""
needs_weasyprint = pytest.mark.skipif(
    bool(NO_PDF), reason=f"no WeasyPrint, or no Pango for it: {NO_PDF}"
)


def test_tables_become_markdown():
    html = (
        "<style>p "
        "{}</style><nav>x</nav><h2>Title</h2><table><thead><tr><th>a_b</th><th>c</th></tr></thead>"
        '<tbody><tr><th colspan="2" class="group">group</th></tr><tr><th>kd<br>x</th><td>−1 [−2, +3]</td></tr></tbody>'
        "</table><p>x<sub>k</sub> &lt;b&gt; 1 = 1</p><script>1</script>"
    )
    assert markdown(html).splitlines() == [
        "## Title",
        "",
        r"| a\_b | c |",
        "| --- | --- |",
        "| group |",
        r"| kd<br>x | −1 \[−2, +3\] |",
        "",
        r"x<sub>k</sub> \<b\> 1 = 1",
    ]


def test_a_report_as_markdown_with_its_figures_beside_it(write, two_figures, tmp_path):
    out = tmp_path / "out" / "mine.md"
    assert Report(write(("hard", "kd_shuffled", "kd"))).save(out) == out
    text = out.read_text()
    assert text.startswith("# What knowledge distillation does")
    assert "No: the teacher's knowledge of the classes" in text.split("## ")[0]
    linked = set(re.findall(r"\]\(([^)#:]+)\)", text))
    assert "figures/plain.svg" in linked
    assert all((out.parent / name).is_file() for name in linked)
    assert "![A plain figure](figures/plain.svg)" in text
    assert not re.search(r"data:|<style|<script|<div", text)


def test_names_from_the_data_are_escaped_in_markdown(write, two_figures, tmp_path):
    runs = write(
        ["hard", {"name": "kd", "label": "a|b <i>"}],
        seeds=1,
        classes=("<img src=x>", "*dog*", "ship"),
    )
    text = Report(runs).save(tmp_path / "out.md").read_text()
    assert r"\<img src" in text
    assert r"\*dog\*" in text
    assert not re.search(r"(?<!\\)<i(mg|>)", text)
    cells = [
        re.split(r"(?<!\\)\|", line)
        for line in text.split("## Accuracy")[1].split("## ")[0].splitlines()
    ]
    assert len({len(row) for row in cells if len(row) > 1}) == 1


@needs_weasyprint
def test_a_page_as_pdf():
    written = pdf("<h1>Title</h1><p>text</p>")
    assert written.startswith(b"%PDF-")


@needs_weasyprint
def test_a_pdf_fetches_nothing(tmp_path):
    from weasyprint.urls import FatalURLFetchingError

    for address in ("http://127.0.0.1:9/x.png", tmp_path.as_uri()):
        with pytest.raises(FatalURLFetchingError, match=re.escape(address)):
            pdf(f'<img src="{address}">')


@pytest.mark.slow
@needs_weasyprint
def test_a_report_as_pdf(write, two_figures, tmp_path):
    out = tmp_path / "out" / "report.pdf"
    assert Report(write(("hard", "kd_shuffled", "kd"))).save(out) == out
    assert out.read_bytes().startswith(b"%PDF-")
    assert [file.name for file in out.parent.iterdir()] == ["report.pdf"]


def test_what_is_missing_for_a_pdf_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    with pytest.raises(KdxError, match=r"pip install 'kdx_analysis\[pdf\]'"):
        pdf("<p>")


def test_another_suffix_is_refused_before_anything_is_drawn(write, tmp_path):
    report = Report(write(("hard",), seeds=1))
    with pytest.raises(
        KdxError, match=r"'.*out\.docx' has a suffix .* choose \.html, \.md or \.pdf"
    ):
        report.save(tmp_path / "out.docx")
    assert not {"answers", "album"} & report.__dict__.keys()

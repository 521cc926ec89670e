import pytest

from kdx_analysis.runs.tables.grid import Cell, Grid, latex_escaped, markdown_escaped
from tests.runs import latex

NASTY = r"a_b & 50% $x$ {y} ~^ \input{z} #1 <b>|i|</b> [t](u) *s* `c` \\ " + "two\n\nlines"


def grid(name: str = "kd", caption: str = "What it is.") -> Grid:
    head = (Cell("objective"), Cell("accuracy", ("test",)), Cell("n"))
    cells = (Cell("−0.25", ("[−0.50, 0.00]", "n = 3"), bold=True), Cell("3"))
    return Grid(
        head, ((name,), ("hard",)), (cells, (Cell("0.10", ("", "n = 1")), Cell("1"))), caption
    )


def test_markdown():
    assert grid().to_markdown() == (
        "| objective | accuracy (test) | n |\n"
        "| --- | ---: | ---: |\n"
        "| kd | **−0.25** [−0.50, 0.00], n = 3 | 3 |\n"
        "| hard | 0.10 n = 1 | 1 |\n"
        "\nWhat it is.\n"
    )


def test_latex_rows():
    (rows,) = latex.tables(grid().to_latex("tab:a"))
    assert [[latex.plain(text) for text in row] for row in rows] == [
        ["objective", "accuracy", "n"],
        ["", "test", ""],
        ["kd", "−0.25", "3"],
        ["", "[−0.50, 0.00]", ""],
        ["", "n = 3", ""],
        ["hard", "0.10", "1"],
        ["", "n = 1", ""],
    ]
    assert r"\textbf{$-$0.25}" in grid().to_latex("tab:a")
    assert r"\label{tab:a}" in grid().to_latex("tab:a")


@pytest.mark.parametrize(
    "name", [NASTY, "[x]", "*best*", "hard_T", "100%", "\\", "{", "naïve Bäume −1"]
)
def test_names_are_escaped_in_latex(name, tmp_path):
    source = grid(name, caption=name).to_latex("tab:a")
    latex.tables(source)
    assert latex.compiles(source, tmp_path)
    assert "\\input" not in source


def test_escapes_can_be_read_back():
    assert latex.plain(latex_escaped("a_b & 50% #1 $x [y] *z* −1")) == "a_b & 50% #1 $x [y] *z* −1"
    assert latex_escaped("\\{}") == r"\textbackslash{}\{\}"


def test_names_are_escaped_in_markdown_and_html():
    markdown = grid(NASTY).to_markdown()
    assert (
        len(
            {
                line.replace(r"\|", "").count("|")
                for line in markdown.splitlines()
                if line.startswith("|")
            }
        )
        == 1
    )
    assert markdown_escaped("[t](u) <b> a_b") == r"\[t\](u) \<b\> a\_b"
    page = grid(NASTY, caption="<script>").to_html()
    assert "<b>|i|" not in page
    assert "&lt;b&gt;|i|" in page
    assert "<script>" not in page
    assert "<b>−0.25</b><br><small>[−0.50, 0.00]</small>" in page


def test_text_stands_in_columns_also_beside_wide_letters():
    lines = grid("猫").to_text().splitlines()
    assert lines[0] == "objective  accuracy (test)             n"
    assert lines[1] == "猫         −0.25 [−0.50, 0.00] n = 3*  3"


def test_a_grid_without_rows():
    empty = Grid((Cell("metric"), Cell("difference")), (), (), "None.")
    assert empty.to_text() == "metric  difference\n"
    assert latex.tables(empty.to_latex("tab:a")) == [[["metric ", " difference "]]]
    assert empty.to_markdown().startswith("| metric | difference |\n")


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("kd", ["kd", "", ""]),
        (
            "gate entropy of the heads (train, effective)",
            ["gate entropy of", "the heads (train,", "effective)"],
        ),
        ("label_smoothing_of_a_tenth", [r"label\_smoothing\_of\_a\_tenth", "", ""]),
    ],
)
def test_a_long_label_in_latex_takes_the_lines_that_its_numbers_have(label, lines):
    cells = ((Cell("0.5", ("[0.4, 0.6]", "n = 3")),),)
    (rows,) = latex.tables(
        Grid((Cell("metric"), Cell("hard")), ((label,),), cells, "").to_latex("tab:a")
    )
    assert [row[0].strip() for row in rows[1:]] == lines

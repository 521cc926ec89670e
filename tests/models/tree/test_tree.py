import json
import re

import networkx as nx
import pytest
import torch

from kdx_analysis.errors import KdxError
from kdx_analysis.models import Tree
from tests.planted_trees import random_tree

INTO_2 = torch.ones(2, 1)
INTO_3 = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
HEADS = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.1, 0.5, 0.4]])
ODD = ("it's", 'q"u\\o', "a,b;(c):[d]", "<b> & &amp;", "line\nbreak", "$x_1$", "''", "é 二")


def tree() -> Tree:
    return Tree.from_attention([INTO_2, INTO_3, HEADS], ("a", "b", "c", "d"))


def test_every_gate_takes_its_strongest_parent() -> None:
    assert tree().parents == ((0, 0), (0, 1, 0), (0, 1, 0, 1))
    assert tree().path(0) == (0, 0, 0)
    assert tree().path(3) == (0, 1, 1)


def test_experts_that_no_subtask_reaches_are_dead() -> None:
    assert tree().live == ({0}, {0, 1}, {0, 1})


def test_networkx_tree_holds_live_experts_and_all_subtasks() -> None:
    graph = tree().to_networkx()
    assert set(graph.nodes) == {
        (1, 0),
        (2, 0),
        (2, 1),
        (3, 0),
        (3, 1),
        (4, 0),
        (4, 1),
        (4, 2),
        (4, 3),
    }
    assert set(graph.successors((3, 1))) == {(4, 1), (4, 3)}
    assert all(graph.in_degree(node) == 1 for node in graph if node != (1, 0))
    assert graph.nodes[4, 2]["label"] == "c"


def test_subtasks_and_children_of_a_node() -> None:
    assert tree().subtasks(1, 0) == (0, 1, 2, 3)
    assert tree().subtasks(2, 0) == tree().subtasks(3, 0) == (0, 2)
    assert tree().subtasks(3, 2) == ()
    assert tree().children(2, 0) == (0, 2)
    assert tree().children(3, 1) == (1, 3)
    with pytest.raises(
        KdxError, match="no expert 2 on level 2; it has 1 on level 1, 2 on level 2, 3 on level 3"
    ):
        tree().subtasks(2, 2)


def test_depth_is_the_deepest_level_that_two_subtasks_share() -> None:
    #  trunk ┬ L2E0 ┬ L3E0: a, b
    #        │      └ L3E1: c
    #        └ L2E1 ─ L3E2: d
    of = Tree(tuple("abcd"), (1, 2, 3), ((0, 0), (0, 0, 1), (0, 0, 1, 2)))
    assert of.depths().tolist() == [[4, 3, 2, 1], [3, 4, 2, 1], [2, 2, 4, 1], [1, 1, 1, 4]]
    assert of.cophenetic().tolist() == [[0, 1, 2, 3], [1, 0, 2, 3], [2, 2, 0, 3], [3, 3, 3, 0]]
    assert of.clades == {frozenset("ab"), frozenset("abc")}


def test_depth_against_networkx() -> None:
    of = random_tree(3, ODD)
    graph = of.to_networkx()
    for a in range(len(ODD)):
        for b in range(a):
            level, _ = nx.lowest_common_ancestor(graph, (4, a), (4, b))
            assert of.depths()[a, b] == level


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), (1,), ((),)), "at least one subtask"),
        ((("a", "a"), (1,), ((0, 0),)), "named 'a'"),
        ((("a",), (2,), ((0,),)), "one trunk"),
        ((("a", "b"), (1, 2), ((0, 0), (0,))), r"needs \(2, 2\) parents, not \(2, 1\)"),
        ((("a",), (1, 2), ((0, 0), (2,))), "level 2 has the experts 0 to 1"),
    ],
)
def test_what_makes_no_tree(arguments, message) -> None:
    with pytest.raises(KdxError, match=message):
        Tree(*arguments)


def test_gates_that_are_not_numbers_have_no_strongest_parent() -> None:
    with pytest.raises(KdxError, match="into level 3 hold NaN"):
        Tree.from_attention([INTO_2, INTO_3 * torch.nan, HEADS], tuple("abcd"))


def parse_newick(text: str):
    """A node is (label, children); a quoted label ends at a ' that isn't doubled."""
    at = 0

    def label() -> str:
        nonlocal at
        pattern = r"'((?:[^']|'')*)'" if text[at] == "'" else r"([^\s()\[\]':;,]*)"
        found = re.compile(pattern).match(text, at)
        at = found.end()
        return found[1].replace("''", "'")

    def node():
        nonlocal at
        children = []
        if text[at] == "(":
            while text[at] in "(,":
                at += 1
                children.append(node())
            assert text[at] == ")"
            at += 1
        return label(), children

    root = node()
    assert text[at:] == ";"
    return root


def test_newick_read_by_another_parser() -> None:
    of = random_tree(1, ODD)
    found = {}

    def walk(node, path) -> None:
        name, children = node
        if not children:
            found[name] = path
        for child in children:
            walk(child, (*path, name))

    walk(parse_newick(of.to_newick()), ())
    assert found == {
        name: tuple(f"L{level}E{expert}" for level, expert in enumerate(of.path(k), 1))
        for k, name in enumerate(ODD)
    }


def test_newick_by_hand() -> None:
    of = Tree(("a", "b's", "c"), (1, 2, 3), ((0, 0), (0, 1, 1), (2, 2, 0)))
    assert of.to_newick() == "((('c')L3E0)L2E0,(('a','b''s')L3E2)L2E1)L1E0;"


def test_json_is_the_dict_with_dead_experts() -> None:
    tree = random_tree(0, ODD)
    assert json.loads(tree.to_json()) == tree.to_dict()


def test_dict_by_hand() -> None:
    leaves = [{"subtask": 1, "name": "b"}]
    of = Tree(("a", "b"), (1, 2), ((0, 0), (1, 0)))
    assert of.to_dict() == {
        "level": 1,
        "expert": 0,
        "children": [
            {"level": 2, "expert": 0, "children": leaves},
            {"level": 2, "expert": 1, "children": [{"subtask": 0, "name": "a"}]},
        ],
    }


def test_dot_quotes_what_graphviz_would_read() -> None:
    text = Tree(("a", 'q"u\\o', "&beta;"), (1, 2), ((0, 0), (1, 1, 1))).to_dot()
    assert 'S1 [label="q\\"u\\\\o", shape=plaintext];' in text
    assert 'S2 [label="&amp;beta;", shape=plaintext];' in text
    edges = set(re.findall(r"(\w+) -> (\w+);", text))
    assert edges == {("L1E0", "L2E1"), ("L2E1", "S0"), ("L2E1", "S1"), ("L2E1", "S2")}


def test_printed_by_hand() -> None:
    of = Tree(("a b", "c\n", "d", "e"), (1, 2, 4), ((0, 0), (0, 0, 1, 1), (0, 0, 1, 3)))
    assert str(of) == (
        "L1E0 (4 subtasks)\n"
        "├─ L2E0 (3 subtasks)\n"
        "│  ├─ L3E0 (2 subtasks): a b, c\\n\n"
        "│  └─ L3E1 (1 subtask): d\n"
        "└─ L2E1 (1 subtask)\n"
        "   └─ L3E3 (1 subtask): e\n"
        "dead: L3E2"
    )


def test_printed_with_a_hundred_classes() -> None:
    names = [f"class number {i}" for i in range(100)]
    text = str(random_tree(0, names, (1, 3, 8)))
    assert max(map(len, text.splitlines())) <= 100
    assert all(len(re.findall(rf"{name}\b", text)) == 1 for name in names)


def test_a_notebook_shows_it_as_text_that_stays_text() -> None:
    shown = random_tree(2, ODD)._repr_html_()
    assert shown.startswith("<svg")
    assert "it's</text>" in shown
    assert "&lt;b&gt; &amp; &amp;amp;</text>" in shown
    assert "<b>" not in shown

import torch

from kdx_analysis.models import Tree

INTO_2 = torch.ones(2, 1)
INTO_3 = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
HEADS = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.1, 0.5, 0.4]])


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
    assert set(graph.nodes) == {(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2), (4, 3)}
    assert set(graph.successors((3, 1))) == {(4, 1), (4, 3)}
    assert all(graph.in_degree(node) == 1 for node in graph if node != (1, 0))
    assert graph.nodes[4, 2]["label"] == "c"

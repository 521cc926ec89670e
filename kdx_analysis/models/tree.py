"""The neural tree: every gate made hard by its largest attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """Who draws from whom once every gate takes its strongest parent.

    Attributes:
        classes: the subtasks' names, the leaves.
        experts: N_l per level from the trunk (level 1, one expert) up.
        parents: for l = 2…L+1 the parent on level l−1 of every expert of level l, and of every subtask at last.
    """

    classes: tuple[str, ...]
    experts: tuple[int, ...]
    parents: tuple[tuple[int, ...], ...]

    @classmethod
    def from_attention(cls, gates: Sequence[Tensor], classes: Sequence[str]) -> Tree:
        """Harden ``gates``, α^l or effective attention A^l for l = 2…L+1, by the argmax of every row."""
        parents = tuple(tuple(gate.argmax(dim=-1).tolist()) for gate in gates)
        return cls(tuple(classes), tuple(gate.shape[1] for gate in gates), parents)

    def path(self, subtask: int) -> tuple[int, ...]:
        """The experts of levels 1…L, trunk first, that the subtask draws from."""
        path = [self.parents[-1][subtask]]
        for parents in reversed(self.parents[:-1]):
            path.append(parents[path[-1]])
        return tuple(reversed(path))

    @property
    def live(self) -> tuple[frozenset[int], ...]:
        """Per level from the trunk up, the experts that some subtask reaches; the others are dead."""
        paths = [self.path(k) for k in range(len(self.classes))]
        return tuple(frozenset(path[level] for path in paths) for level in range(len(self.experts)))

    def to_networkx(self) -> nx.DiGraph:
        """Live experts as nodes (level, expert) and subtasks as nodes (L+1, k), edges from parent to child."""
        graph = nx.DiGraph()
        for k, name in enumerate(self.classes):
            path = self.path(k)
            nodes = [(level, expert) for level, expert in enumerate(path, 1)]
            leaf = (len(path) + 1, k)
            graph.add_node(leaf, label=name)
            nx.add_path(graph, [*nodes, leaf])
        return graph

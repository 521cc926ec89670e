"""The neural tree: every gate made hard by its largest attention."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.models.tree import compare, export
from kdx_analysis.models.tree.compare import BesideNull

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Tree:
    """Who draws from whom once every gate takes its strongest parent.

    Levels count from the trunk, 1, to L; the subtasks stand above them, on level L+1. Experts and
    subtasks count from 0 within their level. ``print`` shows the tree as text, a notebook as a
    figure. Raises KdxError where classes, experts and parents don't make one tree.

    Attributes:
        classes: the subtasks' names, the leaves; no two alike.
        experts: N_l per level from the trunk (level 1, one expert) up.
        parents: for l = 2…L+1 the parent on level l−1 of every expert of level l, and of every
            subtask at last.
    """

    classes: tuple[str, ...]
    experts: tuple[int, ...]
    parents: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.classes:
            raise KdxError("a tree needs at least one subtask; give the classes' names")
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for i, name in enumerate(self.classes) if name in self.classes[:i])
            raise KdxError(
                f"two subtasks of the tree are named {twice!r}; give each class a name of its own"
            )
        if self.experts[:1] != (1,):
            raise KdxError(
                f"a tree grows from one trunk, but its levels have {self.experts} experts; begin "
                "with 1"
            )
        rows = (*self.experts[1:], len(self.classes))
        if tuple(map(len, self.parents)) != rows:
            raise KdxError(
                f"a tree of {len(self.classes)} subtasks above levels of {self.experts} experts "
                f"needs {rows} parents, not {tuple(map(len, self.parents))}"
            )
        for level, (parents, N) in enumerate(zip(self.parents, self.experts, strict=True), 1):
            if not all(0 <= parent < N for parent in parents):
                raise KdxError(
                    f"level {level} has the experts 0 to {N - 1}, but the parents there are "
                    f"{parents}"
                )

    @classmethod
    def from_attention(cls, gates: Sequence[Tensor], classes: Sequence[str]) -> Tree:
        """Harden ``gates``, α^l or effective attention A^l for l = 2…L+1, by every row's argmax.

        Raises KdxError where a gate holds NaN.
        """
        for level, gate in enumerate(gates, 2):
            if gate.isnan().any():
                raise KdxError(
                    f"the gates into level {level} hold NaN, so they have no strongest parent"
                )
        parents = tuple(tuple(gate.argmax(dim=-1).tolist()) for gate in gates)
        return cls(tuple(classes), tuple(gate.shape[1] for gate in gates), parents)

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """:meth:`path` of every subtask."""
        return tuple(self.path(k) for k in range(len(self.classes)))

    def path(self, subtask: int) -> tuple[int, ...]:
        """The experts of levels 1…L, trunk first, that the subtask draws from."""
        path = [self.parents[-1][subtask]]
        for parents in reversed(self.parents[:-1]):
            path.append(parents[path[-1]])
        return tuple(reversed(path))

    @cached_property
    def live(self) -> tuple[frozenset[int], ...]:
        """Per level from the trunk up, the experts that some subtask reaches; others are dead."""
        return tuple(frozenset(experts) for experts in zip(*self.paths, strict=True))

    def children(self, level: int, expert: int) -> tuple[int, ...]:
        """Whose parent this expert is: experts of the next level, dead ones too, or subtasks."""
        self._check(level, expert)
        return tuple(
            child for child, parent in enumerate(self.parents[level - 1]) if parent == expert
        )

    def subtasks(self, level: int, expert: int) -> tuple[int, ...]:
        """The subtasks whose path leads through this ``expert`` of the ``level``; none if dead."""
        self._check(level, expert)
        return tuple(k for k, path in enumerate(self.paths) if path[level - 1] == expert)

    def _check(self, level: int, expert: int) -> None:
        if not (1 <= level <= len(self.experts) and 0 <= expert < self.experts[level - 1]):
            levels = ", ".join(f"{N} on level {at}" for at, N in enumerate(self.experts, 1))
            raise KdxError(
                f"the tree has no expert {expert} on level {level}; it has {levels}, counted from 0"
            )

    def depths(self) -> Int[Tensor, "K K"]:
        """The level at which two subtasks part, for all pairs, in [1, L+1].

        It is the deepest level, from the trunk, on which they share an expert: 1 where they share
        the trunk alone, L where they share the last expert, L+1 for a subtask and itself.
        """
        paths = torch.tensor(self.paths)
        shared = (paths.unsqueeze(0) == paths.unsqueeze(1)).sum(dim=-1)
        return shared + torch.eye(len(paths), dtype=torch.int64)

    def cophenetic(self) -> Int[Tensor, "K K"]:
        """Levels from two subtasks down to their lowest common expert, L+1 − depth, K×K.

        In [1, L], 0 on the diagonal.
        """
        return len(self.experts) + 1 - self.depths()

    @cached_property
    def clades(self) -> frozenset[frozenset[str]]:
        """The groups of 2 to K−1 subtasks that share an expert.

        Experts with the same subtasks make one group.
        """
        groups = set()
        for level, live in enumerate(self.live, 1):
            for expert in live:
                subtasks = self.subtasks(level, expert)
                groups.add(frozenset(self.classes[k] for k in subtasks))
        return frozenset(group for group in groups if 1 < len(group) < len(self.classes))

    def to_newick(self) -> str:
        """The tree in Newick's format: ``((('cat','dog')L3E1)L2E0,…)L1E0;``.

        Classes are quoted, with ' doubled; L2E0 is expert 0 of level 2. Dead experts are left out,
        experts with one child kept, since a node's depth is its level.
        """
        return export.newick(self)

    def to_dict(self) -> dict[str, Any]:
        """The tree nested from the trunk, dead experts included.

        Experts are level, expert and children, subtasks are subtask and name.
        """
        return export.nested(self)

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1)

    def to_networkx(self) -> nx.DiGraph:
        """Live experts (level, expert) and subtasks (L+1, k), edges from parent to child."""
        graph = nx.DiGraph()
        for k, (name, path) in enumerate(zip(self.classes, self.paths, strict=True)):
            nodes = [(level, expert) for level, expert in enumerate(path, 1)]
            leaf = (len(path) + 1, k)
            graph.add_node(leaf, label=name)
            nx.add_path(graph, [*nodes, leaf])
        return graph

    def to_dot(self) -> str:
        """The live tree in Graphviz's DOT language, trunk on the left."""
        return export.dot(self)

    def to_svg(self) -> str:
        """The figure of :meth:`plot` as SVG; its text is text."""
        from kdx_analysis.models.tree.drawing import svg

        return svg(self)

    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """The tree as (figure, axes), drawn into ``ax`` if one is given."""
        from kdx_analysis.models.tree.drawing import plot

        return plot(self, ax)

    def _repr_html_(self) -> str:
        return self.to_svg()

    def __str__(self) -> str:
        return export.printed(self)

    def robinson_foulds(self, other: Tree) -> float:
        """Robinson–Foulds distance of two rooted trees, |A △ B| / (|A| + |B|) of their clades.

        Both trees are over the same classes. In [0, 1]: 0 where all :attr:`clades` are shared, 1
        where none is; NaN where neither tree has any. What to expect without any likeness is told
        by :meth:`null`. Raises KdxError for other classes. (Robinson & Foulds, Comparison of
        phylogenetic trees, 1981.)
        """
        return compare.robinson_foulds(self, other)

    def cophenetic_correlation(self, other: Tree | Tensor | np.ndarray) -> float:
        """Pearson correlation of :meth:`cophenetic` with another tree's or with K×K distances.

        It is taken over pairs of subtasks. In [−1, 1], 0 without any likeness; NaN where one of the
        two is constant. A matrix is symmetric, its rows in the order of ``classes``. Raises
        KdxError for other classes or a matrix that isn't. (Sokal & Rohlf, The comparison of
        dendrograms by objective methods, 1962.)
        """
        return compare.cophenetic_correlation(self, other)

    def purity(self, superclasses: Mapping[str, Sequence[str]]) -> float:
        """Superclass purity Σ_i max_s |i ∩ s| / K of the groups i under the last level's experts.

        In (0, 1]; it grows with the number of experts by itself, so read it beside :meth:`null`.

        Args:
            superclasses: superclass → its classes; every class of the tree stands in one. Otherwise
                KdxError.
        """
        return compare.purity(self, superclasses)

    def null(
        self, comparison: str, other: Any, permutations: int, generator: torch.Generator
    ) -> BesideNull:
        """A comparison beside its null, in which this tree's subtasks are permuted over its leaves.

        p = (1 + #{permuted at least as alike}) / (1 + permutations); the null has no range below 39
        ``permutations``.

        Args:
            comparison: ``robinson_foulds``, ``cophenetic_correlation`` or ``purity``.
            other: what that method takes.
        """
        return compare.beside_null(self, comparison, other, permutations, generator)

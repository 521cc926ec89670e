"""Which samples belong to which split: pure functions of labels and a seed.

Draws come from a generator of their own on the CPU, so the global random state neither matters nor
moves.
"""

from __future__ import annotations

import torch
from beartype import beartype
from jaxtyping import Int64, jaxtyped
from torch import Tensor


def _shuffled_classes(labels: Tensor, seed: int) -> list[Tensor]:
    """The indices of each class that occurs, in label order, each shuffled."""
    generator = torch.Generator().manual_seed(seed)
    labels = labels.cpu()
    members = [(labels == label).nonzero().flatten() for label in labels.unique()]
    return [indices[torch.randperm(len(indices), generator=generator)] for indices in members]


def _ascending(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).sort().values if parts else torch.empty(0, dtype=torch.int64)


@jaxtyped(typechecker=beartype)
def stratified_indices(
    labels: Int64[Tensor, " N"], fraction: float, seed: int
) -> tuple[Int64[Tensor, " rest"], Int64[Tensor, " held_out"]]:
    """Hold out ``fraction`` of each class: (rest, held out), indices that partition 0 … N-1.

    Both ascend. A class of n ≥ 2 samples gives round(fraction·n), but at least 1 and at most n-1; a
    class of 1 gives none.

    >>> labels = torch.tensor([0, 1, 0, 1, 0, 1, 1])
    >>> [part.tolist() for part in stratified_indices(labels, 0.3, seed=0)]
    [[0, 1, 2, 5, 6], [3, 4]]
    """
    rest, held_out = [], []
    for indices in _shuffled_classes(labels, seed):
        n = len(indices)
        # At least one for validation, and at least one that is left to train on.
        count = min(max(round(fraction * n), 1), n - 1)
        held_out.append(indices[:count])
        rest.append(indices[count:])
    return _ascending(rest), _ascending(held_out)


@jaxtyped(typechecker=beartype)
def take_per_class(
    labels: Int64[Tensor, " N"], per_class: int, seed: int
) -> Int64[Tensor, " taken"]:
    """Draw ``per_class`` samples of each class without replacement: ascending indices.

    A class that has fewer gives all of them.

    >>> take_per_class(torch.tensor([0, 1, 0, 1, 0]), 2, seed=0).tolist()
    [0, 1, 3, 4]
    """
    return _ascending([indices[:per_class] for indices in _shuffled_classes(labels, seed)])

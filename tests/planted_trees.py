"""Runs whose gates are the trees that one gives them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kdx_analysis.models import Tree
from kdx_analysis.runs import RunSet, write_run
from tests.planted_records import complete

NAMES = tuple(f"class {i}" for i in range(12))
EPOCH = 3


def random_tree(seed: int, classes=NAMES, experts=(1, 3, 5)) -> Tree:
    generator = torch.Generator().manual_seed(seed)
    shapes = zip((*experts[1:], len(classes)), experts, strict=True)
    return Tree.from_attention(
        [torch.rand(shape, generator=generator) for shape in shapes], classes
    )


def gates_of(tree: Tree) -> pd.DataFrame:
    """A record of gates: after the last epoch 0.6 on the tree's parents, before it on the first
    parent.
    """
    frames = []
    for epoch in (EPOCH - 1, EPOCH):
        for level, (N, parents) in enumerate(zip(tree.experts, tree.parents, strict=True), 2):
            child, parent = (
                np.repeat(np.arange(len(parents)), N),
                np.tile(np.arange(N), len(parents)),
            )
            chosen = parent == (np.array(parents)[child] if epoch == EPOCH else 0)
            effective = np.where(chosen, 0.6, 0.4 / max(1, N - 1))
            names = (
                tree.classes
                if level == len(tree.experts) + 1
                else [f"expert {i}" for i in range(len(parents))]
            )
            frames.append(
                pd.DataFrame(
                    {
                        "epoch": epoch,
                        "level": level,
                        "child": np.array(names)[child],
                        "child_index": child,
                        "parent": parent,
                        "alpha": 1 / N,
                        "effective": effective,
                        "tau": 1.0,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def routing_of(tree: Tree) -> pd.DataFrame:
    """A record of routing distances: those of the tree."""
    a, b = np.triu_indices(len(tree.classes), k=1)
    distance = tree.cophenetic().numpy()[a, b] / len(tree.experts)
    return pd.DataFrame(
        {"epoch": EPOCH, "attention": "effective", "a_index": a, "b_index": b, "distance": distance}
    )


def runs_with(folder: Path, trees: Mapping[tuple[str, int], Tree]) -> RunSet:
    """An explainer for each (objective, seed)."""
    for (objective, seed), tree in trees.items():
        id_ = f"explainer-{objective}-{seed}"
        info = {
            "id": id_,
            "study": "planted",
            "role": "explainer",
            "objective": objective,
            "decomposition": "binary",
            "seed": seed,
            "config": {"seed": seed, "objective": {"name": objective}},
            "data": {"classes": list(tree.classes)},
            "selection": {"rule": "last", "split": "val", "epoch": EPOCH},
        }
        records = {"gates": gates_of(tree), "routing": routing_of(tree)}
        write_run(folder / id_, info, complete(records))
    return RunSet.load(folder)

"""The ladder of controls from hard labels to KD (method of KDExplainer), and what stands beside it.

A rung for each; what it matches is given by its target function. Neighbours differ in one thing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from beartype import beartype
from jaxtyping import Float, Int, jaxtyped
from torch import Tensor

from kdx_analysis.objectives.contract import target

# Colours are those of Okabe & Ito, Color Universal Design (2008). They, the markers and the dashes
# are told apart by every sight and in print without colour, which a test holds.


@target(
    "hard",
    title="hard labels",
    rung=True,
    distils=False,
    colour="#000000",
    marker="o",
    line="-",
    definition="BCE(σ(m_k), 1[y = k])",
)
def hard(one_hot: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The labels themselves."""
    return one_hot


@target(
    "hard_T",
    title="control: hard labels in KD's form",
    adds=("temperature", "loss scale"),
    follows="hard",
    rung=True,
    needs_teacher=False,
    colour="#0072B2",
    marker="s",
    line=(0, (5, 1.5)),
    definition="one-hot targets in KD's form",
)
def hard_T(cut: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """One-hot targets in KD's form: only temperature and loss scale are left of KD."""
    return F.one_hot(labels, cut.shape[1]).to(cut.dtype)


@target(
    "kd_flat",
    title="control: the teacher's target of the true class, the rest spread evenly",
    adds=("softness",),
    follows="hard_T",
    rung=True,
    colour="#56B4E9",
    marker="^",
    line=(0, (3, 1, 1, 1)),
    definition="the true class's target kept, the others' replaced by their mean",
)
def kd_flat(cut: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The true class's target kept, the others' replaced by their mean: softness alone.

    >>> cut = torch.tensor([[0.7, 0.2, 0.1]])
    >>> kd_flat(cut, torch.tensor([0]), torch.Generator())
    tensor([[0.7000, 0.1500, 0.1500]])
    """
    true = F.one_hot(labels, cut.shape[1]).bool()
    mean = cut.masked_fill(true, 0).sum(dim=1, keepdim=True) / (cut.shape[1] - 1)
    return torch.where(true, cut, mean)


@target(
    "kd_shuffled",
    title="control: the teacher's targets of the wrong classes permuted anew per sample",
    adds=("unevenness",),
    follows="kd_flat",
    rung=True,
    colour="#009E73",
    marker="v",
    line=(0, (2, 1)),
    definition="the wrong classes' targets permuted anew for every sample; their mean over "
    "permutations is kd_flat",
)
@jaxtyped(typechecker=beartype)
def kd_shuffled(
    cut: Float[Tensor, "B K"], labels: Int[Tensor, " B"], generator: torch.Generator
) -> Float[Tensor, "B K"]:
    """The wrong classes' targets permuted anew for every sample: unevenness without structure.

    Its mean over permutations is ``kd_flat``.

    >>> cut, label = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([0])
    >>> shuffled = kd_shuffled(cut, label, torch.Generator().manual_seed(1))
    >>> shuffled[0, 0].item() == cut[0, 0].item(), shuffled.sort().values
    (True, tensor([[0.1000, 0.2000, 0.7000]]))
    """
    B, K = cut.shape
    wrong = torch.arange(K - 1, device=cut.device).expand(B, -1)
    wrong = wrong + (wrong >= labels.unsqueeze(1))  # the columns other than the label's
    order = torch.rand(B, K - 1, generator=generator).argsort(dim=1).to(cut.device)
    return cut.scatter(1, wrong, cut.gather(1, wrong.gather(1, order)))


@target(
    "kd",
    title="the teacher's targets",
    adds=("class structure",),
    follows="kd_shuffled",
    rung=True,
    colour="#D55E00",
    marker="P",
    line="-",
    definition="(1−λ)·hard + λ·T²·KL(q_k ‖ σ(m_k/T)) between two-way distributions, q_k = σ(u_k/T) "
    "with the teacher's one-vs-rest margin u_k = v_k − log Σ_{j≠k} exp v_j",
    source="Hinton, Vinyals & Dean 2015, arXiv 1503.02531",
)
def kd(cut: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The teacher's own targets."""
    return cut


@target(
    "label_smoothing",
    title="labels with a share epsilon spread over all classes",
    follows="hard",
    distils=False,
    colour="#CC79A7",
    marker="D",
    line=(0, (1, 1)),
    definition="the target (1−ε)·onehot + ε/K, cut into binary targets",
    source="Szegedy et al. 2016, arXiv 1512.00567",
)
def label_smoothing(
    one_hot: Tensor, labels: Tensor, generator: torch.Generator, *, epsilon: float
) -> Tensor:
    """(1 − ε)·onehot + ε/K, in [0, 1].

    >>> one_hot, label = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    >>> label_smoothing(one_hot, label, torch.Generator(), epsilon=0.5)
    tensor([[0.7500, 0.2500]])
    """
    return (1 - epsilon) * one_hot + epsilon / one_hot.shape[1]
